"""Batches made by ``jax.vmap``: the axis that it maps joins the batch of the kernels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from rnnjax.engine.kernels._row_axes import RowAxes, axes_of_leaves


def over_rows(function: Callable, axes: RowAxes) -> Callable:
    """``function`` such that an axis mapped by ``vmap`` joins the batch.

    An axis that is mapped over the weights does not: its members run one after the other.
    """
    mapped = jax.custom_batching.custom_vmap(function)

    @mapped.def_vmap
    def rule(axis_size: int, in_batched: Any, *args: Any) -> tuple[Any, Any]:
        everything = lambda tree: jax.tree.map(lambda _: True, tree)  # noqa: E731
        places = axes_of_leaves(axes.given, args)
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
        places = axes_of_leaves(axes.results, results)
        leaves, tree = jax.tree.flatten(results)
        parted = [_part_rows(a, place, axis_size) for a, place in zip(leaves, places, strict=True)]
        results = jax.tree.unflatten(tree, parted)
        return results, everything(results)

    return mapped


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
