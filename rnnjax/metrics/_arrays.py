"""What a metric is given, as arrays that fit each other."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from rnnjax import _reading, _values
from rnnjax.metrics.sums import Sum


def as_array(name: str, value: Any) -> Array:
    """``value`` as an array of real numbers.

    Raises:
        ValueError: it is none, or holds integers that JAX would cut to 32 bits.
    """
    array = _reading.as_array(name, value.value if isinstance(value, Sum) else value)
    _values.check_width(name, array)
    if array.dtype != np.bool_ and not jnp.issubdtype(array.dtype, np.number):
        raise ValueError(f"{name} must be numbers, got dtype {array.dtype}")
    if jnp.issubdtype(array.dtype, np.complexfloating):
        raise ValueError(f"{name} must be real, got dtype {array.dtype}")
    return jnp.asarray(array)


def as_weights(weights: ArrayLike, shape: tuple[int, ...], of_rows: str = "") -> Array:
    """Weights of that shape; ``of_rows`` is what to say to those who give one a row instead."""
    array = as_array("weights", weights).astype(jnp.result_type(float))
    if array.shape != shape:
        hint = of_rows if array.ndim and array.shape == shape[: array.ndim] else ""
        raise ValueError(f"weights must have shape {shape}, got {array.shape}{hint}")
    return array


def count_of(weights: ArrayLike) -> Array:
    array = as_array("weights", weights)
    return summable(array, array.shape).sum()


def summable(weights: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Weights in the dtype of their count: integers where no such weights have a sum that wraps."""
    array, scale = as_array("weights", weights), as_weights(weights, shape)
    return array.astype(jnp.result_type(int)) if _never_wraps(array) else scale


def _never_wraps(weights: Array) -> bool:
    """Whether twice the sum of any weights of this dtype and shape is an integer of JAX's."""
    if weights.dtype == jnp.bool_:
        return True
    # The size of an exported program may be none yet.
    if not jnp.issubdtype(weights.dtype, jnp.integer) or not isinstance(weights.size, int):
        return False
    held, whole = jnp.iinfo(weights.dtype), jnp.iinfo(jnp.result_type(int))
    return 2 * max(-int(held.min), int(held.max)) * weights.size <= int(whole.max)


def rows_that_count(weights: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    return None if weights is None else as_weights(weights, shape) != 0


def check_labels(logits: Any, given: Any, weights: ArrayLike | None) -> tuple[Array, Array]:
    """Both as arrays that fit each other, labels of at least 32 bits.

    Raises:
        ValueError: they do not fit, or are of one class, as of one sigmoid unit.
    """
    logits = as_array("logits", logits)
    # The softmax of one number is 1, whatever it is: class 0 would be guessed, with the loss 0.
    if logits.shape[-1:] == (1,):
        raise ValueError(
            f"logits must be of 2 classes or more, got shape {logits.shape}: for one sigmoid unit, "
            "z = logits[..., 0], give jnp.stack([jnp.zeros_like(z), z], -1), or take "
            "optax.sigmoid_binary_cross_entropy as the loss"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits must be floating, got {logits.dtype}")
    if logits.shape[-1:] in ((0,), ()):
        raise ValueError(f"logits must have at least one class, got shape {logits.shape}")
    rows, classes = logits.shape[:-1], logits.shape[-1]
    return logits, as_labels(given, rows, classes, f"logits {logits.shape}", weights)


def as_labels(
    given: Any, rows: tuple[int, ...], classes: int, beside: str, weights: ArrayLike | None
) -> Array:
    """Labels [...] of at least 32 bits, one for each of the ``rows`` of what they stand beside.

    Raises:
        ValueError: they are no integers, or of another shape.
    """
    labels = _reading.as_array("labels", given)
    one_hot = labels.shape == (*rows, classes)
    meant = ": ids of one-hot labels are labels.argmax(axis=-1)" if one_hot else ""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}{meant}")
    if labels.shape != rows:
        raise ValueError(f"labels must have shape {rows} for {beside}, got {labels.shape}{meant}")
    if labels.dtype.itemsize < 4:  # too narrow to hold every number of classes
        labels = labels.astype(np.int32)
    if isinstance(labels, np.ndarray | np.generic):  # cut to 32 bits it could become a class
        labels = np.clip(labels, max(jnp.iinfo(labels.dtype).min, -1), np.iinfo(np.int32).max)
    labels = jnp.asarray(labels)
    if _values.is_checking():
        counted = rows_that_count(weights, rows)
        _values.require_range("labels", labels, classes, f"[0, {classes})", counted)
    return labels
