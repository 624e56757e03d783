"""Sequences of unequal length: flat, padded, cut."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnjax.data.errors import DataError

Sequences = Sequence[Sequence[int] | NDArray[np.integer]]


class Ragged(NamedTuple):
    """Sequences laid end to end; sequence ``i`` is ``values[offsets[i] : offsets[i + 1]]``."""

    values: NDArray[np.int32]
    offsets: NDArray[np.int64]  # [N + 1]

    @property
    def lengths(self) -> NDArray[np.int32]:
        """The length of each sequence."""
        return np.diff(self.offsets).astype(np.int32)

    def row_of(self, position: int) -> int:
        """The sequence to which ``values[position]`` belongs."""
        return int(np.searchsorted(self.offsets, position, side="right")) - 1

    def padded(self, rows: NDArray[np.integer], length: int, value: int = 0) -> NDArray[np.int32]:
        """The chosen sequences as an array [len(rows), length], ``value`` behind each."""
        starts, ends = self.offsets[rows], self.offsets[rows + 1]
        positions = starts[:, None] + np.arange(length)
        tokens = np.full(positions.shape, value, np.int32)
        real = positions < ends[:, None]
        tokens[real] = self.values[positions[real]]
        return tokens


def flatten(sequences: Sequences) -> Ragged:
    """Lay sequences end to end in one int32 array.

    Args:
        sequences: lists or one-dimensional integer arrays, of any lengths, zero included.

    Returns:
        The values and where each sequence begins.

    Raises:
        DataError: naming the first sequence that does not hold 32-bit integers.

    Example:
        >>> flatten([[5, 6], [7]]).offsets.tolist()
        [0, 2, 3]
    """
    arrays = [np.asarray(s) if len(s) else np.zeros(0, np.int32) for s in sequences]
    for index, array in enumerate(arrays):
        if array.ndim != 1 or array.dtype.kind not in "iu":
            found = f"{array.ndim} axes of {array.dtype}"
            raise DataError(f"sequence {index}: expected one axis of integers, got {found}")
    offsets = np.zeros(len(arrays) + 1, np.int64)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    values = np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
    ragged = Ragged(values.astype(np.int32), offsets)
    bad = np.flatnonzero(ragged.values != values)
    if bad.size:
        index = ragged.row_of(bad[0])
        raise DataError(f"sequence {index}: expected 32-bit ids, got {values[bad[0]]}")
    return ragged


def pad(
    sequences: Sequences, length: int | None = None, value: int = 0
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Put sequences of unequal length in one array, padded on the right.

    Args:
        sequences: the ids of each example; empty ones are allowed.
        length: the number of columns; by default the length of the longest.
        value: what fills the rest of a row.

    Returns:
        The tokens [B, T] and the true lengths [B], both int32.

    Raises:
        DataError: naming the first sequence that is longer than ``length`` or is not of integers.

    Example:
        >>> tokens, lengths = pad([[1, 6, 9], [2]])
        >>> tokens.tolist(), lengths.tolist()
        ([[1, 6, 9], [2, 0, 0]], [3, 1])
    """
    ragged = flatten(sequences)
    lengths = ragged.lengths
    if length is None:
        length = int(lengths.max(initial=0))
    require_at_most(lengths, length)
    return ragged.padded(np.arange(len(lengths)), length, value), lengths


def truncate(
    sequences: Sequences, max_length: int, keep: Literal["head", "tail"] = "head"
) -> list[Sequence[int] | NDArray[np.integer]]:
    """Cut each sequence to at most ``max_length`` ids.

    Args:
        sequences: the ids of each example.
        max_length: the greatest length left, at least 1.
        keep: ``"head"`` keeps the first ids, ``"tail"`` the last.

    Returns:
        The sequences, each of its own type.

    Raises:
        DataError: if ``max_length`` is below 1 or ``keep`` is another word.

    Example:
        >>> truncate([[1, 2, 3], [4]], 2), truncate([[1, 2, 3], [4]], 2, keep="tail")
        ([[1, 2], [4]], [[2, 3], [4]])
    """
    if max_length < 1:
        raise DataError(f"max_length: expected at least 1, got {max_length}")
    if keep not in ("head", "tail"):
        raise DataError(f"keep: expected 'head' or 'tail', got {keep!r}")
    part = slice(max_length) if keep == "head" else slice(-max_length, None)
    return [sequence[part] for sequence in sequences]


def require_at_most(lengths: NDArray[np.integer], longest: int) -> None:
    """Raise a ``DataError`` that names the first sequence longer than ``longest``."""
    bad = np.flatnonzero(lengths > longest)
    if bad.size:
        found = int(lengths[bad[0]])
        raise DataError(f"sequence {bad[0]}: expected at most {longest} ids, got {found}")
