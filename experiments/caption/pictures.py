"""A picture, its words, and where the network looked under each of them, as one figure."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.caption.model import GRID
from experiments.running.figures import AS_IT_STANDS, new_figure, save_figure

_ACROSS = 9  # panels of a row


class Look(NamedTuple):
    """A picture [36, 36, 3], what was written, and the weights [T, 36] of each word."""

    picture: np.ndarray
    words: Sequence[str]
    weights: np.ndarray


def draw_looks(looks: Sequence[Look], path: str | os.PathLike[str]) -> None:
    """A row of panels for each: the picture, and for each word the picture where it looked."""
    rows = [-(-(1 + len(look.words)) // _ACROSS) for look in looks]
    figure = new_figure(1.2 * _ACROSS, 1.45 * sum(rows), dpi=110)
    grid = figure.subplots(sum(rows), _ACROSS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    begin = 0
    for look, count in zip(looks, rows, strict=True):
        panels = iter(grid[begin : begin + count].flat)
        next(panels).imshow(look.picture)
        for word, weights, axes in zip(look.words, look.weights, panels, strict=False):
            _draw(axes, look.picture, word, weights)
        begin += count
    save_figure(figure, path)


def _draw(axes: Any, picture: np.ndarray, word: str, weights: np.ndarray) -> None:
    """The picture, dark where it was not looked at."""
    side = picture.shape[0] // GRID
    light = np.kron(weights.reshape(GRID, GRID) / weights.max(), np.ones((side, side)))
    axes.imshow(np.round(picture * (0.15 + 0.85 * light[..., None])).astype(np.uint8))
    axes.set_title(word, fontsize=10, **AS_IT_STANDS)
