"""Which labels are taken for which, as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from experiments.running.figures import AS_IT_STANDS, new_figure, save_figure

_MOST = 50  # labels that are drawn


def confusion(given: Sequence[int], guessed: Sequence[int], count: int) -> np.ndarray:
    """[C, C], how often label i was taken for label j."""
    table = np.zeros((count, count), int)
    np.add.at(table, (np.asarray(given, int), np.asarray(guessed, int)), 1)
    return table


def draw_confusion(table: np.ndarray, labels: Sequence[str], path: str | os.PathLike[str]) -> None:
    """A row for each label, dark where its words were put; numbers in the fields of up to 20.

    Of more than 50 labels those are drawn that most words have.
    """
    axis = "label"
    if len(labels) > _MOST:
        axis = f"the {_MOST} of {len(labels):,} labels that most words have"
        most = np.sort(np.argsort(-table.sum(axis=1), kind="stable")[:_MOST])
        table = table[np.ix_(most, most)]
        labels = [labels[int(i)] for i in most]
    has_numbers = len(labels) <= 20
    size = 1.8 + (0.55 if has_numbers else 0.3) * len(labels)
    figure = new_figure(size + 0.6, size, dpi=130)
    axes = figure.subplots()
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(table):
        if number and has_numbers:
            shade = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{number:,}", ha="center", va="center", color=shade, size=7)
    turned = {"rotation": 60, "ha": "right"} if max(map(len, labels)) > 2 else {}
    axes.set_xticks(range(len(labels)), labels, **turned, **AS_IT_STANDS)
    axes.set_yticks(range(len(labels)), labels, **AS_IT_STANDS)
    axes.set(xlabel="taken for", ylabel=axis)
    axes.spines[:].set_visible(False)
    save_figure(figure, path)
