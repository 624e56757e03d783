"""Batches of few shapes from sequences of many lengths."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnjax.data.errors import DataError
from rnnjax.data.ragged import Ragged, Sequences, flatten, require_at_most


class Batch(NamedTuple):
    """One batch of exactly ``batch_size`` rows.

    Filler rows complete the short last batch of a bucket: length 0, label 0, weight 0.
    """

    tokens: NDArray[np.int32]  # [B, T]
    lengths: NDArray[np.int32]  # [B]
    labels: NDArray[np.int32]  # [B]
    weights: NDArray[np.float32]  # [B], 1 for a real row, 0 for a filler row


class BucketedBatches:
    """Batches of sequences grouped by length, so that little is padded and few shapes compile.

    Each sequence goes to the bucket of the first boundary that holds it; a batch comes from one
    bucket and is padded to its boundary. An epoch has every example exactly once. Its order
    depends on ``(seed, n)`` alone, so a run that is resumed at epoch ``n`` sees what it would have.

    Args:
        sequences: the ids of each example, none empty; of very many, what ``flatten`` makes of
            them takes the least memory.
        labels: the class of each example.
        batch_size: the number of rows of every batch.
        boundaries: the rising bucket lengths, as ``choose_boundaries`` gives them.
        seed: a whole number, at least 0.
        shuffle: False gives the examples by rising length, the same in every epoch.
        vocab_size: if given, the ids must be below it.
        num_classes: if given, the labels must be below it.

    Raises:
        DataError: naming the first example that does not fit and what was expected of it.

    Example:
        >>> batches = BucketedBatches(
        ...     [[5, 6], [7], [8, 9, 4, 3]], [0, 1, 1], batch_size=2, boundaries=(2, 4), seed=0
        ... )
        >>> len(batches), batches.shapes
        (2, ((2, 2), (2, 4)))
        >>> sorted(batch.tokens.tolist() for batch in batches.epoch(0))[1]
        [[8, 9, 4, 3], [0, 0, 0, 0]]
    """

    def __init__(
        self,
        sequences: Sequences | Ragged,
        labels: Sequence[int] | NDArray[np.integer],
        *,
        batch_size: int,
        boundaries: Sequence[int],
        seed: int,
        shuffle: bool = True,
        vocab_size: int | None = None,
        num_classes: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"batch_size: expected at least 1, got {batch_size}")
        if seed < 0:
            raise DataError(f"seed: expected at least 0, got {seed}")
        self._ragged = flatten(sequences)
        self._lengths = self._ragged.lengths
        self._labels = _checked_labels(labels, len(self._lengths), num_classes)
        self._boundaries = _checked_boundaries(boundaries)
        _check_lengths(self._lengths, int(self._boundaries[-1]))
        if vocab_size is not None:
            _check_ids(self._ragged, vocab_size)
        self._buckets = np.searchsorted(self._boundaries, self._lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle

    @cached_property
    def _batches_per_bucket(self) -> NDArray[np.int64]:
        sizes = np.bincount(self._buckets, minlength=len(self._boundaries))
        return -(-sizes // self._batch_size)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return int(self._batches_per_bucket.sum())

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The distinct (B, T) of the batches, by rising T: at most one for each boundary."""
        used = self._boundaries[self._batches_per_bucket > 0]
        return tuple((self._batch_size, length) for length in used.tolist())

    @property
    def padding_fraction(self) -> float:
        """The share of an epoch's steps that hold no token, filler rows included."""
        steps = int(self._batches_per_bucket @ self._boundaries) * self._batch_size
        return 1.0 - int(self._lengths.sum()) / steps

    def epoch_indices(self, n: int) -> list[NDArray[np.int64]]:
        """Which examples the batches of epoch ``n`` hold.

        Row ``r`` of batch ``i`` of ``epoch(n)`` is example ``epoch_indices(n)[i][r]``; rows beyond
        are filler.

        Args:
            n: the epoch, at least 0.

        Returns:
            For each batch the positions of its examples in ``sequences``.

        Example:
            >>> ids, labels = [[5, 6], [7], [8]], [0, 1, 1]
            >>> batches = BucketedBatches(
            ...     ids, labels, batch_size=2, boundaries=(2,), seed=0, shuffle=False
            ... )
            >>> [rows.tolist() for rows in batches.epoch_indices(0)]
            [[1, 2], [0]]
        """
        if n < 0:
            raise DataError(f"n: expected an epoch of at least 0, got {n}")
        if not self._shuffle:
            return self._grouped(np.argsort(self._lengths, kind="stable"))
        random = np.random.default_rng([self._seed, n])
        batches = self._grouped(random.permutation(len(self._lengths)))
        return [batches[i] for i in random.permutation(len(batches))]

    def _grouped(self, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        order = order[np.argsort(self._buckets[order], kind="stable")]
        ends = np.cumsum(np.bincount(self._buckets, minlength=len(self._boundaries)))
        return [
            bucket[start : start + self._batch_size]
            for bucket in np.split(order, ends[:-1])
            for start in range(0, len(bucket), self._batch_size)
        ]

    def epoch(self, n: int) -> Iterator[Batch]:
        """The batches of epoch ``n``, every example once.

        Args:
            n: the epoch, at least 0.

        Returns:
            An iterator of ``len(self)`` batches.

        Example:
            >>> batches = BucketedBatches(
            ...     [[5, 6], [7]], [0, 1], batch_size=3, boundaries=(4,), seed=0, shuffle=False
            ... )
            >>> for batch in batches.epoch(0):
            ...     print(batch.lengths, batch.weights)
            [1 2 0] [1. 1. 0.]
        """
        return map(self._build, self.epoch_indices(n))

    def _build(self, rows: NDArray[np.int64]) -> Batch:
        filler = (0, self._batch_size - len(rows))
        length = int(self._boundaries[self._buckets[rows[0]]])
        return Batch(
            tokens=np.pad(self._ragged.padded(rows, length), (filler, (0, 0))),
            lengths=np.pad(self._lengths[rows], filler),
            labels=np.pad(self._labels[rows], filler),
            weights=np.pad(np.ones(len(rows), np.float32), filler),
        )


def _checked_labels(
    labels: Sequence[int] | NDArray[np.integer], count: int, num_classes: int | None
) -> NDArray[np.int32]:
    array = np.asarray(labels)
    if array.shape != (count,):
        raise DataError(f"labels: expected one for each of {count} sequences, got {array.shape}")
    if count == 0:
        raise DataError("sequences: expected at least 1, got none")
    if array.dtype.kind not in "iu":
        raise DataError(f"labels: expected integers, got {array.dtype}")
    end = np.iinfo(np.int32).max if num_classes is None else num_classes
    bad = np.flatnonzero((array < 0) | (array >= end))
    if bad.size:
        raise DataError(f"label {bad[0]}: expected one in [0, {end}), got {array[bad[0]]}")
    return array.astype(np.int32)


def _checked_boundaries(boundaries: Sequence[int]) -> NDArray[np.int64]:
    array = np.asarray(boundaries, np.int64)
    if array.ndim != 1 or array.size == 0 or array[0] < 1 or (np.diff(array) < 1).any():
        raise DataError(f"boundaries: expected rising lengths from 1 up, got {boundaries}")
    return array


def _check_lengths(lengths: NDArray[np.int32], longest: int) -> None:
    empty = np.flatnonzero(lengths == 0)
    if empty.size:
        raise DataError(f"sequence {empty[0]}: expected at least 1 id, got 0")
    require_at_most(lengths, longest)


def _check_ids(ragged: Ragged, vocab_size: int) -> None:
    values = ragged.values
    if not values.size or (values.min() >= 0 and values.max() < vocab_size):
        return  # without an array of the size of all the values
    first = np.flatnonzero((values < 0) | (values >= vocab_size))[0]
    expected = f"sequence {ragged.row_of(first)}: expected ids in [0, {vocab_size})"
    raise DataError(f"{expected}, got {values[first]}")
