"""From the carry with which an encoder ends to that with which a decoder begins.

A bridge is "tanh", a linear map of all of the first to each array of the second, and a tanh;
"copy", where they are alike; or "zeros", where nothing crosses.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax._checks import check_carry
from rnnjax._numerics import affine, carry_dtype
from rnnjax.base import Carry, Key
from rnnjax.initializers import draw_linear
from rnnjax.models._encoding import LinearParams


def draw_bridge(bridge: str, key: Key, final: Any, carry: Any) -> tuple[LinearParams, ...]:
    """A linear map to each array of ``carry``, where the bridge has any.

    Args:
        bridge: which one.
        key: for the weights.
        final: the shapes of the encoder's carry for one example.
        carry: those of the decoder's.

    Raises:
        ValueError: carries that it cannot join.
    """
    if bridge == "copy":
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), final)
        check_carry("the carry of the encoder (bridge='copy')", zeros, carry)
    if bridge != "tanh":
        return ()
    for name, tree in (("encoder", final), ("decoder", carry)):
        if any(jnp.issubdtype(a.dtype, jnp.complexfloating) for a in jax.tree.leaves(tree)):
            raise ValueError(f"bridge='tanh' needs real carries, got a complex one of {name}")
    rows, leaves = sum(a.size for a in jax.tree.leaves(final)), jax.tree.leaves(carry)
    if leaves and not rows:
        raise ValueError(
            "bridge='tanh' needs an encoder whose carry has numbers, got one without: give "
            "bridge='zeros'"
        )
    keys = jax.random.split(key, max(len(leaves), 1))
    return tuple(
        LinearParams(*draw_linear(k, rows, a.size)) for k, a in zip(keys, leaves, strict=False)
    )


def cross(
    bridge: str,
    weights: tuple[LinearParams, ...],
    final: Carry,
    carry: Carry,
    batch: tuple[int, ...],
) -> Carry:
    """What becomes of ``final`` [*batch, ...] in the form of ``carry``, by "tanh" or "copy"."""
    if bridge == "copy":
        return check_carry("the carry of the encoder (bridge='copy')", final, carry)
    # A size of -1 would be unknown in a batch of no rows.
    ends = [a.reshape(*batch, math.prod(a.shape[len(batch) :])) for a in jax.tree.leaves(final)]
    dtype = carry_dtype(ends)
    known = jnp.concatenate([a.astype(dtype) for a in ends], axis=-1)
    leaves, structure = jax.tree.flatten(carry)
    return structure.unflatten(
        jnp.tanh(affine(known, p.w, p.bias)).reshape(a.shape).astype(a.dtype)
        for p, a in zip(weights, leaves, strict=True)
    )
