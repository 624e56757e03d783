"""What a library enters a comparison with, and how the JAX ones are compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.throughput.problems import Problem
from rnnjax.benchmark import CompiledCall, compile_apart


class Running(NamedTuple):
    """A layer ready to be timed.

    Attributes:
        call: runs it once, its arrays on the device; a result of JAX need not be waited for.
        read: the outputs [B, T, O] in a result, or the gradient [B, T, D] of the inputs.
        compile_seconds: None where nothing is compiled.
        peak_bytes: of memory while it runs, where a compiler says so.
    """

    call: Callable[[], Any]
    read: Callable[[Any], np.ndarray]
    compile_seconds: float | None = None
    peak_bytes: int | None = None


class Entry(NamedTuple):
    """One way to run a problem: its name, what makes it ready, and seconds to pause after it."""

    name: str
    make: Callable[[], Running]
    pause: float = 0.0


class Refusal(NamedTuple):
    """What a library does not have, and why."""

    name: str
    reason: str


class Program(NamedTuple):
    """A layer of a JAX library.

    Attributes:
        apply: ``(params, xs, lengths) -> ys``, lengths None where all are T.
        params: its parameters, a tree of arrays.
        time_first: whether xs and ys are [T, B, ...]: the order that the library is quicker in.
        compiler_options: options of XLA by name.
    """

    apply: Callable[[Any, Any, Any], Any]
    params: Any
    time_first: bool = False
    compiler_options: dict[str, Any] | None = None


class Step(NamedTuple):
    """One step of a JAX library.

    Attributes:
        apply: ``(params, carry, x) -> (carry, y)``, for x of shape ``axes + (D,)``.
        params: its parameters.
        carry: the state before the step.
        axes: those before the features: batch, or batch and time.
    """

    apply: Callable[[Any, Any, Any], Any]
    params: Any
    carry: Any
    axes: tuple[int, ...] = (1,)


def compiled_entry(name: str, problem: Problem, make: Callable[[], Program | Step]) -> Entry:
    """An entry that is compiled by JAX."""

    def ready() -> Running:
        made = make()
        return _step(problem, made) if isinstance(made, Step) else _sequence(problem, made)

    return Entry(name, ready)


def one_entry(
    name: str, refusal: str | None, problem: Problem, make: Callable[[], Program | Step]
) -> Iterator[Entry | Refusal]:
    """All that a library enters which runs a problem in one way, or for a reason not at all."""
    yield Refusal(name, refusal) if refusal else compiled_entry(name, problem, make)


def _sequence(problem: Problem, program: Program) -> Running:
    def order(a: Any) -> Any:
        return np.swapaxes(a, 0, 1) if program.time_first else a

    given = (program.params, order(problem.xs), problem.lengths, order(problem.weights))
    params, xs, lengths, weights = jax.tree.map(_on_device, given)

    def loss(params: Any, xs: Any, lengths: Any, weights: Any) -> Any:
        return jnp.sum(program.apply(params, xs, lengths).astype(jnp.float32) * weights)

    function, arguments = program.apply, (params, xs, lengths)
    if problem.case.mode == "training":
        function, arguments = jax.value_and_grad(loss, (0, 1)), (*arguments, weights)
    compiled = compile_apart(function, *arguments, compiler_options=program.compiler_options)

    def read(result: Any) -> np.ndarray:
        found = result[1][1] if problem.case.mode == "training" else result
        return order(np.asarray(found, np.float32))

    return _running(compiled, arguments, read)


def _step(problem: Problem, step: Step) -> Running:
    x = problem.xs.reshape(*step.axes, -1)
    arguments = jax.tree.map(_on_device, (step.params, step.carry, x))
    compiled = compile_apart(step.apply, *arguments)

    def read(result: Any) -> np.ndarray:
        return np.asarray(result[1], np.float32).reshape(1, 1, -1)

    return _running(compiled, arguments, read)


def _running(compiled: CompiledCall, arguments: tuple, read: Callable) -> Running:
    peak = compiled.memory.total if compiled.memory else None
    _check_memory(peak)
    return Running(lambda: compiled.run(*arguments), read, compiled.compile_seconds, peak)


def _check_memory(peak: int | None) -> None:
    """Refuse before the system ends the process, which on Linux gets no error.

    Raises:
        MemoryError: the program needs more than there is.
    """
    if peak is None or jax.default_backend() != "cpu":
        return
    available = _available_bytes()
    if available is not None and peak > available:
        need, have = (number / 2**30 for number in (peak, available))
        raise MemoryError(f"needs {need:.1f} GiB, of which {have:.1f} are free")


def _available_bytes() -> int | None:
    path = Path("/proc/meminfo")
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return next((int(s.split()[1]) * 1024 for s in lines if s.startswith("MemAvailable")), None)


def _on_device(a: Any) -> Any:
    return jax.block_until_ready(jnp.array(a))


def reversed_in_time(xs: Any, lengths: Any) -> Any:
    """Every sequence of [T, B, ...] from its last valid step to its first, padding where it was.

    For libraries that leave this to their users.
    """
    if lengths is None:
        return jnp.flip(xs, 0)
    steps = jnp.arange(xs.shape[0])[:, None]
    places = jnp.where(steps < lengths[None], lengths[None] - 1 - steps, steps)
    return jnp.take_along_axis(xs, places[:, :, None], axis=0)
