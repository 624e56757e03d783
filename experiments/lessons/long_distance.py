"""What must be remembered over a long way: gated cells against the vanilla one.

Run:     python -m experiments.lessons.long_distance --seeds 3
Expect:  mean of 3 seeds  (22 November 2026, jax 0.10.2, a CPU):

                                loss     right   remembering nothing
             adding, T=100
                 vanilla     0.181      0.065    0.167
                 LSTM        0.00037    0.959
                 GRU         0.00031    0.972
             adding, T=200
                 vanilla     0.174      0.072    0.167
                 LSTM        0.0045     0.592
                 GRU         0.00032    0.975
             copy, T=10
                 vanilla     0.063      0.941    0.693
                 LSTM        0.119      0.858
                 GRU         0.163      0.806

         At copying the vanilla cell, its recurrent weights orthogonal at the start, is no worse.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import rnnjax
from experiments.lessons import lesson
from experiments.lessons.figures import COLOURS, LINES, REFERENCE, panels, save, tidy
from experiments.lessons.lesson import LessonSettings, Measured, Results
from experiments.lessons.synthetic import Task, evaluate, kept, make_trainer, stretch_steps
from rnnjax.metrics import Mean, accuracy, cross_entropy

CELLS = {"vanilla": rnnjax.vanilla, "LSTM": rnnjax.lstm, "GRU": rnnjax.gru}
SYMBOLS, REMEMBERED = 8, 10
CLASSES = SYMBOLS + 2  # and the blank, 0, and the mark that says "now", 9


@dataclass(frozen=True)
class Settings(LessonSettings):
    """Adding two marked numbers, and copying ten symbols after a pause."""

    adding_lengths: tuple[int, ...] = (100, 200)
    """Steps of the adding task: 100 is where LSTM was first shown on it, in 1997."""
    copy_pauses: tuple[int, ...] = (10,)
    """Blanks between the symbols and the mark: over the 1,000 of the published comparison neither
    LSTM nor GRU nor the vanilla cell learned anything in its budget."""
    hidden_size: int = 32
    """For adding: two numbers are to be kept, and the size is most of the time it takes."""
    copy_hidden_size: int = 128
    """For copying: ten symbols of three bits are to be kept; 64 units, at a rate of 0.005, were
    far slower."""
    batch_size: int = 32
    """That of the published comparison."""
    learning_rate: float = 1e-2
    """Of Adam, for adding: LSTM and GRU need a few hundred steps with it."""
    copy_learning_rate: float = 2e-3
    """Of Adam, for copying: lower, as the vanilla cell and LSTM learned nothing at 0.01."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm: over hundreds of steps now and then one explodes."""
    adding_steps: int = 1_500
    """48,000 sequences; in 1997 it took 74,000."""
    copy_steps: int = 4_000
    """Training steps of the copy task."""
    initializer: Literal["rnnjax", "pytorch", "keras", "flax"] = "rnnjax"
    """The library whose rule the first weights of the cells follow."""


def adding(length: int, batch_size: int) -> Callable[[Array, Array], Any]:
    """The adding task: of each step a number in [0, 1) and a mark; two are marked.

    The target is the sum of the two marked numbers. Whoever always says 1 has a mean squared
    error of 1/6, the variance of that sum.

    References:
        Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9 (1997).
    """

    def sample(key: Array, step: Array) -> tuple[Array, Array]:
        del step
        draw, place = jax.random.split(key)
        numbers = jax.random.uniform(draw, (batch_size, length))
        _, marked = jax.lax.top_k(jax.random.uniform(place, (batch_size, length)), 2)
        marks = jax.nn.one_hot(marked, length).sum(axis=1)
        return jnp.stack([numbers, marks], axis=-1), (numbers * marks).sum(axis=-1)

    return sample


def copying(pause: int, batch_size: int) -> Callable[[Array, Array], Any]:
    """The copy task: ten symbols of 1 to 8, a pause of blanks, and the mark 9 to the end.

    The targets are blanks, and in the last ten steps the symbols. Whoever remembers nothing
    has a cross entropy of 10 log(8) / (pause + 20): certain of the blanks, guessing the symbols.

    References:
        Arjovsky, Shah and Bengio, "Unitary evolution recurrent neural networks", ICML 2016.
    """

    def sample(key: Array, step: Array) -> tuple[Array, Array]:
        del step
        symbols = jax.random.randint(key, (batch_size, REMEMBERED), 1, SYMBOLS + 1)
        blanks = jnp.zeros((batch_size, pause + REMEMBERED), symbols.dtype)
        marks = jnp.full((batch_size, REMEMBERED + 1), SYMBOLS + 1, symbols.dtype)
        tokens = jnp.concatenate([symbols, blanks[:, : pause - 1], marks], axis=1)
        return tokens, jnp.concatenate([blanks, symbols], axis=1)

    return sample


