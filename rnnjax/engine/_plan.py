"""How one call is run, chosen from what is known when it is compiled, and why.

Three things are chosen: the implementation, the chunks of time that are projected (and in reverse
mode recomputed) together, and how many steps one iteration of the compiled loop takes. What they
depend on are static shapes, the cell, and the platform of the devices the arrays lie on. None of
them changes a result by more than rounding.
"""

import math
from typing import Any, NamedTuple

import jax

from rnnjax._checks import check_size, python_scalar
from rnnjax.base import Cell, Params

# The implementations, each with the options beside its name that it reads.
IMPLEMENTATIONS = {
    "scan": ("remat", "scan_unroll"),
    "associative": (),
    "chunked": ("remat",),
    "persistent": ("remat",),
}
REMAT = ("never", "step", "sqrt")

# A block of 32 MiB and more is given back to the system by malloc of the GNU C library whenever it
# is freed, and every call pays for its pages anew, which can be a quarter of a training step. Such
# a step needs about five times the gate inputs of all steps if they are written out before the
# loop: of an LSTM 5.0 times, of a GRU 5.3, and with lengths 5.2 and 5.5, where the cotangents of
# the outputs come batch first (compiled by jax 0.10.2). An LSTM (64 sequences, 100 steps, 64 units)
# took 33 ms in a block of 32.5 MiB, and in chunks 18. Cells of one gate keep little but their
# outputs for their derivative, and chunks cost them a fifth to a third of their speed: they run in
# chunks only where these are run again, for the sake of memory, and there is much of it. So do
# those that attend: what they keep of the memory at every step is many times their gates and above
# the limit in any case, and the loop over chunks would hold it twice. A step of a translator (128
# pairs of 16 words, 256 units) took 463 ms with a tenth less memory, and 486 in chunks.
HOISTED_BYTES_ON_CPU = 32 * 2**20 * 2 // 11
HOISTED_BYTES_OF_ONE_GATE_ON_CPU = 24 * 2**20
CHUNK_BYTES_ON_CPU = 2 * 2**20
SHORTEST_CHUNK = 8

# From so many steps on the derivative keeps the first carry of each chunk only: there it is memory
# that runs out. With fewer it keeps the gates: running chunks again makes a step a sixth longer at
# 512 units and a quarter at 1024, next to nothing at 128.
RECOMPUTE_FROM_STEPS = 1024

# The gates of all steps come out of one product side by side. To cut them before the loop is to
# copy them, which takes up to a fifth of a forward call; a loop can read narrow ones as they lie.
# Forward, as a share of the time with copies, on 2 cores of an AMD EPYC, 27 November 2026:
#
#   (B, T, D, H)   16,50,64,32   64,50,64,32   32,80,64,64   32,100,96,96   32,50,192,192
#   LSTM                  0.93          0.85          0.91           1.04            1.05
#   GRU                   0.95          0.78          0.82           0.94            0.94
WIDEST_CUT_LATE_ON_CPU = 256

# A GPU is given the kernels of each step by the host, and the condition of the loop besides. With
# several steps an iteration the condition is paid once for all of them, and XLA joins the end of
# one step with the beginning of the next. Measured on an H200, microseconds a step:
#
#   steps an iteration                            1     4     8    16
#   LSTM bf16, B 64, T 128, D = H 256, forward   8.6   6.5     -   5.5
#   the same, training                          29.9  17.4     -  14.8
#   LSTM, B 32, T 512, D = H 512, training      27.9     -  15.4     -
#
# 16 gain little over 8 and take twice as long to compile (1 to 3.5 seconds in all). On a CPU more
# than one is slower: XLA repeats the work of one step in the fusions of the next (training 3 to 5
# times slower at 16). On a TPU it was not measured, so the loop stays as it is.
STEPS_PER_ITERATION = {"gpu": 8}

# Steps that a cell with ``chunk`` computes at once. The work in a chunk grows with the square of
# its length; the longer they are, the fewer are there, one after the other, and the fewer carries
# are kept. An mLSTM of 4 heads of 32 units, 16 sequences of 512 steps, took 94 ms with gradient on
# 2 cores in chunks of 32 as in those of 16, and 116 ms in those of 64.
STEPS_AT_ONCE = {"cpu": 32}
STEPS_AT_ONCE_ELSEWHERE = 64


