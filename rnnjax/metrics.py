"""Metrics as sums and counts, so that a short last batch weighs what it should.

Every metric here is a `Mean`: a sum and what to divide it by. Counts of rows are integers, and
what `merge` adds up is kept in two floats, so a count stays exact over billions of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from rnnjax import _checks
from rnnjax._devices import with_automatic_axes


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Sum:
    """What `merge` adds up: a number, or an array of them, as the sum of two floats.

    One float32 counts to 2^24 and no further, and a sum that has grown large no longer feels what
    is added to it. Two of them, the second holding what the first rounded off, carry 48 bits.
    It is an array to ``jax.numpy`` (rounded to one float), and float64 to NumPy and ``float``.

    Example:
        >>> large = Mean(jnp.array(0.0), jnp.array(2.0**24))  # the largest odd step of a float32
        >>> one = Mean(jnp.array(0.0), jnp.array(1.0))
        >>> float(large.count + one.count), float(merge(large, one).count)
        (16777216.0, 16777217.0)

    References:
        Knuth, "The Art of Computer Programming", volume 2, section 4.2.2: the error of a sum is
        itself a float.
    """

    high: Array
    low: Array

    @property
    def value(self) -> Array:
        """The number, rounded to one float, on the device."""
        return jnp.asarray(self.high) + self.low

    @property
    def shape(self) -> tuple[int, ...]:
        return jnp.shape(self.high)

    @property
    def dtype(self) -> Any:
        return jnp.result_type(self.high)

    def item(self) -> float:
        """The number, in the precision of Python; waits for the device."""
        return float(self)

    def __jax_array__(self) -> Array:
        return self.value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        high, low = jax.device_get((self.high, self.low))
        return np.asarray(np.float64(high) + np.float64(low), dtype)

    def __float__(self) -> float:
        return float(np.asarray(self))

    def __int__(self) -> int:
        return int(float(self))

    def __format__(self, spec: str) -> str:
        return format(float(self), spec)

    def __eq__(self, other: object) -> Any:
        return np.asarray(self) == np.asarray(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __truediv__(self, other: Any) -> Array:
        return self.value / _number(other)

    def __rtruediv__(self, other: Any) -> Array:
        return _number(other) / self.value


class Mean(NamedTuple):
    """A weighted mean that is not divided yet.

    mean = total / count, with total = Σ wᵢ vᵢ and count = Σ wᵢ

    Two of them are merged by adding both fields, which a mean of means cannot do. Any pair
    (total, count) may stand for one in `merge`, `compute` and `evaluate`. Both fields are scalars,
    or arrays of one shape for several means under one name, as `recall_by_class` gives.

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

        The total is float32, or float64 when jax_enable_x64 is set. The count is an integer
        where weights are None, booleans or integers, and of the dtype of the total otherwise. A
        value of weight 0 is never read: NaN or Inf there changes neither the sum nor a gradient.

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
        array = _array("values", values).astype(dtype)
        if weights is None:
            return cls(array.sum(), jnp.array(array.size))
        scale = _weights(weights, array.shape)
        # Selected before the product: 0 * nan is nan, and so is its gradient.
        array = jnp.where(scale == 0, 0, array)
        return cls((array * scale).sum(), _count(weights))

    @property
    def value(self) -> Array:
        """total / count, still on the device; the loss inside a loss function."""
        total, count = _number(self.total), _number(self.count)
        # In one dtype, for those who forbid JAX to promote integers; in 16 bits a count of 257 is
        # 256, and one of 70,000 infinite.
        dtype = _single(total.dtype)
        return total.astype(dtype) / count.astype(dtype)


