"""Arrays on several devices: the state on each of them, the rows of a batch divided among them."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rnnjax._native import in_native_order
from rnnjax._values import check_width

Tree = TypeVar("Tree")


def replicate(
    mesh: Mesh, tree: Tree, *, divided: Mapping[str, PartitionSpec] | None = None
) -> Tree:
    """A copy of the tree with every array whole on every device of the mesh, as a train state lies.

    Args:
        mesh: as ``jax.make_mesh`` makes it; of devices of several processes, too. Each process
            then calls this with equal values.
        tree: arrays, keys and numbers.
        divided: the arrays that are divided over the mesh instead, see :func:`state_shardings`.

    Raises:
        ValueError: as :func:`state_shardings`; no mesh, or a leaf that is none of these, or holds
            integers that JAX would cut to 32 bits.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rnnjax.training import replicate
        >>> mesh = jax.make_mesh((jax.device_count(),), ("batch",))
        >>> replicate(mesh, {"w": jnp.ones(3)})["w"].sharding.is_fully_replicated
        True
    """
    where = state_shardings(_check_mesh(mesh), tree, divided)
    for path, leaf in jax.tree.leaves_with_path(tree):
        _check_leaf(f"tree{jax.tree_util.keystr(path)}", leaf)
    tree = in_native_order(tree)
    if NamedSharding(mesh, PartitionSpec()).is_fully_addressable:
        # A copy also where the array lies already: a step gives its state away.
        return jax.device_put(tree, where, may_alias=False)
    return jax.tree.map(_of_all_processes, tree, where)


def state_shardings(
    mesh: Mesh, tree: Any, divided: Mapping[str, PartitionSpec] | None = None
) -> Any:
    """Where each array of a train state lies: those that are named divided, all others whole.

    For a state that no device can hold whole: ``jax.jit(make, out_shardings=state_shardings(mesh,
    jax.eval_shape(make), divided))()`` makes it in its parts.

    Args:
        mesh: as ``jax.make_mesh`` makes it.
        tree: arrays, or their shapes.
        divided: how the arrays are divided whose paths end in these names: "head.w" is
            ``params.head.w``, and also what an optimizer keeps of it, as ``mu.head.w``.

    Returns:
        A tree of the same structure, of a ``NamedSharding`` in place of each array.

    Raises:
        ValueError: no path ends in one of the names, or a path in several; or an array is not such
            that it can be divided so; names it.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.sharding import PartitionSpec
        >>> from rnnjax.training import state_shardings
        >>> mesh = jax.make_mesh((1, jax.device_count()), ("batch", "model"))
        >>> tree = {"head": {"w": jnp.ones((4, 8)), "bias": jnp.ones(8)}}
        >>> where = state_shardings(mesh, tree, {"head.w": PartitionSpec(None, "model")})
        >>> where["head"]["w"].spec, where["head"]["bias"].spec
        (P(None, 'model'), P())
    """
    specs = dict(divided or {})
    found: set[str] = set()

    def of_leaf(path: Any, leaf: Any) -> NamedSharding:
        place = jax.tree_util.keystr(path, simple=True, separator=".")
        names = [name for name in specs if f".{place}".endswith(f".{name}")]
        if len(names) > 1:
            raise ValueError(f"divided must name each array once, got {', '.join(names)}")
        found.update(names)
        spec = _check_spec(mesh, place, leaf, specs[names[0]]) if names else PartitionSpec()
        sharding = NamedSharding(mesh, spec)
        try:
            sharding.shard_shape(np.shape(leaf))
        except ValueError:
            raise ValueError(
                f"{place} must have axes that {sharding.spec} divides evenly on a mesh of "
                f"{dict(mesh.shape)}, got shape {np.shape(leaf)}"
            ) from None
        return sharding

    where = jax.tree.map_with_path(of_leaf, tree)
    missing = [name for name in specs if name not in found]
    if missing:
        raise ValueError(f"divided must name arrays of the tree, got {', '.join(missing)}")
    return where


def shard_batch(mesh: Mesh, batch: Any, axis: str | None = None) -> Any:
    """The batch with its rows divided evenly over the devices of the mesh.

    Every process gives the whole batch, the same one, and puts on its devices the rows that are
    theirs. So all processes take batches of the same shapes in the same order, without which they
    would wait for one another for ever.

    Args:
        mesh: as ``jax.make_mesh`` makes it.
        batch: arrays [B, ...] on the host. B is a multiple of the size of the axis.
        axis: the axis of the mesh over which rows are divided; its first one if not given.

    Raises:
        ValueError: there is no such axis, or a leaf is no array of numbers, has no rows, or a
            number of them that does not divide.

    Example:
        >>> import jax, numpy as np
        >>> from rnnjax.training import shard_batch
        >>> mesh = jax.make_mesh((jax.device_count(),), ("batch",))
        >>> x = shard_batch(mesh, {"x": np.ones((4 * jax.device_count(), 3))})["x"]
        >>> [shard.data.shape for shard in x.addressable_shards][0]
        (4, 3)
    """
    axis = _check_mesh(mesh).axis_names[0] if axis is None else axis
    if axis not in mesh.axis_names:
        raise ValueError(f"axis must be one of the axes {mesh.axis_names} of mesh, got {axis!r}")
    count = mesh.shape[axis]
    for path, leaf in jax.tree.leaves_with_path(batch):
        name = f"batch{jax.tree_util.keystr(path)}"
        shape = _check_leaf(name, leaf)
        if not shape or shape[0] % count:
            hint = "" if shape else ": what has no rows goes through replicate"
            raise ValueError(
                f"{name} must have shape [B, ...] with B a multiple of "
                f"the {count} devices on axis {axis!r}, got shape {shape}{hint}"
            )
    rows = NamedSharding(mesh, PartitionSpec(axis))
    return jax.tree.map(lambda leaf: _divided(leaf, rows), in_native_order(batch))


def _check_spec(mesh: Mesh, place: str, leaf: Any, spec: Any) -> PartitionSpec:
    if not isinstance(spec, PartitionSpec):
        raise ValueError(f"divided must have a PartitionSpec for {place}, got {spec!r}")
    if len(spec) > np.ndim(leaf):
        raise ValueError(
            f"{place} must have the {len(spec)} axes of {spec}, got shape {np.shape(leaf)}"
        )
    axes = [axis for axes in spec for axis in (axes if isinstance(axes, tuple) else (axes,))]
    unknown = [axis for axis in axes if axis is not None and axis not in mesh.axis_names]
    if unknown:
        raise ValueError(
            f"divided must name axes of the mesh, {mesh.axis_names}, got {unknown[0]!r} for {place}"
        )
    return spec


def _check_mesh(mesh: Any) -> Mesh:
    if not isinstance(mesh, Mesh):
        raise ValueError(f"mesh must be a jax.sharding.Mesh, got {type(mesh).__name__}")
    return mesh


def _check_leaf(name: str, leaf: Any) -> tuple[int, ...]:
    """The shape of a leaf that JAX can put on a device as it is."""
    if isinstance(leaf, Array):
        return leaf.shape
    array = check_width(name, np.asarray(leaf))
    if array.dtype != np.bool_ and not jnp.issubdtype(array.dtype, np.number):
        raise ValueError(f"{name} must be an array of numbers, got dtype {array.dtype}")
    return array.shape


def _divided(leaf: Any, rows: NamedSharding) -> Any:
    return (
        jax.device_put(leaf, rows) if rows.is_fully_addressable else _of_all_processes(leaf, rows)
    )


def _of_all_processes(leaf: Any, sharding: NamedSharding) -> Array:
    """One array of all processes, from its value, which every one of them has."""
    if isinstance(leaf, Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _of_all_processes(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    value = np.asarray(jnp.asarray(leaf))
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
