"""Pictures with captions as ids: scenes that are made, or pictures from files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.caption.scenes import PIXELS, Scene, make_scenes
from experiments.caption.settings import Settings
from experiments.running.console import how_many
from experiments.running.words import STOP, fit_words, with_marks, words
from rnnjax.data import DataError, Vocabulary, pad, read_text
from rnnjax.data.padding import filled
from rnnjax.data.pairs import divided

_HELD_OUT = 1000
# Pillow's modes of one number a pixel, of which convert takes all above 255 for white.
_WITHOUT_WHITE = {"I": "32-bit integers", "F": "floating-point numbers"}


class Captioned(NamedTuple):
    """Pictures uint8 [N, 36, 36, 3], captions in words, and of scenes the cell of each word."""

    pictures: np.ndarray
    words: list[list[str]]
    cells: list[list[int]] | None


class Corpus(NamedTuple):
    """Pictures in parts; ``composed``, of scenes, holds pairs that no other part has."""

    name: str
    note: str
    sha256: str
    vocabulary: Vocabulary
    train: Captioned
    validation: Captioned
    test: Captioned
    composed: Captioned | None


class CaptionBatch(NamedTuple):
    """Pictures [B, 36, 36, 3], ids [B, T] that end with the stop, and how many [B] are real."""

    pictures: np.ndarray
    captions: np.ndarray
    lengths: np.ndarray


def read_corpus(settings: Settings) -> Corpus:
    """The pictures that the settings name, from files or made by the seed."""
    composed = None
    if settings.captions is None:
        name, note = "scenes", f"made by seed {settings.seed}"
        train, validation, test, composed = _scenes(settings)
    else:
        name = settings.captions.stem
        train, validation, test, note = _from_files(settings.captions, settings)
    parts = (train, validation, test)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.pictures.tobytes())
        digest.update(repr(part.words).encode())
    vocabulary = with_marks(fit_words(train.words, settings.min_count))
    return Corpus(name, note, digest.hexdigest(), vocabulary, *parts, composed)


def _scenes(settings: Settings) -> list[Captioned]:
    rng = np.random.default_rng(settings.seed)
    counts = (settings.scenes, _HELD_OUT, _HELD_OUT)
    parts = [_captioned(make_scenes(rng, count)) for count in counts]
    return [*parts, _captioned(make_scenes(rng, _HELD_OUT, composed=True))]


def _captioned(scenes: Sequence[Scene]) -> Captioned:
    pictures = np.stack([scene.picture for scene in scenes])
    return Captioned(pictures, [s.words for s in scenes], [s.cells for s in scenes])


def _from_files(path: Path, settings: Settings) -> tuple[Captioned, Captioned, Captioned, str]:
    """The pictures that a file lists, a tenth of them to validate and a tenth to test; captions of
    one picture stay together."""
    names, captions, long = [], [], 0
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        row = line.split("\t")  # quotes are text
        if len(row) != 2 or not (found := words(row[1])):
            raise DataError(
                f"{path}, line {number}, must be a path, a tab and a caption, got {line[:60]!r}"
            )
        if len(found) < settings.max_length:  # the stop is one more
            names.append(row[0])
            captions.append(found)
        else:
            long += 1
    count = len(set(names))
    parts = divided(names, settings.seed)
    if count < 10 or parts is None:
        raise DataError(
            f"{path} must have at least 10 pictures with captions of less than "
            f"{settings.max_length} words, got {count}"
        )
    pictures = {name: read_picture(path.parent / name) for name in dict.fromkeys(names)}
    train, validation, test = (
        Captioned(np.stack([pictures[names[i]] for i in part]), [captions[i] for i in part], None)
        for part in parts
    )
    note = f"divided 80/10/10 by seed {settings.seed}, pictures brought to {PIXELS} x {PIXELS}"
    if long:
        captions_cut = how_many(long, "caption")
        note += f", {captions_cut} of {settings.max_length} words or more left out"
    return train, validation, test, note


def read_picture(path: Path) -> np.ndarray:
    """A picture file as uint8 [36, 36, 3]: turned as its camera says, and on white where it can be
    seen through.

    Raises:
        DataError: there is none, it is no picture, or its numbers do not say what is white.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            mode, turned = image.mode, ImageOps.exif_transpose(image)
            if mode.startswith("I;16"):  # of these convert takes all above 255 for white
                turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
            turned = turned.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = getattr(error, "strerror", None) or "none that can be read"
        raise DataError(f"{path} must be a picture, got {why}") from None
    if mode in _WITHOUT_WHITE:
        raise DataError(f"{path} must have 1, 8 or 16 bits a channel, got {_WITHOUT_WHITE[mode]}")
    white = Image.new("RGBA", turned.size, "white")
    small = Image.alpha_composite(white, turned).convert("RGB")
    return np.asarray(small.resize((PIXELS, PIXELS), Image.Resampling.BOX), np.uint8)


class CaptionBatches:
    """Batches of one part; of an epoch n the order depends on the seed and n alone.

    Args:
        part: what they are made of.
        vocabulary: the ids of words.
        settings: the size of a batch and the seed.
        shuffle: False gives the pictures as they come, the same in every epoch.
    """

    def __init__(
        self, part: Captioned, vocabulary: Vocabulary, settings: Settings, *, shuffle: bool
    ) -> None:
        self._part, self._rows, self._seed = part, settings.batch_size, settings.seed
        self._shuffle = shuffle
        ids = [[*vocabulary.encode(caption), STOP] for caption in part.words]
        self._captions, self._lengths = pad(ids)

    def __len__(self) -> int:
        return -(-len(self._lengths) // self._rows)

    def epoch(self, n: int) -> Iterator[CaptionBatch]:
        """The batches of an epoch."""
        order = np.arange(len(self._lengths))
        if self._shuffle:
            order = np.random.default_rng((self._seed, n)).permutation(order)
        for begin in range(0, len(order), self._rows):
            rows = order[begin : begin + self._rows]
            parts = (self._part.pictures, self._captions, self._lengths)
            yield CaptionBatch(*(filled(a[rows], self._rows) for a in parts))
