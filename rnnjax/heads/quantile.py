"""Quantiles of numbers: a forecast with its band, without a word on the shape of the density."""

import itertools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rnnjax._checks import check_number, check_size
from rnnjax._recipe import factory
from rnnjax.base import Key
from rnnjax.heads.head import Head, make_head


@factory
def quantile_head(levels: Sequence[float] = (0.1, 0.5, 0.9), size: int = 1) -> Head:
    r"""Quantiles of D numbers, which never cross.

    .. math::

        q_1 = \hat q_1, \qquad q_k = q_{k-1} + \mathrm{softplus}(\hat q_k), \qquad \hat q = h W + b

    The loss is the pinball loss, whose minimum is at the quantiles: with :math:`e = v - q_k` and
    the level :math:`\tau_k` it is :math:`\max(\tau_k e, (\tau_k - 1) e)`, the mean over levels and
    the sum over the D numbers. Its mask is one of steps, [...], or of numbers, [..., D], which
    leaves out those that are missing; a step with one number or more counts.

    The distribution is the array of quantiles [..., D, K]. It has no density: ``log_prob`` raises.
    ``sample`` draws a level uniformly and interpolates between the quantiles; beyond the first and
    the last of them it gives these: draws have no tails.

    Args:
        levels: the K levels, rising, each in (0, 1).
        size: D, such as the steps of a horizon.

    Raises:
        ValueError: levels that do not rise or lie outside (0, 1), or a wrong size.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> head = rnnjax.quantile_head((0.1, 0.5, 0.9), size=12)
        >>> params = head.init(jax.random.key(0), 16)
        >>> quantiles = head.apply(params, jnp.ones((4, 16)))
        >>> quantiles.shape, bool(jnp.all(jnp.diff(quantiles) > 0))
        ((4, 12, 3), True)

    References:
        Koenker and Bassett, "Regression quantiles", Econometrica 46 (1978).
    """
    size = check_size("size", size)
    if isinstance(levels, str) or not isinstance(levels, Iterable):
        raise ValueError(f"levels must be one or more, rising, got {levels!r}")
    numbers = [
        check_number("a level", level, "a number in (0, 1)", lambda a: 0 < a < 1)
        for level in levels
    ]
    if not numbers or any(a >= b for a, b in itertools.pairwise(numbers)):
        raise ValueError(f"levels must be one or more, rising, got {levels!r}")
    count, taus = len(numbers), np.array(numbers)

    def distribution(outputs: Array) -> Array:
        raw = outputs.reshape(*outputs.shape[:-1], size, count)
        steps = jnp.concatenate([raw[..., :1], jax.nn.softplus(raw[..., 1:])], axis=-1)
        return jnp.cumsum(steps, axis=-1)

    def error(quantiles: Array, values: Array) -> Array:
        excess = values[..., None] - quantiles
        tau = jnp.asarray(taus, excess.dtype).reshape((1,) * (excess.ndim - 1) + (count,))
        return jnp.mean(jnp.maximum(tau * excess, (tau - 1) * excess), axis=-1)

    def log_prob(quantiles: Array, values: Array) -> Array:
        raise ValueError(
            "log_prob needs a density, and quantile_head has none: use loss, the pinball loss, "
            "and another head for score and generate_series"
        )

    def sample(key: Key, quantiles: Array) -> Array:
        level = jax.random.uniform(key, quantiles.shape[:-1], quantiles.dtype)
        levels = jnp.asarray(taus, quantiles.dtype)
        flat = quantiles.reshape(-1, count)
        drawn = jax.vmap(lambda u, q: jnp.interp(u, levels, q))(level.reshape(-1), flat)
        return drawn.reshape(level.shape)

    return make_head(
        size * count,
        (size,),
        distribution,
        log_prob,
        sample,
        error=error,
    )
