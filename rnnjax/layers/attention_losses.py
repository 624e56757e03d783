"""What a loss adds for attention: each place once, and the gradient through drawn places."""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from numpy.typing import ArrayLike

from rnnjax import masking
from rnnjax._numerics import raised


def doubly_stochastic_penalty(
    weights: ArrayLike, lengths: Any = None, *, mask: Any = None
) -> Array:
    r"""A penalty on attention that does not fall on each place once, over all steps together.

    .. math:: \sum_s \left(1 - \sum_t a_{ts}\right)^2

    At each step the weights sum to 1 over the places; this asks that for each place they sum to 1
    over the steps, so that none is left out and none is looked at for ever.

    Args:
        weights: [..., T, S], 0 at steps that are not real, as :class:`rnnjax.Attended` has them.
        lengths: [...], how many of the S places are real, or None for all.
        mask: bool [..., S], which are.

    Returns:
        [...], for each sequence; sum or take the mean of it with a factor of your choice.

    Raises:
        ValueError: the weights are no floats [..., T, S], or lengths or mask do not fit them.

    Example:
        >>> import jax.numpy as jnp, rnnjax
        >>> weights = jnp.array([[[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]])
        >>> rnnjax.doubly_stochastic_penalty(weights).tolist()
        [0.5]

    References:
        Xu et al., "Show, attend and tell: neural image caption generation with visual attention",
        ICML 2015, equation 14.
    """
    weights = _checked("weights", weights)
    real = masking.valid_steps(lengths, mask, weights.shape[:-2], weights.shape[-1])
    total = jnp.sum(masking.zero_padding(real, jnp.moveaxis(weights, -1, -2)), axis=-1)
    missing = 1.0 - total if real is None else jnp.where(real, 1.0 - total, 0.0)
    return jnp.sum(missing**2, axis=-1)


def score_function(costs: Array, weights: Array, drawn: Array, *, baseline: Any = None) -> Array:
    r"""A term of value 0 that gives a loss the gradient through draws of hard attention.

    The expectation of a loss over places :math:`s_t \sim a_t` also changes because the
    distribution of the draws does. With the cost :math:`\ell_t` of step t,

    .. math::

        \nabla E \sum_t \ell_t = E \left[ \sum_t \nabla \ell_t +
            \sum_t (L_t - b_t) \nabla \log \frac{a_{t s_t}}{\sum_s a_{ts}} \right],
        \qquad L_t = \sum_{t' \ge t} \ell_{t'}

    of which ``sum(costs)`` has the first sum and this has the second, so the gradient of the two
    together is without bias. A baseline :math:`b_t` that does not depend on the draws of the
    sequence from step t on takes away noise and no more.

    Args:
        costs: [..., T], of each step, such as the nats of its token; 0 at steps that are not real.
        weights: [..., T, S], as :class:`rnnjax.Attended` has them.
        drawn: [..., T, S], the same; steps where the mean was read add nothing.
        baseline: an array that broadcasts to [..., T]; None for the mean of :math:`L_t` over the
            other sequences of the batch that drew a place, 0 where there are none.

    Returns:
        [...], for each sequence, to be added to the sum of its costs.

    Raises:
        ValueError: the three are not of these shapes, or weights or draws no floats.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> weights, drawn = jnp.array([[[0.25, 0.75]]]), jnp.array([[[0.0, 1.0]]])
        >>> def term(weights):
        ...     return rnnjax.score_function(jnp.array([[3.0]]), weights, drawn, baseline=0.0)[0]
        >>> term(weights).item(), jax.grad(term)(weights).tolist()
        (0.0, [[[-3.0, 1.0]]])

    References:
        Xu et al., ICML 2015, equation 11, with the costs of earlier steps left out, which a draw
        cannot change; Williams, "Simple statistical gradient-following algorithms for connectionist
        reinforcement learning", Machine Learning 1992.
    """
    weights, drawn = raised(_checked("weights", weights)), _checked("drawn", drawn)
    costs = raised(costs)
    if drawn.shape != weights.shape or costs.shape != weights.shape[:-1]:
        raise ValueError(
            "costs, weights and drawn must have shapes [..., T], [..., T, S] and [..., T, S], "
            f"got {costs.shape}, {weights.shape} and {drawn.shape}"
        )
    drew = jnp.any(drawn > 0, axis=-1)
    to_come = jnp.flip(jnp.cumsum(jnp.flip(lax.stop_gradient(costs), -1), axis=-1), -1)
    if baseline is None:
        baseline = _mean_of_others(to_come, drew)
    # 1 where nothing was drawn: its logarithm is 0, and so is its gradient.
    taken = jnp.where(drew, jnp.sum(weights * lax.stop_gradient(drawn), axis=-1), 1.0)
    # Places are drawn by their shares: the weights of local attention do not add up to 1.
    total = jnp.where(drew, jnp.sum(weights, axis=-1), 1.0)
    baseline = jnp.broadcast_to(jnp.asarray(baseline, to_come.dtype), to_come.shape)
    gain = lax.stop_gradient(to_come - baseline)
    term = jnp.sum(jnp.where(drew, gain * (jnp.log(taken) - jnp.log(total)), 0.0), axis=-1)
    return term - lax.stop_gradient(term)


def _mean_of_others(values: Array, counted: Array) -> Array:
    """For each sequence the mean over the others of the batch, of ``values`` [..., T]."""
    weights = counted.astype(values.dtype)
    axes = tuple(range(values.ndim - 1))
    held = jnp.where(counted, values, 0.0)
    total = jnp.sum(held, axis=axes, keepdims=True) - held
    count = jnp.sum(weights, axis=axes, keepdims=True) - weights
    return jnp.where(count > 0, total / jnp.maximum(count, 1.0), 0.0)


def _checked(name: str, given: Any) -> Array:
    array = jnp.asarray(given)
    if array.ndim < 2 or not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{name} must be floats of shape [..., T, S], got {array.dtype} of shape {array.shape}"
        )
    return raised(array)  # sums of 16 bits stand still at 256
