"""The LSTM cell whose gates see the cell state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import sigmoid

from rnnjax._checks import check_key, check_size
from rnnjax._recipe import factory
from rnnjax.base import Cell
from rnnjax.cells._common import draw_packed
from rnnjax.cells.lstm import LSTMCarry, LSTMGates, lstm_like
from rnnjax.initializers import CellInitializer, resolve


class PeepholeLSTMParams(NamedTuple):
    """``w_ih`` [D, 4H], ``w_hh`` [H, 4H], ``bias`` [4H], gates packed i, f, g, o; ``p_i``,
    ``p_f``, ``p_o`` [H], the weights from the cell state to those gates."""

    w_ih: Array
    w_hh: Array
    bias: Array
    p_i: Array
    p_f: Array
    p_o: Array


def _remember(carry: LSTMCarry, i: Array, f: Array, g: Array) -> Array:
    return f * carry.c + i * g


def _gates(params: PeepholeLSTMParams, carry: LSTMCarry, x_proj: tuple, h_proj: tuple) -> LSTMGates:
    i, f, g, o = (a + b for a, b in zip(x_proj, h_proj, strict=True))
    i = sigmoid(i + params.p_i.astype(i.dtype) * carry.c)
    f = sigmoid(f + params.p_f.astype(f.dtype) * carry.c)
    g = jnp.tanh(g)
    o = sigmoid(o + params.p_o.astype(o.dtype) * _remember(carry, i, f, g))
    return LSTMGates(i, f, g, o)


def _update(
    params: PeepholeLSTMParams, carry: LSTMCarry, x_proj: tuple, h_proj: tuple
) -> tuple[LSTMCarry, Array]:
    i, f, g, o = _gates(params, carry, x_proj, h_proj)
    c = _remember(carry, i, f, g)
    h = o * jnp.tanh(c)
    return LSTMCarry(h, c), h


@factory
def peephole_lstm(hidden_size: int, *, initializer: str | CellInitializer = "rnnjax") -> Cell:
    r"""The LSTM cell with peepholes: each gate sees the cell state of its own unit.

    .. math::

        (i, f, g, o) &= x_t W_{ih} + h_{t-1} W_{hh} + b \\
        c_t &= \sigma(f + p_f c_{t-1}) c_{t-1} + \sigma(i + p_i c_{t-1}) \tanh(g) \\
        h_t &= \sigma(o + p_o c_t) \tanh(c_t)

    The input and the forget gate see the state before the step, the output gate the one after
    it. The carry is ``LSTMCarry(h, c)``, the output is ``h``. This is ONNX's ``LSTM`` with its
    input ``P``.

    Args:
        hidden_size: H.
        initializer: a name in ``rnnjax.initializers.PRESETS``, or one of your own, for what an
            LSTM without peepholes has too. The peepholes start at zero.

    Raises:
        ValueError: a size is not a positive integer, or the initializer is unknown.

    Example:
        >>> import jax, rnnjax
        >>> cell = rnnjax.peephole_lstm(3)
        >>> params = cell.init(jax.random.key(0), 5)
        >>> params.w_hh.shape, params.p_o.shape
        ((3, 12), (3,))

    References:
        Gers and Schmidhuber, "Recurrent nets that time and count", IJCNN 2000.
    """
    size = check_size("hidden_size", hidden_size)
    draw = resolve(initializer)

    def init(key: Array, input_size: int) -> PeepholeLSTMParams:
        keys = jax.random.split(check_key(key), 3)
        w_ih, w_hh, bias = draw_packed(draw, keys, check_size("input_size", input_size), size, 4)
        bias = bias.at[size : 2 * size].add(draw.forget_bias)
        return PeepholeLSTMParams(
            w_ih, w_hh, bias, *(jnp.zeros((size,), jnp.float32) for _ in range(3))
        )

    return lstm_like(size, init, _update, _gates)
