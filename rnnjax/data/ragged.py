"""Sequences of unequal length: flat, padded, cut."""

from collections.abc import Iterable, Sequence
from itertools import islice, pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnjax.data.errors import DataError, check_count

# Each is a list of ids, of floats or of vectors, or an array [T, ...] of integers or floats.
RaggedRows = Sequence[Sequence[Any] | NDArray[Any]]

_AT_A_TIME = 1024  # sequences that are arrays of their own before they are joined
_INT32 = np.iinfo(np.int32)


class Ragged(NamedTuple):
    """Sequences laid end to end; sequence ``i`` is ``values[offsets[i] : offsets[i + 1]]``.

    Attributes:
        values: [sum of lengths, ...], int32 or float32.
        offsets: [N + 1], where each sequence begins, and the end of the last.
    """

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int32]:
        """The length of each sequence."""
        return np.diff(self.offsets).astype(np.int32)

    def row_of(self, position: int) -> int:
        """The sequence to which ``values[position]`` belongs."""
        return int(np.searchsorted(self.offsets, position, side="right")) - 1

    def padded(self, rows: NDArray[np.integer], length: int, value: float = 0) -> NDArray[Any]:
        """The chosen sequences as an array [len(rows), length, ...], ``value`` behind each."""
        starts, ends = self.offsets[rows], self.offsets[rows + 1]
        positions = starts[:, None] + np.arange(length)
        result = np.full(positions.shape + self.values.shape[1:], value, self.values.dtype)
        real = positions < ends[:, None]
        result[real] = self.values[positions[real]]
        return result


def flatten(sequences: Iterable[Sequence[Any] | NDArray[Any]] | Ragged) -> Ragged:
    """Lay sequences end to end in one array, int32 of integers and float32 of floats.

    They may come one by one, from a generator: a sequence is laid down and forgotten, so that
    4 bytes an id and 8 a sequence are kept of it, where a Python list takes several times as much.

    Args:
        sequences: lists or arrays of any lengths, zero included: of ids or floats [T], or of
            vectors or larger arrays [T, ...] of one shape. If any is of floats, all become
            float32. What is laid end to end already is given back as it is.

    Returns:
        The values and where each sequence begins.

    Raises:
        DataError: naming the first sequence that does not hold 32-bit integers or floats, or
            whose steps have another shape than those before.

    Example:
        >>> flatten([[5, 6], [7]]).offsets.tolist()
        [0, 2, 3]
        >>> flatten([n] * n for n in range(4)).values.tolist()
        [1, 2, 2, 3, 3, 3]
        >>> flatten([[[0.5, 1.0]], [[2.0, 3.0], [4.0, 5.0]]]).values.shape
        (3, 2)
    """
    if isinstance(sequences, Ragged):
        return sequences
    if not isinstance(sequences, Iterable):
        raise DataError(f"sequences must be several lists or arrays, got {sequences!r:.60}")
    pieces: list[NDArray[Any]] = []
    lengths = [np.zeros(0, np.int64)]
    rest, count = iter(sequences), 0
    step: tuple[int, ...] | None = None
    while given := list(islice(rest, _AT_A_TIME)):
        arrays = [_array(sequence, index) for index, sequence in enumerate(given, count)]
        step = _common_step(arrays, count, step)
        pieces += [_laid(arrays, count)] if any(map(len, arrays)) else []
        lengths.append(np.array([len(array) for array in arrays], np.int64))
        count += len(arrays)
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.concatenate(lengths), out=offsets[1:])
    if not pieces:
        return Ragged(np.zeros((0, *(step or ())), np.int32), offsets)
    kind = np.float32 if any(piece.dtype == np.float32 for piece in pieces) else np.int32
    return Ragged(np.concatenate(pieces, dtype=kind, casting="unsafe"), offsets)


def _array(sequence: Sequence[Any] | NDArray[Any], index: int) -> NDArray[Any]:
    try:
        is_empty = not len(sequence)
    except TypeError:  # a number, or None where a table has no cell
        raise DataError(
            f"sequence {index} must be a list or an array, got {sequence!r:.60}"
        ) from None
    if is_empty:
        return np.zeros(0, np.int32)
    try:
        array = np.asarray(sequence)
    except ValueError as error:  # lists of unequal length in it
        raise DataError(
            f"sequence {index} must have steps of one shape, of integers or floats, got {error}"
        ) from None
    if array.ndim < 1 or not (array.dtype.kind in "iu" or _is_float(array.dtype)):
        found = f"{array.ndim} axes of {array.dtype}"
        raise DataError(f"sequence {index} must have integers or floats, got {found}")
    if array.dtype == np.float64 and np.any(np.abs(array) >= 2.0**63):
        # NumPy makes floats of integers where one needs 64 bits without a sign.
        numbers = np.array(sequence, object).ravel()
        if all(isinstance(number, int | np.integer) for number in numbers):
            raise DataError(f"sequence {index} must have 32-bit integers, got {max(numbers)}")
    return array


def _is_float(dtype: np.dtype) -> bool:
    # bfloat16 is a kind of its own to NumPy.
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _common_step(
    arrays: list[NDArray[Any]], begin: int, step: tuple[int, ...] | None
) -> tuple[int, ...] | None:
    """The shape that every step has; None while all sequences have been empty."""
    for index, array in enumerate(arrays, begin):
        if not len(array):
            continue
        if step is None:
            step = array.shape[1:]
        if array.shape[1:] != step:
            expected = f"steps of shape {step} as before"
            raise DataError(f"sequence {index} must have {expected}, got {array.shape[1:]}")
    return step


def _laid(arrays: list[NDArray[Any]], begin: int) -> NDArray[Any]:
    """Arrays of one shape of step end to end: int32 if all are integers, or else float32."""
    filled = [array for array in arrays if len(array)]
    if any(_is_float(array.dtype) for array in filled):
        return np.concatenate([array.astype(np.float32) for array in filled])
    for index, array in enumerate(arrays, begin):
        if array.size and not _INT32.min <= array.min() <= array.max() <= _INT32.max:
            bad = array[(array < _INT32.min) | (array > _INT32.max)]
            raise DataError(f"sequence {index} must have 32-bit integers, got {bad[0]}")
    return np.concatenate([array.astype(np.int32) for array in filled])


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
    require_at_most(lengths, length)
    return ragged.padded(np.arange(len(lengths)), length, value), lengths


def _checked_filler(value: Any, dtype: np.dtype) -> float:
    """A number that an array of such numbers can hold."""
    value = value.item() if getattr(value, "shape", None) == () else value
    is_number = isinstance(value, int | float)
    if not is_number or isinstance(value, bool):
        raise DataError(f"value must be a number, got {value!r}")
    is_whole = value == value // 1 and _INT32.min <= value <= _INT32.max
    if dtype == np.int32 and not is_whole:
        raise DataError(f"value must be an integer of 32 bits, got {value}")
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
        DataError: if ``max_length`` is below 1 or ``keep`` is another word.

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
    return [s if len(s) <= max_length else s[part] for s in sequences]


def require_at_most(lengths: NDArray[np.integer], longest: int, what: str = "sequence") -> None:
    """Raise a ``DataError`` that names the first sequence longer than ``longest``."""
    bad = np.flatnonzero(lengths > longest)
    if bad.size:
        found = int(lengths[bad[0]])
        raise DataError(f"{what} {bad[0]} must have at most {longest} steps, got {found}")
