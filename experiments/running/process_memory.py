"""How much memory this process holds, and how fast that grows."""

from __future__ import annotations

import math
import os
import subprocess  # nosec B404: it runs ps, and no shell
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

MEGABYTE = 1_000_000
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class Memory(NamedTuple):
    """Bytes of this process that lie in main memory: now, and when they were most."""

    resident: int
    peak: int


def process_memory() -> Memory:
    """Read what the system knows of this process, without a further package.

    Linux says both in /proc/self/status. Elsewhere ``ps`` knows what is resident and
    ``getrusage`` the peak; on Linux the latter would not do, as a process that was forked from a
    large one begins with the peak of that.

    Raises:
        OSError: the system, as Windows, has none of these.
    """
    if _STATUS.exists():
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return Memory(*(1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM")))
    try:
        import resource
    except ImportError:
        raise OSError(
            f"the system must be Linux or another Unix to measure memory, got {sys.platform}"
        ) from None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Memory(_resident_by_ps(), peak if sys.platform == "darwin" else 1024 * peak)


def forget_peak() -> None:
    """Have the peak begin again at what is resident now, so that it is that of what follows.

    Linux can do so. Elsewhere the peak stays that of all the process has done, compiling too.
    """
    if _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text("5")  # the code for the peak, see "man 5 proc_pid_clear_refs"


def device_memory(device: Any) -> int | None:
    """Bytes that a device has, those of the machine for a CPU; None where nobody says.

    Example:
        >>> import jax
        >>> device_memory(jax.devices()[0]) > 100 * MEGABYTE
        True
    """
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if device.platform != "cpu" or not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _resident_by_ps() -> int:
    command = ["ps", "-o", "rss=", "-p", str(os.getpid())]
    done = subprocess.run(command, capture_output=True, check=True, text=True)  # nosec B603
    return 1024 * int(done.stdout)


class Slope(NamedTuple):
    """Of a straight line through points, with its standard error."""

    value: float
    error: float


def least_squares_slope(x: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Slope:
    r"""The one slope of lines through groups of points, each group at a level of its own.

    .. math:: b = \frac{\sum (x - \bar x)(y - \bar y)}{\sum (x - \bar x)^2}, \qquad
        s_b^2 = \frac{\sum r^2 / (n - g - 1)}{\sum (x - \bar x)^2}

    with the means those of a point's group, and r what is left of y. The error takes the r for
    independent; memory comes in jumps and stays, so for it the true error is larger.

    Args:
        x: n numbers.
        y: as many.
        groups: the group of each; by default all are in one.

    Raises:
        ValueError: there are fewer points than g + 2, or those of each group lie one above the
            other.

    Example:
        >>> least_squares_slope([0, 1, 2, 3], [1, 3, 5, 7])
        Slope(value=2.0, error=0.0)
        >>> least_squares_slope([0, 1, 2, 3], [1, 3, 95, 97], groups=[0, 0, 1, 1])
        Slope(value=2.0, error=0.0)
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    names, member = np.unique(
        np.zeros(len(x)) if groups is None else np.asarray(groups), return_inverse=True
    )
    free = len(x) - len(names) - 1
    if x.ndim != 1 or not x.shape == y.shape == member.shape or free < 1:
        raise ValueError(f"x and y must be {len(names) + 2} points or more, got {x} and {y}")
    x, y = (values - _means(values, member) for values in (x, y))
    spread = x @ x
    if spread == 0:
        raise ValueError("x must have two values in a group at least, got one in each")
    value = (x @ y) / spread
    rest = y - value * x
    return Slope(float(value), math.sqrt((rest @ rest) / free / spread))


def _means(values: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Of the group to which each value belongs."""
    return (np.bincount(member, values) / np.bincount(member))[member]