def accuracy(logits: Array, labels: Array, weights: ArrayLike | None = None) -> Mean:
    """Share of the rows whose largest logit is that of the label.

    A row is whatever has a label: an example of a classifier, a step of a tagger or a language
    model. A label outside [0, C) is nobody's guess: that row counts as a miss, -1 included. So does
    a row with a logit that is NaN, which guesses nothing.

    Args:
        logits: [..., C], such as [B, C] or [B, T, C].
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
    guesses = _guesses(logits)
    hits = (guesses == labels.astype(guesses.dtype)) & (guesses < logits.shape[-1])
    return Mean.of(hits, weights)


def cross_entropy(logits: Array, labels: Array, weights: ArrayLike | None = None) -> Mean:
    """Cross entropy of the softmax with integer labels, in nats.

    -log softmax(logits)[label]

    A row is whatever has a label: an example of a classifier, a step of a tagger or a language
    model, whose mask is the weights. `perplexity` and `bits` read the result in other units.

    A row of weight 0 is never read and its gradient is exactly zero. A label outside [0, C)
    in a row that counts makes the total NaN, -1 included: it is no index of the last class.

    Args:
        logits: [..., C], such as [B, C] or [B, T, C]; 16 bits are raised to float32 first.
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
    logits = logits.astype(_single(logits.dtype))
    if weights is not None:
        unread = _weights(weights, labels.shape) == 0
        logits = jnp.where(unread[..., None], 0, logits)
        labels = jnp.where(unread, 0, labels)
    # Optax answers a label that is too large with NaN, but would take -1 from the end.
    labels = jnp.where(labels < 0, logits.shape[-1], labels)
    entropies = with_automatic_axes(
        lambda pair: optax.softmax_cross_entropy_with_integer_labels(*pair),
        (logits, labels),
        logits,
        logits.ndim - 1,
    )
    if _checks.is_checking():
        _checks.require_finite("the cross entropy", entropies, _counted(weights, labels.shape))
    return Mean.of(entropies, weights)


def perplexity(entropy: tuple[ArrayLike, ArrayLike]) -> Array:
    """The perplexity of a cross entropy: the number of equally likely choices it stands for.

    exp(total / count)

    Take it of merged sums, at the end: a mean of perplexities is not the perplexity of all.

    Args:
        entropy: sum and count of entropies in nats, as `cross_entropy` gives.

    Example:
        >>> round(perplexity(cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))).item(), 4)
        4.0
    """
    _check_pair("entropy", entropy)
    return jnp.exp(Mean(*entropy).value)  # pyright: ignore[reportArgumentType]


def bits(entropy: tuple[ArrayLike, ArrayLike]) -> Mean:
    """A cross entropy in bits instead of nats: of a character model, its bits a character.

    total / log 2, count

    Args:
        entropy: sum and count of entropies in nats, as `cross_entropy` gives.

    Example:
        >>> round(bits(cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))).value.item(), 4)
        2.0
    """
    total, count = _check_pair("entropy", entropy)
    number = _number(total)
    number = number.astype(_single(number.dtype))
    return Mean(number / math.log(2), count)  # pyright: ignore[reportArgumentType]


def recall_by_class(logits: Array, labels: Array, weights: ArrayLike | None = None) -> Mean:
    """For each class, the share of its rows that are guessed to be of it.

    Its sums and counts are arrays [C], and `compute` makes an array of them, NaN for a class
    without a row. A label outside [0, C) is of no class.

    Args:
        logits: [..., C].
        labels: [...], integers.
        weights: [...]; a row of weight 0 does not count. All 1 when None.

    Raises:
        ValueError: the shapes of labels or weights are not those of logits without its last axis.

    Example:
        >>> logits = jnp.array([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0], [5.0, 4.0, 0.0]])
        >>> compute({"recall": recall_by_class(logits, jnp.array([0, 1, 1]))})["recall"]
        array([1. , 0.5, nan])
    """
    hits, _, present = _by_class(logits, labels, weights)
    return Mean(hits, present)


