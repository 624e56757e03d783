"""How fast the machine could be: its matrix products on a CPU, a model of the device on a GPU."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.running.packages import is_installed
from experiments.running.run_folder import processors
from experiments.throughput.cases import GATES, Case
from experiments.throughput.problems import Problem
from rnnjax.benchmark import interleaved

# At most so many of a product are timed: it is at its full speed by then, and the result of a
# larger one lies in memory that is new at every call.
ROWS = 1024


def product_seconds(problem: Problem, seconds: float = 0.05) -> float:
    """How long this machine's best matrix products take for the products of a problem.

    For every cell two products are timed, of all inputs with their weights and of all states with
    theirs, each at once as if no step waited for another one: by ``jnp.dot`` and, if it is there,
    ``torch.mm``, of which the quicker counts. A gradient takes three times as many operations,
    and is taken to take three times as long.
    """
    gates, total = GATES[problem.case.cell], 0.0
    for size, hidden in problem.rows:
        for inner in (size, hidden):
            rate = best_rate(
                min(problem.valid_tokens, ROWS), inner, gates * hidden, problem.case.dtype, seconds
            )
            total += 2 * problem.valid_tokens * inner * gates * hidden / rate
    return total * (3 if problem.case.mode == "training" else 1)


@functools.lru_cache(maxsize=256)
def best_rate(rows: int, inner: int, columns: int, dtype: str, seconds: float) -> float:
    """Operations a second of the quickest product [rows, inner] x [inner, columns], at its best."""
    calls: dict[str, Any] = {"jax": _jax_product(rows, inner, columns, dtype)}
    if is_installed("torch"):
        calls["torch"] = _torch_product(rows, inner, columns, dtype)
    pauses = {name: 0.1 for name in calls if name == "torch"}
    timings = interleaved(calls, rounds=5, seconds=seconds, pauses=pauses)
    return 2 * rows * inner * columns / min(t.spread.least for t in timings.values())


def _jax_product(rows: int, inner: int, columns: int, dtype: str) -> Any:
    left, right = jnp.ones((rows, inner), dtype), jnp.ones((inner, columns), dtype)
    product = jax.jit(jnp.dot).lower(left, right).compile()
    return lambda: product(left, right)


def _torch_product(rows: int, inner: int, columns: int, dtype: str) -> Any:
    import torch

    torch.set_num_threads(processors())
    left, right = (
        torch.ones(shape, dtype=getattr(torch, dtype))
        for shape in ((rows, inner), (inner, columns))
    )
    return lambda: torch.mm(left, right)


class Device(NamedTuple):
    """What a device can do at most.

    Attributes:
        flops: of dense matrix products a second, by dtype; float32 without tensor cores.
        bandwidth: bytes a second of its memory.
        latencies: (largest hidden size, seconds) of one step that waits for the one before it, in
            a kernel that keeps the recurrent weights on the chip.
    """

    flops: dict[str, float]
    bandwidth: float
    latencies: tuple[tuple[float, float], ...]


# A model of Hopper GPUs; of others only products and copies are known, which are measured.
HOPPER_LATENCIES = (
    *((64, 0.5e-6), (160, 0.7e-6), (440, 0.9e-6), (768, 1.3e-6)),
    (float("inf"), 2.0e-6),
)
UNKNOWN_LATENCIES = ((float("inf"), 0.0),)

# A step backwards waits one and a half times as long: it has two products in a row.
BACKWARD = 1.5


@functools.lru_cache(maxsize=8)
def measure_device(size: int = 8192, copied: int = 2**28, seconds: float = 0.05) -> Device:
    """The figures of the device in use: its products, as JAX takes them by default, and copies.

    Args:
        size: of the square matrices.
        copied: float32 numbers that are read and written.
        seconds: of a round.
    """
    block = jnp.ones((copied,), jnp.float32)
    copy = jax.jit(lambda a: a + 1).lower(block).compile()
    calls: dict[str, Any] = {"copy": lambda: copy(block)}
    calls |= {dtype: _jax_product(size, size, size, dtype) for dtype in ("bfloat16", "float32")}
    timings = interleaved(calls, rounds=5, seconds=seconds)
    least = {name: timing.spread.least for name, timing in timings.items()}
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    return Device(
        flops={dtype: 2 * size**3 / least[dtype] for dtype in ("bfloat16", "float32")},
        bandwidth=8 * copied / least["copy"],
        latencies=HOPPER_LATENCIES if capability == "9.0" else UNKNOWN_LATENCIES,
    )


def floor_seconds(case: Case, flops: float, device: Device) -> float:
    r"""The least time a device needs for one layer in one direction: a roofline with latency.

    .. math:: \max(F / \mathrm{peak},\; \mathrm{bytes} / \mathrm{bandwidth},\; T L)

    The bytes are those of inputs, outputs and what a gradient keeps, once written and once read:
    per token s(D + (3G + S + 1)H) forwards, with G gates and S = 1 where there is a second state,
    and s((4G + S + 2)H + 2D) backwards; in a forward run alone s(D + H), and the weights.

    Args:
        case: one layer.
        flops: of its matrix products, gradients included.
        device: the figures.
    """
    batch, steps, size, hidden = case.shape
    gates, state = GATES[case.cell], int(case.cell == "lstm")
    width = jnp.dtype(case.dtype).itemsize
    if case.mode == "training":
        ahead = size + (3 * gates + state + 1) * hidden
        back = (4 * gates + state + 2) * hidden + 2 * size
        moved = width * batch * steps * (ahead + back)
    else:
        moved = width * (batch * steps * (size + hidden) + gates * hidden * (size + hidden))
    latency = next(seconds for largest, seconds in device.latencies if hidden <= largest)
    turns = steps * (1 + BACKWARD if case.mode == "training" else 1)
    return max(flops / device.flops[case.dtype], moved / device.bandwidth, turns * latency)


def limits(problem: Problem, seconds: float) -> dict[str, float]:
    """What a run of this problem can be held against here, in seconds by name."""
    if jax.default_backend() == "cpu":
        return {"products": product_seconds(problem, seconds)}
    if problem.bidirectional:
        return {}
    return {"floor": floor_seconds(problem.case, problem.flops, measure_device())}
