"""How right logits of classes are."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array
from numpy.typing import ArrayLike

from rnnjax import _values
from rnnjax._checks import check_pair
from rnnjax._devices import with_automatic_axes
from rnnjax._numerics import accumulation_dtype, mean_dtype
from rnnjax.metrics._arrays import (
    as_weights,
    check_labels,
    rows_that_count,
    summable,
)
from rnnjax.metrics.means import Mean
from rnnjax.metrics.sums import as_number

_PAIR = "a pair (total, count)"


def accuracy(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Mean:
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
        ValueError: the shapes of labels or weights are not those of logits without its last axis,
            or there is one class.

    Example:
        >>> from rnnjax.metrics import compute
        >>> logits = jnp.array([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]])
        >>> round(compute({"accuracy": accuracy(logits, jnp.array([0, 1, 1]))})["accuracy"], 3)
        0.667
    """
    logits, labels = check_labels(logits, labels, weights)
    guesses = _guesses(logits)
    hits = (guesses == labels.astype(guesses.dtype)) & (guesses < logits.shape[-1])
    return Mean.of(hits, weights)


def cross_entropy(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Mean:
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
        ValueError: the shapes of labels or weights are not those of logits without its last axis,
            or there is one class.

    Example:
        >>> loss = cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))
        >>> round(loss.value.item(), 4)  # log 4
        1.3863
    """
    import optax

    logits, labels = check_labels(logits, labels, weights)
    logits = logits.astype(accumulation_dtype(logits.dtype))
    if weights is not None:
        unread = as_weights(weights, labels.shape) == 0
        logits = jnp.where(unread[..., None], 0, logits)
        labels = jnp.where(unread, 0, labels)
    # Optax answers a label that is too large with NaN, but would take -1 from the end, and so it
    # would an unsigned number that is -1 in the dtype of an index.
    classes = logits.shape[-1]
    labels = jnp.where((labels < 0) | (labels >= classes), classes, labels)
    entropies = with_automatic_axes(
        lambda pair: optax.softmax_cross_entropy_with_integer_labels(*pair),
        (logits, labels),
        logits,
        logits.ndim - 1,
    )
    if _values.is_checking():
        counted = rows_that_count(weights, labels.shape)
        _values.require_finite("the cross entropy", entropies, counted)
    return Mean.of(entropies, weights)


def perplexity(entropy: tuple[ArrayLike, ArrayLike]) -> Array:
    """The perplexity of a cross entropy: the number of equally likely choices it stands for.

    exp(total / count)

    Take it of merged sums, at the end: a mean of perplexities is not the perplexity of all.

    Args:
        entropy: sum and count of entropies in nats, as `cross_entropy` gives.

    Raises:
        ValueError: it is no such pair.

    Example:
        >>> round(perplexity(cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))).item(), 4)
        4.0
    """
    return jnp.exp(Mean(*check_pair("entropy", _PAIR, entropy)).value)


def bits(entropy: tuple[ArrayLike, ArrayLike]) -> Mean:
    """A cross entropy in bits instead of nats: of a character model, its bits a character.

    total / log 2, count

    Args:
        entropy: sum and count of entropies in nats, as `cross_entropy` gives.

    Raises:
        ValueError: it is no such pair.

    Example:
        >>> round(bits(cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))).value.item(), 4)
        2.0
    """
    total, count = check_pair("entropy", _PAIR, entropy)
    number = as_number(total)
    number = number.astype(mean_dtype(number.dtype))
    return Mean(number / math.log(2), count)  # pyright: ignore[reportArgumentType]


def recall_by_class(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Mean:
    """For each class, the share of its rows that are guessed to be of it.

    Its sums and counts are arrays [C], and `compute` makes an array of them, NaN for a class
    without a row. A label outside [0, C) is of no class.

    Args:
        logits: [..., C].
        labels: [...], integers.
        weights: [...]; a row of weight 0 does not count. All 1 when None.

    Raises:
        ValueError: the shapes of labels or weights are not those of logits without its last axis,
            or there is one class.

    Example:
        >>> from rnnjax.metrics import compute
        >>> logits = jnp.array([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0], [5.0, 4.0, 0.0]])
        >>> compute({"recall": recall_by_class(logits, jnp.array([0, 1, 1]))})["recall"]
        array([1. , 0.5, nan])
    """
    hits, _, present = _by_class(logits, labels, weights)
    return Mean(hits, present)


def f1_by_class(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Mean:
    """For each class, the harmonic mean of precision and recall; their mean is the macro F1.

    F1 = 2 hits / (rows guessed to be of the class + rows of the class)

    Its sums and counts are arrays [C], and `compute` makes an array of them, NaN for a class that
    no row is of and none is guessed to be. A label outside [0, C) is of no class.

    Args:
        logits: [..., C].
        labels: [...], integers.
        weights: [...]; a row of weight 0 does not count. All 1 when None.

    Raises:
        ValueError: the shapes of labels or weights are not those of logits without its last axis,
            or there is one class.

    Example:
        >>> import numpy as np
        >>> from rnnjax.metrics import compute
        >>> logits = jnp.array([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]])
        >>> f1 = compute({"f1": f1_by_class(logits, jnp.array([0, 1, 1]))})["f1"]
        >>> round(float(np.nanmean(f1)), 4)  # macro: both classes have 2 / 3
        0.6667
    """
    hits, guessed, present = _by_class(logits, labels, weights)
    return Mean(2 * hits, guessed + present)


def _by_class(
    logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """[C] each: rows that are guessed rightly, that are guessed, that are there."""
    logits, labels = check_labels(logits, labels, weights)
    size = logits.shape[-1]
    guesses = _guesses(logits)
    # Beyond the classes, where it is dropped: a negative index would count from the end.
    labels = jnp.where((labels < 0) | (labels >= size), size, labels).astype(guesses.dtype)
    if weights is None:
        scale = jnp.ones(labels.shape, jnp.int32)
    else:
        scale = summable(weights, logits.shape[:-1])

    def counts(rows: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        guesses, labels, scale = (array.ravel() for array in rows)

        def count(classes: Array, scale: Array) -> Array:
            return jnp.zeros(size, scale.dtype).at[classes].add(scale, mode="drop")

        hits = jnp.where(guesses == labels, scale, 0)
        return count(labels, hits), count(guesses, scale), count(labels, scale)

    return with_automatic_axes(counts, (guesses, labels, scale), logits, 0)


def _guesses(logits: Array) -> Array:
    """The class [...] of the largest logit; C, which is none, where one is NaN."""
    # The place of the largest would be that of the NaN, so that one class had all rows.
    has_nan = jnp.isnan(jnp.max(logits, axis=-1))
    return jnp.where(has_nan, logits.shape[-1], jnp.argmax(logits, axis=-1))
