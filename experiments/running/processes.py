"""A run in several processes: how they find one another, and which of them speaks.

All of them read the same data in the same order and do the same steps, each on its devices. What is
said and written is said and written by the first: the others print nothing, and leave their
files in a folder that is deleted.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from experiments.running.agreement import Agreement
from experiments.running.failures import Failures
from experiments.running.run_folder import usual_folder
from rnnjax._processes import Messages
from rnnjax.data import DataError

# Machines of a job do not start at once; JAX itself waits as long.
_SECONDS_TO_REACH = 300


@dataclass(frozen=True)
class Launch:
    """Train in several processes."""

    distributed: bool = False
    """Train in all processes of the job: start the same command in each of them. SLURM, Kubernetes,
    Open MPI and Cloud TPU tell who they are; elsewhere the three options below do."""
    coordinator: str | None = None
    """HOST:PORT of the first process, at which all others find it; any free port serves."""
    processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is, from 0; the first one prints and writes."""
    heartbeat: int = 100
    """When a process has not been heard of for so many seconds, all others end."""

    @contextlib.contextmanager
    def joined(self, failures: Failures) -> Iterator[None]:
        """One process of all, its output silenced in all but the first.

        Raises:
            DataError: it is not said which processes there are, or not all of it, or the first one
                cannot be reached.
        """
        if self.distributed or self._told != (None, None, None):
            self._join()
        with contextlib.ExitStack() as stack:
            # Whoever started this process, as Ray does, may have joined it to the others.
            if jax.distributed.is_initialized() and not is_first():
                stack.enter_context(silent())
            with failures.told():
                yield
        # Whoever is done first waits here for as long as it takes the others: at its end JAX would
        # give them up after the heartbeat, and end them all.
        Agreement().largest(0, now=True)

    @property
    def _told(self) -> tuple[str | None, int | None, int | None]:
        return self.coordinator, self.processes, self.process_id

    def _join(self) -> None:
        if None in self._told and self._told != (None, None, None):
            told = ", ".join(str(value) for value in self._told if value is not None)
            raise DataError(
                f"--coordinator, --processes and --process-id must be given together, got {told}"
            )
        if self.heartbeat < 1:
            raise DataError(f"--heartbeat must be a whole number from 1 up, got {self.heartbeat}")
        if self.coordinator is not None and self.process_id != 0:
            _wait_for(self.coordinator)
        try:
            jax.distributed.initialize(
                *self._told,
                heartbeat_timeout_seconds=self.heartbeat,
                # A process that ends by an error of its own waits no longer for the others.
                shutdown_timeout_seconds=self.heartbeat,
            )
        except ValueError as error:
            raise DataError(
                "--distributed must find the processes of a job (SLURM, Kubernetes, Open MPI), or "
                f"be told them by --coordinator, --processes and --process-id, got: {error}"
            ) from None


def _wait_for(coordinator: str) -> None:
    """Until somebody listens there: JAX aborts a process that cannot reach the first one."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise DataError(f"--coordinator must be HOST:PORT, got {coordinator}")
    give_up = time.monotonic() + _SECONDS_TO_REACH
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            if time.monotonic() > give_up:
                raise DataError(
                    f"--coordinator must be reached within {_SECONDS_TO_REACH} seconds, got "
                    f"{coordinator}: {error}"
                ) from None
            time.sleep(0.1)
        else:
            return


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Nothing that goes to standard output is seen.

    In a worker of Ray ``print`` is one of its own, which logs what it is given wherever standard
    output leads: so that has nothing to print, either.
    """
    whole = builtins.print

    def elsewhere_only(*values: Any, file: Any = None, **options: Any) -> None:
        if file not in (None, sys.stdout):
            whole(*values, file=file, **options)

    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        builtins.print = elsewhere_only
        try:
            yield
        finally:
            builtins.print = whole


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """Where this process writes what the first one writes to ``folder``."""
    if is_first():
        yield folder
        return
    with tempfile.TemporaryDirectory() as elsewhere:
        yield Path(elsewhere, "run")


def chosen_folder(out: Path | None, name: str) -> Path:
    """The folder of a run: ``out``, or the usual one of the first process.

    In the others the name may be another one, as files of one's own may be called otherwise on
    other machines, and the time may be.

    Example:
        >>> chosen_folder(Path("runs/mine"), "tag-words").name
        'mine'
    """
    usual = Messages().from_first("folder", lambda: str(usual_folder(name)))
    return Path(usual) if out is None else out
