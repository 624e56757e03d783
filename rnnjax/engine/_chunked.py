"""Many steps at once, for a cell that says itself how to compute them: the field ``chunk``."""

from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.base import Carry, Cell
from rnnjax.engine._loop import run_scan
from rnnjax.engine._step import Inputs, Loop, Weights
from rnnjax.masking import zero_padding


def run_chunk(
    cell: Cell, loop: Loop, weights: Weights, carry: Carry, inputs: Inputs
) -> tuple[Carry, Any]:
    """What ``run_scan`` gives, all steps of ``inputs`` computed at once by ``cell.chunk``."""
    assert cell.chunk is not None
    if not jax.tree.leaves(inputs.x_projs)[0].shape[0]:  # of no steps a cell need know nothing
        return run_scan(cell, loop, weights, carry, inputs)
    taken = _in_order(loop, inputs)
    batched = jax.vmap(cell.chunk, (None, 0, 0, 1, 1, 1), (0, 1))
    carry, ys = batched(weights.params, carry, weights.reset_carry, *taken)
    return carry, zero_padding(inputs.valid, _in_order(loop, ys))


def _in_order(loop: Loop, tree: Any) -> Any:
    """Leaves [T, ...] from the order of time into that of the run, and back."""
    return jax.tree.map(lambda a: jnp.flip(a, 0), tree) if loop.reverse else tree
