"""Labelled texts out of a user's own file, checked row by row."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rnnjax._checks import is_unicode
from rnnjax.data.errors import DataError, check_count, check_integer, rows_error
from rnnjax.data.examples import Examples
from rnnjax.data.tables import Table, listed, read_table

_LARGEST_ID = 10**18  # in size; whole numbers up to here fit in 64 bits


def read_examples(
    path: str | os.PathLike[str],
    *,
    text: str | Sequence[str] = "text",
    label: str = "label",
    header: Sequence[str] | None = None,
    separator: str | None = None,
    quoting: bool = True,
    numbers: Literal["ids", "names"] = "ids",
    first_label: int = 0,
    num_classes: int | None = None,
    label_names: Sequence[str] = (),
) -> Examples:
    """Read labelled texts from a .csv, .tsv, .jsonl or .parquet file.

    Every file but Parquet may be gzipped (.csv.gz and so on). Text is UTF-8; CSV and TSV are
    quoted the same way. Empty texts and NUL characters are kept.

    A column of words holds class names, which become ids in alphabetical order. A column of whole
    numbers (1, or 1.0) holds class ids; with ``numbers="names"`` it holds names, which become ids
    in the order of the numbers: labels 1 to 5 are the classes "1" to "5".

    ``label_names`` gives the names of all classes in the order of their ids. Where every label of
    the file is one of them, it is looked up there, numbers and codes such as 0101 too. Without
    them a name is no number of another kind, such as 0.5 or what Python reads as one, 1_000.

    Args:
        path: the file.
        text: the column of the text, or several columns to be joined by a space.
        label: the column of the class.
        header: the names of all columns of a CSV or TSV file that has no header line.
        separator: the one character between the fields of a CSV or TSV file; by default "," and a
            tab.
        quoting: False takes quotes in a CSV or TSV file as part of the text, so that every line
            is a row.
        numbers: whether whole numbers are class "ids" or class "names".
        first_label: the id in the file of class 0, where whole numbers are ids.
        num_classes: if given, the number of classes that the file may have.
        label_names: if given, the names of all classes.

    Returns:
        The texts, their class ids from 0 up, and the class names if there are any.

    Raises:
        DataError: naming the file, what it must have, and the first three bad rows, among them
            rows that a stray quote would join to one; or an argument that is no name, no list of
            names, names a class twice, or contradicts another.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "films.csv")
        ...     _ = path.write_text('label,text\\ngood,"warm, funny"\\nbad,too long\\n')
        ...     read_examples(path)
        Examples(texts=['warm, funny', 'too long'], labels=[1, 0], label_names=('bad', 'good'))
    """
    path = Path(path)
    _check_label_names(label_names)
    if numbers not in ("ids", "names"):
        raise DataError(f"numbers must be 'ids' or 'names', got {numbers!r}")
    first_label = check_integer("first_label", first_label)
    if numbers == "names" and first_label != 0:
        raise DataError(f"first_label must be 0 with numbers='names', got {first_label}")
    num_classes = _class_count(num_classes, label_names)
    parts = _columns("text", text)
    _columns("label", [label])
    header = None if header is None else _columns("header", header)
    table = read_table(
        path, [*parts, label], header, separator=separator, quoting=quoting, labels=label
    )
    texts = [" ".join(row) for row in zip(*(_texts(path, table, p) for p in parts), strict=True)]
    known = set(label_names)
    names = [_parse_name(value, known) for value in table.columns[label]]
    if not set(names) <= known:
        values = [_parse_number(name) for name in names]
        if numbers == "ids" and any(value is not None for value in values):
            labels = _class_ids(path, table, label, values, first_label, num_classes)
            return Examples(texts, labels, tuple(label_names))
    classes = _class_names(path, table, label, names, label_names, num_classes)
    ids = {name: index for index, name in enumerate(classes)}
    return Examples(texts, [ids[str(name)] for name in names], classes)


def _columns(argument: str, names: object) -> list[str]:
    found = [names] if isinstance(names, str) else names
    if not isinstance(found, list | tuple) or not found:
        raise DataError(f"{argument} must be the name of a column or several, got {names!r}")
    for name in found:
        if not isinstance(name, str):
            raise DataError(f"{argument} must be the name of a column, got {name!r}")
    return list(found)


def _class_count(num_classes: int | None, label_names: Sequence[str]) -> int | None:
    """How many classes there are, where that is known."""
    if num_classes is None:
        return len(label_names) or None
    count = check_count("num_classes", num_classes)
    if label_names and count != len(label_names):
        expected = f"the number of label_names, {len(label_names)},"
        raise DataError(f"num_classes must be {expected} or None, got {count}")
    return count


def _check_label_names(names: Any) -> None:
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if not is_list or len(set(names)) != len(names):
        raise DataError(f"label_names must be a list of different names, got {names!r}")


def _texts(path: Path, table: Table, column: str) -> list[str]:
    values = table.columns[column]
    bad = [
        f"{table.place(i)}: {problem}"
        for i, value in enumerate(values)
        if (problem := _text_problem(value))
    ]
    if bad:
        raise rows_error(path, f"text in column {column!r}", bad)
    return values


def _text_problem(value: object) -> str | None:
    if value is None:
        return "null"
    if not isinstance(value, str):
        return f"{type(value).__name__} {str(value)[:40]!r}"
    return None if is_unicode(value) else "half of a surrogate pair"


def _parse_name(value: object, known: set[str]) -> str | None:
    """What a label says, as a word: a whole number as such; None for what names no class."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return str(value) if abs(value) < _LARGEST_ID else None
    if isinstance(value, float):
        if math.isfinite(value) and str(value) in known:
            return str(value)
        return str(int(value)) if value.is_integer() and abs(value) < _LARGEST_ID else None
    if not isinstance(value, str) or not is_unicode(value):
        return None
    value = value.strip()
    if value in known:
        return value
    if re.fullmatch(r"[+-]?[0-9]{1,18}", value):
        return value
    if whole := re.fullmatch(r"([+-]?[0-9]{1,18})\.0*", value):
        return whole[1]
    return None if _is_number(value) else value or None


