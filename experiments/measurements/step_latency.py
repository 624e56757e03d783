"""How long one step takes by itself, as a server or an agent takes it, beside other libraries.

Run:     python -m experiments.measurements.step_latency
Prints:  microseconds of a step of LSTM and GRU, for every size and batch: medians and ranges of
         interleaved rounds. Each step waits for the one before, and its output is waited for. All
         have the same weights, and are first checked to give the same numbers; those of
         ``layer.step`` called by itself must have the bits of the stream.

Steps right after one another find the threads of JAX awake, which between two requests of a server
are asleep: ``--pause 200`` lets that many microseconds pass before every step and does not count
them.
"""

from __future__ import annotations

import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from experiments.running.console import exit_code, print_table
from experiments.running.parsing import parse
from experiments.running.setting_checks import check_settings, each, whole
from rnnjax.benchmark import Clock, Spread, Timing, interleaved, ratio

CELLS = {"lstm": rnnjax.lstm, "gru": rnnjax.gru}
CHECKED_STEPS = 6


@dataclass(frozen=True)
class Settings:
    """Time one step of LSTM and GRU, beside the cells of PyTorch and Flax with equal weights."""

    hidden_sizes: tuple[int, ...] = (64, 256, 1024)
    """Units of the layer; inputs are as wide."""
    batch_sizes: tuple[int, ...] = (1, 16)
    """Sequences that go on side by side."""
    rounds: int = 15
    """How often each is timed, by turns; the median and the extremes are shown."""
    milliseconds: int = 10
    """That a turn lasts at least: a duration is the mean over the steps of a turn."""
    pause: int = 0
    """Microseconds of other work of the program before every step; they are not counted."""
    dispatch: Literal["asynchronous", "synchronous"] = "asynchronous"
    """How JAX runs a program on a CPU: handed over to another thread, as it does unless it is told
    otherwise, or in the thread that calls (``jax_cpu_enable_async_dispatch`` is False)."""
    torch_threads: int = 1
    """Threads of PyTorch: a step is soon done, and on a machine that does other work two threads
    wait for one another far longer than they compute."""


class Problem(NamedTuple):
    """One cell of one size: its kind, its layer, its weights, and inputs [B, T, D]."""

    kind: str
    layer: rnnjax.Layer
    params: Any
    xs: np.ndarray


class Stepper(NamedTuple):
    """One library: ``step(carry, x) -> (carry, y)``, how it takes arrays, and the first carry."""

    step: Callable[[Any, Any], tuple[Any, Any]]
    take: Callable[[np.ndarray], Any]
    start: Callable[[], Any]


def make_problem(kind: str, size: int, batch: int) -> Problem:
    """A cell with weights of its own, and standard normal inputs."""
    layer = rnnjax.recurrent(CELLS[kind](size))
    params = layer.init(jax.random.key(0), size)
    xs = np.random.default_rng(0).standard_normal((batch, CHECKED_STEPS, size))
    return Problem(kind, layer, params, xs.astype(np.float32))


def steppers(problem: Problem, torch_threads: int) -> Iterator[tuple[str, Stepper]]:
    """Ours, by itself and inside a program of the user's own, and those of the others."""
    layer, params = problem.layer, problem.params

    def start() -> Any:
        return layer.initial_carry(params, problem.xs.shape[:1])

    yield "step", Stepper(functools.partial(layer.step, params), jnp.asarray, start)
    yield "jit(step)", _jitted(layer.step, params, start)
    yield "flax.linen", _linen(problem)
    yield "flax.nnx", _nnx(problem)
    yield "torch", _torch(problem, torch_threads)


def _jitted(step: Callable, params: Any, start: Callable[[], Any]) -> Stepper:
    """The carry is donated: the new one is written over the old one."""
    compiled = jax.jit(step, donate_argnums=1)
    return Stepper(functools.partial(compiled, params), jnp.asarray, start)


def _linen(problem: Problem) -> Stepper:
    from flax import linen

    from rnnjax.interop import linen as interop

    (batch, _, size) = problem.xs.shape
    cell = {"lstm": linen.LSTMCell, "gru": linen.GRUCell}[problem.kind](size)
    params = {"params": _on_device(interop.export_weights(problem.kind, problem.params)["cell"])}
    return _jitted(
        cell.apply, params, lambda: cell.initialize_carry(jax.random.key(0), (batch, size))
    )


