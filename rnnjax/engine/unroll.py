"""A cell over a whole sequence, or over any number of them at once."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from rnnjax import _checks, masking
from rnnjax._checks import check_carry, check_flag, check_floating, check_key, check_size
from rnnjax._numerics import may_merge_axes, varying_like
from rnnjax.base import Carry, Cell, Key, Noise, NoiseShape, Params
from rnnjax.engine import _associative, _loop
from rnnjax.engine._accumulation import cell_reading_wide, in_dtypes_of, in_sum_dtypes
from rnnjax.engine._loop import Inputs, Loop, Weights, gate_widths
from rnnjax.engine._plan import Plan, Request, check_request, make_plan


def unroll(
    cell: Cell,
    params: Params,
    xs: Array,
    lengths: Any = None,
    *,
    mask: Any = None,
    resets: Any = None,
    initial_carry: Carry = None,
    reverse: bool = False,
    key: Key | None = None,
    all_carries: bool = False,
    include_initial: bool = False,
    remat: int | str | None = None,
    implementation: str | None = None,
    scan_unroll: int = 1,
) -> tuple[Carry, Any]:
    r"""Run a cell over time, exactly as if each sequence of the batch were run alone.

    .. math:: s_t, y_t = \mathrm{cell}(s_{t-1}, x_t)

    What holds for every cell, in both directions, with any of the options together:

    - Outputs at real steps, the final carry and every gradient are those of the sequence run by
      itself, without its padding. Masked steps hold the carry and emit exact zeros.
    - Padding is never read: NaN or Inf there changes nothing, and its gradient is exactly zero.
    - A sequence of length 0 returns its initial carry. T = 0 and an empty batch work.
    - ``reverse=True`` runs from the last real step down to the first; outputs stay in the order
      of time, and the final carry is the one after the first real step.
    - The carry and the outputs are at least float32, whatever the dtype of the parameters.

    Args:
        cell: what to run.
        params: its parameters. Products are taken in their dtype, summed in at least float32.
        xs: inputs [..., T, D]: one sequence, or any number of batch axes.
        lengths: valid steps [...] of each sequence, integers in [0, T]; None means all. Where
            their values are traced they cannot be checked and are clipped to [0, T].
        mask: bool [..., T], True where a step is real; may be False anywhere. Together with
            ``lengths``, a step is real where both say so.
        resets: bool [..., T], True where a new segment starts: the carry returns to
            ``cell.initial_carry(params)`` before that step. The same array means the same
            segments in reverse: there the carry returns before a step whose next real step starts
            a segment. A flag on a masked step is not read.
        initial_carry: the carry before the first step, leaves [..., H]; by default
            ``cell.initial_carry(params)`` for every sequence.
        reverse: run backwards in time.
        key: the source of the cell's noise, for training; without one there is none. The same key
            gives the same noise.
        all_carries: give ``(carry, (ys, carries))``, with ``carries`` [..., T, H] a leaf: the
            carry after every step, held through masked ones.
        include_initial: ``carries`` is [..., T + 1, H], with the carry before the first step taken
            at the end it belongs to: index 0, or T in reverse. Needs ``all_carries``.
        remat: what reverse mode keeps. ``"never"``: the gates of every step. ``"step"``,
            ``"sqrt"`` or a number k: the carry before every step, every floor(sqrt(T))-th or
            every k-th step, and the steps between are run again. None chooses; see
            :func:`explain`. Values and gradients are the same.
        implementation: ``"scan"``, step after step; ``"associative"``, in parallel over time, for
            a cell that is linear in its carry (:class:`rnnjax.Cell`, ``linear``). None chooses.
        scan_unroll: steps per iteration of the compiled loop; the result is the same.

    Returns:
        ``(carry, ys)``: the carry after the last step taken, leaves [..., H], and the outputs
        [..., T, O].

    Raises:
        ValueError: an argument of wrong shape, dtype or value, named in the message.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.lstm(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs = jax.random.normal(jax.random.key(1), (2, 5, 3))
        >>> carry, ys = rnnjax.unroll(cell, params, xs, lengths=[5, 2])
        >>> ys.shape, carry.h.shape
        ((2, 5, 4), (2, 4))
        >>> bool(jnp.all(carry.h[1] == ys[1, 1])), bool(jnp.all(ys[1, 2:] == 0))
        (True, True)
    """
    _check_cell(cell)
    xs = _check_xs(xs)
    batch, time = xs.shape[:-2], xs.shape[-2]
    valid = masking.valid_steps(lengths, mask, batch, time)
    if resets is not None:
        resets = masking.check_flags("resets", resets, batch, time)
    reverse = check_flag("reverse", reverse)
    all_carries = check_flag("all_carries", all_carries)
    include_initial = check_flag("include_initial", include_initial)
    if include_initial and not all_carries:
        raise ValueError("include_initial=True needs all_carries=True")
    request = check_request(cell, implementation, remat)
    loop = Loop(reverse, check_size("scan_unroll", scan_unroll), all_carries)
    key = None if key is None else check_key(key)
    initial_carry = jax.tree.map(_as_carry, initial_carry)
    call = Call(params, xs, valid, resets, initial_carry, None if cell.noise is None else key)
    for name in ("params", "initial_carry"):
        _checks.require_finite(name, getattr(call, name))
    _checks.require_finite("xs", xs, valid)
    try:
        carry, ys = _unroll(cell, loop, request, include_initial, call)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        _check_params(cell, params, xs.shape[-1])
        raise
    _checks.require_finite("the outputs", ys)
    _checks.require_finite("the final carry", carry)
    return carry, ys


def explain(
    cell: Cell, params: Params, xs: Any, *, implementation: str | None = None, remat: Any = None
) -> str:
    """How :func:`unroll` would run these arguments here, and why, in a few lines of text.

    Args:
        cell: what would be run.
        params: its parameters, or their shapes.
        xs: inputs [..., T, D], or their shape.
        implementation: as for ``unroll``.
        remat: as for ``unroll``.

    Raises:
        ValueError: what ``unroll`` would raise for these.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.lstm(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> print(rnnjax.explain(cell, params, jnp.ones((2, 5, 3)), remat=2))
        implementation: scan over time
        derivative: one rule for all cells; the weight gradient is one product after the loop
        memory: remat=2: chunks of 2 steps
    """
    _check_cell(cell)
    plan = _plan(cell, check_request(cell, implementation, remat), params, xs)
    if plan.implementation == "associative":
        how = "associative scan, parallel over time"
        derivative = "a linear recurrence in the other direction, in parallel over time too"
    else:
        how = "scan over time"
        derivative = (
            "one rule for all cells; the weight gradient is one product after the loop"
            if cell.plain_step is None
            else "ordinary autodiff of the cell's step, which is slower"
        )
    return f"implementation: {how}\nderivative: {derivative}\nmemory: {plan.reason}"


def _plan(cell: Cell, request: Request, params: Params, xs: Any) -> Plan:
    x = jax.ShapeDtypeStruct(xs.shape[-1:], xs.dtype)
    x_projs = jax.tree.leaves(jax.eval_shape(cell.project, params, x))
    steps = math.prod(xs.shape[:-1])
    gate_bytes = steps * sum(x_proj.size * x_proj.dtype.itemsize for x_proj in x_projs)
    return make_plan(request, xs.shape[-2], len(x_projs), gate_bytes, jax.default_backend())


class Call(NamedTuple):
    """The arrays of one call of ``unroll``, checked."""

    params: Params
    xs: Array  # [..., T, D]
    valid: Array | None  # [..., T]
    resets: Array | None  # [..., T]
    initial_carry: Carry
    key: Key | None


class Steps(NamedTuple):
    """What is read step by step before projection; time first, one batch axis."""

    xs: Array  # [T, B, D]
    valid: Array | None
    resets: Array | None  # as the loop takes them: before this step in the order of the run
    noise: tuple[Any, ...]


class Prepared(NamedTuple):
    """One call with one batch axis and time first, its noise drawn."""

    reset_carry: Carry  # the carry after a reset, [B, ...] a leaf
    carry: Carry  # the carry before the first step
    noise: Noise
    steps: Steps


def prepare(cell: Cell, reverse: bool, call: Call) -> Prepared:
    """Bring the arrays of a call into the form a loop over time takes."""
    batch, time = call.xs.shape[:-2], call.xs.shape[-2]
    count, params = math.prod(batch), call.params

    def time_first(a: Array) -> Array:
        return jnp.swapaxes(a.reshape(count, *a.shape[len(batch) :]), 0, 1)

    resets = masking.resets_before(call.resets, call.valid, reverse)
    xs = time_first(masking.zero_padding(call.valid, call.xs))
    # One carry a sequence, mapped over xs rather than broadcast so that it is sharded as they are.
    reset_carry = jax.vmap(lambda _: cell.initial_carry(params), in_axes=1, axis_size=count)(xs)
    carry = reset_carry
    if call.initial_carry is not None:
        given = check_carry("initial_carry", call.initial_carry, _carry_shapes(cell, params, batch))
        carry = jax.tree.map(lambda a, b: a.reshape(b.shape), given, reset_carry)
    reset_carry, carry = varying_like(call, (reset_carry, carry))
    noise = Noise()
    if call.key is not None:
        assert cell.noise is not None
        noise = cell.noise(call.key, params, NoiseShape(count, time, xs.shape[-1]))
        _check_noise(cell, noise)
    if noise.inputs is not None:
        xs = xs * noise.inputs[None]
    valid, resets = jax.tree.map(time_first, (call.valid, resets))
    return Prepared(reset_carry, carry, noise, Steps(xs, valid, resets, noise.steps))


def _carry_shapes(cell: Cell, params: Params, batch: tuple[int, ...]) -> Carry:
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((*batch, *a.shape), a.dtype),
        jax.eval_shape(cell.initial_carry, params),
    )


def projected(
    cell: Cell, params: Params, reset_carry: Carry, noise: Noise, steps: Steps
) -> tuple[Weights, Inputs]:
    """What a loop reads: the half of every step that needs no carry, computed for all at once."""
    w_hh = cell.recurrent(params) if cell.recurrent else None
    if w_hh is not None and noise.recurrent is not None:
        # In the dtype of the noise, wider than bfloat16, so that its factor is not rounded twice.
        w_hh = (w_hh.astype(noise.recurrent.dtype) * noise.recurrent).astype(w_hh.dtype)
    weights, x_projs = (
        Weights(w_hh, params, reset_carry, noise.hidden),
        _project_all(cell, params, steps.xs),
    )
    _check_pieces(weights, x_projs)
    return weights, Inputs((*x_projs, *steps.noise), steps.valid, steps.resets)


def _project_all(cell: Cell, params: Params, xs: Array) -> tuple[Any, ...]:
    """``project`` of all inputs [T, B, ...]."""
    project = jax.vmap(cell.project, in_axes=(None, 0))
    if not may_merge_axes():
        return jax.vmap(project, in_axes=(None, 0))(params, xs)
    steps = xs.shape[:2]
    x_projs = project(params, xs.reshape(math.prod(steps), *xs.shape[2:]))
    return jax.tree.map(lambda a: a.reshape(*steps, *a.shape[1:]), x_projs)


def batch_first(batch: tuple[int, ...], ys: Any) -> Any:
    """Leaves [T, B, ...] as [..., T, ...], with the batch axes the caller gave."""
    return jax.tree.map(
        lambda a: jnp.swapaxes(a, 0, 1).reshape(*batch, a.shape[0], *a.shape[2:]), ys
    )


def unflatten(batch: tuple[int, ...], carry: Carry) -> Carry:
    """Leaves [B, ...] with the batch axes the caller gave."""
    return jax.tree.map(lambda a: a.reshape(*batch, *a.shape[1:]), carry)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _unroll(
    cell: Cell, loop: Loop, request: Request, include_initial: bool, call: Call
) -> tuple[Carry, Any]:
    batch = call.xs.shape[:-2]
    plan = _plan(cell, request, call.params, call.xs)
    prepared = prepare(cell, loop.reverse, call)
    final, ys = _run_plan(cell, loop, plan, call.params, prepared)
    if include_initial:
        ys = (ys[0], _with_initial(loop, prepared.carry, ys[1]))
    return unflatten(batch, final), batch_first(batch, ys)


def _run_plan(
    cell: Cell, loop: Loop, plan: Plan, params: Params, prepared: Prepared
) -> tuple[Carry, Any]:
    run = _associative.run if plan.implementation == "associative" else _loop.run
    inner, wide = cell_reading_wide(cell, params), in_sum_dtypes(params)

    def some_steps(
        wide: Params, reset_carry: Carry, noise: Noise, carry: Carry, some: Steps
    ) -> Any:
        weights, inputs = projected(cell, in_dtypes_of(wide, params), reset_carry, noise, some)
        return run(inner, loop, weights._replace(params=wide), carry, inputs)

    if plan.recompute:
        some_steps = jax.checkpoint(some_steps, prevent_cse=False)
    reset_carry, carry, noise, steps = prepared
    from_carry = functools.partial(some_steps, wide, reset_carry, noise._replace(steps=()))
    if plan.chunk is None or plan.chunk >= steps.xs.shape[0]:
        return from_carry(carry, steps)
    return _in_chunks(from_carry, loop.reverse, plan.chunk, carry, steps)


def _in_chunks(
    some_steps: Callable, reverse: bool, chunk: int, carry: Carry, steps: Steps
) -> tuple[Carry, Any]:
    """Run ``chunk`` steps at a time, and the steps left over at the end of time by themselves."""
    time = steps.xs.shape[0]
    whole = time - time % chunk
    chunks = jax.tree.map(lambda a: a[:whole].reshape(-1, chunk, *a.shape[1:]), steps)
    rest = jax.tree.map(lambda a: a[whole:], steps)
    results = []
    if reverse and whole < time:
        carry, ys = some_steps(carry, rest)
        results.append(ys)
    if whole:
        carry, ys = lax.scan(some_steps, carry, chunks, reverse=reverse)
        results.append(jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), ys))
    if not reverse and whole < time:
        carry, ys = some_steps(carry, rest)
        results.append(ys)
    if reverse:
        results.reverse()
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *results)


def _with_initial(loop: Loop, initial: Carry, carries: Carry) -> Carry:
    def join(start: Array, rest: Array) -> Array:
        parts = [rest, start[None]] if loop.reverse else [start[None], rest]
        return jnp.concatenate(parts)

    return jax.tree.map(join, initial, carries)


def _check_cell(cell: Any) -> None:
    if not isinstance(cell, Cell):
        raise ValueError(f"cell must be a rnnjax.Cell, got {type(cell).__name__}")
    split = cell.update is not None and cell.hidden is not None
    if (cell.plain_step is not None) == split:
        raise ValueError(
            "a cell must give either hidden and update (with recurrent), or plain_step"
        )


def _check_pieces(weights: Weights, x_projs: Any) -> None:
    if not isinstance(x_projs, tuple):
        raise ValueError(f"a cell's project must give a tuple, got {type(x_projs).__name__}")
    gate_widths(weights.w_hh, x_projs)
    for leaf in jax.tree.leaves(weights.reset_carry):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(
                f"a cell's carry must be of floating or complex dtype, got {leaf.dtype}"
            )


def _check_noise(cell: Cell, noise: Noise) -> None:
    for name in ("hidden", "recurrent"):
        if getattr(noise, name) is not None and cell.recurrent is None:
            raise ValueError(
                f"a cell's noise may not have {name} where the engine multiplies no recurrent "
                "weights: the cell gives plain_step, or no recurrent"
            )


def _check_params(cell: Cell, params: Any, input_size: int) -> None:
    """Refuse parameters that ``cell.init`` would not make, be the size of the inputs as it may.

    Only where a run has failed: a cell may well run with others.
    """
    try:
        made = jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size))
    except (TypeError, ValueError):  # not of this size; what the run said of it is clearer
        return
    if jax.tree.structure(params) != jax.tree.structure(made):
        raise ValueError(
            f"params must have the structure {jax.tree.structure(made)}, as cell.init gives, "
            f"got {jax.tree.structure(params)}"
        )
    for (path, expected), leaf in zip(
        jax.tree.leaves_with_path(made), jax.tree.leaves(params), strict=True
    ):
        name, given = f"params{jax.tree_util.keystr(path)}", masking.as_array("params", leaf)
        # As many rows as the inputs have features: told by the product that does not fit.
        rows = expected.shape[:1] == (input_size,) and given.ndim == len(expected.shape)
        if given.shape[rows:] != expected.shape[rows:]:
            raise ValueError(f"{name} must have shape {expected.shape}, got shape {given.shape}")
        if given.dtype.kind in "biu" and jnp.issubdtype(expected.dtype, jnp.inexact):
            raise ValueError(f"{name} must be of dtype {expected.dtype}, got {given.dtype}")


def _as_carry(leaf: Any) -> Any:
    return masking.as_array("initial_carry", leaf)


def _check_xs(xs: Any) -> Array:
    xs = jnp.asarray(masking.as_array("xs", xs))
    if xs.ndim < 2:
        raise ValueError(f"xs must have shape [..., T, D], got shape {xs.shape}")
    check_floating("xs", xs)
    return xs
