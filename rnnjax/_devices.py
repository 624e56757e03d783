"""Where arrays lie, as far as it can be known while a function is traced.

JAX tells a traced array's mesh in its type, with the platform of its devices, but nothing of an
array on one device. What is decided here is therefore decided by the arrays, never by how many
devices a process can see: with everything on one of eight GPUs the program is that of one GPU.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def mesh_of(tree: Any) -> Any:
    """The mesh that arrays of ``tree`` lie on, or None.

    One of a single device counts only with Explicit axes, which are part of the types there too.

    The mesh of ``jax.set_mesh`` counts where the arrays have none of their own: they may be
    divided over it later in the same program.
    """
    for leaf in jax.tree.leaves(tree):
        mesh = jax.typeof(leaf).sharding.mesh
        if _counts(mesh):
            return mesh
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if _counts(mesh) else None


def _counts(mesh: Any) -> bool:
    return mesh.size > 1 or AxisType.Explicit in mesh.axis_types


def may_merge_axes(tree: Any) -> bool:
    """Whether the axes before the features are better one: where one device has all of them.

    Two matrices XLA multiplies as they lie. Arrays of more axes it copies into another order first,
    and the gradient of a weight matrix multiplies the largest arrays there are. On a mesh an axis
    may be divided among the devices, and one that is merged cannot stay so; but in a ``shard_map``
    over all axes of the mesh every device runs a program of its own.
    """
    mesh = mesh_of(tree)
    if mesh is None:
        return True
    return all(kind == AxisType.Manual for kind in mesh.axis_types)


def is_partly_manual(tree: Any) -> bool:
    """Whether this is in a ``jax.shard_map`` over some axes of its mesh alone."""
    mesh = mesh_of(tree)
    return mesh is not None and AxisType.Manual in mesh.axis_types and not may_merge_axes(tree)


def placed_array(tree: Any) -> Array | None:
    """The array of ``tree`` that decides where a program on it runs; None where all are traced."""
    leaves = jax.tree.leaves(tree)
    arrays = [leaf for leaf in leaves if isinstance(leaf, Array) and not isinstance(leaf, Tracer)]
    # Committed arrays decide where a program runs; the others follow them.
    return min(arrays, key=lambda leaf: not leaf.committed, default=None)


def batch_shares(mesh: Any, xs: Any) -> int | None:
    """Among how many devices the batch axes of ``xs``, [..., T, D] a leaf, are divided.

    Of a traced array, axes of the kind Auto do not say how they divide it: one alone is taken to
    divide the batch, and among several it is not known: None.

    Args:
        mesh: that of a call, or None, as of ``mesh_of``.
        xs: its inputs.
    """
    leaves = jax.tree.leaves(xs)
    if mesh is None or not leaves or AxisType.Manual in mesh.axis_types:
        return 1
    placed = placed_array(xs)
    if placed is not None:
        where = placed.sharding
        return _shares(where, placed.ndim - 2) if isinstance(where, NamedSharding) else 1
    kinds = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    automatic = [size for size, kind in kinds if kind == AxisType.Auto and size > 1]
    if len(automatic) > 1:
        return None
    return _shares(jax.typeof(leaves[0]).sharding, leaves[0].ndim - 2) * math.prod(automatic)


def _shares(sharding: NamedSharding, axes: int) -> int:
    """How many parts the first ``axes`` are divided into."""
    names = [name for name in sharding.spec[:axes] if name is not None]
    flat = [one for name in names for one in (name if isinstance(name, tuple) else (name,))]
    return math.prod(sharding.mesh.shape[name] for name in flat)


def platform_of(tree: Any) -> str:
    """The platform that a call with these arrays runs on: "cpu", "gpu" or "tpu".

    That of the devices of arrays that are not traced, else of the mesh of traced ones. Of a traced
    array on one device nothing is known: there it is what JAX uses by default.
    """
    placed = placed_array(tree)
    if placed is not None:
        return next(iter(placed.devices())).platform
    mesh = mesh_of(tree)
    device = None if mesh is None else mesh.abstract_device
    device = device or jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    name = getattr(device, "platform", device) or jax.default_backend()
    return {"cuda": "gpu", "rocm": "gpu"}.get(name, name)


def with_automatic_axes(
    function: Callable,
    tree: Any,
    batch_like: Any,
    batch_axes: int,
    last_like: Any = None,
) -> Any:
    """``function(tree)`` with the partitioning left to XLA, also on a mesh of Explicit axes.

    With Explicit axes JAX asks how every single result is to be divided. Here it is known once for
    all: results have the batch axes of the input in front and are divided as it is.

    Args:
        function: of ``tree``; every array it gives begins with the batch axes.
        tree: arrays.
        batch_like: the input whose first ``batch_axes`` axes are the batch.
        batch_axes: their number.
        last_like: if given, the last axis of the one result is divided as that of this array: of
            the logits of many words, as the weights of the words.
    """
    mesh = mesh_of(tree)
    if mesh is None or AxisType.Explicit not in mesh.axis_types:
        return function(tree)
    rows = jax.typeof(batch_like).sharding.spec[:batch_axes]
    last = None if last_like is None else jax.typeof(last_like).sharding.spec[-1]
    out = NamedSharding(mesh, PartitionSpec(*rows, *(() if last in (None, *rows) else (last,))))
    return jax.sharding.auto_axes(function, out_sharding=out)(tree)
