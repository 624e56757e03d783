"""A series of each label, and how many of its kind were recognised."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.recognize.series import Part
from experiments.running.figures import AS_IT_STANDS, new_figure, save_figure

MOST = 20  # panels; of more labels the first are shown
MOST_NAMED = 10  # channels: more have no colour of their own
_WIDE = 26  # letters above a panel, in a line


def draw_kinds(
    part: Part,
    guessed: np.ndarray,
    labels: Sequence[str],
    channels: Sequence[str],
    path: str | os.PathLike[str],
) -> None:
    """A panel for each label: the channels of one series over its steps, and the count of right
    answers. Channels that have names are named."""
    from matplotlib.ticker import MaxNLocator

    classes = np.array(part.classes)
    shown = [c for c in range(len(labels)) if (classes == c).any()][:MOST]
    columns = min(5, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(2.3 * columns, 1.9 * rows, dpi=130)
    lines: list[Any] = []
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, number in zip(grid, shown, strict=False):
        own = np.flatnonzero(classes == number)
        lines = axes.plot(part.rows[own[0]], linewidth=1.0)
        right = int(np.sum(guessed[own] == number))
        title = textwrap.fill(f"{labels[number]}: {right} of {len(own)} right", _WIDE)
        axes.set_title(title, fontsize=9, **AS_IT_STANDS)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7, labelbottom=True)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    if 1 <= len(channels) <= MOST_NAMED:
        columns = min(5, len(channels))
        where = "outside upper center"
        legend = figure.legend(lines, channels, loc=where, ncols=columns, fontsize=8, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("value", fontsize=8)
    save_figure(figure, path)
