"""How right a transducer is: an encoder, a prediction network, and a joint of the two."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from numpy.typing import ArrayLike

from rnnjax import _checks, _values
from rnnjax._devices import with_automatic_axes
from rnnjax._numerics import accumulation_dtype
from rnnjax.metrics._arrays import as_array, as_labels, rows_that_count
from rnnjax.metrics.means import Mean

# The logarithm of nothing: finite, so that the derivative of a sum with it is not NaN.
_NEVER = -1e30


def transducer_loss(
    logits: ArrayLike,
    lengths: Any,
    labels: ArrayLike,
    label_lengths: Any,
    weights: ArrayLike | None = None,
    *,
    blank_id: int = 0,
) -> Mean:
    r"""The loss of a recurrent neural network transducer (RNN-T).

    .. math::

        \alpha_{t,u} &= \alpha_{t-1,u} P(\varnothing \mid t - 1, u) +
            \alpha_{t,u-1} P(y_u \mid t, u - 1), \qquad \alpha_{0,0} = 1 \\
        \mathrm{loss} &= -\log \alpha_{T-1,U} P(\varnothing \mid T - 1, U)

    At each of T steps a transducer writes any number of symbols and then a blank. The loss is minus
    the logarithm of the sum of the probabilities of all ways to write the labels so. The sum goes
    over the :math:`T + U` diagonals of the grid, one after the other.

    Padding is never read: neither steps behind ``lengths``, nor places and labels behind
    ``label_lengths``, nor rows of weight 0. In a row that counts, a length of 0, which has room for
    no blank, and a label that is the blank or no class make the total NaN.

    Args:
        logits: [..., T, U + 1, C] of the joint; at place u the prediction network has read the
            first u labels. 16 bits are raised to float32 first.
        lengths: [...], integers in [0, T]; None means T.
        labels: [..., U], integers.
        label_lengths: [...], integers in [0, U]; None means U.
        weights: [...] of rows; all 1 when None.
        blank_id: the class of the blank.

    Returns:
        The weighted sum of the losses, one a row, over the sum of the weights.

    Raises:
        ValueError: a shape or dtype that does not fit, or, where the values are known, a length
            outside its range.

    Example:
        >>> joint = jnp.zeros((1, 2, 2, 3))  # 2 ways to write one symbol in two steps, each 1 / 27
        >>> loss = transducer_loss(joint, [2], jnp.array([[1]]), [1])
        >>> round(loss.value.item(), 4)  # log 27 / 2
        2.6027

    References:
        Graves, "Sequence transduction with recurrent neural networks", 2012, arXiv:1211.3711.
    """
    logits = as_array("logits", logits)
    if logits.ndim < 3 or 0 in logits.shape[-2:] or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"logits must be floating, of shape [..., T, U + 1, C], got {logits.dtype} of shape "
            f"{logits.shape}"
        )
    *batch, steps, places, classes = logits.shape
    rows = tuple(batch)
    blank_id = _checks.check_id("blank_id", blank_id, classes)
    lengths = _lengths("lengths", lengths, rows, steps)
    label_lengths = _lengths("label_lengths", label_lengths, rows, places - 1)
    counts = rows_that_count(weights, rows)
    read = _up_to(label_lengths, places - 1, counts) if _values.is_checking() else None
    labels = as_labels(labels, (*rows, places - 1), classes, f"logits {logits.shape}", read)
    logits = logits.astype(accumulation_dtype(logits.dtype))
    grid = _Grid(logits, lengths, labels, label_lengths, counts)
    losses = with_automatic_axes(lambda grid: _losses(grid, blank_id), grid, logits, len(rows))
    if _values.is_checking():
        _values.require_finite("the transducer loss", losses, counts)
    return Mean.of(losses, weights)


class _Grid(NamedTuple):
    """Steps by places: logits, and what says which of them are read."""

    logits: Array
    lengths: Array
    labels: Array
    label_lengths: Array
    counts: Array | None


def _lengths(name: str, given: Any, rows: tuple[int, ...], end: int) -> Array:
    if given is None:
        return jnp.full(rows, end, jnp.int32)
    array = as_array(name, given)
    if array.shape != rows or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"{name} must be integers of shape {rows}, got {array.dtype} of shape {array.shape}"
        )
    _values.check_range(name, array, end + 1, f"[0, {end}]")
    return jnp.clip(array.astype(jnp.int32), 0, end)


def _up_to(lengths: Array, size: int, counts: Array | None = None) -> Array:
    """True [..., size] before the length of each row, of the rows that count."""
    before = _indices(lengths, size) < lengths[..., None]
    return before if counts is None else before & counts[..., None]


def _indices(lengths: Array, size: int) -> Array:
    return lax.broadcasted_iota(jnp.int32, (*lengths.shape, size), lengths.ndim)


def _losses(grid: _Grid, blank_id: int) -> Array:
    """Minus the log probability [...] of the labels of each row."""
    logits, lengths, labels, label_lengths, counts = grid
    *_, steps, places, classes = logits.shape
    labelled = _up_to(label_lengths, places - 1, counts)
    wrong = labelled & ((labels < 0) | (labels >= classes) | (labels == blank_id))
    possible = (lengths > 0) & ~wrong.any(axis=-1)

    real = (
        _up_to(lengths, steps, counts)[..., None] & _up_to(label_lengths + 1, places)[..., None, :]
    )
    blank, write = _log_probabilities(
        jnp.where(real[..., None], logits, 0), jnp.where(labelled & ~wrong, labels, 0), blank_id
    )
    at_end = _indices(lengths, places) == label_lengths[..., None]
    first = jnp.where(_indices(lengths, places) == 0, 0, _NEVER).astype(blank.dtype)

    def next_diagonal(alpha: Array, of_alpha: tuple[Array, Array]) -> tuple[Array, Array]:
        blank, write = of_alpha
        stay, move = alpha + blank, alpha + write
        moved = jnp.concatenate([jnp.full_like(move[..., :1], _NEVER), move[..., :-1]], axis=-1)
        return jnp.logaddexp(stay, moved), jnp.where(at_end, stay, 0).sum(axis=-1)

    _, ends = lax.scan(next_diagonal, first, (_diagonals(blank), _diagonals(write)))
    diagonal = jnp.maximum(lengths - 1, 0) + label_lengths
    found = jnp.take_along_axis(ends, diagonal[None], axis=0)[0]
    return jnp.where(possible, -found, jnp.nan)


def _log_probabilities(logits: Array, labels: Array, blank_id: int) -> tuple[Array, Array]:
    """Of the blank, and of the next label, at each step and place: [..., T, U + 1]."""
    total = jax.nn.logsumexp(logits, axis=-1)
    index = labels[..., None, :, None]
    index = jnp.broadcast_to(index, (*logits.shape[:-2], labels.shape[-1], 1))
    write = jnp.take_along_axis(logits[..., :-1, :], index, axis=-1)[..., 0] - total[..., :-1]
    none_left = jnp.full_like(total[..., :1], _NEVER)
    return logits[..., blank_id] - total, jnp.concatenate([write, none_left], axis=-1)


def _diagonals(grid: Array) -> Array:
    """From [..., T, P] to [T + P - 1, ..., P]: place u of diagonal n is that of step n - u."""
    *batch, steps, places = grid.shape
    width = steps + places - 1
    # Laid out in rows of one more than they are read in, each place lies one further to the right.
    columns = jnp.swapaxes(grid, -1, -2)
    longer = jnp.pad(columns, [(0, 0)] * (len(batch) + 1) + [(0, places)])
    flat = longer.reshape(*batch, places * (width + 1))[..., : places * width]
    return jnp.moveaxis(flat.reshape(*batch, places, width), -1, 0)
