"""How right a linear head is, without the logits of all rows in memory at once."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from numpy.typing import ArrayLike

from rnnjax import _values
from rnnjax._devices import may_merge_axes
from rnnjax._numerics import accumulation_dtype, affine, varying_like
from rnnjax.metrics._arrays import as_array, as_labels, as_weights, rows_that_count
from rnnjax.metrics.means import Mean
from rnnjax.metrics.of_classes import accuracy, cross_entropy

# Logits that exist at a time: 8 MB in float32, which stay in the cache of a processor.
_LOGITS = 2**21
# But no fewer rows than these: for each chunk of rows the gradient of w is read and written once.
_LEAST_ROWS = 512


def linear_cross_entropy(
    features: ArrayLike,
    w: ArrayLike,
    bias: ArrayLike | None,
    labels: ArrayLike,
    weights: ArrayLike | None = None,
) -> tuple[Mean, Mean]:
    r"""Cross entropy and accuracy of a linear head, in chunks of the rows that count.

    .. math:: -\log \mathrm{softmax}(x W + b)_{\text{label}}

    They are those of :func:`cross_entropy` and :func:`accuracy` for the logits
    :math:`x W + b`, but of these logits only a few rows exist at a time, forwards and backwards:
    with many classes they are the largest array of a training step. For rows of weight 0, such as
    padding, none are computed.

    The gradient is made together with the value, chunk by chunk, so no logits are made twice.
    Forward mode works, and so does ``jax.hessian``; reverse mode through the gradient does not. All
    logits are computed at once where they are few (8 MB, or 512 rows), where shapes are symbolic,
    and on a mesh of devices, divided as the rows are.

    Args:
        features: x, [..., F], what the head reads.
        w: [F, C]; the products are in its dtype, their sums in at least float32.
        bias: b, [C], or None.
        labels: [...], integers.
        weights: [...]; all 1 when None. Features of a row of weight 0 are never read.

    Returns:
        The cross entropy in nats, and the accuracy.

    Raises:
        ValueError: an argument of wrong shape or dtype, named in the message.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> from rnnjax.metrics import linear_cross_entropy
        >>> model = rnnjax.language_model(rnnjax.embedding(50, 8), rnnjax.lstm(16))
        >>> params = model.init(jax.random.key(0))
        >>> tokens, targets = jnp.array([[5, 7, 9], [3, 0, 0]]), jnp.array([[7, 9, 1], [1, 0, 0]])
        >>> mask = rnnjax.lengths_to_mask(jnp.array([3, 1]), 3)
        >>> carry, features = model.features(params, tokens, mask=mask)
        >>> head = model.head_weights(params)
        >>> loss, hits = linear_cross_entropy(features.dropped, *head, targets, mask)
        >>> int(loss.count)
        4

    References:
        Hsu et al., "Liger kernel: efficient Triton kernels for LLM training", 2024: the loss and
        its gradient in chunks of rows.
    """
    features, w, bias = _check_head(features, w, bias)
    rows, classes = features.shape[:-1], w.shape[-1]
    labels = as_labels(labels, rows, classes, f"features {features.shape}", weights)
    if _chunks(labels.size, classes)[1] <= 1 or not may_merge_axes((features, w)):
        if weights is not None:
            read = as_weights(weights, rows) != 0
            features = jnp.where(read[..., None], features, 0)
        logits = affine(features, w, bias, name="features")
        return cross_entropy(logits, labels, weights), accuracy(logits, labels, weights)
    dtype = accumulation_dtype(w.dtype)
    scale = jnp.ones(rows, dtype) if weights is None else as_weights(weights, rows).astype(dtype)
    bias = jnp.zeros(classes, dtype) if bias is None else bias
    flat = features.reshape(-1, features.shape[-1])
    found = _loss(flat, w, bias, labels.reshape(-1), scale.reshape(-1))
    if _values.is_checking():
        counted = rows_that_count(weights, rows)
        entropies = found.entropies.reshape(rows)
        _values.require_finite("the cross entropy", entropies, counted)
    hits = Mean.of(found.hits.reshape(rows), weights)
    # In the dtype of every total, however many chunks there were.
    return Mean(found.total.astype(hits.total.dtype), hits.count), hits


class _Found(NamedTuple):
    """The weighted sum of the entropies; and of every row, 0 where the weight is, its own."""

    total: Array
    entropies: Array  # [N]
    hits: Array  # [N], 1 where the label is guessed


class _Gradients(NamedTuple):
    """Of the total, in the order of the arguments; None of what nobody asks for."""

    features: Array | None
    w: Array | None
    bias: Array | None


@jax.custom_jvp
def _loss(features: Array, w: Array, bias: Array, labels: Array, weights: Array) -> _Found:
    """The loss of rows [N]. The rows' own entropies and hits have no derivative."""
    return _in_chunks((features, w, bias, labels, weights), _Gradients(None, None, None))[0]


@functools.partial(_loss.defjvp, symbolic_zeros=True)
def _loss_jvp(primals: tuple, tangents: tuple) -> tuple[_Found, _Found]:
    moves = [not isinstance(tangent, SymbolicZero) for tangent in tangents]
    zeros = [
        jnp.zeros(a.shape, accumulation_dtype(a.dtype)) if asked else None
        for a, asked in zip(primals[:3], moves, strict=False)
    ]
    found, gradients = _in_chunks(primals, _Gradients(*zeros))
    # The total is linear in the weights: its derivative by one is the entropy of that row.
    derivatives = (*gradients, None, found.entropies if moves[4] else None)
    change = jnp.zeros_like(found.total)
    for derivative, tangent in zip(derivatives, tangents, strict=True):
        if derivative is not None:
            change += jnp.sum(derivative * tangent.astype(derivative.dtype)).astype(change.dtype)
    return found, _Found(change, *map(jnp.zeros_like, found[1:]))


