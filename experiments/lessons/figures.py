"""How the figures of the lessons look: one size of panel, one colour a cell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from experiments.running.figures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by the colour-blind, and in grey by their lines.
COLOURS = {"vanilla": "#d1495b", "LSTM": "#1f5fa8", "GRU": "#2a9d6f"}
LINES = {"vanilla": "--", "LSTM": "-", "GRU": "-."}
REFERENCE = "#555555"


def panels(rows: int, columns: int, width: float = 4.4, height: float = 3.4) -> tuple:
    """A figure and the grid of its axes, [rows][columns], each so many inches wide and high."""
    figure = new_figure(width * columns, height * rows)
    return figure, figure.subplots(rows, columns, squeeze=False)


def tidy(axes: Axes, title: str, across: str, up: str, *, legend: bool = True) -> None:
    """Titles, a faint grid, no frame, and the legend below, where no line can run through it."""
    axes.set(xlabel=across, ylabel=up)
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)}
        axes.legend(frameon=False, fontsize="small", ncols=2, **below)


def save(figure: Figure, path: Path) -> None:
    """Writes a .png; panels of the grid that nothing was drawn into stay white."""
    for axes in figure.axes:
        if not axes.has_data():
            axes.set_axis_off()
    save_figure(figure, path)
