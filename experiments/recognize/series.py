"""Series with a label each, in three parts: from packages, from files, or made."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.recognize.files import Table, in_order, read_file
from experiments.recognize.settings import Settings
from experiments.running.packages import is_installed, missing, packaged_file
from rnnjax.data import DataError


class Part(NamedTuple):
    """Values [T, D] of some series, and the number of the label of each."""

    rows: list[np.ndarray]
    classes: list[int]


class Series(NamedTuple):
    """Labelled series.

    Attributes:
        name: of the data set.
        sha256: of all values and labels.
        labels: their names, in the order of their numbers.
        channels: their names; none where the file does not name them.
        train: series to learn from.
        validation: series to choose the weights by.
        test: series to judge them by.
    """

    name: str
    sha256: str
    labels: list[str]
    channels: list[str]
    train: Part
    validation: Part
    test: Part

    @property
    def parts(self) -> tuple[Part, Part, Part]:
        """All three."""
        return self.train, self.validation, self.test


def read_series(settings: Settings) -> Series:
    """The series that the settings name, divided by the seed.

    Raises:
        DataError: a package or a file is missing, or does not hold labelled series.
    """
    name = settings.dataset
    if name is None:
        rng = np.random.default_rng((settings.seed, settings.series))
        return _divided("strokes", make_strokes(rng, settings.series), None, settings)
    if name in PACKAGES:
        return _divided(name, *PACKAGES[name](), settings)
    path = Path(name)
    test = None if settings.test is None else _labelled(settings.test)
    return _divided(path.stem, _labelled(path), test, settings)


def _labelled(path: Path) -> Table:
    table = read_file(path)
    if table.labels is None:
        raise DataError(f"{path} must have a label for each series, got none")
    return table


def _divided(name: str, table: Table, test: Table | None, settings: Settings) -> Series:
    """The parts; without a test table a fifth of the series is the test part."""
    labels = sorted(set(table.labels or ()), key=lambda label: (len(label), label))
    if len(labels) < 2:
        raise DataError(f"{name} must have 2 or more labels, got {len(labels)}")
    whole = _as_part(table, labels, name)
    tested = None
    if test is not None:
        count = whole.rows[0].shape[1]
        tested = _as_part(in_order(test, table.channels, count, "--test"), labels, "--test")
    rows = whole.rows + (tested.rows if tested else [])
    order = np.random.default_rng(settings.seed).permutation(len(whole.rows)).tolist()
    if tested is None:
        fifth = len(order) // 5
        held, order = order[:fifth], order[fifth:]
        tested = _pick(whole, held)
    count = round(len(order) * settings.validation)
    if not 0 < count < len(order) or not tested.rows:
        raise DataError(
            f"{name} must have enough series to train, to validate and to test, got {len(rows)}"
        )
    digest = hashlib.sha256(repr((labels, whole.classes, tested.classes)).encode())
    for row in rows:
        digest.update(row.tobytes())
    parts = _pick(whole, order[count:]), _pick(whole, order[:count]), tested
    return Series(name, digest.hexdigest(), labels, table.channels, *parts)


def _as_part(table: Table, labels: Sequence[str], name: str) -> Part:
    number = {label: i for i, label in enumerate(labels)}
    given = table.labels or []
    new = sorted(set(given) - set(number))
    if new:
        raise DataError(f"{name} must have labels that --dataset has, got {new[0]!r}")
    return Part(table.rows, [number[label] for label in given])


def _pick(part: Part, places: Sequence[int]) -> Part:
    return Part([part.rows[i] for i in places], [part.classes[i] for i in places])


def _japanese_vowels() -> tuple[Table, Table]:
    """9 men who say two vowels, 12 channels, 7 to 29 steps: 270 series to learn from, 370 to test.

    Source: Kudo, Toyama and Shimbo, "Multidimensional curve classification using passing-through
    regions" (1999). The files lie in the package aeon, which is found and not imported.
    """
    folder = packaged_file(
        "aeon", "japanese_vowels", "series", "datasets", "data", "JapaneseVowels"
    )
    train, test = (_labelled(folder / f"JapaneseVowels_{part}.ts") for part in ("TRAIN", "TEST"))
    return train, test


def _mnist1d() -> tuple[Table, Table]:
    """Ten shapes, moved, scaled, sheared and under noise: 4,000 series of 40 steps, 1,000 to test.

    Source: Greydanus and Kobak, "Scaling down deep learning with MNIST-1D" (2020). The package
    makes them from its seed.
    """
    if not is_installed("mnist1d"):
        raise missing("mnist1d", "mnist1d", "series")
    from mnist1d.data import (  # pyright: ignore[reportMissingImports]
        get_dataset_args,
        make_dataset,
    )

    # The package seeds the generators of the whole process: they are put back.
    states = random.getstate(), np.random.get_state()
    try:
        data = make_dataset(get_dataset_args())
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    return tuple(
        Table(
            [str(i) for i in range(len(data[f"y{part}"]))],
            list(data[f"x{part}"].astype(np.float32)[..., None]),
            [str(label) for label in data[f"y{part}"].tolist()],
            [],
        )
        for part in ("", "_test")
    )  # pyright: ignore[reportReturnType]


PACKAGES = {"japanese_vowels": _japanese_vowels, "mnist1d": _mnist1d}

KINDS = ("circle", "eight", "spiral", "zigzag", "square", "wave")


def make_strokes(rng: np.random.Generator, count: int) -> Table:
    """How a pen moves from step to step, in two channels: six figures, each drawn either way round.

    Size, speed, slant, length and start differ, and the hand trembles. A spiral and a circle, or a
    zigzag and a wave, are told apart only over many steps.
    """
    names = [str(i) for i in range(1, count + 1)]
    labels = [str(rng.choice(KINDS)) for _ in names]
    return Table(names, [_stroke(rng, label) for label in labels], labels, ["x", "y"])


def _stroke(rng: np.random.Generator, kind: str) -> np.ndarray:
    steps = int(rng.integers(20, 61))
    time = np.linspace(0, 1, steps + 1) * rng.uniform(1.5, 2.5) + rng.uniform()
    angle, swing = 2 * np.pi * time, 2 * np.abs(2 * (2 * time % 1) - 1) - 1
    wide = np.abs(np.cos(angle)) + np.abs(np.sin(angle))
    x, y = {
        "circle": (np.cos(angle), np.sin(angle)),
        "eight": (np.sin(angle), np.sin(2 * angle)),
        "spiral": (time * np.cos(angle) / 2, time * np.sin(angle) / 2),
        "square": (np.cos(angle) / wide, np.sin(angle) / wide),
        "zigzag": (1.5 * time, swing),
        "wave": (1.5 * time, np.cos(2 * angle)),
    }[kind]
    turn = rng.normal() * 0.3
    points = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], 1)
    moves = np.diff(points * rng.uniform(0.5, 1.5), axis=0) * rng.choice((-1, 1))
    moves += rng.normal(size=moves.shape) * 0.3 * np.abs(moves).mean()
    return (moves * steps / 40).astype(np.float32)
