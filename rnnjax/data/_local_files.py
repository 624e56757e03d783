"""Finding the files of a data set in the user's folder."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from rnnjax.data.errors import DataError


def data_folder(data_dir: str | os.PathLike[str] | None) -> Path | None:
    """The folder of local data sets.

    Args:
        data_dir: the folder; the environment variable RNNJAX_DATA names it where this is None.

    Returns:
        The folder; None where neither is given.

    Raises:
        DataError: there is no such folder.
    """
    given = data_dir if data_dir is not None else os.environ.get("RNNJAX_DATA")
    if not given:
        return None
    folder = Path(given)
    if not folder.is_dir():
        name = "the variable RNNJAX_DATA" if data_dir is None else "data_dir (--data-dir)"
        raise DataError(f"{name} must be a folder, got {folder}")
    return folder


def subfolder(data_dir: Path | None, name: str, layout: str) -> Path:
    """The folder of a data set by name; where there is none, says which files belong there."""
    if data_dir is None or not (data_dir / name).is_dir():
        raise DataError(f"{name} needs local files. {put_in(layout, name)}")
    return data_dir / name


def find_file(folder: Path, stem: str, suffixes: Sequence[str]) -> Path:
    """The one file of the folder with this stem, which may be a pattern."""
    found = sorted(path for suffix in suffixes for path in folder.glob(stem + suffix))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise DataError(f"{folder} must have one file {stem}{{{','.join(suffixes)}}}, got {names}")
    return found[0]


def put_in(layout: str, name: str = "") -> str:
    """Advice for a message: which files belong where."""
    folder = f"DATA_DIR/{name}" if name else "DATA_DIR"
    given = "as --data-dir, data_dir= or the variable RNNJAX_DATA"
    return f"Put {layout} in {folder}, and give DATA_DIR {given}"


def files_sha256(*paths: Path) -> str:
    """The hash of the files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()
