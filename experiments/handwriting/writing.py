"""Texts and how they were written: made by chance from glyphs, or read from a file of your own."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.handwriting.alphabet import X_HEIGHT, Glyph, read_font
from experiments.handwriting.settings import Settings
from experiments.running.dividing import divided
from rnnjax.data import DataError, read_lines

# The distance of two points of a stroke, in the units of the glyphs: a letter has about 10 points.
STEP = 1.2
# The longest offset of a file that is taken, in median offsets: no pen leaps so far.
_FARTHEST = 1000
SIZE = 4  # of a value: dx, dy, whether the pen is lifted after it, whether the text is at its end
# The tremor of single points beside that of the shape of a letter.
_POINTS = 0.3


class Written(NamedTuple):
    """A text and its strokes.

    Attributes:
        text: what is written.
        values: [T + 1, 4], for each point dx and dy from the point before it, 1 where the pen is
            lifted after it, and 0; the last says that the text is at its end: 0, 0, 1, 1.
        letters: int [T], at the last point of each letter its place among the letters of the font,
            from 1 up; 0 elsewhere. None where it is not known which points make a letter.
    """

    text: str
    values: np.ndarray
    letters: np.ndarray | None


class Writing(NamedTuple):
    """Pairs in three parts.

    Attributes:
        name: of the font or the file.
        note: how many there are.
        sha256: of all strokes.
        characters: all that may be in a text; the space is the first.
        glyphs: of the font; empty for a file.
        train: pairs.
        validation: pairs.
        test: pairs.
    """

    name: str
    note: str
    sha256: str
    characters: str
    glyphs: Mapping[str, Glyph]
    train: list[Written]
    validation: list[Written]
    test: list[Written]


def read_writing(settings: Settings) -> Writing:
    """The pairs that the settings name.

    Raises:
        DataError: an unknown font, or a file that does not hold pairs.
    """
    if settings.pairs is not None:
        return _read_pairs(settings.pairs, settings.seed)
    glyphs = read_font(settings.font, settings.characters)
    rng = np.random.default_rng((settings.seed, settings.words))
    few = max(1, settings.words // 20)
    parts = [random_words(rng, settings, glyphs, n) for n in (settings.words, few, few)]
    note = f"{settings.words:,} words by chance to learn from, {few:,} each to validate and test"
    return _joined(settings.font, note, glyphs, parts)


def _joined(name: str, note: str, glyphs: Mapping[str, Glyph], parts: list[list]) -> Writing:
    every = [pair for part in parts for pair in part]
    known = glyphs or {character for pair in every for character in pair.text if character != " "}
    digest = hashlib.sha256(json.dumps([pair.text for pair in every]).encode())
    for pair in every:
        digest.update(pair.values.tobytes())
    return Writing(name, note, digest.hexdigest(), " " + "".join(sorted(known)), glyphs, *parts)


def random_words(
    rng: np.random.Generator, settings: Settings, glyphs: Mapping[str, Glyph], count: int
) -> list[Written]:
    """So many words by chance, each in a hand of its own."""
    return [
        write_by_chance(random_text(rng, settings), glyphs, settings.tremor, rng)
        for _ in range(count)
    ]


def random_text(rng: np.random.Generator, settings: Settings) -> str:
    """A word of letters by chance; of the longer ones half are two words."""
    count = int(rng.integers(3, settings.letters + 1))
    letters = rng.choice(list(settings.characters), count)
    if count >= 5 and rng.random() < 0.5:
        letters[int(rng.integers(2, count - 2))] = " "
    return "".join(letters)


def write_by_chance(
    text: str, glyphs: Mapping[str, Glyph], tremor: float, rng: np.random.Generator
) -> Written:
    """A text by a hand of its own: slant, width, height, gaps and tremor are drawn by chance."""
    slant, wide, high = rng.uniform(-0.1, 0.3), rng.uniform(0.85, 1.15), rng.uniform(0.9, 1.1)
    places = {character: n for n, character in enumerate(sorted(glyphs), 1)}
    points, ends, letters = [], [], []
    x = 0.0
    for character in text:
        if character == " ":
            x += 3.0 + rng.normal(0, 0.3)
            continue
        glyph = glyphs[character]
        for stroke in glyph.strokes:
            shaky = stroke + tremor * X_HEIGHT * _smooth_noise(rng, len(stroke))
            placed = (shaky + np.array([x, 0])) * (wide, high)
            placed[:, 0] += slant * placed[:, 1]
            even = resampled(placed, STEP)
            # Without it the points of a straight line would be alike to the last digit, and a
            # network that learns from such lines is lost as soon as its own are not.
            even += _POINTS * tremor * X_HEIGHT * rng.normal(size=even.shape)
            points.append(even)
            ends += [0] * (len(even) - 1) + [1]
            letters += [0] * len(even)
        letters[-1] = places[character]
        x += glyph.width + 1.5 + rng.normal(0, 0.15)
    return _pair(text, np.concatenate(points), np.array(ends), np.array(letters))


def _pair(text: str, points: np.ndarray, ends: np.ndarray, letters: np.ndarray | None) -> Written:
    moves = np.diff(points, axis=0, prepend=points[:1]) / STEP
    values = np.column_stack([moves, ends, np.zeros(len(ends))])
    return Written(text, np.concatenate([values, [[0, 0, 1, 1]]]).astype(np.float32), letters)


def _smooth_noise(rng: np.random.Generator, count: int) -> np.ndarray:
    """[N, 2] of about unit size; neighbours are alike, as a hand is slow."""
    noise = rng.normal(size=(count + 2, 2))
    return (noise[:-2] + noise[1:-1] + noise[2:]) / np.sqrt(3)


def resampled(points: np.ndarray, step: float) -> np.ndarray:
    """A line through points [N, 2] as points about a ``step`` apart along it, ends included."""
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    count = max(2, round(along[-1] / step) + 1)
    wanted = np.linspace(0, along[-1], count)
    return np.column_stack([np.interp(wanted, along, points[:, d]) for d in range(2)])


def points_of(values: np.ndarray) -> np.ndarray:
    """Values [T, 4] without the one that says that the text is at its end."""
    return values[values[:, 3] < 0.5]


def as_lines(values: np.ndarray) -> list[np.ndarray]:
    """Values [T, 4] as strokes, arrays of points [N, 2], a dot as twice the same point; none where
    nothing was written."""
    values = points_of(values)
    points = np.cumsum(values[:, :2], axis=0)
    cuts = np.flatnonzero(values[:, 2] > 0.5) + 1
    strokes = [stroke for stroke in np.split(points, cuts) if len(stroke)]
    return [stroke if len(stroke) > 1 else np.repeat(stroke, 2, axis=0) for stroke in strokes]


def _read_pairs(path: Path, seed: int) -> Writing:
    """Pairs from JSON lines; a tenth validates and a tenth tests, by the seed.

    Raises:
        DataError: the file cannot be read, or a line is no pair; names the first.
    """
    # To its end before a line can be refused: that leaves no file open.
    lines = [(n, line) for n, line in enumerate(read_lines(path), 1) if line.strip()]
    raw = [_line(line, f"{path}, line {n}") for n, line in lines]
    if len(raw) < 10:
        raise DataError(f"{path} must hold at least 10 pairs, got {len(raw)}")
    note = f"{len(raw)} pairs, divided 8:1:1"
    return _joined(path.stem, note, {}, divided(_in_unit(raw, path), seed, 10))


def _in_unit(raw: Sequence[tuple[str, np.ndarray]], path: Path) -> list[Written]:
    """Texts and strokes in the unit of the program, in which a common step between points is 1."""
    moves = np.concatenate([strokes[1:, :2] for _, strokes in raw])
    size = float(np.median(np.hypot(*moves.T)))
    if not size > 0:
        raise DataError(f"{path} must hold strokes that move, got offsets of median length {size}")
    pairs = []
    for text, strokes in raw:
        farthest = float(np.abs(strokes[:, :2]).max())
        if farthest > _FARTHEST * size:
            raise DataError(
                f"{path} must have offsets of at most {_FARTHEST:,} times their median, {size:g}, "
                f"got {farthest:g} in {text!r:.60}"
            )
        points = np.cumsum(strokes[:, :2], axis=0) / size * STEP
        pairs.append(_pair(text, points, strokes[:, 2], None))
    return pairs


def read_sample(path: Path, number: int) -> Written:
    """The pair at one line of a file of pairs, counted from 1.

    Raises:
        DataError: the file cannot be read, or there is no pair at that line, or its last point is
            not the end of a stroke.
    """
    found = next(itertools.islice(read_lines(path), number - 1, None), "")
    place = f"{path}, line {number}"
    if not found.strip():
        raise DataError(f"{place}: must have a sample, got nothing there")
    text, strokes = _line(found, place)
    if not strokes[-1, 2]:
        raise DataError(f"{place}: strokes must have an end of 1 at the last point, got 0")
    return _in_unit([(text, strokes)], path)[0]


def as_line(text: str, values: np.ndarray) -> str:
    """A text and its values [T, 4] as a line of a file of pairs."""
    strokes = [[round(float(x), 4), round(float(y), 4), int(up > 0.5)]
               for x, y, up, _ in points_of(values)]  # fmt: skip
    return json.dumps({"text": text, "strokes": strokes}) + "\n"


def _line(line: str, place: str) -> tuple[str, np.ndarray]:
    try:
        content: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: must be JSON, got {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("text"), str):
        raise DataError(f'{place}: must have a "text" and "strokes", got {line!r:.60}')
    try:
        strokes: np.ndarray = np.array(content.get("strokes"), float)
    except (TypeError, ValueError):
        strokes = np.zeros((0, 3))
    if strokes.ndim != 2 or strokes.shape[-1] != 3 or len(strokes) < 2:
        raise DataError(
            f"{place}: strokes must be 2 or more points [dx, dy, end], got {line!r:.60}"
        )
    if not np.all(np.isfinite(strokes)) or not np.all(np.isin(strokes[:, 2], (0, 1))):
        raise DataError(f"{place}: strokes must be finite, with an end of 0 or 1, got {line!r:.60}")
    if not content["text"].strip() or not content["text"].isprintable():
        raise DataError(
            f"{place}: text must have characters, and none but those that can be seen, got "
            f"{content['text']!r:.60}"
        )
    return content["text"], strokes
