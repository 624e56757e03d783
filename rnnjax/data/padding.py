"""Sequences of unequal length in one array, or cut."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rnnjax.data._numbers import INT32, LARGEST_FLOAT32
from rnnjax.data._sequence_checks import check_at_most
from rnnjax.data.errors import DataError, check_count
from rnnjax.data.ragged import Ragged, RaggedRows, flatten, step_count


def pad(
    sequences: RaggedRows | Ragged, length: int | None = None, value: float = 0
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Put sequences of unequal length in one array, padded on the right.

    Args:
        sequences: the ids, floats or vectors of each example, as for ``flatten``; empty ones are
            allowed.
        length: the number of steps; by default the length of the longest.
        value: what fills the rest of a row.

    Returns:
        The padded sequences [B, T, ...], int32 or float32, and the true lengths [B], int32.

    Raises:
        DataError: naming the first sequence that is longer than ``length`` or is not of numbers;
            or ``length`` is below 0, or ``value`` is none that the array can hold.

    Example:
        >>> tokens, lengths = pad([[1, 6, 9], [2]])
        >>> tokens.tolist(), lengths.tolist()
        ([[1, 6, 9], [2, 0, 0]], [3, 1])
        >>> pad([[[0.5, 1.5]], []], length=2)[0].tolist()
        [[[0.5, 1.5], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]
    """
    ragged = flatten(sequences)
    lengths = ragged.lengths
    if length is None:
        length = int(lengths.max(initial=0))
    length = check_count("length", length, least=0)
    value = _checked_filler(value, ragged.values.dtype)
    check_at_most(lengths, length)
    return ragged.padded(np.arange(len(lengths)), length, value), lengths


def _checked_filler(value: Any, dtype: np.dtype) -> float:
    """A number that an array of such numbers can hold."""
    value = value.item() if getattr(value, "shape", None) == () else value
    is_number = isinstance(value, int | float)
    if not is_number or isinstance(value, bool):
        raise DataError(f"value must be a number, got {value!r}")
    is_whole = value == value // 1 and INT32.min <= value <= INT32.max
    if dtype == np.int32 and not is_whole:
        raise DataError(f"value must be an integer of 32 bits, got {value}")
    if LARGEST_FLOAT32 < abs(value) < math.inf:
        raise DataError(f"value must be a number that float32 can hold, got {value!s:.40}")
    return value


def truncate(
    sequences: RaggedRows | Ragged, max_length: int, keep: Literal["head", "tail"] = "head"
) -> list[Sequence[Any] | NDArray[Any]]:
    """Cut each sequence to at most ``max_length`` steps.

    Args:
        sequences: the ids, or whatever the steps are, of each example.
        max_length: the greatest length left, at least 1.
        keep: ``"head"`` keeps the first steps, ``"tail"`` the last.

    Returns:
        The sequences, each of its own type, or an array where they were laid end to end; a list
        or array that is short enough is itself, not a copy.

    Raises:
        DataError: if ``max_length`` is below 1, ``keep`` is another word, or what should be a
            sequence is none.

    Example:
        >>> truncate([[1, 2, 3], [4]], 2), truncate([[1, 2, 3], [4]], 2, keep="tail")
        ([[1, 2], [4]], [[2, 3], [4]])
    """
    max_length = check_count("max_length", max_length)
    if keep not in ("head", "tail"):
        raise DataError(f"keep must be 'head' or 'tail', got {keep!r}")
    if isinstance(sequences, Ragged):
        sequences = [sequences.values[a:b] for a, b in pairwise(sequences.offsets)]
    part = slice(max_length) if keep == "head" else slice(-max_length, None)
    return [s if step_count(s, i) <= max_length else s[part] for i, s in enumerate(sequences)]


def filled(rows: NDArray[Any], count: int) -> NDArray[Any]:
    """The rows [R, ...] with rows of zeros behind them, ``count`` in all."""
    result = np.zeros((count, *rows.shape[1:]), rows.dtype)
    result[: len(rows)] = rows
    return result
