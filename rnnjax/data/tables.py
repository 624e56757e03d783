"""Columns out of CSV, TSV, JSON-lines and Parquet files, with the place of every row."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rnnjax.data._text_files import decoded, require_file
from rnnjax.data.errors import DataError, rows_error

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet")

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class Table(NamedTuple):
    """Some columns of a file; row ``i`` stands at ``places[i]``, counted from 1."""

    columns: dict[str, list[Any]]
    places: Sequence[int]
    unit: str  # what the places count: "line" or "row"

    def place(self, index: int) -> str:
        """Where row ``index`` stands, for a message."""
        return f"{self.unit} {self.places[index]}"


def read_table(path: Path, wanted: Sequence[str], header: Sequence[str] | None = None) -> Table:
    """Read the wanted columns of a file.

    Args:
        path: a file whose name ends in one of ``SUFFIXES``.
        wanted: the names of the columns.
        header: the names of all columns of a CSV or TSV file that has no header line.

    Returns:
        The columns, not yet checked for what their values are.

    Raises:
        DataError: for a missing, empty or damaged file, a missing column, a row of another width.
    """
    suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise DataError(f"{path}: expected a name that ends in one of {', '.join(SUFFIXES)}")
    require_file(path)
    kind = suffix.removesuffix(".gz")
    if header is not None and kind not in _DELIMITERS:
        raise DataError(f"{path}: expected a CSV or TSV file where column names are given")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: expected rows, got an empty file")
    if kind == ".parquet":
        table = _read_parquet(path, wanted)
    elif kind == ".jsonl":
        table = _read_jsonl(path, wanted)
    else:
        table = _read_csv(path, wanted, header, _DELIMITERS[kind])
    if not table.places:
        raise DataError(f"{path}: expected rows, got none")
    return table


def _read_csv(
    path: Path, wanted: Sequence[str], header: Sequence[str] | None, delimiter: str
) -> Table:
    records = _csv_records(path, delimiter)
    if header is None:
        header = records.pop(0)[1] if records else []
    _require_columns(path, wanted, header)
    bad = [f"line {n}: {len(fields)}" for n, fields in records if len(fields) != len(header)]
    if bad:
        raise rows_error(path, f"{len(header)} fields a row ({listed(header)})", bad)
    indices = {name: header.index(name) for name in wanted}
    columns = {name: [fields[i] for _, fields in records] for name, i in indices.items()}
    return Table(columns, [line for line, _ in records], "line")


def _csv_records(path: Path, delimiter: str) -> list[tuple[int, list[str]]]:
    lines = io.StringIO(decoded(path), newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    records, start = [], 1
    # The default limit of 131,072 characters a field is below a long review or article.
    previous = csv.field_size_limit(2**31 - 1)
    try:
        for fields in reader:
            if fields:
                records.append((start, fields))
            start = reader.line_num + 1
    except csv.Error as error:
        found = f"line {start}: {error} (a quote left open or misplaced?)"
        raise rows_error(path, "well-formed quoted fields", [found]) from None
    finally:
        csv.field_size_limit(previous)
    return records


def _read_jsonl(path: Path, wanted: Sequence[str]) -> Table:
    # Not str.splitlines: a JSON string may hold U+2028 and its kind unescaped.
    lines = enumerate(decoded(path).split("\n"), 1)
    rows = [(number, _parse_object(line)) for number, line in lines if line.strip()]
    bad = [f"line {number}: {row}" for number, row in rows if isinstance(row, str)]
    if bad:
        raise rows_error(path, "a JSON object on every line", bad)
    bad = [
        f"line {number}: {listed(row) or 'none'}"
        for number, row in rows
        if any(name not in row for name in wanted)
    ]
    if bad:
        raise rows_error(path, f"the fields {', '.join(wanted)} on every line", bad)
    columns = {name: [row[name] for _, row in rows] for name in wanted}
    return Table(columns, [number for number, _ in rows], "line")


def _parse_object(line: str) -> Any:
    """The object on the line, or a string that says what is there instead."""
    try:
        value = json.loads(line, object_pairs_hook=_unique)
    except DataError as error:
        return str(error)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    return value if isinstance(value, dict) else f"a {type(value).__name__}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these fields; JSON's own reader keeps the last of two and loses the first."""
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"the field {twice!r:.60} twice")
    return row


def listed(names: Iterable[str]) -> str:
    """Names for a message, which stays readable however many and long they are."""
    names = list(names)
    shown = ", ".join(name if len(name) <= 60 else f"{name[:60]}..." for name in names[:20])
    return shown if len(names) <= 20 else f"{shown}, and {len(names) - 20} more"


def _read_parquet(path: Path, wanted: Sequence[str]) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(f"{path}: a Parquet file needs the package pyarrow") from None
    try:
        with pq.ParquetFile(path) as file:
            _require_columns(path, wanted, file.schema_arrow.names)
            table = file.read(columns=list(wanted))
        columns = {name: table[name].to_pylist() for name in wanted}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a whole Parquet file, got {error}") from None
    return Table(columns, range(1, table.num_rows + 1), "row")


def _require_columns(path: Path, wanted: Sequence[str], found: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(f"{path}: expected the columns {missing}, got [{_quoted(found)}]")
    if len(set(found)) != len(found):
        raise DataError(f"{path}: expected each column once, got [{_quoted(found)}]")


def _quoted(names: Iterable[str]) -> str:
    return listed(map(repr, names))
