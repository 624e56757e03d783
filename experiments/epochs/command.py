"""The command line: epochs taken in turns, and their table."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.epochs.ours import Ours, make_batches
from experiments.epochs.task import Contestant, Settings, Task, make_task
from experiments.running.console import exit_code, how_many, print_table
from experiments.running.packages import is_installed, takes_part
from experiments.running.parsing import parse
from experiments.running.run_folder import RunFolder, run_config, usual_folder
from rnnjax.benchmark import spread
from rnnjax.data import DataError
from rnnjax.data.batching import Batch, BucketedBatches

# How far logits of about 1 may differ, in float32 after hundreds of steps; on a GPU products are
# rounded to ten bits.
TOLERANCE = {"cpu": 1e-3, "gpu": 2e-2}


class Epoch(NamedTuple):
    """One epoch of a contestant.

    Attributes:
        seconds: from the first batch to the last result, but for compiling.
        batch_seconds: to make the same batches and do nothing with them.
        accuracy: share of right answers while it trained.
    """

    seconds: float
    batch_seconds: float
    accuracy: float


def contestants(task: Task, bucketed: BucketedBatches) -> Iterator[Contestant]:
    """rnnjax in two ways, and the other libraries; what is missing is named."""
    yield Ours(task, "rnnjax, bucketed", bucketed)
    yield Ours(task, "rnnjax, padded", make_batches(task, 1))
    if takes_part("PyTorch", "torch"):
        from experiments.epochs.pytorch import Torch

        yield Torch(task)
    if takes_part("Keras", "keras"):
        from experiments.epochs.keras_on_jax import Keras

        yield Keras(task, bucketed)


def require_same(batch: Batch, entered: Sequence[Contestant]) -> None:
    """All must say the same of the same texts before they are timed.

    Raises:
        DataError: naming the one that does not.
    """
    tokens, lengths, labels, weights = batch
    real = weights > 0  # PyTorch packs no empty row
    batch = Batch(tokens[real], lengths[real], labels[real], weights[real])
    expected = entered[0].logits(batch)
    for one in entered:
        off = float(np.abs(one.logits(batch) - expected).max())
        if not off <= TOLERANCE[jax.default_backend()]:
            raise DataError(
                f"{one.name} must give the logits of {entered[0].name}, got them off by {off:.2g}"
            )


def timed(one: Contestant, n: int) -> Epoch:
    """An epoch, and its batches once more by themselves."""
    compiled, began = one.compile_seconds, time.perf_counter()
    accuracy = one.epoch(n)
    seconds = time.perf_counter() - began - (one.compile_seconds - compiled)
    began = time.perf_counter()
    for _ in one.batches(n):
        pass
    return Epoch(seconds, time.perf_counter() - began, accuracy)


def measure(task: Task, run: RunFolder) -> list[dict[str, str]]:
    """A row for each contestant."""
    bucketed = make_batches(task, task.settings.buckets)
    entered = list(contestants(task, bucketed))
    require_same(next(bucketed.epoch(0)), entered)
    epochs: dict[str, list[Epoch]] = {one.name: [] for one in entered}
    for n in range(task.settings.epochs):
        for one in entered if n % 2 == 0 else reversed(entered):
            epoch = timed(one, n)
            epochs[one.name].append(epoch)
            run.write_timing({"kind": "epoch", "of": one.name, "n": n, **epoch._asdict()})
            print(f"epoch {n}, {one.name}: {epoch.seconds:.1f} s", flush=True)
    first = epochs[entered[0].name]
    return [_row(task, one, epochs[one.name], first) for one in entered]


def _row(
    task: Task, one: Contestant, epochs: Sequence[Epoch], ours: Sequence[Epoch]
) -> dict[str, str]:
    seconds = spread([epoch.seconds for epoch in epochs])
    pairs = zip(epochs, ours, strict=True)
    times = spread([epoch.seconds / own.seconds for epoch, own in pairs])
    batches = spread([epoch.batch_seconds / epoch.seconds for epoch in epochs])
    return {
        "library": one.name,
        "epoch s": f"{seconds.median:.1f} ({seconds.least:.1f}-{seconds.most:.1f})",
        "times rnnjax": f"{times.median:.2f} ({times.least:.2f}-{times.most:.2f})",
        "tokens/s": f"{task.tokens / seconds.median:,.0f}",
        "batches alone": f"{batches.median:.1%}",
        "compile s": f"{one.compile_seconds:.1f}",
        "train accuracy": f"{epochs[-1].accuracy:.3f}",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    settings = parse(Settings, "python -m experiments.epochs", arguments)
    folder = settings.out or usual_folder(f"epochs-{Path(settings.dataset).name}")
    return exit_code(lambda: compare(settings, folder))


def compare(settings: Settings, folder: Path) -> None:
    """Measures, and prints the table."""
    if is_installed("keras"):
        from experiments.epochs.keras_on_jax import require_jax

        require_jax()
    task = make_task(settings)
    config = {**run_config(settings), "texts": len(task.labels), "tokens": task.tokens}
    with RunFolder(folder, config) as run:
        table = measure(task, run)
    print_table(table)
    print(
        f"{len(task.labels):,} texts, {task.tokens:,} tokens; median (least-most) of "
        f"{how_many(settings.epochs, 'epoch')}\ntaken in turns, compiling apart; files in {folder}"
    )
