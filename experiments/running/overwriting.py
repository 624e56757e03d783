"""Files that a program writes, held against those that it reads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rnnjax.data import DataError


def refuse_overwriting(written: Iterable[Path], read: Iterable[Path | None], option: str) -> None:
    """Refuse to write over a file that is read, which would be lost.

    Args:
        written: the files to be written.
        read: the files that are read; None stands for one that was not given.
        option: that names where files are written, as ``"--out"``.

    Raises:
        DataError: two of them are one file, also by a link.
    """
    sources = [path for path in read if path is not None and path.exists()]
    for path in written:
        if path.exists() and any(path.samefile(source) for source in sources):
            raise DataError(
                f"{option} must not lead to a file that is read, as it would be lost, got {path}"
            )
