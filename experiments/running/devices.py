"""On how many devices a run trains: its state on each of them, its batches divided among them."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import jax
from jax.sharding import AxisType, Mesh

from rnnjax.data import DataError
from rnnjax.training import replicate, shard_batch

Tree = TypeVar("Tree")


class Devices(NamedTuple):
    """Where the arrays of a run lie; ``mesh`` is None where one device has all of them."""

    mesh: Mesh | None

    def check_rows(self, name: str, rows: int) -> None:
        """Refuse batches that the devices cannot divide evenly.

        Raises:
            DataError: naming the setting.
        """
        count = 1 if self.mesh is None else self.mesh.size
        if rows % count:
            raise DataError(
                f"{name} must be a multiple of {count}, the devices here, got {rows} rows in a "
                "batch; --devices 1 uses one"
            )

    def place_state(self, state: Tree) -> Tree:
        """The state on every device."""
        return state if self.mesh is None else replicate(self.mesh, state)

    def place_batch(self, batch: Tree) -> Tree:
        """The batch on the devices, its rows divided evenly."""
        return jax.device_put(batch) if self.mesh is None else shard_batch(self.mesh, batch)


def find_devices(count: int | None) -> Devices:
    """So many devices of this process, or all.

    Raises:
        DataError: there are not so many.
    """
    there: list[Any] = jax.local_devices()
    count = len(there) if count is None else count
    if count > len(there):
        raise DataError(f"--devices must be at most {len(there)}, the devices here, got {count}")
    if count == 1:
        return Devices(None)
    # Axes that XLA divides as it sees fit: a loss that draws random numbers needs no word on where.
    return Devices(jax.make_mesh((count,), ("batch",), (AxisType.Auto,), devices=there[:count]))
