"""Scores that take no network: how far a step is from what a simple rule expects."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from experiments.running.packages import is_installed

Scorer = Callable[[np.ndarray], np.ndarray]  # scaled values [T, D] -> scores [T]

# How many beats the baselines look back that read a window.
_BEATS = 2


def last_value(values: np.ndarray) -> np.ndarray:
    """The distance to the value before."""
    return _distance(np.diff(values, axis=0, prepend=values[:1]))


def seasonal(values: np.ndarray, season: int) -> np.ndarray:
    """The distance to the value one season before; 0 where there is none."""
    errors = np.zeros_like(values)
    errors[season:] = values[season:] - values[:-season]
    return _distance(errors)


def moving_z(values: np.ndarray, width: int) -> np.ndarray:
    """The distance to the mean of the last steps, in units of their standard deviation."""
    past = _windows(np.concatenate([values[:1], values[:-1]]), width)
    spread = np.maximum(past.std(axis=1), 0.1)
    return _distance((values - past.mean(axis=1)) / spread)


def linear_autoregression(train: Sequence[np.ndarray], width: int) -> Scorer:
    """The distance to a linear function of the last steps, fitted to normal series."""

    def inputs(values: np.ndarray) -> np.ndarray:
        past = _windows(np.concatenate([values[:1], values[:-1]]), width).reshape(len(values), -1)
        return np.concatenate([past, np.ones((len(past), 1))], axis=1)

    x, y = np.concatenate([inputs(values) for values in train]), np.concatenate(list(train))
    weights = np.linalg.solve(x.T @ x + 1e-6 * len(x) * np.eye(x.shape[1]), x.T @ y)
    return lambda values: _distance(values - inputs(values) @ weights)


def isolation_forest(train: Sequence[np.ndarray], width: int, seed: int) -> Scorer:
    """How soon random cuts set the last steps apart from those of normal series."""
    from sklearn.ensemble import IsolationForest

    def inputs(values: np.ndarray) -> np.ndarray:
        return _windows(values, width).reshape(len(values), -1)

    forest = IsolationForest(random_state=seed)
    forest.fit(np.concatenate([inputs(values) for values in train]))
    return lambda values: -forest.score_samples(inputs(values))


def baselines(train: Sequence[np.ndarray], season: int, seed: int) -> dict[str, Scorer]:
    """All of them, by name; the forest of scikit-learn where that is installed."""
    found: dict[str, Scorer] = {
        "last value": last_value,
        "moving z-score": lambda values: moving_z(values, _BEATS * season),
        "seasonal naive": lambda values: seasonal(values, season),
        "linear autoregression": linear_autoregression(train, _BEATS * season),
    }
    if is_installed("sklearn"):
        found["isolation forest"] = isolation_forest(train, season, seed)
    return found


def _distance(errors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(errors).sum(axis=1))


def _windows(values: np.ndarray, width: int) -> np.ndarray:
    """Each step with those before it [T, width, D]; the first value stands in front of all."""
    padded = np.concatenate([np.repeat(values[:1], width - 1, axis=0), values])
    places = np.arange(len(values))[:, None] + np.arange(width)
    return padded[places]
