"""What the folder of a checkpoint is called, as 000007-step-1200; .tmp ends one not whole yet."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

NAME = re.compile(r"([0-9]+)-step-([0-9]+)(\.tmp)?")


def is_checkpoint(path: Path) -> bool:
    """Whether a folder has the name of one that is whole."""
    match = NAME.fullmatch(path.name)
    whole = match is not None and match[3] is None
    return whole and path.is_dir() and not path.is_symlink()


def number_of(path: Path) -> int:
    """Which one it is, in the order of saving."""
    return int(path.name.partition("-")[0])


def step_of(path: Path) -> int:
    """The step that it was saved at."""
    return int(path.name.rpartition("-")[2])


def remove(path: Path) -> None:
    """Deletes a folder; of a link, the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
