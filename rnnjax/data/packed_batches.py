"""Batches of a fixed number of sequences, packed in rows."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnjax.data._bucket_order import BucketOrder
from rnnjax.data._epochs import Epochs
from rnnjax.data._labels import checked_labels
from rnnjax.data._sequence_checks import check_lengths, check_range
from rnnjax.data.errors import check_count
from rnnjax.data.packing import check_rows, pack_chosen, place, round_up
from rnnjax.data.ragged import Ragged, RaggedRows, flatten


class PackedBatch(NamedTuple):
    """Up to N examples, packed in rows.

    Fillers complete a short last batch: length 0, label 0, weight 0, and no step in any row.

    Attributes:
        tokens: [R, L], or [R, L, ...] of steps that are no ids.
        segment_ids: [R, L], i + 1 where example i lies, 0 at padding.
        lengths: [N].
        labels: [N], [N, ...] or, with a label a step, [R, L, ...], 0 at padding; None
            where none were given.
        weights: [N], 1 for an example, 0 for a filler.
    """

    tokens: NDArray[Any]
    segment_ids: NDArray[np.int32]
    lengths: NDArray[np.int32]
    labels: Any
    weights: NDArray[np.float32]


class PackedBatches(Epochs[PackedBatch]):
    """Batches of a fixed number of sequences, each batch packed in as few rows as will do.

    With equal ``seed`` and ``batch_size`` a shuffled epoch has the batches that ``BucketedBatches``
    makes with ``row_length`` as its only boundary: the same examples in the same order, on fewer
    steps.

    Args:
        sequences: the ids, floats or vectors of each example, none empty.
        labels: what is wanted of each example, or of each of its steps, as for
            ``BucketedBatches``; None to predict, without ``num_classes``.
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
        labels: Sequence[Any] | NDArray[Any] | Ragged | None,
        *,
        batch_size: int,
        row_length: int,
        seed: int,
        shuffle: bool = True,
        row_multiple: int = 4,
        vocab_size: int | None = None,
        num_classes: int | None = None,
    ) -> None:
        row_length, row_multiple = check_rows(row_length, row_multiple)
        self._ragged = flatten(sequences)
        lengths = self._ragged.lengths
        check_lengths(lengths, row_length)
        self._labels = checked_labels(labels, lengths, num_classes)
        if vocab_size is not None:
            check_range(self._ragged, check_count("vocab_size", vocab_size), "ids")
        one_bucket = np.zeros(len(lengths), np.int64)
        in_order = np.arange(len(lengths))
        super().__init__(BucketOrder(one_bucket, 1, in_order, batch_size, seed, shuffle))
        self._row_length = row_length
        self._row_multiple = row_multiple

    def __repr__(self) -> str:
        examples = f"{len(self._ragged.lengths)} examples in {len(self)} batches"
        return f"PackedBatches({examples} of {self._batch_size}, row_length={self._row_length})"

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
        counts, lengths = [], self._ragged.lengths
        for chosen in self.epoch_indices(0):
            _, _, count = place(lengths[chosen], self._row_length)
            counts.append(round_up(count, self._row_multiple))
        return counts

    def _build(self, chosen: NDArray[np.int64]) -> PackedBatch:
        packed = pack_chosen(self._ragged, chosen, self._row_length, self._row_multiple)
        labels = self._labels
        if isinstance(labels, Ragged):
            labels = pack_chosen(labels, chosen, self._row_length, self._row_multiple).tokens
        elif labels is not None:
            labels = self._filled(labels[chosen])
        return PackedBatch(
            tokens=packed.tokens,
            segment_ids=packed.segment_ids,
            lengths=self._filled(packed.lengths),
            labels=labels,
            weights=self._weights(chosen),
        )
