"""S5: a linear system in continuous time, diagonal over complex numbers, sampled at the steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from rnnjax._checks import check_key, check_size
from rnnjax._numerics import accumulation_dtype, affine
from rnnjax._recipe import factory
from rnnjax.base import Cell
from rnnjax.cells._common import check_step_range, draw_step_log, input_and_elapsed


class S5Params(NamedTuple):
    """Real arrays all: ``decay_log``, ``frequency`` [N], which give the eigenvalues, ``step_log``
    [N], the logarithm of the time that a step takes; ``b_real``, ``b_imag`` [D, N] into the state;
    ``c_real``, ``c_imag`` [N, H] out of it; ``d`` [D, H] past it."""

    decay_log: Array
    frequency: Array
    step_log: Array
    b_real: Array
    b_imag: Array
    c_real: Array
    c_imag: Array
    d: Array


def _eigenvalues(params: S5Params, elapsed: Array | None = None) -> tuple[Array, Array]:
    """The eigenvalues, and the exponents of their decay in one step."""
    dtype = accumulation_dtype(params.decay_log.dtype)
    # At 40 all is long since forgotten. The product of two such numbers is finite in float32.
    decay = jnp.exp(jnp.minimum(params.decay_log.astype(dtype), 40))
    step = jnp.exp(jnp.minimum(params.step_log.astype(dtype), 40))
    if elapsed is not None:
        step = step * elapsed.astype(dtype)
    frequency = params.frequency.astype(dtype)
    return lax.complex(-decay, frequency), lax.complex(-decay * step, frequency * step)


def _project(params: S5Params, x: Any) -> tuple:
    inputs, elapsed = input_and_elapsed(x)
    eigenvalues, exponent = _eigenvalues(params, elapsed)
    drive = lax.complex(affine(inputs, params.b_real), affine(inputs, params.b_imag))
    held = jnp.expm1(exponent) / eigenvalues * drive
    # Without elapsed times the decay is the same at all steps, and is no array over them.
    decay = () if elapsed is None else (jnp.exp(exponent),)
    return affine(inputs, params.d), held, *decay


def _linear(params: S5Params, x_proj: tuple) -> tuple[Array, Array]:
    _, drive, *decay = x_proj
    return decay[0] if decay else jnp.exp(_eigenvalues(params)[1]), drive


def _update(params: S5Params, carry: Array, x_proj: tuple, h_proj: tuple) -> tuple[Array, Array]:
    decay, drive = _linear(params, x_proj)
    state = decay * carry + drive
    seen = affine(state.real, params.c_real) - affine(state.imag, params.c_imag)
    return state, 2 * seen + x_proj[0]


def hippo(state_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [N] and eigenvectors [2N, N] of the normal part of the HiPPO-LegS matrix, of
    size 2N: one of each conjugate pair."""
    root = np.sqrt(np.arange(2 * state_size) + 0.5)
    skew = np.triu(np.outer(root, root), 1)
    skew = skew - skew.T
    # The matrix is skew - 1/2. A skew matrix times -i is Hermitian: its eigenvalues are real.
    frequencies, vectors = np.linalg.eigh(-1j * skew)
    return -0.5 + 1j * frequencies[state_size:], vectors[:, state_size:]


@factory
def s5(
    hidden_size: int,
    state_size: int | None = None,
    *,
    min_step: float = 0.001,
    max_step: float = 0.1,
) -> Cell:
    r"""S5: a diagonal linear system in continuous time, sampled at the steps.

    .. math::

        \lambda &= -\exp(\mathrm{decay}^{log}) + i\, \mathrm{frequency}, \qquad
            z_t = \lambda \exp(\mathrm{step}^{log}) \Delta_t \\
        s_t &= e^{z_t} s_{t-1} + \frac{e^{z_t} - 1}{\lambda} (x_t B) \\
        y_t &= 2\, \mathrm{Re}(s_t C) + x_t D

    The exact solution of :math:`s' = \lambda s + x B` for an input that is held during the step.
    :math:`\Delta_t \ge 0` is the time since the step before, for series whose samples are not
    evenly spaced: inputs are a tuple ``(xs [..., T, D], elapsed [..., T, 1])``; inputs alone are
    steps of :math:`\Delta_t = 1`. A state is one of a conjugate pair, hence the 2.

    The carry is :math:`s_t`, a complex array [N]; the output is real, [H], and linear in the
    input: in a stack it wants something nonlinear between the layers. The eigenvalues start as
    those of the HiPPO-LegS matrix without its part of rank 1, of size 2N.

    Args:
        hidden_size: H, the size of the output.
        state_size: N; None for H.
        min_step: the times that a step takes start between this one ...
        max_step: ... and this one, their logarithms uniform. What is remembered lasts for some
            1 / step steps.

    Raises:
        ValueError: a size is not a positive integer, or a step is not positive, or the two are not
            in order; when it runs, elapsed times of another shape.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.s5(3, state_size=8)
        >>> params = cell.init(jax.random.key(0), 5)
        >>> params.b_real.shape, params.c_imag.shape, params.d.shape
        ((5, 8), (8, 3), (5, 3))
        >>> xs, elapsed = jnp.ones((2, 7, 5)), jnp.full((2, 7, 1), 0.5)
        >>> carry, ys = rnnjax.unroll(cell, params, (xs, elapsed), implementation="associative")
        >>> carry.dtype, ys.shape
        (dtype('complex64'), (2, 7, 3))

    References:
        Smith, Warrington and Linderman, "Simplified state space layers for sequence modeling",
        ICLR 2023, arXiv:2208.04933. There D is diagonal, the input and the output being of one
        size.
    """
    size = check_size("hidden_size", hidden_size)
    states = size if state_size is None else check_size("state_size", state_size)
    low, high = check_step_range(min_step, max_step)

    def init(key: Array, input_size: int) -> S5Params:
        inputs = check_size("input_size", input_size)
        step, b, c, d = jax.random.split(check_key(key), 4)
        eigenvalues, vectors = hippo(states)
        real, imag = (
            jnp.asarray(part, jnp.float32) for part in (np.real(vectors), np.imag(vectors))
        )
        # Drawn as real matrices of the real system of size 2N, then seen from its eigenvectors.
        into = jax.random.normal(b, (inputs, 2 * states), jnp.float32) * inputs**-0.5
        out = jax.random.normal(c, (2 * states, size), jnp.float32) * (2 * states) ** -0.5
        return S5Params(
            decay_log=jnp.asarray(np.log(-np.real(eigenvalues)), jnp.float32),
            frequency=jnp.asarray(np.imag(eigenvalues), jnp.float32),
            step_log=draw_step_log(step, states, low, high),
            b_real=into @ real,
            b_imag=-into @ imag,
            c_real=real.T @ out,
            c_imag=imag.T @ out,
            d=jax.random.normal(d, (inputs, size), jnp.float32) * inputs**-0.5,
        )

    def initial_carry(params: S5Params) -> Array:
        zeros = jnp.zeros((states,), accumulation_dtype(params.decay_log.dtype))
        return lax.complex(zeros, zeros)

    return Cell(
        output_size=size,
        init=init,
        initial_carry=initial_carry,
        project=_project,
        update=_update,
        linear=_linear,
    )
