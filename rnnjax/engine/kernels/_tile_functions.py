"""A cell's functions and their derivatives, traced for tiles of one shape."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax.engine.kernels._pieces import F32, Pieces, leaves_of, on_leaves
from rnnjax.engine.kernels._pointwise import (
    Flat,
    check_pointwise,
    flatten_function,
)


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
    pieces: Pieces, shape: tuple[int, int], has_noise: bool, approximate: bool
) -> TileFunctions:
    """``pieces`` for tiles of ``shape``.

    Args:
        pieces: of a cell.
        shape: of a tile.
        has_noise: whether ``hidden`` is multiplied by noise.
        approximate: sigmoids by way of tanh, which is one instruction where it may be approximate.

    Raises:
        NotPointwiseError: a derivative has an operation that the kernels do not know.
    """
    flatten = functools.partial(flatten_function, shape=shape, approximate=approximate)
    one = jax.ShapeDtypeStruct((pieces.size,), F32)
    par = [one if k in pieces.reads else p for k, p in enumerate(pieces.params)]
    carry, gates = [one] * pieces.carries, [one] * pieces.gates
    lists = (par, carry, [one] * pieces.inputs, gates)
    update = flatten(on_leaves(pieces.update, lists), *leaves_of(lists))
    hidden = flatten(lambda *c: [pieces.hidden(c)], *carry)
    added = [k for k in range(pieces.gates) if pieces.only_added[k]]
    alone = [k for k in range(pieces.gates) if not pieces.only_added[k]]
    read = [one] * len(pieces.reads)
    unread = [p for k, p in enumerate(pieces.params) if k not in pieces.reads]
    lists = (
        *(read, carry, [one] * len(added), [one] * len(pieces.read_alone), [one] * len(alone)),
        *(carry, [one] * pieces.outputs, unread),
    )
    update_back = flatten(on_leaves(_pullback(pieces), lists), *leaves_of(lists))

    def back(*leaves: Array) -> list:
        return list(jax.vjp(lambda *c: pieces.hidden(c), *leaves[:-1])[1](leaves[-1]))

    hidden_back = flatten(back, *carry, one)
    for name, flat in (
        ("update", update),
        ("hidden", hidden),
        ("the derivative of update", update_back),
        ("the derivative of hidden", hidden_back),
    ):
        check_pointwise(name, flat, pieces.size)
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
