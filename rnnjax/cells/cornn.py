"""The coupled oscillatory recurrent network."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax._checks import check_key, check_number, check_size
from rnnjax._recipe import factory
from rnnjax.base import Cell
from rnnjax.cells._common import packed_cell, zeros_of
from rnnjax.initializers import CellInitializer, resolve


class CoRNNParams(NamedTuple):
    """``w_ih`` [D, H], ``w_hh`` [2H, H] from the places and then from the speeds, ``bias`` [H]."""

    w_ih: Array
    w_hh: Array
    bias: Array


class CoRNNCarry(NamedTuple):
    """``y`` [H], the places of the oscillators, and ``z`` [H], their speeds."""

    y: Array
    z: Array


@factory
def cornn(
    hidden_size: int,
    *,
    time_step: float = 0.042,
    frequency: float = 2.7,
    damping: float = 4.7,
    initializer: str | CellInitializer = "rnnjax",
) -> Cell:
    r"""The coupled oscillatory network (coRNN): damped oscillators that drive one another.

    .. math::

        z_t &= z_{t-1} + \Delta\, (\tanh(x_t W_{ih} + y_{t-1} W_y + z_{t-1} W_z + b)
            - \gamma y_{t-1} - \epsilon z_{t-1}) \\
        y_t &= y_{t-1} + \Delta\, z_t

    Small steps bound the gradients over long sequences from above and below. The carry is
    ``CoRNNCarry(y, z)``, the output is ``y``.

    Args:
        hidden_size: H.
        time_step: :math:`\Delta > 0`.
        frequency: :math:`\gamma > 0`, which draws a place back to zero.
        damping: :math:`\epsilon \ge 0`, which slows it down. The three defaults are those of the
            authors for MNIST pixel by pixel, and want tuning for other data.
        initializer: a name in ``rnnjax.initializers.PRESETS``, or one of your own.

    Raises:
        ValueError: a size is not a positive integer, a number is out of range, or the initializer
            is unknown.

    Example:
        >>> import jax, rnnjax
        >>> cell = rnnjax.cornn(3)
        >>> params = cell.init(jax.random.key(0), 5)
        >>> params.w_ih.shape, params.w_hh.shape
        ((5, 3), (6, 3))

    References:
        Rusch and Mishra, "Coupled oscillatory recurrent neural network (coRNN): an accurate and
        (gradient) stable architecture for learning long time dependencies", ICLR 2021,
        arXiv:2010.00951.
    """
    size = check_size("hidden_size", hidden_size)
    positive = "positive and finite", lambda a: 0 < a < math.inf
    delta = check_number("time_step", time_step, *positive)
    gamma = check_number("frequency", frequency, *positive)
    epsilon = check_number("damping", damping, "finite and at least 0", lambda a: 0 <= a < math.inf)
    draw = resolve(initializer)

    def init(key: Array, input_size: int) -> CoRNNParams:
        ih, place, speed, b = jax.random.split(check_key(key), 4)
        return CoRNNParams(
            draw.w_ih(ih, check_size("input_size", input_size), size, 1),
            jnp.concatenate([draw.w_hh(place, size, 1), draw.w_hh(speed, size, 1)]),
            draw.bias(b, size, 1),
        )

    def update(
        params: CoRNNParams, carry: CoRNNCarry, x_proj: tuple, h_proj: tuple
    ) -> tuple[CoRNNCarry, Array]:
        force = jnp.tanh(x_proj[0] + h_proj[0])
        z = carry.z + delta * (force - gamma * carry.y - epsilon * carry.z)
        y = carry.y + delta * z
        return CoRNNCarry(y, z), y

    return packed_cell(
        1,
        size,
        init,
        update,
        initial_carry=zeros_of(size, size, carry=CoRNNCarry),
        hidden=lambda carry: jnp.concatenate([carry.y, carry.z]),
    )
