"""How several processes agree on when to stop and to save."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

# An agreement costs as much as a small step where processes talk over a network, so not every step
# has one. It is asked for at one and read at the next, when it has long been reached.
_CALLS_AN_AGREEMENT = 8


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