def _in_chunks(given: tuple[Array, ...], zeros: _Gradients) -> tuple[_Found, _Gradients]:
    """The loss, and the gradients for which there are ``zeros`` to begin with."""
    features, w, bias, labels, weights = given
    count, classes = len(features), w.shape[-1]
    dtype = accumulation_dtype(w.dtype)
    nothing = _Found(jnp.zeros((), dtype), *(jnp.zeros(count, dtype) for _ in range(2)))
    rows, most = _chunks(count, classes)
    # The places of the rows that count, in front; behind them a place that no row has.
    places = jnp.flatnonzero(weights != 0, size=most * rows, fill_value=count)
    chunks = -(-jnp.sum(weights != 0) // rows)

    def add(i: Array, now: tuple[_Found, _Gradients]) -> tuple[_Found, _Gradients]:
        found, gradients = now
        at = lax.dynamic_slice_in_dim(places, i * rows, rows)
        x, label, weight = (
            a.at[at].get(mode="fill", fill_value=0) for a in (features, labels, weights)
        )
        entropies, hits, errors = _of_rows(x, w, bias, label)
        # Selected before the products: behind the rows that count stand those of no place, of class
        # 0, whose entropy is infinite where the bias of that class is -inf.
        read = weight != 0
        errors = jnp.where(read[:, None], errors, 0)
        found = _Found(
            found.total + jnp.sum(jnp.where(read, entropies, 0) * weight),
            found.entropies.at[at].set(entropies, mode="drop"),
            found.hits.at[at].set(hits.astype(dtype), mode="drop"),
        )
        return found, _add_gradients(gradients, at, x, w, errors * weight[:, None])

    return lax.fori_loop(0, chunks, add, varying_like(given, (nothing, zeros)))


def _chunks(count: int, classes: int) -> tuple[int, int]:
    """The rows of a chunk, and how many chunks hold ``count`` rows: as even as can be."""
    if not isinstance(count, int):  # a symbolic shape
        return count, 1
    most = -(-count // max(_LEAST_ROWS, _LOGITS // classes))
    return -(-count // max(most, 1)), most


def _of_rows(x: Array, w: Array, bias: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Of rows [N, F] the entropies, whether the label's logit is the largest, and [N, C] the
    gradient of the entropies by the logits."""
    logits = affine(x, w, bias, name="features")
    largest = jnp.max(logits, axis=-1, keepdims=True)
    powers = jnp.exp(logits - largest)
    total = jnp.sum(powers, axis=-1, keepdims=True)
    classes = lax.broadcasted_iota(labels.dtype, logits.shape, 1)
    is_label = classes == labels[:, None]
    own = jnp.take_along_axis(logits, jnp.clip(labels, 0, logits.shape[-1] - 1)[:, None], axis=-1)
    # Of equal logits the first is the guess.
    ahead = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    inside = (labels >= 0) & (labels < logits.shape[-1])
    hits = inside & ~jnp.any(ahead, axis=-1) & ~jnp.isnan(largest[:, 0])
    entropies = jnp.where(inside, (jnp.log(total) + largest - own)[:, 0], jnp.nan)
    return entropies, hits, powers / total - is_label.astype(powers.dtype)


def _add_gradients(so_far: _Gradients, at: Array, x: Array, w: Array, errors: Array) -> _Gradients:
    """The gradients with those of rows [N, F] at the places ``at``, of ``errors`` [N, C]."""
    of_x, of_w, of_bias = so_far
    narrow = errors.astype(w.dtype)  # the products are in the dtype of w, as forwards
    if of_x is not None:
        rows = jnp.matmul(narrow, w.T, preferred_element_type=accumulation_dtype(w.dtype))
        of_x = of_x.at[at].set(rows.astype(of_x.dtype), mode="drop")
    if of_w is not None:
        of_w += jnp.matmul(x.astype(w.dtype).T, narrow, preferred_element_type=of_w.dtype)
    if of_bias is not None:
        of_bias += jnp.sum(errors, axis=0).astype(of_bias.dtype)
    return _Gradients(of_x, of_w, of_bias)


def _check_head(features: Any, w: Any, bias: Any) -> tuple[Array, Array, Array | None]:
    """Arrays that fit each other.

    Raises:
        ValueError: naming the one that does not.
    """
    features, w = as_array("features", features), as_array("w", w)
    bias = None if bias is None else as_array("bias", bias)
    for name, array in (("features", features), ("w", w), ("bias", bias)):
        if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating, got {array.dtype}")
    if features.ndim == 0 or w.ndim != 2 or w.shape[0] != features.shape[-1] or not w.shape[1]:
        raise ValueError(
            f"w must have shape [F, C] with the F of features {features.shape} and C at least 1, "
            f"got shape {w.shape}"
        )
    if bias is not None and bias.shape != w.shape[1:]:
        raise ValueError(f"bias must have shape {w.shape[1:]}, got {bias.shape}")
    if w.shape[1] == 1:
        raise ValueError(
            f"w must be of 2 classes or more, got shape {w.shape}: for one sigmoid unit give "
            "jnp.pad(w, ((0, 0), (1, 0))) and jnp.pad(bias, (1, 0))"
        )
    return features, w, bias
