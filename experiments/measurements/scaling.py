"""How memory and time of a training step grow with its sizes.

Run:     python -m experiments.measurements.scaling
Needs:   flax, for the library it is compared with.
Shows:   the memory that a step needs, as its compiler counts it, for every number of steps: of
         rnnjax for every ``remat`` named, and of ``flax.nnx``; and the time of a step while one of
         steps, batch and layers grows, with the power of that size it grows with. Numbers go to
         scaling.json and the chart to scaling.png.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from experiments.measurements.remat import MEBIBYTE, parse_remat
from experiments.running.console import exit_code, print_table
from experiments.running.figures import new_figure, save_figure
from experiments.running.parsing import parse
from experiments.running.run_folder import RunFolder, plain, run_config, usual_folder
from experiments.running.setting_checks import above, check_settings, each, whole
from experiments.throughput.cases import Case, CellName, Shape
from experiments.throughput.libraries import LIBRARIES
from experiments.throughput.libraries.entries import Entry
from experiments.throughput.libraries.ours import entry
from experiments.throughput.problems import Problem, make_problem, rnnjax_cell
from rnnjax.benchmark import CompiledCall, Spread, Timing, compile_apart, interleaved

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FLAX = "flax.nnx"


@dataclass(frozen=True)
class Settings:
    """Measure a training step while one of its sizes grows."""

    cell: CellName = "lstm"
    """The recurrent cell: an LSTM has the most to keep, four gates and two states."""
    size: int = 128
    """Inputs and hidden units."""
    batch: int = 16
    """Sequences side by side where steps or layers grow."""
    steps: int = 256
    """Steps of the sequences where batch or layers grow."""
    memory_steps: tuple[int, ...] = (256, 1024, 4096, 16384)
    """Numbers of steps for which memory is counted; nothing is run."""
    times: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096)
    """Numbers of steps that are timed, three at least to see how time grows."""
    batches: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Sizes of a batch that are timed, three at least."""
    layers: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of layers that are timed, three at least."""
    remats: tuple[str, ...] = ("never", "sqrt", "None")
    """What reverse mode may keep, see rnnjax.unroll; None has the library choose."""
    rounds: int = 5
    """How often each size is timed: in a round every size has its turn."""
    seconds: float = 0.1
    """Seconds that a turn lasts at least: what is shorter is called several times."""
    out: Path | None = None
    """Folder of the run; by default runs/scaling-TIME."""


class Point(NamedTuple):
    """The time of a step at one size."""

    size: int
    seconds: Spread


@functools.cache  # the same step stands in several of the tables
def training_step(
    settings: Settings, steps: int, batch: int, layers: int = 1
) -> tuple[CompiledCall, tuple]:
    """A compiled step with the gradients of weights and inputs, and shapes of what it takes."""
    cell = rnnjax_cell(Case(settings.cell, Shape(batch, steps, settings.size, settings.size)))
    layer = rnnjax.stack(*[rnnjax.recurrent(cell)] * layers)

    def loss(params: Any, xs: Any) -> Any:
        return jnp.sum(jnp.square(layer.apply(params, xs)[1]))

    key = jax.random.key(0)
    params = jax.eval_shape(lambda key: layer.init(key, settings.size), key)
    shapes = (params, jax.ShapeDtypeStruct((batch, steps, settings.size), jnp.float32))
    return compile_apart(jax.value_and_grad(loss, (0, 1)), *shapes), shapes


def memory_rows(settings: Settings) -> list[dict[str, Any]]:
    """Bytes of a step for every number of steps: of rnnjax, and of Flax if it is there."""
    rows = []
    for steps in settings.memory_steps:
        for remat in settings.remats:
            found = rnnjax_bytes(settings, steps, remat)
            rows.append({"steps": steps, "what": f"rnnjax, remat={remat}", "bytes": found})
        if LIBRARIES[FLAX].missing is None:
            rows.append({"steps": steps, "what": FLAX, "bytes": flax_bytes(settings, steps)})
    return rows


def rnnjax_bytes(settings: Settings, steps: int, remat: str) -> int | None:
    """What the compiler counts for a step as ``experiments.throughput`` takes it."""
    return entry("rnnjax", _problem(settings, steps), remat=parse_remat(remat)).make().peak_bytes


def flax_bytes(settings: Settings, steps: int) -> int | None:
    """What it counts for the same step by ``flax.nnx``."""
    theirs = next(LIBRARIES[FLAX].enter(_problem(settings, steps)))
    return theirs.make().peak_bytes if isinstance(theirs, Entry) else None


@functools.lru_cache(maxsize=1)  # the arrays of one number of steps, for all that is counted there
def _problem(settings: Settings, steps: int) -> Problem:
    shape = Shape(settings.batch, steps, settings.size, settings.size)
    return make_problem(Case(settings.cell, shape))


def time_points(settings: Settings, sizes: Sequence[int], make: Callable) -> list[Point]:
    """The time of a step for every size; all take turns in every round."""
    calls = {}
    for size in sizes:
        compiled, shapes = make(size)
        arrays = jax.tree.map(lambda s: jnp.full(s.shape, 0.1, s.dtype), shapes)
        calls[str(size)] = lambda run=compiled.run, given=arrays: run(*given)
    timings: dict[str, Timing] = interleaved(
        calls, rounds=settings.rounds, seconds=settings.seconds
    )
    return [Point(size, timings[str(size)].spread) for size in sizes]


def measure(settings: Settings) -> dict[str, Any]:
    """All numbers: the memory, and the times by what grows."""
    s = settings
    growing = {
        "steps": (s.times, lambda n: training_step(s, n, s.batch)),
        "batch": (s.batches, lambda n: training_step(s, s.steps, n)),
        "layers": (s.layers, lambda n: training_step(s, s.steps, s.batch, n)),
    }
    return {
        "memory": memory_rows(settings),
        "time": {
            name: [
                point._asdict() | {"seconds": point.seconds._asdict()}
                for point in time_points(settings, sizes, make)
            ]
            for name, (sizes, make) in growing.items()
        },
    }


def power(points: Sequence[dict[str, Any]]) -> float:
    """The p of time ~ size^p that fits best: 1 where time grows in proportion.

    Example:
        >>> power([{"size": n, "seconds": {"median": 0.5 * n**2}} for n in (1, 2, 4)])
        2.0
    """
    sizes = [math.log(point["size"]) for point in points]
    times = [math.log(point["seconds"]["median"]) for point in points]
    return round(float(np.polyfit(sizes, times, 1)[0]), 12)


def show(found: dict[str, Any]) -> None:
    """Print both tables."""
    by_steps: dict[int, dict[str, str]] = {}
    for row in found["memory"]:
        text = "" if row["bytes"] is None else f"{row['bytes'] / MEBIBYTE:,.0f}"
        line = by_steps.setdefault(row["steps"], {"steps": f"{row['steps']:,}"})
        line[f"{row['what']}, MiB"] = text
    print_table(list(by_steps.values()))
    print()
    print_table(
        [
            {
                "what grows": name,
                "from": f"{points[0]['size']:,}",
                "to": f"{points[-1]['size']:,}",
                "ms": " ".join(f"{1e3 * p['seconds']['median']:.3g}" for p in points),
                "power": f"{power(points):.2f}",
            }
            for name, points in found["time"].items()
        ]
    )


def draw(found: dict[str, Any], title: str, path: Path) -> None:
    """Draw memory against steps, and time against each size, all on logarithmic axes."""
    figure = new_figure(9.5, 7.0)
    panels = figure.subplots(2, 2).flat
    _draw_memory(next(panels), found["memory"])
    for axes, (name, points) in zip(panels, found["time"].items(), strict=True):
        _draw_time(axes, name, points)
    figure.suptitle(title, fontsize="medium")
    save_figure(figure, path)


def titled(settings: Settings) -> str:
    """What the chart is of.

    Example:
        >>> titled(Settings())
        'training step, lstm, 128 units, batch 16, 256 steps, 1 layer, except for what grows'
    """
    return (
        f"training step, {settings.cell}, {settings.size} units, batch {settings.batch}, "
        f"{settings.steps} steps, 1 layer, except for what grows"
    )


def _draw_memory(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    names = dict.fromkeys(row["what"] for row in rows)
    colors = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#222222")
    for number, name in enumerate(names):
        own = [row for row in rows if row["what"] == name and row["bytes"]]
        xs, ys = [row["steps"] for row in own], [row["bytes"] / MEBIBYTE for row in own]
        color = "#222222" if name == FLAX else colors[number % 4]
        axes.plot(xs, ys, marker="osD^v"[number % 5], color=color, label=name, markersize=5)
    axes.legend(frameon=False, fontsize="small")
    _tidy(axes, "steps", "memory of a training step, MiB")


def _draw_time(axes: Axes, name: str, points: Sequence[dict[str, Any]]) -> None:
    xs = [point["size"] for point in points]
    median, least, most = (
        [1e3 * point["seconds"][field] for point in points] for field in Spread._fields
    )
    axes.fill_between(xs, least, most, color="#0072b2", alpha=0.2, linewidth=0)
    axes.plot(xs, median, "o", color="#0072b2", label="measured, with its range", markersize=5)
    straight = [median[-1] * x / xs[-1] for x in xs]
    label = f"in proportion (fitted power {power(points):.2f})"
    axes.plot(xs, straight, color="#8c8c8c", linewidth=1, linestyle="--", label=label)
    axes.legend(frameon=False, fontsize="small")
    _tidy(axes, name, "time of a training step, ms")


def _tidy(axes: Axes, name: str, what: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set(xlabel=name, ylabel=what)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}" if y >= 1 else f"{y:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def check(settings: Settings) -> None:
    """Refuse what cannot be measured.

    Raises:
        DataError: naming the setting.
    """
    # Three at least, to see how time grows.
    grown = dict.fromkeys(("times", "batches", "layers"), each(whole(1), least=3))
    once = dict.fromkeys(("size", "batch", "steps", "rounds"), whole(1))
    steps = each(whole(1))
    check_settings(settings, **grown, **once, memory_steps=steps, seconds=above(0))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    settings = parse(Settings, "python -m experiments.measurements.scaling", arguments)
    folder = settings.out or usual_folder("scaling")
    return exit_code(lambda: run(settings, folder))


def run(settings: Settings, folder: Path) -> None:
    """Measures, writes what was found to the folder, and prints it."""
    check(settings)
    config = run_config(settings)
    with RunFolder(folder, config, leaves=("scaling.json", "scaling.png")):
        found = measure(settings)
        text = json.dumps(plain(config | found), indent=1) + "\n"
        (folder / "scaling.json").write_text(text, "utf-8")
        draw(found, titled(settings), folder / "scaling.png")
    show(found)
    print(f"scaling.json and scaling.png are in {folder}")


if __name__ == "__main__":
    sys.exit(main())
