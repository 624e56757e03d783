"""How the figures of the lessons look: one size of panel, one colour a cell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

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


def tidy(
    axes: Axes,
    title: str,
    across: str,
    up: str,
    legend: Literal["best", "lower left"] | None = "best",
) -> None:
    """Titles, a faint grid, no frame, and the legend at that place."""
    axes.set(xlabel=across, ylabel=up)
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if legend is not None:
        axes.legend(frameon=False, fontsize="small", loc=legend)


def save(figure: Figure, path: Path) -> None:
    """Writes a .png."""
    save_figure(figure, path)
