"""Pieces of music as frames of 88 keys: read from files, or made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.music.settings import Settings
from experiments.running.dividing import divided
from experiments.running.setting_checks import refuse_unread
from rnnjax.data import DataError, data_folder, read_text

KEYS = 88
LOWEST = 21  # the MIDI number of the lowest key of a piano
_FILE = "jsb-chorales-quarter.json"

Piece = np.ndarray  # [T, 88], 1 where a key sounds


class Music(NamedTuple):
    """Pieces in three parts.

    Attributes:
        name: of the data set.
        note: where it came from and how it was divided.
        sha256: of what was read, or of what was made.
        train: pieces.
        validation: pieces.
        test: pieces.
    """

    name: str
    note: str
    sha256: str
    train: list[Piece]
    validation: list[Piece]
    test: list[Piece]


def read_music(settings: Settings) -> Music:
    """The pieces that the settings name.

    Raises:
        DataError: there are none, or a file does not hold pieces.
    """
    name, folder = settings.dataset, None
    if name in (None, "jsb_chorales"):
        folder = data_folder(settings.data_dir)
    if name is None:  # who names a folder wants what lies there
        there = settings.data_dir or (folder and (folder / "jsb_chorales").is_dir())
        name = "jsb_chorales" if there else "progressions"
    refuse_unread(settings, "with --dataset progressions", name == "progressions", "pieces")
    refuse_unread(settings, "with --dataset jsb_chorales", name == "jsb_chorales", "data_dir")
    if name == "progressions":
        return make_progressions(settings.pieces, settings.seed)
    if name == "jsb_chorales":
        if folder is None or not (folder / name).is_dir():
            raise DataError(
                f"--dataset jsb_chorales needs a folder: put {_FILE} or {_FILE}.gz in "
                "DATA_DIR/jsb_chorales, and give DATA_DIR as --data-dir or the variable RNNJAX_DATA"
            )
        paths = [folder / name / _FILE, folder / name / f"{_FILE}.gz"]
        found = [path for path in paths if path.is_file()]
        if not found:
            raise DataError(f"{folder / name} must hold {_FILE} or {_FILE}.gz, got neither")
        return read_pieces(found[0], settings.seed)
    return read_pieces(Path(name), settings.seed)


def read_pieces(path: Path, seed: int = 0) -> Music:
    """Pieces from JSON: a list of frames each, a frame a list of the MIDI numbers that sound.

    The file holds {"train": [...], "valid": [...], "test": [...]}, or one list of pieces, of which
    a fifth validates and a fifth tests, by the seed.

    Raises:
        DataError: the file cannot be read, or a piece is none; names the first.
    """
    if path.suffix.lower() in (".mid", ".midi"):
        raise DataError(
            f"{path} must be a file of pieces in JSON, got one of MIDI, which is written here and "
            "not read"
        )
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} must be a file of pieces in JSON, got {error}") from None
    name, digest = path.name.split(".")[0], hashlib.sha256(path.read_bytes()).hexdigest()
    names = ("train", "valid", "test")
    if isinstance(content, dict) and all(isinstance(content.get(n), list) for n in names):
        parts = [
            [_piece(frames, f"{path}, {n}, piece {i}") for i, frames in enumerate(content[n])]
            for n in names
        ]
        note = "divided as the file says"
    elif isinstance(content, list):
        pieces = [_piece(frames, f"{path}, piece {i}") for i, frames in enumerate(content)]
        if len(pieces) < 5:
            raise DataError(
                f"{path} must hold at least 5 pieces, a fifth to validate and a fifth to test, got "
                f"{len(pieces)}"
            )
        parts, note = divided(pieces, seed, 5), f"{len(pieces)} pieces, divided 3:1:1 by the seed"
    else:
        raise DataError(
            f'{path} must hold a list of pieces, or "train", "valid" and "test" with one each, '
            f"got {type(content).__name__}"
        )
    if not all(parts):
        raise DataError(f"{path} must hold a piece for each of {', '.join(names)}, got none of one")
    return Music(name, note, digest, *parts)


def _piece(frames: Any, place: str) -> Piece:
    if not isinstance(frames, list) or len(frames) < 2:
        raise DataError(f"{place}: must be a list of at least 2 frames, got {frames!r:.60}")
    roll = np.zeros((len(frames), KEYS), np.float32)
    for time, frame in enumerate(frames):
        notes = frame if isinstance(frame, list) else [frame]
        if not all(map(_is_key, notes)):
            raise DataError(
                f"{place}, frame {time}: must be whole MIDI numbers from 21 to 108, got "
                f"{frame!r:.60}"
            )
        roll[time, [int(n) - LOWEST for n in notes]] = 1
    return roll


def _is_key(note: Any) -> bool:
    return type(note) in (int, float) and LOWEST <= note < LOWEST + KEYS and note == int(note)


# Which degree of the scale follows which, as in a harmony book; each as likely as it is listed.
_FOLLOWS = {
    0: (3, 3, 4, 4, 5, 1, 0),
    1: (4, 4, 4, 6),
    2: (5, 5, 3),
    3: (4, 4, 0, 1),
    4: (0, 0, 0, 5, 4),
    5: (1, 3, 3, 4),
    6: (0,),
}
_SCALE = (0, 2, 4, 5, 7, 9, 11)
# The range of each voice, bass first, in MIDI numbers.
_VOICES = ((40, 60), (48, 67), (55, 74), (60, 81))


def make_progressions(count: int, seed: int) -> Music:
    """Pieces of four voices: chords that follow one another, each voice moving as little as it can.

    Every piece is in a key of its own, with chords of one or two frames, and ends on its tonic.
    """
    rng = np.random.default_rng((seed, count))
    pieces = [_progression(rng) for _ in range(count)]
    digest = hashlib.sha256(b"".join(piece.tobytes() for piece in pieces)).hexdigest()
    note = f"{count} pieces made by chance, divided 3:1:1"
    return Music("progressions", note, digest, *divided(pieces, seed, 5))


def _progression(rng: np.random.Generator) -> Piece:
    tonic, degree = int(rng.integers(-5, 6)), 0
    voices, frames = [48, 55, 64, 72], []
    for _ in range(int(rng.integers(12, 25))):
        voices = _lead(voices, [(tonic + _SCALE[(degree + third) % 7]) % 12 for third in (0, 2, 4)])
        frames += [voices] * int(rng.choice((1, 2), p=(0.7, 0.3)))
        degree = int(rng.choice(_FOLLOWS[degree]))
    frames += [_lead(voices, [(tonic + step) % 12 for step in (0, 4, 7)])] * 2
    roll = np.zeros((len(frames), KEYS), np.float32)
    for time, frame in enumerate(frames):
        roll[time, np.array(frame) - LOWEST] = 1
    return roll


def _lead(voices: Sequence[int], chord: Sequence[int]) -> list[int]:
    """The chord's notes nearest to those before: its root in the bass, the others above it."""
    root, third, fifth = chord
    wanted = ((root,), (fifth, root), (third, fifth), chord)
    return [
        min(
            (n for n in range(low, high + 1) if n % 12 in notes),
            key=lambda n, before=before: (abs(n - before), n),
        )
        for (low, high), notes, before in zip(_VOICES, wanted, voices, strict=True)
    ]
