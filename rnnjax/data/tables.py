"""Columns out of CSV, TSV, JSON-lines and Parquet files, with the place of every row."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rnnjax.data._text_files import decoded, require_file
from rnnjax.data.errors import DataError, check_flag, rows_error

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet")

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_COLUMNS = "text= and label= name others, --text-column and --label-column of experiments.classify"
_NO_QUOTING = "quoting=False, or --no-quoting of experiments.classify, takes quotes as text"


class Table(NamedTuple):
    """Some columns of a file; row ``i`` stands at ``places[i]``, counted from 1."""

    columns: dict[str, list[Any]]
    places: Sequence[int]
    unit: str  # what the places count: "line" or "row"

    def place(self, index: int) -> str:
        """Where row ``index`` stands, for a message."""
        return f"{self.unit} {self.places[index]}"


def read_table(
    path: Path,
    wanted: Sequence[str],
    header: Sequence[str] | None = None,
    *,
    separator: str | None = None,
    quoting: bool = True,
    labels: str | None = None,
) -> Table:
    """Read the wanted columns of a file.

    Args:
        path: a file whose name ends in one of ``SUFFIXES``.
        wanted: the names of the columns.
        header: the names of all columns of a CSV or TSV file that has no header line.
        separator: what stands between the fields of a CSV or TSV file, if not what its name says.
        quoting: whether quotes in a CSV or TSV file enclose a field.
        labels: the column of few values, by which rows that a stray quote has joined are known.

    Returns:
        The columns, not yet checked for what their values are.

    Raises:
        DataError: for a missing, empty or damaged file, a missing column, a row of another width.
    """
    suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise DataError(
            f"{path} must have one of the suffixes {', '.join(SUFFIXES)}, got {path.name!r}"
        )
    require_file(path)
    quoting = check_flag("quoting", quoting)
    kind = suffix.removesuffix(".gz")
    if kind not in _SEPARATORS:
        _refuse_delimited_only(path, header=header, separator=separator, quoting=quoting)
    if path.stat().st_size == 0:
        raise DataError(f"{path} must have rows, got an empty file")
    if kind == ".parquet":
        table = _read_parquet(path, wanted)
    elif kind == ".jsonl":
        table = _read_jsonl(path, wanted)
    else:
        delimited = _Delimited(path, _checked_separator(separator, _SEPARATORS[kind]), quoting)
        table = _read_delimited(delimited, wanted, header, labels)
    if not table.places:
        raise DataError(f"{path} must have rows, got none")
    return table


def _refuse_delimited_only(
    path: Path, header: Sequence[str] | None, separator: str | None, quoting: bool
) -> None:
    for argument, given in (
        ("column names are", header is not None),
        ("a separator is", separator is not None),
        ("quoting is", not quoting),
    ):
        if given:
            raise DataError(f"{path} must be a CSV or TSV file where {argument} given, got another")


def _checked_separator(given: str | None, usual: str) -> str:
    if given is None:
        return usual
    if not isinstance(given, str) or len(given) != 1 or given in '"\r\n':
        raise DataError(f"separator must be one character, no quote or line end, got {given!r}")
    return given


class _Delimited(NamedTuple):
    """A CSV or TSV file and how to read it."""

    path: Path
    separator: str
    quoting: bool


class _Record(NamedTuple):
    fields: list[str]
    line: int  # the first, counted from 1
    end: int  # the line behind the last


def _read_delimited(
    file: _Delimited, wanted: Sequence[str], header: Sequence[str] | None, labels: str | None
) -> Table:
    text = decoded(file.path)
    records = _records(file, text)
    if header is None:
        header = records.pop(0).fields if records else []
    _require_columns(file.path, wanted, header, _separator_hint(file, header))
    bad = [f"line {r.line}: {len(r.fields)}" for r in records if len(r.fields) != len(header)]
    if bad:
        raise rows_error(file.path, f"{len(header)} fields a row ({listed(header)})", bad)
    indices = {name: header.index(name) for name in wanted}
    if labels is not None and file.quoting:
        _refuse_joined_rows(file, text, records, len(header), indices[labels])
    columns = {name: [record.fields[i] for record in records] for name, i in indices.items()}
    return Table(columns, [record.line for record in records], "line")


def _records(file: _Delimited, text: str) -> list[_Record]:
    quoting = csv.QUOTE_MINIMAL if file.quoting else csv.QUOTE_NONE
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=file.separator, quoting=quoting, strict=True)
    records, start = [], 1
    # The default limit of 131,072 characters a field is below a long review or article.
    previous = csv.field_size_limit(2**31 - 1)
    try:
        for fields in reader:
            if fields:
                records.append(_Record(fields, start, reader.line_num + 1))
            start = reader.line_num + 1
    except csv.Error as error:
        first = text.split("\n", 1)[0]
        hint = _separator_hint(file, [first]) if file.separator not in first else ""
        hint = hint or f" (a quote left open or misplaced? {_NO_QUOTING})"
        found = f"line {start}: {error}{hint}"
        raise rows_error(file.path, "well-formed quoted fields", [found]) from None
    finally:
        csv.field_size_limit(previous)
    return records


def _refuse_joined_rows(
    file: _Delimited, text: str, records: Sequence[_Record], width: int, column: int
) -> None:
    """Refuse rows of several lines each of which would be a row, with a label that others have.

    So it looks where a text begins with a stray quote and the next stray one is lines below. A
    quoted text of several lines is refused only if it looks exactly so, which needs a separator
    and something like a label in each of its lines.
    """
    long = [record for record in records if record.end - record.line > 1]
    if not long:
        return
    lines = io.StringIO(text, newline=None).read().split("\n")
    known = {record.fields[column] for record in records}
    numbers = all(map(str.isdecimal, known))

    def is_label(field: str) -> bool:
        # A tab in a text of several lines is so rare that any label will do.
        return field in known or file.separator == "\t" or (numbers and field.isdecimal())

    bad = []
    for record in long:
        rows = [line.split(file.separator) for line in lines[record.line - 1 : record.end - 1]]
        if all(len(row) == width and is_label(row[column].strip('"')) for row in rows):
            bad.append(f"lines {record.line} to {record.end - 1} joined by two quotes")
    if bad:
        raise rows_error(file.path, f"a row on every line (stray quotes? {_NO_QUOTING})", bad)


def _separator_hint(file: _Delimited, header: Sequence[str]) -> str:
    """What to try where the header is one field with another separator in it."""
    if len(header) != 1:
        return ""
    found = next((s for s in ",\t;|" if s != file.separator and s in header[0]), None)
    if found is None:
        return ""
    option = "--separator of experiments.classify"
    return f" (fields separated by {found!r}? give separator={found!r}, or {option})"


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
        raise rows_error(path, f"the fields {', '.join(wanted)} on every line ({_COLUMNS})", bad)
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
        raise DataError(f"{path} needs the package pyarrow: pip install pyarrow") from None
    try:
        with pq.ParquetFile(path) as file:
            _require_columns(path, wanted, file.schema_arrow.names)
            table = file.read(columns=list(wanted))
        columns = {name: table[name].to_pylist() for name in wanted}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} must be a whole Parquet file, got {error}") from None
    return Table(columns, range(1, table.num_rows + 1), "row")


def _require_columns(
    path: Path, wanted: Sequence[str], found: Sequence[str], hint: str = ""
) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        hint = hint or (f" ({_COLUMNS})" if len(found) > 1 else "")
        raise DataError(f"{path} must have the columns {missing}, got [{_quoted(found)}]{hint}")
    if any(list(found).count(name) > 1 for name in wanted):
        raise DataError(f"{path} must have each wanted column once, got [{_quoted(found)}]")


def _quoted(names: Iterable[str]) -> str:
    return listed(map(repr, names))
