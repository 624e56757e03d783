"""One forecast of each set as a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.running.figures import AS_IT_STANDS, new_figure, save_figure


class Shown(NamedTuple):
    """One window: its past [W], what came [h], quantiles [h, 3], the seasonal naive one [h]."""

    past: np.ndarray
    future: np.ndarray
    quantiles: np.ndarray
    naive: np.ndarray


def draw_forecasts(panels: Mapping[str, Shown], path: str | os.PathLike[str]) -> None:
    """A panel for each set, under its name."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(5.6 * columns, 3.0 * rows, dpi=130)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, shown) in zip(grid, panels.items(), strict=False):
        _draw(axes, name, shown)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    handles, labels = grid[0].get_legend_handles_labels()
    # Of one panel a legend in a single line would be wider than the picture.
    figure.legend(
        handles, labels, ncols=5 if columns > 1 else 3, frameon=False, loc="outside lower center"
    )
    save_figure(figure, path)


def _draw(axes: Any, name: str, shown: Shown) -> None:
    from matplotlib.ticker import MaxNLocator

    past, ahead = np.arange(1 - len(shown.past), 1), np.arange(1, len(shown.future) + 1)
    axes.plot(past, shown.past, color="#2b2b2b", linewidth=1.0, label="past")
    axes.plot(ahead, shown.future, color="#2b2b2b", linewidth=1.0, linestyle=":", label="what came")
    low, median, high = shown.quantiles.T
    axes.fill_between(ahead, low, high, color="#1f5fa8", alpha=0.2, label="80 % band")
    axes.plot(ahead, median, color="#1f5fa8", label="network, median")
    axes.plot(ahead, shown.naive, color="#e07b00", linestyle="--", label="seasonal naive")
    axes.set_title(name, **AS_IT_STANDS)
    axes.set_xlabel("steps from now")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
