"""The few largest of many numbers, without sorting all of them."""

import math

import jax.numpy as jnp
from jax import Array, lax

# Of narrower blocks there are so many that little is saved.
_LEAST_WIDTH = 8


def largest(numbers: Array, count: int) -> tuple[Array, Array]:
    """What ``lax.top_k`` gives of ``numbers`` [B, N]: values and places [B, count], equal ones too.

    ``lax.top_k`` costs far more a number than a maximum does. So the maxima of blocks come first:
    none but the ``count`` blocks with the largest maxima can hold one of the ``count`` largest
    numbers, as each of those blocks holds one that is larger, or as large and further in front.
    """
    rows, size = numbers.shape
    # With N / width maxima and count * width candidates, the two sorts are then of one length.
    width = math.isqrt(max(size // max(count, 1), 1))
    blocks = size // max(width, 1)
    if width < _LEAST_WIDTH or blocks <= count:
        return lax.top_k(numbers, count)
    whole = blocks * width
    divided = numbers[:, :whole].reshape(rows, blocks, width)
    _, chosen = lax.top_k(jnp.max(divided, axis=-1), count)
    # In the order in which they stand, so that of equal numbers the first is found.
    chosen = jnp.sort(chosen, axis=-1)
    found = jnp.take_along_axis(divided, chosen[..., None], axis=1).reshape(rows, count * width)
    within = jnp.broadcast_to(jnp.arange(width, dtype=chosen.dtype), (rows, count, width))
    places = (chosen[..., None] * width + within).reshape(rows, count * width)
    # The numbers behind the last whole block are candidates in any case.
    rest = jnp.broadcast_to(jnp.arange(whole, size, dtype=chosen.dtype), (rows, size - whole))
    values, at = lax.top_k(jnp.concatenate([found, numbers[:, whole:]], axis=-1), count)
    return values, jnp.take_along_axis(jnp.concatenate([places, rest], axis=-1), at, axis=-1)
