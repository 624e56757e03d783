"""The long short-term memory cell."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import sigmoid

from rnnjax._checks import check_key, check_size
from rnnjax._numerics import accumulation_dtype, linear, split_gates
from rnnjax._recipe import factory
from rnnjax.base import Cell
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


def _gates(params: LSTMParams, carry: LSTMCarry, x_proj: tuple, h_proj: tuple) -> LSTMGates:
    i, f, g, o = (a + b for a, b in zip(x_proj, h_proj, strict=True))
    return LSTMGates(sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o))


def _update(
    params: LSTMParams, carry: LSTMCarry, x_proj: tuple, h_proj: tuple
) -> tuple[LSTMCarry, Array]:
    i, f, g, o = _gates(params, carry, x_proj, h_proj)
    c = f * carry.c + i * g
    h = o * jnp.tanh(c)
    return LSTMCarry(h, c), h


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
        ih, hh, b = jax.random.split(check_key(key), 3)
        return LSTMParams(
            draw.w_ih(ih, check_size("input_size", input_size), size, 4),
            draw.w_hh(hh, size, 4),
            draw.bias(b, size, 4).at[size : 2 * size].add(draw.forget_bias),
        )

    def initial_carry(params: LSTMParams) -> LSTMCarry:
        zeros = jnp.zeros((size,), accumulation_dtype(params.w_hh.dtype))
        return LSTMCarry(zeros, zeros)

    def project(params: LSTMParams, x: Array) -> tuple[Array, ...]:
        return split_gates(linear(x, params.w_ih, params.bias), 4)

    return Cell(
        output_size=size,
        init=init,
        initial_carry=initial_carry,
        project=project,
        recurrent=lambda params: params.w_hh,
        hidden=lambda carry: carry.h,
        update=_update,
        gates=_gates,
    )
