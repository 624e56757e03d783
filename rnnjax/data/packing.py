"""Several short sequences in one row, so that hardly a step is padding."""

from bisect import bisect_left, insort
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnjax.data._sequence_checks import check_at_most
from rnnjax.data.errors import DataError, check_count
from rnnjax.data.ragged import Ragged, RaggedRows, flatten


class PackedRows(NamedTuple):
    """R rows of L steps, in which N sequences lie one behind the other.

    ``unroll(cell, params, xs, mask=packed.mask, resets=packed.resets)`` runs each of them as if it
    were alone.

    Attributes:
        tokens: [R, L], or [R, L, ...] of steps that are no ids, 0 at padding.
        segment_ids: [R, L], i + 1 where sequence i lies, 0 at padding.
        positions: [R, L], the step within the sequence, 0 at padding.
        resets: [R, L], True at the first step of a sequence.
        rows: [N], the row of each sequence.
        starts: [N], its first step there.
        lengths: [N].
    """

    tokens: NDArray[Any]
    segment_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    resets: NDArray[np.bool_]
    rows: NDArray[np.int32]
    starts: NDArray[np.int32]
    lengths: NDArray[np.int32]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """True at the steps that hold a token."""
        return self.segment_ids > 0

    @property
    def padding_fraction(self) -> float:
        """The share of the steps that hold no token; 0 where there are no steps."""
        steps = self.segment_ids.size
        return 1.0 - int(self.lengths.sum()) / steps if steps else 0.0

    def unpack(self, values: NDArray) -> list[NDArray]:
        """What stands at the steps of each sequence, in the order in which they were given.

        Args:
            values: [R, L, ...], such as the outputs of a layer over the packed rows.

        Returns:
            N arrays [length, ...].

        Raises:
            DataError: the leading axes are not those of the rows.

        Example:
            >>> packed = pack([[5, 6], [7]], row_length=4)
            >>> [row.tolist() for row in packed.unpack(packed.tokens)]
            [[5, 6], [7]]
        """
        values = np.asarray(values)
        shape = self.segment_ids.shape
        if values.shape[:2] != shape:
            raise DataError(f"values must have the axes {shape} in front, got shape {values.shape}")
        flat = values.reshape(self.segment_ids.size, *values.shape[2:])
        begins = self.rows.astype(np.int64) * self.tokens.shape[1] + self.starts
        return [flat[a : a + n] for a, n in zip(begins, self.lengths, strict=True)]


def pack(sequences: RaggedRows | Ragged, row_length: int, *, row_multiple: int = 1) -> PackedRows:
    """Puts sequences of unequal length behind each other in rows of equal length.

    Best fit decreasing: the longest first, each into the row with the least room that holds it.
    The number of rows is at most 11/9 of the least possible, plus 4; the same sequences are
    always placed in the same way. None is ever cut.

    Args:
        sequences: the ids, floats or vectors of each example, empty ones included.
        row_length: L, at least the length of the longest.
        row_multiple: R is rounded up to a multiple of this by empty rows.

    Returns:
        The rows, what lies where in them, and how to get it back.

    Raises:
        DataError: naming the first sequence that is longer than a row, or is not of numbers.

    Example:
        >>> packed = pack([[5, 6], [7, 8, 9], [4]], row_length=4)
        >>> packed.tokens.tolist(), packed.segment_ids.tolist()
        ([[7, 8, 9, 4], [5, 6, 0, 0]], [[2, 2, 2, 3], [1, 1, 0, 0]])
        >>> packed.padding_fraction
        0.25

    References:
        Johnson, Demers, Ullman, Garey and Graham, "Worst-case performance bounds for simple
        one-dimensional packing algorithms", SIAM Journal on Computing 3 (1974).
    """
    row_length, row_multiple = check_rows(row_length, row_multiple)
    ragged = flatten(sequences)
    check_at_most(ragged.lengths, row_length)
    return pack_chosen(ragged, np.arange(len(ragged.lengths)), row_length, row_multiple)


def pack_chosen(
    ragged: Ragged, chosen: NDArray[np.integer], row_length: int, row_multiple: int
) -> PackedRows:
    """The chosen sequences in rows of so many steps, of which there is a multiple."""
    # Not ragged.lengths, which are those of all sequences, however few are chosen.
    lengths = (ragged.offsets[chosen + 1] - ragged.offsets[chosen]).astype(np.int32)
    rows, starts, count = place(lengths, row_length)
    shape = (round_up(count, row_multiple), row_length)
    step = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    places = np.repeat(rows * row_length + starts, lengths) + step

    def spread(values: NDArray[Any]) -> NDArray[Any]:
        flat = np.zeros((shape[0] * shape[1], *values.shape[1:]), values.dtype)
        flat[places] = values
        return flat.reshape(*shape, *values.shape[1:])

    return PackedRows(
        tokens=spread(ragged.values[np.repeat(ragged.offsets[chosen], lengths) + step]),
        segment_ids=spread(np.repeat(np.arange(1, len(chosen) + 1, dtype=np.int32), lengths)),
        positions=spread(step.astype(np.int32)),
        resets=spread(step == 0),
        rows=rows.astype(np.int32),
        starts=starts.astype(np.int32),
        lengths=lengths,
    )


def place(
    lengths: NDArray[np.int32], row_length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Row and first step of each sequence, and the number of rows; an empty one takes no room."""
    rows = np.zeros(len(lengths), np.int64)
    starts = np.zeros(len(lengths), np.int64)
    room: list[tuple[int, int]] = []  # (steps left, row), sorted
    count = 0
    sizes = lengths.tolist()
    for index in np.argsort(-lengths, kind="stable").tolist():
        size = sizes[index]
        if not size:
            break
        best = bisect_left(room, (size, 0))
        if best == len(room):
            left, row = row_length, count
            count += 1
        else:
            left, row = room.pop(best)
        rows[index], starts[index] = row, row_length - left
        if left > size:
            insort(room, (left - size, row))
    return rows, starts, count


def round_up(count: int, multiple: int) -> int:
    """The least multiple that is at least ``count``."""
    return -(-count // multiple) * multiple


def check_rows(row_length: int, row_multiple: int) -> tuple[int, int]:
    """Both as positive integers.

    Raises:
        DataError: naming the one that is none.
    """
    return check_count("row_length", row_length), check_count("row_multiple", row_multiple)
