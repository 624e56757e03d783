"""When to stop training, and which parameters to keep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from rnnjax._checks import check_size, describe, python_scalar
from rnnjax._native import jit
from rnnjax.training.updates import all_finite

_all_finite = jit(all_finite)  # one program for all leaves


@dataclass(frozen=True)
class EarlyStopping:
    """Remembers the best epoch, its parameters, and how long ago it was.

    Immutable, as the rest of the training state: `update` gives the next one.

    Args:
        metric: the name of the figure to watch.
        mode: whether larger ("max") or smaller ("min") is better.
        patience: stop after so many epochs in a row without a better value.

    Attributes:
        best_value: the best value of the figure so far; None before there is one.
        best_epoch: the epoch that had it.
        best_params: a copy of the parameters that had it. Not looked at by ``==``.
        epochs_since_best: how many epochs came after it, or at all, where there is no best one.

    Raises:
        ValueError: another mode, or a patience below 1.

    Example:
        >>> stopping = EarlyStopping("loss", mode="min", patience=2)
        >>> for epoch, loss in enumerate([0.9, 0.5, 0.7, 0.6]):
        ...     stopping = stopping.update(epoch, {"loss": loss}, params=jnp.array(loss))
        >>> stopping.should_stop, stopping.best_epoch, stopping.best_value
        (True, 1, 0.5)
    """

    metric: str
    mode: Literal["max", "min"]
    patience: int
    best_value: float | None = None
    best_epoch: int | None = None
    best_params: Any = field(default=None, compare=False)
    epochs_since_best: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("max", "min"):
            raise ValueError(f'mode must be "max" or "min", got {self.mode!r}')
        check_size("patience", self.patience)

    def update(self, epoch: int, metrics: Mapping[str, float], params: Any) -> EarlyStopping:
        """What is known after one more epoch.

        NaN is no improvement on anything, not even on nothing; nor are parameters of which a
        number is NaN or infinite, whatever their metrics.

        Args:
            epoch: its number, to be found again in `best_epoch`.
            metrics: plain numbers by name, as `rnnjax.metrics.compute` gives them.
            params: the parameters that had them. Copied if they are the best so far, since
                the next training step would delete the originals.

        Raises:
            ValueError: the watched metric is not among them, or is no number.
        """
        if self.metric not in metrics:
            names = ", ".join(sorted(metrics)) or "none"
            raise ValueError(f"metrics must have {self.metric!r}, to stop early on, got {names}")
        value = python_scalar("metrics", metrics[self.metric])
        if not isinstance(value, int | float):
            hint = ": compute(metrics) gives numbers" if isinstance(value, tuple) else ""
            raise ValueError(
                f"metrics[{self.metric!r}] must be a number, got {describe(value)}{hint}"
            )
        value = float(value)
        if not self._improves(value) or not bool(_all_finite(params)):
            return replace(self, epochs_since_best=self.epochs_since_best + 1)
        copied = jax.tree.map(jnp.copy, params)
        return replace(
            self, best_value=value, best_epoch=epoch, best_params=copied, epochs_since_best=0
        )

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.epochs_since_best >= self.patience

    def _improves(self, value: float) -> bool:
        if self.best_value is None:
            return not math.isnan(value)
        return value > self.best_value if self.mode == "max" else value < self.best_value
