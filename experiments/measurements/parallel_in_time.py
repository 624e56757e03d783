"""When it pays to run in parallel over time: the loop against an associative scan and Newton.

Run:     python -m experiments.measurements.parallel_in_time
Expect:  how many times as fast as the loop, forward and with gradient; on 2 cores of an Intel Xeon,
         with --hidden-sizes 4 32 --steps 256 4096 --batches 1 16 --rounds 4 --memory 0.1 (6 min):

             associative, min_gru and min_lstm   0.35 to 1.4      0.61 to 2.3
             associative, lru                    0.34 to 1.4      0.61 to 12
             Newton, gru                         0.022 to 0.097   0.049 to 0.60
             Newton, lstm                        0.0045 to 0.089  0.013 to 0.91

         so on a CPU the loop is mostly the faster one, except for gradients of linear cells over a
         single sequence (1.6 to 2.6 times at 32 units) and of a small lru; Newton converged in 4
         or 5 iterations, in 13 to 40 with the diagonal   (22 November 2026, jax 0.10.2)
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from jax import Array

import rnnjax
from experiments.running.console import exit_code
from experiments.running.run_folder import RunFolder, environment
from rnnjax.cells.lru import lru
from rnnjax.cells.min_gru import min_gru
from rnnjax.cells.min_lstm import min_lstm
from rnnjax.engine import NewtonReport, unroll_newton

CellName = Literal["min_gru", "min_lstm", "lru", "gru", "lstm"]
CELLS: dict[CellName, Callable[[int], rnnjax.Cell]] = {
    "min_gru": min_gru,
    "min_lstm": min_lstm,
    "lru": lru,
    "gru": rnnjax.gru,
    "lstm": rnnjax.lstm,
}


@dataclass(frozen=True)
class Settings:
    """Time runs in parallel over time against the loop, for linear cells and for any cell."""

    cells: tuple[CellName, ...] = tuple(CELLS)
    """The first three are linear in their state; the others need Newton's method."""
    hidden_sizes: tuple[int, ...] = (1, 4, 16, 32)
    """Newton's matrices have this size, twice it for the LSTM."""
    steps: tuple[int, ...] = (256, 1024, 4096, 16384)
    """Lengths of the sequences."""
    batches: tuple[int, ...] = (1, 16)
    """A loop fills a device better with more sequences."""
    input_size: int = 8
    """Small, since the product with the inputs is the same in every run."""
    rounds: int = 7
    """Every run is timed once a round, one after the other; medians and extremes are reported."""
    seconds: float = 0.05
    """A timing lasts at least this long: what is shorter is called several times."""
    memory: float = 0.5
    """GiB that the Jacobians of all steps may take; larger runs are left out, and said so."""
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


class Contender(NamedTuple):
    """One way to run a case: ``(params, xs) -> (ys, report)``, the report None but for Newton."""

    name: str
    run: Callable[[Any, Array], tuple[Array, NewtonReport | None]]


