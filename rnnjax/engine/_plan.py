"""Which way a sequence is run, chosen from static shapes alone, and why."""

import math
from typing import Any, NamedTuple

import numpy as np

from rnnjax.base import Cell

IMPLEMENTATIONS = ("scan", "associative")
REMAT = ("never", "step", "sqrt")

# A block of 32 MiB and more is given back to the system by malloc of the GNU C library whenever it
# is freed, and every call pays for its pages anew, which can be a quarter of a training step. Such
# a step needs five times the gate inputs of all steps if they are written out before the loop. In
# chunks it needs less, the less the shorter they are. Cells of one gate keep little but their
# outputs for their derivative, and chunks cost them a fifth to a third of their speed: they run in
# chunks only where these are run again, for the sake of memory, and there is much of it.
HOISTED_BYTES_ON_CPU = 32 * 2**20 // 5
HOISTED_BYTES_OF_ONE_GATE_ON_CPU = 24 * 2**20
CHUNK_BYTES_ON_CPU = 2 * 2**20
SHORTEST_CHUNK = 8

# From so many steps on the derivative keeps the first carry of each chunk only: there it is memory
# that runs out. With fewer it keeps the gates: running chunks again makes a step a sixth longer at
# 512 units and a quarter at 1024, next to nothing at 128.
RECOMPUTE_FROM_STEPS = 1024


class Plan(NamedTuple):
    """How one call of ``unroll`` runs.

    Attributes:
        implementation: "scan" or "associative".
        chunk: steps that are projected, and in reverse mode recomputed, together; None for all.
        recompute: whether the derivative keeps a chunk's first carry only.
        reason: why, in words.
    """

    implementation: str
    chunk: int | None
    recompute: bool
    reason: str


class Request(NamedTuple):
    """What the caller of ``unroll`` asked for, checked."""

    implementation: str | None
    remat: int | str | None


def check_request(cell: Cell, implementation: Any, remat: Any) -> Request:
    """Check what the caller asked for.

    Raises:
        ValueError: an unknown name or ``remat``, or a cell the implementation cannot run.
    """
    _check_implementation(cell, implementation)
    remat = int(remat) if isinstance(remat, np.integer) else remat
    steps = isinstance(remat, int) and not isinstance(remat, bool) and remat >= 1
    if remat is not None and not steps and remat not in REMAT:
        raise ValueError(
            f"remat must be None, {', '.join(map(repr, REMAT))} or a positive number of steps, "
            f"got {remat!r}"
        )
    if implementation == "associative" and remat is not None:
        raise ValueError(f"remat is for a loop over time; associative has none, got {remat!r}")
    return Request(implementation, remat)


def make_plan(request: Request, time: Any, gates: int, gate_bytes: Any, platform: str) -> Plan:
    """The plan for a call.

    Args:
        request: what the caller asked for.
        time: steps.
        gates: arrays that ``project`` gives.
        gate_bytes: their size for all steps of the whole batch; any other type than int where
            shapes are symbolic.
        platform: "cpu", "gpu" or "tpu".
    """
    if request.implementation == "associative":
        return Plan("associative", None, False, "the carry of every step at once")
    if request.remat == "never":
        return Plan("scan", None, False, "remat='never': every step's gates are kept")
    if request.remat is not None:
        if not isinstance(time, int):
            raise ValueError(f"remat={request.remat!r} needs a T known when compiled, got {time}")
        named = {"step": 1, "sqrt": max(1, math.isqrt(time))}
        chunk = named[request.remat] if isinstance(request.remat, str) else request.remat
        return Plan("scan", chunk, True, f"remat={request.remat!r}: chunks of {_steps(chunk)}")
    if not isinstance(gate_bytes, int):
        return Plan("scan", None, False, "symbolic shapes: all steps projected at once")
    megabytes = f"{gate_bytes / 2**20:.1f} MiB of gate inputs"
    most = HOISTED_BYTES_ON_CPU if gates > 1 else HOISTED_BYTES_OF_ONE_GATE_ON_CPU
    recompute = time >= RECOMPUTE_FROM_STEPS
    if platform == "cpu" and gate_bytes > most and (gates > 1 or recompute):
        chunk = _chunk(time, CHUNK_BYTES_ON_CPU * time // gate_bytes)
        limit = f"above {most / 2**20:.1f} MiB on cpu"
        kept = (
            f"run again by the derivative from T = {RECOMPUTE_FROM_STEPS} on"
            if recompute
            else "gates kept"
        )
        reason = f"{megabytes}, {limit}: chunks of {_steps(chunk)}, {kept}"
        return Plan("scan", chunk, recompute, reason)
    return Plan("scan", None, False, f"{megabytes} on {platform}: all steps projected at once")


def _chunk(time: int, about: int) -> int:
    """A length of chunks near ``about``, one that leaves no steps over if there is such a one.

    Steps left over are a loop of their own, which takes memory and compiling.
    """
    about = max(SHORTEST_CHUNK, about)
    even = [k for k in range(SHORTEST_CHUNK, 2 * about + 1) if time % k == 0]
    return min(even, key=lambda k: abs(k - about), default=about)


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"


def _check_implementation(cell: Cell, implementation: Any) -> None:
    if implementation is None:
        return
    if implementation not in IMPLEMENTATIONS:
        names = " or ".join(map(repr, IMPLEMENTATIONS))
        raise ValueError(f"implementation must be None, {names}, got {implementation!r}")
    if implementation == "associative" and cell.linear is None:
        raise ValueError(
            "implementation='associative' needs a cell that is linear in its carry; "
            "this one's field linear is None"
        )
