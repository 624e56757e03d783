"""The loop over time, for every cell.

:func:`run_scan` is the one entry. Cells written as ``project / recurrent / update`` get their
derivative from :mod:`rnnjax.engine._derivative`, the others from JAX.
"""

import functools
from typing import Any

import jax

from rnnjax._devices import may_merge_axes
from rnnjax.base import Cell
from rnnjax.engine._closures import without_traced_closures
from rnnjax.engine._derivative import differentiable_loop
from rnnjax.engine._products import h_proj_of, noisy
from rnnjax.engine._row_constants import vectors_as_row_constants
from rnnjax.engine._step import (
    Inputs,
    Loop,
    Weights,
    context_of,
    hidden_of,
    hold,
    over_batch,
    packed_inputs,
    reset,
    scan,
)


def run_scan(
    cell: Cell, loop: Loop, weights: Weights, carry: Any, inputs: Inputs
) -> tuple[Any, Any]:
    """Run ``cell`` over time, with one batch axis: ``(carry, ys [T, B, O])``.

    What every implementation of the loop promises, this one, the associative and a kernel alike:

    - One step is: the carry returns to ``weights.reset_carry`` where ``inputs.resets`` is True;
      ``h_proj = hidden(carry) * hidden_noise @ w_hh`` with a float32 sum, in pieces as wide as the
      first pieces of ``x_projs``; ``new, y = update(params, carry, x_proj, h_proj)``, with
      ``context`` as a fifth argument where there is one; then where ``inputs.valid`` is False the
      carry is held and y is zero.
    - ``reverse`` runs from step T - 1 down to 0. ``resets`` are given in the order of the run, and
      outputs stay in the order of time. The carry given is the one before the first step taken,
      the one returned that after the last.
    - The dtypes of the carry do not change. Values at steps that are not valid were zeroed before
      projection, so they are finite; what ``update`` makes of them is never used.
    - It is differentiable in every array of ``weights``, ``carry`` and ``inputs``: in both modes,
      the kernel in reverse mode, of whose derivative both modes are the scan's.

    Args:
        cell: whose ``hidden`` and ``update``, or ``plain_step``, are run.
        loop: how.
        weights: what every step reads.
        carry: leaves [B, ...].
        inputs: what each step reads.
    """
    # A plain step cannot be taken apart, so there is nothing the rule below could make cheaper: JAX
    # differentiates the scan.
    if cell.plain_step is not None:
        return scan(loop, functools.partial(_plain_step, cell, loop, weights), carry, inputs)
    # First of all, while ``update`` is still what the user wrote: the wrapper below hides what it
    # closes over.
    cell, weights = without_traced_closures(cell, weights, inputs)
    # Rows on several devices: keep sums over them out of the loop. On one device it would only
    # cost the memory of the repeated vectors.
    if not may_merge_axes((weights, carry, inputs)):
        rows = jax.tree.leaves(inputs.x_projs)[0].shape[1]  # a carry may have no leaves
        cell, weights = vectors_as_row_constants(cell, weights, rows)
        loop = loop._replace(packed=0)  # batch and time cannot be one axis there
    forward = functools.partial(_scan_with_update, cell, loop)
    return differentiable_loop(forward, cell, loop)(weights, carry, inputs)


def _scan_with_update(cell: Cell, loop: Loop, weights: Weights, carry: Any, inputs: Inputs) -> Any:
    """The loop of a cell with ``update``, without its derivative."""
    update = over_batch(cell.update)
    inputs, cut = packed_inputs(loop, inputs) if loop.packed else (inputs, lambda at: at)

    def step(carry: Any, at: Inputs) -> tuple[Any, Any]:
        at = cut(at)
        # First the reset: the product must see the carry that the step begins with.
        carry = reset(at, weights.reset_carry, carry)
        h = hidden_of(cell, weights, carry)
        h_proj = (
            () if h is None else h_proj_of(noisy(h, weights.hidden_noise), weights.w_hh, at.x_projs)
        )
        new, y = update(weights.params, carry, at.x_projs, h_proj, *context_of(weights))
        return hold(loop, at, carry, new, y)

    return scan(loop, step, carry, inputs)


def _plain_step(
    cell: Cell, loop: Loop, weights: Weights, carry: Any, at: Inputs
) -> tuple[Any, Any]:
    carry = reset(at, weights.reset_carry, carry)
    step = over_batch(cell.plain_step)
    new, y = step(weights.params, carry, at.x_projs, *context_of(weights))
    return hold(loop, at, carry, new, y)