def adding_task(cell: rnnjax.Cell, length: int, batch_size: int) -> Task:
    """The sum is read from the last output; "right" is one that is off by less than 0.04."""
    head = rnnjax.output_head(cell, 1)

    def loss_fn(params: Any, batch: Any, key: Array | None) -> tuple[Array, dict]:
        del key
        xs, sums = batch
        error = head.apply(params, xs)[1][:, -1, 0] - sums
        loss = Mean.of(error**2)
        return loss.value, {"loss": loss, "right": Mean.of(jnp.abs(error) < 0.04)}

    return Task(lambda key: head.init(key, 2), adding(length, batch_size), loss_fn)


def copy_task(cell: rnnjax.Cell, pause: int, batch_size: int) -> Task:
    """Symbols come one-hot; "right" is the share of the remembered symbols that is said."""
    head = rnnjax.output_head(cell, CLASSES)

    def loss_fn(params: Any, batch: Any, key: Array | None) -> tuple[Array, dict]:
        del key
        tokens, targets = batch
        logits = head.apply(params, jax.nn.one_hot(tokens, CLASSES))[1]
        loss = cross_entropy(logits, targets)
        right = accuracy(logits[:, -REMEMBERED:], targets[:, -REMEMBERED:])
        return loss.value, {"loss": loss, "right": right}

    return Task(lambda key: head.init(key, CLASSES), copying(pause, batch_size), loss_fn)


@dataclass(frozen=True)
class Problem:
    """One task of one length."""

    name: str
    baseline: float
    """The loss of whoever remembers nothing."""
    make_task: Callable[[rnnjax.Cell], Task]
    hidden_size: int
    learning_rate: float
    steps: int


def problems(settings: Settings) -> list[Problem]:
    """All that the settings ask for."""
    size = settings.batch_size
    found = [
        Problem(
            f"adding, T={length}",
            1 / 6,
            lambda cell, length=length: adding_task(cell, length, size),
            settings.hidden_size,
            settings.learning_rate,
            settings.adding_steps,
        )
        for length in settings.adding_lengths
    ]
    return found + [
        Problem(
            f"copy, T={pause}",
            REMEMBERED * math.log(SYMBOLS) / (pause + 2 * REMEMBERED),
            lambda cell, pause=pause: copy_task(cell, pause, size),
            settings.copy_hidden_size,
            settings.copy_learning_rate,
            settings.copy_steps,
        )
        for pause in settings.copy_pauses
    ]


def run(settings: Settings, results: Results) -> None:
    """Train every cell on every task, and draw how the losses fall."""
    curves: dict[str, dict[str, list]] = {}
    for problem, (name, make_cell) in itertools.product(problems(settings), CELLS.items()):
        found = curves.setdefault(problem.name, {}).setdefault(name, [])
        cell = make_cell(problem.hidden_size, initializer=settings.initializer)
        train = trainer(settings, problem, cell)
        for seed in range(settings.seeds):
            path = results.folder / f"{problem.name}-{name}-{seed}.npz".replace(", ", "-")
            end = kept(path, lambda: train(seed))  # noqa: B023
            found.append(end)
            figures = {
                "loss": float(end["test_loss"]),
                "remembering nothing": problem.baseline,
                "right": float(end["test_right"]),
            }
            measured = Measured(figures, steps=problem.steps)
            results.row(f"{name}, {problem.name}", "rnnjax", seed, lambda: measured)  # noqa: B023
    draw(problems(settings), curves, results.folder / "long_distance.png")


def trainer(settings: Settings, problem: Problem, cell: rnnjax.Cell) -> Callable[[int], dict]:
    """The function of a seed that trains, and tests on fresh sequences."""
    task = problem.make_task(cell)

    def optimizer(rate: Any) -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(settings.clip_norm), optax.adam(rate))

    train = make_trainer(task, optimizer, every=stretch_steps(problem.steps, 50))

    def one(seed: int) -> dict[str, Any]:
        trained = train([seed], [problem.learning_rate], problem.steps)
        test = evaluate(task, trained.member(0), seed=1_000_000 + seed, batches=32)
        loss = trained.curves["loss"][0]
        ends = {f"test_{figure}": value for figure, value in test.items()}
        return {"steps": trained.steps, "loss": loss, **ends}

    return one


def draw(problems: list[Problem], curves: dict[str, dict[str, list]], path: Path) -> None:
    """The training loss over the steps, one panel a task, one line a seed."""
    figure, grid = panels(1, len(problems))
    for axes, problem in zip(grid[0], problems, strict=True):
        for name, found in curves[problem.name].items():
            for number, curve in enumerate(found):
                label = name if number == 0 else None
                style = {"color": COLOURS[name], "linestyle": LINES[name], "linewidth": 1.3}
                axes.plot(curve["steps"], np.maximum(curve["loss"], 1e-6), label=label, **style)
        label = f"remembering nothing, {problem.baseline:.3f}"
        axes.axhline(problem.baseline, color=REFERENCE, linestyle=":", linewidth=1.2, label=label)
        axes.set_yscale("log")
        loss = "mean squared error" if problem.name.startswith("adding") else "cross entropy, nats"
        tidy(axes, problem.name, "training step", loss)
    save(figure, path)


if __name__ == "__main__":
    sys.exit(lesson.main(__name__))
