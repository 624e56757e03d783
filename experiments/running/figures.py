"""Figures that are drawn into a file and never shown."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.running.console import complain
from rnnjax.data import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# For texts of a user: otherwise two dollar signs in a name would make a formula of it.
AS_IT_STANDS: dict[str, Any] = {"parse_math": False}


_UPRIGHT = ("normal", 400)


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
    """Writes a figure as PNG, with fonts of this machine for what the usual one lacks.

    A letter that no font here has is drawn as a box, without a word: a warning for each, as of
    words in Chinese, would bury what the program says.

    Raises:
        DataError: the name is that of another kind of file.
        OSError: the file cannot be written; names it.
    """
    if Path(path).suffix.lower() not in ("", ".png"):
        raise DataError(f"the name of a picture must end in .png, got {os.fspath(path)}")
    _find_fonts(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        try:
            figure.savefig(os.fspath(path), format="png")
        except OSError as error:  # of a full disk it says no file
            raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


def _find_fonts(figure: Figure) -> None:
    """Gives each text the fonts that it needs beside the usual one: Matplotlib asks no other."""
    from matplotlib import font_manager
    from matplotlib.text import Text

    usual = font_manager.findfont(font_manager.FontProperties())
    known = _letters_of(usual)
    for text in figure.findobj(Text):
        lacking = {ord(letter) for letter in text.get_text() if letter.isprintable()} - known
        if lacking:
            text.set_fontfamily([*text.get_fontfamily(), *_fonts_with(lacking)])


def _fonts_with(letters: set[int]) -> list[str]:
    """Names of few installed fonts that have these letters, as far as there are such."""
    from matplotlib.font_manager import fontManager

    upright = {f.name: f.fname for f in fontManager.ttflist if (f.style, f.weight) == _UPRIGHT}
    names = []
    for name, path in sorted(upright.items()):
        # Of the one that Matplotlib itself falls back to every letter is a box.
        if not name.startswith("Last Resort") and letters & _letters_of(path):
            letters = letters - _letters_of(path)
            names.append(name)
    return names


@functools.cache
def _letters_of(path: str) -> frozenset[int]:
    """Unicode's numbers of the letters of a font file; none of one that cannot be read."""
    from matplotlib.font_manager import get_font

    try:
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


def show_picture(
    draw: Callable[[Path], object], what: str, wanted: Path | None, beside_run: Path
) -> None:
    """Draws a picture where it is wanted, or else in a run's folder, and says where it lies.

    That folder may be one that others alone write to: then a line says so, and the rest stands.
    """
    try:
        draw(wanted or beside_run)
    except OSError as error:
        if wanted is not None:
            raise
        complain(f"note: no picture of {what}: {beside_run}: {error.strerror or error}")
    else:
        print(f"{what}: {wanted or beside_run}", file=sys.stderr)


def picture_beside(path: Path) -> Path:
    """Where the picture of a file goes that is written to ``--out``.

    Raises:
        DataError: the file itself would lie there, and be lost.
    """
    if path.suffix.lower() == ".png":
        raise DataError(f"--out must not end in .png, where its picture goes, got {path}")
    return path.with_suffix(".png")
