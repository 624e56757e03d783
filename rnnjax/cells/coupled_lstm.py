"""The LSTM cell with one gate for writing and forgetting."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import sigmoid

from rnnjax._checks import check_key, check_size
from rnnjax._recipe import factory
from rnnjax.base import Cell
from rnnjax.cells._common import draw_three_biases
from rnnjax.cells.lstm import LSTMCarry, LSTMGates, finish_lstm, lstm_like
from rnnjax.initializers import CellInitializer, resolve


class CoupledLSTMParams(NamedTuple):
    """``w_ih`` [D, 3H], ``w_hh`` [H, 3H], ``bias`` [3H]; gates packed i, g, o. The forget gate
    has no weights of its own."""

    w_ih: Array
    w_hh: Array
    bias: Array


def _gates(params: CoupledLSTMParams, carry: LSTMCarry, x_proj: tuple, h_proj: tuple) -> LSTMGates:
    i, g, o = (a + b for a, b in zip(x_proj, h_proj, strict=True))
    # sigmoid(-i) is 1 - sigmoid(i) without the loss of digits where the input gate is open.
    return LSTMGates(sigmoid(i), sigmoid(-i), jnp.tanh(g), sigmoid(o))


def _update(
    params: CoupledLSTMParams, carry: LSTMCarry, x_proj: tuple, h_proj: tuple
) -> tuple[LSTMCarry, Array]:
    return finish_lstm(_gates(params, carry, x_proj, h_proj), carry)


@factory
def coupled_lstm(hidden_size: int, *, initializer: str | CellInitializer = "rnnjax") -> Cell:
    r"""The LSTM cell with coupled input and forget gates (CIFG): it forgets as much as it writes.

    .. math::

        (i, g, o) &= x_t W_{ih} + h_{t-1} W_{hh} + b \\
        c_t &= (1 - \sigma(i)) c_{t-1} + \sigma(i) \tanh(g) \\
        h_t &= \sigma(o) \tanh(c_t)

    The parameters hold the input gate, and the forget gate is one minus it: three gates in place
    of four. The carry is ``LSTMCarry(h, c)``, the output is ``h``. Without peepholes. This is
    ONNX's ``LSTM`` with ``input_forget=1``.

    Args:
        hidden_size: H.
        initializer: a name in ``rnnjax.initializers.PRESETS``, or one of your own. Its forget bias
            is subtracted from the bias of the input gate, which opens the forget gate as much.

    Raises:
        ValueError: a size is not a positive integer, or the initializer is unknown.

    Example:
        >>> import jax, rnnjax
        >>> cell = rnnjax.coupled_lstm(3)
        >>> params = cell.init(jax.random.key(0), 5)
        >>> params.w_ih.shape, params.w_hh.shape, params.bias.tolist()[:4]
        ((5, 9), (3, 9), [-1.0, -1.0, -1.0, 0.0])

    References:
        Greff et al., "LSTM: A search space odyssey", IEEE Transactions on Neural Networks and
        Learning Systems 28 (2017), arXiv:1503.04069.
    """
    size = check_size("hidden_size", hidden_size)
    draw = resolve(initializer)

    def init(key: Array, input_size: int) -> CoupledLSTMParams:
        ih, hh, b = jax.random.split(check_key(key), 3)
        return CoupledLSTMParams(
            draw.w_ih(ih, check_size("input_size", input_size), size, 3),
            draw.w_hh(hh, size, 3),
            draw_three_biases(draw, b, size).at[:size].add(-draw.forget_bias),
        )

    return lstm_like(size, init, _update, _gates, gates=3)
