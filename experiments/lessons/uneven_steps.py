"""Uneven steps: which cells say where a wave will be, when told how much time passes.

Run:     python -m experiments.lessons.uneven_steps --seeds 3
Expect:  mean error of 3 seeds, 1 for who always says 0  (27 November 2026, jax 0.10.2, 2 cores of
         an AMD EPYC): GRU without the times 0.130, with them as input 0.006; with elapsed time
         CfC 0.009, S5 0.025, S4D 0.027. With gaps twice as long: 0.64, 0.34;
         0.44, 0.57, 0.52.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import rnnjax
from experiments.lessons import lesson
from experiments.lessons.cells_compared import Contest, draw_curves, mlp, run_contest
from experiments.lessons.lesson import LessonSettings, Results
from experiments.lessons.synthetic import Task
from experiments.running.setting_checks import flag
from rnnjax.metrics import squared_error

SYSTEMS = (
    "GRU, no times",
    "GRU, times as input",
    "CfC, elapsed time",
    "S5, elapsed time",
    "S4D, elapsed time",
)
# Of waits, in the picture.
BINS = 12


@dataclass(frozen=True)
class Settings(LessonSettings):
    """Say where a wave will be after a time that is told."""

    systems: tuple[str, ...] = SYSTEMS
    """Which to train: a cell, and how it is told the time until the next sample: not at all, as
    one more number of its input, or as the elapsed time that its equation has."""
    length: int = 30
    """Samples of a wave."""
    shortest_gap: float = 0.1
    """Times between samples are uniform between this one ..."""
    longest_gap: float = 1.9
    """... and this one. One more test has gaps twice as long."""
    shortest_period: float = 6.0
    """The period of a wave is uniform between this one ..."""
    longest_period: float = 16.0
    """... and this one."""
    weights: int = 5_000
    """A network is as wide as it can be with at most so many."""
    layers: int = 2
    """Recurrent layers, each with a gated map behind it."""
    batch_size: int = 32
    """Waves in a batch."""
    learning_rate: float = 5e-3
    """Of Adam at the start; it falls to nothing along a cosine."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    steps: int = 800
    """Training steps."""
    test_waves: int = 1_024
    """Waves of a test."""


class Waves(NamedTuple):
    """``values`` [B, T], ``waits`` [B, T] until the next sample, and ``following`` [B, T]."""

    values: Array
    waits: Array
    following: Array


def waves(settings: Settings, batch_size: int, scale: float = 1.0) -> Callable[..., Waves]:
    """Sines of random period, phase and amplitude, seen at random times.

    Args:
        settings: of periods and gaps.
        batch_size: B.
        scale: of the gaps.
    """
    low, high = settings.shortest_gap * scale, settings.longest_gap * scale

    def sample(key: Array, step: Array) -> Waves:
        del step
        keys = jax.random.split(key, 4)

        def uniform(key: Array, low: float, high: float, count: int = 1) -> Array:
            return jax.random.uniform(key, (batch_size, count), minval=low, maxval=high)

        gaps = uniform(keys[0], low, high, settings.length)
        period = uniform(keys[1], settings.shortest_period, settings.longest_period)
        phase = uniform(keys[2], 0.0, 2 * np.pi)
        amplitude = uniform(keys[3], 0.5, 1.5)
        times = jnp.cumsum(jnp.pad(gaps, ((0, 0), (1, 0))), axis=-1)
        values = amplitude * jnp.sin(2 * np.pi * times / period + phase)
        return Waves(values[:, :-1], gaps, values[:, 1:])

    return sample


class Network(NamedTuple):
    """``init(key) -> params``, and ``apply(params, values [B, T], waits [B, T]) -> [B, T]``."""

    init: Callable[[Array], Any]
    apply: Callable[[Any, Array, Array], Array]


def make_cell(name: str, size: int) -> rnnjax.Cell:
    """A cell by its name, as wide at its input as at its output."""
    makers: dict[str, Callable[[], rnnjax.Cell]] = {
        "GRU": lambda: rnnjax.gru(size),
        "CfC": lambda: rnnjax.cfc(size),
        "S5": lambda: rnnjax.s5(size),
        "S4D": lambda: rnnjax.s4d(size, state_size=8),
    }
    return makers[name]()


