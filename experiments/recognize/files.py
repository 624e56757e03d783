"""Series with a label each, from files of two kinds: .ts as of the UEA archive, and .csv."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.running.console import how_many
from experiments.running.number_columns import listed, read_number, read_table, wanted
from rnnjax.data import DataError, read_text


class Table(NamedTuple):
    """The series of a file.

    Attributes:
        names: what the file calls each; "1", "2" ... where it does not.
        rows: values [T, D] of each, with the digits they have.
        labels: one for each, or None where the file has none.
        channels: their names; none where the file does not name them.
    """

    names: list[str]
    rows: list[np.ndarray]
    labels: list[str] | None
    channels: list[str]


def in_order(table: Table, channels: Sequence[str], count: int, place: str) -> Table:
    """The table with its channels as they are here; by their names where both have names.

    Raises:
        DataError: it has others, or another number.
    """
    if channels and table.channels:
        if set(channels) != set(table.channels):
            raise DataError(
                f"{place} must have the channels {listed(channels)}, got {listed(table.channels)}"
            )
        order = [table.channels.index(name) for name in channels]
        return table._replace(rows=[row[:, order] for row in table.rows], channels=list(channels))
    if table.rows[0].shape[1] != count:
        raise DataError(
            f"{place} must have {how_many(count, 'channel')}, got {table.rows[0].shape[1]}"
        )
    return table


def read_file(path: Path) -> Table:
    """The series of a file, by the end of its name.

    Raises:
        DataError: it cannot be read or is none of the two kinds; names the line.
    """
    readers = {".ts": read_ts, ".csv": read_csv}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise DataError(f"{path} must end in .ts or .csv, got {path.suffix or 'no ending'}")
    table = readers[suffix](path)
    if not table.rows:
        raise DataError(f"{path} must hold a series, got none")
    return table


def read_ts(path: Path) -> Table:
    """Series of the UEA archive: channels with : between, values with commas, the label last.

    Lines that begin with @ say what follows; # and % begin comments.
    """
    lines = enumerate(map(str.strip, read_text(path).split("\n")), start=1)
    head: dict[str, str] = {}
    for _, line in lines:
        if line.startswith("@"):
            key, _, value = line[1:].partition(" ")
            head[key.lower()] = value.strip()
            if key.lower() == "data":
                break
    if "data" not in head:
        raise DataError(f"{path} must have a line @data, got none")
    for key, written in (("timestamps", "@timeStamps"), ("targetlabel", "@targetLabel")):
        if head.get(key, "false").lower() != "false":
            raise DataError(f"{path}: {written} must be false, got {head[key]}")
    is_labelled, *said = head.get("classlabel", "false").split()
    rows, labels = [], []
    for number, line in lines:
        if line and line[0] not in "#%":
            place = f"{path}, line {number}"
            *channels, label = line.split(":")
            if is_labelled.lower() != "true":
                channels, label = [*channels, label], ""
            elif said and label.strip() not in said:
                raise DataError(
                    f"{place}: must end in one of the labels {listed(said)}, got {label!r:.60}"
                )
            else:
                _check_label(label, place)
            rows.append(_channels(channels, place))
            labels.append(label.strip())
            if rows[-1].shape[1] != rows[0].shape[1]:
                channels = how_many(rows[0].shape[1], "channel")
                raise DataError(
                    f"{place}: must have {channels} as the first series, got {rows[-1].shape[1]}"
                )
    names = [str(n) for n in range(1, len(rows) + 1)]
    return Table(names, rows, labels if is_labelled.lower() == "true" else None, [])


def _channels(texts: list[str], place: str) -> np.ndarray:
    channels = [[_number(value, place) for value in text.split(",")] for text in texts]
    lengths = sorted({len(channel) for channel in channels})
    if len(lengths) != 1:
        found = " and ".join(map(str, lengths)) or "none"
        raise DataError(f"{place}: channels must have equal numbers of steps, got {found}")
    return np.array(channels).T


def _number(text: str, place: str, what: str = "values") -> float:
    number = read_number(text)
    if math.isnan(number):
        raise DataError(f"{place}: {what} must be {wanted(text)}")
    return number


def read_csv(path: Path) -> Table:
    """A line for each step: columns series, step, label, and one of any other name a channel.

    Lines may stand in any order. The label may be left out in all lines, not in some: without its
    column, or with it empty.
    """
    table = read_table(path)
    channels = [name for name in table.header if name not in ("series", "step", "label")]
    if not {"series", "step"} <= set(table.header) or not channels:
        raise DataError(
            f"{path} must have the columns series, step and one or more channels, "
            f"got {listed(table.header) or 'none'}"
        )
    is_labelled = "label" in table.header and any(map(str.strip, table.column("label")))
    found: dict[str, list[tuple[float, list[float], str]]] = {}
    for number, row in enumerate(table.rows):
        texts, place = dict(zip(table.header, row, strict=True)), table.place(number)
        values = [_number(texts[name], place, name) for name in channels]
        label = texts["label"].strip() if is_labelled else ""
        if is_labelled:
            _check_label(label, place)
        step = _number(texts["step"], place, "step")
        found.setdefault(texts["series"], []).append((step, values, label))
    labels = [_label(steps, f"{path}, series {key}") for key, steps in found.items()]
    rows = [_ordered(steps, f"{path}, series {key}") for key, steps in found.items()]
    return Table(list(found), rows, labels if is_labelled else None, channels)


def _check_label(label: str, place: str) -> None:
    if not label.strip():
        raise DataError(f"{place}: must have a label, got none")


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
    return np.array([values for _, values, _ in ordered])
