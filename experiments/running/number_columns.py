"""Columns of numbers out of a CSV file of the user's own."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.running.console import how_many
from experiments.running.dates import are_digits, first_fall, first_other_zone, read_dates
from rnnjax.data import DataError, read_text

# Far beyond what is measured, and small enough that squares and their sums are finite.
_GREATEST = 1e100
# What a cell says where its row is no step, but one reckoned from others; in small letters.
_TOTALS = frozenset(
    ("total", "totals", "grand total", "subtotal", "subtotals", "sum", "average", "mean")
)


class Table(NamedTuple):
    """What stands in a file with a header line.

    Attributes:
        path: of the file.
        header: the names of the columns.
        rows: the texts of each row, as many as there are names.
        places: the line that each row ends on, counted from 1.
    """

    path: Path
    header: list[str]
    rows: list[list[str]]
    places: list[int]

    def column(self, name: str) -> list[str]:
        """The texts of a column."""
        place = self.header.index(name)
        return [row[place] for row in self.rows]

    def place(self, row: int) -> str:
        """Where a row stands, for a message."""
        return f"{self.path}, row {self.places[row]}"


def read_table(path: Path) -> Table:
    """The names in the header line, and the rows behind it; empty lines are passed over.

    Raises:
        DataError: the file is no text, has no header line, a name twice or a row of another
            width.
    """
    reader = csv.reader(io.StringIO(read_text(path)), strict=True)
    try:
        lines = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path} must be a CSV file with a header line, got {error}") from None
    header = [name.strip() for name in lines[0][1]] if lines else []
    _check_header(path, header)
    table = Table(path, header, [row for _, row in lines[1:]], [line for line, _ in lines[1:]])
    for number, row in enumerate(table.rows):
        if len(row) != len(header):
            columns = how_many(len(header), "column")
            raise DataError(
                f"{table.place(number)}: must have {columns} as the header line, got {len(row)}; "
                "columns are divided by commas, decimals by points"
            )
    return table


def read_steps(path: Path, named: Sequence[str] = ()) -> Table:
    """A table whose rows are steps, one after the other, the oldest first.

    Args:
        path: of the file.
        named: columns that were asked for, whose numbers say nothing about the order of rows.

    Raises:
        DataError: as of `read_table`, or there is a column of dates that do not rise, or a row of
            totals; or, without dates, one that counts the rows backwards, and none that counts them
            forwards.
    """
    table = read_table(path)
    others = [name for name in table.header if name not in named]
    dated = [name for name in others if _check_dates(table, name)]
    for name in others:
        _check_totals(table, name)
    if not dated and len(table.header) > 1:
        _check_counts(table, others)
    return table


def _check_header(path: Path, header: Sequence[str]) -> None:
    if header and all(math.isfinite(read_number(name)) for name in header):
        raise DataError(f"{path} must begin with a line of names, got the numbers {listed(header)}")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path} must have columns of different names, got {twice[0]!r:.60} twice")
    if len(header) == 1 and (found := re.search(r"[;\t|]", header[0])):
        raise DataError(
            f"{path} must have commas between its columns, got {found[0]!r} in {header[0]!r:.60}"
        )


def _check_dates(table: Table, name: str) -> bool:
    """Whether it is a column of dates, which rise in one of the ways to read them."""
    texts = table.column(name)
    ways = read_dates(texts)
    for dates in ways:
        if None in dates:
            row = dates.index(None)
            raise DataError(
                f"{table.place(row)}: {name} must be a date as in the other rows, got "
                f"{texts[row]!r:.40}"
            )
        if (row := first_other_zone(dates)) is not None:
            raise DataError(
                f"{table.place(row)}: {name} must have a time zone in all rows or in none, got "
                f"{texts[row]!r:.40} after {texts[row - 1]!r:.40}"
            )
    falls = [first_fall(dates) for dates in ways]
    if not ways or None in falls:
        return bool(ways)
    row = max(row for row in falls if row is not None)
    twice = texts[row - 1].strip() == texts[row].strip()
    hint = ": a file has a row for each date, a column for each series" if twice else ""
    raise DataError(
        f"{table.place(row)}: {name} must be later than in the row before, "
        f"{texts[row - 1]!r:.40}, got {texts[row]!r:.40}{hint}"
    )


def _check_totals(table: Table, name: str) -> None:
    """Refuse a row of totals; a column that says so of all rows tells of what all of them are."""
    cells = [text.strip(" \t:").lower() for text in table.column(name)]
    row = next((row for row, cell in enumerate(cells) if cell in _TOTALS), None)
    if row is not None and not _TOTALS.issuperset(cells):
        raise DataError(
            f"{table.place(row)}: {name} must not name a total, as each row is read as a step, got "
            f"{table.column(name)[row]!r:.40}: leave the row out"
        )


def _check_counts(table: Table, names: Sequence[str]) -> None:
    """Refuse rows that are numbered backwards, as from the newest year to the oldest."""
    # Few columns rise or fall even in three rows: only those are read to their ends.
    begins = {name: _numbers(table.column(name)[:3]) for name in names}
    counting = [
        name
        for name, numbers in begins.items()
        if _is_one_way(numbers) and _counts(_numbers(table.column(name)))
    ]
    falling = [name for name in counting if begins[name][1] < begins[name][0]]
    if falling and len(falling) == len(counting):
        first, second = table.column(falling[0])[:2]
        raise DataError(
            f"{table.place(1)}: {falling[0]} must not count backwards, as the oldest row is the "
            f"first, got {second!r:.40} after {first!r:.40}: turn the rows around, or leave the "
            "column out if it counts down to something"
        )


def number_columns(
    table: Table, required: Sequence[str] = (), *, may_begin_late: bool = False
) -> dict[str, np.ndarray]:
    """The columns of numbers by their names; a note says which others are left out.

    Left out are columns of dates, those of which nothing is a number, and those that count the
    rows, as years or seconds do, unless they are ``required`` or there is nothing else. A column
    counts the rows where it rises, or falls, at each of them, and at least nine in ten of its steps
    are the usual one to 1 %: so may numbers with gaps, or that are rounded.

    Raises:
        DataError: there are none, or one has a gap among its numbers; names the row.
    """
    found = {
        name: number_column(table, name, may_begin_late=may_begin_late)
        for name in table.header
        if name in required or _has_numbers(table.column(name))
    }
    counting = [name for name in found if name not in required and _counts(found[name])]
    if len(found) - len(counting) > sum(name in found for name in required):
        for name in counting:
            del found[name]
    if not found:
        raise DataError(
            f"{table.path} must have a column of numbers, got {listed(table.header) or 'none'}"
        )
    return found


def _has_numbers(texts: Sequence[str]) -> bool:
    return any(map(_is_meant, texts)) and not are_digits(texts)


def left_out(table: Table, used: Sequence[str]) -> str | None:
    """The note that says which columns are not read; None if all are."""
    others = [name or "(without a name)" for name in table.header if name not in used]
    if not others:
        return None
    return f"note: left out, as dates, without numbers or counting the rows: {listed(others)}"


def read_as_series(used: Mapping[str, np.ndarray], required: Sequence[str] = ()) -> str | None:
    """The note that says which of several columns may tell the time all the same; None if none.

    Args:
        used: the columns of numbers that are read, by their names.
        required: names of those that were asked for.
    """
    others = {name: numbers for name, numbers in used.items() if name not in required}
    found = [name or "(without a name)" for name in others if _is_one_way(others[name])]
    if len(others) < 2 or not found:
        return None
    return (
        f"note: rises or falls at every row, and is read as a series: {listed(found)}; leave the "
        "column out of the file if it tells the time"
    )


def _counts(numbers: np.ndarray) -> bool:
    """Whether the numbers rise, or fall, at every row, nearly always by the same step."""
    if not _is_one_way(numbers):
        return False
    steps = np.diff(numbers)
    usual = np.median(steps)
    return bool(np.mean(np.abs(steps - usual) <= 0.01 * abs(usual)) >= 0.9)


def _is_one_way(numbers: np.ndarray) -> bool:
    """Whether three or more numbers rise, or fall, at every row."""
    steps = np.diff(numbers)
    return len(steps) > 1 and bool(np.all(steps > 0) or np.all(steps < 0))


def number_column(table: Table, name: str, *, may_begin_late: bool = False) -> np.ndarray:
    """A column of numbers, without the empty cells above the first one if it ``may_begin_late``.

    Raises:
        DataError: one is none, or is missing; names the row.
    """
    texts = table.column(name)
    first = 0
    if may_begin_late:
        first = next((row for row, text in enumerate(texts) if text.strip()), 0)
        texts = texts[first:]
    numbers = _numbers(texts)
    bad = np.flatnonzero(np.isnan(numbers))
    if len(bad):
        place = table.place(first + bad[0])
        if may_begin_late and not any(text.strip() for text in texts[bad[0] :]):
            raise DataError(
                f"{place}: {name} must have numbers up to the last row, got none from here on: "
                "a series that ends sooner needs a file of its own"
            )
        raise DataError(f"{place}: {name} must be {wanted(texts[bad[0]])}")
    return numbers


def _numbers(texts: Sequence[str]) -> np.ndarray:
    return np.array([read_number(text) for text in texts], float)


def read_number(text: str) -> float:
    """A number that can be reckoned with as it stands there; else NaN, and `wanted` says why.

    Example:
        >>> read_number("-1.5e3"), read_number("1,5"), read_number("9007199254740993")
        (-1500.0, nan, nan)
    """
    number = _float(text)
    return number if abs(number) <= _GREATEST and not _is_rounded(text, number) else math.nan


def _float(text: str) -> float:
    try:
        return float(text) if "_" not in text else math.nan  # 1_000 is a number in Python alone
    except ValueError:
        return math.nan


def _is_meant(text: str) -> bool:
    """Whether it is a number, or would be one without its commas, of decimals or of thousands."""
    return not math.isnan(_float(text.replace(",", "")))


def _is_rounded(text: str, number: float) -> bool:
    """Whether a whole number is another one as a float, which has 53 bits: an identifier, say."""
    digits = text.strip().removeprefix("-").removeprefix("+")
    return abs(number) >= 2**53 and digits.isdecimal() and abs(number) != int(digits)


def wanted(text: str) -> str:
    """What a number must be, and what came instead.

    Example:
        >>> wanted("n/a")
        "a finite number, got 'n/a'"
        >>> wanted("1,5")
        "a finite number, got '1,5': decimals have a point, thousands no mark"
        >>> wanted("9007199254740993")
        "a number that 53 bits hold, got '9007199254740993'"
    """
    number, kind = _float(text), "a finite number"
    if math.isfinite(number):
        rounded = _is_rounded(text, number)
        kind = "a number that 53 bits hold" if rounded else f"at most {_GREATEST:g} in size"
    hint = ""
    if not text.strip():
        hint = ": fill gaps first, as from the values around them"
    elif _is_meant(text) and math.isnan(number):
        hint = ": decimals have a point, thousands no mark"
    return f"{kind}, got {text!r:.60}{hint}"


def listed(names: Sequence[str]) -> str:
    """Names for a message, which stays readable however many and long they are."""
    shown = ", ".join(name[:40] for name in names[:10])
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"
