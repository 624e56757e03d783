"""From the arrays of a call to what the loop over time reads: one batch axis, time first.

The rules about padding and segments are kept here and in the loop together: inputs at masked steps
are zeroed before the cell sees them, and the carry is held after it (a choice on one side alone
would still let NaN into a gradient). Noise is drawn before the loop, so that no step draws any.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_carry
from rnnjax._devices import may_merge_axes
from rnnjax._numerics import varying_like
from rnnjax.base import Carry, Cell, Key, Noise, NoiseShape, Params
from rnnjax.engine._arguments import check_noise, check_pieces
from rnnjax.engine._products import noisy
from rnnjax.engine._step import Inputs, Weights


class Call(NamedTuple):
    """The arrays of one call of ``unroll``, checked."""

    params: Params
    xs: Any  # [..., T, D], or a tree of such arrays
    lengths: Any  # [...]
    mask: Array | None  # [..., T]
    resets: Array | None  # [..., T]
    initial_carry: Carry
    key: Key | None
    context: Any  # [..., anything] a leaf

    def sizes(self) -> tuple[tuple[int, ...], int]:
        """The batch axes and T."""
        shape = jax.tree.leaves(self.xs)[0].shape
        return shape[:-2], shape[-2]


class StepInputs(NamedTuple):
    """What is read step by step before projection; time first, one batch axis."""

    xs: Any  # [T, B, D] a leaf
    valid: Array | None  # [T, B]
    resets: Array | None  # [T, B], in the order of the run: the carry returns before this step
    noise: tuple[Any, ...]


class Prepared(NamedTuple):
    """One call with one batch axis and time first, its noise drawn."""

    reset_carry: Carry  # the carry after a reset, [B, ...] a leaf
    carry: Carry  # the carry before the first step
    noise: Noise
    context: Any
    steps: StepInputs


def prepare(cell: Cell, reverse: bool, call: Call) -> Prepared:
    """Bring the arrays of a call into the form a loop over time takes."""
    (batch, time), params = call.sizes(), call.params
    count = math.prod(batch)
    valid = masking.real_steps(call.lengths, call.mask, time)
    resets = masking.resets_before(call.resets, valid, reverse)
    # Time first: ``lax.scan`` cuts its first axis, so a step is then one stretch of memory.
    # Padding is zeroed here, before the cell: a NaN that reached ``project`` would come back in the
    # gradient of its weights, though the value is thrown away (0 times NaN is NaN).
    valid, resets, xs = jax.tree.map(
        lambda a: jnp.swapaxes(_one_batch_axis(batch, a), 0, 1),
        (valid, resets, masking.zero_padding(valid, call.xs)),
    )
    # One carry a sequence, mapped over xs rather than broadcast so that it is sharded as they are.
    rows = jax.tree.leaves(xs)[0]
    reset_carry = jax.vmap(lambda _: cell.initial_carry(params), in_axes=1, axis_size=count)(rows)
    carry = reset_carry
    if call.initial_carry is not None:
        expected = _carry_shapes(cell, params, batch)
        given = check_carry("initial_carry", call.initial_carry, expected)
        carry = jax.tree.map(lambda a, b: a.reshape(b.shape), given, reset_carry)
    # Inside ``shard_map`` the carry of a scan must vary over the devices from the first step on, as
    # it does after it.
    reset_carry, carry = varying_like(call, (reset_carry, carry))
    noise = _draw_noise(cell, call, count, xs)
    # Noise of the input is the same at every step, so it multiplies the inputs here, once.
    if noise.inputs is not None:
        xs = jax.tree.map(lambda x, factor: noisy(x, factor[None]), xs, noise.inputs)
    context = _prepare_context(
        cell, params, jax.tree.map(lambda a: _one_batch_axis(batch, a), call.context)
    )
    return Prepared(reset_carry, carry, noise, context, StepInputs(xs, valid, resets, noise.steps))


def _carry_shapes(cell: Cell, params: Params, batch: tuple[int, ...]) -> Carry:
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((*batch, *a.shape), a.dtype),
        jax.eval_shape(cell.initial_carry, params),
    )


def _one_batch_axis(batch: tuple[int, ...], a: Array) -> Array:
    return a.reshape(math.prod(batch), *a.shape[len(batch) :])


def _draw_noise(cell: Cell, call: Call, count: int, xs: Any) -> Noise:
    if call.key is None or cell.noise is None:
        return Noise()
    sizes = jax.tree.map(lambda a: a.shape[-1], xs)
    shape = NoiseShape(count, call.sizes()[1], sizes)
    noise = cell.noise(call.key, call.params, shape)
    check_noise(cell, noise, shape)
    return noise


def _prepare_context(cell: Cell, params: Params, context: Any) -> Any:
    """What ``update`` reads of the constants of each sequence, made once a call."""
    if cell.context is None:
        return None
    return jax.vmap(cell.context, in_axes=(None, 0))(params, context)


def project(
    cell: Cell, params: Params, prepared: Prepared, steps: StepInputs
) -> tuple[Weights, Inputs]:
    """What a loop reads: the half of every step that needs no carry, computed for all at once."""
    noise = prepared.noise
    w_hh = cell.recurrent(params) if cell.recurrent else None
    if w_hh is not None and noise.recurrent is not None:
        # In the dtype of the noise, wider than bfloat16, so that its factor is not rounded twice.
        w_hh = (w_hh.astype(noise.recurrent.dtype) * noise.recurrent).astype(w_hh.dtype)
    weights = Weights(w_hh, params, prepared.reset_carry, noise.hidden, prepared.context)
    x_projs = _project_all(cell, params, steps.xs)
    check_pieces(weights.w_hh, weights.reset_carry, x_projs)
    return weights, Inputs((*x_projs, *steps.noise), steps.valid, steps.resets)


def _project_all(cell: Cell, params: Params, xs: Any) -> tuple[Any, ...]:
    """``project`` of all inputs [T, B, ...], as one matrix of rows where that may be."""
    # [T, B, D] as [T*B, D]: one product of many rows, which a library of matrices runs at full
    # speed. Not where the two axes are divided over devices: there a reshape would move the data.
    project = jax.vmap(cell.project, in_axes=(None, 0))
    if not may_merge_axes(xs):
        return jax.vmap(project, in_axes=(None, 0))(params, xs)
    steps = jax.tree.leaves(xs)[0].shape[:2]
    rows = jax.tree.map(lambda a: a.reshape(math.prod(steps), *a.shape[2:]), xs)
    return jax.tree.map(lambda a: a.reshape(*steps, *a.shape[1:]), project(params, rows))


def batch_first(batch: tuple[int, ...], ys: Any) -> Any:
    """Leaves [T, B, ...] as [..., T, ...], with the batch axes the caller gave."""
    return jax.tree.map(
        lambda a: jnp.swapaxes(a, 0, 1).reshape(*batch, a.shape[0], *a.shape[2:]), ys
    )


def unflatten(batch: tuple[int, ...], carry: Carry) -> Carry:
    """Leaves [B, ...] with the batch axes the caller gave."""
    return jax.tree.map(lambda a: a.reshape(*batch, *a.shape[1:]), carry)
