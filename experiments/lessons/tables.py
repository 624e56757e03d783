"""The rows of the lessons as tables: one line for each system and library, over all seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OURS = "rnnjax"
Line = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """What one library came to with one system and one seed (None where chance has no part)."""

    lesson: str
    system: str
    library: str
    seed: int | None
    figures: Mapping[str, float]
    epoch_seconds: float | None = None
    steps: int | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> tuple[str, str, int | None]:
        """What tells rows of a lesson apart."""
        return self.system, self.library, self.seed


def summarize(rows: Sequence[Row]) -> list[Line]:
    """One line for each system and library of a lesson, in the order of their first rows.

    A figure is {"mean", "spread", "count"}: the spread is the standard deviation of the sample,
    None for one value. "ratio" is how many times the epoch seconds of rnnjax those of the line
    are, the mean over the seeds that both have.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.system, row.library), []).append(row)
    return [_line(group, groups.get((system, OURS), [])) for (system, _), group in groups.items()]


def _line(group: Sequence[Row], ours: Sequence[Row]) -> Line:
    first = group[0]
    timed = {"epoch s": [row.epoch_seconds for row in group]}
    return {
        "lesson": first.lesson,
        "system": first.system,
        "library": first.library,
        "seeds": [row.seed for row in group if row.seed is not None],
        "figures": _spreads([row.figures for row in group]),
        "seconds": {**_spread_of(timed), **_spreads([row.timings for row in group])},
        "ratio": _ratio(group, ours),
        "steps": first.steps,
        "note": "; ".join(dict.fromkeys(row.note for row in group if row.note)),
    }


def _spreads(found: Iterable[Mapping[str, float]]) -> Line:
    values: dict[str, list[float | None]] = {}
    for figures in found:
        for name, value in figures.items():
            values.setdefault(name, []).append(value)
    return _spread_of(values)


def _spread_of(values: Mapping[str, Sequence[float | None]]) -> Line:
    return {
        name: {
            "mean": statistics.fmean(real),
            "spread": statistics.stdev(real) if len(real) > 1 else None,
            "count": len(real),
        }
        for name, given in values.items()
        if (real := [value for value in given if value is not None])
    }


def _ratio(group: Sequence[Row], ours: Sequence[Row]) -> float | None:
    base = {row.seed: row.epoch_seconds for row in ours}
    ratios = [
        row.epoch_seconds / own
        for row in group
        if row.library != OURS and row.epoch_seconds and (own := base.get(row.seed))
    ]
    return statistics.fmean(ratios) if ratios else None


def lesson_table(rows: Sequence[Row]) -> str:
    """The lines of one lesson as a Markdown table, its columns aligned.

    Example:
        >>> from experiments.lessons.tables import Row
        >>> rows = [Row("a", "LSTM", "rnnjax", seed, {"accuracy": 0.5 + seed}) for seed in (0, 1)]
        >>> print(lesson_table(rows))
        | system | library | seeds |      accuracy |
        |:-------|:--------|------:|--------------:|
        | LSTM   | rnnjax  |     2 | 1.000 ± 0.707 |
    """
    found = lesson_rows(rows)
    return markdown([list(row.values()) for row in found], list(found[0]))


def lesson_rows(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The lines of one lesson, each with the same columns by their names."""
    lines = [_cells(line) for line in summarize(rows)]
    order = ["system", "library", "seeds"]
    order += dict.fromkeys(
        name for line in lines for name in line if name not in (*order, *_AT_THE_END)
    )
    order += [name for name in _AT_THE_END if any(line.get(name) for line in lines)]
    return [{name: line.get(name, "") for name in order} for line in lines]


_AT_THE_END = ("steps", "epoch s", "times rnnjax", "note")


def _cells(line: Line) -> dict[str, str]:
    seconds = {name: _seconds(value) for name, value in line["seconds"].items()}
    return {
        "system": line["system"],
        "library": line["library"],
        "seeds": str(len(line["seeds"])) if line["seeds"] else "",
        **{name: _figure(value) for name, value in line["figures"].items()},
        **seconds,
        "times rnnjax": "" if line["ratio"] is None else f"{line['ratio']:.2f}",
        "steps": "" if line["steps"] is None else f"{line['steps']:,}",
        "note": line["note"],
    }


def _figure(value: Line) -> str:
    mean, spread = value["mean"], value["spread"]
    if spread is None:
        return f"{mean:,}" if isinstance(mean, int) else _number(mean, 4)
    if spread == 0 and _is_count(mean):
        return f"{int(mean):,}"  # of weights, say, which chance has no part in
    return f"{_number(mean, 3)} ± {_number(spread, 3)}"


def _is_count(value: float) -> bool:
    return value == int(value) and abs(value) >= 10


def _number(value: float, digits: int) -> str:
    if _is_count(value):
        return f"{int(value):,}"
    small = value != 0 and abs(value) < 10 ** (1 - digits)
    return f"{value:.{digits - 1}e}" if small else f"{value:.{digits}f}"


def _seconds(value: Line) -> str:
    return f"{value['mean']:.2f}" if value["mean"] < 10 else f"{value['mean']:.1f}"


def markdown(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    """A Markdown table: the first two columns and the last, if it is notes, to the left."""
    widths = [max(3, *map(len, column)) for column in zip(head, *rows, strict=True)]
    left = [place < 2 or name == "note" for place, name in enumerate(head)]
    rule = [":" + "-" * (w + 1) if side else "-" * (w + 1) + ":" for w, side in zip(widths, left)]  # noqa: B905
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if side else cell.rjust(width)
            for cell, width, side in zip(row, widths, left, strict=True)
        )
        + " |"
        for row in (head, *rows)
    ]
    return "\n".join([lines[0], "|" + "|".join(rule) + "|", *lines[1:]])
