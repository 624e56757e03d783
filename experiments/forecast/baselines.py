"""Forecasts that take no network, and how wrong a forecast is."""

from __future__ import annotations

import numpy as np

from experiments.forecast.series import Window


def last_value(window: Window, season: int) -> np.ndarray:
    """The last value for all steps [M, h]."""
    return np.repeat(window.past[:, -1:], window.future.shape[1], axis=1)


def seasonal_naive(window: Window, season: int) -> np.ndarray:
    """The value one season before each step, or more of them where the horizon is longer."""
    steps = np.arange(window.future.shape[1]) % season
    return window.past[:, window.past.shape[1] - season + steps]


# The least scale, as a share of what the series usually does in a season: a past that stood still
# says nothing of how far it can go.
_LEAST_SPREAD = 0.1


def scale_of(past: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each past [M, W] and mean distance from it, at least a tenth of the unit; [M, 1]."""
    mean = past.mean(axis=1, keepdims=True)
    spread = np.abs(past - mean).mean(axis=1, keepdims=True)
    return mean, np.maximum(spread, _LEAST_SPREAD * unit[:, None])


def linear_autoregression(train: Window, window: Window) -> np.ndarray:
    """Every step as a linear function of the scaled past, by least squares with a little ridge."""

    def inputs(window: Window) -> np.ndarray:
        mean, spread = scale_of(window.past, window.unit)
        return np.concatenate([(window.past - mean) / spread, np.ones_like(mean)], axis=1)

    mean, spread = scale_of(train.past, train.unit)
    x, y = inputs(train), (train.future - mean) / spread
    weights = np.linalg.solve(x.T @ x + 1e-3 * len(x) * np.eye(x.shape[1]), x.T @ y)
    mean, spread = scale_of(window.past, window.unit)
    return inputs(window) @ weights * spread + mean


def mase(forecast: np.ndarray, window: Window) -> float:
    """The mean absolute scaled error: 1 is as wrong as a seasonal naive forecast was in training.

    References:
        Hyndman and Koehler, "Another look at measures of forecast accuracy", International Journal
        of Forecasting 22 (2006).
    """
    return float((np.abs(forecast - window.future) / window.unit[:, None]).mean())


def coverage(low: np.ndarray, high: np.ndarray, window: Window) -> float:
    """The share of what came that lies within the band."""
    return float(((low <= window.future) & (window.future <= high)).mean())
