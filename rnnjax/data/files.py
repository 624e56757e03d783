"""Labelled texts out of a user's own file, checked row by row."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from rnnjax.data.errors import DataError, rows_error
from rnnjax.data.examples import Examples
from rnnjax.data.tables import Table, listed, read_table


def read_examples(
    path: str | os.PathLike[str],
    *,
    text: str | Sequence[str] = "text",
    label: str = "label",
    header: Sequence[str] | None = None,
    first_label: int = 0,
    num_classes: int | None = None,
    label_names: Sequence[str] = (),
) -> Examples:
    """Read labelled texts from a .csv, .tsv, .jsonl or .parquet file.

    Every file but Parquet may be gzipped (.csv.gz and so on). Text is UTF-8; CSV and TSV are
    quoted the same way. Empty texts and NUL characters are kept.

    A column of integers holds class ids. A column of words holds class names, which become ids in
    alphabetical order or, if ``label_names`` is given, in its order.

    Args:
        path: the file.
        text: the column of the text, or several columns to be joined by a space.
        label: the column of the class.
        header: the names of all columns of a CSV or TSV file that has no header line.
        first_label: the id in the file of class 0.
        num_classes: if given, the number of classes that the file may have.
        label_names: if given, the names of all classes.

    Returns:
        The texts, their class ids from 0 up, and the class names if there are any.

    Raises:
        DataError: naming the file, what was expected, and the first three bad rows; or an argument
            that is no name, no list of names, or names a class twice.

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
    if label_names:
        num_classes = len(label_names)
    _check_label_names(label_names)
    parts = _columns("text", text)
    table = read_table(path, [*parts, label], header)
    texts = [" ".join(row) for row in zip(*(_texts(path, table, p) for p in parts), strict=True)]
    values = [_parse_label(value) for value in table.columns[label]]
    if any(isinstance(value, int) for value in values):
        labels = _class_ids(path, table, label, values, first_label, num_classes)
        return Examples(texts, labels, tuple(label_names))
    names = _class_names(path, table, label, values, label_names, num_classes)
    ids = {name: index for index, name in enumerate(names)}
    return Examples(texts, [ids[str(value)] for value in values], names)


def _columns(argument: str, names: object) -> list[str]:
    found = [names] if isinstance(names, str) else names
    if not isinstance(found, list | tuple) or not found:
        raise DataError(f"{argument}: expected the name of a column or several, got {names!r}")
    for name in found:
        if not isinstance(name, str):
            raise DataError(f"{argument}: expected the name of a column, got {name!r}")
    return list(found)


def _check_label_names(names: object) -> None:
    if not isinstance(names, list | tuple) or len(set(names)) != len(names):
        raise DataError(f"label_names: expected a list of different names, got {names!r}")


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
    try:
        value.encode()
    except UnicodeEncodeError:
        return "half of a surrogate pair"
    return None


def _parse_label(value: object) -> int | str | None:
    """An integer, a class name, or None for what is neither."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < 10**18 else None
    if not isinstance(value, str):
        return None
    value = value.strip()
    if re.fullmatch(r"[+-]?[0-9]{1,18}", value):
        return int(value)
    return None if _is_number(value) else value or None


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value)) or value.lower() == "nan"
    except ValueError:
        return False


def _class_ids(
    path: Path,
    table: Table,
    column: str,
    values: Sequence[int | str | None],
    first: int,
    num_classes: int | None,
) -> list[int]:
    end = math.inf if num_classes is None else first + num_classes
    expected = f"integers from {first} up" if end == math.inf else f"integers in [{first}, {end})"
    ids, bad = [], []
    for i, value in enumerate(values):
        if isinstance(value, int) and first <= value < end:
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
    values: Sequence[int | str | None],
    known: Sequence[str],
    num_classes: int | None,
) -> tuple[str, ...]:
    bad = [
        _shown(table, column, i)
        for i, value in enumerate(values)
        if not isinstance(value, str) or (known and value not in known)
    ]
    if bad:
        expected = f"one of {listed(known)}" if known else "an integer or a class name"
        raise rows_error(path, f"{expected} in column {column!r}", bad)
    names = tuple(known) or tuple(sorted({str(value) for value in values}))
    if num_classes is not None and len(names) > num_classes:
        found = f"{len(names)} names ({listed(names[:5])} ...)"
        raise DataError(f"{path}: expected {num_classes} classes in column {column!r}, got {found}")
    return names


def _shown(table: Table, column: str, index: int) -> str:
    value = repr(table.columns[column][index])
    return f"{table.place(index)}: {value if len(value) <= 60 else value[:60] + '...'}"
