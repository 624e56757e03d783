"""Products and sums in the right dtype, and where their axes lie."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from rnnjax._checks import check_floating


def accumulation_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The dtype of carries, outputs and sums for parameters of ``dtype``: at least float32."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


def linear(x: Array, w: Array, bias: Array | None = None, *, name: str = "xs") -> Array:
    """``x @ w + bias``: the product in the dtype of ``w``, accumulated in at least float32.

    Args:
        x: [..., D].
        w: [D, O].
        bias: [O], or None.
        name: what ``x`` is, for the message.

    Raises:
        ValueError: ``x`` is not floating, or its size is not the one ``w`` was made for.
    """
    check_floating(name, x)
    if x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"{name} must have size {w.shape[0]} in the last axis (weights of shape {w.shape}), "
            f"got size {x.shape[-1]}"
        )
    rows, dtype = x.astype(w.dtype), accumulation_dtype(w.dtype)
    if x.ndim > 2:
        rows = as_rows(rows)
    out = jnp.matmul(rows, w, preferred_element_type=dtype).reshape(*x.shape[:-1], w.shape[-1])
    if bias is None:
        return out
    return out + bias.astype(out.dtype).reshape((1,) * (out.ndim - 1) + bias.shape)


def as_rows(x: Array) -> Array:
    """``x`` [..., D] as a matrix [N, D] where its axes may be merged, else as it is."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) if may_merge_axes() else x


def may_merge_axes() -> bool:
    """Whether the axes before the features are better one: where one device has all of them.

    Two matrices XLA multiplies as they lie. Arrays of more axes it copies into another order first,
    and the gradient of a weight matrix multiplies the largest arrays there are. Where there are
    more devices an axis may be divided among them, and one that is merged cannot stay so; but in
    a ``shard_map`` over all of them every device runs a program of its own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    manual = bool(mesh.manual_axes) and set(mesh.manual_axes) == set(mesh.axis_names)
    return manual or jax.device_count() == 1


def varying_like(given: Any, tree: Any) -> Any:
    """``tree`` as what may differ from device to device in a ``shard_map`` wherever ``given`` may.

    The carry of a scan must be so from the start; zeros are the same on all devices.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    leaves = jax.tree.leaves(given)
    arrays = [leaf for leaf in leaves if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    zero = sum(jnp.sum(jnp.zeros_like(leaf, jnp.float32)) for leaf in arrays)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(zero, leaf.dtype), tree)


def split_gates(x: Array, count: int) -> tuple[Array, ...]:
    """Cut the last axis of ``x`` into ``count`` equal pieces, one a gate."""
    return tuple(jnp.split(x, count, axis=-1))
