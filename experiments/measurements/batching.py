"""What packing several texts in a row saves: the time of an epoch, bucketed, packed and padded.

Run:     python -m experiments.measurements.batching
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

import rnnjax
from experiments import classify
from experiments.running.advancing import take_steps
from experiments.running.classifier_fitting import classification_loss
from experiments.running.console import exit_code, print_table
from experiments.running.data_folder import check_folder
from experiments.running.parsing import parse
from experiments.running.run_folder import RunFolder, run_config, usual_folder
from experiments.running.setting_checks import check_settings
from experiments.running.text import Batching, Splits, hold_out, take
from rnnjax.data import load

Table = list[dict[str, Any]]


@dataclass(frozen=True)
class Settings:
    """Time the epochs of one classifier on the same texts in three kinds of batches."""

    dataset: str = "rotten_tomatoes"
    """What to train on, as for experiments.classify: rotten_tomatoes needs no network."""
    data_dir: Path | None = None
    """The folder of local data sets; without it the environment variable RNNJAX_DATA says it."""
    take: int | None = None
    """Train on this many examples only, to try something out quickly."""
    max_length: int = 400
    """Cut texts to this many words, so that one very long text does not decide the time."""
    hidden_size: int = 64
    """Units of the GRU in each direction; time grows with their square."""
    batch_size: int = 32
    """Texts in a batch, the same in all three kinds, so that all take as many steps."""
    buckets: int = 4
    """Lengths that bucketed batches are padded to: more pad less, but each is compiled once."""
    epochs: int = 5
    """How many epochs are timed, after one that is not; in each the three kinds take turns."""
    seed: int = 0
    """Decides the order of the examples and the initial weights."""
    out: Path | None = None
    """Folder of the run; by default runs/batching-DATASET-TIME."""


class Contestant:
    """The training of one classifier on one kind of batches."""

    def __init__(self, settings: classify.Settings, splits: Splits, sizes: tuple[int, int]) -> None:
        self.batching, self.batches = settings.batching, splits.train
        model = classify.build_model(settings, *sizes)
        recipe = classify.make_recipe(settings)
        init_key, step_key = jax.random.split(jax.random.key(settings.seed))
        self._prefetch = recipe.prefetch
        self._step = rnnjax.make_train_step(
            classification_loss(model, recipe.word_dropout), recipe.optimizer
        )
        self._state = rnnjax.init_train_state(step_key, model.init(init_key), recipe.optimizer)

    def epoch(self, n: int) -> float:
        """The seconds of an epoch from its first batch to the last result, but for compiling."""
        before, began = self.compile_seconds, time.perf_counter()
        batches = map(jax.device_put, self.batches.epoch(n))
        self._state, _ = take_steps(self._step, self._state, batches, self._prefetch)
        jax.block_until_ready(self._state.params)
        return time.perf_counter() - began - (self.compile_seconds - before)

    @property
    def compile_seconds(self) -> float:
        """All that was spent on compiling so far."""
        return sum(made.seconds for made in self._step.compilations)

    @property
    def programs(self) -> int:
        """How many shapes were compiled so far."""
        return len(self._step.compilations)


def contestants(settings: Settings) -> list[Contestant]:
    """One for each kind of batches, on the same examples in the same split."""
    check_folder(settings)
    dataset = load(settings.dataset, data_dir=settings.data_dir, seed=settings.seed)
    of_both = {field.name for field in dataclasses.fields(Settings)} - {"epochs", "out"}
    shared = {name: getattr(settings, name) for name in of_both}
    entered = []
    for batching in get_args(Batching):
        chosen = classify.Settings(**shared, batching=batching)
        training, validation = hold_out(dataset, chosen.validation, chosen.seed)
        parts = (take(training, chosen.take), validation, dataset.test)
        classes = len(dataset.label_names)
        encode, splits = classify.prepare(chosen, parts, classes)
        entered.append(Contestant(chosen, splits, (len(encode.vocabulary), classes)))
    return entered


def measure(entered: Sequence[Contestant], epochs: int, run: RunFolder) -> Table:
    """A row for each kind of batches."""
    seconds: dict[str, list[float]] = {one.batching: [] for one in entered}
    for n in range(epochs + 1):
        for one in entered:
            took = one.epoch(n)
            run.write_timing({"kind": "epoch", "batching": one.batching, "n": n, "seconds": took})
            if n:  # the first epoch finds the memory and the caches cold
                seconds[one.batching].append(took)
    return [
        {
            "batching": one.batching,
            "padding": f"{one.batches.padding_fraction:.1%}",
            "steps": f"{len(one.batches)}",
            "shapes": f"{one.programs}",
            "compile s": f"{one.compile_seconds:.1f}",
            "epoch s": f"{np.median(seconds[one.batching]):.3f}",
            "least": f"{min(seconds[one.batching]):.3f}",
            "most": f"{max(seconds[one.batching]):.3f}",
        }
        for one in entered
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    settings = parse(Settings, "python -m experiments.measurements.batching", arguments)
    folder = settings.out or usual_folder(f"batching-{Path(settings.dataset).name}")
    return exit_code(lambda: compare(settings, folder))


def compare(settings: Settings, folder: Path) -> None:
    """Measures, and prints the table.

    Raises:
        DataError: there is no epoch to take.
    """
    check_settings(settings)
    entered = contestants(settings)  # what is wrong with the data leaves no folder
    with RunFolder(folder, run_config(settings)) as run:
        table = measure(entered, settings.epochs, run)
    print_table(table)
    print(f"median of {settings.epochs} epochs taken in turns, compiling apart; files in {folder}")


if __name__ == "__main__":
    sys.exit(main())
