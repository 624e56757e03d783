"""Letters as strokes of a pen: drawn here, or from a font of single lines.

A glyph is a list of strokes, a stroke an array of points [N, 2], x to the right and y upwards.
Small letters stand on 0 and are 4 high, whatever the font.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.running.packages import is_installed
from rnnjax.data import DataError

DRAWN = "drawn"
X_HEIGHT = 4.0


class Glyph(NamedTuple):
    """The strokes of a character, and how wide it is."""

    strokes: list[np.ndarray]
    width: float


def read_font(name: str, characters: str) -> dict[str, Glyph]:
    """The glyphs of these characters.

    Raises:
        DataError: an unknown font, a package that is missing, or a character without strokes.
    """
    if not characters or len(set(characters)) < len(characters) or " " in characters:
        raise DataError(f"--characters must be different ones, without a space, got {characters!r}")
    if name == DRAWN:
        known = {letter: _of_points(strokes) for letter, strokes in _LETTERS.items()}
    else:
        known = _hershey(name, characters)
    missing = [character for character in characters if character not in known]
    if missing:
        raise DataError(f"--characters must be in the font {name}, got {''.join(missing)!r}")
    return {character: known[character] for character in characters}


def _of_points(strokes: Iterable[Any]) -> Glyph:
    arrays = [np.asarray(stroke, float) for stroke in strokes]
    left = min(stroke[:, 0].min() for stroke in arrays)
    arrays = [stroke - (left, 0) for stroke in arrays]
    return Glyph(arrays, max(stroke[:, 0].max() for stroke in arrays))


def _hershey(name: str, characters: str) -> dict[str, Glyph]:
    if not is_installed("HersheyFonts"):
        raise DataError(
            f'--font {name} needs the package hershey-fonts: pip install ".[handwriting]"; '
            f"--font {DRAWN} needs none"
        )
    from HersheyFonts import HersheyFonts  # pyright: ignore[reportMissingImports]

    fonts = HersheyFonts()
    if name not in fonts.default_font_names:
        names = ", ".join([DRAWN, *sorted(fonts.default_font_names)])
        raise DataError(f"--font must be one of {names}, got {name!r}")
    fonts.load_default_font(name)

    def strokes(character: str) -> list[np.ndarray]:
        # In these fonts y grows downwards.
        found = [np.array(list(s), float) for s in fonts.strokes_for_text(character)]
        return [stroke * (1, -1) for stroke in found if len(stroke)]

    x = np.concatenate(strokes("x"))
    low, high = x[:, 1].min(), x[:, 1].max()
    scale = X_HEIGHT / (high - low)
    raw = {character: strokes(character) for character in characters}
    return {
        character: _of_points([(stroke - (0, low)) * scale for stroke in found])
        for character, found in raw.items()
        if found
    }


def _arc(x: float, y: float, across: float, up: float, begin: float, end: float) -> list[tuple]:
    """Part of an ellipse, from one angle to another in degrees; rising is against the clock."""
    angles = np.radians(np.linspace(begin, end, max(3, round(abs(end - begin) / 15) + 1)))
    return [(x + across * np.cos(a), y + up * np.sin(a)) for a in angles]


_BOWL = _arc(2, 2, 2, 2, 0, 360)
_ARCH = _arc(2, 2, 2, 2, 180, 0)

_LETTERS: Mapping[str, list[list[tuple]]] = {
    "a": [[*_BOWL, (4, 4), (4, 0)]],
    "b": [[(0, 7), *_arc(2, 2, 2, 2, 180, 540)]],
    "c": [_arc(2, 2, 2, 2, 45, 315)],
    "d": [[*_BOWL, (4, 7), (4, 0)]],
    "e": [[(0, 2), *_arc(2, 2, 2, 2, 0, 315)]],
    "f": [[*_arc(3, 5.8, 1.2, 1.2, 30, 180), (1.8, 0)], [(0.4, 4), (3.4, 4)]],
    "g": [[*_BOWL, (4, 4), *_arc(2, -1, 2, 2, 0, -150)]],
    "h": [[(0, 7), (0, 0), *_ARCH, (4, 0)]],
    "i": [[(0, 4), (0, 0)], [(0, 5.5), (0, 6.1)]],
    "j": [[(2, 4), *_arc(0.5, -1, 1.5, 1.5, 0, -130)], [(2, 5.5), (2, 6.1)]],
    "k": [[(0, 7), (0, 0)], [(3.4, 4), (0, 1.6), (3.4, 0)]],
    "l": [[(0, 7), *_arc(1, 1, 1, 1, 180, 290)]],
    "m": [[(0, 4), (0, 0), *_arc(1.5, 2.5, 1.5, 1.5, 180, 0), (3, 0),
           *_arc(4.5, 2.5, 1.5, 1.5, 180, 0), (6, 0)]],
    "n": [[(0, 4), (0, 0), *_ARCH, (4, 0)]],
    "o": [_arc(2, 2, 2, 2, 90, 450)],
    "p": [[(0, 4), (0, -3), *_arc(2, 2, 2, 2, 180, -180)]],
    "q": [[*_BOWL, (4, 4), (4, -3), (5, -2)]],
    "r": [[(0, 4), (0, 0), *_arc(1.7, 2.2, 1.7, 1.8, 180, 50)]],
    "s": [[*_arc(1.7, 3, 1.4, 1, 30, 270), *_arc(1.7, 1, 1.5, 1, 90, -150)]],
    "t": [[(1.5, 6.5), *_arc(2.5, 1, 1, 1, 180, 300)], [(0, 4), (3.2, 4)]],
    "u": [[(0, 4), *_arc(2, 2, 2, 2, 180, 360), (4, 4), (4, 0)]],
    "v": [[(0, 4), (2, 0), (4, 4)]],
    "w": [[(0, 4), (1.5, 0), (3, 4), (4.5, 0), (6, 4)]],
    "x": [[(0, 4), (4, 0)], [(4, 4), (0, 0)]],
    "y": [[(0, 4), (2, 0)], [(4, 4), (0.5, -3)]],
    "z": [[(0, 4), (4, 4), (0, 0), (4, 0)]],
}  # fmt: skip
