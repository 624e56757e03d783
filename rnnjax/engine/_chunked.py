"""Many steps at once, for a cell that says itself how to compute them: the field ``chunk``."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from rnnjax.base import Carry, Cell
from rnnjax.engine._loop import run_scan
from rnnjax.engine._step import Inputs, Loop, Weights
from rnnjax.masking import select, zero_padding


def run_chunk(
    cell: Cell, loop: Loop, weights: Weights, carry: Carry, inputs: Inputs
) -> tuple[Carry, Any]:
    """What ``run_scan`` gives, all steps of ``inputs`` computed at once by ``cell.chunk``."""
    assert cell.chunk is not None
    if not jax.tree.leaves(inputs.x_projs)[0].shape[0]:  # of no steps a cell need know nothing
        return run_scan(cell, loop, weights, carry, inputs)
    taken = _in_order(loop, inputs)
    # In a product over all steps, NaN or Inf of one would reach the others, those before it too; of
    # the first carry, those of the segments behind its own.
    spoilt = ~_all_finite(taken.x_projs)
    taken = taken._replace(x_projs=zero_padding(~spoilt, taken.x_projs))
    start, lost = carry, None
    if taken.resets is not None:
        lost = _lost(carry, weights.reset_carry)
        start = select(~lost, carry, weights.reset_carry)
    batched = jax.vmap(cell.chunk, (None, 0, 0, 1, 1, 1), (0, 1))
    final, ys = batched(weights.params, start, weights.reset_carry, *taken)
    spoilt = _from_there_on(spoilt, lost, taken.resets)
    ys, final = _spoil(spoilt, ys), _spoil(spoilt[-1], final)
    if lost is not None and taken.valid is not None:
        final = select(taken.valid.any(0), final, carry)
    return final, zero_padding(inputs.valid, _in_order(loop, ys))


def _in_order(loop: Loop, tree: Any) -> Any:
    """Leaves [T, ...] from the order of time into that of the run, and back."""
    return jax.tree.map(lambda a: jnp.flip(a, 0), tree) if loop.reverse else tree


def _all_finite(x_projs: Any) -> Array:
    """Whether all that a step reads is finite, [T, B]."""
    leaves = [jnp.isfinite(a).all(tuple(range(2, a.ndim))) for a in jax.tree.leaves(x_projs)]
    return jnp.stack(leaves).all(0)


def _lost(carry: Carry, reset_carry: Carry) -> Array:
    """Whether a row's carry is not finite, [B]; numbers that no carry begins with finite do not
    count."""
    not_finite = jax.tree.map(lambda a, b: ~jnp.isfinite(a) & jnp.isfinite(b), carry, reset_carry)
    return jnp.stack([a.any(tuple(range(1, a.ndim))) for a in jax.tree.leaves(not_finite)]).any(0)


def _from_there_on(flags: Array, lost: Array | None, resets: Array | None) -> Array:
    """``flags`` [T, B], True also at all later steps of the segment; at all steps of the first one
    in rows that are ``lost``."""
    count = jnp.cumsum(flags, axis=0, dtype=jnp.int32)
    if lost is None or resets is None:
        return count > 0
    count = count + lost[None].astype(count.dtype)
    before_segment = jnp.where(resets, count - flags.astype(count.dtype), 0)
    return count > lax.cummax(before_segment, axis=0)


def _spoil(flags: Array, tree: Any) -> Any:
    """``tree`` with NaN where the flags are True.

    Computed and not written down: who has JAX stop at the first NaN (``jax_debug_nans``) shall not
    be stopped by one that is never taken.
    """

    def spoilt(a: Array) -> Array:
        mark = jnp.zeros_like(flags, a.dtype) / (~flags).astype(a.dtype)
        return jnp.broadcast_to(mark.reshape(mark.shape + (1,) * (a.ndim - mark.ndim)), a.shape)

    return select(~flags, tree, jax.tree.map(spoilt, tree))
