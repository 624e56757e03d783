"""One epoch of training steps: what every loop that only trains has in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from experiments.running.prefetching import prefetched

State = TypeVar("State")


def take_steps(
    step: Callable[[State, Any], tuple[State, Any]],
    state: State,
    batches: Iterable[Any],
    ahead: int = 0,
) -> tuple[State, list[Any]]:
    """A step for each batch, without waiting for the device.

    Args:
        step: takes (state, batch) and gives (state, metrics).
        state: where to begin.
        batches: what to train on.
        ahead: batches made early in a thread.

    Returns:
        The last state, and the metrics of every step.

    Example:
        >>> take_steps(lambda total, x: (total + x, x * x), 0, [1, 2, 3], ahead=2)
        (6, [1, 4, 9])
    """
    found = []
    for batch in prefetched(batches, ahead):
        state, metrics = step(state, batch)
        found.append(metrics)
    return state, found
