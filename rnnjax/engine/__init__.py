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

Beside them: ``_associative``, the loop of linear cells in parallel over time; ``_accumulation``,
sums of gradients that are wider than bfloat16 parameters; ``_closures``, cells that close over
traced values; ``one_step``, a single step of a cell or layer.
"""

from . import one_step as one_step  # gives Cell.step and Layer.step what they run
from .unroll import explain as explain
from .unroll import unroll as unroll
