"""How ``update`` uses its arguments, read from its jaxpr, so that the derivative keeps no more.

An operation that JAX traced says by itself what it reads. Three things are looked up: which
parameters are read at all (the gradient of the others is known to be zero and needs no sum in the
loop), where an ``x_proj`` only ever meets its ``h_proj`` in one sum (their cotangents are one and
the same array, kept once), and whether the output is the very array that the next step multiplies
by the recurrent weights (it is then stored already, as an output).
"""

from typing import Any, NamedTuple

import jax
from jax.custom_derivatives import SymbolicZero

from rnnjax._numerics import accumulation_dtype
from rnnjax.base import Cell
from rnnjax.engine._products import gate_widths
from rnnjax.engine._step import Inputs, Weights, context_of


class Subset(NamedTuple):
    """Some leaves of a tree, marked True in ``leaves``."""

    leaves: tuple[bool, ...]

    def of(self, tree: Any) -> list:
        """The marked leaves of ``tree``."""
        flat = jax.tree.leaves(tree, is_leaf=is_symbolic)
        return [leaf for leaf, marked in zip(flat, self.leaves, strict=True) if marked]

    def replace(self, tree: Any, new: list) -> Any:
        """``tree`` with ``new`` in place of the marked leaves."""
        flat, treedef = jax.tree.flatten(tree)
        rest = iter(new)
        marked = zip(flat, self.leaves, strict=True)
        return jax.tree.unflatten(treedef, [next(rest) if m else leaf for leaf, m in marked])


class Usage(NamedTuple):
    """How ``update`` uses what it is given.

    Attributes:
        params: the leaves of the parameters that it reads and that have a tangent.
        context: the leaves of the context that it reads and that have a tangent.
        only_added: for each leaf of ``x_proj``, whether its one use is the sum with its piece of
            ``h_proj``. There the tangents of both are one array.
        read_alone: the other leaves of ``x_proj`` that have a tangent.
        y_is_hidden: whether its output is the h that the next step multiplies by the weights.
    """

    params: Subset
    context: Subset
    only_added: tuple[bool, ...]
    read_alone: Subset
    y_is_hidden: bool


def usage_of_update(cell: Cell, primals: tuple, tangents: tuple) -> Usage:
    """Trace ``update`` for one example and read its jaxpr."""
    assert cell.update is not None
    weights, carry, inputs = primals
    d_weights, _, d_inputs = tangents
    hidden, update = cell.hidden, cell.update

    def step_and_next_hidden(*operands: Any) -> tuple[Any, Any, Any]:
        *first, context = operands
        new, y = update(*first, *context)
        return () if weights.w_hh is None or hidden is None else hidden(new), y, new

    # Traced for one example, without ``vmap``: batching would put its own operations between an
    # argument and its use, and nothing would look like a plain sum any more.
    operands = operand_shapes(weights, inputs)
    jaxpr = jax.make_jaxpr(step_and_next_hidden)(*operands).jaxpr
    of_params, _, of_x, of_h, of_context = _split_by_operand(jaxpr.invars, operands)
    # The gates come first among the pieces of x_proj, and each is one leaf.
    only_added = tuple(
        k < len(of_h) and _is_only_added(jaxpr, x_proj, of_h[k]) for k, x_proj in enumerate(of_x)
    )
    # An input that is only added has its tangent in the sum, so it is left out of ``read_alone``.
    moving = [has_tangent(t) for t in leaves_of(d_inputs.x_projs)]
    return Usage(
        params=_subset_read(jaxpr, of_params, d_weights.params),
        context=_subset_read(jaxpr, of_context, d_weights.context),
        only_added=only_added,
        read_alone=Subset(tuple(m and not a for m, a in zip(moving, only_added, strict=True))),
        y_is_hidden=_y_is_hidden(jaxpr, weights, carry),
    )


def operand_shapes(weights: Weights, inputs: Inputs) -> tuple:
    """The shapes of what ``update`` is given for one example.

    ``(params, carry, x_proj, h_proj, context)``, the last a tuple of one or none.
    """
    return (
        example_shapes(weights.params, axes=0),
        example_shapes(weights.reset_carry, axes=1),
        example_shapes(inputs.x_projs, axes=2),
        _h_proj_shapes(weights, inputs),
        example_shapes(context_of(weights), axes=1),
    )


def leaves_of(tangents: Any) -> list:
    """The leaves of a tree of tangents, symbolic zeros among them."""
    return jax.tree.leaves(tangents, is_leaf=is_symbolic)


def is_symbolic(tangent: Any) -> bool:
    """Whether a tangent is known to be zero."""
    return isinstance(tangent, SymbolicZero)


def has_tangent(tangent: Any) -> bool:
    """Whether a tangent is there and not known to be zero."""
    return tangent is not None and not is_symbolic(tangent)


def _subset_read(jaxpr: Any, variables: list, tangents: Any) -> Subset:
    pairs = zip(variables, leaves_of(tangents), strict=True)
    return Subset(tuple(has_tangent(t) and _is_read(jaxpr, v) for v, t in pairs))


def _split_by_operand(variables: list, operands: tuple) -> list[list]:
    rest = iter(variables)
    return [[next(rest) for _ in jax.tree.leaves(operand)] for operand in operands]


def _y_is_hidden(jaxpr: Any, weights: Weights, carry: Any) -> bool:
    if weights.w_hh is None:
        return False
    # The same variable of the jaxpr, not an equal one: it is known here that they are one array.
    h, *outputs = jaxpr.outvars
    y_is_one_array = len(outputs) == 1 + len(jax.tree.leaves(carry))
    return y_is_one_array and outputs[0] is h


def example_shapes(tree: Any, axes: int) -> Any:
    """The shapes of ``tree`` for one example, without its first ``axes`` axes."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[axes:], a.dtype), tree)


def _h_proj_shapes(weights: Weights, inputs: Inputs) -> tuple[jax.ShapeDtypeStruct, ...]:
    if weights.w_hh is None:
        return ()
    dtype = accumulation_dtype(weights.w_hh.dtype)
    widths = gate_widths(weights.w_hh, inputs.x_projs)
    return tuple(jax.ShapeDtypeStruct((width,), dtype) for width in widths)


def _uses(jaxpr: Any, variable: Any) -> list:
    equations = [e for e in jaxpr.eqns if any(v is variable for v in e.invars)]
    return equations + [jaxpr for v in jaxpr.outvars if v is variable]


def _is_read(jaxpr: Any, variable: Any) -> bool:
    """Whether anything comes of a variable; its copy in another dtype that nothing reads does not.

    Such copies stand in the jaxpr of every cell with 16-bit parameters, which each step casts.
    """

    def matters(use: Any) -> bool:
        primitive = getattr(use, "primitive", None)
        is_cast = primitive is not None and primitive.name == "convert_element_type"
        return not is_cast or _is_read(jaxpr, use.outvars[0])

    return any(matters(use) for use in _uses(jaxpr, variable))


def _is_only_added(jaxpr: Any, x_proj: Any, h_proj: Any) -> bool:
    """Whether ``x_proj`` and ``h_proj`` are used in their one sum and nowhere else."""
    # One use each, and the same one. A second use, as in a gate that reads x_proj again, needs a
    # cotangent of its own.
    of_x, of_h = _uses(jaxpr, x_proj), _uses(jaxpr, h_proj)
    if len(of_x) != 1 or len(of_h) != 1 or of_x[0] is not of_h[0]:
        return False
    primitive = getattr(of_x[0], "primitive", None)
    return primitive is not None and primitive.name in ("add", "add_any")
