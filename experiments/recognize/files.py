"""Series with a label each, from files of two kinds: .ts as of the UEA archive, and .csv."""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rnnjax.data import DataError


class Table(NamedTuple):
    """The series of a file.

    Attributes:
        names: what the file calls each; "1", "2" ... where it does not.
        rows: values [T, D] of each.
        labels: one for each, or None where the file has none.
    """

    names: list[str]
    rows: list[np.ndarray]
    labels: list[str] | None


def read_file(path: Path) -> Table:
    """The series of a file, by the end of its name.

    Raises:
        DataError: it cannot be read or is none of the two kinds; names the line.
    """
    readers = {".ts": read_ts, ".csv": read_csv}
    if path.suffix not in readers:
        raise DataError(f"{path} must end in .ts or .csv, got {path.suffix or 'no ending'}")
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} must be a text file, got {error}") from None
    table = readers[path.suffix](text, str(path))
    if not table.rows:
        raise DataError(f"{path} must hold a series, got none")
    return table


def read_ts(text: str, name: str) -> Table:
    """Series of the UEA archive: channels with : between, values with commas, the label last.

    Lines that begin with @ say what follows; # and % begin comments.
    """
    lines = enumerate(map(str.strip, text.splitlines()), start=1)
    head: dict[str, str] = {}
    for _, line in lines:
        if line.startswith("@"):
            key, _, value = line[1:].partition(" ")
            head[key.lower()] = value.strip()
            if key.lower() == "data":
                break
    if "data" not in head:
        raise DataError(f"{name} must have a line @data, got none")
    if head.get("timestamps", "false").lower() != "false":
        raise DataError(f"{name}: @timeStamps must be false, got {head['timestamps']}")
    is_labelled = head.get("classlabel", "false").lower().split()[:1] == ["true"]
    rows, labels = [], []
    for number, line in lines:
        if line and line[0] not in "#%":
            place = f"{name}, line {number}"
            *channels, label = line.split(":") if is_labelled else [*line.split(":"), ""]
            rows.append(_channels(channels, place))
            labels.append(label.strip())
            if rows[-1].shape[1] != rows[0].shape[1]:
                raise DataError(
                    f"{place}: must have {rows[0].shape[1]} channels as the first series, "
                    f"got {rows[-1].shape[1]}"
                )
    names = [str(n) for n in range(1, len(rows) + 1)]
    return Table(names, rows, labels if is_labelled else None)


def _channels(texts: list[str], place: str) -> np.ndarray:
    channels = [[_number(value, place) for value in text.split(",")] for text in texts]
    lengths = sorted({len(channel) for channel in channels})
    if len(lengths) != 1:
        found = " and ".join(map(str, lengths)) or "none"
        raise DataError(f"{place}: channels must have equal numbers of steps, got {found}")
    return np.array(channels, np.float32).T


def _number(text: str, place: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{place}: values must be finite numbers, got {text.strip()!r:.60}")
    return number


def read_csv(text: str, name: str) -> Table:
    """A line for each step: columns series, step, label, and one of any other name a channel.

    Lines may stand in any order. The label may be left out in all lines, not in some.
    """
    try:
        header, *lines = list(csv.reader(text.splitlines())) or [[]]
    except csv.Error as error:
        raise DataError(f"{name} must be a CSV file with a header line, got {error}") from None
    channels = [i for i, column in enumerate(header) if column not in ("series", "step", "label")]
    if not {"series", "step"} <= set(header) or not channels or len(set(header)) < len(header):
        raise DataError(
            f"{name} must have the columns series, step and one or more channels, all of different "
            f"names, got {', '.join(header) or 'none'}"
        )
    series, step = header.index("series"), header.index("step")
    label = header.index("label") if "label" in header else None
    found: dict[str, list[tuple[float, list[float], str]]] = {}
    for number, line in enumerate(lines, start=2):
        place = f"{name}, row {number}"
        if len(line) != len(header):
            raise DataError(f"{place}: must have {len(header)} columns, got {len(line)}")
        values = [_number(line[i], place) for i in channels]
        said = "" if label is None else line[label]
        found.setdefault(line[series], []).append((_number(line[step], place), values, said))
    labels = [_label(steps, f"{name}, series {key}") for key, steps in found.items()]
    rows = [_ordered(steps, f"{name}, series {key}") for key, steps in found.items()]
    return Table(list(found), rows, None if label is None else labels)


def _label(steps: list[tuple[float, list[float], str]], place: str) -> str:
    said = sorted({label for _, _, label in steps})
    if len(said) > 1:
        raise DataError(f"{place}: must have one label, got {' and '.join(map(repr, said))}")
    return said[0]


def _ordered(steps: list[tuple[float, list[float], str]], place: str) -> np.ndarray:
    ordered = sorted(steps, key=lambda step: step[0])
    for (before, *_), (after, *_) in itertools.pairwise(ordered):
        if before == after:
            raise DataError(f"{place}: must have steps that differ, got {after:g} twice")
    return np.array([values for _, values, _ in ordered], np.float32)
