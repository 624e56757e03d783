"""One step of a tile, forwards and backwards, as found in a cell: the mathematics of the kernels.

Nothing here knows of a GPU. The functions take and give lists of arrays of one shape, a tile
[UNITS, width] each; the tests run them tile by tile in plain JAX.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

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
        output_tree: of y.
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
    output_tree: Any


def find_pieces(cell: Cell, shapes: ExampleShapes) -> Pieces:
    """Take a cell apart.

    Raises:
        NotPointwiseError: it is none of those that the kernels run, and why.
    """
    if cell.update is None or cell.hidden is None:
        raise NotPointwiseError("the cell gives plain_step, which is not taken apart")
    if shapes.w_hh is None:
        raise NotPointwiseError("the cell has no recurrent weights")
    size, columns = shapes.w_hh.shape
    gates = columns // size
    if columns != gates * size or len(shapes.x_proj) < gates:
        raise NotPointwiseError(f"its recurrent weights are {size} by {columns}, not H by G*H")
    params, params_tree = jax.tree.flatten(shapes.params)
    carry, carry_tree = jax.tree.flatten(shapes.carry)
    inputs, inputs_tree = jax.tree.flatten(shapes.x_proj)
    _check_leaves("carry", carry, size)
    _check_leaves("x_proj", inputs, size)
    if any(leaf.dtype != F32 for leaf in carry):
        raise NotPointwiseError(
            f"its carry is of {', '.join(sorted({c.dtype.name for c in carry}))}"
        )

    def typed(leaves: Sequence, like: Sequence, tree: Any) -> Any:
        return jax.tree.unflatten(
            tree, [_cast_leaf(a, b.dtype) for a, b in zip(leaves, like, strict=True)]
        )

    def update(par: Sequence, carry_: Sequence, xs: Sequence, hs: Sequence) -> tuple[list, list]:
        assert cell.update is not None
        state = typed(carry_, carry, carry_tree)
        given = typed(xs, inputs, inputs_tree)
        new, y = cell.update(typed(par, params, params_tree), state, given, tuple(hs))
        shape = carry_[0].shape
        return _full(jax.tree.leaves(new), shape), _full(jax.tree.leaves(y), shape)

    def hidden(carry_: Sequence) -> Array:
        assert cell.hidden is not None
        return _full([cell.hidden(typed(carry_, carry, carry_tree))], carry_[0].shape)[0]

    one = jax.ShapeDtypeStruct((size,), F32)
    own = [jax.ShapeDtypeStruct(p.shape, p.dtype) for p in params]
    lists = (own, [one] * len(carry), [one] * len(inputs), [one] * gates)
    y = jax.eval_shape(cell.update, shapes.params, shapes.carry, shapes.x_proj, (one,) * gates)[1]
    # Traced on [H], as the cell was written; make_tile_functions traces once more on tiles.
    flat = flatten_function(_on_leaves(update, lists), *_leaves(lists))
    check_pointwise("update", flat, (size,))
    check_pointwise(
        "hidden", flatten_function(lambda *c: [hidden(c)], *[one] * len(carry)), (size,)
    )
    _check_leaves("y", jax.tree.leaves(y), size)
    reads = tuple(k for k in range(len(params)) if flat.reads(k))
    for k in reads:
        if params[k].shape not in ((), (size,)) or params[k].dtype.name not in _FLOATS:
            raise NotPointwiseError(f"update reads a parameter {params[k].dtype}{params[k].shape}")
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
        jax.tree.structure(y),
    )


_FLOATS = frozenset({"float32", "bfloat16", "float16"})


def _check_leaves(name: str, leaves: Sequence, size: int) -> None:
    for leaf in leaves:
        if leaf.shape != (size,):
            raise NotPointwiseError(f"a piece of its {name} has shape {leaf.shape}, not {(size,)}")
        if leaf.dtype.name not in _FLOATS | {"bool"}:
            raise NotPointwiseError(f"a piece of its {name} is of {leaf.dtype}")


def _leading(x_proj: tuple, gates: int) -> int:
    """How many of the first gates are arrays: so many leaves stand where the pieces do."""
    return next((k for k, p in enumerate(x_proj) if not hasattr(p, "shape")), gates)


def _cast_leaf(a: Array, dtype: Any) -> Array:
    return a != 0 if dtype == jnp.bool_ else a.astype(dtype)


def _full(leaves: list, shape: tuple[int, ...]) -> list:
    return [jnp.broadcast_to(leaf.astype(F32), shape) for leaf in leaves]


def _leaves(lists: Sequence[Sequence]) -> list:
    return [leaf for part in lists for leaf in part]


def _on_leaves(function: Callable, lists: Sequence[Sequence]) -> Callable:
    """``function`` of lists like ``lists`` as one of all their leaves, giving leaves."""

    def on_leaves(*leaves: Any) -> list:
        rest = iter(leaves)
        return jax.tree.leaves(function(*[[next(rest) for _ in part] for part in lists]))

    return on_leaves


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


class TileFunctions(NamedTuple):
    """A cell's functions for tiles of one shape, and what its derivative has to be given.

    Attributes:
        pieces: the cell.
        update: flat (params, carry, x_proj, h_proj) -> (carry, y).
        hidden: flat carry -> h.
        update_back: flat (params read, carry, sums, x read alone, h alone, cotangents of carry and
            y, params not read) -> cotangents of (params read, carry, gates, moving x read alone).
        hidden_back: flat (carry, cotangent of h) -> cotangents of the carry.
        entered: leaves of the entering carry that are kept for the derivative.
        sums: gates of which ``x_proj + h_proj`` is kept.
        h_alone: gates of which ``h_proj`` alone is kept.
        read_alone: leaves of ``x_proj`` that the derivative reads again.
    """

    pieces: Pieces
    update: Flat
    hidden: Flat
    update_back: Flat
    hidden_back: Flat
    entered: tuple[int, ...]
    sums: tuple[int, ...]
    h_alone: tuple[int, ...]
    read_alone: tuple[int, ...]


def make_tile_functions(
    pieces: Pieces, shape: tuple[int, int], has_noise: bool, quick: bool
) -> TileFunctions:
    """``pieces`` for tiles of ``shape``.

    Args:
        pieces: of a cell.
        shape: of a tile.
        has_noise: whether ``hidden`` is multiplied by noise.
        quick: sigmoids by way of tanh, which is one instruction where it may be approximate.

    Raises:
        NotPointwiseError: a function or its derivative has an operation that the kernels do not
            know, or cannot be traced on a tile.
    """
    try:
        return _make_tile_functions(pieces, shape, has_noise, quick)
    except NotPointwiseError:
        raise
    except (TypeError, ValueError, IndexError) as error:
        raise NotPointwiseError(f"update depends on the shape of its arrays: {error}") from error


def _make_tile_functions(
    pieces: Pieces, shape: tuple[int, int], has_noise: bool, quick: bool
) -> TileFunctions:
    tile = jax.ShapeDtypeStruct(shape, F32)
    par = [tile if k in pieces.reads else p for k, p in enumerate(pieces.params)]
    carry, gates = [tile] * pieces.carries, [tile] * pieces.gates
    lists = (par, carry, [tile] * pieces.inputs, gates)
    update = flatten_function(_on_leaves(pieces.update, lists), *_leaves(lists), quick=quick)
    hidden = flatten_function(lambda *c: [pieces.hidden(c)], *carry, quick=quick)
    added = [k for k in range(pieces.gates) if pieces.only_added[k]]
    alone = [k for k in range(pieces.gates) if not pieces.only_added[k]]
    read = [tile] * len(pieces.reads)
    unread = [p for k, p in enumerate(pieces.params) if k not in pieces.reads]
    lists = (
        *(read, carry, [tile] * len(added), [tile] * len(pieces.read_alone), [tile] * len(alone)),
        *(carry, [tile] * pieces.outputs, unread),
    )
    update_back = flatten_function(
        _on_leaves(_pullback(pieces), lists), *_leaves(lists), quick=quick
    )

    def back(*leaves: Array) -> list:
        return list(jax.vjp(lambda *c: pieces.hidden(c), *leaves[:-1])[1](leaves[-1]))

    hidden_back = flatten_function(back, *carry, tile, quick=quick)
    for name, flat in (
        ("update", update),
        ("hidden", hidden),
        ("the derivative of update", update_back),
        ("the derivative of hidden", hidden_back),
    ):
        check_pointwise(name, flat, shape)
    starts = [0, len(read)]
    for part in lists[1:5]:
        starts.append(starts[-1] + len(part))
    at_carry, at_read_alone, at_h_alone = starts[1], starts[3], starts[4]
    entered = tuple(
        k
        for k in range(pieces.carries)
        if update_back.reads(at_carry + k)
        or hidden_back.reads(k)
        or (has_noise and hidden.reads(k))
    )
    return TileFunctions(
        pieces,
        update,
        hidden,
        update_back,
        hidden_back,
        entered,
        tuple(added),
        tuple(k for j, k in enumerate(alone) if update_back.reads(at_h_alone + j)),
        tuple(k for j, k in enumerate(pieces.read_alone) if update_back.reads(at_read_alone + j)),
    )


def _pullback(pieces: Pieces) -> Callable:
    """The derivative of ``update`` where sums stand for what it reads in sums only."""

    def pullback(read, carry, sums, read_alone, h_alone, d_carry, d_y, unread):
        moving = [
            a for k, a in zip(pieces.read_alone, read_alone, strict=True) if k in pieces.moving
        ]
        flags = {
            k: a
            for k, a in zip(pieces.read_alone, read_alone, strict=True)
            if k not in pieces.moving
        }

        def of_what_moves(read, carry, sums, moving, h_alone):
            rest, others = iter(read), iter(unread)
            par = [
                next(rest) if k in pieces.reads else next(others) for k in range(len(pieces.params))
            ]
            given = dict(flags) | dict(zip(pieces.moving, moving, strict=True))
            added, alone = iter(sums), iter(h_alone)
            hs = []
            for k in range(pieces.gates):
                if pieces.only_added[k]:
                    given[k] = next(added)
                    hs.append(jnp.zeros_like(given[k]))
                else:
                    hs.append(next(alone))
            return pieces.update(par, carry, [given[k] for k in range(pieces.inputs)], hs)

        _, pull = jax.vjp(of_what_moves, read, carry, sums, moving, h_alone)
        d_read, d_entered, d_sums, d_moving, d_h_alone = pull((d_carry, d_y))
        added, alone = iter(d_sums), iter(d_h_alone)
        d_gates = [next(added) if only_added else next(alone) for only_added in pieces.only_added]
        return d_read, d_entered, d_gates, d_moving

    return pullback


class Flags(NamedTuple):
    """Of a step, for each sequence of a tile, the same for all units; None where there are none."""

    valid: Any  # the step is no padding
    reset: Any  # the carry that leaves it is thrown away and begins anew


def _select_each(flag: Any, a: Sequence, b: Sequence) -> list:
    if flag is None:
        return list(a)
    return [lax.select(flag, x, y) for x, y in zip(a, b, strict=True)]


def _zero(a: Array) -> Array:
    return jnp.zeros_like(a)  # not a * 0: what stands in padding may be NaN


def hidden_units(steps: TileFunctions, carry: Sequence, noise: Any, units: Any) -> Array:
    """What the recurrent weights multiply; 0 in units that only fill the last group."""
    (h,) = steps.hidden(*carry)
    h = h if noise is None else h * noise
    return h if units is None else lax.select(units, h, _zero(h))


class Forward(NamedTuple):
    """What a step gives."""

    next_carry: list  # the carry that enters the next step
    carry_out: list  # the carry that leaves this one, before it may begin anew
    ys: list
    kept: list  # for the derivative


def forward_step(
    steps: TileFunctions, par: Sequence, reset_carry: Sequence, carry: Sequence, xs: Sequence,
    hs: Sequence, flags: Flags,
) -> Forward:  # fmt: skip
    """A step of a tile; ``par`` are the parameters that ``update`` reads."""
    pieces = steps.pieces
    rest = iter(par)
    full = [next(rest) if k in pieces.reads else None for k in range(len(pieces.params))]
    results = steps.update(*full, *carry, *xs, *hs)
    new, ys = results[: pieces.carries], results[pieces.carries :]
    carry_out = _select_each(flags.valid, new, carry)
    ys = _select_each(flags.valid, ys, [_zero(y) for y in ys])
    # The reset of the next step is done here, at the end of this one: the h that is sent to the
    # other CTAs must be that of the carry which the next step begins with.
    next_carry = (
        carry_out if flags.reset is None else _select_each(flags.reset, reset_carry, carry_out)
    )
    kept = [
        *[carry[k] for k in steps.entered],
        *[xs[k] + hs[k] for k in steps.sums],
        *[hs[k] for k in steps.h_alone],
    ]
    return Forward(next_carry, carry_out, ys, kept)


class Kept(NamedTuple):
    """What a step's derivative gets: ``Forward.kept``, and ``x_proj`` where it is read again."""

    kept: Sequence
    read_alone: Sequence


