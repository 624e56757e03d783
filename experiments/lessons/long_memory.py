"""Long memory: how far back can a cell give back the signal that it read?

Run:     python -m experiments.lessons.long_memory --seeds 3
Expect:  share of the variance of a signal of 100 steps ago, mean of 3 seeds  (27 November 2026,
         jax 0.10.2, 2 cores of an AMD EPYC): S4D 0.996, S5 0.995, LRU 0.992, LMU 0.990, coRNN
         0.318, LSTM 0.237, GRU 0.061. On steps 200 to 600, beyond the length of training, LMU
         keeps 0.993, LRU 0.938, S5 0.856, S4D 0.787. With --steps 1500 LSTM gives back 0.982.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import rnnjax
from experiments.lessons import lesson
from experiments.lessons.cells_compared import Contest, draw_curves, run_contest
from experiments.lessons.lesson import LessonSettings, Results
from experiments.lessons.synthetic import Task
from rnnjax.metrics import Mean


@dataclass(frozen=True)
class Settings(LessonSettings):
    """Say at every step what the signal was 10, 20, ... steps ago."""

    cells: tuple[str, ...] = ("LSTM", "GRU", "LMU", "S5", "S4D", "LRU", "coRNN")
    """Which to train, each with 5,600 to 7,200 weights, and a linear map behind it."""
    delays: tuple[int, ...] = (10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
    """How many steps ago, one output each."""
    band: float = 0.05
    """The highest frequency of the signal, in cycles a step: 100 steps of it are 10 numbers."""
    length: int = 200
    """Steps of a signal in training."""
    longer: int = 600
    """Steps of the signals of the test."""
    batch_size: int = 16
    """Signals in a batch."""
    learning_rate: float = 5e-3
    """Of Adam at the start, for all cells; it falls to nothing along a cosine."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    steps: int = 300
    """Training steps."""
    initializer: Literal["rnnjax", "pytorch", "keras", "flax"] = "rnnjax"
    """The library whose rule the first weights of LSTM and GRU follow."""
    test_sequences: int = 256
    """Signals of the test."""


def delayed(
    length: int, batch_size: int, delays: tuple[int, ...], band: float
) -> Callable[[Array, Array], Any]:
    """White noise below a frequency [B, T, 1], and what it was each delay ago [B, T, K].

    The variance is 1 at every step, and targets are 0 where the signal had not begun.
    """
    period = 2 * length  # cut in half, so that a signal does not repeat
    bins = int(band * period)
    if bins < 1:
        raise ValueError(f"--band must be at least 1 / {period}, got {band}")

    def sample(key: Array, step: Array) -> tuple[Array, Array]:
        del step
        waves = jax.random.normal(key, (2, batch_size, bins))
        angles = 2 * jnp.pi / period * jnp.outer(jnp.arange(1, bins + 1), jnp.arange(length))
        signal = (waves[0] @ jnp.cos(angles) + waves[1] @ jnp.sin(angles)) / bins**0.5
        padded = jnp.pad(signal, ((0, 0), (max(delays), 0)))
        starts = [max(delays) - delay for delay in delays]
        targets = [padded[:, start : start + length] for start in starts]
        return signal[..., None], jnp.stack(targets, axis=-1)

    return sample


def make_cell(name: str, settings: Settings) -> tuple[rnnjax.Cell, int]:
    """A cell by its name in the table, and how wide its input is."""
    furthest = max(settings.delays)
    makers = {
        "LSTM": lambda: (rnnjax.lstm(40, initializer=settings.initializer), 1),
        "GRU": lambda: (rnnjax.gru(46, initializer=settings.initializer), 1),
        "LMU": lambda: (rnnjax.lmu(64, memory_size=32, theta=furthest), 1),
        "S5": lambda: (rnnjax.s5(32, state_size=96), 1),
        "S4D": lambda: (rnnjax.s4d(40, state_size=32), 40),
        # A ring for slow signals that last. With the default most states forget within ten steps.
        "LRU": lambda: (
            rnnjax.lru(32, 96, min_radius=0.9, max_radius=0.999, max_phase=np.pi / 10),
            1,
        ),
        "coRNN": lambda: (rnnjax.cornn(56), 1),
    }
    if name not in makers:
        raise ValueError(f"--cells must be among {', '.join(makers)}, got {name}")
    return makers[name]()


