"""Metrics as sums and counts, so that a short last batch weighs what it should."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from rnnjax import _checks


class Mean(NamedTuple):
    """A weighted mean that is not divided yet.

    mean = total / count, with total = Σ wᵢ vᵢ and count = Σ wᵢ

    Two of them are merged by adding both fields, which a mean of means cannot do. Any pair
    (total, count) of scalars may stand for one in `merge`, `compute` and `evaluate`.

    Example:
        >>> Mean.of(jnp.array([1.0, 2.0, 6.0])).value.item()
        3.0
    """

    total: Array
    # Hides tuple.count, which nobody asks of a pair of sums.
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]

    @classmethod
    def of(cls, values: ArrayLike, weights: ArrayLike | None = None) -> Mean:
        """Sums values, each as often as its weight says.

        total = Σ wᵢ vᵢ, count = Σ wᵢ

        Both are float32, or float64 when jax_enable_x64 is set. A value of weight 0 is never
        read: NaN or Inf there changes neither the sum nor a gradient.

        Args:
            values: numbers of any shape.
            weights: their weights, of the same shape; all 1 when None. A mask will do.

        Raises:
            ValueError: the shapes differ.

        Example:
            >>> Mean.of(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1, 1, 0])).value.item()
            2.0
        """
        dtype = jnp.result_type(float)
        array = jnp.asarray(values).astype(dtype)
        if weights is None:
            return cls(array.sum(), jnp.array(array.size, dtype))
        scale = _weights(weights, array.shape)
        # Selected before the product: 0 * nan is nan, and so is its gradient.
        array = jnp.where(scale == 0, 0, array)
        return cls((array * scale).sum(), scale.sum())

    @property
    def value(self) -> Array:
        """total / count, still on the device; the loss inside a loss function."""
        return self.total / self.count


def accuracy(logits: Array, labels: Array, weights: ArrayLike | None = None) -> Mean:
    """Share of the rows whose largest logit is that of the label.

    Args:
        logits: [..., C].
        labels: [...], integers.
        weights: [...]; a row of weight 0 does not count. All 1 when None.

    Returns:
        The weighted number of hits, over the sum of the weights.

    Raises:
        ValueError: the shapes of labels or weights are not those of logits without its last axis.

    Example:
        >>> logits = jnp.array([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]])
        >>> round(compute({"accuracy": accuracy(logits, jnp.array([0, 1, 1]))})["accuracy"], 3)
        0.667
    """
    logits, labels = _check_labels(logits, labels, weights)
    guesses = jnp.argmax(logits, axis=-1)
    return Mean.of(guesses == labels.astype(guesses.dtype), weights)


def cross_entropy(logits: Array, labels: Array, weights: ArrayLike | None = None) -> Mean:
    """Cross entropy of the softmax with integer labels, in nats.

    -log softmax(logits)[label]

    A row of weight 0 is never read and its gradient is exactly zero. A label outside [0, C)
    in a row that counts makes the total NaN, -1 included: it is no index of the last class.

    Args:
        logits: [..., C]; half precision is raised to float32 first.
        labels: [...], integers.
        weights: [...]; all 1 when None.

    Returns:
        The weighted sum of the rows' entropies, over the sum of the weights.

    Raises:
        ValueError: the shapes of labels or weights are not those of logits without its last axis.

    Example:
        >>> loss = cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))
        >>> round(loss.value.item(), 4)  # log 4
        1.3863
    """
    import optax

    logits, labels = _check_labels(logits, labels, weights)
    # NumPy's rule, as JAX's own refuses to promote where promotion is strict.
    logits = logits.astype(np.promote_types(logits.dtype, np.float32))
    if weights is not None:
        unread = _weights(weights, labels.shape) == 0
        logits = jnp.where(unread[..., None], 0, logits)
        labels = jnp.where(unread, 0, labels)
    # Optax answers a label that is too large with NaN, but would take -1 from the end.
    labels = jnp.where(labels < 0, logits.shape[-1], labels)
    entropies = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if _checks.is_checking():
        _checks.require_finite("the cross entropy", entropies, _counted(weights, labels.shape))
    return Mean.of(entropies, weights)


def merge(first: Any, second: Any) -> Any:
    """Adds two trees of sums and counts, leaf by leaf and without waiting for the device.

    Args:
        first: metrics of some batches: a `Mean`, or any tree of them.
        second: those of others, in a tree of the same structure.

    Returns:
        The metrics of all of them.

    Example:
        >>> merge(Mean.of(jnp.array([1.0, 2.0])), Mean.of(jnp.array([6.0]))).value.item()
        3.0
    """
    return _add(first, second)


def compute(metrics: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> dict[str, float]:
    """Divides totals by counts on the host; waits for the device, once.

    Args:
        metrics: names and their `Mean`s.

    Returns:
        Names and plain numbers.

    Raises:
        ValueError: a count is 0, so that there is no mean to speak of.

    Example:
        >>> compute({"loss": Mean.of(jnp.array([1.0, 2.0]))})
        {'loss': 1.5}
    """
    return {name: _divide(name, *pair) for name, pair in jax.device_get(dict(metrics)).items()}


def evaluate(
    step: Callable[[Any, Any], Mapping[str, tuple[Array, Array]]],
    params: Any,
    batches: Iterable[Any],
) -> dict[str, float]:
    """Metrics of a whole data set: sums over its batches, divided once at the end.

    The sums stay on the device until the last batch, so the host is free to prepare the next
    batch while the device still works.

    Args:
        step: takes (params, batch) and gives the batch's metrics, names and `Mean`s.
        params: whatever the step takes first.
        batches: at least one batch.

    Raises:
        ValueError: there is no batch, or a count is 0.

    Example:
        >>> def step(scale, batch):
        ...     return {"size": Mean.of(scale * batch)}
        >>> evaluate(step, 2.0, [jnp.array([1.0, 2.0]), jnp.array([6.0])])
        {'size': 6.0}
    """
    total = None
    for batch in batches:
        metrics = step(params, batch)
        total = metrics if total is None else merge(total, metrics)
    if total is None:
        raise ValueError("evaluate got no batches: there is nothing to average")
    return compute(total)


# One dispatch for the whole tree; leaf by leaf costs several times as much.
@jax.jit
def _add(first: Any, second: Any) -> Any:
    return jax.tree.map(jnp.add, first, second)


def _divide(name: str, total: ArrayLike, count: ArrayLike) -> float:
    if count == 0:
        raise ValueError(f"metric {name!r} has count 0: no row with a weight was seen")
    return float(total) / float(count)  # pyright: ignore[reportArgumentType]


def _weights(weights: ArrayLike, shape: tuple[int, ...]) -> Array:
    array = jnp.asarray(weights).astype(jnp.result_type(float))
    if array.shape != shape:
        raise ValueError(f"weights: expected shape {shape}, got {array.shape}")
    return array


def _counted(weights: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    return None if weights is None else _weights(weights, shape) != 0


def _check_labels(logits: Any, given: Any, weights: ArrayLike | None) -> tuple[Array, Array]:
    """Both as arrays that fit each other, labels of at least 32 bits."""
    logits = jnp.asarray(logits)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits: expected a floating dtype, got {logits.dtype}")
    labels: Any = given if hasattr(given, "dtype") else np.asarray(given)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels: expected integers, got {labels.dtype}")
    if logits.shape[-1:] == (0,):
        raise ValueError(f"logits: expected at least one class, got shape {logits.shape}")
    if logits.ndim == 0 or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels: expected shape {logits.shape[:-1]} for logits {logits.shape}, "
            f"got {labels.shape}"
        )
    if labels.dtype.itemsize < 4:  # too narrow to hold every number of classes
        labels = labels.astype(np.int32)
    if isinstance(labels, np.ndarray | np.generic):  # cut to 32 bits it could become a class
        labels = np.clip(labels, max(jnp.iinfo(labels.dtype).min, -1), np.iinfo(np.int32).max)
    labels = jnp.asarray(labels)
    if _checks.is_checking():
        classes, counted = logits.shape[-1], _counted(weights, labels.shape)
        _checks.require_range("labels", labels, classes, f"[0, {classes})", counted)
    return logits, labels
