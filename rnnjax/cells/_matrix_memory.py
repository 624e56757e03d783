"""What cells share whose memory is a matrix, written under keys: many of their steps at once."""

import jax.numpy as jnp
from jax import Array


def product(a: Array, b: Array) -> Array:
    # In full precision, so that chunks of any length, and steps, give the same.
    return jnp.matmul(a, b, precision="highest")


def segments(steps: int, resets: Array | None) -> tuple[Array, Array | None]:
    """Whether step t has step s <= t in its segment, [K, K], and whether a reset came at step t or
    before, [K], None where there are no resets."""
    order = jnp.arange(steps)
    before = order[:, None] >= order[None]
    if resets is None:
        return before, None
    count = jnp.cumsum(resets)
    return before & (count[:, None] == count[None]), count > 0


def decays(shares: Array, log_decay: Array) -> tuple[Array, Array]:
    """The logarithms of what is left at step t of what step s wrote, [K, K], and of the memory that
    the segment began with, [K].

    Each is a sum of its own terms, the logarithms of steps s + 1 to t: as a difference of two sums
    from the beginning it would lose the digits of both.

    Args:
        shares: [K, K], as of ``segments``; elsewhere the result means nothing.
        log_decay: [K], of each step.
    """
    steps = jnp.arange(len(log_decay))
    later = (steps[:, None] > steps[None]).astype(log_decay.dtype)
    own = jnp.where(shares, log_decay[None], 0.0)
    return product(own, later), jnp.sum(own, axis=1)
