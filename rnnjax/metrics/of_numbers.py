"""How far predictions are from numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from numpy.typing import ArrayLike

from rnnjax import _checks
from rnnjax._numerics import accumulation_dtype
from rnnjax.metrics._arrays import as_array, as_weights
from rnnjax.metrics.means import Mean


def squared_error(
    predictions: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None
) -> Mean:
    """The mean squared error.

    (prediction - target)²

    A number of weight 0 is never read, and its gradient is exactly zero. 16 bits are raised to
    float32 first.

    Args:
        predictions: numbers of any shape, such as [B, T, O].
        targets: of the same shape.
        weights: of the first axes of that shape, such as a mask [B, T], or of all; 1 when None.

    Returns:
        The weighted sum over all numbers, and the sum of their weights.

    Raises:
        ValueError: the shapes do not fit, or the predictions are not floating.

    Example:
        >>> rows = [True, False]
        >>> error = squared_error(jnp.array([[1.0, 2.0], [9.0, 9.0]]), jnp.zeros((2, 2)), rows)
        >>> error.value.item(), error.count.item()
        (2.5, 2)
    """
    return _mean_of_errors(jnp.square, predictions, targets, weights)


def absolute_error(
    predictions: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None
) -> Mean:
    """The mean absolute error, |prediction - target|, least at the median.

    Args:
        predictions: numbers of any shape.
        targets: of the same shape.
        weights: of the first axes of that shape, or of all; 1 when None.

    Returns:
        The weighted sum over all numbers, and the sum of their weights.

    Raises:
        ValueError: the shapes do not fit, or the predictions are not floating.

    Example:
        >>> absolute_error(jnp.array([1.0, -3.0]), jnp.zeros(2)).value.item()
        2.0
    """
    return _mean_of_errors(jnp.abs, predictions, targets, weights)


def huber_error(
    predictions: ArrayLike,
    targets: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    delta: float = 1.0,
) -> Mean:
    """Half the squared error up to ``delta``, and linear from there: outliers weigh less.

    e² / 2 where |e| <= delta, delta (|e| - delta / 2) elsewhere, with e = prediction - target

    Args:
        predictions: as of `squared_error`.
        targets: as of `squared_error`.
        weights: as of `squared_error`.
        delta: a positive number.

    Raises:
        ValueError: as of `squared_error`, or delta is not positive.

    Example:
        >>> huber_error(jnp.array([0.5, -3.0]), jnp.zeros(2)).total.item()  # 1/8 + 5/2
        2.625

    References:
        Huber, "Robust estimation of a location parameter", Annals of Mathematical Statistics 35
        (1964).
    """
    delta = _checks.check_number("delta", delta, "a positive number", lambda a: a > 0)

    def huber(error: Array) -> Array:
        size = jnp.abs(error)
        inside = jnp.minimum(size, delta)
        return inside * (size - inside / 2)

    return _mean_of_errors(huber, predictions, targets, weights)


def quantile_error(
    predictions: ArrayLike,
    targets: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    quantile: float,
) -> Mean:
    """The pinball loss, least where the predictions are that quantile of the targets.

    max(q e, (q - 1) e) with e = target - prediction

    Args:
        predictions: as of `squared_error`.
        targets: as of `squared_error`.
        weights: as of `squared_error`.
        quantile: q in (0, 1); at 0.5 it is half the absolute error.

    Raises:
        ValueError: as of `squared_error`, or q is not in (0, 1).

    Example:
        >>> below = quantile_error(jnp.array([0.0]), jnp.array([1.0]), quantile=0.9)
        >>> above = quantile_error(jnp.array([2.0]), jnp.array([1.0]), quantile=0.9)
        >>> round(below.value.item(), 4), round(above.value.item(), 4)
        (0.9, 0.1)

    References:
        Koenker and Bassett, "Regression quantiles", Econometrica 46 (1978).
    """
    expected = "a number in (0, 1)"
    quantile = _checks.check_number("quantile", quantile, expected, lambda q: 0 < q < 1)

    def pinball(error: Array) -> Array:
        return jnp.maximum(-quantile * error, (1 - quantile) * error)

    return _mean_of_errors(pinball, predictions, targets, weights)


def _mean_of_errors(
    loss: Callable[[Array], Array], predictions: Any, targets: Any, weights: ArrayLike | None
) -> Mean:
    """The weighted mean of a loss of ``prediction - target``, over all numbers."""
    predictions, targets = as_array("predictions", predictions), as_array("targets", targets)
    if not jnp.issubdtype(predictions.dtype, jnp.floating):
        raise ValueError(f"predictions must be floating, got {predictions.dtype}")
    if targets.shape != predictions.shape:
        raise ValueError(
            f"targets must have shape {predictions.shape}, that of predictions, got {targets.shape}"
        )
    dtype = accumulation_dtype(predictions.dtype)
    predictions, targets = predictions.astype(dtype), targets.astype(dtype)
    if weights is None:
        return Mean.of(loss(predictions - targets))
    array = as_array("weights", weights)
    if array.shape != predictions.shape[: array.ndim]:
        raise ValueError(
            f"weights must have the shape of predictions {predictions.shape} or its first axes, "
            f"got {array.shape}"
        )
    array = array.reshape(array.shape + (1,) * (predictions.ndim - array.ndim))
    array = jnp.broadcast_to(array, predictions.shape)
    # Selected before the difference: NaN in padding would spoil the gradient.
    unread = as_weights(array, array.shape) == 0
    predictions, targets = (jnp.where(unread, 0, a) for a in (predictions, targets))
    return Mean.of(loss(predictions - targets), array)
