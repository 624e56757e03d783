"""The step of a language model with the first product of every token taken beforehand.

The input of the first layer is one of V vectors, and what the layer makes of it before it looks at
the carry depends on the token alone. Done once for the whole vocabulary it is a table, and a step
looks up a row of it: an LSTM then takes one product of two in every step. Values are those of
``model.step``, to rounding.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax._checks import check_params
from rnnjax._devices import with_automatic_axes
from rnnjax._native import jit
from rnnjax.base import Carry
from rnnjax.layers._first_projection import Halves, halves
from rnnjax.models.language_model import LanguageModel, LanguageModelParams, language_model

# Most rows of a larger table are never looked up, and there the head is what a step costs.
# For an LSTM of 256 units on a CPU, a table of so many rows takes what 300 steps of a text save.
_MOST_TOKENS = 1024


@functools.partial(jit, static=1)
def token_table(model: LanguageModel, params: Any) -> Any:
    """For every token what the first layer projects it to, leaves [V, H].

    None for a model that is not known to be an embedding, a layer that can be divided and a head,
    or has many tokens.
    """
    parts = _parts(model)
    if parts is None:
        return None
    embedding, layer = parts
    params = check_params(params, LanguageModelParams)
    vectors = embedding.apply(params.embedding, jnp.arange(model.vocab_size))
    return jax.vmap(layer.project, in_axes=(None, 0))(params.layer, vectors)


def step_with_table(
    model: LanguageModel, params: Any, table: Any, carry: Carry, token: Array
) -> tuple[Carry, Array]:
    """``model.step`` for tokens [...] in [0, V), given what ``token_table`` made."""
    parts = _parts(model)
    if table is None or parts is None:
        return model.step(params, carry, token)

    def look_up(given: tuple[Any, Array]) -> Any:
        rows, token = given
        return jax.tree.map(lambda a: a[token], rows)

    x_proj = with_automatic_axes(look_up, (table, token), token, token.ndim)
    carry, y = parts[1].rest.step(params.layer, carry, x_proj)
    return carry, model.head(params, y)


def _parts(model: Any) -> tuple[Any, Halves] | None:
    """The embedding, and the layer in two halves."""
    recipe = model._recipe
    if recipe is None or recipe.make is not language_model or model.vocab_size > _MOST_TOKENS:
        return None
    found = halves(recipe.arguments["layer"])
    return found and (recipe.arguments["embedding"], found)
