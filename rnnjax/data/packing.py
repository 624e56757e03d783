"""Several short sequences in one row, so that hardly a step is padding."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnjax.data._bucket_order import BucketOrder
from rnnjax.data.batching import check_lengths, check_range, checked_labels, filled
from rnnjax.data.errors import DataError, check_count
from rnnjax.data.ragged import Ragged, RaggedRows, flatten, require_at_most


class PackedRows(NamedTuple):
    """R rows of L steps, in which N sequences lie one behind the other.

    ``unroll(cell, params, xs, mask=packed.mask, resets=packed.resets)`` runs each of them as if it
    were alone.
    """

    tokens: NDArray[Any]  # [R, L], or [R, L, ...] of steps that are no ids, 0 at padding
    segment_ids: NDArray[np.int32]  # [R, L], i + 1 where sequence i lies, 0 at padding
    positions: NDArray[np.int32]  # [R, L], the step within the sequence, 0 at padding
    resets: NDArray[np.bool_]  # [R, L], True at the first step of a sequence
    rows: NDArray[np.int32]  # [N], the row of each sequence
    starts: NDArray[np.int32]  # [N], and its first step there
    lengths: NDArray[np.int32]  # [N]

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
        DataError: naming the first sequence that is longer than a row, or is not of integers.

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
    row_length, row_multiple = _check_rows(row_length, row_multiple)
    ragged = flatten(sequences)
    require_at_most(ragged.lengths, row_length)
    return _lay(ragged, np.arange(len(ragged.lengths)), row_length, row_multiple)


class PackedBatch(NamedTuple):
    """Up to N examples, packed in rows.

    Fillers complete a short last batch: length 0, label 0, weight 0, and no step in any row.
    """

    tokens: NDArray[Any]  # [R, L], or [R, L, ...] of steps that are no ids
    segment_ids: NDArray[np.int32]  # [R, L], i + 1 where example i lies, 0 at padding
    lengths: NDArray[np.int32]  # [N]
    labels: NDArray[Any]  # [N], [N, ...] or, with a label a step, [R, L, ...], 0 at padding
    weights: NDArray[np.float32]  # [N], 1 for an example, 0 for a filler


class PackedBatches:
    """Batches of a fixed number of sequences, each batch packed in as few rows as will do.

    With equal ``seed`` and ``batch_size`` an epoch has the batches that ``BucketedBatches`` makes
    with ``row_length`` as its only boundary: the same examples in the same order, on fewer steps.

    Args:
        sequences: the ids, floats or vectors of each example, none empty.
        labels: what is wanted of each example, or of each of its steps, as for
            ``BucketedBatches``.
        batch_size: N, the number of examples of every batch.
        row_length: L, at least the length of the longest sequence.
        seed: a whole number, at least 0.
        shuffle: False gives the examples in their own order, the same in every epoch.
        row_multiple: R is rounded up to a multiple of this, so that few shapes compile.
        vocab_size: if given, the ids must be below it.
        num_classes: if given, the labels must be below it.

    Raises:
        DataError: naming the first example that does not fit and what it must be.

    Example:
        >>> batches = PackedBatches(
        ...     [[5, 6], [7], [8, 9, 4, 3]], [0, 1, 1], batch_size=3, row_length=4, seed=0,
        ...     shuffle=False, row_multiple=1,
        ... )
        >>> batch = next(batches.epoch(0))
        >>> batch.tokens.tolist(), batch.labels.tolist()
        ([[8, 9, 4, 3], [5, 6, 7, 0]], [0, 1, 1])
    """

    def __init__(
        self,
        sequences: RaggedRows | Ragged,
        labels: Sequence[Any] | NDArray[Any] | Ragged,
        *,
        batch_size: int,
        row_length: int,
        seed: int,
        shuffle: bool = True,
        row_multiple: int = 4,
        vocab_size: int | None = None,
        num_classes: int | None = None,
    ) -> None:
        row_length, row_multiple = _check_rows(row_length, row_multiple)
        self._ragged = flatten(sequences)
        lengths = self._ragged.lengths
        self._labels = checked_labels(labels, lengths, num_classes)
        check_lengths(lengths, row_length)
        if vocab_size is not None:
            check_range(self._ragged, check_count("vocab_size", vocab_size), "ids")
        one_bucket = np.zeros(len(lengths), np.int64)
        place = np.arange(len(lengths))
        self._order = BucketOrder(one_bucket, 1, place, batch_size, seed, shuffle)
        self._batch_size = self._order.batch_size
        self._row_length = row_length
        self._row_multiple = row_multiple

    def __repr__(self) -> str:
        examples = f"{len(self._ragged.lengths)} examples in {len(self)} batches"
        return f"PackedBatches({examples} of {self._batch_size}, row_length={self._row_length})"

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return int(self._order.batches_per_bucket.sum())

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The distinct (R, L) of the batches of epoch 0, by rising R; another may have others."""
        return tuple((rows, self._row_length) for rows in sorted(set(self._row_counts)))

    @property
    def padding_fraction(self) -> float:
        """The share of the steps of epoch 0 that hold no token; another differs a little."""
        steps = sum(self._row_counts) * self._row_length
        return 1.0 - len(self._ragged.values) / steps

    @cached_property
    def _row_counts(self) -> list[int]:
        counts = []
        for chosen in self.epoch_indices(0):
            _, _, count = _place(self._ragged.lengths[chosen], self._row_length)
            counts.append(_round_up(count, self._row_multiple))
        return counts

    def epoch_indices(self, n: int) -> list[NDArray[np.int64]]:
        """Which examples the batches of epoch ``n`` hold.

        Segment ``j + 1`` of batch ``i`` of ``epoch(n)`` is example ``epoch_indices(n)[i][j]``.

        Args:
            n: the epoch, at least 0.

        Returns:
            For each batch the positions of its examples in ``sequences``.

        Example:
            >>> batches = PackedBatches(
            ...     [[5, 6], [7], [8]], [0, 1, 1], batch_size=2, row_length=2, seed=0, shuffle=False
            ... )
            >>> [rows.tolist() for rows in batches.epoch_indices(0)]
            [[0, 1], [2]]
        """
        return self._order.epoch(n)

    def epoch(self, n: int) -> Iterator[PackedBatch]:
        """The batches of epoch ``n``, every example once.

        Args:
            n: the epoch, at least 0.

        Returns:
            An iterator of ``len(self)`` batches.

        Example:
            >>> batches = PackedBatches(
            ...     [[5, 6], [7]], [0, 1], batch_size=3, row_length=4, seed=0, shuffle=False
            ... )
            >>> for batch in batches.epoch(0):
            ...     print(batch.tokens.shape, batch.lengths, batch.weights)
            (4, 4) [2 1 0] [1. 1. 0.]
        """
        return map(self._build, self.epoch_indices(n))

    def _build(self, chosen: NDArray[np.int64]) -> PackedBatch:
        packed = _lay(self._ragged, chosen, self._row_length, self._row_multiple)
        count = self._batch_size
        if isinstance(self._labels, Ragged):
            labels = _lay(self._labels, chosen, self._row_length, self._row_multiple).tokens
        else:
            labels = filled(self._labels[chosen], count)
        return PackedBatch(
            tokens=packed.tokens,
            segment_ids=packed.segment_ids,
            lengths=filled(packed.lengths, count),
            labels=labels,
            weights=filled(np.ones(len(chosen), np.float32), count),
        )


def _lay(
    ragged: Ragged, chosen: NDArray[np.integer], row_length: int, row_multiple: int
) -> PackedRows:
    lengths = ragged.lengths[chosen]
    rows, starts, count = _place(lengths, row_length)
    shape = (_round_up(count, row_multiple), row_length)
    step = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    place = np.repeat(rows * row_length + starts, lengths) + step

    def spread(values: NDArray[Any]) -> NDArray[Any]:
        flat = np.zeros((shape[0] * shape[1], *values.shape[1:]), values.dtype)
        flat[place] = values
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


def _place(
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


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _check_rows(row_length: int, row_multiple: int) -> tuple[int, int]:
    return check_count("row_length", row_length), check_count("row_multiple", row_multiple)
