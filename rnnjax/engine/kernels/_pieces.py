"""A cell taken apart, as the kernels need it: flat lists of arrays, and what is done with each."""

from collections.abc import Callable, Sequence, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Literal

from rnnjax.base import Cell
from rnnjax.engine.kernels._pointwise import (
    Flat,
    NotPointwiseError,
    check_pointwise,
    flatten_function,
)

F32 = jnp.float32


class ExampleShapes(NamedTuple):
    """Arrays of a loop for one example, as trees of ``jax.ShapeDtypeStruct``."""

    w_hh: Any  # [P, G*H]
    params: Any
    carry: Any
    x_proj: tuple[Any, ...]


class Pieces(NamedTuple):
    """What a cell is made of, in flat lists.

    Attributes:
        size: H.
        gates: G, the pieces of the recurrent product.
        carries: leaves of the carry.
        inputs: leaves of ``x_proj``.
        outputs: leaves of y.
        reads: leaves of the parameters that ``update`` reads.
        only_added: for each gate, whether ``update`` reads its ``x_proj`` and ``h_proj`` in their
            sum only. Then the derivative needs the sum alone, and both have one cotangent.
        read_alone: the other leaves of ``x_proj``.
        moving: those among ``read_alone`` that have a cotangent: all but flags.
        update: ``(params, carry, x_proj, h_proj) -> (carry, y)`` on lists; parameters in full.
        hidden: ``carry -> h`` on lists.
        params: shapes of the leaves of the parameters.
        output_dtypes, output_tree: of y.
    """

    size: int
    gates: int
    carries: int
    inputs: int
    outputs: int
    reads: tuple[int, ...]
    only_added: tuple[bool, ...]
    read_alone: tuple[int, ...]
    moving: tuple[int, ...]
    update: Callable
    hidden: Callable
    params: tuple[Any, ...]
    output_dtypes: tuple[Any, ...]
    output_tree: Any


def find_pieces(cell: Cell, shapes: ExampleShapes) -> Pieces:
    """Take a cell apart.

    Raises:
        NotPointwiseError: it is none of those that the kernels run, and why.
    """
    cell_update, cell_hidden = cell.update, cell.hidden
    assert cell_update is not None
    assert cell_hidden is not None
    size, columns = shapes.w_hh.shape
    gates = columns // size
    if columns != gates * size or len(shapes.x_proj) < gates:
        raise NotPointwiseError(f"its recurrent weights are {size} by {columns}, not H by G*H")
    params, params_tree = jax.tree.flatten(shapes.params)
    carry, carry_tree = jax.tree.flatten(shapes.carry)
    inputs, inputs_tree = jax.tree.flatten(shapes.x_proj)
    _check_leaves("carry", carry, size, {"float32"})
    _check_leaves("x_proj", inputs, size, _FLOATS | {"bool"})

    def typed(leaves: Sequence, like: Sequence, tree: Any) -> Any:
        return jax.tree.unflatten(
            tree, [a.astype(b.dtype) for a, b in zip(leaves, like, strict=True)]
        )

    def update(par: Sequence, carry_: Sequence, xs: Sequence, hs: Sequence) -> tuple[list, list]:
        state = typed(carry_, carry, carry_tree)
        given = typed(xs, inputs, inputs_tree)
        new, y = cell_update(typed(par, params, params_tree), state, given, tuple(hs))
        shape = carry_[0].shape
        return _full(jax.tree.leaves(new), shape), _full(jax.tree.leaves(y), shape)

    def hidden(carry_: Sequence) -> Array:
        return _full([cell_hidden(typed(carry_, carry, carry_tree))], carry_[0].shape)[0]

    one = jax.ShapeDtypeStruct((size,), F32)
    own = [jax.ShapeDtypeStruct(p.shape, p.dtype) for p in params]
    lists = (own, [one] * len(carry), [one] * len(inputs), [one] * gates)
    y = jax.eval_shape(cell_update, shapes.params, shapes.carry, shapes.x_proj, (one,) * gates)[1]
    flat = flatten_function(on_leaves(update, lists), *leaves_of(lists), shape=(size,))
    check_pointwise("update", flat, size)
    of_carry = flatten_function(lambda *c: [hidden(c)], *[one] * len(carry), shape=(size,))
    check_pointwise("hidden", of_carry, size)
    _check_leaves("y", jax.tree.leaves(y), size, _FLOATS)
    reads = tuple(k for k in range(len(params)) if flat.reads(k))
    for k in reads:
        if params[k].shape not in ((), (size,)) or params[k].dtype.name not in _FLOATS:
            raise NotPointwiseError(f"update reads a parameter {params[k].dtype}{params[k].shape}")
    if any(not own[k].shape for k in reads):
        arrays = [
            jax.ShapeDtypeStruct((size,), p.dtype) if k in reads else p for k, p in enumerate(own)
        ]
        _check_scalars(flat, on_leaves(update, lists), leaves_of((arrays, *lists[1:])))
    first = len(params) + len(carry)
    only_added = tuple(
        k < _leading(shapes.x_proj, gates)
        and _are_only_added(flat, first + k, first + len(inputs) + k)
        for k in range(gates)
    )
    read_alone = tuple(k for k in range(len(inputs)) if k >= gates or not only_added[k])
    return Pieces(
        size,
        gates,
        len(carry),
        len(inputs),
        len(jax.tree.leaves(y)),
        reads,
        only_added,
        read_alone,
        tuple(k for k in read_alone if inputs[k].dtype != jnp.bool_),
        update,
        hidden,
        tuple(own),
        tuple(leaf.dtype for leaf in jax.tree.leaves(y)),
        jax.tree.structure(y),
    )


