"""The long short-term memory cell."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import sigmoid

from rnnjax._checks import check_key, check_size
from rnnjax._recipe import factory
from rnnjax.base import Cell
from rnnjax.cells._common import draw_packed, packed_cell, zeros_of
from rnnjax.initializers import CellInitializer, resolve


class LSTMParams(NamedTuple):
    """``w_ih`` [D, 4H], ``w_hh`` [H, 4H], ``bias`` [4H]; gates packed i, f, g, o."""

    w_ih: Array
    w_hh: Array
    bias: Array


class LSTMCarry(NamedTuple):
    """``h`` [H], the output of the last step, and ``c`` [H], the cell state."""

    h: Array
    c: Array


class LSTMGates(NamedTuple):
    """Input, forget and output gate in [0, 1], and the candidate ``g`` in [-1, 1]; each [H]."""

    i: Array
    f: Array
    g: Array
    o: Array


def lstm_gates(x_proj: tuple, h_proj: tuple) -> LSTMGates:
    """The four gates of an LSTM, from the two halves of their sums."""
    i, f, g, o = (a + b for a, b in zip(x_proj, h_proj, strict=True))
    return LSTMGates(sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o))


def finish_lstm(
    gates: LSTMGates, carry: LSTMCarry, candidate: Array | None = None
) -> tuple[LSTMCarry, Array]:
    """The step of an LSTM once its gates are there; the candidate may be another than ``g``."""
    c = gates.f * carry.c + gates.i * (gates.g if candidate is None else candidate)
    h = gates.o * jnp.tanh(c)
    return LSTMCarry(h, c), h


def _gates(params: Any, carry: LSTMCarry, x_proj: tuple, h_proj: tuple) -> LSTMGates:
    return lstm_gates(x_proj, h_proj)


def _update(
    params: LSTMParams, carry: LSTMCarry, x_proj: tuple, h_proj: tuple
) -> tuple[LSTMCarry, Array]:
    return finish_lstm(lstm_gates(x_proj, h_proj), carry)


@factory
def lstm(hidden_size: int, *, initializer: str | CellInitializer = "rnnjax") -> Cell:
    r"""The LSTM cell with a forget gate, all gates in one matrix.

    .. math::

        (i, f, g, o) &= x_t W_{ih} + h_{t-1} W_{hh} + b \\
        c_t &= \sigma(f) c_{t-1} + \sigma(i) \tanh(g) \\
        h_t &= \sigma(o) \tanh(c_t)

    The carry is ``LSTMCarry(h, c)``, the output is ``h``.

    Args:
        hidden_size: H.
        initializer: a name in ``rnnjax.initializers.PRESETS``, or one of your own. The default
            draws orthogonal recurrent weights gate by gate and a forget bias of 1.

    Raises:
        ValueError: a size is not a positive integer, or the initializer is unknown.

    Example:
        >>> import jax, rnnjax
        >>> cell = rnnjax.lstm(3)
        >>> params = cell.init(jax.random.key(0), 5)
        >>> params.w_ih.shape, params.w_hh.shape
        ((5, 12), (3, 12))
        >>> params.bias[3:6].tolist()
        [1.0, 1.0, 1.0]

    References:
        Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9 (1997);
        Gers, Schmidhuber and Cummins, "Learning to forget", Neural Computation 12 (2000).
    """
    size = check_size("hidden_size", hidden_size)
    draw = resolve(initializer)

    def init(key: Array, input_size: int) -> LSTMParams:
        keys = jax.random.split(check_key(key), 3)
        w_ih, w_hh, bias = draw_packed(draw, keys, check_size("input_size", input_size), size, 4)
        return LSTMParams(w_ih, w_hh, bias.at[size : 2 * size].add(draw.forget_bias))

    return lstm_like(size, init, _update, _gates)


def lstm_like(
    size: int,
    init: Callable,
    update: Callable,
    gate_values: Callable,
    *,
    gates: int = 4,
    projection_size: int | None = None,
) -> Cell:
    """A cell with an LSTM's carry and packed gates; ``h`` may be of another size than ``c``."""
    h_size = size if projection_size is None else projection_size
    return packed_cell(
        gates,
        size,
        init,
        update,
        initial_carry=zeros_of(h_size, size, carry=LSTMCarry),
        hidden=lambda carry: carry.h,
        output_size=h_size,
        gate_values=gate_values,
    )
