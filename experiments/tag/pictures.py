"""Which labels are taken for which, as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from experiments.running.figures import new_figure


def confusion(given: Sequence[int], guessed: Sequence[int], count: int) -> np.ndarray:
    """[C, C], how often label i was taken for label j."""
    table = np.zeros((count, count), int)
    np.add.at(table, (np.asarray(given, int), np.asarray(guessed, int)), 1)
    return table


def draw_confusion(table: np.ndarray, labels: Sequence[str], path: str | os.PathLike[str]) -> None:
    """A row for each label, dark where its words were put; numbers in every field."""
    size = 1.8 + 0.55 * len(labels)
    figure = new_figure(size + 0.6, size, dpi=130)
    axes = figure.subplots()
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(table):
        if number and len(labels) <= 20:
            shade = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{number:,}", ha="center", va="center", color=shade, size=7)
    axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="taken for", ylabel="label")
    axes.spines[:].set_visible(False)
    figure.savefig(os.fspath(path), format="png")
