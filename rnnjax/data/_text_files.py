"""From bytes to text and lines: the one place that knows marks, line ends and encodings.

Every reader of text in the package comes through here, so all follow the same rules. Text is
UTF-8. One byte-order mark at the very beginning is dropped. A line ends at a line feed, a carriage
return or both, and at none of Unicode's other separators; the last line may lack its end. A file
whose name ends in .gz is unpacked.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, cast

from rnnjax.data.errors import DataError, rows_error

_LARGEST = 8 << 30  # bytes that a .gz may unpack to
_MARK = "\ufeff"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_GZIP_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error)


def read_text(path: str | os.PathLike[str]) -> str:
    """The whole text of a file, every line end as a line feed.

    Args:
        path: a file in UTF-8, with or without a byte-order mark, gzipped if it ends in .gz.

    Returns:
        The text, as it stands in the file but for the mark and the line ends.

    Raises:
        DataError: the file is missing, empty, no UTF-8, or holds NUL characters as no text does;
            names the file and the first bad lines.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "book.txt")
        ...     _ = path.write_bytes(b"\\xef\\xbb\\xbfOnce upon\\r\\na time.")
        ...     read_text(path)
        'Once upon\\na time.'
    """
    path = Path(path)
    text = decoded(path)
    if not text:
        raise DataError(f"{path} must have text, got an empty file")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise rows_error(path, "text", [f"line {line}: a NUL character"])
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(source: str | os.PathLike[str] | IO[str] | IO[bytes]) -> Iterator[str]:
    """The lines of a file or of an open stream, one after the other, without their ends.

    No more than a piece of the source is in memory, and a line of standard input is given as soon
    as it is there.

    Args:
        source: a path, as for ``read_text``; or an open stream such as ``sys.stdin``, which is
            read as UTF-8 whatever the locale says and is left open. It is read ahead of the lines
            that are given, so nothing else should read from it afterwards.

    Returns:
        An iterator of lines; of a stream of bytes that was partly read, the rest.

    Raises:
        DataError: where a line is reached that is not UTF-8, or a file that is missing or damaged;
            for a stream of text from which something was read before, and for a source that is
            neither a path nor a stream.

    Example:
        >>> list(read_lines(io.BytesIO(b"\\xef\\xbb\\xbfone\\r\\ntwo\\n\\nlast")))
        ['one', 'two', '', 'last']
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        with opened(path) as file:
            yield from _checked(raw_lines(file), path)
        return
    if not hasattr(source, "readable"):
        raise DataError(f"source must be a path or an open stream, got {source!r:.60}")
    name = Path(f"<{str(getattr(source, 'name', 'stream')).strip('<>')}>")
    if isinstance(source, io.TextIOWrapper):
        _refuse_partly_read(source, name)
    stream = getattr(source, "buffer", source)
    if isinstance(stream, io.TextIOBase):
        yield from _split_lines(cast(IO[str], stream))
    else:
        yield from _checked(raw_lines(cast(BinaryIO, stream)), name)


def _refuse_partly_read(stream: io.TextIOWrapper, name: Path) -> None:
    """A stream of text keeps what it has read ahead, which its bytes then lack."""
    try:
        # Changes nothing; once something was read, Python refuses even that.
        stream.reconfigure(encoding=stream.encoding, errors=stream.errors)
    except io.UnsupportedOperation:
        expected = "a stream of bytes, or one of text from which nothing was read"
        raise DataError(f"{name} must be {expected}, got one that was partly read") from None


def raw_lines(file: BinaryIO, longest: int = -1) -> Iterator[str]:
    """The lines of an open file of bytes, without their ends.

    What is not UTF-8 is kept as half surrogates, which no proper text holds.

    Args:
        file: the file, left open.
        longest: of a longer line, so many characters and the rest are lines of their own.
    """
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline=None)
    try:
        line = text.readline(longest).removeprefix(_MARK)
        while line:
            yield line.removesuffix("\n")
            line = text.readline(longest)
    finally:
        with contextlib.suppress(ValueError):  # closed by another
            text.detach()  # or the end of this reader would close the file


def decoded(path: Path) -> str:
    """The text of a file with its line ends as they are, as quoted fields need them."""
    content = read_bytes(path)
    try:
        return content.decode("utf-8").removeprefix(_MARK)
    except UnicodeDecodeError:
        lines = enumerate(content.split(b"\n"), 1)
        bad = [f"line {n}: {problem}" for n, line in lines if (problem := _not_utf8(line))]
        raise rows_error(path, _wanted(content), bad) from None


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked if its name ends in .gz."""
    require_file(path)
    if path.suffix.lower() != ".gz":
        return path.read_bytes()
    with opened(path) as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise DataError(f"{path} must have at most {_LARGEST:,} bytes once unpacked, got more")
    return content


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file opened for its bytes, unpacked if its name ends in .gz."""
    require_file(path)
    if path.suffix.lower() != ".gz":
        with path.open("rb") as file:
            yield file
        return
    try:
        with gzip.open(path, "rb") as file:
            yield cast(BinaryIO, file)
    except (OSError, *_GZIP_ERRORS) as error:
        raise DataError(f"{path} must be a whole gzip file, got {error}") from None


def require_file(path: Path) -> None:
    """Raise a ``DataError`` where there is no such file."""
    if path.is_dir():
        raise DataError(f"{path} must be a file, got a folder")
    if not path.is_file():
        raise DataError(f"{path} must be a file, got none")


def _split_lines(stream: IO[str]) -> Iterator[str]:
    mark = _MARK
    for line in stream:
        # A stream of text may have been opened with any idea of line ends.
        yield from line.removeprefix(mark).removesuffix("\n").removesuffix("\r").split("\r")
        mark = ""


def _checked(lines: Iterator[str], name: Path) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.isascii():
            raw = line.encode("utf-8", "surrogateescape")
            if problem := _not_utf8(raw):
                raise rows_error(name, _wanted(raw), [f"line {number}: {problem}"])
        yield line


def _wanted(content: bytes) -> str:
    """What a text must be, and of one from Windows what it is."""
    utf16 = content.startswith(_UTF16_MARKS)
    return "UTF-8 text (this has a mark of UTF-16)" if utf16 else "UTF-8 text"


def _not_utf8(line: bytes) -> str | None:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
    return None