def f1_by_class(logits: Array, labels: Array, weights: ArrayLike | None = None) -> Mean:
    """For each class, the harmonic mean of precision and recall; their mean is the macro F1.

    F1 = 2 hits / (rows guessed to be of the class + rows of the class)

    Its sums and counts are arrays [C], and `compute` makes an array of them, NaN for a class that
    no row is of and none is guessed to be. A label outside [0, C) is of no class.

    Args:
        logits: [..., C].
        labels: [...], integers.
        weights: [...]; a row of weight 0 does not count. All 1 when None.

    Raises:
        ValueError: the shapes of labels or weights are not those of logits without its last axis.

    Example:
        >>> logits = jnp.array([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]])
        >>> f1 = compute({"f1": f1_by_class(logits, jnp.array([0, 1, 1]))})["f1"]
        >>> round(float(np.nanmean(f1)), 4)  # macro: both classes have 2 / 3
        0.6667
    """
    hits, guessed, present = _by_class(logits, labels, weights)
    return Mean(2 * hits, guessed + present)


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
        >>> error = squared_error(jnp.array([[1.0, 2.0], [9.0, 9.0]]), jnp.zeros((2, 2)), [1, 0])
        >>> error.value.item(), error.count.item()
        (2.5, 2)
    """
    return _mean_of_errors(jnp.square, predictions, targets, weights)


def absolute_error(
    predictions: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None
) -> Mean:
    """The mean absolute error, |prediction - target|, least at the median.

    Args and all else as of `squared_error`.

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


def merge(first: Any, second: Any) -> Any:
    """Adds two trees of sums and counts, leaf by leaf and without waiting for the device.

    Args:
        first: metrics of some batches: a `Mean`, or any tree of them.
        second: those of others, in a tree of the same structure.

    Returns:
        The metrics of all of them; every leaf is a `Sum`, which forgets nothing that is small
        beside it. Counts are exact to 2^48.

    Raises:
        ValueError: the trees are of different structure, or two leaves of different shape.

    Example:
        >>> merge(Mean.of(jnp.array([1.0, 2.0])), Mean.of(jnp.array([6.0]))).value.item()
        3.0
    """
    parts = [jax.tree.flatten(tree, is_leaf=_is_sum) for tree in (first, second)]
    if parts[0][1] != parts[1][1]:
        raise ValueError(
            f"second must be a tree like first, {parts[0][1]}, got the structure {parts[1][1]}"
        )
    for one, two in zip(parts[0][0], parts[1][0], strict=True):
        shape, other = (a.shape if isinstance(a, Sum) else jnp.shape(a) for a in (one, two))
        if shape != other:
            raise ValueError(
                f"second must have sums of the shapes of first, {shape}, got shape {other}"
            )
    return _add(first, second)


def compute(metrics: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Divides totals by counts on the host; waits for the device, once.

    Args:
        metrics: names and their `Mean`s.

    Returns:
        Names and plain numbers; NumPy arrays where sums and counts are arrays.

    Raises:
        ValueError: a metric is no pair, or a count is 0, so that there is no mean to speak of. (In
            an array of means it is NaN: a class without a row says nothing of the others.)

    Example:
        >>> compute({"loss": Mean.of(jnp.array([1.0, 2.0]))})
        {'loss': 1.5}
    """
    if not isinstance(metrics, Mapping):
        kind = type(metrics).__name__
        raise ValueError(f"metrics must be a dict of pairs (total, count), got {kind}")
    for name, pair in metrics.items():
        _check_pair(f"metric {name!r}", pair)
    return {name: _divide(name, *pair) for name, pair in jax.device_get(dict(metrics)).items()}


def evaluate(
    step: Callable[[Any, Any], Mapping[str, tuple[Array, Array]]],
    params: Any,
    batches: Iterable[Any],
) -> dict[str, Any]:
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
        raise ValueError("batches must be one or more, got none: there is nothing to average")
    return compute(total)


# One dispatch for the whole tree; leaf by leaf costs several times as much.
@jax.jit
def _add(first: Any, second: Any) -> Any:
    return jax.tree.map(_plus, first, second, is_leaf=_is_sum)


def _is_sum(node: Any) -> bool:
    return isinstance(node, Sum)


def _plus(first: Any, second: Any) -> Sum:
    a, b = _as_sum(first), _as_sum(second)
    dtype = np.promote_types(a.dtype, b.dtype)
    a, b = jax.tree.map(lambda leaf: leaf.astype(dtype), (a, b))
    high, low = _two_sum(a.high, b.high)
    return Sum(*_two_sum(high, low + (a.low + b.low)))


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded sum, and exactly what was rounded off."""
    total = a + b
    of_b = total - a
    rest = (a - (total - of_b)) + (b - of_b)
    # What is infinite has no rest, but infinity less infinity would be NaN.
    return total, jnp.where(jnp.isfinite(total), rest, 0)


def _check_pair(name: str, pair: Any) -> tuple[Any, Any]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f"{name} must be a pair (total, count), got {_checks.describe(pair)}")
    return pair[0], pair[1]


