"""Whether a data set lies in the folder of --data-dir or of the variable RNNJAX_DATA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.running.setting_checks import refuse_unread
from rnnjax.data import data_folder
from rnnjax.data.sources import PACKAGED


def lies_elsewhere(dataset: str) -> bool:
    """Whether texts come out of a package or a file of the user's, and not out of the folder."""
    return dataset in PACKAGED or Path(dataset).is_file()


def check_folder(settings: Any) -> None:
    """Refuse a ``data_dir`` in which the ``dataset`` does not lie, or that is none.

    Raises:
        DataError: naming it.
    """
    is_read = not lies_elsewhere(settings.dataset)
    refuse_unread(settings, "with a --dataset that lies in it", is_read, "data_dir")
    if is_read:
        data_folder(settings.data_dir)