def _parse_number(name: str | None) -> int | None:
    return int(name) if name is not None and re.fullmatch(r"[+-]?[0-9]{1,18}", name) else None


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value)) or value.lower() == "nan"
    except ValueError:
        return False


def _class_ids(
    path: Path,
    table: Table,
    column: str,
    values: Sequence[int | None],
    first: int,
    num_classes: int | None,
) -> list[int]:
    end = math.inf if num_classes is None else first + num_classes
    expected = f"integers from {first} up" if end == math.inf else f"integers in [{first}, {end})"
    ids, bad = [], []
    for i, value in enumerate(values):
        if value is not None and first <= value < end:
            ids.append(value - first)
        else:
            bad.append(_shown(table, column, i))
    if bad:
        raise rows_error(path, f"{expected} in column {column!r}", bad)
    return ids


def _class_names(
    path: Path,
    table: Table,
    column: str,
    values: Sequence[str | None],
    known: Sequence[str],
    num_classes: int | None,
) -> tuple[str, ...]:
    bad = [
        _shown(table, column, i)
        for i, value in enumerate(values)
        if value is None or (known and value not in known)
    ]
    if bad:
        name = "a class name that is no number (label_names= has any)"
        expected = f"one of {listed(known)}" if known else f"an integer in digits 0 to 9 or {name}"
        raise rows_error(path, f"{expected} in column {column!r}", bad)
    if not known:
        _refuse_mixed(path, table, column, values)
    names = tuple(known) or tuple(sorted({str(value) for value in values}, key=_place))
    if num_classes is not None and len(names) > num_classes:
        found = f"{len(names)} names ({listed(names[:5])} ...)"
        raise DataError(f"{path} must have {num_classes} classes in column {column!r}, got {found}")
    return names


def _refuse_mixed(path: Path, table: Table, column: str, names: Sequence[str | None]) -> None:
    words = [i for i, name in enumerate(names) if _parse_number(name) is None]
    if 0 < len(words) < len(names):
        bad = [_shown(table, column, i) for i in words]
        expected = f"class names in every row of column {column!r}, or numbers in every row"
        raise rows_error(path, expected, bad)


def _place(name: str) -> tuple[float, str]:
    """Numbers stand in their own order, words in that of the alphabet."""
    number = _parse_number(name)
    return (math.inf if number is None else number, name)


def _shown(table: Table, column: str, index: int) -> str:
    value = repr(table.columns[column][index])
    return f"{table.place(index)}: {value if len(value) <= 60 else value[:60] + '...'}"
