"""What ONNX nodes must do, read off how a model was made: never guessed from its parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rnnjax._checks import shown
from rnnjax.base import Cell
from rnnjax.cells.gru import gru
from rnnjax.cells.lstm import lstm
from rnnjax.cells.peephole_lstm import peephole_lstm
from rnnjax.cells.vanilla import vanilla
from rnnjax.layers.bidirectional import bidirectional
from rnnjax.layers.recurrent import as_layer, recurrent
from rnnjax.layers.stack import stack
from rnnjax.models.embedding import embedding

_FUNCTIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}


def arguments_of(model: Any, make: Any) -> dict[str, Any]:
    """What ``make`` made a model from, with an embedding that is a table of vectors.

    Raises:
        ValueError: something else made it, it was changed since, or it has another embedding.
    """
    recipe = getattr(model, "_recipe", None)
    if recipe is None or recipe.make is not make:
        raise ValueError(f"model must be made by rnnjax.{make.__name__}, got {shown(model)}")
    made = getattr(recipe.arguments["embedding"], "_recipe", None)
    if made is None or made.make is not embedding:
        raise ValueError(f"model must have a rnnjax.embedding to become ONNX nodes, got {model!r}")
    return dict(recipe.arguments)


def cells_of(layer: Any) -> list[tuple[Cell, ...]]:
    """The cells of every recurrent layer, the lowest first: one, or one for each direction.

    Raises:
        ValueError: a part is no such layer, or has a policy.
    """
    layer = as_layer(layer)
    recipe = layer._recipe
    if recipe is not None and recipe.arguments.get("policy") is None:
        given = recipe.arguments
        if recipe.make is recurrent and not given["reverse"]:
            return [(given["cell"],)]
        if recipe.make is bidirectional:
            backward = given["forward"] if given["backward"] is None else given["backward"]
            return [(_cell_of(given["forward"]), _cell_of(backward))]
        if recipe.make is stack:
            return [cells for part in given["layers"] for cells in cells_of(part)]
    raise _no_nodes(layer)


def _cell_of(direction: Any) -> Cell:
    if isinstance(direction, Cell):
        return direction
    recipe = direction._recipe
    if recipe is None or recipe.make is not recurrent or recipe.arguments["policy"] is not None:
        raise _no_nodes(direction)
    return recipe.arguments["cell"]


def _no_nodes(layer: Any) -> ValueError:
    return ValueError(
        "layer must be a recurrent cell, forward or in both directions, or a stack of them, "
        f"without a policy, to become ONNX nodes, got {layer!r}"
    )


def kind_of(cell: Cell) -> tuple[str, str]:
    """The kind of a cell, and its activation.

    Raises:
        ValueError: there is no node for it.
    """
    recipe = cell._recipe
    make, given = (None, {}) if recipe is None else (recipe.make, recipe.arguments)
    if make is lstm:
        return "lstm", "tanh"
    if make is peephole_lstm:
        return "peephole_lstm", "tanh"
    if make is gru:
        return "gru" if given["reset_after"] else "gru_reset_before", "tanh"
    if make is vanilla:
        for name, function in _FUNCTIONS.items():
            if given["activation"] is function:
                return "vanilla", name
    raise ValueError(
        "cell must be an lstm, peephole_lstm, gru, or vanilla with one of "
        f"{list(_FUNCTIONS)}, to become an ONNX node, got {cell!r}; "
        "rnnjax.exporting takes every cell"
    )
