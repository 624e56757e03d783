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


def scale_of(past: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and mean distance from it of each past, [M, 1] both."""
    mean = past.mean(axis=1, keepdims=True)
    spread = np.abs(past - mean).mean(axis=1, keepdims=True)
    return mean, np.where(spread > 0, spread, 1.0)


def linear_autoregression(train: Window, window: Window) -> np.ndarray:
    """Every step as a linear function of the scaled past, by least squares with a little ridge."""

    def inputs(past: np.ndarray) -> np.ndarray:
        mean, spread = scale_of(past)
        return np.concatenate([(past - mean) / spread, np.ones_like(mean)], axis=1)

    mean, spread = scale_of(train.past)
    x, y = inputs(train.past), (train.future - mean) / spread
    weights = np.linalg.solve(x.T @ x + 1e-3 * len(x) * np.eye(x.shape[1]), x.T @ y)
    mean, spread = scale_of(window.past)
    return inputs(window.past) @ weights * spread + mean


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
