"""Gradients of parameters that are read at every step, summed in at least float32.

The gradient of an array read in a loop is a sum over the steps in the dtype of that array. In
bfloat16 such a sum soon stands still: from some size on, what a step adds is rounded away. So the
loop is given the parameters in a wider dtype, and each step casts them back before it reads them.
The values do not change; the sums are as wide as those of the products outside the loop.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax._numerics import accumulation_dtype
from rnnjax.base import Cell, Params


def in_sum_dtypes(params: Params) -> Params:
    """``params`` in dtypes that sums may be taken in; no copy of what is wide already."""

    # Integers and flags among the parameters have no gradient; they stay what they are.
    def widen(leaf: Array) -> Array:
        return leaf.astype(accumulation_dtype(leaf.dtype)) if _is_float(leaf) else leaf

    return jax.tree.map(widen, jax.tree.map(jnp.asarray, params))


def in_dtypes_of(wide: Params, like: Params) -> Params:
    """Parameters in the dtypes that they have in ``like``."""
    return jax.tree.map(lambda a, b: a.astype(jnp.result_type(b)), wide, like)


def cell_reading_wide(cell: Cell, params: Params) -> Cell:
    """The cell for ``in_sum_dtypes(params)``: each step reads them in their own dtypes."""
    leaves = [leaf for leaf in jax.tree.leaves(params) if _is_float(leaf)]
    # The very same cell where nothing is narrow, so that a float32 model has no casts in its loop.
    if all(accumulation_dtype(leaf.dtype) == leaf.dtype for leaf in leaves):
        return cell
    # Dtypes alone: to keep the arrays here would make them constants of the compiled loop.
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((), leaf.dtype), params)

    def reads_narrow(function: Callable | None) -> Callable | None:
        if function is None:
            return None
        return lambda wide, *rest: function(in_dtypes_of(wide, like), *rest)

    # What runs inside the loop. ``project`` and ``recurrent`` run before it, where their gradients
    # are products over all steps, summed in float32 by themselves.
    return cell._replace(
        update=reads_narrow(cell.update),
        plain_step=reads_narrow(cell.plain_step),
        linear=reads_narrow(cell.linear),
        chunk=reads_narrow(cell.chunk),
    )


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