def _nnx(problem: Problem) -> Stepper:
    from flax import nnx

    from rnnjax.interop import nnx as interop

    batch, _, size = problem.xs.shape
    kind, make = {
        "lstm": ("optimized_lstm", nnx.OptimizedLSTMCell),
        "gru": ("gru", nnx.GRUCell),
    }[problem.kind]
    cell = make(size, size, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(cell, nnx.Param, ...)
    weights = _on_device(interop.export_weights(kind, problem.params)["cell"])
    nnx.replace_by_pure_dict(params, weights)

    def step(params: Any, carry: Any, x: Any) -> Any:
        return nnx.merge(graph, params, rest)(carry, x)

    return _jitted(step, params, lambda: cell.initialize_carry((batch, size), nnx.Rngs(0)))


def _torch(problem: Problem, threads: int) -> Stepper:
    import torch

    from rnnjax.interop import torch as interop

    batch, _, size = problem.xs.shape
    cell = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell}[problem.kind](size, size)
    exported = interop.export_weights(problem.kind, problem.params, cell=True)
    cell.load_state_dict({name: torch.tensor(np.asarray(a)) for name, a in exported.items()})

    torch.set_num_threads(threads)

    @torch.no_grad()
    def step(carry: Any, x: Any) -> tuple[Any, Any]:
        carry = cell(x, carry)
        return carry, carry[0] if problem.kind == "lstm" else carry

    def start() -> Any:
        zeros = torch.zeros(batch, size)
        return (zeros, zeros) if problem.kind == "lstm" else zeros

    return Stepper(step, torch.tensor, start)


def _on_device(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def outputs(stepper: Stepper, xs: np.ndarray) -> np.ndarray:
    """What it gives for all steps, one after the other, [B, T, H]."""
    carry, found = stepper.start(), []
    for t in range(xs.shape[1]):
        carry, y = stepper.step(carry, stepper.take(xs[:, t].copy()))
        found.append(np.asarray(y).copy())  # the buffers are written over
    return np.stack(found, axis=1)


def check(problem: Problem, entrants: dict[str, Stepper]) -> None:
    """Refuse to time what does not compute the same.

    Raises:
        AssertionError: a library gives other numbers, or steps have other bits than the stream.
    """
    expected = np.asarray(problem.layer.apply(problem.params, jnp.asarray(problem.xs))[1])
    for name, stepper in entrants.items():
        found = outputs(stepper, problem.xs)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)
        if name == "step":
            streamed = rnnjax.make_stream(problem.layer)(problem.params, jnp.asarray(problem.xs))[1]
            np.testing.assert_array_equal(found, np.asarray(streamed))


class Pauses:
    """Other work before every step, and a clock that stands still while it lasts."""

    def __init__(self, seconds: float, now: Clock = time.perf_counter) -> None:
        self.seconds, self.now = seconds, now
        self.passed = 0.0

    def clock(self) -> float:
        return self.now() - self.passed

    def wait(self) -> None:
        if not self.seconds:
            return
        began = self.now()
        # Waits without sleeping: a processor that slept would be slow when the step is timed.
        while self.now() < began + self.seconds:
            pass
        self.passed += self.now() - began


def goes_on(stepper: Stepper, x: np.ndarray, pauses: Pauses) -> Callable[[], Any]:
    """A call that takes the next step from the carry of the last one."""
    step, x, carry = stepper.step, stepper.take(x), stepper.start()

    def call() -> Any:
        nonlocal carry
        pauses.wait()
        carry, y = step(carry, x)
        return y

    return call


def measure(settings: Settings) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A table for each cell, size and batch, under its name."""
    for kind, size, batch in itertools.product(CELLS, settings.hidden_sizes, settings.batch_sizes):
        problem = make_problem(kind, size, batch)
        entrants = dict(steppers(problem, settings.torch_threads))
        check(problem, entrants)
        pauses, x = Pauses(settings.pause / 1e6), problem.xs[:, 0]
        timings = interleaved(
            {name: goes_on(stepper, x, pauses) for name, stepper in entrants.items()},
            rounds=settings.rounds,
            seconds=settings.milliseconds / 1e3,
            clock=pauses.clock,
        )
        yield f"{kind.upper()}, {size} units, batch {batch}", _rows(timings)


def _rows(timings: dict[str, Timing]) -> list[dict[str, str]]:
    """Microseconds of each, and how many times as long as ``jit(step)`` it takes."""
    ours = timings["jit(step)"]
    return [
        {
            "what": name,
            "µs": _shown(timing.spread, 1e6),
            "times jit(step)": _shown(ratio(timing, ours), 1, digits=2),
        }
        for name, timing in timings.items()
    ]


def _shown(spread: Spread, scale: float, digits: int = 1) -> str:
    median, least, most = (f"{value * scale:.{digits}f}" for value in spread)
    return f"{median} ({least}-{most})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    program = "python -m experiments.measurements.step_latency"
    settings = parse(Settings, program, arguments)

    def run() -> None:
        counts = dict.fromkeys(("rounds", "milliseconds", "torch_threads"), whole(1))
        sizes = dict.fromkeys(("hidden_sizes", "batch_sizes"), each(whole(1)))
        check_settings(settings, pause=whole(0), **counts, **sizes)
        if settings.dispatch == "synchronous":  # before JAX computes anything
            jax.config.update("jax_cpu_enable_async_dispatch", False)
        for name, rows in measure(settings):
            print(f"\n{name}")
            print_table(rows)
            sys.stdout.flush()

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
