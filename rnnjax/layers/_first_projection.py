"""A layer in two halves: the first thing it does with an input, and all the rest.

By the contract of a cell ``project`` reads the input alone, never the carry. Of inputs that are
known beforehand, such as the vectors of a vocabulary, it need be done only once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from rnnjax.base import Cell, Layer, Params
from rnnjax.layers.recurrent import as_layer, recurrent
from rnnjax.layers.stack import stack
from rnnjax.transforms.precision import with_policy


class Halves(NamedTuple):
    """``layer.apply(params, xs)`` is ``rest.apply(params, project(params, x) of every x)``.

    Attributes:
        project: ``(params, x [D]) -> x_proj``, a tuple.
        rest: reads trees of arrays [..., T, H] as ``project`` gives them, with the parameters of
            the whole layer.
    """

    project: Callable[[Params, Array], tuple]
    rest: Layer


def halves(layer: Cell | Layer) -> Halves | None:
    """The two halves of a cell, a ``recurrent`` or a ``stack`` of them; None for other layers."""
    layer = as_layer(layer)
    recipe = layer._recipe
    given = {} if recipe is None else dict(recipe.arguments)
    if recipe is not None and recipe.make is recurrent:
        return _of_recurrent(**given)
    if recipe is not None and recipe.make is stack:
        policy = given["policy"]
        first, *above = (as_layer(part, policy=policy) for part in given["layers"])
        found = halves(first)
        return found and Halves(_of_first(found.project), stack(found.rest, *above))
    return None


def _of_recurrent(cell: Cell, policy: Any, **options: Any) -> Halves | None:
    if policy is not None:
        cell = with_policy(cell, policy)
    if cell.context is not None:
        return None
    return Halves(cell.project, recurrent(cell._replace(project=_as_it_came), **options))


def _of_first(project: Callable[[Params, Array], tuple]) -> Callable[[Params, Array], tuple]:
    return lambda params, x: project(params[0], x)


def _as_it_came(params: Params, x_proj: tuple) -> tuple:
    del params
    return x_proj
