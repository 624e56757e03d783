"""Files that are whole at any time: who is cut off while writing leaves what was there."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# A save that is still going on has written within the last day, by any two clocks.
_LEFT_BEHIND_SECONDS = 24 * 3600


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` once it is whole and on the disk.

    Any number of threads and processes may write one path at a time: the last to end stays.
    """
    _delete_left_behind(path)
    # The number of the process would be the same in two threads, and in two containers that write
    # to one disk. Nor can somebody put a link at a name like this to have another file written;
    # "x" writes through none in any case.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            # Without it a power cut could keep the new name and lose the bytes.
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename == str(temporary):  # a name that the caller has never heard of
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):  # which would hide what went wrong
            temporary.unlink(missing_ok=True)


def _delete_left_behind(path: Path) -> None:
    """Deletes what processes that died while they wrote ``path`` have left, or it would pile up."""
    token = "[0-9a-f]" * 16
    with contextlib.suppress(OSError):  # others may do the same at this moment
        for left in path.parent.glob(f".{glob.escape(path.name)}.{token}.tmp"):
            if time.time() - left.lstat().st_mtime > _LEFT_BEHIND_SECONDS:
                left.unlink(missing_ok=True)
