"""The outputs of a language model before its head, and penalties on them."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_floating, check_pair, check_scalar
from rnnjax._numerics import accumulation_dtype


class Features(NamedTuple):
    """What the layer of a language model gives, before the head; both [..., T, H].

    Attributes:
        raw: the outputs of the layer.
        dropped: the same after dropout, which is what the head reads. Without a key both are one.
    """

    raw: Array
    dropped: Array


def activation_penalty(
    features: Features,
    mask: Any = None,
    *,
    activity: float | Array = 2.0,
    change: float | Array = 1.0,
) -> Array:
    r"""Penalties on the size of outputs and on how much they change from step to step.

    .. math::

        \alpha\, \overline{(m \odot h_t)^2} + \beta\, \overline{(h_{t+1} - h_t)^2}

    The first mean is over the dropped outputs of real steps, the second over the raw outputs of
    pairs of neighbours that are both real. To be added to the loss.

    Args:
        features: from ``LanguageModel.features``.
        mask: bool [..., T], True where a step is real; None means all.
        activity: :math:`\alpha`, a number or a traced scalar.
        change: :math:`\beta`, likewise.

    Returns:
        A scalar, at least float32.

    Raises:
        ValueError: no pair of features, a weight below 0, or a mask of wrong shape or dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> from rnnjax.models import Features, activation_penalty
        >>> hs = jnp.array([[1.0], [3.0]])
        >>> float(activation_penalty(Features(hs, hs), activity=1.0, change=10.0))
        45.0

    References:
        Merity, McCann and Socher, "Revisiting activation regularization for language RNNs", 2017.
    """
    raw, dropped = map(
        _of_steps,
        ("raw", "dropped"),
        check_pair("the pair (raw, dropped)", "a tuple of 2", features),
    )
    if raw.shape != dropped.shape:
        raise ValueError(f"dropped must have the shape of raw, {raw.shape}, got {dropped.shape}")
    activity, change = (
        check_scalar(name, weight, "finite and at least 0", lambda a: 0 <= a < math.inf)
        for name, weight in (("activity", activity), ("change", change))
    )
    valid = jnp.ones(raw.shape[:-1], bool)
    if mask is not None:
        valid = masking.check_flags("mask", mask, raw.shape[:-2], raw.shape[-2])
    both = valid[..., 1:] & valid[..., :-1]
    size = _mean_square(dropped, valid)
    return activity * size + change * _mean_square(raw[..., 1:, :] - raw[..., :-1, :], both)


def _of_steps(name: str, outputs: Any) -> Array:
    array = jnp.asarray(masking.as_array(name, outputs))
    check_floating(name, array)
    if array.ndim < 2:
        raise ValueError(f"{name} must have shape [..., T, H], got shape {array.shape}")
    return array


def _mean_square(xs: Array, valid: Array) -> Array:
    squares = jnp.where(valid[..., None], xs.astype(accumulation_dtype(xs.dtype)), 0)
    # Steps are counted in integers, the numbers of all of them may be more than 2^31.
    count = jnp.maximum(jnp.sum(valid), 1).astype(squares.dtype) * xs.shape[-1]
    return jnp.sum(squares**2) / count
