"""Batches of pairs, grouped by the lengths of both sides."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnnjax.data._bucket_order import BucketOrder
from rnnjax.data._epochs import Epochs
from rnnjax.data._sequence_checks import check_lengths, check_range
from rnnjax.data.boundaries import best_cuts
from rnnjax.data.errors import DataError, check_count, check_integers
from rnnjax.data.ragged import Ragged, RaggedRows, flatten


def choose_pair_boundaries(
    source_lengths: ArrayLike, target_lengths: ArrayLike, count: int, multiple: int = 8
) -> tuple[tuple[int, int], ...]:
    """Bucket lengths for pairs: for each bucket how long its sources and its targets may be.

    Both lengths rise from bucket to bucket, and a pair goes to the first bucket that holds both of
    its sides. Pairs are ordered by the longer side, each side in terms of its mean; of all ways to
    cut this order the one with the fewest padded steps is taken, each pair counted in the bucket of
    its place in the order, though an earlier one may hold it, too.

    Args:
        source_lengths: [N], each at least 1.
        target_lengths: [N], each at least 1.
        count: the greatest number of buckets, that is of compiled shapes.
        multiple: each boundary is a multiple of this.

    Returns:
        At most ``count`` pairs (source, target); the last holds every pair.

    Raises:
        DataError: for no lengths, a length below 1, different numbers of the two, or a ``count``
            or ``multiple`` below 1.

    Example:
        >>> choose_pair_boundaries([3, 4, 20, 21], [5, 9, 30, 33], count=2)
        ((8, 16), (24, 40))
    """
    count, multiple = check_count("count", count), check_count("multiple", multiple)
    sides = [
        np.ravel(check_integers(name, side))
        for name, side in (("source_lengths", source_lengths), ("target_lengths", target_lengths))
    ]
    if len(sides[0]) != len(sides[1]):
        raise DataError(
            f"target_lengths must be one for each of {len(sides[0])} sources, got {len(sides[1])}"
        )
    lengths = np.stack(sides)
    if lengths.shape[1] == 0 or lengths.min() < 1:
        raise DataError(
            f"lengths must be one pair or more, each at least 1, got {lengths.T[:10].tolist()}"
        )
    order = np.argsort((lengths / lengths.mean(axis=1, keepdims=True)).max(axis=0), kind="stable")
    rounded = -(-lengths[:, order] // multiple) * multiple
    reached = np.maximum.accumulate(rounded, axis=1)
    shapes, counts = np.unique(reached, axis=1, return_counts=True)
    # Both sides rise along the order, so sorting the shapes has kept them in it.
    cuts = best_cuts(shapes.sum(axis=0).tolist(), counts.tolist(), min(count, len(counts)))
    return tuple((int(s), int(t)) for s, t in shapes[:, cuts].T)


class PairBatch(NamedTuple):
    """One batch of exactly ``batch_size`` pairs.

    Filler rows complete the short last batch of a bucket: lengths 0, weight 0.

    Attributes:
        sources: [B, S], or [B, S, ...] of steps that are no ids, 0 at padding.
        source_lengths: [B].
        targets: [B, T] or [B, T, ...], 0 at padding.
        target_lengths: [B].
        weights: [B], 1 for a pair, 0 for a filler.
    """

    sources: NDArray[Any]
    source_lengths: NDArray[np.int32]
    targets: NDArray[Any]
    target_lengths: NDArray[np.int32]
    weights: NDArray[np.float32]


class PairBatches(Epochs[PairBatch]):
    """Batches of pairs grouped by both lengths, so that little is padded and few shapes compile.

    An epoch has every pair exactly once. Its order depends on ``(seed, n)`` alone, so a run that
    is resumed at epoch ``n`` sees what it would have.

    Args:
        sources: the ids, floats or vectors of each source, none empty.
        targets: the ids, floats or vectors of each target, none empty.
        batch_size: the number of rows of every batch.
        boundaries: for each bucket the length of its sources and of its targets, both rising, as
            ``choose_pair_boundaries`` gives them.
        seed: a whole number, at least 0.
        shuffle: False gives the pairs bucket by bucket, in each by rising length of both sides
            together, the same in every epoch.
        source_vocab_size: if given, the ids of sources must be below it.
        target_vocab_size: if given, the ids of targets must be below it.

    Raises:
        DataError: naming the first pair that does not fit and what it must be.

    Example:
        >>> batches = PairBatches(
        ...     [[5, 6], [7]], [[1], [2, 3, 4]], batch_size=2, boundaries=((2, 3),), seed=0,
        ...     shuffle=False,
        ... )
        >>> batch = next(batches.epoch(0))
        >>> batch.sources.tolist(), batch.targets.tolist(), batch.target_lengths.tolist()
        ([[5, 6], [7, 0]], [[1, 0, 0], [2, 3, 4]], [1, 3])
    """

    def __init__(
        self,
        sources: RaggedRows | Ragged,
        targets: RaggedRows | Ragged,
        *,
        batch_size: int,
        boundaries: Sequence[tuple[int, int]],
        seed: int,
        shuffle: bool = True,
        source_vocab_size: int | None = None,
        target_vocab_size: int | None = None,
    ) -> None:
        self._sides = (flatten(sources), flatten(targets))
        self._lengths = np.stack(_equally_many(*self._sides))
        self._boundaries = _checked_pair_boundaries(boundaries)
        sizes = (source_vocab_size, target_vocab_size)
        for side, what in enumerate(("source", "target")):
            check_lengths(self._lengths[side], int(self._boundaries[-1, side]), what)
            if (size := sizes[side]) is not None:
                size = check_count(f"{what}_vocab_size", size)
                check_range(self._sides[side], size, "ids", what)
        needed = [np.searchsorted(self._boundaries[:, i], self._lengths[i]) for i in (0, 1)]
        buckets, lengths = np.maximum(*needed), self._lengths.sum(axis=0)
        super().__init__(
            BucketOrder(buckets, len(self._boundaries), lengths, batch_size, seed, shuffle)
        )

    def __repr__(self) -> str:
        pairs = f"{self._lengths.shape[1]} pairs in {len(self)} batches"
        boundaries = tuple(map(tuple, self._boundaries.tolist()))
        return f"PairBatches({pairs} of {self._batch_size}, boundaries={boundaries})"

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """The distinct (B, S, T) of the batches, rising: at most one for each bucket."""
        used = self._boundaries[self._order.batches_per_bucket > 0]
        return tuple((self._batch_size, source, target) for source, target in used.tolist())

    @property
    def padding_fraction(self) -> float:
        """The share of an epoch's steps, of both sides, that hold nothing; fillers included."""
        steps = int(self._order.batches_per_bucket @ self._boundaries.sum(axis=1))
        return 1.0 - int(self._lengths.sum()) / (steps * self._batch_size)

    def _build(self, chosen: NDArray[np.int64]) -> PairBatch:
        lengths = self._boundaries[self._order.buckets[chosen[0]]].tolist()
        sources, targets = (
            self._filled(side.padded(chosen, length))
            for side, length in zip(self._sides, lengths, strict=True)
        )
        return PairBatch(
            sources=sources,
            source_lengths=self._filled(self._lengths[0, chosen]),
            targets=targets,
            target_lengths=self._filled(self._lengths[1, chosen]),
            weights=self._weights(chosen),
        )


def _equally_many(sources: Ragged, targets: Ragged) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    found = len(sources.lengths), len(targets.lengths)
    if found[0] != found[1]:
        raise DataError(f"targets must be one for each of {found[0]} sources, got {found[1]}")
    return sources.lengths, targets.lengths


def _checked_pair_boundaries(boundaries: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    array = check_integers("boundaries", boundaries)
    right = array.ndim == 2 and array.shape[1:] == (2,) and len(array) > 0 and array.min() >= 1
    if not right or (np.diff(array, axis=0) < 0).any():
        raise DataError(f"boundaries must be rising pairs of lengths, got {boundaries}")
    return array