def _as_sum(number: Any) -> Sum:
    if isinstance(number, Sum):
        return number
    array = jnp.asarray(number)
    if jnp.issubdtype(array.dtype, jnp.floating):
        high = array.astype(_single(array.dtype))
        return Sum(high, jnp.zeros_like(high))
    dtype = jnp.result_type(float)
    if array.dtype == jnp.bool_:
        return Sum(array.astype(dtype), jnp.zeros(array.shape, dtype))
    # Cut in two, each part short enough for a float: a large integer alone would be rounded.
    return Sum((array >> 12).astype(dtype) * 4096, (array & 4095).astype(dtype))


def _single(dtype: Any) -> Any:
    """The dtype to compute in: 16 bits become float32, and integers floats."""
    if not jnp.issubdtype(dtype, jnp.floating):
        return jnp.result_type(float)
    # NumPy's rule, as JAX's own refuses to promote where promotion is strict.
    return np.promote_types(dtype, np.float32)


def _number(number: Any) -> Array:
    return number.value if isinstance(number, Sum) else jnp.asarray(number)


def _divide(name: str, total: Any, count: Any) -> Any:
    total, count = np.asarray(total, np.float64), np.asarray(count, np.float64)
    if count.shape:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(count == 0, np.nan, total / count)
    if count == 0:
        raise ValueError(
            f"metric {name!r} must have a count above 0, got 0: no row with a weight was seen"
        )
    return float(total) / float(count)


def _mean_of_errors(
    loss: Callable[[Array], Array], predictions: Any, targets: Any, weights: ArrayLike | None
) -> Mean:
    """The weighted mean of a loss of ``prediction - target``, over all numbers."""
    predictions, targets = _array("predictions", predictions), _array("targets", targets)
    if not jnp.issubdtype(predictions.dtype, jnp.floating):
        raise ValueError(f"predictions must be floating, got {predictions.dtype}")
    if targets.shape != predictions.shape:
        raise ValueError(
            f"targets must have shape {predictions.shape}, that of predictions, got {targets.shape}"
        )
    dtype = _single(predictions.dtype)
    predictions, targets = predictions.astype(dtype), targets.astype(dtype)
    if weights is None:
        return Mean.of(loss(predictions - targets))
    array = _array("weights", weights)
    if array.shape != predictions.shape[: array.ndim]:
        raise ValueError(
            f"weights must have the shape of predictions {predictions.shape} or its first axes, "
            f"got {array.shape}"
        )
    array = array.reshape(array.shape + (1,) * (predictions.ndim - array.ndim))
    array = jnp.broadcast_to(array, predictions.shape)
    # Selected before the difference: NaN in padding would spoil the gradient.
    predictions, targets = (jnp.where(array == 0, 0, a) for a in (predictions, targets))
    return Mean.of(loss(predictions - targets), array)


