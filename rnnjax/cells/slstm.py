"""The sLSTM of xLSTM: exponential gates, a normaliser, and a stabiliser that keeps them finite."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import log_sigmoid, sigmoid

from rnnjax._checks import check_key, check_size
from rnnjax._recipe import factory
from rnnjax.base import Cell
from rnnjax.cells._common import check_heads, packed_cell, zeros_of
from rnnjax.initializers import CellInitializer, resolve


class SLSTMParams(NamedTuple):
    """``w_ih`` [D, 4H], ``w_hh`` [H, 4H], or blocks [heads, H/heads, 4H/heads], ``bias`` [4H];
    gates packed i, f, z, o."""

    w_ih: Array
    w_hh: Array
    bias: Array


class SLSTMCarry(NamedTuple):
    """``h`` [H], the output of the last step; ``c``, ``n`` [H], cell state and normaliser, both
    divided by exp(m); ``m`` [H], the stabiliser."""

    h: Array
    c: Array
    n: Array
    m: Array


def _update(
    params: SLSTMParams, carry: SLSTMCarry, x_proj: tuple, h_proj: tuple
) -> tuple[SLSTMCarry, Array]:
    i, f, z, o = (a + b for a, b in zip(x_proj, h_proj, strict=True))
    kept = log_sigmoid(f) + carry.m
    # One that is learned may fall below 0, where the output would have a pole.
    before = jnp.where(carry.n < 0, jnp.zeros_like(carry.n), carry.n)
    # Before the first step there is nothing to keep. After it n is at least 1.
    # A choice and no maximum, whose derivative asks which of the two equals it: neither does where
    # XLA computes one twice and rounds it otherwise the second time.
    m = jnp.where((before == 0) | (kept < i), i, kept)
    # Above 0 only where n is 0 and i may be far below: bounded, for 0 times infinity is no number.
    bound = 0.9 * math.log(float(jnp.finfo(m.dtype).max))
    write, keep = jnp.exp(i - m), jnp.exp(jnp.minimum(kept - m, bound))
    c = keep * carry.c + write * jnp.tanh(z)
    n = keep * before + write
    h = sigmoid(o) * c / n
    return SLSTMCarry(h, c, n, m), h


@factory
def slstm(
    hidden_size: int,
    *,
    num_heads: int = 1,
    initializer: str | CellInitializer = "rnnjax",
) -> Cell:
    r"""The sLSTM: an LSTM whose input gate is exponential, with a normalised cell state.

    .. math::

        (i, f, z, o) &= x_t W_{ih} + h_{t-1} W_{hh} + b \\
        m_t &= \max(\log\sigma(f) + m_{t-1},\ i) \\
        i' &= \exp(i - m_t), \quad f' = \exp(\log\sigma(f) + m_{t-1} - m_t) \\
        c_t &= f' c_{t-1} + i' \tanh(z) \\
        n_t &= f' n_{t-1} + i' \\
        h_t &= \sigma(o)\, c_t / n_t

    with :math:`m_1 = i` at the first step. A new input may outweigh all that was stored before,
    which the gates of an LSTM cannot bring about. The stabiliser m cancels in the output; c and n
    are kept divided by exp(m), and nothing overflows however large the gates are. The carry is
    ``SLSTMCarry(h, c, n, m)``, the output is ``h``; an n below 0, as it may be learned, counts as
    0.

    Args:
        hidden_size: H.
        num_heads: the units are in so many groups, and see the last outputs of their own group
            alone: the recurrent matrix is block-diagonal.
        initializer: a name in ``rnnjax.initializers.PRESETS``, or one of your own, for the
            weights and biases. To the forget gates is added, in place of its forget bias, the
            power law of the authors' code, :math:`5 - 12\,(k / (K - 1))^{0.3}` for unit k
            of the K of a head, counted from 0 (5 where K is 1): some units start with a long
            memory, others with none.

    Raises:
        ValueError: a size is not a positive integer, the heads do not divide the units, or the
            initializer is unknown.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.slstm(3)
        >>> params = cell.init(jax.random.key(0), 5)
        >>> params.w_ih.shape, params.bias[3:6].round(2).tolist()
        ((5, 12), [5.0, -4.75, -7.0])
        >>> carry, ys = rnnjax.unroll(cell, params, 1e4 * jnp.ones((7, 5)))
        >>> bool(jnp.all(jnp.isfinite(ys)))
        True

    References:
        Beck et al., "xLSTM: extended long short-term memory", NeurIPS 2024, arXiv:2405.04517.
    """
    size, heads = check_heads(hidden_size, num_heads)
    draw = resolve(initializer)

    def init(key: Array, input_size: int) -> SLSTMParams:
        ih, hh, b = jax.random.split(check_key(key), 3)
        if heads == 1:
            w_hh = draw.w_hh(hh, size, 4)
        else:
            w_hh = jax.vmap(lambda k: draw.w_hh(k, size // heads, 4))(jax.random.split(hh, heads))
        places = jnp.tile(jnp.linspace(0.0, 1.0, size // heads, dtype=jnp.float32), heads)
        return SLSTMParams(
            draw.w_ih(ih, check_size("input_size", input_size), size, 4),
            w_hh,
            draw.bias(b, size, 4).at[size : 2 * size].add(5 - 12 * places**0.3),
        )

    return packed_cell(
        4,
        size,
        init,
        _update,
        initial_carry=zeros_of(*(size,) * 4, carry=SLSTMCarry),
        hidden=lambda carry: carry.h,
    )
