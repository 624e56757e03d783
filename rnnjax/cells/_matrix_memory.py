"""What cells share whose memory is a matrix for each head, written under keys."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax._numerics import affine, split_gates


def product(a: Array, b: Array) -> Array:
    # In full precision, so that chunks of any length, and steps, give the same.
    return jnp.matmul(a, b, precision="highest")


def project_with_gates(pieces: int) -> Callable[[Any, Array], tuple[Array, ...]]:
    """``x @ w_ih + bias`` in so many pieces [H], and ``x @ w_gates + gate_bias`` in two [heads]."""

    def project(params: Any, x: Array) -> tuple[Array, ...]:
        wide = split_gates(affine(x, params.w_ih, params.bias), pieces)
        return *wide, *split_gates(affine(x, params.w_gates, params.gate_bias), 2)

    return project


def by_head(x: Array, heads: int) -> Array:
    """[..., H] as [..., heads, d]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def chunk_of_heads(
    chunk_of_head: Callable,
    carry: Any,
    reset_carry: Any,
    heads: Any,
    valid: Array | None,
    resets: Array | None,
) -> tuple[Any, Array]:
    """A chunk of K steps of all heads, by that of one head; leaves of ``heads`` [K, heads, ...]."""
    run = jax.vmap(chunk_of_head, (0, 0, 1, None, None), (0, 1))
    carry, ys = run(carry, reset_carry, heads, valid, resets)
    return carry, ys.reshape(len(ys), -1)


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
