"""A linear map on the output of every step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_key, check_size
from rnnjax._numerics import linear
from rnnjax.base import Carry, Cell, Key, Layer
from rnnjax.initializers import draw_linear
from rnnjax.layers._common import Steps, _public
from rnnjax.layers.recurrent import _as_layer


class HeadParams(NamedTuple):
    """Parameters ``layer`` of what is below, and ``w`` [H, O], ``bias`` [O] of the head."""

    layer: Any
    w: Array
    bias: Array


def output_head(
    layer: Cell | Layer,
    output_size: int,
    activation: Callable[[Array], Array] | None = None,
) -> Layer:
    r"""A layer with a linear map on the output of every step, :math:`Y_t = f(h_t W_o + b_o)`.

    :math:`h_t` is the new state, the one after step t. Masked steps emit exact zeros, as
    everywhere. The weights start Glorot uniform, the bias zero.

    Args:
        layer: what is below: a cell or a layer.
        output_size: O.
        activation: f; None for the identity.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> layer = rnnjax.output_head(rnnjax.vanilla(15), 1, jax.nn.sigmoid)
        >>> params = layer.init(jax.random.key(0), 5)
        >>> layer.apply(params, jnp.ones((10, 5)))[1].shape
        (10, 1)
    """
    below = _as_layer(layer)
    size = check_size("output_size", output_size)

    def init(key: Key, input_size: int) -> HeadParams:
        first, second = jax.random.split(check_key(key))
        head = draw_linear(second, below.output_size, size)
        return HeadParams(below.init(first, input_size), *head)

    def apply(
        params: HeadParams, xs: Array, steps: Steps, initial_carry: Carry, key: Key | None
    ) -> tuple[Carry, Array]:
        carry, hs = below.apply(params.layer, xs, **steps, initial_carry=initial_carry, key=key)
        ys = linear(hs, params.w, params.bias)
        ys = ys if activation is None else activation(ys)
        valid = masking.valid_steps(steps["lengths"], steps["mask"], xs.shape[:-2], xs.shape[-2])
        return carry, masking.zero_padding(valid, ys)

    return Layer(init, _public(apply), size, below.last)