class Backward(NamedTuple):
    """What the derivative of a step gives."""

    d_gates: list  # cotangents of h_proj, and of x_proj where both meet
    d_read_alone: list  # cotangents of the moving leaves of x_proj that are read alone
    d_par: list  # what it adds to those of the parameters
    d_reset_carry: list  # what it adds to those of the reset_carry carry
    d_carry: list  # of the carry that entered, but for what comes back through the product


def _entered_carry(steps: TileFunctions, kept: Kept) -> list:
    carry: list = [None] * steps.pieces.carries
    for k, a in zip(steps.entered, kept.kept[: len(steps.entered)], strict=True):
        carry[k] = a
    return carry


def backward_step(
    steps: TileFunctions, par: Sequence, kept: Kept, d_carry: Sequence, d_ys: Sequence,
    d_carries: Sequence, flags: Flags, units: Any,
) -> Backward:  # fmt: skip
    """The derivative of a step.

    Args:
        steps: the functions.
        par: the parameters that ``update`` reads.
        kept: what the step kept.
        d_carry: cotangents of the carry that enters the step after it.
        d_ys: of its outputs.
        d_carries: of the carry that it gave as an output; () where it gave none.
        flags: its own.
        units: False in units that only fill the last group; None where there are none.
    """
    pieces = steps.pieces
    none = [_zero(d) for d in d_carry]
    d_reset_carry = [] if flags.reset is None else _select_each(flags.reset, d_carry, none)
    d_carry_out = list(d_carry) if flags.reset is None else _select_each(flags.reset, none, d_carry)
    if d_carries:
        d_carry_out = [a + b for a, b in zip(d_carry_out, d_carries, strict=True)]
    d_new = _select_each(flags.valid, d_carry_out, none)
    d_ys = _select_each(flags.valid, d_ys, [_zero(d) for d in d_ys])
    after = len(steps.entered)
    sums = kept.kept[after : after + len(steps.sums)]
    by_gate = dict(zip(steps.h_alone, kept.kept[after + len(steps.sums) :], strict=True))
    h_alone = [by_gate.get(k) for k in range(pieces.gates) if not pieces.only_added[k]]
    by_leaf = dict(zip(steps.read_alone, kept.read_alone, strict=True))
    read_alone = [by_leaf.get(k) for k in pieces.read_alone]
    unread = [None] * (len(pieces.params) - len(pieces.reads))
    results = iter(
        steps.update_back(
            *par, *_entered_carry(steps, kept), *sums, *read_alone, *h_alone, *d_new, *d_ys, *unread
        )
    )

    def take(count: int) -> list:
        return [next(results) for _ in range(count)]

    d_par, d_entered = take(len(pieces.reads)), take(pieces.carries)
    d_gates, d_read_alone = take(pieces.gates), take(len(pieces.moving))
    if flags.valid is not None:
        d_entered = _select_each(flags.valid, d_entered, d_carry_out)
    # Units that only fill the last group have made-up values; zeroed here, they reach neither the
    # product nor the gradient of the weights.
    if units is not None:
        d_gates = [lax.select(units, d, _zero(d)) for d in d_gates]
    return Backward(d_gates, d_read_alone, d_par, d_reset_carry, d_entered)


def through_hidden(
    steps: TileFunctions, kept: Kept, d_carry: Sequence, d_h: Array, noise: Any
) -> tuple[list, Any]:
    """Add what comes back through the product; also the cotangent of the noise, if there is any."""
    carry, d_noise = _entered_carry(steps, kept), None
    if noise is not None:
        (clean,) = steps.hidden(*carry)
        d_noise, d_h = d_h * clean, d_h * noise
    through = steps.hidden_back(*carry, d_h)
    return [a + b for a, b in zip(d_carry, through, strict=True)], d_noise
