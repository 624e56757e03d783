"""Figures that are drawn into a file and never shown."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnjax.data import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# For texts of a user: otherwise two dollar signs in a name would make a formula of it.
AS_IT_STANDS: dict[str, Any] = {"parse_math": False}


def new_figure(width: float, height: float, dpi: int = 150) -> Figure:
    """An empty figure of so many inches.

    It is made without pyplot: no window system is asked for, and no figure is left open.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure as PNG; a letter that no font here has is drawn as a box, without a word.

    A warning for each such letter, as of words in Chinese, would bury what the program says.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(os.fspath(path), format="png")


def picture_beside(path: Path) -> Path:
    """Where the picture of a file goes that is written to ``--out``.

    Raises:
        DataError: the file itself would lie there, and be lost.
    """
    if path.suffix.lower() == ".png":
        raise DataError(f"--out must not end in .png, where its picture goes, got {path}")
    return path.with_suffix(".png")
