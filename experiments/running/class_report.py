"""What a reader must know of the classes: how many texts each has, and how well each is found."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from experiments.running.console import how_many, print_table
from rnnjax.data import Examples

# Rows of a table of classes; of more classes only the smallest are shown.
MOST_ROWS = 20
# With fewer training texts of a class, or validation texts in all, a figure is mostly chance.
FEW_OF_A_CLASS = 10
FEW_TO_VALIDATE = 100
# A text that stands in training and test is right without anything learned; a few matter little.
MANY_REPEATED = 0.01


class Chance(NamedTuple):
    """How well one does who knows how many training texts each class has, and reads none.

    Attributes:
        label: the number of the class with the most training texts.
        accuracy: of always naming it.
        loss: cross entropy of always giving the shares of the classes, in nats; infinite where a
            class has no training text and one to test.
    """

    label: int
    accuracy: float
    loss: float


def counts_of(examples: Examples, num_classes: int) -> np.ndarray:
    """How many texts each class has, [C]."""
    return np.bincount(np.asarray(examples.labels, int), minlength=num_classes)


def chance(training: Sequence[int], test: Sequence[int]) -> Chance:
    """What can be had without reading, from how many texts each class has.

    accuracy = tᵢ with i = argmax p,  loss = -Σ tᵢ log pᵢ

    with p the shares of the classes in the training texts and t those in the test texts.

    Example:
        >>> label, accuracy, loss = chance([10, 30], [5, 5])
        >>> label, accuracy, round(loss, 4)
        (1, 0.5, 0.837)
    """
    known, shares = (np.asarray(counts) / np.sum(counts) for counts in (training, test))
    with np.errstate(divide="ignore"):
        entropies = -np.log(known)
    label, there = int(known.argmax()), shares > 0
    loss = float((shares[there] * entropies[there]).sum())
    return Chance(label, float(shares[label]), loss)


def print_counts(parts: Mapping[str, Examples], label_names: Sequence[str]) -> None:
    """Print how many texts of each class every part has."""
    counts = {name: counts_of(part, len(label_names)) for name, part in parts.items()}
    rows = [
        {"class": shown(label), **{name: f"{count[i]:,}" for name, count in counts.items()}}
        for i, label in enumerate(label_names)
    ]
    _print_smallest(rows, next(iter(counts.values())))


def print_recalls(classes: Mapping[str, Any], label_names: Sequence[str]) -> None:
    """Print what share of each class was found, from what `summary` gave of the test texts."""
    rows = [
        {"class": shown(label), "recall": _figure(recall), "F1": _figure(f1), "texts": f"{count:,}"}
        for label, recall, f1, count in zip(
            label_names, classes["recall"], classes["f1"], classes["texts"], strict=True
        )
    ]
    _print_smallest(rows, classes["texts"])


def warnings(
    parts: Mapping[str, Examples], label_names: Sequence[str], words: int
) -> Iterator[str]:
    """What makes the figures of a run doubtful, a sentence each.

    Args:
        parts: "training", "validation" and "test" texts.
        label_names: the names of the classes.
        words: how many the vocabulary has.
    """
    counts = counts_of(parts["training"], len(label_names))
    few = [shown(n) for n, count in zip(label_names, counts, strict=True) if count < FEW_OF_A_CLASS]
    if few:
        have, they = ("has", "it") if len(few) == 1 else ("have", "they")
        yield (
            f"{len(few)} of {how_many(len(label_names), 'class')} {have} fewer than "
            f"{FEW_OF_A_CLASS} training texts ({_listed(few)}): {they} will hardly be found"
        )
    validating = len(parts["validation"].texts)
    if validating < FEW_TO_VALIDATE:
        choose = "chooses" if validating == 1 else "choose"
        yield (
            f"{how_many(validating, 'validation text')} {choose} the best epoch: with so few, "
            f"chance decides (below {FEW_TO_VALIDATE})"
        )
    testing = len(parts["test"].texts)
    if testing < FEW_TO_VALIDATE:
        texts = how_many(testing, "test text")
        yield f"{texts}: one more right or wrong is {1 / testing:.1%} of accuracy"
    trained = set(parts["training"].texts)
    repeated = sum(text in trained for text in parts["test"].texts)
    if repeated > MANY_REPEATED * testing:
        stand, these = ("stands", "it") if repeated == 1 else ("stand", "these")
        yield (
            f"{repeated} of {how_many(testing, 'test text')} {stand} among the training texts, "
            f"too: to be right on {these} says nothing of new ones"
        )
    if not words:
        yield "the vocabulary is empty, so that all texts look alike: lower --min-count"


def summary(hits: np.ndarray, texts: np.ndarray, named: np.ndarray) -> dict[str, Any]:
    """Recall and F1 of each class, and their mean over the classes that occur.

    recall = hits / texts,  F1 = 2 hits / (texts + named)

    Args:
        hits: [C], texts of the class that were found.
        texts: [C], texts of the class.
        named: [C], texts that were said to be of the class.

    Returns:
        "recall" and "f1", a number a class and None where there is nothing to divide by; "texts";
        and "macro_f1", the mean F1 of the classes that have texts.

    Example:
        >>> summary(np.array([3, 0]), np.array([4, 1]), np.array([4, 1]))
        {'recall': [0.75, 0.0], 'f1': [0.75, 0.0], 'texts': [4, 1], 'macro_f1': 0.375}
    """
    recall = _divided(hits, texts)
    f1 = _divided(2 * hits, texts + named)
    occurring = [
        value for value, count in zip(f1, texts, strict=True) if count and value is not None
    ]
    return {
        "recall": recall,
        "f1": f1,
        "texts": texts.tolist(),
        "macro_f1": float(np.mean(occurring)),
    }


def shown(label: str) -> str:
    """The name of a class, short enough for a table; of a long one both ends, as names within a
    hierarchy begin alike.

    Example:
        >>> shown("computers / laptops / with a large screen")
        'computers / la... large screen'
    """
    return label if len(label) <= 30 else f"{label[:14]}...{label[-13:]}"


def _divided(parts: np.ndarray, wholes: np.ndarray) -> list[float | None]:
    pairs = zip(parts.tolist(), wholes.tolist(), strict=True)
    return [part / whole if whole else None for part, whole in pairs]


def _figure(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _print_smallest(rows: Sequence[Mapping[str, str]], counts: ArrayLike) -> None:
    if len(rows) <= MOST_ROWS:
        print_table(rows)
        return
    order = np.argsort(np.asarray(counts), kind="stable")[:MOST_ROWS]
    print_table([rows[i] for i in order])
    print(f"the {MOST_ROWS} smallest of {len(rows)} classes")
