"""Channels brought to one scale before they are rounded to the 32 bits of a network."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# In standard deviations from the mean. What is farther off is brought to this: the square of a much
# larger number would be infinite, and the network's outputs NaN.
_FARTHEST = 1e4


class Scale(NamedTuple):
    """Mean and standard deviation of each channel in training, [D] both."""

    mean: list[float]
    spread: list[float]

    @classmethod
    def of(cls, steps: np.ndarray) -> Scale:
        """That of some steps [T, D]; a channel that keeps to one value has a spread of 1.

        Example:
            >>> Scale.of(np.array([[0.1, 1.0], [0.1, 3.0], [0.1, 5.0]]))[1]
            [1.0, 1.632993161855452]
        """
        steps = np.asarray(steps, float)
        reach = np.ptp(steps, axis=0)
        # In units of a power of 2, which rounds nothing: squares of small numbers would be 0.
        unit = np.ldexp(1.0, np.frexp(reach)[1])
        deviation = np.maximum(unit * (steps / unit).std(axis=0), np.finfo(float).tiny)
        # Of equal values the deviation is a rounding error, and not always 0.
        spread = np.where(reach > 0, deviation, 1.0)
        return cls(steps.mean(axis=0).tolist(), spread.tolist())

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Values [T, D] with mean 0 and standard deviation 1 in training, as float32."""
        scaled = (np.asarray(values, float) - self.mean) / self.spread
        return np.clip(scaled, -_FARTHEST, _FARTHEST).astype(np.float32)
