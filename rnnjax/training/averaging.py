"""A running average of the parameters, as the last link of an Optax chain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

if TYPE_CHECKING:
    import optax


class ParameterAverage(NamedTuple):
    """State of :func:`average_parameters`."""

    steps: Array  # int32
    average: Any


def average_parameters(decay: float) -> optax.GradientTransformation:
    r"""An exponential average of the parameters, kept beside them; the last link of a chain.

    .. math:: a_t = d_t a_{t-1} + (1 - d_t) \theta_t, \qquad d_t = \min(d, (1 + t) / (10 + t))

    The average is kept in at least float32, whatever the parameters are: in 16 bits a small step
    towards the parameters would be rounded away. Updates pass through unchanged. Read the average
    with :func:`averaged`; it usually generalises better than the last parameters, most of all
    when batches are small.

    Args:
        decay: d in [0, 1); the average looks back about 1 / (1 - d) steps.

    Raises:
        ValueError: the decay is outside [0, 1).

    Example:
        >>> import optax
        >>> optimizer = optax.chain(optax.sgd(1.0), average_parameters(0.5))
        >>> params = jnp.array(1.0)
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(jnp.array(2.0), state, params)
        >>> round(float(averaged(state)), 3)  # d = 2/11: 2/11 * 1 + 9/11 * (1 - 2)
        -0.636

    References:
        Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM
        Journal on Control and Optimization 30 (1992).
    """
    import optax

    if not 0 <= decay < 1:
        raise ValueError(f"decay must be a number in [0, 1), got {decay!r}")

    def init(params: Any) -> ParameterAverage:
        return ParameterAverage(jnp.zeros((), jnp.int32), jax.tree.map(_raised, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        steps = state.steps + 1
        weight = jnp.minimum(decay, (1 + steps) / (10 + steps))
        new = optax.apply_updates(params, updates)
        average = jax.tree.map(
            lambda old, leaf: old + (1 - weight).astype(old.dtype) * (leaf.astype(old.dtype) - old),
            state.average,
            new,
        )
        return updates, ParameterAverage(steps, average)

    return optax.GradientTransformation(init, update)


def _raised(leaf: Any) -> Array:
    array = jnp.asarray(leaf)
    return array.astype(np.promote_types(array.dtype, np.float32))


def averaged(opt_state: Any) -> Any:
    """The average that :func:`average_parameters` keeps in the state of an optimizer.

    Returns:
        A tree like the parameters, of at least float32.

    Raises:
        ValueError: there is none in it, or more than one.
    """
    is_average = lambda node: isinstance(node, ParameterAverage)  # noqa: E731
    nodes = jax.tree.leaves(opt_state, is_leaf=is_average)
    found = [node.average for node in nodes if is_average(node)]
    if len(found) != 1:
        raise ValueError(
            f"expected one average_parameters in the optimizer, found {len(found)} in its state"
        )
    return found[0]
