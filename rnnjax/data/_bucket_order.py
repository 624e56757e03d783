"""Which examples make a batch, where those of one batch come from one bucket."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rnnjax.data.errors import check_count, check_flag, check_seed


@dataclass(frozen=True)
class BucketOrder:
    """The batches of every epoch, as positions of examples.

    Attributes:
        buckets: [N], the bucket of each example.
        num_buckets: how many buckets there are.
        lengths: [N], by which examples are ordered if they are not shuffled.
        batch_size: the rows of a batch.
        seed: with the number of an epoch, it alone decides the order.
        shuffle: whether there is any chance in it.
    """

    buckets: NDArray[np.integer]
    num_buckets: int
    lengths: NDArray[np.integer]
    batch_size: int
    seed: int
    shuffle: bool

    def __post_init__(self) -> None:
        # As Python has them: the class is frozen, so that its fields are set around it.
        object.__setattr__(self, "batch_size", check_count("batch_size", self.batch_size))
        object.__setattr__(self, "seed", check_seed(self.seed))
        object.__setattr__(self, "shuffle", check_flag("shuffle", self.shuffle))

    @cached_property
    def batches_per_bucket(self) -> NDArray[np.int64]:
        """How many batches of each bucket an epoch has."""
        sizes = np.bincount(self.buckets, minlength=self.num_buckets)
        return -(-sizes // self.batch_size)

    def epoch(self, n: int) -> list[NDArray[np.int64]]:
        """For each batch of epoch ``n`` the positions of its examples."""
        n = check_count("n, the number of an epoch,", n, least=0)
        if not self.shuffle:
            return self._grouped(np.argsort(self.lengths, kind="stable"))
        random = np.random.default_rng([self.seed, n])
        batches = self._grouped(random.permutation(len(self.lengths)))
        return [batches[i] for i in random.permutation(len(batches))]

    def _grouped(self, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        order = order[np.argsort(self.buckets[order], kind="stable")]
        ends = np.cumsum(np.bincount(self.buckets, minlength=self.num_buckets))
        return [
            bucket[start : start + self.batch_size]
            for bucket in np.split(order, ends[:-1])
            for start in range(0, len(bucket), self.batch_size)
        ]
