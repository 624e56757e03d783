"""Whether the weights that a program is to train fit the memory here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from experiments.running.process_memory import device_memory
from rnnjax.data import DataError

# Arrays of the size of all weights in training: the weights, their gradient, two averages of Adam,
# the running average and the best so far.
_COPIES = 6


def require_room(init: Callable[[jax.Array], Any], networks: int = 1) -> None:
    """Refuse a network whose weights alone are too large to be trained here.

    Args:
        init: ``(key) -> weights``; it is not run.
        networks: how many of them are trained at once.

    Raises:
        DataError: saying how much they need.
    """
    shapes = jax.tree.leaves(jax.eval_shape(init, jax.random.key(0)))
    needed = networks * _COPIES * sum(leaf.size * leaf.dtype.itemsize for leaf in shapes)
    there = device_memory(jax.local_devices()[0])
    if there is not None and needed > there:
        raise DataError(
            f"the weights must fit the {there / 1e9:.1f} GB of memory to be trained, got "
            f"{needed / 1e9:.1f} GB with gradient, optimizer and averages: a smaller "
            "--hidden-size, or less of whatever else makes the network large, needs less"
        )
