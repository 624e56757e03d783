"""Counting by twos: which cells keep the parity of bits beyond the length of their training.

Run:     python -m experiments.lessons.parity --seeds 3
Expect:  mean of 3 seeds  (28 November 2026, jax 0.10.2, 2 cores of an AMD EPYC): sLSTM, LSTM and
         GRU right in 1.000 of the sequences at step 40 and at step 256; DeltaNet-neg in 1.000 and
         0.705; DeltaNet, mLSTM, minGRU, RG-LRU, S5 and S6 in about 0.5, as by guessing, at both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import rnnjax
from experiments.lessons import lesson
from experiments.lessons.cells_compared import Contest, draw_curves, mlp, run_contest
from experiments.lessons.lesson import LessonSettings, Results
from experiments.lessons.synthetic import Task
from rnnjax.metrics import accuracy, cross_entropy


@dataclass(frozen=True)
class Settings(LessonSettings):
    """Say at every step whether the number of ones so far is odd."""

    cells: tuple[str, ...] = (
        *("sLSTM", "LSTM", "GRU", "DeltaNet-neg"),
        *("DeltaNet", "mLSTM", "minGRU", "RG-LRU", "S5", "S6"),
    )
    """Which to train. The state of the first three has its part in their gates. The others are
    linear in it, and what they do at a step does not depend on what they remember; of these,
    DeltaNet-neg, a gated_delta with negative eigenvalues, can turn the sign of its state."""
    length: int = 40
    """Steps of a sequence in training: every prefix has its label, so this is the longest."""
    longer: int = 256
    """Steps of the sequences of the test."""
    hidden_size: int = 16
    """Units of a layer."""
    heads: int = 4
    """Of sLSTM, mLSTM and gated_delta."""
    layers: int = 1
    """Recurrent layers, each with a gated map behind it; one is enough."""
    batch_size: int = 32
    """Sequences in a batch."""
    learning_rate: float = 5e-3
    """Of Adam at the start; it falls to nothing along a cosine."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    steps: int = 1_000
    """Training steps."""
    test_sequences: int = 1_024
    """Sequences of the test."""


def parities(length: int, batch_size: int) -> Callable[[Array, Array], Any]:
    """Bits [B, T], and at each step whether the number of ones so far is odd."""

    def sample(key: Array, step: Array) -> tuple[Array, Array]:
        del step
        bits = jax.random.bernoulli(key, 0.5, (batch_size, length)).astype(jnp.int32)
        return bits, jnp.cumsum(bits, axis=-1) % 2

    return sample


def make_cell(name: str, settings: Settings) -> rnnjax.Cell:
    """A cell by its name in the table."""
    size, heads = settings.hidden_size, settings.heads
    makers = {
        "sLSTM": lambda: rnnjax.slstm(size, num_heads=heads),
        "mLSTM": lambda: rnnjax.mlstm(size, num_heads=heads),
        "LSTM": lambda: rnnjax.lstm(size),
        "GRU": lambda: rnnjax.gru(size),
        "DeltaNet": lambda: rnnjax.gated_delta(size, num_heads=heads),
        "DeltaNet-neg": lambda: rnnjax.gated_delta(
            size, num_heads=heads, negative_eigenvalues=True
        ),
        "minGRU": lambda: rnnjax.min_gru(size),
        "RG-LRU": lambda: rnnjax.rg_lru(size),
        "S5": lambda: rnnjax.s5(size),
        "S6": lambda: rnnjax.s6(size),
    }
    if name not in makers:
        raise ValueError(f"--cells must be among {', '.join(makers)}, got {name}")
    return makers[name]()


def network(cell: rnnjax.Cell, settings: Settings) -> rnnjax.Layer:
    """Blocks of a cell and a gated map, and two classes at every step."""
    size = settings.hidden_size
    first = rnnjax.gated(None, size, hidden_size=size)
    block = (rnnjax.residual(rnnjax.rms_norm(cell)), mlp(size))
    return rnnjax.output_head(rnnjax.stack(first, *block * settings.layers), 2)


def make_task(layer: rnnjax.Layer, settings: Settings) -> Task:
    """Cross entropy of the classes at all steps."""

    def loss_fn(params: Any, batch: Any, key: Array | None) -> tuple[Array, dict]:
        del key
        bits, odd = batch
        logits = layer.apply(params, jax.nn.one_hot(bits, 2))[1]
        loss = cross_entropy(logits, odd)
        return loss.value, {"loss": loss, "right": accuracy(logits, odd)}

    sample = parities(settings.length, settings.batch_size)
    return Task(lambda key: layer.init(key, 2), sample, loss_fn)


def right_by_step(
    layer: rnnjax.Layer, params: Any, settings: Settings, seed: int
) -> dict[str, Any]:
    """How many of fresh sequences are right at each step up to the longer length."""
    draw = parities(settings.longer, settings.test_sequences)
    bits, odd = draw(jax.random.key(seed), jnp.array(0))
    said = jax.jit(lambda bits: jnp.argmax(layer.apply(params, jax.nn.one_hot(bits, 2))[1], -1))
    right = np.mean(np.asarray(said(bits) == odd), axis=0)
    return {
        "right by step": right,
        f"right at step {settings.length}": right[settings.length - 1],
        f"right at step {settings.longer}": right[-1],
    }


def make_contest(settings: Settings) -> Contest:
    """One task a cell, and the test at every step of longer sequences."""
    layers = {name: network(make_cell(name, settings), settings) for name in settings.cells}

    def test(name: str, params: Any, seed: int) -> dict[str, Any]:
        return right_by_step(layers[name], params, settings, seed)

    return Contest(
        tasks={name: make_task(layer, settings) for name, layer in layers.items()},
        rates=dict.fromkeys(layers, settings.learning_rate),
        steps=settings.steps,
        clip_norm=settings.clip_norm,
        test=test,
    )


def run(settings: Settings, results: Results) -> None:
    """Train every cell, test it beyond the length of its training, and draw where it fails."""
    if settings.longer < settings.length:
        raise ValueError(f"--longer must be at least --length, got {settings.longer}")
    found = run_contest(make_contest(settings), settings.seeds, results)
    for ends in found.values():
        for end in ends:
            end["place"] = np.arange(1, len(end["right by step"]) + 1)
    draw_curves(
        found,
        results.folder / "parity.png",
        ("place", "step"),
        ("right by step", "sequences that are right"),
        title=f"parity, learned on {settings.length} steps",
        references={"guessing": 0.5},
    )


if __name__ == "__main__":
    sys.exit(lesson.main(__name__))
