"""Series with faults at known places: made, from a package, or from a file."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.anomaly.settings import Settings
from experiments.running.console import wrapped
from experiments.running.number_columns import (
    left_out,
    listed,
    number_columns,
    read_as_series,
    read_steps,
)
from experiments.running.packages import packaged_file
from rnnjax.data import DataError


class Watched(NamedTuple):
    """One series.

    Attributes:
        values: [T, D], with the digits they have: they are scaled before they are rounded.
        fault: [T], 0 where the step is normal, else 1 + the place of its kind in `Data.kinds`.
        begin: the step of the file at which it begins; steps are told as the file counts them.
    """

    values: np.ndarray
    fault: np.ndarray
    begin: int = 0


class Data(NamedTuple):
    """Series in four parts.

    Attributes:
        name: of the data set.
        sha256: of all values and faults.
        channels: their names.
        kinds: of faults; none where nothing is known of them.
        train: normal series.
        validation: normal series, to choose the weights by.
        chosen: series with faults, to choose the alarm by; none where there are no such.
        test: series to judge.
    """

    name: str
    sha256: str
    channels: list[str]
    kinds: tuple[str, ...]
    train: list[Watched]
    validation: list[Watched]
    chosen: list[Watched]
    test: list[Watched]


def read_data(settings: Settings) -> Data:
    """The series that the settings name.

    Raises:
        DataError: a package or a file is missing, or holds no series of numbers.
    """
    if settings.dataset is None:
        return make_beats(settings.seed, settings.series, settings.length, settings.season)
    if settings.dataset == "bleeding":
        # The package's file begins with the 1,200 steps that its authors give to learn from.
        values, marks, names = read_csv(_bleeding(), "is_anomaly")
        return _divided("bleeding", values, marks, names, 1200)
    path = Path(settings.dataset)
    values, marks, names = read_csv(path, settings.label)
    return _divided(path.stem, values, marks, names, int(len(values) * settings.normal))


def _bleeding() -> Path:
    """Arterial blood pressure of a pig that bleeds within: one fault of 12 steps in 7,501.

    Source: set 135 of the UCR anomaly archive, KDD Cup 2021; Wu and Keogh, "Current time series
    anomaly detection benchmarks are flawed" (2020). The file lies in the package aeon, which is
    found and not imported.
    """
    file = "135_UCR_Anomaly_InternalBleeding16_TEST.csv"
    return packaged_file("aeon", "bleeding", "series", "datasets", "data", "KDD-TSAD_135", file)


def read_csv(path: Path, label: str | None) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """The columns of numbers [T, D] of a file with a header line, marks [T], names of the columns.

    Raises:
        DataError: the file cannot be read, or a column has a gap among its numbers; names the row.
    """
    required = () if label is None else (label,)
    table = read_steps(path, required)
    if label is not None and label not in table.header:
        raise DataError(f"--label must be one of {', '.join(table.header)}, got {label!r}")
    found = number_columns(table, required)
    for note in (left_out(table, list(found)), read_as_series(found, required)):
        if note is not None:
            print(wrapped(note))
    marks = None if label is None else found.pop(label)
    if marks is not None and not np.isin(marks, (0, 1)).all():
        row = int(np.flatnonzero(~np.isin(marks, (0, 1)))[0])
        raise DataError(f"{table.place(row)}: {label} must be 0 or 1, got {marks[row]:g}")
    if not found:
        raise DataError(f"{path} must have a column of numbers beside {label}, got none")
    return np.stack(list(found.values()), axis=1), marks, list(found)


def _divided(
    name: str, values: np.ndarray, marks: np.ndarray | None, channels: list[str], normal: int
) -> Data:
    """Steps to learn from, the last fifth of them to choose the weights by; the rest to judge."""
    fault = np.zeros(len(values), int) if marks is None else marks.astype(int)
    begins = (0, int(normal * 0.8), normal, len(values))
    parts = [
        Watched(values[begin:end], fault[begin:end], begin)
        for begin, end in itertools.pairwise(begins)
    ]
    train, validation, test = ([part] for part in parts)
    _check_normal(name, channels, parts)
    kinds = () if marks is None else ("fault",)
    return Data(name, _digest(parts), channels, kinds, train, validation, [], test)


def normal_stretches(part: Watched) -> list[Watched]:
    """The normal steps of a series; those behind a fault are a series of their own, so that nothing
    looks back at a fault. One step alone is none: nothing foretells it."""
    edges = np.flatnonzero(np.diff(part.fault == 0, prepend=False, append=False))
    return [
        Watched(part.values[begin:end], part.fault[begin:end], part.begin + begin)
        for begin, end in edges.reshape(-1, 2).tolist()
        if end - begin > 1
    ]


def _check_normal(name: str, channels: list[str], parts: Sequence[Watched]) -> None:
    """Refuse what nothing can be learnt from, and say which channels keep to one value."""
    learnt = parts[0].values[parts[0].fault == 0]
    for role, part in (("learn from", parts[0]), ("validate by", parts[1])):
        if not normal_stretches(part):
            raise DataError(
                f"{name} must have 2 normal steps in a row to {role} among {len(part.fault)}, got "
                "none: --normal is the share of the file that they are taken from"
            )
    # Of the first step nothing is foretold, and those behind it are what the loss is a mean of.
    behind = parts[2].fault[1:] > 0
    if len(behind) and behind.all():
        raise DataError(
            f"{name} must have a normal step behind the first of the {len(behind) + 1} to judge, "
            "got none: --label marks them all; --normal is the share of the file before them"
        )
    still = [
        channel
        for channel, spread in zip(channels, np.ptp(learnt, axis=0), strict=True)
        if not spread
    ]
    if len(still) == len(channels):
        raise DataError(
            f"{name} must have a channel that changes in the steps to learn from, got "
            f"{listed(still)}, which keep to one value"
        )
    if still:
        print(
            wrapped(
                f"note: no change in the steps to learn from, so that 1 is a large one later: "
                f"{listed(still)}"
            )
        )


def _digest(parts: Sequence[Watched]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part.values).tobytes())
        digest.update(part.fault.astype(np.int64).tobytes())
    return digest.hexdigest()


KINDS = ("spike", "level", "missing", "faster")


def make_beats(seed: int, count: int, length: int, season: int) -> Data:
    """Beats that keep no clock, as of a heart, and four faults in each series that is judged.

    A beat is a sharp rise and a small wave behind it. How long a beat is wanders by a tenth.
    Faults: one step that leaps; a level that lies higher for a while; a beat that is missing;
    beats that come faster.
    """
    rng = np.random.default_rng((seed, count, length, season))

    def some(number: int, kinds: tuple[str, ...]) -> list[Watched]:
        return [make_series(rng, length, season, kinds) for _ in range(number)]

    train, validation = some(count, ()), some(max(1, count // 4), ())
    chosen, test = some(count, KINDS), some(2 * count, KINDS)
    digest = _digest([*train, *validation, *chosen, *test])
    return Data("beats", digest, ["beat"], KINDS, train, validation, chosen, test)


def make_series(
    rng: np.random.Generator, length: int, season: int, kinds: tuple[str, ...]
) -> Watched:
    """A series with a fault of each kind, each in a part of its own, in an order by chance."""
    fault = np.zeros(length, int)
    for part, kind in enumerate(rng.permutation(len(kinds))):
        room = length // len(kinds)
        steps = {"spike": 1, "level": 2 * season, "missing": season, "faster": 2 * season}
        wanted = min(steps[kinds[kind]], room // 2)
        begin = part * room + int(rng.integers(room // 4, room - wanted))
        fault[begin : begin + wanted] = 1 + kind
    speed = np.empty(length)
    wander = 0.0
    for step in range(length):
        wander = 0.95 * wander + 0.03 * rng.normal()
        speed[step] = (1 + wander) / season
    speed[_is(fault, kinds, "faster")] *= 1.5
    beats = np.cumsum(speed) + rng.uniform()
    phase = 2 * np.pi * beats
    values = np.exp(6 * (np.cos(phase) - 1)) + 0.25 * np.exp(3 * (np.cos(phase - 2) - 1))
    missing = _is(fault, kinds, "missing")
    if missing.any():
        # One whole beat with its wave, and the fault is where there would have been any of it.
        number = np.floor(beats + 0.3)
        lost = number == number[int(np.flatnonzero(missing).mean())]
        fault[missing] = 0
        fault[lost & (values > 0.05) & (fault == 0)] = 1 + kinds.index("missing")
        values[lost] = 0.0
    values += 0.05 * rng.normal(size=length)
    values[_is(fault, kinds, "level")] += 0.25
    spikes = _is(fault, kinds, "spike")
    values[spikes] += rng.choice((-1, 1), size=spikes.sum()) * rng.uniform(0.4, 0.8)
    return Watched(values.astype(np.float32)[:, None], fault)


def _is(fault: np.ndarray, kinds: tuple[str, ...], kind: str) -> np.ndarray:
    return fault == 1 + kinds.index(kind) if kind in kinds else np.zeros(len(fault), bool)
