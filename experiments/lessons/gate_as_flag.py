"""A gate as a flag: an LSTM that is told to set and reset one, with its gates drawn.

Run:     python -m experiments.lessons.gate_as_flag --seeds 3
Expect:  1.000 of the steps right, mean of 3 seeds, at the length of training and at ten times
         that  (22 November 2026, jax 0.10.2, a CPU)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
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
from experiments.lessons.figures import panels, save, tidy
from experiments.lessons.lesson import LessonSettings, Measured, Results
from experiments.lessons.synthetic import Task, evaluate, kept, make_trainer
from rnnjax.metrics import Mean, accuracy, cross_entropy

SET, RESET = 0, 1


@dataclass(frozen=True)
class Settings(LessonSettings):
    """Say at every step whether a flag is up, that two of many words raise and lower."""

    words: int = 10
    """The first raises the flag ("Alice"), the second lowers it; the rest say nothing of it."""
    rarity: float = 0.1
    """How often a word is one of those two: the flag must outlast ten words on average."""
    length: int = 40
    """Steps of a sequence in training."""
    longer: int = 400
    """Steps of the sequences of another test: a flag, unlike a counter, does not wear off."""
    hidden_size: int = 4
    """Few units, so that all of their gates can be looked at; one would do."""
    batch_size: int = 32
    """Sequences in a batch."""
    learning_rate: float = 1e-2
    """Of Adam."""
    steps: int = 1_000
    """Training steps."""


def set_and_reset(
    words: int, rarity: float, length: int, batch_size: int
) -> Callable[[Array, Array], Any]:
    """Words [B, T], and at each step 1 from a SET on until a RESET, 0 at the start."""

    def sample(key: Array, step: Array) -> tuple[Array, Array]:
        del step
        rare, which, other = jax.random.split(key, 3)
        shape = (batch_size, length)
        commands = jax.random.randint(which, shape, SET, RESET + 1)
        others = jax.random.randint(other, shape, RESET + 1, words)
        tokens = jnp.where(jax.random.bernoulli(rare, rarity, shape), commands, others)
        return tokens, flags(tokens)

    return sample


def flags(tokens: Array) -> Array:
    """The step of the last SET, and that of the last RESET: the later of them has its way."""
    time = jnp.broadcast_to(jnp.arange(1, tokens.shape[-1] + 1), tokens.shape)
    last_set = jax.lax.cummax(jnp.where(tokens == SET, time, 0), axis=tokens.ndim - 1)
    last_reset = jax.lax.cummax(jnp.where(tokens == RESET, time, 0), axis=tokens.ndim - 1)
    return (last_set > last_reset).astype(jnp.int32)


def make_task(settings: Settings, length: int) -> Task:
    """An LSTM that reads one-hot words, and says at each step whether the flag is up."""
    head = rnnjax.output_head(rnnjax.lstm(settings.hidden_size), 2)
    sample = set_and_reset(settings.words, settings.rarity, length, settings.batch_size)

    def loss_fn(params: Any, batch: Any, key: Array | None) -> tuple[Array, dict]:
        del key
        tokens, up = batch
        logits = head.apply(params, jax.nn.one_hot(tokens, settings.words))[1]
        loss = cross_entropy(logits, up)
        return loss.value, {"loss": loss, "right": accuracy(logits, up), "down": Mean.of(up == 0)}

    return Task(lambda key: head.init(key, settings.words), sample, loss_fn)


class Trace(NamedTuple):
    """One sequence and what went on in the LSTM: words [T], flag [T], cell and gates [T, H]."""

    tokens: Array
    up: Array
    c: Array
    i: Array
    f: Array
    o: Array


def trace(settings: Settings, params: Any, seed: int) -> Trace:
    """Run the LSTM over one fresh sequence, its gates beside its outputs."""
    cell = rnnjax.trace_gates(rnnjax.lstm(settings.hidden_size))
    sample = set_and_reset(settings.words, settings.rarity, 60, 1)
    tokens, up = (array[0] for array in sample(jax.random.key(seed), jnp.array(0)))
    xs = jax.nn.one_hot(tokens, settings.words)
    _, ((_, gates), carries) = rnnjax.unroll(cell, params.layer, xs, all_carries=True)
    return Trace(tokens, up, carries.c, gates.i, gates.f, gates.o)


def flag_unit(found: Trace) -> int:
    """The unit whose cell state goes most with the flag."""
    up = np.asarray(found.up, np.float64)
    c = np.asarray(found.c, np.float64)
    return int(np.argmax([abs(np.corrcoef(unit, up)[0, 1]) for unit in c.T]))


def run(settings: Settings, results: Results) -> None:
    """Train, test at two lengths, and draw the gates of the first seed."""
    task = make_task(settings, settings.length)
    train = make_trainer(task, lambda rate: optax.adam(rate), every=settings.steps)
    for seed in range(settings.seeds):

        def measure(seed: int = seed) -> Measured:
            params = train([seed], [settings.learning_rate], settings.steps).member(0)
            if seed == 0:
                kept(results.folder / "trace.npz", trace(settings, params, 1_000_000)._asdict)
            right = {
                length: evaluate(make_task(settings, length), params, seed=1_000_000, batches=4)
                for length in (settings.length, settings.longer)
            }
            figures = {f"right steps, T={length}": r["right"] for length, r in right.items()}
            figures["always down"] = right[settings.longer]["down"]
            return Measured(figures, steps=settings.steps)

        results.row(f"LSTM of {settings.hidden_size} units", "rnnjax", seed, measure)
    with np.load(results.folder / "trace.npz") as stored:
        draw(Trace(**stored), results.folder / "gates.png")


def draw(found: Trace, path: Path) -> None:
    """The flag, and the cell state and the gates of the unit that holds it."""
    unit = flag_unit(found)
    figure, grid = panels(4, 1, width=8.5, height=1.5)
    steps = np.arange(1, len(found.tokens) + 1)
    rows = (
        ("cell state c", found.c, "#1f5fa8"),
        ("input gate i", found.i, "#e07b00"),
        ("forget gate f", found.f, "#2a9d6f"),
        ("output gate o", found.o, "#7b4fa3"),
    )
    for axes, (name, values, colour) in zip(grid[:, 0], rows, strict=True):
        low, high = (float(values[:, unit].min()), 1.0) if name == "cell state c" else (0.0, 1.0)
        low, high = min(low, 0.0), max(high, float(values[:, unit].max()))
        up = steps[np.asarray(found.up) == 1]
        axes.bar(up, high - low, bottom=low, width=1.0, color="k", alpha=0.13)
        for word, mark in ((SET, "^"), (RESET, "v")):
            at = steps[np.asarray(found.tokens) == word]
            axes.plot(at, np.full(len(at), low), mark, color="k", markersize=5, clip_on=False)
        axes.step(steps, values[:, unit], where="mid", color=colour, linewidth=1.6)
        tidy(axes, "", "", name, legend=False)
        axes.set_xlim(0, len(steps) + 1)
        axes.set_ylim(low - 0.07 * (high - low), high + 0.07 * (high - low))
    grid[0, 0].set_title(
        f"unit {unit + 1}: grey where the flag is up, ▲ the word that raises it, ▼ the word that "
        "lowers it",
        fontsize="medium",
    )
    grid[-1, 0].set_xlabel("step")
    save(figure, path)


if __name__ == "__main__":
    sys.exit(lesson.main(__name__))
