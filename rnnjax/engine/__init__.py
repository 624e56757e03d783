"""The loop over time and its derivative, for every cell.

Read in this order, each file in a few minutes:

=============== ===================================================================================
``unroll``      the two public functions, and the Python loop that ``unroll`` equals
``_arguments``  the checks of what they are given
``_mapped``     calls under ``jax.vmap``: a mapped axis counts as batch
``_plan``       which implementation, which chunks of time, how many steps an iteration, and why
``_prepare``    one batch axis, time first, padding zeroed, noise drawn, inputs projected
``_run``        the compiled call: all steps at once, or chunk after chunk
``_loop``       ``run_scan``, the one entry of the loop: what every implementation promises
``_step``       what a step reads, and what resets and masks do to it
``_products``   the product with the recurrent weights, a matrix or blocks of one
``_derivative`` the derivative of the loop, one rule for all cells
``_usage``      what ``update`` reads, looked up in its jaxpr for that rule
=============== ===================================================================================

The path of one call, ``unroll(cell, params, xs, lengths)``, through these files:

1. ``unroll`` checks the arrays as far as their values are known (``_arguments``) and asks on which
   devices they lie. Nothing is computed yet: each operation of an eager call would be a program.
2. ``run_as_one_batch`` (``_mapped``) looks for a ``jax.vmap`` around the call and makes its axis a
   batch axis.
3. ``run_call`` (``_run``) is the one ``jax.jit``: cell and options are static, the arrays traced.
   The cell is part of the key of its cache, which is why equal cells must be equal.
4. ``make_plan`` (``_plan``) decides by shapes and platform alone.
5. ``prepare`` (``_prepare``) flattens the batch axes, puts time first, zeroes padded inputs, draws
   the noise. ``project`` then runs the half of the cell that sees no carry, for all steps or for
   those of one chunk.
6. ``run_scan`` (``_loop``), ``run_associative``, ``run_chunk`` or ``run_persistent`` (``kernels``)
   runs the steps. All four take ``(cell, loop, weights, carry, inputs)`` and give ``(carry, ys)``.
7. Under ``jax.grad``, ``differentiable_loop`` (``_derivative``) runs another forward loop in the
   place of that of 6, which also gives what the backward loop needs.
8. ``batch_first`` and ``unflatten`` put the axes back.

Beside them: ``_associative``, the loop of linear cells in parallel over time; ``_chunked``,
cells that compute many steps at once; ``_accumulation``, sums of gradients that are wider than
bfloat16 parameters; ``_closures``, cells that close over traced values; ``_row_constants``,
gradients of vectors on several devices; ``kernels``, the loop as one kernel of a GPU; ``one_step``,
a single step of a cell or layer.
"""

from . import one_step as one_step  # gives Cell.step and Layer.step what they run
from .unroll import explain as explain
from .unroll import unroll as unroll
