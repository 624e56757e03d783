"""Series to forecast: made, or read from a file; and the windows that are cut from them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.forecast.settings import Settings
from experiments.running.console import wrapped
from experiments.running.number_columns import (
    Table,
    left_out,
    number_column,
    number_columns,
    read_as_series,
    read_steps,
)
from experiments.running.packages import packaged_file
from rnnjax.data import DataError

Sets = dict[str, list[np.ndarray]]  # series [N] of each set, by its name


class Window(NamedTuple):
    """Windows of one part of one set.

    Attributes:
        past: [M, W], what a forecast is made from.
        future: [M, h], what came then.
        unit: [M], how wrong the seasonal naive forecast of one season is within the training part
            of the series: errors are told as multiples of it.
        series: [M], which series of the set a window is of.
    """

    past: np.ndarray
    future: np.ndarray
    unit: np.ndarray
    series: np.ndarray


class Windows(NamedTuple):
    """Windows to train on, to choose the weights by, and to judge the forecasts by."""

    train: Window
    validation: Window
    test: Window


def read_sets(settings: Settings) -> tuple[Sets, str]:
    """The series that the settings name, and the hash of all their numbers.

    Raises:
        DataError: a package is missing, a file cannot be read, holds no numbers, or a series is
            too short.
    """
    if settings.dataset is None:
        rng = np.random.default_rng((settings.seed, settings.series, settings.length))
        time = np.arange(settings.length)
        sets = {
            name: [make(rng, time, settings.season) for _ in range(settings.series)]
            for name, make in GENERATED.items()
        }
        for name, series in sets.items():
            for number, values in enumerate(series):
                _check(values, f"{name}, series {number}", settings)
    elif settings.dataset in PACKAGED:
        path = _packaged(settings.dataset)
        sets = {settings.dataset: _checked(number_columns(read_steps(path)), path, settings)}
    else:
        path = Path(settings.dataset)
        sets = {path.stem: _checked(read_csv(path, settings.column), path, settings)}
    every = b"".join(values.tobytes() for series in sets.values() for values in series)
    return sets, hashlib.sha256(every).hexdigest()


def _shape(rng: np.random.Generator, time: np.ndarray, season: int) -> np.ndarray:
    """A season of a random form, of mean 0 and variance about 1."""
    angle = 2 * np.pi * time / season
    shape = np.zeros(len(time))
    for k in (1, 2, 3):
        shape += (rng.normal() * np.sin(k * angle) + rng.normal() * np.cos(k * angle)) / k
    return shape / math.sqrt(1 + 1 / 4 + 1 / 9)


def _seasonal(rng: np.random.Generator, time: np.ndarray, season: int) -> np.ndarray:
    """A trend, a season that stays as it is, and noise."""
    trend = rng.normal() * 0.02 * time
    return 10 + trend + _shape(rng, time, season) + 0.4 * rng.normal(size=len(time))


def _growing(rng: np.random.Generator, time: np.ndarray, season: int) -> np.ndarray:
    """Growth by a rate, and a season that grows with it, as of passengers of an airline."""
    level = np.exp(4 + rng.uniform(0.002, 0.012) * time)
    return level * (1 + 0.2 * _shape(rng, time, season)) * np.exp(0.04 * rng.normal(size=len(time)))


def _cycles(rng: np.random.Generator, time: np.ndarray, season: int) -> np.ndarray:
    """Cycles that come and go and keep no calendar, as of sunspots."""
    period = season * rng.uniform(0.7, 1.4)
    radius = 0.97
    values = list(rng.normal(size=2) * 3)
    for _ in time[2:]:
        pull = 2 * radius * math.cos(2 * math.pi / period) * values[-1] - radius**2 * values[-2]
        values.append(pull + rng.normal())
    return 50 + np.array(values)


def _walk(rng: np.random.Generator, time: np.ndarray, season: int) -> np.ndarray:
    """Steps by chance, as of prices: nothing is better than the last value."""
    return 100 + np.cumsum(rng.normal(size=len(time)))


def _chaos(rng: np.random.Generator, time: np.ndarray, season: int) -> np.ndarray:
    """The equation of Mackey and Glass: each step follows from those before, but not linearly."""
    delay, past = 17, list(rng.uniform(0.4, 1.3, 18))
    for _ in range(4 * len(time) + 200):
        late = past[-1 - delay]
        past.append(0.9 * past[-1] + 0.2 * late / (1 + late**10))
    return np.array(past[-4 * len(time) :: 4])


GENERATED: dict[str, Callable[[np.random.Generator, np.ndarray, int], np.ndarray]] = {
    "seasonal": _seasonal,
    "growing": _growing,
    "cycles": _cycles,
    "chaos": _chaos,
    "walk": _walk,
}


# Files in the package aeon, which brings them with it.
# airline: passengers of each of 144 months, 1949 to 1960: series G of Box and Jenkins, "Time series
#   analysis: forecasting and control" (1976).
# solar: the yield of solar cells in Great Britain in each of 289 half hours, May 2021, as
#   estimated by Sheffield Solar (PV_Live).
PACKAGED = {"airline": "Airline/Airline.csv", "solar": "solar/solar.csv"}


def _checked(
    columns: Mapping[str, np.ndarray], path: Path, settings: Settings, hint: str = ""
) -> list[np.ndarray]:
    for name, values in columns.items():
        _check(values, f"{path}, {name or 'the column without a name'}", settings, hint)
    return list(columns.values())


def _packaged(name: str) -> Path:
    """Where a file of aeon lies."""
    return packaged_file("aeon", name, "series", "datasets", "data", PACKAGED[name])


def read_csv(path: Path, column: str | None) -> dict[str, np.ndarray]:
    """The columns of numbers of a file with a header line, or the one that is named; a note says
    which others are left out.

    Raises:
        DataError: the file cannot be read, or a column has a gap among its numbers; names the row.
    """
    table = _steps(path, column)
    found = _series(table, column)
    if column is None:
        for note in (left_out(table, list(found)), read_as_series(found)):
            if note is not None:
                print(wrapped(note))
    return found


def _steps(path: Path, column: str | None) -> Table:
    return read_steps(path, () if column is None else (column,))


def _series(table: Table, column: str | None) -> dict[str, np.ndarray]:
    """Each from its first number on."""
    if column is None:
        return number_columns(table, may_begin_late=True)
    if column not in table.header:
        raise DataError(f"--column must be one of {', '.join(table.header)}, got {column!r}")
    return {column: number_column(table, column, may_begin_late=True)}


def read_ends(path: Path, settings: Settings) -> tuple[list[str], Window]:
    """The names of the series of a file, and their ends, behind which nothing is known yet.

    Raises:
        DataError: as of `read_csv`, or a series is too short.
    """
    columns = _series(_steps(path, settings.column), settings.column)
    hint = ": the rows that it was trained on stand above the new ones"
    series = _checked(columns, path, settings, hint)
    past = np.stack([values[-settings.window :] for values in series])
    unit = [_unit(values, _parts(len(values))[0], settings.season) for values in series]
    unknown = np.empty((len(series), 0))
    return list(columns), Window(past, unknown, np.array(unit), np.arange(len(series)))


def _parts(length: int) -> tuple[int, int]:
    """Where the validation and the test part of a series begin: after 70 and 85 hundredths."""
    return int(length * 0.7), int(length * 0.85)


def _check(values: np.ndarray, name: str, settings: Settings, hint: str = "") -> None:
    begin, _ = _parts(len(values))
    shortest = math.ceil(settings.horizon / 0.15) + 1
    least = max(shortest, math.ceil((settings.window + settings.horizon) / 0.7) + 1)
    if len(values) < least or begin <= settings.season:
        raise DataError(
            f"{name} must have at least {least} steps for --window {settings.window} and "
            f"--horizon {settings.horizon}, and more than --season {settings.season} to train on, "
            f"got {len(values)}{hint}"
        )
    if _unit(values, begin, settings.season) == 0:
        raise DataError(
            f"{name} must change from one --season of {settings.season} steps to the next, got the "
            "same again"
        )


def _unit(values: np.ndarray, begin: int, season: int) -> float:
    return float(np.abs(values[season:begin] - values[: begin - season]).mean())


def cut(series: Sequence[np.ndarray], settings: Settings) -> Windows:
    """All windows of a set, by the part of the series that their future lies in.

    A window of the test part may begin before it: the past is known.
    """
    window, horizon = settings.window, settings.horizon
    found: tuple[list, list, list] = ([], [], [])
    for number, values in enumerate(series):
        begins = (window, *_parts(len(values)), len(values))
        unit = _unit(values, begins[1], settings.season)
        for part, start, end in zip(found, begins[:-1], begins[1:], strict=True):
            for now in range(start, end - horizon + 1):
                part.append((values[now - window : now], values[now : now + horizon], unit, number))
    return Windows(*(Window(*map(np.array, zip(*part, strict=True))) for part in found))
