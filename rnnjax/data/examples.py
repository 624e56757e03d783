"""Labelled texts."""

from typing import NamedTuple

import numpy as np

from rnnjax.data.errors import DataError


class Examples(NamedTuple):
    """Texts with their classes; ``label_names`` is empty where the classes have none."""

    texts: list[str]
    labels: list[int]
    label_names: tuple[str, ...] = ()


def split(examples: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """Divide examples at random in two parts, for a test or a validation set.

    Args:
        examples: at least two examples.
        fraction: the share of the first part, between 0 and 1.
        seed: a whole number, at least 0; it alone decides the division.

    Returns:
        Two parts without a common example, each in random order and never empty.

    Raises:
        DataError: for fewer than two examples or a fraction that is not between 0 and 1.

    Example:
        >>> first, second = split(Examples(["a", "b", "c", "d"], [0, 1, 0, 1]), 0.75, seed=0)
        >>> len(first.texts), len(second.texts)
        (3, 1)
    """
    count = len(examples.texts)
    if not 0 < fraction < 1:
        raise DataError(f"fraction: expected one between 0 and 1, got {fraction}")
    if count < 2:
        raise DataError(f"examples: expected at least 2 to divide, got {count}")
    order = np.random.default_rng(seed).permutation(count).tolist()
    cut = min(max(round(fraction * count), 1), count - 1)
    return _pick(examples, order[:cut]), _pick(examples, order[cut:])


def _pick(examples: Examples, indices: list[int]) -> Examples:
    texts, labels, names = examples
    return Examples([texts[i] for i in indices], [labels[i] for i in indices], names)
