"""What a save writes: copies of arrays, of those that are divided each process its own parts."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rnnjax import _divided_arrays as divided_arrays
from rnnjax.checkpoint._sealing import digest, sync
from rnnjax.checkpoint.errors import CheckpointError

DIVIDED = "divided"
_ROOM = 1 << 20  # bytes on the disk for what is not arrays


class Copies(NamedTuple):
    """What a save writes, as it was when it was asked for."""

    whole: dict[str, np.ndarray]  # in the first process alone, which writes them
    parts: list[list[divided_arrays.Part]]  # of each divided array those that this process writes
    forms: list[divided_arrays.Form]  # of each divided array what all processes know of it


def require_room(folder: Path, copies: Copies) -> None:
    """Ends a save that cannot fit before Orbax does, which would say so in pages of tracebacks."""
    arrays = (*copies.whole.values(), *copies.forms)
    needed = sum(array.nbytes for array in arrays) + _ROOM
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(f"{folder} must have {needed:,} bytes of space left, got {free:,}")


def write_parts(temporary: Path, arrays: list[list[divided_arrays.Part]]) -> dict[str, str]:
    """Writes the parts that this process has of the divided arrays; the hashes of their files.

    Raises:
        CheckpointError: the folder is not there.
    """
    if not temporary.is_dir():
        raise CheckpointError(f"{temporary} must be on a disk that all processes see, got none")
    sums = {}
    for number, parts in enumerate(arrays):
        folder = temporary / DIVIDED / str(number)
        for path in divided_arrays.write(folder, parts):
            sums[path.relative_to(temporary).as_posix()] = digest(path)
            for written in (path, *itertools.takewhile(folder.__ne__, path.parents)):
                sync(written)
    return sums
