"""Counting to three: the small NumPy network of the lesson, in rnnjax.

Run:     python -m experiments.lessons.count_to_three --seeds 3
         python -m experiments.lessons.count_to_three --weights trained_net.wts.npz
Expect:  no error by either recipe, 3 seeds, on fresh inputs too; a cross entropy of 0.013 a
         sequence after 300 steps of Adam, 0.00014 after the lesson's 100,000 (its published
         weights: 0.0030)  (22 November 2026, jax 0.10.2, a CPU)
"""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import rnnjax
from experiments.lessons import lesson
from experiments.lessons.figures import panels, save, tidy
from experiments.lessons.lesson import LessonSettings, Measured, Results
from experiments.lessons.synthetic import Task, kept, make_trainer, random_rows
from rnnjax.cells.vanilla import VanillaParams
from rnnjax.layers import HeadParams
from rnnjax.metrics import Mean, compute

LENGTH, EXAMPLES = 10, 100
SHAPES = {"W_ih": (5, 15), "b_ih": (15,), "W_hh": (15, 15), "W_hk": (15, 1), "b_hk": (1,)}
INPUTS, HIDDEN = SHAPES["W_ih"]


@dataclass(frozen=True)
class Settings(LessonSettings):
    """A target of 1 at every third step, whatever the random inputs are."""

    weights: Path | None = None
    """An .npz file of W_ih, b_ih, W_hh, W_hk and b_hk, to be tried as it is."""
    learning_rate: float = 1e-2
    """Of Adam, on ten sequences at a time: counting, not noise, is what there is to learn."""
    steps: int = 300
    """Of Adam; with the seeds 0, 1 and 2 no error is left."""
    lesson_learning_rate: float = 1e-3
    """Of the lesson's own recipe: momentum 0.9, one sequence at a time, gradients cut to ±3."""
    lesson_epochs: int = 1000
    """Of that recipe."""


def network() -> rnnjax.Layer:
    r"""The network of the lesson: 5 inputs, 15 hidden units, one output a step.

    .. math::

        h_t &= \tanh(x_t W_{ih} + h_{t-1} W_{hh} + b_{ih}) \\
        y_t &= \sigma(h_t W_{hk} + b_{hk})

    The output is made of the new state. (The lesson's formula for Y has the same letter H for
    the state before and after the step; its program takes the one after, as rnnjax does.) The
    sigmoid is left to the loss, which is exact there for large outputs; y > 1/2 is where what is
    given here is above 0.
    """
    return rnnjax.output_head(rnnjax.vanilla(HIDDEN), SHAPES["b_hk"][0])


def load_named_weights(path: str | os.PathLike[str]) -> HeadParams:
    """The parameters of `network` from an .npz file of the lesson's names.

    Args:
        path: arrays W_ih [5, 15], b_ih [15], W_hh [15, 15], W_hk [15, 1] and b_hk [1]. Pickled
            objects are refused.

    Raises:
        ValueError: the file is no .npz, an array is missing, unknown, of another shape, not
            numeric or not finite: names the file and all that is wrong.
        FileNotFoundError: there is no such file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     arrays = {name: np.ones(shape) for name, shape in SHAPES.items()}
        ...     np.savez(f"{folder}/net.npz", **arrays)
        ...     params = load_named_weights(f"{folder}/net.npz")
        >>> params.layer.w_ih.shape, params.w.shape
        ((5, 15), (15, 1))
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} must be an .npz file, got no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: np.asarray(file[name]) for name in file.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} must be an .npz file of plain arrays, got {error}") from None
    wrong = [
        f"{name} must be {SHAPES.get(name, 'absent')}, got {_described(found.get(name))}"
        for name in SHAPES | found
        if not _fits(found.get(name), SHAPES.get(name))
    ]
    if wrong:
        raise ValueError(f"{path}: " + "; ".join(wrong))
    ready = {name: jnp.asarray(array, jnp.float32) for name, array in found.items()}
    cell = VanillaParams(ready["W_ih"], ready["W_hh"], ready["b_ih"])
    return HeadParams(cell, ready["W_hk"], ready["b_hk"])


def _fits(array: np.ndarray | None, shape: tuple[int, ...] | None) -> bool:
    if array is None or array.shape != shape or array.dtype.kind not in "fiu":
        return False
    return bool(np.isfinite(array).all())


def _described(array: np.ndarray | None) -> str:
    if array is None:
        return "nothing"
    numeric = array.dtype.kind in "fiu"
    note = " with NaN or infinity" if numeric and not np.isfinite(array).all() else ""
    return f"{array.shape} {array.dtype}{note}"


def sequences(seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Random normal inputs [100, 10, 5], and the targets [100, 10, 1]: 1 at t = 2, 5 and 8.

    Seed 1, drawn as NumPy drew in 2017, gives the sequences of the lesson.
    """
    xs = np.random.RandomState(seed).randn(EXAMPLES, LENGTH, INPUTS)
    targets = np.zeros((EXAMPLES, LENGTH, 1))
    targets[:, 2::3] = 1
    return xs.astype(np.float32), targets.astype(np.float32)


