"""Labelled texts."""

import math
from typing import Any, NamedTuple

import numpy as np

from rnnjax._checks import is_hashable
from rnnjax._reading import has_masked
from rnnjax.data.errors import DataError, check_flag, check_seed


class Examples(NamedTuple):
    """Texts with their classes; ``label_names`` is empty where the classes have none."""

    texts: list[str]
    labels: list[int]
    label_names: tuple[str, ...] = ()


def split(
    examples: Examples, fraction: float, seed: int, *, stratified: bool = False
) -> tuple[Examples, Examples]:
    """Divide examples at random in two parts, for a test or a validation set.

    Args:
        examples: at least two examples.
        fraction: the share of the first part, between 0 and 1.
        seed: a whole number, at least 0; it alone decides the division. Epoch 0 of batches with an
            equal seed is shuffled by the same random numbers: where the two must be independent,
            give another.
        stratified: whether each class is divided for itself, so that both parts have about the
            same shares of the classes. Of a class of two or more examples both parts then have
            one at least; a class of one example goes to the larger part.

    Returns:
        Two parts without a common example, each in random order and never empty.

    Raises:
        DataError: for anything but ``Examples``, fewer than two, another number of labels than of
            texts, a fraction that is not between 0 and 1, or a seed that is no whole number from 0
            up; where it is stratified, for a label that is no class, such as NaN or a list.

    Example:
        >>> first, second = split(Examples(["a", "b", "c", "d"], [0, 1, 0, 1]), 0.75, seed=0)
        >>> len(first.texts), len(second.texts)
        (3, 1)
        >>> rare = Examples(["a", "b", "c", "d", "e", "f"], [0, 0, 0, 0, 1, 1])
        >>> [part.labels.count(1) for part in split(rare, 0.5, seed=0, stratified=True)]
        [1, 1]
    """
    if not isinstance(examples, Examples):
        raise DataError(f"examples must be Examples(texts, labels), got {examples!r:.60}")
    count = len(examples.texts)
    if not isinstance(fraction, float | np.floating) or not 0 < fraction < 1:
        raise DataError(f"fraction must lie between 0 and 1, got {fraction!r}")
    if count < 2:
        raise DataError(f"examples must be at least 2 to divide, got {count}")
    if len(examples.labels) != count:
        raise DataError(f"labels must be one for each of {count} texts, got {len(examples.labels)}")
    # By place: a column of a data frame is asked by the names of its rows.
    examples = Examples(list(examples.texts), list(examples.labels), examples.label_names)
    order = np.random.default_rng(check_seed(seed)).permutation(count).tolist()
    if check_flag("stratified", stratified):
        order, cut = _by_class(examples.labels, order, fraction)
    else:
        cut = round(fraction * count)
    cut = min(max(cut, 1), count - 1)
    return _pick(examples, order[:cut]), _pick(examples, order[cut:])


def _by_class(labels: list[Any], order: list[int], fraction: float) -> tuple[list[int], int]:
    """The order with the rows of the first part in front, and how many those are."""
    classes = [_as_class(i, label) for i, label in enumerate(labels)]
    rows: dict[Any, list[int]] = {}
    for i in order:
        rows.setdefault(classes[i], []).append(i)
    chosen = {i for members in rows.values() for i in members[: _share(len(members), fraction)]}
    # Sorting is stable: each part stays in random order, its classes mixed.
    return sorted(order, key=lambda i: i not in chosen), len(chosen)


def _as_class(index: int, label: Any) -> Any:
    """A label as what equal labels are equal to."""
    # A tensor of PyTorch equals no other as a key, one of JAX is none.
    is_number = getattr(label, "shape", None) == () and not has_masked(label)
    value = label.item() if is_number else label
    is_nan = isinstance(value, float) and math.isnan(value)
    if is_nan or hasattr(value, "shape") or not is_hashable(value):
        raise DataError(f"label {index} must be one class to be stratified, got {label!r:.60}")
    return value


def _share(count: int, fraction: float) -> int:
    """How many of a class go to the first part."""
    if count == 1:
        return int(fraction >= 0.5)
    return min(max(round(fraction * count), 1), count - 1)


def _pick(examples: Examples, indices: list[int]) -> Examples:
    texts, labels, names = examples
    return Examples([texts[i] for i in indices], [labels[i] for i in indices], names)
