"""Sequences of unequal length: flat, padded, cut."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnjax.data.errors import DataError

Sequences = Sequence[Sequence[int] | NDArray[np.integer]]

_AT_A_TIME = 1024  # sequences that are arrays of their own before they are joined


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


def flatten(sequences: Iterable[Sequence[int] | NDArray[np.integer]] | Ragged) -> Ragged:
    """Lay sequences end to end in one int32 array.

    They may come one by one, from a generator: a sequence is laid down and forgotten, so that
    4 bytes an id and 8 a sequence are kept of it, where a Python list takes several times as much.

    Args:
        sequences: lists or one-dimensional integer arrays, of any lengths, zero included; what is
            laid end to end already is given back as it is.

    Returns:
        The values and where each sequence begins.

    Raises:
        DataError: naming the first sequence that does not hold 32-bit integers.

    Example:
        >>> flatten([[5, 6], [7]]).offsets.tolist()
        [0, 2, 3]
        >>> flatten([n] * n for n in range(4)).values.tolist()
        [1, 2, 2, 3, 3, 3]
    """
    if isinstance(sequences, Ragged):
        return sequences
    values, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    rest, count = iter(sequences), 0
    while arrays := _arrays(islice(rest, _AT_A_TIME), count):
        values.append(_joined(arrays, count))
        lengths.append(np.array([len(array) for array in arrays], np.int64))
        count += len(arrays)
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.concatenate(lengths), out=offsets[1:])
    return Ragged(np.concatenate(values), offsets)


def _arrays(sequences: Iterable[Any], begin: int) -> list[NDArray[np.integer]]:
    return [_array(sequence, index) for index, sequence in enumerate(sequences, begin)]


def _array(sequence: Sequence[int] | NDArray[np.integer], index: int) -> NDArray[np.integer]:
    if not len(sequence):
        return np.zeros(0, np.int32)
    try:
        array = np.asarray(sequence)
    except ValueError as error:  # lists of unequal length in it
        raise DataError(f"sequence {index}: expected one axis of integers ({error})") from None
    if array.ndim != 1 or array.dtype.kind not in "iu":
        found = f"{array.ndim} axes of {array.dtype}"
        raise DataError(f"sequence {index}: expected one axis of integers, got {found}")
    if array.dtype != np.uint64:
        return array
    # Joined with signed integers it would become float64.
    bad = array[array > np.iinfo(np.int32).max]
    if bad.size:
        raise DataError(f"sequence {index}: expected 32-bit ids, got {bad[0]}")
    return array.astype(np.int32)


def _joined(arrays: list[NDArray[np.integer]], begin: int) -> NDArray[np.int32]:
    given = np.concatenate(arrays)
    values = given.astype(np.int32)
    bad = np.flatnonzero(values != given)
    if bad.size:
        ends = np.cumsum([len(array) for array in arrays])
        index = begin + int(np.searchsorted(ends, bad[0], side="right"))
        raise DataError(f"sequence {index}: expected 32-bit ids, got {given[bad[0]]}")
    return values


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
        DataError: naming the first sequence that is longer than ``length`` or is not of integers;
            or ``length`` is below 0, or ``value`` takes more than 32 bits.

    Example:
        >>> tokens, lengths = pad([[1, 6, 9], [2]])
        >>> tokens.tolist(), lengths.tolist()
        ([[1, 6, 9], [2, 0, 0]], [3, 1])
    """
    ragged = flatten(sequences)
    lengths = ragged.lengths
    if length is None:
        length = int(lengths.max(initial=0))
    if length < 0:
        raise DataError(f"length: expected at least 0, got {length}")
    if not -(1 << 31) <= value < 1 << 31:
        raise DataError(f"value: expected 32 bits, got {value}")
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
        The sequences, each of its own type; one that is short enough is itself, not a copy.

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
    return [s if len(s) <= max_length else s[part] for s in sequences]


def require_at_most(lengths: NDArray[np.integer], longest: int) -> None:
    """Raise a ``DataError`` that names the first sequence longer than ``longest``."""
    bad = np.flatnonzero(lengths > longest)
    if bad.size:
        found = int(lengths[bad[0]])
        raise DataError(f"sequence {bad[0]}: expected at most {longest} ids, got {found}")
