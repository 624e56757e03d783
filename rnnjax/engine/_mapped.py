"""Calls of ``unroll`` under ``jax.vmap``: the axis that is mapped counts as batch.

``vmap`` shows the function it maps one example. A loop over one sequence at a time that is mapped
over many is not the loop over the batch of them: its plan would be that of one sequence, and its
products would have an axis more, which XLA copies into another order first.

A ``jax.jit`` inside the ``vmap`` hides the axis: the inner function is traced for one example
before anything maps it, and runs as ``vmap`` maps its operations, with the plan of one sequence.
Only a ``custom_vmap`` left in its jaxpr would still see the axis, and that has no derivative.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.custom_batching import custom_vmap

from rnnjax.engine._prepare import Call


def run_as_one_batch(run: Callable[[Call, int], Any], call: Call) -> Any:
    """``run(call, mapped)``, with axes that ``jax.vmap`` maps made batch axes where that may be.

    Where nothing but steps and carries is mapped, the axis becomes the first batch axis. Where
    parameters are (an ensemble), where noise is drawn (each example draws the same), where the
    derivative is taken inside of the ``vmap`` (a gradient for each example), or where the cell
    reads traced values that are no part of the call, the call stays as it is and ``run`` is told
    how many of them ``vmap`` makes one.

    Args:
        run: of a call, and the number of such calls that become one.
        call: its arrays.
    """
    sizes = _mapped_sizes(call)
    # Noise: under ``vmap`` each example draws from the one key, so all draw the same. As rows of
    # one batch they would draw differently, and the result would depend on this file.
    if (
        not sizes
        or call.key is not None
        or not _is_mapped_directly(call)
        or _reads_more_than(run, call)
    ):
        return run(call, math.prod(sizes))

    # What is inside a ``custom_vmap`` sees one example, as without it; only if JAX maps it is the
    # rule below asked, and that knows which arrays have the axis.
    @custom_vmap
    def whole(call: Call) -> Any:
        return run(call, 1)

    @whole.def_vmap
    def with_axis(size: int, flags: list, call: Call) -> tuple[Any, Any]:
        mapped = jax.tree.unflatten(jax.tree.structure(call), jax.tree.leaves(flags))
        # An ensemble: every member has weights of its own, so its rows cannot join one product.
        if any(jax.tree.leaves(mapped.params)):
            axes = jax.tree.map(lambda is_mapped: 0 if is_mapped else None, mapped)
            results = jax.vmap(lambda one: run(one, math.prod(sizes)), (axes,), axis_size=size)(
                call
            )
        else:
            # Once more, for a ``vmap`` around this one.
            results = run_as_one_batch(run, _with_batch_axis(size, mapped, call))
        return results, jax.tree.map(lambda _: True, results)

    return whole(call)


def _with_batch_axis(size: int, mapped: Call, call: Call) -> Call:
    # What is not mapped (lengths that all examples share) is repeated; parameters have no batch
    # axis and stay as they are.
    def lead(is_mapped: bool, leaf: Any) -> Any:
        return leaf if is_mapped else jnp.broadcast_to(leaf, (size, *jnp.shape(leaf)))

    whole = jax.tree.map(lead, mapped._replace(params=None), call._replace(params=None))
    return whole._replace(params=call.params)


def _mapped_sizes(call: Call) -> list[int]:
    """The sizes of the axes that ``vmap`` maps here: what the rule of a function without results
    is told when it is called."""
    sizes: list[int] = []

    @custom_vmap
    def look(leaves: list) -> tuple:
        del leaves
        return ()

    @look.def_vmap
    def _(size: int, mapped: Any, leaves: list) -> tuple[tuple, tuple]:
        del mapped
        sizes.append(size)
        return look(leaves), ()  # and so on to the next ``vmap`` outwards

    traced = [leaf for leaf in jax.tree.leaves(call) if isinstance(leaf, Tracer)]
    if traced:
        look([_unused(leaf) for leaf in traced])
    return sizes


def _unused(leaf: Tracer) -> Any:
    """``leaf`` to be looked at alone: no derivative goes through, and a key stays unused."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.clone(leaf)
    return lax.stop_gradient(leaf)


def _reads_more_than(run: Callable[[Call, int], Any], call: Call) -> bool:
    """Whether ``run`` reads more than the call: a traced value that the cell closes over, which
    ``vmap`` may map too, or a named axis of ``vmap``. A ``custom_vmap`` would not see it."""
    program = jax.make_jaxpr(lambda call: run(call, 1))(call)
    return bool(program.effects) or any(isinstance(c, Tracer) for c in program.consts)


def _is_mapped_directly(call: Call) -> bool:
    """Whether ``vmap`` is the innermost transformation here, with no derivative inside of it.

    A ``custom_vmap`` has no derivative. JAX does not say which transformation is innermost; the
    type of what one operation on all the arrays gives does. The operation joins nothing of each.
    """
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(call)]
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    # No element of each, along an axis that no mesh divides, and in one dtype: the sum costs
    # nothing, and its type is that of the innermost transformation that holds any of the arrays.
    nothing = [jnp.sum(leaf[..., None][..., :0].astype(jnp.float32)) for leaf in floats]
    return bool(nothing) and type(sum(nothing)).__name__ == "BatchTracer"
