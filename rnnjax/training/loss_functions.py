"""Loss functions, as ``steps.py`` describes them, and the check of what they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rnnjax._checks import check_takes
from rnnjax._numerics import raised
from rnnjax.metrics.means import Mean

# What a loss function gives for metrics: Means or pairs. A step gives a Mean for each.
Metrics = Mapping[str, tuple[Any, Any]]
LossFn = Callable[[Any, Any, Any], tuple[Array, Metrics]]


def checked_loss(loss_fn: LossFn) -> Callable[..., tuple[Array, dict[str, Mean]]]:
    """``loss_fn`` with its result checked; it is traced once a program, so this costs no time."""
    check_takes("loss_fn", loss_fn, "params", "batch", "key")
    return lambda params, batch, key: check_result(loss_fn(params, batch, key))


def check_result(result: Any) -> tuple[Array, dict[str, Mean]]:
    """What a loss function gave, as a scalar and a dict of means.

    Raises:
        ValueError: it is no such thing; says what is not.
    """
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        raise ValueError(
            "loss_fn must return (loss, metrics), metrics a dict of pairs (total, count), "
            f"got {_described(result)}"
        )
    loss = check_loss("the loss of loss_fn", result[0])
    for name, pair in result[1].items():
        if not isinstance(name, str):
            raise ValueError(f"the metrics of loss_fn must have strings for names, got {name!r}")
        is_pair = isinstance(pair, tuple | list) and len(pair) == 2
        is_pair = is_pair and not any(isinstance(part, str | bytes | None) for part in pair)
        if not is_pair or jnp.shape(pair[0]) != jnp.shape(pair[1]):
            raise ValueError(
                f"the metric {name!r} of loss_fn must be a pair (total, count) of one shape, as "
                f"rnnjax.metrics.Mean is, got {_described(pair)}"
            )
    return loss, {name: _as_mean(pair) for name, pair in result[1].items()}


def check_loss(name: str, loss: Any) -> Array:
    """``loss`` as an array, if it is a floating scalar.

    Raises:
        ValueError: it is not; says what came.
    """
    if isinstance(loss, Mean):
        raise ValueError(f"{name} must be a floating scalar, got a Mean: give loss.value")
    if isinstance(loss, bool | int | float | complex):
        loss = jnp.asarray(loss)
    is_array = isinstance(loss, np.ndarray | np.generic | Array)
    if not is_array or jnp.shape(loss) or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        raise ValueError(f"{name} must be a floating scalar, got {_described(loss)}")
    return jnp.asarray(loss)


def _as_mean(pair: Any) -> Mean:
    kind = type(pair) if isinstance(pair, Mean) else Mean
    return kind(*map(_of_32_bits, pair))


def _of_32_bits(figure: Any) -> Array:
    """A total or a count of at least 32 bits, as steps add them up: in 16 bits 256 and 1 are 256.

    Flags are numbers then, too: the sum of two of them would be True.
    """
    array = jnp.asarray(figure)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return raised(array)
    return array if array.dtype.itemsize >= 4 else array.astype(jnp.int32)


def _described(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_described, value))})"
    return jax.typeof(value).str_short() if isinstance(value, Array) else type(value).__name__


def join_metrics(metrics: dict[str, Mean], figures: dict[str, Mean]) -> dict[str, Mean]:
    """The metrics of a loss function, (0, 0) where the step was skipped, and those of the step."""
    for name in figures:
        if name in metrics:
            raise ValueError(f'loss_fn must not give the metric "{name}", got it: the step adds it')
    kept = figures["skipped"][0] == 0
    return {**jax.tree.map(lambda figure: jnp.where(kept, figure, 0), metrics), **figures}
