"""The command line: train through pure functions and through Flax, and compare."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import rnnjax
from experiments.apis.settings import Metrics, Settings, Sizes, Trainer
from experiments.running import curves
from experiments.running.cells import CELLS
from experiments.running.classifier_fitting import classification_loss
from experiments.running.console import Progress, exit_code
from experiments.running.parsing import parse
from experiments.running.room import require_room
from experiments.running.run_folder import RunFolder, run_config, usual_folder
from experiments.running.setting_checks import check_settings
from experiments.running.text import Splits, read_batches
from rnnjax.data import Batch
from rnnjax.metrics import compute, evaluate


def make_model(settings: Settings, sizes: Sizes) -> rnnjax.Model:
    """The classifier as pure functions."""
    cell = CELLS[settings.cell](settings.hidden_size)
    table = rnnjax.embedding(sizes.vocabulary, settings.embedding_size)
    return rnnjax.classifier(table, cell, sizes.classes, pooling="mean")


class Functional:
    """Parameters and optimizer state pass through one pure step."""

    def __init__(self, settings: Settings, sizes: Sizes, params: Any) -> None:
        loss_fn = classification_loss(make_model(settings, sizes), word_dropout=0.0)
        optimizer = optax.adam(settings.learning_rate)
        self._state = rnnjax.init_train_state(jax.random.key(settings.seed), params, optimizer)
        self._step = rnnjax.make_train_step(loss_fn, optimizer)
        self._measure = rnnjax.make_eval_step(loss_fn)

    def step(self, batch: Batch) -> Metrics:
        self._state, metrics = self._step(self._state, batch)
        return metrics

    def measure(self, batch: Batch) -> Metrics:
        return dict(self._measure(self._state.params, batch))


def make_trainers(api: str) -> dict[str, Callable[[Settings, Sizes, Any], Trainer]]:
    """What trains through an interface, or through all of them, by their names."""
    if api == "functional":
        return {api: Functional}
    # Where Flax is missing, the first of them says which extra has it.
    import rnnjax.modules  # noqa: F401
    from experiments.apis.in_flax import Linen, Nnx

    trainers = {"functional": Functional, "nnx": Nnx, "linen": Linen}
    return trainers if api == "all" else {api: trainers[api]}


class Outcome(NamedTuple):
    """What training through one interface came to."""

    losses: np.ndarray  # [steps]
    test_accuracy: float
    seconds: float  # compiling included


def train(settings: Settings, trainer: Trainer, splits: Splits, run: RunFolder) -> Outcome:
    """Train, with a record of every step and epoch, and look at the test set once."""
    began, losses = time.perf_counter(), []
    with Progress(total_steps=settings.epochs * len(splits.train)) as progress:
        for epoch in range(1, settings.epochs + 1):
            start, steps = time.perf_counter(), []
            for batch in splits.train.epoch(epoch):
                steps.append(trainer.step(batch))
                shown = functools.partial(_figures, steps[-1])
                progress.advance(shown, tokens=int(batch.lengths.sum()))
            for figures in map(_figures, steps):
                losses.append(figures["loss"])
                run.write({"kind": "step", "step": len(losses), "epoch": epoch, **figures})
            validation = _measure(trainer, splits.validation.epoch(epoch))
            record = {
                "kind": "epoch",
                "epoch": epoch,
                "step": len(losses),
                "train_loss": float(np.mean(losses[-len(steps) :])),
                **{f"validation_{name}": value for name, value in validation.items()},
                "seconds": time.perf_counter() - start,
            }
            progress.epoch(record)
            run.write(record)
        test = _measure(trainer, splits.test.epoch(0))
    run.write({"kind": "test", **test})
    return Outcome(np.array(losses), test["accuracy"], time.perf_counter() - began)


def _measure(trainer: Trainer, batches: Any) -> dict[str, float]:
    return evaluate(lambda _, batch: trainer.measure(batch), None, batches)


def _figures(metrics: Metrics) -> dict[str, float]:
    return compute({name: metrics[name] for name in ("loss", "accuracy")})


def largest_difference(outcomes: dict[str, Outcome]) -> float:
    """The most by which the losses of two interfaces differ at one step."""
    losses = np.stack([outcome.losses for outcome in outcomes.values()])
    return float(np.max(losses.max(axis=0) - losses.min(axis=0)))


def compare(settings: Settings, folder: Path) -> dict[str, Outcome]:
    """Train through every interface asked for, and print how they compare."""
    check_settings(settings)
    trainers = make_trainers(settings.api)  # without Flax nothing is trained for nothing
    most, longest = settings.vocabulary_size, settings.max_length
    splits, *found = read_batches(settings, vocabulary_size=most, max_length=longest)
    sizes = Sizes(*found)
    model = make_model(settings, sizes)
    require_room(model.init)
    params = model.init(jax.random.key(settings.seed))
    outcomes = {}
    for api, make in trainers.items():
        config = {**run_config(settings), "api": api}
        print(f"{api}:")
        with RunFolder(folder / api, config) as run:
            trainer = make(settings, sizes, params)
            outcomes[api] = train(settings, trainer, splits, run)
        curves.draw(run.metrics_path, folder / api / "curves.png")
    print(f"{'api':<12}{'first loss':>12}{'last loss':>12}{'test accuracy':>15}{'seconds':>10}")
    for api, (losses, accuracy, seconds) in outcomes.items():
        print(f"{api:<12}{losses[0]:>12.6f}{losses[-1]:>12.6f}{accuracy:>15.4f}{seconds:>10.1f}")
    if len(outcomes) > 1:
        steps = len(outcomes["functional"].losses)
        print(
            f"largest difference between losses at one of {steps} steps: "
            f"{largest_difference(outcomes):.2e}"
        )
    print(f"files in {folder}")
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    settings = parse(Settings, "python -m experiments.apis", arguments)
    folder = settings.out or usual_folder(f"apis-{Path(settings.dataset).name}")

    def run() -> None:
        compare(settings, folder)

    return exit_code(run)
