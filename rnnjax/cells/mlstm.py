"""The mLSTM of xLSTM: a matrix as memory, written under keys and read by queries."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.nn import log_sigmoid, sigmoid

from rnnjax._checks import check_key, check_size
from rnnjax._numerics import carry_dtype
from rnnjax._recipe import factory
from rnnjax.base import Cell
from rnnjax.cells._common import check_heads
from rnnjax.cells._matrix_memory import (
    by_head,
    chunk_of_heads,
    decays,
    product,
    project_with_gates,
    segments,
)
from rnnjax.initializers import CellInitializer, resolve


class MLSTMParams(NamedTuple):
    """``w_ih`` [D, 4H] and ``bias`` [4H] of queries, keys, values and output gates, packed q, k,
    v, o; ``w_gates`` [D, 2 heads] and ``gate_bias`` [2 heads] of the gates of each head, packed
    i, f."""

    w_ih: Array
    bias: Array
    w_gates: Array
    gate_bias: Array


class MLSTMCarry(NamedTuple):
    """``c`` [heads, d, d], the memory, first the axis of keys; ``n`` [heads, d], the normaliser,
    both divided by exp(m); ``m`` [heads], the stabiliser."""

    c: Array
    n: Array
    m: Array


class _Heads(NamedTuple):
    """What a step reads: ``q``, ``k``, ``v`` and the output gate ``o`` [heads, d], and the
    logarithms of the input gate ``i`` and the forget gate ``f`` [heads]."""

    q: Array
    k: Array
    v: Array
    o: Array
    i: Array
    f: Array


def _by_heads(x_proj: tuple) -> _Heads:
    """The pieces that ``project`` gives, [..., H] and [..., heads], by heads."""
    q, k, v, o, i, f = x_proj
    q, k, v, o = (by_head(a, i.shape[-1]) for a in (q, k, v, o))
    return _Heads(q, k / math.sqrt(k.shape[-1]), v, sigmoid(o), i, log_sigmoid(f))


def _read(o: Array, read: Array, total: Array, m: Array) -> Array:
    # m is at least 0 after a real step. A carry that was given may have another, which masked
    # steps hold: the bound keeps what is computed there, and not used, finite.
    least, size = jnp.exp(-_larger(m, jnp.zeros_like(m))), jnp.abs(total)
    return o * read / _larger(size, least)[..., None]


def _larger(a: Array, b: Array) -> Array:
    """The maximum, its derivative where both are equal that of ``a``.

    A choice, here and below: the derivative of a maximum asks which of its arguments equals it, and
    finds none where XLA computes an argument twice and rounds it otherwise the second time.
    """
    return jnp.where(a < b, b, a)


def _update(
    params: MLSTMParams, carry: MLSTMCarry, x_proj: tuple, h_proj: tuple
) -> tuple[MLSTMCarry, Array]:
    carry, y = jax.vmap(_step_of_head)(carry, _by_heads(x_proj))
    return carry, y.reshape(-1)


def _step_of_head(carry: MLSTMCarry, heads: _Heads) -> tuple[MLSTMCarry, Array]:
    q, k, v, o, i, f = heads
    m = _larger(_larger(f + carry.m, i), jnp.zeros_like(i))
    # The share that is kept less 1: it is near 1 itself, and its rounding would add up over the
    # steps. m less m first, which is exact where they are near: so that of the new m is made good.
    change, write = jnp.expm1(f + (carry.m - m)), jnp.exp(i - m)
    c = carry.c + (change * carry.c + write * k[:, None] * v[None])
    n = carry.n + (change * carry.n + write * k)
    return MLSTMCarry(c, n, m), _read(o, product(q, c), product(q, n), m)


def _chunk(
    params: MLSTMParams,
    carry: MLSTMCarry,
    reset_carry: MLSTMCarry,
    x_projs: tuple,
    valid: Array | None,
    resets: Array | None,
) -> tuple[MLSTMCarry, Array]:
    heads = _by_heads(x_projs)
    return chunk_of_heads(_chunk_of_head, carry, reset_carry, heads, valid, resets)


class _Start(NamedTuple):
    """What the steps of a chunk go on from: the memory before the chunk, or that after a reset.

    ``shares`` [K, K], whether step t has step s <= t in its segment; ``read`` [K, d] and ``total``
    [K], what the queries read of that memory; ``m`` [K], its stabiliser; ``c`` and ``n``, those
    that the last step goes on from.
    """

    shares: Array
    read: Array
    total: Array
    m: Array
    c: Array
    n: Array


def _start(carry: MLSTMCarry, reset_carry: MLSTMCarry, q: Array, resets: Array | None) -> _Start:
    shares, is_fresh = segments(len(q), resets)

    def of_memory(memory: MLSTMCarry) -> _Start:
        c, n, m = memory
        return _Start(shares, product(q, c), product(q, n), jnp.full(len(q), m), c, n)

    if is_fresh is None:
        return of_memory(carry)
    fresh, old = of_memory(reset_carry), of_memory(carry)
    return _Start(
        shares,
        jnp.where(is_fresh[:, None], fresh.read, old.read),
        jnp.where(is_fresh, fresh.total, old.total),
        jnp.where(is_fresh, fresh.m, old.m),
        jnp.where(is_fresh[-1], fresh.c, old.c),
        jnp.where(is_fresh[-1], fresh.n, old.n),
    )


def _weights(start: _Start, i: Array, f: Array, started: Array) -> tuple[Array, Array, Array]:
    """The stabiliser m [K], and divided by exp(m) what is left at step t of what step s wrote,
    [K, K], and of the memory before the chunk, [K]."""
    of_steps, of_memory = decays(start.shares, f)
    # Measured from the largest: a sum with an i of hundreds would be rounded as i is. It cancels.
    origin = lax.stop_gradient(jnp.maximum(jnp.max(start.m), jnp.max(i)))
    written = jnp.where(start.shares, of_steps + (i - origin)[None], -jnp.inf)
    kept = of_memory + (start.m - origin)
    both = jnp.concatenate([written, kept[:, None]], axis=1)
    largest = jnp.argmax(both, axis=1)[:, None] == jnp.arange(len(i) + 1)[None]
    m = jnp.sum(jnp.where(largest, both, 0.0), axis=1)
    m = jnp.where(started, _larger(m, jnp.full_like(m, -origin)), m)
    rounded = m + origin  # as it is kept, and so what the next chunk divides by
    m = rounded - origin
    return rounded, jnp.exp(written - m[:, None]), jnp.exp(kept - m)


def _chunk_of_head(
    carry: MLSTMCarry,
    reset_carry: MLSTMCarry,
    heads: _Heads,
    valid: Array | None,
    resets: Array | None,
) -> tuple[MLSTMCarry, Array]:
    """K steps at once: what a step reads of the others in the chunk is a product of matrices
    [K, K] and [K, d], and what it reads of the memory before the chunk is another."""
    q, k, v, o, i, f = heads
    started = jnp.ones(len(q), bool)
    if valid is not None:  # a masked step writes nothing and forgets nothing
        i, f = jnp.where(valid, i, -jnp.inf), jnp.where(valid, f, 0.0)
        started = jnp.cumsum(valid) > 0
    start = _start(carry, reset_carry, q, resets)
    m, weights, keep = _weights(start, i, f, started)
    scores = weights * product(q, k.T)
    read = product(scores, v) + keep[:, None] * start.read
    total = jnp.sum(scores, axis=1) + keep * start.total
    written = weights[-1][:, None] * k
    c = keep[-1] * start.c + product(written.T, v)
    n = keep[-1] * start.n + jnp.sum(written, axis=0)
    return MLSTMCarry(c, n, m[-1]), _read(o, read, total, m)


@factory
def mlstm(
    hidden_size: int,
    *,
    num_heads: int = 1,
    initializer: str | CellInitializer = "rnnjax",
) -> Cell:
    r"""The mLSTM: an LSTM whose memory is a matrix, written under a key and read by a query.

    .. math::

        (q, k, v, o) &= x_t W_{ih} + b, \qquad (i, f) = x_t W_{gates} + b_{gates} \\
        C_t &= \sigma(f) C_{t-1} + e^i \tfrac{k}{\sqrt d} v^\top \\
        n_t &= \sigma(f) n_{t-1} + e^i \tfrac{k}{\sqrt d} \\
        h_t &= \sigma(o) \odot \frac{C_t^\top q}{\max(|n_t^\top q|,\ 1)}

    for each head, with d = H / heads: q, k, v and o are vectors [d], the gates i and f are numbers.
    C and n are kept divided by :math:`e^m`, so that nothing overflows however large the gates are,

    .. math:: m_t = \max(\log\sigma(f) + m_{t-1},\ i,\ 0)

    and 1 becomes :math:`e^{-m}`; m cancels in the output. (The paper's m has no 0 and may fall
    without end, where :math:`e^{-m}` overflows.) The carry is ``MLSTMCarry(c, n, m)``, so its size
    is H d for each sequence.

    Nothing here sees the state, so many steps are computed at once, as products of matrices
    (``implementation="chunked"``, which ``unroll`` takes by itself): chunk after chunk of 64 steps,
    32 on a CPU, or of ``remat=k``. The values and derivatives are those of step after step, to
    rounding.

    In the paper's block q and k come of a convolution, which v does not see, and the output is
    normalised head by head; here all come of the input of the step.

    Args:
        hidden_size: H.
        num_heads: so many memories, each of H / heads keys and values.
        initializer: a name in ``rnnjax.initializers.PRESETS``, or one of your own, for ``w_ih`` and
            ``bias``. The gates of the heads start as in the authors' code: their weights at 0,
            biases i near 0, biases f from 3 to 6, so that heads differ in how long they remember.

    Raises:
        ValueError: a size is not a positive integer, the heads do not divide the units, or the
            initializer is unknown.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.mlstm(6, num_heads=2)
        >>> params = cell.init(jax.random.key(0), 5)
        >>> carry, ys = rnnjax.unroll(cell, params, jnp.ones((4, 7, 5)), lengths=[7, 2, 0, 1])
        >>> carry.c.shape, carry.m.shape, ys.shape
        ((4, 2, 3, 3), (4, 2), (4, 7, 6))

    References:
        Beck et al., "xLSTM: extended long short-term memory", NeurIPS 2024, arXiv:2405.04517.
    """
    size, heads = check_heads(hidden_size, num_heads)
    width = size // heads
    draw = resolve(initializer)

    def init(key: Array, input_size: int) -> MLSTMParams:
        inputs = check_size("input_size", input_size)
        ih, b, i = jax.random.split(check_key(key), 3)
        gate_bias = [
            0.1 * jax.random.normal(i, (heads,), jnp.float32),
            jnp.linspace(3.0, 6.0, heads, dtype=jnp.float32),
        ]
        return MLSTMParams(
            draw.w_ih(ih, inputs, size, 4),
            draw.bias(b, size, 4),
            jnp.zeros((inputs, 2 * heads), jnp.float32),
            jnp.concatenate(gate_bias),
        )

    def initial_carry(params: MLSTMParams) -> MLSTMCarry:
        zeros = jnp.zeros((heads, width, width), carry_dtype(params))
        return MLSTMCarry(zeros, zeros[:, 0], zeros[:, 0, 0])

    return Cell(
        output_size=size,
        init=init,
        initial_carry=initial_carry,
        project=project_with_gates(4),
        update=_update,
        chunk=_chunk,
    )
