"""Batches of few shapes from sequences of many lengths."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnjax.data._bucket_order import BucketOrder
from rnnjax.data._epochs import Epochs
from rnnjax.data._labels import checked_labels
from rnnjax.data._sequence_checks import check_lengths, check_range
from rnnjax.data.errors import DataError, check_count, check_integers
from rnnjax.data.ragged import Ragged, RaggedRows, flatten


class Batch(NamedTuple):
    """One batch of exactly ``batch_size`` rows.

    Filler rows complete the short last batch of a bucket: length 0, label 0, weight 0.

    Attributes:
        tokens: [B, T] ids, or [B, T, ...] of whatever the steps are, 0 at padding.
        lengths: [B].
        labels: [B], [B, ...] or, with a label a step, [B, T, ...], 0 at padding; None
            where none were given.
        weights: [B], 1 for a real row, 0 for a filler row.
    """

    tokens: NDArray[Any]
    lengths: NDArray[np.int32]
    labels: Any
    weights: NDArray[np.float32]


class BucketedBatches(Epochs[Batch]):
    """Batches of sequences grouped by length, so that little is padded and few shapes compile.

    Each sequence goes to the bucket of the first boundary that holds it; a batch comes from one
    bucket and is padded to its boundary. An epoch has every example exactly once. Its order
    depends on ``(seed, n)`` alone, so a run that is resumed at epoch ``n`` sees what it would have.

    Args:
        sequences: the ids, floats or vectors of each example, none empty; of very many, what
            ``flatten`` makes of them takes the least memory.
        labels: what is wanted of each example: classes or floats [N], an array [N, ...], or a list
            of sequences as long as the examples are, with a label a step. Integers are classes, at
            least 0; floats are finite. None to predict, without ``num_classes``.
        batch_size: the number of rows of every batch.
        boundaries: the rising bucket lengths, as ``choose_boundaries`` gives them.
        seed: a whole number, at least 0.
        shuffle: False gives the examples by rising length, the same in every epoch.
        vocab_size: if given, the ids must be below it.
        num_classes: if given, the labels must be below it.

    Raises:
        DataError: naming the first example that does not fit and what it must be.

    Example:
        >>> batches = BucketedBatches(
        ...     [[5, 6], [7], [8, 9, 4, 3]], [0, 1, 1], batch_size=2, boundaries=(2, 4), seed=0
        ... )
        >>> len(batches), batches.shapes
        (2, ((2, 2), (2, 4)))
        >>> sorted(batch.tokens.tolist() for batch in batches.epoch(0))[1]
        [[8, 9, 4, 3], [0, 0, 0, 0]]

        A label a step, and vectors in place of ids:

        >>> tagged = BucketedBatches(
        ...     [[[0.5, 1.0], [1.5, 2.0]], [[2.5, 3.0]]], [[1, 2], [3]], batch_size=2,
        ...     boundaries=(2,), seed=0, shuffle=False,
        ... )
        >>> batch = next(tagged.epoch(0))
        >>> batch.tokens.shape, batch.labels.tolist()
        ((2, 2, 2), [[3, 0], [1, 2]])
    """

    def __init__(
        self,
        sequences: RaggedRows | Ragged,
        labels: Sequence[Any] | NDArray[Any] | Ragged | None,
        *,
        batch_size: int,
        boundaries: Sequence[int],
        seed: int,
        shuffle: bool = True,
        vocab_size: int | None = None,
        num_classes: int | None = None,
    ) -> None:
        self._ragged = flatten(sequences)
        self._lengths = self._ragged.lengths
        self._boundaries = _checked_boundaries(boundaries)
        check_lengths(self._lengths, int(self._boundaries[-1]))
        self._labels = checked_labels(labels, self._lengths, num_classes)
        if vocab_size is not None:
            check_range(self._ragged, check_count("vocab_size", vocab_size), "ids")
        buckets = np.searchsorted(self._boundaries, self._lengths)
        super().__init__(
            BucketOrder(buckets, len(self._boundaries), self._lengths, batch_size, seed, shuffle)
        )

    def __repr__(self) -> str:
        examples = f"{len(self._lengths)} examples in {len(self)} batches"
        boundaries = tuple(self._boundaries.tolist())
        return f"BucketedBatches({examples} of {self._batch_size}, boundaries={boundaries})"

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The distinct (B, T) of the batches, by rising T: at most one for each boundary."""
        used = self._boundaries[self._order.batches_per_bucket > 0]
        return tuple((self._batch_size, length) for length in used.tolist())

    @property
    def padding_fraction(self) -> float:
        """The share of an epoch's steps that hold no token, filler rows included."""
        steps = int(self._order.batches_per_bucket @ self._boundaries) * self._batch_size
        return 1.0 - int(self._lengths.sum()) / steps

    def _build(self, chosen: NDArray[np.int64]) -> Batch:
        length = int(self._boundaries[self._order.buckets[chosen[0]]])
        labels = self._labels
        if isinstance(labels, Ragged):
            labels = labels.padded(chosen, length)
        elif labels is not None:
            labels = labels[chosen]
        return Batch(
            tokens=self._filled(self._ragged.padded(chosen, length)),
            lengths=self._filled(self._lengths[chosen]),
            labels=None if labels is None else self._filled(labels),
            weights=self._weights(chosen),
        )


def _checked_boundaries(boundaries: Sequence[int]) -> NDArray[np.int64]:
    array = check_integers("boundaries", boundaries)
    if array.ndim != 1 or array.size == 0 or array[0] < 1 or (np.diff(array) < 1).any():
        raise DataError(f"boundaries must be rising lengths from 1 up, got {boundaries}")
    return array
