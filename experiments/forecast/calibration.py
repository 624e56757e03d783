"""Bands made wider or narrower until they hold on windows that the network did not learn from.

References:
    Romano, Patterson and Candes, "Conformalized quantile regression", NeurIPS 2019.
"""

from __future__ import annotations

import math

import numpy as np

from experiments.forecast.baselines import scale_of
from experiments.forecast.series import Window

HELD = 0.8  # the share that a band is to hold


def band_shift(quantiles: np.ndarray, window: Window, held: float = HELD) -> float:
    """By how many spreads of the past both ends of a band must move out to hold such a share.

    It is below 0 where the band is too wide. How far each value lies beyond the nearer end, within
    the band below 0, is ordered; the one below which there is the share of them, and of one value
    more that may lie anywhere, is taken. Where there are too few futures for that, it is 0.

    Args:
        quantiles: [M, h, 3], the ends of the band first and last.
        window: what came there.
        held: the share.
    """
    if disjoint_futures(window) < least_futures(held):
        return 0.0
    _, spread = scale_of(window.past, window.unit)
    beyond = np.maximum(quantiles[..., 0] - window.future, window.future - quantiles[..., 2])
    ordered = np.sort((beyond / spread).ravel())
    return float(ordered[math.ceil((len(ordered) + 1) * held) - 1])


def disjoint_futures(window: Window) -> int:
    """How many windows have futures that do not overlap: those that do tell the same twice."""
    _, counts = np.unique(window.series, return_counts=True)
    return int(np.sum(1 + (counts - 1) // window.future.shape[1]))


def least_futures(held: float = HELD) -> int:
    """Of fewer, even the farthest is not far enough to hold the share of what comes next.

    Example:
        >>> least_futures(0.8), least_futures(0.9)
        (4, 9)
    """
    return math.ceil(held / (1 - held) - 1e-9)


def shifted(quantiles: np.ndarray, window: Window, shift: float) -> np.ndarray:
    """Quantiles [M, h, 3] with both ends moved out; a band that shrinks ends at its median."""
    _, spread = scale_of(window.past, window.unit)
    low, median, high = np.moveaxis(quantiles, -1, 0)
    ends = np.minimum(low - shift * spread, median), np.maximum(high + shift * spread, median)
    return np.stack([ends[0], median, ends[1]], axis=-1)
