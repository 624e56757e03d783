"""Deep unrolling and the learning rate: which rates still train a network of how many steps.

Run:     python -m experiments.lessons.learning_rate --seeds 3
Expect:  share of right answers, mean of 3 seeds, guessing 0.125
         (22 November 2026, jax 0.10.2, a CPU):

             T     0.0001  0.0003  0.001  0.003  0.01   0.03   0.1
              5    0.936   1.000   1.000  1.000  1.000  1.000  1.000
             10    0.741   0.998   1.000  1.000  1.000  1.000  0.225
             20    0.397   0.837   0.998  1.000  1.000  0.208  0.126
             40    0.116   0.116   0.165  0.454  0.639  0.231  0.386
             80    0.121   0.124   0.123  0.368  0.165  0.338  0.167

         Each doubling of T takes away rates at both ends, until none is left.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax import Array

import rnnjax
from experiments.lessons import lesson
from experiments.lessons.figures import panels, save
from experiments.lessons.lesson import LessonSettings, Measured, Results
from experiments.lessons.synthetic import Task, kept, make_trainer, stretch_steps
from rnnjax.metrics import accuracy, cross_entropy


@dataclass(frozen=True)
class Settings(LessonSettings):
    """Name the first of many symbols at the end: a vanilla cell at every rate and every length."""

    lengths: tuple[int, ...] = (5, 10, 20, 40, 80)
    """Steps T between which the rates are compared: each twice as deep as the one before."""
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    """Of Adam; all of them are trained at once, side by side."""
    symbols: int = 8
    """Guessing is right once in so many times."""
    hidden_size: int = 32
    """Units."""
    batch_size: int = 32
    """Sequences in a batch."""
    steps: int = 1_000
    """Training steps."""


def recall(symbols: int, length: int, batch_size: int) -> Callable[[Array, Array], Any]:
    """Random symbols [B, T]; the target is the first of each row."""

    def sample(key: Array, step: Array) -> tuple[Array, Array]:
        del step
        tokens = jax.random.randint(key, (batch_size, length), 0, symbols)
        return tokens, tokens[:, 0]

    return sample


def make_task(settings: Settings, length: int) -> Task:
    """A vanilla cell that reads one-hot symbols, and after the last names the first."""
    head = rnnjax.output_head(rnnjax.vanilla(settings.hidden_size), settings.symbols)

    def loss_fn(params: Any, batch: Any, key: Array | None) -> tuple[Array, dict]:
        del key
        tokens, first = batch
        logits = head.apply(params, jax.nn.one_hot(tokens, settings.symbols))[1][:, -1]
        loss = cross_entropy(logits, first)
        return loss.value, {"loss": loss, "right": accuracy(logits, first)}

    sample = recall(settings.symbols, length, settings.batch_size)
    return Task(lambda key: head.init(key, settings.symbols), sample, loss_fn)


def run(settings: Settings, results: Results) -> None:
    """Sweep the rates at every length, and draw the shares of right answers."""
    right = {}
    for length in settings.lengths:
        train = make_sweep(settings, length)
        found = [
            kept(results.folder / f"sweep-{length}-{seed}.npz", lambda: train(seed))["right"]  # noqa: B023
            for seed in range(settings.seeds)
        ]
        right[length] = np.mean(found, axis=0)
        for seed, shares in enumerate(found):
            results.row(f"vanilla, T={length}", "rnnjax", seed, lambda: swept(settings, shares))  # noqa: B023
    draw(settings, right, results.folder / "learning_rate.png")


def make_sweep(settings: Settings, length: int) -> Callable[[int], dict]:
    """The function of a seed that trains with every rate, from the same weights on the same data.

    "right" is the share of right answers over the last tenth of the steps, one number a rate.
    """
    train = make_trainer(
        make_task(settings, length),
        lambda rate: optax.adam(rate),
        every=stretch_steps(settings.steps, 10),
    )

    def one(seed: int) -> dict[str, np.ndarray]:
        rates = settings.learning_rates
        trained = train([seed] * len(rates), rates, settings.steps)
        return {"right": trained.curves["right"][:, -1]}

    return one


def swept(settings: Settings, shares: np.ndarray) -> Measured:
    """The share of right answers at every rate."""
    rates = settings.learning_rates
    named = {f"right, {rate:g}": float(share) for rate, share in zip(rates, shares, strict=True)}
    return Measured(named, steps=settings.steps)


def draw(settings: Settings, right: dict[int, np.ndarray], path: Path) -> None:
    """A map of the shares of right answers: rates across, lengths up, one number a field."""
    figure, grid = panels(1, 1, width=6.4, height=4.0)
    axes, table = grid[0][0], np.stack(list(right.values()))
    image = axes.imshow(table, origin="lower", aspect="auto", cmap="viridis", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(table):
        colour = "black" if share > 0.6 else "white"
        axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(table.shape[1]), [f"{rate:g}" for rate in settings.learning_rates])
    axes.set_yticks(range(table.shape[0]), [str(length) for length in right])
    axes.set(xlabel="learning rate of Adam", ylabel="steps T")
    axes.set_title(f"right answers after {settings.steps:,} steps, mean of the seeds")
    figure.colorbar(image, ax=axes, label=f"share right (guessing {1 / settings.symbols:.3f})")
    save(figure, path)


if __name__ == "__main__":
    sys.exit(lesson.main(__name__))
