"""Cells that close over a traced value, such as a rate that is itself differentiated.

A ``custom_jvp``, as the loop is, may not read traced values that are not among its arguments: their
derivative would be lost, and one without a derivative (a step number, a key) would leave its trace.
So they are found here and handed to the loop beside the parameters.
"""

from typing import Any

import jax
from jax.core import Tracer, eval_jaxpr

from rnnjax.base import Cell
from rnnjax.engine._step import Inputs, Weights
from rnnjax.engine._usage import operand_shapes


def without_traced_closures(cell: Cell, weights: Weights, inputs: Inputs) -> tuple[Cell, Weights]:
    """The same cell and weights, with what ``update`` closes over among the parameters.

    Raises:
        ValueError: ``hidden`` closes over a traced value.
    """
    assert cell.update is not None
    # Shapes are enough to trace with; what the trace keeps as a constant is closed over.
    params, carry, x_projs, h_projs, context = operand_shapes(weights, inputs)
    # ``hidden`` has no parameters to hand such a value in by.
    if weights.w_hh is not None and _closes_over_traced(cell.hidden, carry):
        raise ValueError(
            "a cell's hidden must not close over a traced value, got one: put it into params"
        )
    operands = (params, carry, x_projs, h_projs, *context)
    program, results = jax.make_jaxpr(cell.update, return_shape=True)(*operands)
    found = tuple(constant for constant in program.consts if isinstance(constant, Tracer))
    if not found:
        return cell, weights

    # Beside the parameters and not among them: the user's tree keeps its structure.
    def update(params: Any, *rest: Any) -> Any:
        own, closed_over = params
        traced = iter(closed_over)
        constants = [next(traced) if isinstance(c, Tracer) else c for c in program.consts]
        leaves = eval_jaxpr(program.jaxpr, constants, *jax.tree.leaves((own, *rest)))
        return jax.tree.unflatten(jax.tree.structure(results), leaves)

    return cell._replace(update=update), weights._replace(params=(weights.params, found))


def _closes_over_traced(function: Any, *operands: Any) -> bool:
    # Arrays with known values may stay where they are: they have no derivative to lose.
    return any(isinstance(c, Tracer) for c in jax.make_jaxpr(function)(*operands).consts)
