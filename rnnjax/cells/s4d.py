"""S4D: a small diagonal linear system in continuous time for every channel."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from rnnjax._checks import check_key, check_size
from rnnjax._numerics import accumulation_dtype
from rnnjax._recipe import factory
from rnnjax.base import Cell
from rnnjax.cells._common import (
    check_input,
    check_step_range,
    draw_step_log,
    input_and_elapsed,
)

FREQUENCIES = ("linear", "inverse")
SAMPLINGS = ("hold", "bilinear")


class S4DParams(NamedTuple):
    """Real arrays all: ``decay_log``, ``frequency`` [H, N], which give the eigenvalues of every
    channel; ``step_log`` [H], the logarithm of the time that a step takes; ``c_real``, ``c_imag``
    [H, N] out of the state; ``d`` [H] past it."""

    decay_log: Array
    frequency: Array
    step_log: Array
    c_real: Array
    c_imag: Array
    d: Array

    # Read in no matrix product, whose operands a policy rounds.
    POINTWISE = ("decay_log", "frequency", "c_real", "c_imag")


def _complex(a: Array) -> Array:
    return lax.complex(a, jnp.zeros_like(a))


def _sampled(sampling: str, params: S4DParams, elapsed: Array | None) -> tuple[Array, Array]:
    """What a step makes of the state and of the input, [H, N] each."""
    dtype = accumulation_dtype(params.decay_log.dtype)
    # At 40 all is long since forgotten. The product of two such numbers is finite in float32.
    decay = jnp.exp(jnp.minimum(params.decay_log.astype(dtype), 40))
    step = jnp.exp(jnp.minimum(params.step_log.astype(dtype), 40))[:, None]
    if elapsed is not None:
        step = step * elapsed.astype(dtype)[None]
    frequency = params.frequency.astype(dtype)
    eigenvalues = lax.complex(-decay, frequency)
    exponent = lax.complex(-decay * step, frequency * step)
    if sampling == "hold":
        return jnp.exp(exponent), jnp.expm1(exponent) / eigenvalues
    # The real part of the divisor is at least 1.
    divisor = 1 - exponent / 2
    return (1 + exponent / 2) / divisor, _complex(step) / divisor


def _frequencies(kind: str, states: int) -> np.ndarray:
    places = np.arange(states)
    if kind == "linear":
        return np.pi * places
    # One of each conjugate pair: the system has 2N states.
    return 2 * states / np.pi * (2 * states / (2 * places + 1) - 1)


@factory
def s4d(
    hidden_size: int,
    state_size: int = 32,
    *,
    frequencies: Literal["linear", "inverse"] = "linear",
    sampling: Literal["hold", "bilinear"] = "hold",
    min_step: float = 0.001,
    max_step: float = 0.1,
) -> Cell:
    r"""S4D: a diagonal linear system in continuous time for every channel, sampled at the steps.

    .. math::

        \lambda &= -\exp(\mathrm{decay}^{log}) + i\, \mathrm{frequency}, \qquad
            z_t = \lambda \exp(\mathrm{step}^{log}) \Delta_t \\
        s_t &= e^{z_t} \odot s_{t-1} + \frac{e^{z_t} - 1}{\lambda} \odot x_t \\
        y_t &= 2\, \mathrm{Re} \sum_n C_n s_{t,n} + d \odot x_t

    Each of the H channels has N states of its own and sees its own input alone, so inputs are as
    wide as outputs; what mixes channels are the layers between, such as ``gated``. That is the
    exact solution of :math:`s' = \lambda s + x` for an input that is held during the step, and
    :math:`\Delta_t \ge 0` is the time since the step before, given as for ``s5``: inputs are a
    tuple ``(xs [..., T, H], elapsed [..., T, 1])``, or inputs alone, steps of
    :math:`\Delta_t = 1`. With ``sampling="bilinear"`` the two factors are
    :math:`(1 + z_t / 2) / (1 - z_t / 2)` and :math:`\exp(\mathrm{step}^{log}) \Delta_t /
    (1 - z_t / 2)`.

    The carry is :math:`s_t`, a complex array [H, N], one of each conjugate pair, hence the 2; the
    output is real and linear in the input.

    Args:
        hidden_size: H, of inputs and outputs.
        state_size: N.
        frequencies: where the imaginary parts of :math:`\lambda_n` start, for n from 0 to N - 1:
            "linear", S4D-Lin, at :math:`\pi n`; "inverse", S4D-Inv, at
            :math:`\frac{2N}{\pi} (\frac{2N}{2n + 1} - 1)`. The real parts start at -1/2.
        sampling: "hold" or "bilinear".
        min_step: the time that a step takes starts, in each channel, between this one ...
        max_step: ... and this one, their logarithms uniform. What is remembered lasts for some
            1 / step steps.

    Raises:
        ValueError: a size is not a positive integer, a name is unknown, a step is not positive, or
            the two are not in order; from ``init``, an input of another size; when it runs,
            elapsed times of another shape.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.s4d(3, state_size=4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> layer = rnnjax.recurrent(cell, implementation="associative")
        >>> carry, ys = layer.apply(params, jnp.ones((2, 5, 3)), lengths=[5, 2])
        >>> carry.shape, carry.dtype, ys.shape
        ((2, 3, 4), dtype('complex64'), (2, 5, 3))

    References:
        Gu, Gupta, Goel and Ré, "On the parameterization and initialization of diagonal state space
        models", NeurIPS 2022, arXiv:2206.11893. B and C appear as their product alone, so B is 1
        here and in the authors' code of one file.
    """
    size = check_size("hidden_size", hidden_size)
    states = check_size("state_size", state_size)
    for name, given, known in (
        ("frequencies", frequencies, FREQUENCIES),
        ("sampling", sampling, SAMPLINGS),
    ):
        if given not in known:
            raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got {given!r}")
    low, high = check_step_range(min_step, max_step)

    def init(key: Array, input_size: int) -> S4DParams:
        if check_size("input_size", input_size) != size:
            raise ValueError(f"input_size must be hidden_size, {size}, got {input_size}")
        step, c, d = jax.random.split(check_key(key), 3)
        # A complex number of variance 1.
        parts = jax.random.normal(c, (2, size, states), jnp.float32) * 0.5**0.5
        rows = np.tile(_frequencies(frequencies, states), (size, 1))
        return S4DParams(
            decay_log=jnp.full((size, states), np.log(0.5), jnp.float32),
            frequency=jnp.asarray(rows, jnp.float32),
            step_log=draw_step_log(step, size, low, high),
            c_real=parts[0],
            c_imag=parts[1],
            d=jax.random.normal(d, (size,), jnp.float32),
        )

    def initial_carry(params: S4DParams) -> Array:
        zeros = jnp.zeros((size, states), accumulation_dtype(params.decay_log.dtype))
        return lax.complex(zeros, zeros)

    def project(params: S4DParams, x: Any) -> tuple:
        inputs, elapsed = input_and_elapsed(x)
        check_input(inputs, params.d.shape[0])
        inputs = inputs.astype(accumulation_dtype(params.decay_log.dtype))
        return (inputs,) if elapsed is None else (inputs, elapsed)

    def linear(params: S4DParams, x_proj: tuple) -> tuple[Array, Array]:
        inputs, *elapsed = x_proj
        grown, held = _sampled(sampling, params, elapsed[0] if elapsed else None)
        return grown, held * _complex(inputs[:, None])

    def update(
        params: S4DParams, carry: Array, x_proj: tuple, h_proj: tuple
    ) -> tuple[Array, Array]:
        decay, drive = linear(params, x_proj)
        state = decay * carry + drive
        dtype = state.real.dtype
        c_real, c_imag = params.c_real.astype(dtype), params.c_imag.astype(dtype)
        seen = jnp.sum(state.real * c_real - state.imag * c_imag, axis=-1)
        return state, 2 * seen + params.d.astype(dtype) * x_proj[0]

    return Cell(
        output_size=size,
        init=init,
        initial_carry=initial_carry,
        project=project,
        update=update,
        linear=linear,
    )
