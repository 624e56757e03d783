"""The LSTM cell whose output is projected to a smaller size."""

from typing import NamedTuple

import jax
from jax import Array

from rnnjax._checks import check_key, check_size
from rnnjax._numerics import affine
from rnnjax._recipe import factory
from rnnjax.base import Cell
from rnnjax.cells.lstm import LSTMCarry, LSTMGates, finish_lstm, lstm_gates, lstm_like
from rnnjax.initializers import CellInitializer, resolve


class ProjectedLSTMParams(NamedTuple):
    """``w_ih`` [D, 4H], ``w_hh`` [P, 4H], ``bias`` [4H], gates packed i, f, g, o; ``w_hr``
    [H, P], the projection."""

    w_ih: Array
    w_hh: Array
    bias: Array
    w_hr: Array


def _gates(
    params: ProjectedLSTMParams, carry: LSTMCarry, x_proj: tuple, h_proj: tuple
) -> LSTMGates:
    return lstm_gates(x_proj, h_proj)


def _update(
    params: ProjectedLSTMParams, carry: LSTMCarry, x_proj: tuple, h_proj: tuple
) -> tuple[LSTMCarry, Array]:
    new, large = finish_lstm(lstm_gates(x_proj, h_proj), carry)
    h = affine(large, params.w_hr)
    return LSTMCarry(h, new.c), h


@factory
def projected_lstm(
    hidden_size: int,
    projection_size: int,
    *,
    initializer: str | CellInitializer = "rnnjax",
) -> Cell:
    r"""The LSTM cell with a recurrent projection: a large cell state behind a small output.

    .. math::

        (i, f, g, o) &= x_t W_{ih} + h_{t-1} W_{hh} + b \\
        c_t &= \sigma(f) c_{t-1} + \sigma(i) \tanh(g) \\
        h_t &= (\sigma(o) \tanh(c_t)) W_{hr}

    The carry is ``LSTMCarry(h, c)`` with ``h`` [P] and ``c`` [H], the output is ``h`` [P]. This is
    what PyTorch's ``LSTM(proj_size=P)`` computes. The gradient of ``w_hr``, read inside the loop
    over time, is summed there step by step; that of ``w_hh`` is one product after it.

    Args:
        hidden_size: H, the size of the cell state and of a gate.
        projection_size: P, the size of the output, at most H.
        initializer: a name in ``rnnjax.initializers.PRESETS``, or one of your own. ``w_hh`` is
            the first P rows, and ``w_hr`` the first P columns, of what its rule for recurrent
            weights draws for H units: orthogonal weights keep orthonormal rows and columns.

    Raises:
        ValueError: a size is not a positive integer, the projection is larger than the cell state,
            or the initializer is unknown.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.projected_lstm(8, 3)
        >>> params = cell.init(jax.random.key(0), 5)
        >>> params.w_hh.shape, params.w_hr.shape
        ((3, 32), (8, 3))
        >>> carry, ys = rnnjax.unroll(cell, params, jnp.ones((2, 6, 5)), lengths=[6, 4])
        >>> ys.shape, carry.h.shape, carry.c.shape
        ((2, 6, 3), (2, 3), (2, 8))

    References:
        Sak, Senior and Beaufays, "Long short-term memory recurrent neural network architectures
        for large scale acoustic modeling", Interspeech 2014.
    """
    size = check_size("hidden_size", hidden_size)
    narrow = check_size("projection_size", projection_size)
    if narrow > size:
        raise ValueError(f"projection_size must be at most hidden_size {size}, got {narrow}")
    draw = resolve(initializer)

    def init(key: Array, input_size: int) -> ProjectedLSTMParams:
        ih, hh, b, hr = jax.random.split(check_key(key), 4)
        return ProjectedLSTMParams(
            draw.w_ih(ih, check_size("input_size", input_size), size, 4),
            draw.w_hh(hh, size, 4)[:narrow],
            draw.bias(b, size, 4).at[size : 2 * size].add(draw.forget_bias),
            draw.w_hh(hr, size, 1)[:, :narrow],
        )

    return lstm_like(size, init, _update, _gates, projection_size=narrow)