class Plan(NamedTuple):
    """How one call of ``unroll`` runs.

    Attributes:
        implementation: "scan", which a persistent kernel may stand in for, "associative" or
            "chunked".
        chunk: steps that are projected, and in reverse mode recomputed, together, and for "chunked"
            computed together; None for all.
        recompute: whether the derivative keeps a chunk's first carry only.
        scan_unroll: steps one iteration of the compiled loop takes.
        reason: why these chunks, in words.
        packed: arrays that a loop without a derivative cuts out of one at each step; 0 for none.
    """

    implementation: str
    chunk: int | None
    recompute: bool
    scan_unroll: int
    reason: str
    packed: int = 0


class Request(NamedTuple):
    """What the caller of ``unroll`` asked for, checked; None leaves the choice to the plan."""

    implementation: str | None
    remat: int | str | None
    scan_unroll: int | None


class Size(NamedTuple):
    """How large a call is.

    Attributes:
        time: T; any other type than int where shapes are symbolic.
        gates: arrays that ``project`` gives.
        gate_bytes: their size for all steps of the whole batch.
        attends: whether every step reads a memory, the context of the sequence.
        packed: the size of the vector that ``project`` cuts into all it gives; 0 if it does not.
    """

    time: Any
    gates: int
    gate_bytes: Any
    attends: bool = False
    packed: int = 0


def check_request(cell: Cell, implementation: Any, remat: Any, scan_unroll: Any = None) -> Request:
    """Check the options that say how to run.

    Raises:
        ValueError: an unknown name or number, or a cell the implementation cannot run.
    """
    _check_implementation(cell, implementation)
    remat = python_scalar("remat", remat)
    steps = isinstance(remat, int) and not isinstance(remat, bool) and remat >= 1
    if remat is not None and not steps and remat not in REMAT:
        raise ValueError(
            f"remat must be None, {', '.join(map(repr, REMAT))} or a positive number of steps, "
            f"got {remat!r}"
        )
    if scan_unroll is not None:
        scan_unroll = check_size("scan_unroll", scan_unroll)
    for name, given in (("remat", remat), ("scan_unroll", scan_unroll)):
        if given is not None and name not in IMPLEMENTATIONS[implementation or "scan"]:
            unread = f"with implementation={implementation!r}, which does not read it"
            raise ValueError(f"{name} must be None {unread}, got {given!r}")
    if scan_unroll is not None:
        # No other implementation has a loop of such steps.
        implementation = "scan"
    return Request(implementation, remat, scan_unroll)


def with_choice(cell: Cell, request: Request, all_carries: bool, time: Any) -> Request:
    """The request with ``"chunked"`` in place of None, where the cell has it and it can run.

    Raises:
        ValueError: it was asked for, and cannot.
    """
    possible = not all_carries and isinstance(time, int)
    if request.implementation is None and cell.chunk is not None and possible:
        return request._replace(implementation="chunked")
    if request.implementation != "chunked" or possible:
        return request
    if all_carries:
        raise ValueError(
            "all_carries must be False with implementation='chunked', which has those between "
            "chunks alone, got True"
        )
    raise ValueError(f"implementation='chunked' needs a T known when compiled, got {time}")


def size_of(cell: Cell, params: Params, xs: Any, mapped: int = 1) -> Size:
    """The size of a call, from shapes alone.

    Args:
        cell: what is run.
        params: its parameters.
        xs: inputs [..., T, D] a leaf.
        mapped: how many such calls ``jax.vmap`` makes one.
    """
    shape = jax.tree.leaves(xs)[0].shape[:-1]
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[-1:], a.dtype), xs)
    project = jax.make_jaxpr(cell.project)(params, x).jaxpr
    pieces = [piece.aval for piece in project.outvars]
    step_bytes = sum(piece.size * piece.dtype.itemsize for piece in pieces)
    gate_bytes = mapped * math.prod(shape) * step_bytes
    # A plain step is differentiated with its loop; and in an ensemble nothing was gained.
    packed = _packed(project) if mapped == 1 and cell.plain_step is None else 0
    return Size(shape[-1], len(pieces), gate_bytes, cell.context is not None, packed)


def _packed(project: Any) -> int:
    """The size of the vector that ``project``, a jaxpr, cuts into all it gives, or 0."""
    last = project.eqns[-1] if project.eqns and len(project.outvars) > 1 else None
    if last is None or last.primitive.name != "split" or last.outvars != project.outvars:
        return 0
    vector = last.invars[0].aval
    return vector.size if vector.ndim == 1 else 0