def _by_class(
    logits: Array, labels: Array, weights: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """[C] each: rows that are guessed rightly, that are guessed, that are there."""
    logits, labels = _check_labels(logits, labels, weights)
    size = logits.shape[-1]
    guesses = _guesses(logits).ravel()
    labels = labels.ravel()
    # Beyond the classes, where it is dropped: a negative index would count from the end.
    labels = jnp.where((labels < 0) | (labels >= size), size, labels).astype(guesses.dtype)
    if weights is None:
        scale = jnp.ones(labels.shape, jnp.int32)
    else:
        scale = _summable(weights, logits.shape[:-1]).ravel()

    def count(classes: Array, scale: Array) -> Array:
        return jnp.zeros(size, scale.dtype).at[classes].add(scale, mode="drop")

    hits = jnp.where(guesses == labels, scale, 0)
    return count(labels, hits), count(guesses, scale), count(labels, scale)


def _guesses(logits: Array) -> Array:
    """The class [...] of the largest logit; C, which is none, where one is NaN."""
    # The place of the largest would be that of the NaN, so that one class had all rows.
    has_nan = jnp.isnan(jnp.max(logits, axis=-1))
    return jnp.where(has_nan, logits.shape[-1], jnp.argmax(logits, axis=-1))


def _count(weights: ArrayLike) -> Array:
    array = _array("weights", weights)
    return _summable(array, array.shape).sum()


def _summable(weights: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Weights in the dtype of their count: integers where they are whole by their dtype."""
    array = _array("weights", weights)
    if jnp.issubdtype(array.dtype, jnp.integer) or array.dtype == jnp.bool_:
        _weights(weights, shape)
        return array.astype(jnp.result_type(int))
    return _weights(weights, shape)


def _weights(weights: ArrayLike, shape: tuple[int, ...]) -> Array:
    array = _array("weights", weights).astype(jnp.result_type(float))
    if array.shape != shape:
        raise ValueError(f"weights must have shape {shape}, got {array.shape}")
    return array


def _array(name: str, value: Any) -> Array:
    """``value`` as an array of real numbers.

    Raises:
        ValueError: naming ``name``.
    """
    value = value.value if isinstance(value, Sum) else value
    array = value if isinstance(value, Array) else _checks.in_native_order(np.asarray(value))
    if array.dtype != np.bool_ and not jnp.issubdtype(array.dtype, np.number):
        raise ValueError(f"{name} must be numbers, got dtype {array.dtype}")
    if jnp.issubdtype(array.dtype, np.complexfloating):
        raise ValueError(f"{name} must be real, got dtype {array.dtype}")
    return jnp.asarray(array)


def _counted(weights: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    return None if weights is None else _weights(weights, shape) != 0


def _check_labels(logits: Any, given: Any, weights: ArrayLike | None) -> tuple[Array, Array]:
    """Both as arrays that fit each other, labels of at least 32 bits."""
    logits = _array("logits", logits)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits must be floating, got {logits.dtype}")
    labels: Any = given if hasattr(given, "dtype") else np.asarray(given)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    if logits.shape[-1:] == (0,):
        raise ValueError(f"logits must have at least one class, got shape {logits.shape}")
    if logits.ndim == 0 or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels must have shape {logits.shape[:-1]} for logits {logits.shape}, "
            f"got {labels.shape}"
        )
    if labels.dtype.itemsize < 4:  # too narrow to hold every number of classes
        labels = labels.astype(np.int32)
    if not isinstance(labels, Array):
        labels = _checks.in_native_order(np.asarray(labels))
    if isinstance(labels, np.ndarray | np.generic):  # cut to 32 bits it could become a class
        labels = np.clip(labels, max(jnp.iinfo(labels.dtype).min, -1), np.iinfo(np.int32).max)
    labels = jnp.asarray(labels)
    if _checks.is_checking():
        classes, counted = logits.shape[-1], _counted(weights, labels.shape)
        _checks.require_range("labels", labels, classes, f"[0, {classes})", counted)
    return logits, labels
