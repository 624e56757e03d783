"""Vectors that ``update`` reads, as constants of every row, where rows lie on several devices.

The gradient of a parameter is a sum over all rows. Inside the loop over time that is a sum over the
devices, too, so they would wait for one another in every step. As a constant of each row a vector
has a gradient in each row, and the sum over rows, of all steps at once, is taken after the loop. A
matrix that ``update`` reads would be too large that way, and is summed in every step.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rnnjax.base import Cell
from rnnjax.engine._step import Weights, context_of
from rnnjax.engine._usage import Subset


def vectors_as_row_constants(cell: Cell, weights: Weights, rows: int) -> tuple[Cell, Weights]:
    """The same cell and weights, ``update`` reading its vectors of parameters from the context."""
    assert cell.update is not None
    inner, leaves = cell.update, jax.tree.leaves(weights.params)
    # Up to one axis: a bias or a peephole of H numbers becomes B x H, no more than one carry.
    vectors = Subset(tuple(leaf.ndim <= 1 for leaf in leaves))
    repeated = [jnp.broadcast_to(leaf, (rows, *leaf.shape)) for leaf in vectors.of(weights.params)]

    # Context is what a loop has for each row. The cell's own, if there is one, comes behind.
    def update(params: Any, carry: Any, x_proj: Any, h_proj: Any, context: tuple) -> Any:
        own_vectors, *given = context
        return inner(vectors.replace(params, own_vectors), carry, x_proj, h_proj, *given)

    context = (repeated, *context_of(weights))
    return cell._replace(update=update), weights._replace(context=context)
