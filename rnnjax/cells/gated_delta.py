"""The Gated DeltaNet: a matrix as memory, in which what a key held is replaced by what is new."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import sigmoid, silu, softplus

from rnnjax._checks import check_flag, check_key, check_size
from rnnjax._numerics import carry_dtype
from rnnjax._recipe import factory
from rnnjax.base import Cell
from rnnjax.cells._common import (
    check_heads,
    draw_step_log,
    draw_three_biases,
    inverse_softplus,
)
from rnnjax.cells._matrix_memory import (
    by_head,
    chunk_of_heads,
    decays,
    product,
    project_with_gates,
    segments,
)
from rnnjax.initializers import CellInitializer, draw_linear, resolve

# The logarithm of a decay that leaves nothing, in float64 neither: sums of it stay finite.
_GONE = 1e4
# Not from 0: a draw of 0 has no logarithm.
_LEAST_RATE = 1e-3


class GatedDeltaParams(NamedTuple):
    """``w_ih`` [D, 3H] and ``bias`` [3H] of queries, keys and values, packed q, k, v; ``w_gates``
    [D, 2 heads] and ``gate_bias`` [2 heads] of the write strength and the step time of each head,
    packed b, a; ``decay_log`` [heads]."""

    w_ih: Array
    bias: Array
    w_gates: Array
    gate_bias: Array
    decay_log: Array


class _Heads(NamedTuple):
    """What a step reads: ``q``, ``k`` and ``v`` [heads, d], and of each head the write strength
    ``beta`` and ``log_decay`` [heads]."""

    q: Array
    k: Array
    v: Array
    beta: Array
    log_decay: Array


def _by_heads(params: GatedDeltaParams, x_proj: tuple, most: float) -> _Heads:
    """The pieces that ``project`` gives, [..., H] and [..., heads], by heads."""
    q, k, v, b, a = x_proj
    q, k, v = (by_head(silu(piece), b.shape[-1]) for piece in (q, k, v))
    rate = jnp.exp(jnp.minimum(params.decay_log.astype(a.dtype), 40))
    log_decay = -jnp.minimum(jnp.broadcast_to(rate, a.shape) * softplus(a), _GONE)
    q, k = _of_length_1(q) / math.sqrt(q.shape[-1]), _of_length_1(k)
    return _Heads(q, k, v, most * sigmoid(b), log_decay)


def _of_length_1(x: Array) -> Array:
    # The number added is the authors'. It decides what becomes of a vector of zeros.
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def _step_of_head(memory: Array, heads: _Heads) -> tuple[Array, Array]:
    q, k, v, beta, log_decay = heads
    kept = jnp.exp(log_decay) * memory
    memory = kept + k[:, None] * (beta * (v - product(k, kept)))[None]
    return memory, product(q, memory)


def _chunk_of_head(
    memory: Array, reset_memory: Array, heads: _Heads, valid: Array | None, resets: Array | None
) -> tuple[Array, Array]:
    """K steps at once.

    Step s adds to the memory k_s u_s, where u_s = beta_s (v_s - what the memory had under k_s).
    What it had there is made of the memory before the chunk and of the u of earlier steps, so that
    all u are the solution of one triangular system of equations [K, K].
    """
    q, k, v, beta, log_decay = heads
    if valid is not None:  # a masked step writes nothing and forgets nothing
        beta, log_decay = jnp.where(valid, beta, 0.0), jnp.where(valid, log_decay, 0.0)
    shares, is_fresh = segments(len(q), resets)
    of_steps, of_memory = decays(shares, log_decay)
    left, kept = jnp.exp(jnp.where(shares, of_steps, -jnp.inf)), jnp.exp(of_memory)[:, None]

    def start(read: Array) -> Array:
        """What ``read`` [K, d] finds in the memory that the segment of each step began with."""
        found = product(read, memory)
        if is_fresh is None:
            return kept * found
        return kept * jnp.where(is_fresh[:, None], product(read, reset_memory), found)

    earlier = jnp.tril(beta[:, None] * left * product(k, k.T), -1)
    new = beta[:, None] * (v - start(k))
    u = _solved(earlier, new)
    ys = start(q) + product(left * product(q, k.T), u)
    if is_fresh is not None:
        memory = jnp.where(is_fresh[-1], reset_memory, memory)
    return kept[-1, 0] * memory + product((left[-1][:, None] * k).T, u), ys


def _solved(lower: Array, right: Array) -> Array:
    """The u [K, d] of u + lower u = right, for a strictly lower ``lower`` [K, K].

    Not by ``triangular_solve``: its call of LAPACK waited for ever in a training loop on two cores
    (jax 0.10.2). Products are also what accelerators are built for.
    """
    if len(lower) == 1:  # of one step it is 0, and its inverse a constant that shard_map refuses
        return right
    inverse = _inverse(lower)
    return jax.lax.custom_linear_solve(
        lambda u: u + product(lower, u),
        right,
        solve=lambda _, b: product(inverse, b),
        transpose_solve=lambda _, b: product(inverse.T, b),
    )


def _inverse(lower: Array) -> Array:
    """The inverse of 1 + lower [K, K], from blocks on its diagonal that double in size: that of
    [[a, 0], [c, b]] is [[a', 0], [-b' c a', b']], with a' and b' those of a and b."""
    steps = len(lower)
    whole = 1 << max(steps - 1, 0).bit_length()  # a power of 2
    lower = jnp.pad(lower, (0, whole - steps))
    inverse = jnp.ones((whole, 1, 1), lower.dtype)
    while len(inverse) > 1:
        a, b = inverse[::2], inverse[1::2]
        count, size = len(a), a.shape[1]
        place = np.arange(count)
        c = lower.reshape(count, 2 * size, count, 2 * size)[place, size:, place, :size]
        upper = jnp.concatenate([a, jnp.zeros_like(a)], axis=2)
        inverse = jnp.concatenate(
            [upper, jnp.concatenate([-product(b, product(c, a)), b], axis=2)], axis=1
        )
    return inverse[0, :steps, :steps]


@factory
def gated_delta(
    hidden_size: int,
    *,
    num_heads: int = 1,
    negative_eigenvalues: bool = False,
    initializer: str | CellInitializer = "rnnjax",
) -> Cell:
    r"""The Gated DeltaNet: a memory in which what stood under a key is replaced by what is new.

    .. math::

        (q, k, v) &= \mathrm{silu}(x_t W_{ih} + b), \qquad
            (b_t, a_t) = x_t W_{gates} + b_{gates} \\
        \beta &= \sigma(b_t), \qquad \alpha = e^{-\exp(A^{log}) \mathrm{softplus}(a_t)}, \qquad
            \hat q = q / \lVert q \rVert, \qquad \hat k = k / \lVert k \rVert, \qquad
            \lVert a \rVert^2 = \textstyle\sum_j a_j^2 + 10^{-6} \\
        S_t &= \alpha (I - \beta \hat k \hat k^\top) S_{t-1} + \beta \hat k v^\top \\
        h_t &= S_t^\top \hat q / \sqrt d

    for each head, with d = H / heads: q, k and v are vectors [d], :math:`\alpha` and :math:`\beta`
    numbers. The carry is S, an array [heads, d, d], the axis of keys first. All of it is forgotten
    by :math:`\alpha`, and what it has under the key of this step by :math:`\beta`, where an
    :func:`rnnjax.mlstm` adds to it.

    Nothing here sees the state, so many steps are computed at once, as products of matrices and one
    triangular system of equations (``implementation="chunked"``, which ``unroll`` takes by itself):
    chunk after chunk of 64 steps, 32 on a CPU, or of ``remat=k``. The values and derivatives are
    those of step after step, to rounding.

    In the paper's block there is a convolution before each silu, and a norm of each head and a gate
    behind the cell; :func:`rnnjax.gated` has most of it.

    Args:
        hidden_size: H.
        num_heads: so many memories, each of H / heads keys and values.
        negative_eigenvalues: :math:`\beta = 2 \sigma(b_t)`. A step can then turn the sign of what
            stands under a key, and the cell can count by twos.
        initializer: a name in ``rnnjax.initializers.PRESETS``, or one of your own, for ``w_ih`` and
            ``bias``. The gates of the heads start as in the authors' code: :math:`\exp(A^{log})`
            uniform up to 16, the softplus between 0.001 and 0.1 for an input of zeros, its
            logarithm uniform, so that heads differ in how long they remember.

    Raises:
        ValueError: a size is not a positive integer, the heads do not divide the units,
            ``negative_eigenvalues`` is not a bool, or the initializer is unknown.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.gated_delta(6, num_heads=2)
        >>> params = cell.init(jax.random.key(0), 5)
        >>> carry, ys = rnnjax.unroll(cell, params, jnp.ones((4, 7, 5)), lengths=[7, 2, 0, 1])
        >>> carry.shape, ys.shape
        ((4, 2, 3, 3), (4, 7, 6))

    References:
        Yang et al., "Gated delta networks: improving Mamba2 with delta rule", ICLR 2025,
        arXiv:2412.06464; Yang et al., "Parallelizing linear transformers with the delta rule over
        sequence length", NeurIPS 2024, arXiv:2406.06484, for the chunks; Grazzi et al., "Unlocking
        state-tracking in linear RNNs through negative eigenvalues", ICLR 2025, arXiv:2411.12537.
    """
    size, heads = check_heads(hidden_size, num_heads)
    most = 2.0 if check_flag("negative_eigenvalues", negative_eigenvalues) else 1.0
    width = size // heads
    draw = resolve(initializer)

    def init(key: Array, input_size: int) -> GatedDeltaParams:
        inputs = check_size("input_size", input_size)
        ih, b, gates, decay, step = jax.random.split(check_key(key), 5)
        steps = jnp.exp(draw_step_log(step, heads, 0.001, 0.1))
        rates = jax.random.uniform(decay, (heads,), jnp.float32, _LEAST_RATE, 16.0)
        return GatedDeltaParams(
            draw.w_ih(ih, inputs, size, 3),
            draw_three_biases(draw, b, size),
            draw_linear(gates, inputs, 2 * heads)[0],
            jnp.concatenate([jnp.zeros_like(steps), inverse_softplus(steps)]),
            jnp.log(rates),
        )

    def initial_carry(params: GatedDeltaParams) -> Array:
        return jnp.zeros((heads, width, width), carry_dtype(params))

    def update(
        params: GatedDeltaParams, carry: Array, x_proj: tuple, h_proj: tuple
    ) -> tuple[Array, Array]:
        memory, y = jax.vmap(_step_of_head)(carry, _by_heads(params, x_proj, most))
        return memory, y.reshape(-1)

    def chunk(
        params: GatedDeltaParams,
        carry: Array,
        reset_carry: Array,
        x_projs: tuple,
        valid: Array | None,
        resets: Array | None,
    ) -> tuple[Array, Array]:
        pieces = _by_heads(params, x_projs, most)
        return chunk_of_heads(_chunk_of_head, carry, reset_carry, pieces, valid, resets)

    return Cell(
        output_size=size,
        init=init,
        initial_carry=initial_carry,
        project=project_with_gates(3),
        update=update,
        chunk=chunk,
    )