def network(system: str, size: int, layers: int) -> Network:
    """A linear map, blocks of a cell and a gated map, and one number at every step.

    A cell that has elapsed time is given it in every block. The state after a step is that at the
    time of the next sample: the value is what came in, the wait is how long it then goes on.
    """
    cell_name, told = system.split(", ")
    inputs = 2 if told == "times as input" else 1
    cells = [rnnjax.recurrent(make_cell(cell_name, size)) for _ in range(layers)]
    behind = [*[mlp(size)] * (layers - 1), rnnjax.output_head(mlp(size), 1)]

    def init(key: Array) -> dict[str, Any]:
        first, *keys = jax.random.split(key, 2 * layers + 1)
        parts = zip([*cells, *behind], keys, strict=True)
        return {
            "first": jax.nn.initializers.glorot_uniform()(first, (inputs, size)),
            "layers": [layer.init(key, size) for layer, key in parts],
        }

    def apply(params: dict[str, Any], values: Array, waits: Array) -> Array:
        values, waits = values[..., None], waits[..., None]
        xs = jnp.concatenate([values, waits], axis=-1) if inputs == 2 else values
        hs = xs @ params["first"]
        pairs = zip(params["layers"][:layers], params["layers"][layers:], strict=True)
        for cell, map_, (cell_params, map_params) in zip(cells, behind, pairs, strict=True):
            given = (hs, waits) if told == "elapsed time" else hs
            hs = hs + cell.apply(cell_params, given)[1]
            hs = map_.apply(map_params, hs)[1]
        return hs[..., 0]

    return Network(init, apply)


def count_weights(net: Network) -> int:
    """How many numbers training finds."""
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(net.init, jax.random.key(0))))


def make_network(system: str, settings: Settings) -> Network:
    """The widest with at most as many weights as the settings say."""
    if system not in SYSTEMS:
        raise ValueError(f"--systems must be among {'; '.join(SYSTEMS)}, got {system}")
    if settings.weights < (least := count_weights(network(system, 1, settings.layers))):
        raise ValueError(f"--weights must be at least {least} for {system}, got {settings.weights}")
    size = 1
    while count_weights(network(system, size + 1, settings.layers)) <= settings.weights:
        size += 1
    return network(system, size, settings.layers)


def _check_ranges(settings: Settings) -> None:
    for low, high in (("shortest_gap", "longest_gap"), ("shortest_period", "longest_period")):
        least, most = getattr(settings, low), getattr(settings, high)
        if not 0 < least <= most:
            raise ValueError(
                f"{flag(low)} must be above 0 and at most {flag(high)}, {most}, got {least}"
            )


def make_task(net: Network, settings: Settings) -> Task:
    """The squared error of all steps."""

    def loss_fn(params: Any, batch: Waves, key: Array | None) -> tuple[Array, dict]:
        del key
        loss = squared_error(net.apply(params, batch.values, batch.waits), batch.following)
        return loss.value, {"loss": loss}

    return Task(net.init, waves(settings, settings.batch_size), loss_fn)


def measure(net: Network, params: Any, settings: Settings, seed: int) -> dict[str, Any]:
    """The errors on fresh waves in the last half of the steps, when enough was seen.

    Each is the mean squared error over the mean square of the wave: 1 is that of who always says
    0. Those by wait are of gaps twice as long.
    """
    figures: dict[str, Any] = {}
    apply = jax.jit(net.apply)
    for scale, name in ((1.0, "error"), (2.0, "error, gaps twice as long")):
        drawn = waves(settings, settings.test_waves, scale)(jax.random.key(seed), jnp.array(0))
        said = apply(params, drawn.values, drawn.waits)
        late = slice(settings.length // 2, None)
        wrong = np.square(np.asarray(said - drawn.following, np.float64)[:, late])
        power = np.square(np.asarray(drawn.following, np.float64)[:, late]).mean()
        figures[name] = wrong.mean() / power
    edges = np.linspace(2 * settings.shortest_gap, 2 * settings.longest_gap, BINS + 1)
    place = np.clip(np.digitize(np.asarray(drawn.waits)[:, late], edges) - 1, 0, BINS - 1)
    sums = np.bincount(place.ravel(), wrong.ravel(), BINS)
    by_wait = sums / np.bincount(place.ravel(), minlength=BINS) / power
    return {**figures, "error by wait": by_wait, "wait": (edges[:-1] + edges[1:]) / 2}


def make_contest(settings: Settings) -> Contest:
    """One task a system, and its two tests."""
    networks = {system: make_network(system, settings) for system in settings.systems}

    def test(system: str, params: Any, seed: int) -> dict[str, Any]:
        return measure(networks[system], params, settings, seed)

    return Contest(
        tasks={system: make_task(net, settings) for system, net in networks.items()},
        rates=dict.fromkeys(networks, settings.learning_rate),
        steps=settings.steps,
        clip_norm=settings.clip_norm,
        test=test,
    )


def run(settings: Settings, results: Results) -> None:
    """Train every system, test it on both kinds of gaps, and draw the errors by the wait."""
    _check_ranges(settings)
    found = run_contest(make_contest(settings), settings.seeds, results)
    draw_curves(
        found,
        results.folder / "uneven_steps.png",
        ("wait", "time until the value that is asked for"),
        ("error by wait", "error, as a part of the wave's square"),
        title=f"waves learned with gaps up to {settings.longest_gap}, seen with gaps twice as long",
        references={"always 0": 1.0},
        log=True,
    )


if __name__ == "__main__":
    sys.exit(lesson.main(__name__))