def measure(params: HeadParams, batch: Any) -> dict[str, Mean]:
    """Cross entropy of a sequence, summed over its steps, and the share of right steps."""
    xs, targets = batch
    _, logits = network().apply(params, xs)
    losses = optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=(1, 2))
    return {"loss": Mean.of(losses), "right": Mean.of((logits > 0) == (targets > 0.5))}


def loss_fn(params: HeadParams, batch: Any, key: Array | None) -> tuple[Array, dict]:
    del key
    metrics = measure(params, batch)
    return metrics["loss"].value, metrics


def adam_task() -> Task:
    """Ten of the sequences at a time, from rnnjax's own initial weights."""
    return Task(
        lambda key: network().init(key, INPUTS), random_rows(sequences(), batch_size=10), loss_fn
    )


def lesson_task() -> Task:
    """One sequence after the other, from weights of 0.01 N(0, 1) and biases of 0."""
    xs, targets = map(jnp.asarray, sequences())

    def init(key: Array) -> HeadParams:
        ih, hh, hk = jax.random.split(key, 3)
        draw = {
            name: 0.01 * jax.random.normal(k, SHAPES[name])
            for name, k in (("W_ih", ih), ("W_hh", hh), ("W_hk", hk))
        }
        cell = VanillaParams(draw["W_ih"], draw["W_hh"], jnp.zeros(HIDDEN))
        return HeadParams(cell, draw["W_hk"], jnp.zeros(1))

    def sample(key: Array, step: Array) -> tuple[Array, Array]:
        del key
        return xs[step % EXAMPLES][None], targets[step % EXAMPLES][None]

    return Task(init, sample, loss_fn)


def lesson_optimizer(rate: Any) -> optax.GradientTransformation:
    """Each number of a gradient cut to ±3, then gradient descent with momentum."""
    return optax.chain(optax.clip(3.0), optax.sgd(rate, momentum=0.9))


def run(settings: Settings, results: Results) -> None:
    """Try the given weights, train by both recipes, and draw what the networks say."""
    lines = {}
    if settings.weights is not None:
        given = load_named_weights(settings.weights)
        results.row("weights from the file", "rnnjax", None, lambda: tried(given))
        lines["weights from the file"] = said(given)
    recipes: dict[str, tuple[Task, Callable, float, int]] = {
        "Adam": (adam_task(), optax.adam, settings.learning_rate, settings.steps),
        "the lesson's recipe": (
            lesson_task(),
            lesson_optimizer,
            settings.lesson_learning_rate,
            settings.lesson_epochs * EXAMPLES,
        ),
    }
    for number, (name, (task, optimizer, rate, steps)) in enumerate(recipes.items()):
        train = make_trainer(task, optimizer, every=steps)
        for seed in range(settings.seeds):
            path = results.folder / f"network-{number}-{seed}.npz"
            kept(path, lambda seed=seed: named_weights(train([seed], [rate], steps).member(0)))  # noqa: B023
            params = load_named_weights(path)
            results.row(
                name,
                "rnnjax",
                seed,
                lambda params=params: tried(params)._replace(steps=steps),  # noqa: B023
            )
            lines.setdefault(name, said(params))
    draw(lines, results.folder / "count_to_three.png")


def named_weights(params: HeadParams) -> dict[str, Array]:
    """The parameters under the lesson's names: what `load_named_weights` reads."""
    cell = params.layer
    arrays = (cell.w_ih, cell.bias, cell.w_hh, params.w, params.bias)
    return dict(zip(SHAPES, arrays, strict=True))


def tried(params: HeadParams) -> Measured:
    """On the lesson's sequences, and on as many fresh ones."""
    own = compute(measure(params, sequences()))
    fresh = compute(measure(params, sequences(seed=2)))
    return Measured(
        {
            "loss of a sequence": own["loss"],
            "right steps": own["right"],
            "right steps, fresh inputs": fresh["right"],
        }
    )


def said(params: HeadParams) -> np.ndarray:
    """The outputs [100, 10] for fresh inputs, after the sigmoid."""
    xs = jnp.asarray(sequences(seed=2)[0])
    return np.asarray(jax.nn.sigmoid(network().apply(params, xs)[1][..., 0]))


def draw(lines: dict[str, np.ndarray], path: Path) -> None:
    """The output at each step: the mean over the sequences, and the range of them all."""
    figure, grid = panels(1, len(lines))
    steps = np.arange(LENGTH)
    for axes, (name, outputs) in zip(grid[0], lines.items(), strict=True):
        low, high = outputs.min(axis=0), outputs.max(axis=0)
        axes.fill_between(steps, low, high, alpha=0.25, color="#1f5fa8", label="all 100 sequences")
        axes.plot(steps, outputs.mean(axis=0), color="#1f5fa8", marker="o", label="their mean")
        axes.plot(
            [2, 5, 8], [1, 1, 1], linestyle="none", marker="x", color="#d1495b", label="target 1"
        )
        axes.set_ylim(-0.05, 1.45)
        axes.set_xticks(steps)
        tidy(axes, name, "step t", "output", legend=False)
    grid[0][0].legend(frameon=False, fontsize="small", loc="upper left", ncols=2)
    save(figure, path)


if __name__ == "__main__":
    sys.exit(lesson.main(__name__))
