"""Pictures that are made here, with the one caption that is right and the place of every word.

A scene has one to four things on a grid of three by three, named in reading order. Two things of
one row are "beside" one another, otherwise the first is "above" the second:

    small red circle above big blue square beside small green cross
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SIZES = ("small", "big")
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle", "cross")
BESIDE, ABOVE = "beside", "above"
# Pairs that no training scene holds: what is learned of colours and of shapes must do for them.
LEFT_OUT = (("red", "triangle"), ("blue", "cross"))

GRID = 3
PIXELS = 36  # of a side of the picture
_CELL = PIXELS // GRID
_RADIUS = {"small": 3.0, "big": 4.7}
_RGB = {
    "red": (0.85, 0.2, 0.2),
    "green": (0.2, 0.7, 0.25),
    "blue": (0.25, 0.35, 0.9),
    "yellow": (0.9, 0.8, 0.2),
}


class Thing(NamedTuple):
    """One thing of a scene; ``cell`` is its place on the grid, in reading order."""

    cell: int
    size: str
    colour: str
    shape: str


class Scene(NamedTuple):
    """A picture uint8 [36, 36, 3], its words, and for each the cell of what it names, or -1."""

    picture: np.ndarray
    words: list[str]
    cells: list[int]


def make_scenes(rng: np.random.Generator, count: int, *, composed: bool = False) -> list[Scene]:
    """Scenes without pairs that are left out; or, ``composed``, such that each holds one."""
    return [_make(rng, composed) for _ in range(count)]


def _make(rng: np.random.Generator, composed: bool) -> Scene:
    count = int(rng.integers(1, 5))
    cells = np.sort(rng.permutation(GRID * GRID)[:count])
    things = [_thing(rng, int(cell)) for cell in cells]
    if composed:
        place = int(rng.integers(count))
        colour, shape = LEFT_OUT[rng.integers(len(LEFT_OUT))]
        things[place] = things[place]._replace(colour=colour, shape=shape)
    return Scene(_draw(rng, things), *_words(things))


def _thing(rng: np.random.Generator, cell: int) -> Thing:
    while True:
        size, colour, shape = rng.integers((len(SIZES), len(COLOURS), len(SHAPES)))
        if (COLOURS[colour], SHAPES[shape]) not in LEFT_OUT:
            return Thing(cell, SIZES[size], COLOURS[colour], SHAPES[shape])


def _words(things: list[Thing]) -> tuple[list[str], list[int]]:
    words, cells = [], []
    for before, thing in zip([None, *things], things, strict=False):
        if before is not None:
            same_row = before.cell // GRID == thing.cell // GRID
            words.append(BESIDE if same_row else ABOVE)
            cells.append(-1)
        words += [thing.size, thing.colour, thing.shape]
        cells += [thing.cell] * 3
    return words, cells


def _draw(rng: np.random.Generator, things: list[Thing]) -> np.ndarray:
    """Things on a grey ground, each moved a little, with noise over all."""
    noise = rng.standard_normal((PIXELS, PIXELS, 3), np.float32)
    picture = 0.03 * noise + np.float32(rng.uniform(0.1, 0.3))
    along = np.arange(_CELL) + 0.5 - _CELL / 2  # of the middle of the cell
    for thing in things:
        moved = rng.uniform(-1, 1, 2)
        radius = _RADIUS[thing.size] + rng.uniform(-0.2, 0.2)
        down, right = ((along - move) / radius for move in moved)
        inside = _inside(thing.shape, down[:, None], right[None])
        top, left = (_CELL * place for place in divmod(thing.cell, GRID))
        of_cell = picture[top : top + _CELL, left : left + _CELL]
        colour = np.array(_RGB[thing.colour]) + rng.uniform(-0.08, 0.08, 3)
        of_cell += inside[..., None] * (colour - 0.2)
    return np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)


def _inside(shape: str, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Which pixels a shape covers, by their distance from its middle in radii."""
    across = np.maximum(np.abs(down), np.abs(right))
    if shape == "circle":
        return down**2 + right**2 <= 1
    if shape == "square":
        return across <= 0.9
    if shape == "triangle":
        return (across <= 1) & (np.abs(right) <= (down + 1) / 2)
    return (across <= 1) & (np.minimum(np.abs(down), np.abs(right)) <= 0.34)
