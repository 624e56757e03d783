"""The linear recurrent unit: a diagonal linear recurrence over complex numbers."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from rnnjax._checks import check_key, check_number, check_size
from rnnjax._numerics import accumulation_dtype, affine
from rnnjax._recipe import factory
from rnnjax.base import Cell


class LRUParams(NamedTuple):
    """Real arrays all: ``nu_log``, ``theta_log`` [N], which give the eigenvalues, ``gamma_log``
    [N], the logarithm of the scale of the input; ``b_real``, ``b_imag`` [D, N] into the state;
    ``c_real``, ``c_imag`` [N, H] out of it; ``d`` [D, H] past it."""

    nu_log: Array
    theta_log: Array
    gamma_log: Array
    b_real: Array
    b_imag: Array
    c_real: Array
    c_imag: Array
    d: Array


def _eigenvalues(params: LRUParams) -> Array:
    dtype = accumulation_dtype(params.nu_log.dtype)
    # At 80 the radius is long since 0 and its gradient too. Above 88 exp overflows: the gradient of
    # the radius would be 0 times infinity, and an infinite phase has no cosine.
    radius = jnp.exp(-jnp.exp(jnp.minimum(params.nu_log.astype(dtype), 80)))
    phase = jnp.exp(jnp.minimum(params.theta_log.astype(dtype), 80))
    return lax.complex(radius * jnp.cos(phase), radius * jnp.sin(phase))


def _project(params: LRUParams, x: Array) -> tuple[Array, Array]:
    real, imag = affine(x, params.b_real), affine(x, params.b_imag)
    gamma = jnp.exp(params.gamma_log.astype(real.dtype))
    return affine(x, params.d), lax.complex(gamma * real, gamma * imag)


def _linear(params: LRUParams, x_proj: tuple) -> tuple[Array, Array]:
    return _eigenvalues(params), x_proj[1]


def _update(params: LRUParams, carry: Array, x_proj: tuple, h_proj: tuple) -> tuple[Array, Array]:
    decay, drive = _linear(params, x_proj)
    state = decay * carry + drive
    seen = affine(state.real, params.c_real) - affine(state.imag, params.c_imag)
    return state, seen + x_proj[0]


class _Ring(NamedTuple):
    """Where eigenvalues start: uniform over the area between two circles, up to a phase."""

    min_radius: float
    max_radius: float
    max_phase: float

    def draw(self, key: Array, size: int) -> tuple[Array, Array, Array]:
        """``nu_log``, ``theta_log`` and the ``gamma_log`` that keeps the state's variance at 1."""
        radius_key, phase_key = jax.random.split(key)
        tiny = jnp.finfo(jnp.float32).tiny  # the logarithm of an exact 0 is not finite
        inner, outer = self.min_radius**2, self.max_radius**2
        square = jax.random.uniform(radius_key, (size,), jnp.float32, inner, outer)
        square = jnp.clip(square, tiny, 1 - 2.0**-24)
        phase = jax.random.uniform(phase_key, (size,), jnp.float32, tiny, self.max_phase)
        return jnp.log(-0.5 * jnp.log(square)), jnp.log(phase), 0.5 * jnp.log1p(-square)


@factory
def lru(
    hidden_size: int,
    state_size: int | None = None,
    *,
    min_radius: float = 0.0,
    max_radius: float = 1.0,
    max_phase: float = 2 * math.pi,
) -> Cell:
    r"""The linear recurrent unit.

    .. math::

        \lambda &= \exp(-\exp(\nu^{log}) + i \exp(\theta^{log})) \\
        s_t &= \lambda s_{t-1} + \exp(\gamma^{log}) (x_t B) \\
        y_t &= \mathrm{Re}(s_t C) + x_t D

    The state is complex and every element of it sees only its own past. The decay stays inside
    the unit circle whatever the parameters become, all of which are real. The carry is
    :math:`s_t`, a complex array [N]; the output is real, [H], and linear in the input: in a stack
    it wants something nonlinear between the layers.

    Step by step, the product with C is taken inside the loop; in parallel over time it is one
    product over all steps.

    Args:
        hidden_size: H, the size of the output.
        state_size: N; None for H.
        min_radius: eigenvalues start between this circle ...
        max_radius: ... and this one; near 1 the memory is long.
        max_phase: they start with a phase in [0, ``max_phase``], in radians; small for long
            sequences.

    Raises:
        ValueError: a size is not a positive integer, or the radii or the phase are out of range.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.lru(3, state_size=8)
        >>> params = cell.init(jax.random.key(0), 5)
        >>> params.b_real.shape, params.c_imag.shape, params.d.shape
        ((5, 8), (8, 3), (5, 3))
        >>> cell.initial_carry(params).dtype
        dtype('complex64')

    References:
        Orvieto et al., "Resurrecting recurrent neural networks for long sequences", ICML 2023,
        arXiv:2303.06349. There D is diagonal, the input and the output being of one size.
    """
    size = check_size("hidden_size", hidden_size)
    states = size if state_size is None else check_size("state_size", state_size)
    min_radius, max_radius = (
        check_number(name, radius, "a number in [0, 1]", lambda r: 0 <= r <= 1)
        for name, radius in (("min_radius", min_radius), ("max_radius", max_radius))
    )
    if min_radius > max_radius:
        raise ValueError(
            f"min_radius and max_radius must be in order, got {min_radius!r} and {max_radius!r}"
        )
    max_phase = check_number(
        "max_phase", max_phase, "a phase in (0, 2 pi]", lambda phase: 0 < phase <= 2 * math.pi
    )
    ring = _Ring(min_radius, max_radius, max_phase)

    def init(key: Array, input_size: int) -> LRUParams:
        inputs = check_size("input_size", input_size)
        ring_key, *keys = jax.random.split(check_key(key), 6)
        shapes = [(inputs, states)] * 2 + [(states, size)] * 2 + [(inputs, size)]
        variances = [0.5 / inputs] * 2 + [1 / states] * 2 + [1 / inputs]
        matrices = [
            jax.random.normal(k, shape, jnp.float32) * variance**0.5
            for k, shape, variance in zip(keys, shapes, variances, strict=True)
        ]
        return LRUParams(*ring.draw(ring_key, states), *matrices)

    def initial_carry(params: LRUParams) -> Array:
        zeros = jnp.zeros((states,), accumulation_dtype(params.nu_log.dtype))
        return lax.complex(zeros, zeros)

    return Cell(
        output_size=size,
        init=init,
        initial_carry=initial_carry,
        project=_project,
        update=_update,
        linear=_linear,
    )