class Spread(NamedTuple):
    """Milliseconds of one call over the rounds."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.least:.3g}, {self.most:.3g}]"


def contenders(case: Case, settings: Settings) -> Iterator[Contender]:
    """The loop over time first, then what runs in parallel."""
    cell = CELLS[case.cell](case.hidden_size)

    def by_implementation(name: str) -> Contender:
        def run(params: Any, xs: Array) -> tuple[Array, None]:
            return rnnjax.unroll(cell, params, xs, implementation=name)[1], None

        return Contender(name, run)

    def by_newton(jacobian: Literal["full", "diagonal"]) -> Contender:
        def run(params: Any, xs: Array) -> tuple[Array, NewtonReport]:
            return unroll_newton(cell, params, xs, jacobian=jacobian)[1:]

        return Contender(f"newton, {jacobian}", run)

    yield by_implementation("scan")
    if cell.linear is not None:
        yield by_implementation("associative")
    elif jacobian_gib(case) <= settings.memory:
        yield from (by_newton("full"), by_newton("diagonal"))


def jacobian_gib(case: Case) -> float:
    """What the full Jacobians of all steps take in float32."""
    size = case.hidden_size * (2 if case.cell == "lstm" else 1)
    return case.steps * case.batch * size**2 * 4 / 2**30


def measure(case: Case, settings: Settings) -> list[dict[str, Any]]:
    """One record for each contender: its times, and how far it is from the loop."""
    weights_key, inputs_key = jax.random.split(jax.random.key(settings.seed))
    cell = CELLS[case.cell](case.hidden_size)
    params = cell.init(weights_key, settings.input_size)
    xs = jax.random.normal(inputs_key, (case.batch, case.steps, settings.input_size))
    field = list(contenders(case, settings))
    forward = [jax.jit(c.run) for c in field]
    gradient = [jax.jit(jax.grad(_loss(c), argnums=(0, 1))) for c in field]
    (reference, _), slopes = forward[0](params, xs), gradient[0](params, xs)

    records: list[dict[str, Any]] = []
    for contender, run, differentiate in zip(field, forward, gradient, strict=True):
        ys, report = run(params, xs)
        record = {**case._asdict(), "run": contender.name}
        record["error"] = float(jnp.max(jnp.abs(ys - reference)))
        record["gradient_error"] = _relative_error(differentiate(params, xs), slopes)
        if report is not None:
            record["iterations"] = int(report.iterations)
            record["residual"] = float(jnp.max(report.residual))
            record["converged"] = bool(jnp.all(report.converged))
        records.append(record)
    for name, runs in (("forward", forward), ("gradient", gradient)):
        spreads = interleaved([lambda f=f: f(params, xs) for f in runs], settings)
        for record, spread in zip(records, spreads, strict=True):
            record[f"{name}_ms"] = spread
            record[f"{name}_times_faster"] = spreads[0].median / spread.median
    return records


def _loss(contender: Contender) -> Callable[[Any, Array], Array]:
    return lambda params, xs: jnp.mean(contender.run(params, xs)[0] ** 2)


def _relative_error(tree: Any, reference: Any) -> float:
    """The largest difference of any leaf, as a share of the largest element of that leaf."""
    shares = jax.tree.map(
        lambda a, b: jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)), tree, reference
    )
    return float(max(jax.tree.leaves(shares)))


def interleaved(runs: Sequence[Callable[[], Any]], settings: Settings) -> list[Spread]:
    """The times of compiled runs, which take turns so that a busy machine slows them all."""
    calls = [max(1, math.ceil(settings.seconds / _seconds(run, 1))) for run in runs]
    rounds = [
        [1e3 * _seconds(run, count) for run, count in zip(runs, calls, strict=True)]
        for _ in range(settings.rounds)
    ]
    columns = zip(*rounds, strict=True)
    return [Spread(statistics.median(times), min(times), max(times)) for times in columns]


def _seconds(run: Callable[[], Any], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(run())
    return (time.perf_counter() - began) / calls


COLUMNS = "{:<9} {:>4} {:>6} {:>3}  {:<17} {:<24} {:>7}  {:<24} {:>7}  {}"


def show(record: dict[str, Any]) -> str:
    """A record as a line of the table."""
    accuracy = f"{record['error']:.0e}, {record['gradient_error']:.0e}"
    if "iterations" in record:
        steps = f"{record['iterations']} iterations"
        accuracy += f"; {steps}" if record["converged"] else f"; NOT CONVERGED in {steps}"
    return COLUMNS.format(
        *(record[name] for name in (*Case._fields, "run")),
        *(
            text
            for name in ("forward", "gradient")
            for text in (str(record[f"{name}_ms"]), f"{record[f'{name}_times_faster']:.2g}x")
        ),
        accuracy,
    )


def compare(settings: Settings, folder: Path) -> None:
    """Measure every case, and print and write its records as they come."""
    check(settings)
    config = {"settings": dataclasses.asdict(settings), "environment": environment()}
    sizes = (settings.cells, settings.hidden_sizes, settings.steps, settings.batches)
    with RunFolder(folder, config) as run:
        print(f"{jax.devices()[0].device_kind}, milliseconds: median [least, most]")
        head = ("cell", "H", "T", "B", "run", "forward", "", "with gradient", "", "error of both")
        print(COLUMNS.format(*head))
        for case in itertools.starmap(Case, itertools.product(*sizes)):
            for record in measure(case, settings):
                print(show(record), flush=True)
                spreads = {k: v._asdict() for k, v in record.items() if isinstance(v, Spread)}
                run.write_timing(record | spreads)
            if case.cell in ("gru", "lstm") and jacobian_gib(case) > settings.memory:
                print(f"{'':<26}Newton left out: Jacobians of {jacobian_gib(case):.1f} GiB")
    print(f"records in {folder}")


def check(settings: Settings) -> None:
    """Refuse what cannot be measured.

    Raises:
        ValueError: naming the setting.
    """
    for name in ("hidden_sizes", "steps", "batches"):
        values = getattr(settings, name)
        if not values or min(values) < 1:
            raise ValueError(f"{name}: expected positive numbers, got {values}")
    if settings.rounds < 1 or not settings.seconds > 0:
        raise ValueError("rounds and seconds: expected positive numbers")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    settings = tyro.cli(
        Settings, prog="python -m experiments.measurements.parallel_in_time", args=arguments
    )
    folder = settings.out or Path("runs", f"parallel-{time.strftime('%Y%m%d-%H%M%S')}")
    return exit_code(lambda: compare(settings, folder))


if __name__ == "__main__":
    sys.exit(main())
