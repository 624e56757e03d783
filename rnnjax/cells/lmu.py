"""The Legendre memory unit: the last theta steps of one signal, as N polynomials."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rnnjax._checks import check_key, check_number, check_size
from rnnjax._numerics import affine
from rnnjax._recipe import factory
from rnnjax.base import Cell
from rnnjax.cells._common import zeros_of
from rnnjax.initializers import draw_linear


class LMUParams(NamedTuple):
    """``e_x`` [D], ``e_h`` [H], ``e_m`` [N], which make the signal to remember; ``w_ih`` [D, H],
    ``w_hh`` [H, H], ``w_mh`` [N, H], which make the hidden state."""

    e_x: Array
    e_h: Array
    e_m: Array
    w_ih: Array
    w_hh: Array
    w_mh: Array


class LMUCarry(NamedTuple):
    """``h`` [H], the hidden state, and ``m`` [N], the memory."""

    h: Array
    m: Array


def legendre_memory(size: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """``A`` [N, N] and ``B`` [N] of one step of the memory, in float64: zero-order hold."""
    row, column = np.arange(size)[:, None], np.arange(size)[None]
    odd = (2 * row + 1) / theta
    a = odd * np.where(row < column, -1.0, (-1.0) ** (row - column + 1))
    b = odd[:, 0] * (-1.0) ** row[:, 0]
    # The exponential of [[a, b], [0, 0]] holds both matrices of the discrete system.
    joint = np.zeros((size + 1, size + 1))
    joint[:size, :size], joint[:size, size] = a, b
    exponential = _matrix_exponential(joint)
    return exponential[:size, :size], exponential[:size, size]


def _matrix_exponential(matrix: np.ndarray) -> np.ndarray:
    """By a Taylor series of the matrix halved until it is small, and squared as often again."""
    halvings = max(0, math.ceil(math.log2(max(np.abs(matrix).sum(axis=1).max(), 1.0))) + 1)
    small, term = matrix / 2.0**halvings, np.eye(len(matrix))
    total = term
    for k in range(1, 20):  # of norm at most 1/2: 0.5^20 / 20! is far below rounding
        term = term @ small / k
        total = total + term
    for _ in range(halvings):
        total = total @ total
    return total


@factory
def lmu(hidden_size: int, memory_size: int, theta: float) -> Cell:
    r"""The Legendre memory unit (LMU): a window into the past, kept as polynomials.

    .. math::

        u_t &= x_t e_x + h_{t-1} e_h + m_{t-1} e_m \\
        m_t &= A m_{t-1} + B u_t \\
        h_t &= \tanh(x_t W_{ih} + h_{t-1} W_{hh} + m_t W_{mh})

    A and B are fixed: the memory holds the coefficients of the last :math:`\theta` steps of the
    signal u in the first N Legendre polynomials, by a zero-order hold over one step. The products
    of a step, that with :math:`m_t` too, are one with the state before it. The carry is
    ``LMUCarry(h, m)``, the output is ``h``. There are no biases, as in the paper.

    With products of 16 bits A - I is rounded. The memory stays a stable one, but less exact than
    other cells: outputs were off by 0.08 of their norm (N = 32, :math:`\theta` = 784, 1,000 steps
    of noise), where those of an LSTM are by 0.003.

    Args:
        hidden_size: H.
        memory_size: N, the number of polynomials; more of them for faster signals.
        theta: :math:`\theta`, the length of the window in steps.

    Raises:
        ValueError: a size is not a positive integer, or ``theta`` is not positive and finite.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.lmu(4, memory_size=6, theta=20)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> carry, ys = rnnjax.unroll(cell, params, jnp.ones((2, 5, 3)))
        >>> ys.shape, carry.m.shape
        ((2, 5, 4), (2, 6))

    References:
        Voelker, Kajic and Eliasmith, "Legendre memory units: continuous-time representation in
        recurrent neural networks", NeurIPS 2019.
    """
    size, order = check_size("hidden_size", hidden_size), check_size("memory_size", memory_size)
    theta = check_number("theta", theta, "positive and finite", lambda t: 0 < t < math.inf)
    a, b = legendre_memory(order, theta)

    def init(key: Array, input_size: int) -> LMUParams:
        inputs = check_size("input_size", input_size)
        keys = jax.random.split(check_key(key), 5)
        return LMUParams(
            _lecun_uniform(keys[0], inputs),
            _lecun_uniform(keys[1], size),
            jnp.zeros((order,), jnp.float32),
            draw_linear(keys[2], inputs, size)[0],
            draw_linear(keys[3], size, size)[0],
            draw_linear(keys[4], order, size)[0],
        )

    def project(params: LMUParams, x: Array) -> tuple[Array, Array]:
        u = affine(x, params.e_x[:, None])
        into_memory = u * jnp.asarray(b, u.dtype)
        return into_memory, affine(x, params.w_ih) + affine(into_memory, params.w_mh)

    def recurrent(params: LMUParams) -> Array:
        """From (h, m) to the change of the memory and to what stands inside tanh; [H + N, N + H].

        The change, A - I: of an A in 16 bits, whose diagonal is about 1 - 1 / theta, the memory of
        a long window may grow without end.
        """
        dtype = params.w_hh.dtype
        signal = jnp.concatenate([params.e_h, params.e_m]).astype(dtype)
        drift = jnp.asarray((a - np.eye(order)).T, dtype)
        keep = jnp.concatenate([jnp.zeros((size, order), dtype), drift])
        change = keep + signal[:, None] * jnp.asarray(b, dtype)[None]
        direct = jnp.concatenate([params.w_hh, params.w_mh])
        return jnp.concatenate([change, direct + change @ params.w_mh], axis=1)

    def update(
        params: LMUParams, carry: LMUCarry, x_proj: tuple, h_proj: tuple
    ) -> tuple[LMUCarry, Array]:
        change, inside = (x + h for x, h in zip(x_proj, h_proj, strict=True))
        h = jnp.tanh(inside)
        return LMUCarry(h, carry.m + change), h

    return Cell(
        output_size=size,
        init=init,
        initial_carry=zeros_of(size, order, carry=LMUCarry),
        project=project,
        recurrent=recurrent,
        hidden=lambda carry: jnp.concatenate([carry.h, carry.m]),
        update=update,
    )


def _lecun_uniform(key: Array, size: int) -> Array:
    bound = math.sqrt(3 / size)
    return jax.random.uniform(key, (size,), jnp.float32, -bound, bound)
