"""Stopping a run from outside, at a moment when nothing is lost."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from experiments.running.agreement import Agreement

Item = TypeVar("Item")


class Interrupted(Exception):  # noqa: N818 (it was asked for)
    """A signal asked the run to stop.

    Attributes:
        exit_code: what a shell expects of a process that ends by this signal: 143 for SIGTERM,
            130 for Ctrl-C.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


@contextlib.contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Notes on what stops a run in which folder it can go on."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        stop.folder = folder  # pyright: ignore[reportAttributeAccessIssue]
        raise


@contextlib.contextmanager
def telling_how_to_go_on(program: str) -> Iterator[None]:
    """Prints of a run that is stopped, if it can go on, by what command."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        folder: Path | None = getattr(stop, "folder", None)
        if folder is not None:
            saved = stop if isinstance(stop, Interrupted) else "stopped at once"
            line = shlex.join([*program.split(), "--out", str(folder), "--resume"])
            print(f"{saved}; go on with:\n  {line}")
        raise


class Interrupts:
    """Notes SIGTERM and Ctrl-C while it is entered, for the run to stop when it may.

    A second Ctrl-C stops at once. In several processes a signal to any of them stops all, after the
    same step, some steps later. Outside the main thread, which alone gets signals, nothing is
    changed.

    Example:
        >>> with Interrupts() as interrupts:
        ...     for item in interrupts.watch("abc"):
        ...         print(item)
        ...         signal.raise_signal(signal.SIGTERM)
        Traceback (most recent call last):
            ...
        experiments.running.interrupts.Interrupted: stopped by SIGTERM
    """

    def __init__(self) -> None:
        self._noted: int | None = None
        self._agreement = Agreement()
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, until a signal has come.

        Raises:
            Interrupted: in place of the next item, or of the end.
        """
        for item in items:
            self._check()
            yield item
        self._check(now=True)

    def _check(self, now: bool = False) -> None:
        stop = self._agreement.largest(self._noted or 0, now=now)
        if stop:
            raise Interrupted(stop)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == self._noted == signal.SIGINT:
            raise KeyboardInterrupt
        self._noted = number
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")