def network(name: str, settings: Settings) -> tuple[Callable, Callable]:
    """``init(key)`` and ``outputs(params, xs)`` of a cell and a linear map.

    S4D has a channel for every input, so each of its channels gets the signal.
    """
    cell, width = make_cell(name, settings)
    head = rnnjax.output_head(cell, len(settings.delays))

    def outputs(params: Any, xs: Array) -> Array:
        return head.apply(params, jnp.tile(xs, width))[1]

    return lambda key: head.init(key, width), outputs


def make_task(init: Callable, outputs: Callable, settings: Settings) -> Task:
    """Squared error of all delays, from the step on where each has something to give back."""
    sample = delayed(settings.length, settings.batch_size, settings.delays, settings.band)
    begun = np.arange(settings.length)[:, None] >= np.array(settings.delays)

    def loss_fn(params: Any, batch: Any, key: Array | None) -> tuple[Array, dict]:
        del key
        xs, targets = batch
        squares = (outputs(params, xs) - targets) ** 2
        loss = Mean.of(squares, jnp.broadcast_to(begun, squares.shape))
        return loss.value, {"loss": loss}

    return Task(init, sample, loss_fn)


def explained(errors: np.ndarray, targets: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """1 - sum of squared errors / sum of squared targets: 1 is all, 0 is what saying 0 gives."""
    return 1 - np.sum(errors**2, axis) / np.sum(targets**2, axis)


def recalled(outputs: Callable, params: Any, settings: Settings, seed: int) -> dict[str, Any]:
    """The share of the variance that is given back, of each delay, and of the last by steps."""
    draw = delayed(settings.longer, settings.test_sequences, settings.delays, settings.band)
    xs, targets = draw(jax.random.key(seed), jnp.array(0))
    targets = np.asarray(targets, np.float64)
    errors = np.asarray(jax.jit(outputs)(params, xs), np.float64) - targets
    furthest, length = max(settings.delays), settings.length
    known, later = slice(furthest, length), slice(length, None)
    share = explained(errors[:, known], targets[:, known], (0, 1))
    beyond = explained(errors[:, later], targets[:, later], (0, 1))
    last = settings.delays.index(furthest)
    by_step = explained(errors[:, furthest:, last], targets[:, furthest:, last], 0)
    middle = settings.delays[len(settings.delays) // 2 - 1]
    return {
        "explained by delay": share,
        "explained by step": by_step,
        f"{middle} ago": share[settings.delays.index(middle)],
        f"{furthest} ago": share[last],
        f"{furthest} ago, steps {length} to {settings.longer}": beyond[last],
    }


def make_contest(settings: Settings) -> Contest:
    """One task a cell, and the test on longer signals."""
    networks = {name: network(name, settings) for name in settings.cells}

    def test(name: str, params: Any, seed: int) -> dict[str, Any]:
        return recalled(networks[name][1], params, settings, seed)

    return Contest(
        tasks={name: make_task(*parts, settings) for name, parts in networks.items()},
        rates=dict.fromkeys(networks, settings.learning_rate),
        steps=settings.steps,
        clip_norm=settings.clip_norm,
        test=test,
    )


def run(settings: Settings, results: Results) -> None:
    """Train every cell, and draw how much of the signal it gives back, over the delay."""
    if not max(settings.delays) < settings.length < settings.longer:
        raise ValueError(
            "--delays, --length and --longer must be in this order, "
            f"got {max(settings.delays)}, {settings.length} and {settings.longer}"
        )
    found = run_contest(make_contest(settings), settings.seeds, results)
    for ends in found.values():
        for end in ends:
            end["delay"] = np.array(settings.delays)
    draw_curves(
        found,
        results.folder / "long_memory.png",
        ("delay", "steps ago"),
        ("explained by delay", "share of the variance given back"),
        title="memory of a band-limited signal",
    )


if __name__ == "__main__":
    sys.exit(lesson.main(__name__))
