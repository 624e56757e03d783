"""Columns of numbers out of a CSV file of the user's own."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rnnjax.data import DataError


def read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """The names in the header line, and the rows behind it.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets mark their files
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} must be a CSV file with a header line, got {error}") from None
    return header, rows


def number_column(
    path: Path, name: str, texts: Sequence[str], *, required: bool
) -> np.ndarray | None:
    """A column as numbers; None if none of it is one, as of dates, unless it is ``required``.

    Raises:
        DataError: there is a gap among its numbers; names the row.
    """
    numbers = np.array([_number(text) for text in texts], float)
    bad = np.flatnonzero(np.isnan(numbers))
    if not required and len(bad) == len(texts):
        return None
    if len(bad):
        raise DataError(
            f"{path}, row {bad[0] + 2}: {name} must be a finite number, got {texts[bad[0]]!r}"
        )
    return numbers


def cells(rows: Sequence[Sequence[str]], place: int) -> list[str]:
    """The texts of a column; a row that ends before it has an empty one."""
    return [row[place] if place < len(row) else "" for row in rows]


def no_numbers(path: Path, header: Sequence[str]) -> DataError:
    """The refusal of a file without a column of numbers."""
    return DataError(f"{path} must have a column of numbers, got {', '.join(header) or 'none'}")


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan
