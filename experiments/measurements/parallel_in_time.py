"""When it pays to run a cell in parallel over time: the loop against an associative scan or chunks.

Run:     python -m experiments.measurements.parallel_in_time
Expect:  how many times as fast as the loop, forward and with gradient; on 2 cores of an Intel Xeon,
         with --hidden-sizes 4 32 --steps 256 4096 --batches 1 16 --rounds 4:

             min_gru and min_lstm   0.35 to 1.4   0.61 to 2.3
             lru                    0.34 to 1.4   0.61 to 12

         so on a CPU the loop is mostly the faster one, except for gradients over a single
         sequence (1.6 to 2.6 times at 32 units) and of a small lru
         (22 November 2026, jax 0.10.2). In chunks, on 2 cores of an AMD EPYC, with
         --cells mlstm gated_delta --hidden-sizes 32 128 --steps 64 1024 --batches 1 16 --rounds 4:

             mlstm                  0.53 to 0.85  0.9 to 2.4
             gated_delta            0.47 to 1.0   0.96 to 2.0

         (28 November 2026, jax 0.12.0.1)
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

import rnnjax
from experiments.running.console import exit_code, print_table
from experiments.running.parsing import parse
from experiments.running.run_folder import RunFolder, run_config, usual_folder
from experiments.running.setting_checks import above, check_settings, each, whole
from rnnjax.benchmark import Spread, interleaved, ratio, spread
from rnnjax.cells.lru import lru
from rnnjax.cells.min_gru import min_gru
from rnnjax.cells.min_lstm import min_lstm

CellName = Literal["min_gru", "min_lstm", "lru", "mlstm", "gated_delta"]
CELLS: dict[CellName, Callable[[int], rnnjax.Cell]] = {
    "min_gru": min_gru,
    "min_lstm": min_lstm,
    "lru": lru,
    # Heads of 32 units, or one head where there are fewer.
    "mlstm": lambda size: rnnjax.mlstm(size, num_heads=max(1, size // 32)),
    "gated_delta": lambda size: rnnjax.gated_delta(size, num_heads=max(1, size // 32)),
}


@dataclass(frozen=True)
class Settings:
    """Time what runs in parallel over time against the loop."""

    cells: tuple[CellName, ...] = tuple(CELLS)
    """Cells that are linear in their carry, by an associative scan; mlstm and gated_delta, in
    chunks."""
    hidden_sizes: tuple[int, ...] = (1, 4, 16, 32)
    """Units of the cells: few leave a device idle in the loop, many fill it."""
    steps: tuple[int, ...] = (256, 1024, 4096, 16384)
    """Steps of the sequences: the longer, the more there is to run in parallel."""
    batches: tuple[int, ...] = (1, 16)
    """Sequences side by side: with more of them a loop fills a device better."""
    input_size: int = 8
    """Numbers a step that are read: few, as the product with them is the same in every run."""
    rounds: int = 7
    """Every run is timed once a round, one after the other; medians and extremes are reported."""
    seconds: float = 0.05
    """Seconds that a timing lasts at least: what is shorter is called several times."""
    seed: int = 0
    """Decides the weights, which are untrained, and the inputs, which are normal."""
    out: Path | None = None
    """Folder of the run; by default runs/parallel-TIME."""


class Case(NamedTuple):
    """What is run: a cell of this size over sequences of this shape."""

    cell: CellName
    hidden_size: int
    steps: int
    batch: int


def ways(cell: rnnjax.Cell) -> tuple[str, str]:
    """The loop, and the other way to run the cell."""
    return "scan", "associative" if cell.chunk is None else "chunked"


def forward_and_gradient(cell: rnnjax.Cell, implementation: str) -> tuple[Any, Any]:
    """Compiled functions of ``(params, xs)``: outputs, and the gradient of their mean square."""

    def run(params: Any, xs: Array) -> Array:
        return rnnjax.unroll(cell, params, xs, implementation=implementation)[1]

    def loss(params: Any, xs: Array) -> Array:
        return jnp.mean(run(params, xs) ** 2)

    return jax.jit(run), jax.jit(jax.grad(loss, argnums=(0, 1)))


def measure(case: Case, settings: Settings) -> list[dict[str, Any]]:
    """One record for each implementation: its times, and how far it is from the loop."""
    weights_key, inputs_key = jax.random.split(jax.random.key(settings.seed))
    cell = CELLS[case.cell](case.hidden_size)
    params = cell.init(weights_key, settings.input_size)
    xs = jax.random.normal(inputs_key, (case.batch, case.steps, settings.input_size))
    pairs = [forward_and_gradient(cell, name) for name in ways(cell)]
    forward, gradient = zip(*pairs, strict=True)
    reference, slopes = forward[0](params, xs), gradient[0](params, xs)

    records: list[dict[str, Any]] = []
    for name, run, differentiate in zip(ways(cell), forward, gradient, strict=True):
        record = {**case._asdict(), "run": name}
        record["error"] = float(jnp.max(jnp.abs(run(params, xs) - reference)))
        record["gradient_error"] = _relative_error(differentiate(params, xs), slopes)
        records.append(record)
    for name, runs in (("forward", forward), ("gradient", gradient)):
        calls = {kind: partial(run, params, xs) for kind, run in zip(ways(cell), runs, strict=True)}
        timings = interleaved(calls, rounds=settings.rounds, seconds=settings.seconds)
        for record in records:
            timing = timings[record["run"]]
            record[f"{name}_ms"] = spread([1e3 * seconds for seconds in timing.seconds])
            record[f"{name}_times_faster"] = ratio(timings["scan"], timing).median
    return records


def _relative_error(tree: Any, reference: Any) -> float:
    """The largest difference of any leaf, as a share of the largest element of that leaf."""
    shares = jax.tree.map(
        lambda a, b: jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)), tree, reference
    )
    return float(max(jax.tree.leaves(shares)))


def row(record: dict[str, Any]) -> dict[str, str]:
    """A record as a row of the table."""
    found = {
        "cell": record["cell"],
        "H": str(record["hidden_size"]),
        "T": str(record["steps"]),
        "B": str(record["batch"]),
        "run": record["run"],
    }
    for name in ("forward", "gradient"):
        found[f"{name}, ms"] = "{:.3g} [{:.3g}, {:.3g}]".format(*record[f"{name}_ms"])
        found[f"{name}, times"] = f"{record[f'{name}_times_faster']:.2g}"
    return found | {"error of both": f"{record['error']:.0e}, {record['gradient_error']:.0e}"}


def compare(settings: Settings, folder: Path) -> None:
    """Measure every case, write its records as they come, and print the table of all."""
    check(settings)
    sizes = (settings.cells, settings.hidden_sizes, settings.steps, settings.batches)
    rows = []
    with RunFolder(folder, run_config(settings)) as run:
        for case in itertools.starmap(Case, itertools.product(*sizes)):
            print(
                *(f"{name} {value}" for name, value in case._asdict().items()), sep=", ", flush=True
            )
            for record in measure(case, settings):
                rows.append(row(record))
                spreads = {k: v._asdict() for k, v in record.items() if isinstance(v, Spread)}
                run.write_timing(record | spreads)
    print_table(rows)
    print(f"{jax.devices()[0].device_kind}, milliseconds: median [least, most]; gradient with the")
    print(f"forward pass; times: as fast as the loop, by their medians; records in {folder}")


def check(settings: Settings) -> None:
    """Refuse what cannot be measured.

    Raises:
        DataError: naming the setting.
    """
    sizes = dict.fromkeys(("hidden_sizes", "steps", "batches"), each(whole(1)))
    check_settings(settings, **sizes, rounds=whole(1), seconds=above(0))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    settings = parse(Settings, "python -m experiments.measurements.parallel_in_time", arguments)
    folder = settings.out or usual_folder("parallel")
    return exit_code(lambda: compare(settings, folder))


if __name__ == "__main__":
    sys.exit(main())
