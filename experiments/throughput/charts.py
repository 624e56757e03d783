"""The chart of speed ratios: one row a case, one colour a library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.running.figures import new_figure, save_figure
from experiments.throughput.measuring import BASELINE, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Told apart by the colour-blind (Okabe and Ito's palette), and by their markers.
STYLES = {
    "flax.nnx": ("#0072b2", "o"),
    "flax.linen": ("#56b4e9", "s"),
    "haiku": ("#009e73", "^"),
    "equinox": ("#cc79a7", "v"),
    "keras": ("#d55e00", "D"),
    "torch": ("#222222", "P"),
    "torch packed": ("#8c8c8c", "X"),
    "torch cell": ("#8c6d31", "d"),
    "jax.experimental.rnn": ("#e69f00", "*"),
}
OTHERS = ("#b5b000", "h")


def draw_ratios(cases: Mapping[str, Sequence[Record]], path: Path) -> bool:
    """Draw how many times as long every library took as rnnjax, with the range of the rounds.

    Returns:
        False where there is nothing to draw.
    """
    rows = {case: _ranked(records) for case, records in cases.items()}
    rows = {case: found for case, found in rows.items() if found}
    if not rows:
        return False
    figure = new_figure(9.5, 1.9 + 0.5 * len(rows))
    axes = figure.subplots()
    names = list(dict.fromkeys(record["library"] for found in rows.values() for record in found))
    for number, found in enumerate(rows.values()):
        if number % 2:
            axes.axhspan(number - 0.5, number + 0.5, color="#f4f4f4", zorder=0)
        for record in found:
            _draw_point(axes, number, names, record)
    _tidy(axes, list(rows), names)
    save_figure(figure, path)
    return True


def _ranked(records: Sequence[Record]) -> list[Record]:
    return [r for r in records if r.get("ratio") and r["library"] != BASELINE]


def _draw_point(axes: Axes, row: int, names: list[str], record: Record) -> None:
    ratio, name = record["ratio"], record["library"]
    color, marker = STYLES.get(name, OTHERS)
    place = row + 0.7 * ((names.index(name) + 0.5) / len(names) - 0.5)
    axes.plot([ratio["least"], ratio["most"]], [place] * 2, color=color, linewidth=1.4)
    axes.plot(ratio["median"], place, marker, color=color, markersize=6, markeredgewidth=0)


def _tidy(axes: Axes, cases: list[str], names: list[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, StrMethodFormatter

    axes.axvline(1, color="#c00000", linewidth=1.2, zorder=1)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    low, high = min(low, 0.7), max(high, 1.5)
    axes.set_xlim(low, high)
    steps = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    if high / low < 12:  # room for more
        steps = (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)
    axes.xaxis.set_major_locator(FixedLocator([step for step in steps if low <= step <= high]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(cases)), cases)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_xlabel("time as a multiple of rnnjax's: right of 1 rnnjax is the faster")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    entries: list[Any] = []
    for name in names:
        color, marker = STYLES.get(name, OTHERS)
        entries.append(Line2D([], [], color=color, marker=marker, label=name, linestyle="none"))
    where: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.35, 1.0)}
    axes.legend(handles=entries, ncols=min(5, len(entries)), frameon=False, **where)
