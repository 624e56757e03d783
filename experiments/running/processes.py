"""A run in several processes: how they find one another, and agree on when to stop and to save.

All of them read the same data in the same order and do the same steps, each on its devices. What is
said and written is said and written by the first: the others print nothing, and leave their
files in a folder that is deleted.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rnnjax.data import DataError

# An agreement costs as much as a small step where processes talk over a network, so not every step
# has one. It is asked for at one and read at the next, when it has long been reached.
_CALLS_AN_AGREEMENT = 8


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
    def joined(self) -> Iterator[None]:
        """One process of all, its output silenced in all but the first.

        Raises:
            DataError: it is not said which processes there are, or not all of it.
        """
        if self.distributed or self._told != (None, None, None):
            self._join()
        with contextlib.ExitStack() as stack:
            # Whoever started this process, as Ray does, may have joined it to the others.
            if jax.distributed.is_initialized() and not is_first():
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
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


def start_time() -> str:
    """The time of now for the name of a folder, that of the first process in all of them."""
    now = time.strftime("%Y%m%d-%H%M%S")
    if jax.process_count() == 1:
        return now
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return bytes(broadcast_one_to_all(np.frombuffer(now.encode(), np.uint8))).decode()


class Agreement:
    """The largest of a number over all processes, in all of them at the same call.

    All processes call it equally often. In one process it is the number itself.

    Example:
        >>> Agreement().largest(3)
        3
    """

    def __init__(self) -> None:
        self._calls = 0
        self._asked: Any = None

    def largest(self, number: int, *, now: bool = False) -> int:
        """The largest number of one of the last calls, 0 in most.

        Args:
            number: at least 0. It counts at a later call, unless it is 0 by then.
            now: wait for an answer about the numbers of this very call.
        """
        if jax.process_count() == 1:
            return number
        self._calls += 1
        if now:
            return _read(_ask(number))
        if self._calls % _CALLS_AN_AGREEMENT:
            return 0
        found = 0 if self._asked is None else _read(self._asked)
        self._asked = _ask(number)
        return found


def _ask(number: int) -> jax.Array:
    """The largest number of all processes, on its way."""
    first: dict[int, Any] = {}
    for device in jax.devices():
        first.setdefault(device.process_index, device)
    devices = [first[process] for process in sorted(first)]
    mesh = jax.make_mesh((len(devices),), ("processes",), (AxisType.Auto,), devices=devices)
    own = jax.device_put(np.array([number], np.int32), first[jax.process_index()])
    rows = NamedSharding(mesh, PartitionSpec("processes"))
    numbers = jax.make_array_from_single_device_arrays((len(devices),), rows, [own])
    return _largest(numbers)


@jax.jit
def _largest(numbers: jax.Array) -> jax.Array:
    return numbers.max()


def _read(answer: jax.Array) -> int:
    return int(jax.device_get(answer))
