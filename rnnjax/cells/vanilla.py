"""The simple (Elman) recurrent cell."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax._checks import check_function, check_key, check_size
from rnnjax._recipe import factory
from rnnjax.base import Cell
from rnnjax.cells._common import draw_packed, packed_cell
from rnnjax.initializers import CellInitializer, resolve


class VanillaParams(NamedTuple):
    """``w_ih`` [D, H], ``w_hh`` [H, H], ``bias`` [H]."""

    w_ih: Array
    w_hh: Array
    bias: Array


@factory
def vanilla(
    hidden_size: int,
    activation: Callable[[Array], Array] = jnp.tanh,
    *,
    initializer: str | CellInitializer = "rnnjax",
) -> Cell:
    r"""The simple recurrent cell, :math:`h_t = f(x_t W_{ih} + h_{t-1} W_{hh} + b)`.

    The carry is the new state :math:`h_t` itself, an array [H], and so is the output.

    Args:
        hidden_size: H.
        activation: f, pointwise; tanh by default.
        initializer: a name in ``rnnjax.initializers.PRESETS``, or one of your own.

    Raises:
        ValueError: a size is not a positive integer, the activation no function, or the initializer
            unknown.

    Example:
        >>> import jax, rnnjax
        >>> cell = rnnjax.vanilla(3, activation=jax.nn.relu)
        >>> params = cell.init(jax.random.key(0), 5)
        >>> params.w_ih.shape, params.w_hh.shape, params.bias.shape
        ((5, 3), (3, 3), (3,))

    References:
        Elman, "Finding structure in time", Cognitive Science 14 (1990).
    """
    size = check_size("hidden_size", hidden_size)
    check_function("activation", activation)
    draw = resolve(initializer)

    def init(key: Array, input_size: int) -> VanillaParams:
        keys = jax.random.split(check_key(key), 3)
        return VanillaParams(
            *draw_packed(draw, keys, check_size("input_size", input_size), size, 1)
        )

    def update(
        params: VanillaParams, carry: Array, x_proj: tuple, h_proj: tuple
    ) -> tuple[Array, Array]:
        h = activation(x_proj[0] + h_proj[0])
        return h, h

    return packed_cell(1, size, init, update)
