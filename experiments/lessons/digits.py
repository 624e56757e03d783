"""Written digits read row by row: a series that is no text.

Run:     python -m experiments.lessons.digits --seeds 3
Expect:  test accuracy, mean of 3 seeds  (22 November 2026, jax 0.10.2, a CPU):

             logistic regression   0.971
             vanilla               0.973
             LSTM                  0.967
             GRU                   0.970

         Eight rows are too short and too few images to set the cells apart.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import rnnjax
from experiments.lessons import lesson
from experiments.lessons.figures import COLOURS, LINES, REFERENCE, panels, save, tidy
from experiments.lessons.lesson import ExamplesSettings, Measured, Results
from experiments.lessons.synthetic import Task, kept, make_trainer, random_rows, stretch_steps
from experiments.running.packages import require
from rnnjax.metrics import accuracy, compute, cross_entropy

ROWS = COLUMNS = 8
CLASSES = 10
CELLS = {"vanilla": rnnjax.vanilla, "LSTM": rnnjax.lstm, "GRU": rnnjax.gru}


@dataclass(frozen=True)
class Settings(ExamplesSettings):
    """The 1,797 images of scikit-learn as sequences of 8 rows with 8 grey values each."""

    test_share: float = 0.2
    """Of the images; a different fifth for each seed, with as many of each digit."""
    hidden_size: int = 64
    """Units: as many numbers as the image has."""
    batch_size: int = 32
    """Images in a batch."""
    learning_rate: float = 3e-3
    """Of Adam, falling to 0 along a cosine."""
    steps: int = 1_500
    """Training steps, some 33 epochs."""


class Images(NamedTuple):
    """Rows of grey values in [0, 1], [N, 8, 8], and the digits [N]."""

    rows: np.ndarray
    digits: np.ndarray


def load_images(settings: Settings, seed: int) -> tuple[Images, Images]:
    """The images for training and those of the test.

    Raises:
        NotInstalled: scikit-learn, which brings them, is missing.
    """
    require("scikit-learn", "sklearn")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, digits = map(np.asarray, load_digits(return_X_y=True))
    rows = pixels.reshape(-1, ROWS, COLUMNS).astype(np.float32) / 16
    places = np.arange(len(rows))
    chosen, held_out = train_test_split(
        places, test_size=settings.test_share, random_state=seed, stratify=digits
    )
    parts = (np.asarray(places)[: settings.take] for places in (chosen, held_out))
    training, test = (Images(rows[part], digits[part].astype(np.int32)) for part in parts)
    return training, test


def measure_linear(settings: Settings, seed: int) -> Measured:
    """Logistic regression on the 64 grey values of an image at once."""
    training, test = load_images(settings, seed)
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=1_000)
    model.fit(training.rows.reshape(-1, ROWS * COLUMNS), training.digits)
    right = model.score(test.rows.reshape(-1, ROWS * COLUMNS), test.digits)
    return Measured({"test accuracy": float(right)})


def make_task(cell: rnnjax.Cell, training: Images, batch_size: int) -> Task:
    """The digit is read from the last output."""
    head = rnnjax.output_head(cell, CLASSES)

    def loss_fn(params: Any, batch: Images, key: Array | None) -> tuple[Array, dict]:
        del key
        logits = head.apply(params, jnp.asarray(batch.rows))[1][:, -1]
        digits = jnp.asarray(batch.digits)
        loss = cross_entropy(logits, digits)
        return loss.value, {"loss": loss, "accuracy": accuracy(logits, digits)}

    sample = random_rows(training, batch_size)
    return Task(lambda key: head.init(key, COLUMNS), sample, loss_fn)


def fitted(settings: Settings, cell: rnnjax.Cell, seed: int) -> dict[str, Any]:
    """Train on random batches; the training curve, and the accuracy on the test images."""
    training, test = load_images(settings, seed)
    task = make_task(cell, training, settings.batch_size)

    def optimizer(rate: Any) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(rate, settings.steps))

    train = make_trainer(task, optimizer, every=stretch_steps(settings.steps, 50))
    trained = train([seed], [settings.learning_rate], settings.steps)
    _, metrics = jax.jit(lambda params: task.loss_fn(params, test, None))(trained.member(0))
    return {
        "steps": trained.steps,
        "loss": trained.curves["loss"][0],
        "test_accuracy": compute(metrics)["accuracy"],
    }


def run(settings: Settings, results: Results) -> None:
    """The linear model, then every cell; one figure of what they learn how soon."""
    linear = [
        results.row("logistic regression", "scikit-learn", s, lambda: measure_linear(settings, s))  # noqa: B023
        for s in range(settings.seeds)
    ]
    if any("test accuracy" not in row.figures for row in linear):
        return  # the images come with scikit-learn
    curves: dict[str, list[dict[str, np.ndarray]]] = {}
    for name, make_cell in CELLS.items():
        for seed in range(settings.seeds):
            cell = make_cell(settings.hidden_size)
            path = results.folder / f"{name}-{seed}.npz"
            end = kept(path, lambda: fitted(settings, cell, seed))  # noqa: B023
            curves.setdefault(name, []).append(end)
            figures = {"test accuracy": float(end["test_accuracy"])}
            results.row(name, "rnnjax", seed, lambda: Measured(figures, steps=settings.steps))  # noqa: B023
    draw(curves, float(np.mean([row.figures["test accuracy"] for row in linear])), results.folder)


def draw(curves: dict[str, list[dict[str, np.ndarray]]], linear: float, folder: Path) -> None:
    """The training loss of every seed, and the test accuracies beside it."""
    figure, grid = panels(1, 2)
    losses, ends = grid[0]
    for place, (name, found) in enumerate(curves.items()):
        for number, curve in enumerate(found):
            label = name if number == 0 else None
            style = {"color": COLOURS[name], "linestyle": LINES[name], "linewidth": 1.3}
            losses.plot(curve["steps"], curve["loss"], label=label, **style)
        right = [float(curve["test_accuracy"]) for curve in found]
        ends.plot([place] * len(right), right, "o", color=COLOURS[name], alpha=0.7)
    losses.set_yscale("log")
    tidy(losses, "training", "training step", "cross entropy, nats")
    label = f"logistic regression, {linear:.3f}"
    ends.axhline(linear, color=REFERENCE, linestyle=":", linewidth=1.2, label=label)
    ends.set_xticks(range(len(curves)), list(curves))
    ends.set_xlim(-0.5, len(curves) - 0.5)
    tidy(ends, "test, one point a seed", "", "accuracy")
    save(figure, folder / "digits.png")


if __name__ == "__main__":
    sys.exit(lesson.main(__name__))
