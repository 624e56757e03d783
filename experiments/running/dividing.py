"""A list divided at random in three."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def divided(items: Sequence[Item], seed: int, parts: int) -> list[list[Item]]:
    """What trains, what validates and what tests; the last two are a part of so many each.

    Example:
        >>> [len(part) for part in divided(range(12), seed=0, parts=5)]
        [8, 2, 2]
    """
    order = np.random.default_rng(seed).permutation(len(items))
    size = len(items) // parts
    validation, test, train = np.split(order, [size, 2 * size])
    return [[items[i] for i in part] for part in (train, validation, test)]
