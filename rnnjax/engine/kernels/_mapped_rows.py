"""Batches made by ``jax.vmap``: the axis that it maps joins the batch of the kernels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from rnnjax.engine._step import Inputs, Weights

# Where the rows of the batch lie in what the kernels take and give; None: all rows share it.
_SHARED: Any = None
_FIRST: Any = 0
_SECOND: Any = 1
ARGUMENTS = (
    Weights(w_hh=_SHARED, params=_SHARED, reset_carry=_FIRST, hidden_noise=_FIRST),
    _FIRST,
    Inputs(x_projs=_SECOND, valid=_SECOND, resets=_SECOND),
)
SAVED = (2, 1)  # h by parts, what is kept


class Axes(NamedTuple):
    given: Any
    results: Any


def over_rows(function: Callable, axes: Axes) -> Callable:
    """``function`` such that an axis mapped by ``vmap`` joins the batch.

    An axis that is mapped over the weights does not: its members run one after the other.
    """
    mapped = jax.custom_batching.custom_vmap(function)

    @mapped.def_vmap
    def rule(axis_size: int, in_batched: Any, *args: Any) -> tuple[Any, Any]:
        everything = lambda tree: jax.tree.map(lambda _: True, tree)  # noqa: E731
        places = _places_of(axes.given, args)
        shared = [
            batched
            for batched, place in zip(jax.tree.leaves(in_batched), places, strict=True)
            if place is None
        ]
        if any(shared):
            results = _one_by_one(mapped, axis_size, in_batched, args)
            return results, everything(results)
        leaves, tree = jax.tree.flatten(args)
        joined = [
            a if place is None else _join_rows(a, batched, place, axis_size)
            for a, batched, place in zip(leaves, jax.tree.leaves(in_batched), places, strict=True)
        ]
        results = mapped(*jax.tree.unflatten(tree, joined))
        places = _places_of(axes.results, results)
        leaves, tree = jax.tree.flatten(results)
        parted = [_part_rows(a, place, axis_size) for a, place in zip(leaves, places, strict=True)]
        results = jax.tree.unflatten(tree, parted)
        return results, everything(results)

    return mapped


def _places_of(prefix: Any, tree: Any) -> list:
    """``prefix`` with one entry for each leaf of ``tree``."""
    spread = jax.tree.map(
        lambda place, below: [place] * len(jax.tree.leaves(below)),
        prefix,
        tree,
        is_leaf=lambda a: a is None,
    )
    found: list = []
    jax.tree.map(found.extend, spread, is_leaf=lambda a: isinstance(a, list))
    return found


def _join_rows(a: Array, batched: bool, place: int, count: int) -> Array:
    if not batched:
        a = jnp.broadcast_to(a[None], (count, *a.shape))
    a = jnp.moveaxis(a, 0, place)
    return a.reshape(*a.shape[:place], -1, *a.shape[place + 2 :])


def _part_rows(a: Array, place: int, count: int) -> Array:
    a = a.reshape(*a.shape[:place], count, -1, *a.shape[place + 1 :])
    return jnp.moveaxis(a, place, 0)


def _one_by_one(function: Callable, count: int, in_batched: Any, args: tuple) -> Any:
    leaves, tree = jax.tree.flatten(args)
    flags = jax.tree.leaves(in_batched)
    members = [a for a, batched in zip(leaves, flags, strict=True) if batched]

    def one(some: list) -> Any:
        rest = iter(some)
        whole = [next(rest) if b else a for a, b in zip(leaves, flags, strict=True)]
        return function(*jax.tree.unflatten(tree, whole))

    return lax.map(one, members)
