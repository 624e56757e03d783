"""Sequences of unequal length, laid end to end."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnjax.data._numbers import is_float, to_float32, to_int32, to_numbers
from rnnjax.data.errors import DataError, check_integers

# Each is a list of ids, of floats or of vectors, or an array [T, ...] of integers or floats.
RaggedRows = Sequence[Sequence[Any] | NDArray[Any]]

_AT_A_TIME = 1024  # sequences that are arrays of their own before they are joined


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
        """The chosen sequences as an array [len(rows), length, ...], ``value`` behind each.

        Raises:
            DataError: ``rows`` are not in [0, N), or one of them is longer than ``length``.
        """
        rows = check_integers("rows", rows)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self.offsets) - 1:
            raise DataError(f"rows must lie in [0, {len(self.offsets) - 1}), got {rows!s:.60}")
        starts, ends = self.offsets[rows], self.offsets[rows + 1]
        longest = int(np.max(ends - starts, initial=0))
        if length < longest:
            raise DataError(f"length must be at least {longest}, got {length}")
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
        DataError: naming the first sequence that does not hold 32-bit integers or floats within
            float32, or whose steps have another shape than those before; or a ``Ragged`` that
            is not as described there.

    Example:
        >>> flatten([[5, 6], [7]]).offsets.tolist()
        [0, 2, 3]
        >>> flatten([n] * n for n in range(4)).values.tolist()
        [1, 2, 2, 3, 3, 3]
        >>> flatten([[[0.5, 1.0]], [[2.0, 3.0], [4.0, 5.0]]]).values.shape
        (3, 2)
    """
    if isinstance(sequences, Ragged):
        return _checked_ragged(sequences)
    if not isinstance(sequences, Iterable):
        raise DataError(f"sequences must be several lists or arrays, got {sequences!r:.60}")
    pieces: list[NDArray[Any]] = []
    lengths = [np.zeros(0, np.int64)]
    rest, count = iter(sequences), 0
    step: tuple[int, ...] | None = None
    while given := list(islice(rest, _AT_A_TIME)):
        arrays = [_array(sequence, index) for index, sequence in enumerate(given, count)]
        step = _common_step(arrays, count, step)
        pieces += [_concatenated(arrays, count)] if any(map(_tells_steps, arrays)) else []
        lengths.append(np.array([len(array) for array in arrays], np.int64))
        count += len(arrays)
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.concatenate(lengths), out=offsets[1:])
    if not pieces:
        return Ragged(np.zeros(0, np.int32), offsets)
    kind = np.float32 if any(piece.dtype == np.float32 for piece in pieces) else np.int32
    return Ragged(np.concatenate(pieces, dtype=kind, casting="unsafe"), offsets)


def _array(sequence: Sequence[Any] | NDArray[Any], index: int) -> NDArray[Any]:
    if not step_count(sequence, index) and np.ndim(sequence) < 2:
        return np.zeros(0, np.int32)
    return to_numbers(f"sequence {index}", sequence)


def _tells_steps(array: NDArray[Any]) -> bool:
    """Whether it shows what the steps are: an empty list does not, no vectors of size 5 do."""
    return array.ndim > 1 or len(array) > 0


def step_count(sequence: Sequence[Any] | NDArray[Any], index: int) -> int:
    """The length of sequence ``index``; a ``DataError`` if it is none."""
    try:
        return len(sequence)
    except TypeError:  # a number, or None where a table has no cell
        raise DataError(
            f"sequence {index} must be a list or an array, got {sequence!r:.60}"
        ) from None


def _common_step(
    arrays: list[NDArray[Any]], begin: int, step: tuple[int, ...] | None
) -> tuple[int, ...] | None:
    """The shape that every step has; None while no sequence has shown it."""
    for index, array in enumerate(arrays, begin):
        if not _tells_steps(array):
            continue
        if step is None:
            step = array.shape[1:]
        if array.shape[1:] != step:
            expected = f"steps of shape {step} as before"
            raise DataError(f"sequence {index} must have {expected}, got {array.shape[1:]}")
    return step


def _concatenated(arrays: list[NDArray[Any]], begin: int) -> NDArray[Any]:
    """Arrays of one shape of step end to end: int32 if all are integers, or else float32."""
    filled = [
        (f"sequence {i}", array) for i, array in enumerate(arrays, begin) if _tells_steps(array)
    ]
    # Each by itself: what an integer may be does not depend on what stands beside it.
    narrow = [(to_float32 if is_float(a) else to_int32)(what, a) for what, a in filled]
    kind = np.float32 if any(map(is_float, narrow)) else np.int32
    return np.concatenate(narrow, dtype=kind, casting="unsafe")


def _checked_ragged(ragged: Ragged) -> Ragged:
    """Refuse what somebody else has laid end to end in another way."""
    values, offsets = ragged
    kinds = {"values": (np.int32, np.float32), "offsets": (np.int64, np.int32)}
    for name, array in ragged._asdict().items():
        if not isinstance(array, np.ndarray) or array.dtype not in kinds[name]:
            wanted = " or ".join(kind.__name__ for kind in kinds[name])
            found = f"{array.dtype}" if isinstance(array, np.ndarray) else f"{array!r:.60}"
            raise DataError(f"{name} must be a NumPy array of {wanted}, got {found}")
    rises = offsets.ndim == 1 and len(offsets) > 0 and not (np.diff(offsets) < 0).any()
    if not rises or offsets[0] != 0 or offsets[-1] != len(values):
        last = f"{len(values)}, the number of values"
        raise DataError(f"offsets must rise from 0 to {last}, got {offsets!s:.60}")
    return ragged
