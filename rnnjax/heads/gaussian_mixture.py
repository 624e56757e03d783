"""Mixtures of Gaussians over one number, or over two that are correlated."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax._checks import check_number, check_size
from rnnjax._recipe import factory
from rnnjax.base import Key
from rnnjax.heads.head import Head, make_head

# tanh(8) differs from 1 by 2e-7, the least that float32 can tell: correlations are held here.
_LARGEST_ANGLE = 8.0


class GaussianMixture(NamedTuple):
    """A mixture of M Gaussians over D numbers.

    Attributes:
        logits: [..., M], of the weights of the components.
        mean: [..., M, D].
        log_scale: [..., M, D], logarithms of the standard deviations.
        angle: [..., M], the correlation is its hyperbolic tangent; zeros where D is 1.
    """

    logits: Array
    mean: Array
    log_scale: Array
    angle: Array

    def sharpened(self, bias: float) -> "GaussianMixture":
        r"""The mixture that draws what is likelier more often and closer to its means.

        .. math::

            \pi_m' \propto \pi_m^{1 + b}, \qquad \sigma_m' = \sigma_m e^{-b}

        Args:
            bias: b; 0 changes nothing, and handwriting gets the neater, the larger it is.

        Example:
            >>> import jax.numpy as jnp, rnnjax
            >>> mixture = rnnjax.gaussian_mixture_head(2).apply(
            ...     rnnjax.heads.HeadParams(jnp.zeros((3, 6)), jnp.zeros(6)), jnp.ones(3)
            ... )
            >>> bool(jnp.all(mixture.sharpened(1.0).log_scale == mixture.log_scale - 1))
            True

        References:
            Graves, 2013, arXiv:1308.0850, equations 61 and 62.
        """
        return self._replace(
            logits=jax.nn.log_softmax(self.logits) * (1 + bias), log_scale=self.log_scale - bias
        )


def _log_prob(mixture: GaussianMixture, values: Array) -> Array:
    z = (values[..., None, :] - mixture.mean) * jnp.exp(-mixture.log_scale)
    size = z.shape[-1]
    log_density = -0.5 * size * math.log(2 * math.pi) - jnp.sum(mixture.log_scale, axis=-1)
    if size == 1:
        log_density += -0.5 * jnp.square(z[..., 0])
    else:
        # With rho = tanh(a): the square of the first, plus that of what the second has beyond it,
        # (z2 - rho z1) / sqrt(1 - rho^2) = z2 cosh a - z1 sinh a. Nothing is divided by 1 - rho^2.
        first, second, angle = z[..., 0], z[..., 1], mixture.angle
        beyond = ((second - first) * jnp.exp(angle) + (second + first) * jnp.exp(-angle)) / 2
        log_density += _log_cosh(angle) - 0.5 * (jnp.square(first) + jnp.square(beyond))
    return jax.nn.logsumexp(jax.nn.log_softmax(mixture.logits) + log_density, axis=-1)


def _log_cosh(a: Array) -> Array:
    return jnp.logaddexp(a, -a) - math.log(2)


def _sample(key: Key, mixture: GaussianMixture) -> Array:
    which, noise = jax.random.split(key)
    component = jax.random.categorical(which, mixture.logits, mode="high")

    def chosen(leaf: Array) -> Array:
        places = component.reshape(component.shape + (1,) * (leaf.ndim - component.ndim))
        return jnp.take_along_axis(leaf, places, axis=component.ndim).squeeze(component.ndim)

    mean, log_scale, angle = map(chosen, mixture[1:])
    z = jax.random.normal(noise, mean.shape, mean.dtype)
    if mean.shape[-1] == 2:
        first, second = z[..., 0], z[..., 1]
        z = jnp.stack([first, jnp.tanh(angle) * first + second / jnp.cosh(angle)], axis=-1)
    return mean + jnp.exp(log_scale) * z


@factory
def gaussian_mixture_head(components: int, size: int = 1, *, min_scale: float = 1e-3) -> Head:
    r"""A mixture of Gaussians over one number, or over two with their correlation.

    .. math::

        p(v) &= \sum_m \pi_m \, \mathcal{N}(v \mid \mu_m, \sigma_m, \rho_m) \\
        \pi &= \mathrm{softmax}(\hat\pi), \quad \mu = \hat\mu, \quad
            \sigma = e^{\hat\sigma} + \sigma_{min}, \quad \rho = \tanh(\hat\rho)

    where the hatted numbers are :math:`h W + b`, in this order. The distribution is a
    ``rnnjax.heads.GaussianMixture``. The means start apart, evenly from -1 to 1, as components
    that begin as equals learn as one. Scale the data to unit variance: :math:`\sigma_{min}` keeps
    the density finite where values repeat exactly. Beyond :math:`\hat\rho = \pm 8`, where the
    correlation is 1 but for rounding, it stays what it is there.

    Args:
        components: M.
        size: D, 1 or 2.
        min_scale: :math:`\sigma_{min}`.

    Raises:
        ValueError: ``components`` is not a positive integer, ``size`` not 1 or 2, or ``min_scale``
            not positive and finite.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> head = rnnjax.gaussian_mixture_head(20, 2)
        >>> params = head.init(jax.random.key(0), 16)
        >>> params.w.shape
        (16, 120)
        >>> mixture = head.apply(params, jnp.zeros((3, 16)))
        >>> head.log_prob(mixture, jnp.zeros((3, 2))).shape
        (3,)
        >>> head.sample(jax.random.key(1), mixture).shape
        (3, 2)

    References:
        Bishop, "Mixture density networks", 1994; Graves, "Generating sequences with recurrent
        neural networks", 2013, arXiv:1308.0850, equations 16 to 25.
    """
    count = check_size("components", components)
    dimensions = check_size("size", size)
    if dimensions > 2:
        raise ValueError(f"size must be 1 or 2, got {size!r}; join heads of 1 with joint_head")
    floor = check_number("min_scale", min_scale, "positive and finite", lambda a: 0 < a < math.inf)
    wide = count * dimensions
    total = count + 2 * wide + (count if dimensions == 2 else 0)

    def distribution(outputs: Array) -> GaussianMixture:
        logits, mean, scale, angle = jnp.split(
            outputs, [count, count + wide, count + 2 * wide], axis=-1
        )
        shape = (*outputs.shape[:-1], count, dimensions)
        if dimensions == 1:
            angle = jnp.zeros_like(logits)
        return GaussianMixture(
            logits,
            mean.reshape(shape),
            jnp.logaddexp(scale, jnp.asarray(math.log(floor), scale.dtype)).reshape(shape),
            jnp.clip(angle, -_LARGEST_ANGLE, _LARGEST_ANGLE),
        )

    def start(bias: Array) -> Array:
        apart = jnp.repeat(jnp.linspace(-1, 1, count, dtype=bias.dtype), dimensions)
        return bias.at[count : count + wide].set(apart if count > 1 else 0)

    return make_head(total, (dimensions,), distribution, _log_prob, _sample, start=start)
