"""What all classes of batches share: epochs that have every example once, in an order by a seed."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, Never, TypeVar

import numpy as np
from numpy.typing import NDArray

from rnnjax.data._bucket_order import BucketOrder
from rnnjax.data.padding import filled

B = TypeVar("B")


class Epochs(ABC, Generic[B]):
    """Batches of kind ``B``, epoch by epoch; a subclass says what a batch of some examples is."""

    def __init__(self, order: BucketOrder) -> None:
        self._order = order
        self._batch_size = order.batch_size

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return int(self._order.batches_per_bucket.sum())

    def __iter__(self) -> Never:
        """Refused: which order the batches have depends on the epoch.

        Raises:
            TypeError: naming ``epoch``.
        """
        kind = type(self).__name__
        raise TypeError(
            f"{kind} must be asked for an epoch, as in `for batch in batches.epoch(0)`, got iter()"
        )

    def epoch_indices(self, n: int) -> list[NDArray[np.int64]]:
        """Which examples the batches of epoch ``n`` hold.

        Args:
            n: the epoch, at least 0.

        Returns:
            For each batch of ``epoch(n)`` the positions of its examples in what was given, in the
            order in which the batch has them; behind them it has fillers.

        Example:
            >>> from rnnjax.data import BucketedBatches
            >>> ids, labels = [[5, 6], [7], [8]], [0, 1, 1]
            >>> batches = BucketedBatches(
            ...     ids, labels, batch_size=2, boundaries=(2,), seed=0, shuffle=False
            ... )
            >>> [rows.tolist() for rows in batches.epoch_indices(0)]
            [[1, 2], [0]]
        """
        return self._order.epoch(n)

    def epoch(self, n: int) -> Iterator[B]:
        """The batches of epoch ``n``, every example once.

        Args:
            n: the epoch, at least 0.

        Returns:
            An iterator of ``len(self)`` batches.

        Example:
            >>> from rnnjax.data import BucketedBatches
            >>> batches = BucketedBatches(
            ...     [[5, 6], [7]], [0, 1], batch_size=3, boundaries=(4,), seed=0, shuffle=False
            ... )
            >>> for batch in batches.epoch(0):
            ...     print(batch.lengths, batch.weights)
            [1 2 0] [1. 1. 0.]
        """
        return map(self._build, self.epoch_indices(n))

    @abstractmethod
    def _build(self, chosen: NDArray[np.int64]) -> B:
        """The batch of the examples at these positions."""

    def _filled(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The rows [N, ...] of a batch with zeros behind them, as many as a batch has in all."""
        return filled(rows, self._batch_size)

    def _weights(self, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """1 for each example of a batch, 0 for each filler."""
        return self._filled(np.ones(len(chosen), np.float32))
