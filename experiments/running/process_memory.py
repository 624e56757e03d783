"""How much memory this process holds, and how fast that grows."""

from __future__ import annotations

import math
import os
import subprocess  # it runs ps, and no shell  # nosec B404
import sys
from pathlib import Path
from statistics import NormalDist
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
    """Of a straight line through points, with its 95 % confidence limits."""

    value: float
    low: float
    high: float


def median_slope(x: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Slope:
    r"""The one slope of lines through groups of points, each group at a level of its own.

    It is the median of (y_j - y_i) / (x_j - x_i) over all N pairs of points of the same group: what
    grows with every x moves all pairs, and what jumps now and then, as memory does, moves few. The
    limits are the slopes at the ranks

    .. math:: \frac{N \mp 1.96 \, \sigma}{2}, \qquad
        \sigma^2 = \frac{1}{18} \sum_g n_g (n_g - 1) (2 n_g + 5)

    for groups of n_g points whose order in y would be chance without the line.

    Args:
        x: n numbers, different ones within a group.
        y: as many.
        groups: the group of each; by default all are in one.

    Raises:
        ValueError: no two points are in the same group, or two of a group have the same x.

    References:
        Sen, "Estimates of the regression coefficient based on Kendall's tau", JASA 1968.
        Hirsch, Slack and Smith, "Techniques of trend analysis for monthly water quality data",
        Water Resources Research 1982: groups.

    Example:
        >>> median_slope([0, 1, 2, 3], [1, 3, 5, 7])
        Slope(value=2.0, low=2.0, high=2.0)
        >>> median_slope([0, 1, 2, 3], [1, 3, 95, 97], groups=[0, 0, 1, 1])
        Slope(value=2.0, low=2.0, high=2.0)
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    member = np.zeros(len(x)) if groups is None else np.asarray(groups)
    if x.ndim != 1 or not x.shape == y.shape == member.shape:
        raise ValueError(f"x, y and groups must be equally many numbers, got {x}, {y} and {groups}")
    first, second = np.triu_indices(len(x), 1)
    together = member[first] == member[second]
    first, second = first[together], second[together]
    if not len(first) or (x[first] == x[second]).any():
        raise ValueError(f"x must be two or more different numbers in a group, got {x}")
    slopes = np.sort((y[second] - y[first]) / (x[second] - x[first]))
    n = np.unique(member, return_counts=True)[1]
    spread = NormalDist().inv_cdf(0.975) * math.sqrt(np.sum(n * (n - 1) * (2 * n + 5)) / 18)
    low = max(round((len(slopes) - spread) / 2) - 1, 0)
    high = min(round((len(slopes) + spread) / 2), len(slopes) - 1)
    return Slope(float(np.median(slopes)), float(slopes[low]), float(slopes[high]))
