"""The folder of local data sets, as --data-dir or the variable RNNJAX_DATA names it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from experiments.running.setting_checks import refuse_unread
from rnnjax.data import DataError

_PACKAGED = ("rotten_tomatoes", "imdb_train_reviews")


def find_folder(data_dir: Path | None) -> Path | None:
    """The folder that was given, or that of the variable; None without either.

    Raises:
        DataError: there is no such folder; says which of the two named it.
    """
    told = os.environ.get("RNNJAX_DATA")
    folder = data_dir or (Path(told) if told else None)
    if folder is not None and not folder.is_dir():
        name = "--data-dir" if data_dir else "RNNJAX_DATA"
        raise DataError(f"{name} must be a folder, got {folder}")
    return folder


def lies_elsewhere(dataset: str) -> bool:
    """Whether texts come out of a package or a file of the user's, and not out of the folder."""
    return dataset in _PACKAGED or Path(dataset).is_file()


def check_folder(settings: Any) -> None:
    """Refuse a ``data_dir`` in which the ``dataset`` does not lie, or that is none.

    Raises:
        DataError: naming it.
    """
    is_read = not lies_elsewhere(settings.dataset)
    refuse_unread(settings, "with a --dataset that lies in it", is_read, "data_dir")
    if is_read:
        find_folder(settings.data_dir)
