"""A folder for one process at a time."""

from __future__ import annotations

import contextlib
import os
import weakref
from pathlib import Path

from rnnjax.checkpoint.errors import CheckpointError


class FolderLock:
    """Keeps every other process out of a folder until closed, or until this process has died.

    The operating system holds the lock, in the file "lock": it ends with the process, whatever
    ended that, and no process that it has forked holds it on. Other programs are not kept out, only
    other locks.

    Args:
        folder: a folder that exists.

    Raises:
        CheckpointError: another lock is held on the folder; says by which process. Or the file is
            a link: the process id would be written over the file it leads to.
        OSError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with FolderLock(folder):
        ...         FolderLock(folder)
        Traceback (most recent call last):
            ...
        rnnjax.checkpoint.errors.CheckpointError: ... must be free, got it in use by process ...
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        path = Path(folder, "lock")
        if path.is_symlink():
            raise CheckpointError(f"{path} must be a file, got a link")
        self._file = open(path, "a+", encoding="utf-8", opener=_open_no_link)  # noqa: SIM115
        try:
            _lock(self._file.fileno())
        except (BlockingIOError, PermissionError):
            self._file.seek(0)
            holder = self._file.read().strip() or "?"
            self._file.close()
            raise CheckpointError(
                f"{os.fspath(folder)} must be free, got it in use by process {holder}"
            ) from None
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()
        self._process = os.getpid()
        _held.add(self)

    def close(self) -> None:
        """Lets others in."""
        # A process that was just forked may hold the file for a moment longer.
        if os.getpid() == self._process and not self._file.closed:
            _unlock(self._file.fileno())
        self._file.close()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# A forked process has the open file, too, and with it the lock, until it closes its own.
_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _close_in_fork() -> None:
    for lock in _held:
        lock.close()


if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=_close_in_fork)


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)  # Windows has no such flag


def _unlock(descriptor: int) -> None:
    """Give up the lock in all processes that have the file; on Windows that is to close it."""
    with contextlib.suppress(ModuleNotFoundError):
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _lock(descriptor: int) -> None:
    """Lock an open file until it is closed or the process ends.

    Raises:
        OSError: another process has it.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # on Windows, where a range of bytes is locked instead
        import msvcrt

        # Far behind what is written: Windows lets nobody read a byte that is locked.
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
