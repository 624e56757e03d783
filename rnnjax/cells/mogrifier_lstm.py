"""An LSTM whose input and state gate one another before they meet."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import sigmoid

from rnnjax._checks import check_key, check_number, check_size
from rnnjax._numerics import accumulation_dtype, affine, split_gates
from rnnjax._recipe import factory
from rnnjax.base import Cell
from rnnjax.cells._common import check_input
from rnnjax.cells.lstm import LSTMCarry
from rnnjax.initializers import CellInitializer, resolve


class MogrifierLSTMParams(NamedTuple):
    """Of an LSTM ``w_ih`` [D, 4H], ``w_hh`` [H, 4H], ``bias`` [4H]; and one matrix a round.

    ``rounds`` alternates [H, D], from the state to the input, and [D, H], the other way. With a
    rank each is a pair of matrices whose product it is.
    """

    w_ih: Array
    w_hh: Array
    bias: Array
    rounds: tuple


@factory
def mogrifier_lstm(
    hidden_size: int,
    *,
    rounds: int = 5,
    rank: int | None = None,
    initializer: str | CellInitializer = "rnnjax",
) -> Cell:
    r"""The Mogrifier LSTM: some rounds of gating before each step of an LSTM.

    With :math:`x^{-1} = x_t` and :math:`h^0 = h_{t-1}`, for :math:`i = 1 \dots r`

    .. math::

        x^i &= 2 \sigma(h^{i-1} Q^i) \odot x^{i-2} \quad \text{for odd } i \\
        h^i &= 2 \sigma(x^{i-1} R^i) \odot h^{i-2} \quad \text{for even } i

    and then an LSTM step from the last x and h. Without rounds it is the LSTM. The products inside
    a round follow one another, so the cell runs as a plain step, with ordinary autodiff.

    Args:
        hidden_size: H.
        rounds: r, at least 0; the paper uses 5.
        rank: of the matrices of the rounds, for fewer parameters; None for whole ones.
        initializer: of the LSTM's parameters, as for ``lstm``.

    Raises:
        ValueError: a size is not a positive integer, or the initializer is unknown.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.mogrifier_lstm(4, rounds=3)
        >>> params = cell.init(jax.random.key(0), 6)
        >>> [w.shape for w in params.rounds]
        [(4, 6), (6, 4), (4, 6)]
        >>> rnnjax.unroll(cell, params, jnp.ones((2, 5, 6)))[1].shape
        (2, 5, 4)

    References:
        Melis, Kočiský and Blunsom, "Mogrifier LSTM", ICLR 2020.
    """
    size = check_size("hidden_size", hidden_size)
    whole = "a whole number from 0 on"
    count = int(check_number("rounds", rounds, whole, lambda n: isinstance(n, int) and n >= 0))
    width = None if rank is None else check_size("rank", rank)
    draw = resolve(initializer)

    def init(key: Array, input_size: int) -> MogrifierLSTMParams:
        ih, hh, b, *inner = jax.random.split(check_key(key), 3 + count)
        features = check_size("input_size", input_size)
        shapes = [(size, features) if i % 2 == 0 else (features, size) for i in range(count)]
        return MogrifierLSTMParams(
            draw.w_ih(ih, features, size, 4),
            draw.w_hh(hh, size, 4),
            draw.bias(b, size, 4).at[size : 2 * size].add(draw.forget_bias),
            tuple(_draw_round(k, *shape, width) for k, shape in zip(inner, shapes, strict=True)),
        )

    def initial_carry(params: MogrifierLSTMParams) -> LSTMCarry:
        dtype = accumulation_dtype(params.w_hh.dtype)
        return LSTMCarry(jnp.zeros((size,), dtype), jnp.zeros((size,), dtype))

    def project(params: MogrifierLSTMParams, x: Array) -> tuple[Array]:
        check_input(x, params.w_ih.shape[0])
        return (x.astype(accumulation_dtype(params.w_ih.dtype)),)

    def plain_step(
        params: MogrifierLSTMParams, carry: LSTMCarry, x_proj: tuple
    ) -> tuple[LSTMCarry, Array]:
        (x,), h = x_proj, carry.h
        for i, weights in enumerate(params.rounds):
            if i % 2 == 0:
                x = 2 * sigmoid(_times(h, weights)) * x
            else:
                h = 2 * sigmoid(_times(x, weights)) * h
        gates = affine(x, params.w_ih, params.bias) + affine(h, params.w_hh)
        i, f, g, o = split_gates(gates, 4)
        c = sigmoid(f) * carry.c + sigmoid(i) * jnp.tanh(g)
        h = sigmoid(o) * jnp.tanh(c)
        return LSTMCarry(h, c), h

    return Cell(
        output_size=size,
        init=init,
        initial_carry=initial_carry,
        project=project,
        plain_step=plain_step,
    )


def _draw_round(key: Array, rows: int, columns: int, rank: int | None) -> Array | tuple:
    """Glorot uniform; of a product, each of its two factors by its own shape."""
    if rank is None:
        return _glorot(key, rows, columns)
    left, right = jax.random.split(key)
    return _glorot(left, rows, rank), _glorot(right, rank, columns)


def _glorot(key: Array, rows: int, columns: int) -> Array:
    limit = (6 / (rows + columns)) ** 0.5
    return jax.random.uniform(key, (rows, columns), jnp.float32, -limit, limit)


def _times(x: Array, weights: Array | tuple) -> Array:
    if isinstance(weights, tuple):
        left, right = weights
        return affine(affine(x, left), right)
    return affine(x, weights)
