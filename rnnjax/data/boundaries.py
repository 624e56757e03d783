"""Where to cut a set of lengths into buckets."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rnnjax.data.errors import DataError


def choose_boundaries(
    lengths: Sequence[int] | NDArray[np.integer], count: int, multiple: int = 8
) -> tuple[int, ...]:
    """The bucket lengths that leave the least padding.

    Each sequence is padded to the first boundary that holds it. With r_1 < ... < r_m the distinct
    lengths rounded up, and n(i, j] the number of sequences between two of them,

        cost(k, j) = min over i < j of  cost(k - 1, i) + r_j n(i, j]

    is the least number of padded steps for the sequences up to r_j in k buckets: an exact dynamic
    programme, not a heuristic.

    Args:
        lengths: the lengths of all sequences, each at least 1.
        count: the greatest number of buckets, that is of compiled shapes.
        multiple: each boundary is a multiple of this.

    Returns:
        At most ``count`` boundaries, rising; the last holds the longest sequence.

    Raises:
        DataError: for no lengths, a length below 1, or a ``count`` or ``multiple`` below 1.

    Example:
        >>> choose_boundaries([3, 4, 5, 30, 31], count=2)
        (8, 32)
    """
    if count < 1 or multiple < 1:
        raise DataError(f"expected count and multiple of at least 1, got {count} and {multiple}")
    lengths = np.asarray(lengths)
    if lengths.size == 0 or lengths.min() < 1:
        raise DataError(f"lengths: expected one or more, each at least 1, got {lengths[:10]}")
    rounded = -(-lengths // multiple) * multiple
    sizes, counts = np.unique(rounded, return_counts=True)
    if len(sizes) <= count:
        return tuple(sizes.tolist())
    return tuple(sizes[_best_cuts(sizes.astype(np.float64), counts, count)].tolist())


def _best_cuts(sizes: NDArray, counts: NDArray, buckets: int) -> list[int]:
    upto = np.concatenate([[0], np.cumsum(counts)])
    # cost[i, j]: one bucket that holds sizes[i : j + 1]; below the diagonal no bucket at all.
    # float64 holds these whole numbers exactly and has an infinity.
    cost = sizes * (upto[1:] - upto[:-1, None])
    cost[np.tri(len(sizes), k=-1, dtype=bool)] = np.inf
    best, choices = cost[0], []
    for _ in range(buckets - 1):
        before = np.concatenate([[np.inf], best[:-1]])
        total = before[:, None] + cost
        choices.append(total.argmin(axis=0))
        best = total.min(axis=0)
    cuts = [len(sizes) - 1]
    for choice in reversed(choices):
        cuts.append(int(choice[cuts[-1]]) - 1)
    return cuts[::-1]