def make_plan(request: Request, size: Size, platform: str) -> Plan:
    """The plan for a call on devices of a platform: "cpu", "gpu" or "tpu"."""
    # How often a loop of several steps an iteration runs, only a known T can tell.
    usual = STEPS_PER_ITERATION.get(platform, 1) if isinstance(size.time, int) else 1
    scan_unroll = _checked_unroll(request.scan_unroll, size.time) or usual
    if request.implementation == "associative":
        if not isinstance(size.time, int):
            raise ValueError(
                f"implementation='associative' needs a T known when compiled, got {size.time}"
            )
        return Plan("associative", None, False, 1, "the carry of every step at once")
    if request.implementation == "chunked":
        return _plan_at_once(request.remat, size, platform)
    chunk, recompute, reason = _chunks(request.remat, size, platform)
    cuts_late = platform == "cpu" and 0 < size.packed <= WIDEST_CUT_LATE_ON_CPU
    # With symbolic shapes XLA may not see what was cut; a step by itself has nothing to gain.
    known = isinstance(size.gate_bytes, int) and isinstance(size.time, int)
    packed = size.gates if cuts_late and known and size.time > 1 else 0
    return Plan("scan", chunk, recompute, scan_unroll, reason, packed)


def _checked_unroll(scan_unroll: int | None, time: Any) -> int | None:
    if scan_unroll is not None and scan_unroll > 1 and not isinstance(time, int):
        raise ValueError(f"scan_unroll={scan_unroll} needs a T known when compiled, got {time}")
    return scan_unroll


def _plan_at_once(remat: int | str | None, size: Size, platform: str) -> Plan:
    usual = STEPS_AT_ONCE.get(platform, STEPS_AT_ONCE_ELSEWHERE)
    named = {None: usual, "never": usual, "step": 1, "sqrt": math.isqrt(size.time)}
    asked = remat if isinstance(remat, int) else named[remat]
    chunk = max(1, min(asked, size.time))
    # What is computed in a chunk takes [K, K] numbers a head: they are computed again.
    kept = "kept" if remat == "never" else "run again by the derivative"
    reason = f"remat={remat!r}: {_steps(chunk)} at once, {kept}"
    return Plan("chunked", chunk, remat != "never", 1, reason)


def _chunks(remat: int | str | None, size: Size, platform: str) -> tuple[int | None, bool, str]:
    """Steps in a chunk, whether the derivative runs chunks again, and why."""
    if remat == "never":
        return None, False, "remat='never': every step's gates are kept"
    if remat is not None:
        if not isinstance(size.time, int):
            raise ValueError(f"remat={remat!r} needs a T known when compiled, got {size.time}")
        named = {"step": 1, "sqrt": max(1, math.isqrt(size.time))}
        # No longer than the sequence, and so it is said.
        chunk = named[remat] if isinstance(remat, str) else min(remat, max(1, size.time))
        return chunk, True, f"remat={remat!r}: chunks of {_steps(chunk)}"
    if not isinstance(size.gate_bytes, int):
        return None, False, "symbolic shapes: all steps projected at once"
    megabytes = f"{size.gate_bytes / 2**20:.1f} MiB of gate inputs"
    keeps_gates = size.gates > 1 and not size.attends
    most = HOISTED_BYTES_ON_CPU if keeps_gates else HOISTED_BYTES_OF_ONE_GATE_ON_CPU
    recompute = size.time >= RECOMPUTE_FROM_STEPS
    if platform == "cpu" and size.gate_bytes > most and (keeps_gates or recompute):
        chunk = _chunk_near(size.time, CHUNK_BYTES_ON_CPU * size.time // size.gate_bytes)
        kept = "gates kept"
        if recompute:
            kept = f"run again by the derivative from T = {RECOMPUTE_FROM_STEPS} on"
        limit = f"above {most / 2**20:.1f} MiB on cpu"
        return chunk, recompute, f"{megabytes}, {limit}: chunks of {_steps(chunk)}, {kept}"
    return None, False, f"{megabytes} on {platform}: all steps projected at once"


def _chunk_near(time: int, about: int) -> int:
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
    if not isinstance(implementation, str) or implementation not in IMPLEMENTATIONS:
        names = " or ".join(map(repr, IMPLEMENTATIONS))
        raise ValueError(f"implementation must be None, {names}, got {implementation!r}")
    if implementation == "associative" and cell.linear is None:
        raise ValueError(
            "implementation='associative' needs a cell that is linear in its carry; "
            "this one's field linear is None"
        )
    if implementation == "chunked" and cell.chunk is None:
        raise ValueError(
            "implementation='chunked' needs a cell that computes many steps at once; "
            "this one's field chunk is None"
        )
