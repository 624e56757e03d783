"""Where to cut a set of lengths into buckets."""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rnnjax.data.errors import DataError, check_count, check_integers


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
    count, multiple = check_count("count", count), check_count("multiple", multiple)
    lengths = check_integers("lengths", lengths)
    if lengths.size == 0 or lengths.min() < 1:
        raise DataError(f"lengths must be one or more, each at least 1, got {lengths[:10]}")
    rounded = -(-lengths // multiple) * multiple
    sizes, counts = np.unique(rounded, return_counts=True)
    if len(sizes) <= count:
        return tuple(sizes.tolist())
    return tuple(sizes[best_cuts(sizes.tolist(), counts.tolist(), count)].tolist())


def best_cuts(sizes: Sequence[int], counts: Sequence[int], buckets: int) -> list[int]:
    """Which of the sizes end a bucket, so that the padded steps are the fewest.

    Args:
        sizes: r_1 <= ... <= r_m, what a sequence of each kind is padded to at least.
        counts: how many sequences there are of each kind.
        buckets: how many buckets to make, at most m.

    Returns:
        The positions of the last size of each bucket, rising.
    """
    upto = [0, *itertools.accumulate(counts)]
    # costs[j]: the fewest padded steps for the first j + 1 sizes, in one bucket, in two, ...
    costs = [size * total for size, total in zip(sizes, upto[1:], strict=True)]
    choices = []
    for made in range(1, buckets):
        costs, starts = _one_more_bucket(sizes, upto, costs, made)
        choices.append(starts)
    cuts = [len(sizes) - 1]
    for starts in reversed(choices):
        cuts.append(starts[cuts[-1]] - 1)
    return cuts[::-1]


def _one_more_bucket(
    sizes: Sequence[int], upto: Sequence[int], costs: list[int], made: int
) -> tuple[list[int], list[int]]:
    """The least costs with one bucket more than the ``made`` ones, and where its last one starts.

    A last bucket from size i to size j costs r_j (N_j - N_i), so the choice of i is the lowest, at
    r_j, of the lines costs[i - 1] - N_i r. Slopes fall and queries rise: the lower hull of the
    lines is walked once, and all of it takes time in proportion to the number of sizes.
    """
    best, starts = [0] * len(sizes), [0] * len(sizes)
    hull: list[tuple[int, int, int]] = []  # (slope, intercept, i)
    place = 0
    for j in range(made, len(sizes)):  # fewer sizes than buckets cannot be divided
        line = (-upto[j], costs[j - 1], j)
        while len(hull) > 1 and _is_never_lowest(hull[-1], hull[-2], line):
            hull.pop()
        hull.append(line)
        place = min(place, len(hull) - 1)
        r = sizes[j]
        # Of equally good starts the first is kept.
        while place + 1 < len(hull) and _at(hull[place + 1], r) < _at(hull[place], r):
            place += 1
        best[j] = r * upto[j + 1] + _at(hull[place], r)
        starts[j] = hull[place][2]
    return best, starts


def _at(line: tuple[int, int, int], r: int) -> int:
    return line[0] * r + line[1]


def _is_never_lowest(
    middle: tuple[int, int, int], before: tuple[int, int, int], after: tuple[int, int, int]
) -> bool:
    """Whether ``after`` has crossed ``before`` where ``middle`` does, or earlier."""
    (a, b, _), (c, d, _), (e, f, _) = before, middle, after
    return (f - b) * (a - c) <= (d - b) * (a - e)
