"""S6, the selective state space of Mamba."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import softplus

from rnnjax._checks import check_key, check_size
from rnnjax._numerics import accumulation_dtype, affine
from rnnjax._recipe import factory
from rnnjax.base import Cell
from rnnjax.cells._common import check_step_range, draw_step_log, inverse_softplus
from rnnjax.initializers import draw_linear

# Below it a step changes nothing for thousands of steps; the authors' code starts none lower.
_LEAST_STEP = 1e-4


class S6Params(NamedTuple):
    """``w_down`` [H, R] and ``w_step`` [R, H], ``step_bias`` [H], which give the step times;
    ``w_in``, ``w_out`` [H, N] into the state and out of it; ``decay_log`` [H, N]; ``d`` [H] past
    it."""

    w_down: Array
    w_step: Array
    step_bias: Array
    w_in: Array
    w_out: Array
    decay_log: Array
    d: Array

    # Read in no matrix product, whose operands a policy rounds.
    POINTWISE = ("decay_log",)


def _project(params: S6Params, x: Array) -> tuple[Array, ...]:
    step = softplus(affine(affine(x, params.w_down), params.w_step, params.step_bias))
    x = x.astype(step.dtype)
    skip = params.d.astype(step.dtype) * x
    return step, step * x, affine(x, params.w_in), affine(x, params.w_out), skip


def _linear(params: S6Params, x_proj: tuple) -> tuple[Array, Array]:
    step, driven, into, *_ = x_proj
    # At 40 all is long since forgotten, and the product with a step is finite in float32.
    rate = jnp.exp(jnp.minimum(params.decay_log.astype(step.dtype), 40))
    return jnp.exp(-step[:, None] * rate), driven[:, None] * into[None]


def _update(params: S6Params, carry: Array, x_proj: tuple, h_proj: tuple) -> tuple[Array, Array]:
    decay, drive = _linear(params, x_proj)
    *_, out, skip = x_proj
    state = decay * carry + drive
    return state, jnp.sum(state * out[None], axis=-1) + skip


@factory
def s6(
    hidden_size: int,
    state_size: int = 16,
    *,
    step_rank: int | None = None,
    min_step: float = 0.001,
    max_step: float = 0.1,
) -> Cell:
    r"""S6, the selective scan of Mamba: N states for each of H channels, driven as the input says.

    .. math::

        \Delta_t &= \mathrm{softplus}(x_t W_{down} W_{step} + b), \qquad
            B_t = x_t W_{in}, \qquad C_t = x_t W_{out} \\
        s_t[h, n] &= e^{-\Delta_t[h] \exp(A^{log}[h, n])} s_{t-1}[h, n]
            + \Delta_t[h]\, x_t[h]\, B_t[n] \\
        y_t[h] &= \textstyle\sum_n s_t[h, n]\, C_t[n] + d[h]\, x_t[h]

    How long the state lasts, what is written into it and what is read from it all follow from the
    input, but never from the state: the cell is linear in it and can run in parallel over time.
    The carry is :math:`s_t`, an array [H, N]. Inputs are as wide as outputs, H. For the whole
    block, with its convolution and its gate, see :func:`rnnjax.gated`.

    Args:
        hidden_size: H, of inputs and outputs.
        state_size: N.
        step_rank: R, the rank of the map to the step times; None for H / 32, rounded up.
        min_step: the step times start between this one ...
        max_step: ... and this one, their logarithms uniform, for an input of zeros; never below
            1e-4.

    Raises:
        ValueError: a size is not a positive integer, a step is not positive, or the two are not in
            order; from ``init``, an input of another size.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.s6(8, state_size=4)
        >>> params = cell.init(jax.random.key(0), 8)
        >>> layer = rnnjax.recurrent(cell, implementation="associative")
        >>> carry, ys = layer.apply(params, jnp.ones((2, 5, 8)), lengths=[5, 2])
        >>> carry.shape, ys.shape
        ((2, 8, 4), (2, 5, 8))

    References:
        Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", 2023,
        arXiv:2312.00752, algorithm 2; the input is sampled as in the authors' code, by
        :math:`\Delta B x`.
    """
    size = check_size("hidden_size", hidden_size)
    states = check_size("state_size", state_size)
    rank = math.ceil(size / 32) if step_rank is None else check_size("step_rank", step_rank)
    low, high = check_step_range(min_step, max_step)

    def init(key: Array, input_size: int) -> S6Params:
        if check_size("input_size", input_size) != size:
            raise ValueError(f"input_size must be hidden_size, {size}, got {input_size}")
        down, up, step, into, out = jax.random.split(check_key(key), 5)
        steps = jnp.exp(draw_step_log(step, size, low, high))
        steps = jnp.maximum(steps, _LEAST_STEP)
        return S6Params(
            w_down=draw_linear(down, size, rank)[0],
            w_step=jax.random.uniform(up, (rank, size), jnp.float32, -1.0, 1.0) * rank**-0.5,
            step_bias=inverse_softplus(steps),
            w_in=draw_linear(into, size, states)[0],
            w_out=draw_linear(out, size, states)[0],
            decay_log=jnp.tile(jnp.log(jnp.arange(1, states + 1, dtype=jnp.float32)), (size, 1)),
            d=jnp.ones((size,), jnp.float32),
        )

    def initial_carry(params: S6Params) -> Array:
        return jnp.zeros((size, states), accumulation_dtype(params.decay_log.dtype))

    return Cell(
        output_size=size,
        init=init,
        initial_carry=initial_carry,
        project=_project,
        update=_update,
        linear=_linear,
    )
