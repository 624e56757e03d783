"""The minimal LSTM, whose gates see the input alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from rnnjax._checks import check_key, check_size
from rnnjax._recipe import factory
from rnnjax.base import Cell
from rnnjax.cells._common import draw_three_biases, project_packed, zeros_of
from rnnjax.initializers import CellInitializer, resolve


class MinLSTMParams(NamedTuple):
    """``w_ih`` [D, 3H], ``bias`` [3H]; packed i, f, n."""

    w_ih: Array
    bias: Array


class MinLSTMGates(NamedTuple):
    """The normalised gates, ``i + f = 1``, each in [0, 1], and the candidate ``n``; each [H]."""

    i: Array
    f: Array
    n: Array


def _normalise(i: Array, f: Array) -> tuple[Array, Array]:
    """``sigmoid(i)`` and ``sigmoid(f)``, each over their sum."""
    # Their reciprocals are 1 + exp(-i) and 1 + exp(-f). Scaled by one factor, which the quotient
    # does not feel, they neither overflow nor both vanish, as the sigmoids of closed gates do.
    top = lax.stop_gradient(jnp.maximum(0.0, jnp.maximum(-i, -f)))
    over_i, over_f = jnp.exp(-top) + jnp.exp(-i - top), jnp.exp(-top) + jnp.exp(-f - top)
    return over_f / (over_i + over_f), over_i / (over_i + over_f)


def _gates(params: MinLSTMParams, carry: Array, x_proj: tuple, h_proj: tuple) -> MinLSTMGates:
    i, f, candidate = x_proj
    return MinLSTMGates(*_normalise(i, f), candidate)


def _linear(params: MinLSTMParams, x_proj: tuple) -> tuple[Array, Array]:
    i, f, candidate = x_proj
    new, kept = _normalise(i, f)
    return kept, new * candidate


def _update(
    params: MinLSTMParams, carry: Array, x_proj: tuple, h_proj: tuple
) -> tuple[Array, Array]:
    decay, drive = _linear(params, x_proj)
    h = decay * carry + drive
    return h, h


@factory
def min_lstm(hidden_size: int, *, initializer: str | CellInitializer = "rnnjax") -> Cell:
    r"""The minLSTM: an LSTM without recurrent weights, its gates normalised to sum to one.

    .. math::

        (i, f) &= \sigma(x_t W_i + b_i),\ \sigma(x_t W_f + b_f) \\
        n &= x_t W_n + b_n \\
        h_t &= \frac{f}{f + i} h_{t-1} + \frac{i}{f + i} n

    This is the paper's length-independent form: the state is a weighted mean of the candidates
    and keeps their scale however long the sequence. The candidate is the plain one, without the
    positive map of the paper's form in logarithms. The carry is :math:`h_t` itself, an array
    [H], and so is the output.

    Args:
        hidden_size: H.
        initializer: a name in ``rnnjax.initializers.PRESETS``, or one of your own. Its forget
            bias is added to that of f.

    Raises:
        ValueError: a size is not a positive integer, or the initializer is unknown.

    Example:
        >>> import jax, rnnjax
        >>> cell = rnnjax.min_lstm(3)
        >>> params = cell.init(jax.random.key(0), 5)
        >>> params.w_ih.shape, params.bias[3:6].tolist()
        ((5, 9), [1.0, 1.0, 1.0])

    References:
        Feng et al., "Were RNNs all we needed?", 2024, arXiv:2410.01201.
    """
    size = check_size("hidden_size", hidden_size)
    draw = resolve(initializer)

    def init(key: Array, input_size: int) -> MinLSTMParams:
        ih, b = jax.random.split(check_key(key))
        return MinLSTMParams(
            draw.w_ih(ih, check_size("input_size", input_size), size, 3),
            draw_three_biases(draw, b, size).at[size : 2 * size].add(draw.forget_bias),
        )

    return Cell(
        output_size=size,
        init=init,
        initial_carry=zeros_of(size),
        project=project_packed(3),
        update=_update,
        gates=_gates,
        linear=_linear,
    )