_FLOATS = frozenset({"float32", "bfloat16", "float16"})


def _check_leaves(name: str, leaves: Sequence, size: int, dtypes: Set[str]) -> None:
    for leaf in leaves:
        if leaf.shape != (size,):
            raise NotPointwiseError(f"a piece of its {name} has shape {leaf.shape}, not {(size,)}")
        if leaf.dtype.name not in dtypes:
            raise NotPointwiseError(f"a piece of its {name} is of {leaf.dtype}")


def _check_scalars(flat: Flat, update: Callable, arguments: Sequence) -> None:
    """Refuse an ``update`` to which it matters that a parameter without axes has none.

    In the kernels these are arrays, each unit with one of its own, whose gradients are summed.
    """
    try:
        of_arrays = flatten_function(update, *arguments, shape=flat.shape)
    except Exception as error:
        raise NotPointwiseError(f"update needs a parameter without axes: {error}") from error
    if _operations(flat) != _operations(of_arrays):
        raise NotPointwiseError("update reads the shape of a parameter")


def _operations(flat: Flat) -> list:
    """Names and constant operands of all operations but broadcasts."""
    return [
        (e.primitive.name, [v.val if isinstance(v, Literal) else None for v in e.invars])
        for e in flat.equations
        if e.primitive.name != "broadcast_in_dim"
    ]


def _leading(x_proj: tuple, gates: int) -> int:
    """How many of the first gates are arrays: so many leaves stand where the pieces do."""
    return next((k for k, p in enumerate(x_proj) if not hasattr(p, "shape")), gates)


def _full(leaves: list, shape: tuple[int, ...]) -> list:
    return [jnp.broadcast_to(leaf.astype(F32), shape) for leaf in leaves]


def leaves_of(lists: Sequence[Sequence]) -> list:
    return [leaf for part in lists for leaf in part]


def on_leaves(function: Callable, lists: Sequence[Sequence]) -> Callable:
    """``function`` of lists like ``lists`` as one of all their leaves, giving leaves."""

    def of_leaves(*leaves: Any) -> list:
        rest = iter(leaves)
        return jax.tree.leaves(function(*[[next(rest) for _ in part] for part in lists]))

    return of_leaves


def _are_only_added(flat: Flat, x: int, h: int) -> bool:
    """Whether inputs ``x`` and ``h`` are read in one place only, their sum."""

    def uses(k: int) -> list:
        var = flat.inputs[k]
        return [e for e in flat.equations if any(v is var for v in e.invars)] + [
            None for v in flat.outputs if v is var
        ]

    (of_x, of_h) = (uses(x), uses(h))
    if len(of_x) != 1 or len(of_h) != 1 or of_x[0] is None or of_x[0] is not of_h[0]:
        return False
    return of_x[0].primitive.name in ("add", "add_any")
