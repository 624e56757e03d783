"""Batches divided among devices: every device runs the kernels on its own rows."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule, custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from rnnjax.engine.kernels._row_axes import RowAxes, axes_of_leaves

ROWS = "rows"


def on_each_device(function: Callable, axes: RowAxes) -> Callable:
    """``function`` such that every device runs it on its own rows.

    How arrays are divided among devices is decided after all is traced, by XLA, which cannot look
    into a kernel: without this, each device would run it on all rows. What has no rows, such as the
    weights, each device gets whole. On one device nothing is added to the program, and in a
    ``jax.shard_map`` each device has a program of its own already.
    """
    if jax.sharding.get_abstract_mesh().manual_axes:
        return function

    def divided(*args: Any) -> Any:
        given, made = _arrays(axes.given, args), _Arrays((), (), None)
        wide = bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]

        def run(*leaves: Any) -> tuple:
            nonlocal made  # known from here on
            results = function(*jax.tree.unflatten(given.tree, leaves))
            made = _arrays(axes.results, results)
            return tuple(jax.tree.leaves(results))

        def run_alone(*leaves: Any) -> tuple:
            # Traced when XLA compiles, maybe in another context than the program was. What one
            # device computes lies on no mesh.
            no_mesh = jax.sharding.AbstractMesh((), ())
            with jax.enable_x64(wide), jax.sharding.use_abstract_mesh(no_mesh):
                return run(*leaves)

        def partition(mesh: Any, args: Sequence, results: Sequence) -> tuple:
            del results
            # An array whose rows are all alike may have been left whole.
            pairs = zip(args, given.rows, strict=True)
            found = [a.sharding.spec[axis] for a, axis in pairs if axis is not None]
            rows = next((spec for spec in found if spec is not None), None)
            return mesh, run_alone, *(_shardings(mesh, a.rows, rows) for a in (made, given))

        over_devices = custom_partitioning(run)
        over_devices.def_partition(partition, sharding_rule=lambda *_: _rule(given, made))
        results = over_devices(*jax.tree.leaves(args))
        return jax.tree.unflatten(made.tree, results)

    return divided


class _Arrays(NamedTuple):
    """What is known of the arrays of a tree, and without holding them.

    Attributes:
        ranks: how many axes each has.
        rows: which of them are the rows; None: none.
        tree: the tree.
    """

    ranks: Sequence
    rows: Sequence
    tree: Any


def _arrays(prefix: Any, tree: Any) -> _Arrays:
    leaves, structure = jax.tree.flatten(tree)
    return _Arrays([jnp.ndim(a) for a in leaves], axes_of_leaves(prefix, tree), structure)


def _shardings(mesh: Any, axes: Sequence, rows: Any) -> tuple[NamedSharding, ...]:
    """Of arrays whose rows lie on ``axes`` and are divided as ``rows``; None: not divided."""
    specs = [PartitionSpec() if k is None else PartitionSpec(*[None] * k, rows) for k in axes]
    return tuple(NamedSharding(mesh, spec) for spec in specs)


def _rule(given: _Arrays, made: _Arrays) -> SdyShardingRule:
    """For XLA's partitioner: rows may be divided, alike in all arrays, and no other axis."""
    names = (f"axis{n}" for n in itertools.count())  # a name that stands once: like no other axis

    def mapping(rank: int, rows: int | None) -> ArrayMapping:
        return ArrayMapping(*(ROWS if k == rows else next(names) for k in range(rank)))

    ins, outs = (tuple(map(mapping, arrays.ranks, arrays.rows)) for arrays in (given, made))
    whole = tuple(name for dims in (*ins, *outs) for name in dims if name != ROWS)
    return SdyShardingRule(ins, outs, need_replication_factors=whole)
