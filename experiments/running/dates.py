"""Columns of dates, as spreadsheets and data bases write them."""

from __future__ import annotations

import datetime
import functools
import itertools
import re
from collections.abc import Callable, Sequence

Dates = list[datetime.datetime | None]

_MONTH = re.compile(r"\d{4}-\d{2}")
# What stands between day, month and year, and in which order these may be.
_FORMS = (("/", "%Y/%m/%d"), ("/", "%m/%d/%Y"), ("/", "%d/%m/%Y"), (".", "%d.%m.%Y"))
_TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
# Of eight digits only these years are taken for dates.
_YEARS = range(1800, 2201)


def read_dates(texts: Sequence[str]) -> list[Dates]:
    """A column of dates read in every way in which all cells are dates, as 01/02/2024 has two.

    Where there is none, in the way in which nearly all are, with None for the others; at least nine
    in ten are, or all but one of three or more. Empty for what is no column of dates.

    Example:
        >>> [[date.month for date in dates] for dates in read_dates(["01/02/2024", "03/02/2024"])]
        [[1, 3], [2, 2]]
        >>> read_dates(["1.5", "2.5"])
        []
    """
    found = [_nearly_all(texts, read) for read in (_iso, *_MARKED)] + [_digits(texts)]
    ways = [dates for dates in found if dates]
    return [dates for dates in ways if None not in dates] or sorted(
        ways, key=lambda dates: dates.count(None)
    )[:1]


def first_fall(dates: Dates) -> int | None:
    """The first row whose date is not later than that of the row before; None if all are.

    All of them must have a time zone, or none of them.
    """
    for row, (before, date) in enumerate(itertools.pairwise(dates), start=1):
        if before is not None and date is not None and not before < date:
            return row
    return None


def first_other_zone(dates: Dates) -> int | None:
    """The first row whose date has a time zone where that of the row before has none, or the other
    way round, so that neither is the later one; None where all are alike."""
    zoned = [date is not None and date.tzinfo is not None for date in dates]
    return next((row for row in range(1, len(zoned)) if zoned[row] != zoned[row - 1]), None)


def are_digits(texts: Sequence[str]) -> bool:
    """Whether a column that reads as numbers is one of dates such as 20240131."""
    return bool(_digits(texts))


def _nearly_all(texts: Sequence[str], read: Callable[[str], datetime.datetime | None]) -> Dates:
    others = max(1, len(texts) // 10) if len(texts) > 2 else 0
    dates: Dates = []
    for text in texts:
        dates.append(read(text.strip()))
        others -= dates[-1] is None
        if others < 0:
            return []
    return dates


def _iso(text: str) -> datetime.datetime | None:
    if text.isdigit():
        return None  # 2024 is a number, 20240131 may be one
    try:
        return datetime.datetime.fromisoformat(f"{text}-01" if _MONTH.fullmatch(text) else text)
    except ValueError:
        return None


def _marked(text: str, mark: str, form: str) -> datetime.datetime | None:
    if text.count(mark) != 2:
        return None  # soon said of numbers
    for time in _TIMES:
        try:
            return datetime.datetime.strptime(text, form + time)
        except ValueError:
            continue
    return None


_MARKED = [functools.partial(_marked, mark=mark, form=form) for mark, form in _FORMS]


def _digits(texts: Sequence[str]) -> Dates:
    """Dates such as 20240131 if they are some: numbers that are measured are not all dates, and
    rise and fall, where rows in the order of time rise, or fall, throughout."""
    dates: Dates = []
    for text in map(str.strip, texts):
        if len(text) != 8 or not text.isdigit() or int(text[:4]) not in _YEARS:
            return []
        try:
            dates.append(datetime.datetime.strptime(text, "%Y%m%d"))
        except ValueError:
            return []
    falls = first_fall(dates), first_fall(dates[::-1])
    return dates if len(dates) > 2 and None in falls else []
