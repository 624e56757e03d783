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

    @property
    def number(self) -> int:
        """How many there are, of all processes."""
        return 1 if self.mesh is None else self.mesh.size

    def check_rows(self, name: str, rows: int) -> None:
        """Refuse batches that the devices cannot divide evenly.

        Raises:
            DataError: naming the setting.
        """
        if rows % self.number:
            raise DataError(
                f"{name} must be a multiple of {self.number}, the devices {_where()}, got {rows} "
                "rows in a batch; --devices 1 uses one"
            )

    def place_state(self, state: Tree) -> Tree:
        """The state on every device."""
        return state if self.mesh is None else replicate(self.mesh, state)

    def place_batch(self, batch: Tree) -> Tree:
        """The batch on the devices, its rows divided evenly."""
        return jax.device_put(batch) if self.mesh is None else shard_batch(self.mesh, batch)

    def take_home(self, params: Tree) -> Tree:
        """Parameters for what each process does alone, such as writing a sample."""
        return params if jax.process_count() == 1 else jax.device_get(params)


def find_devices(count: int | None) -> Devices:
    """So many devices of each process, or all.

    Raises:
        DataError: there are not so many.
    """
    of_process: dict[int, list[Any]] = {}
    for device in jax.devices():
        of_process.setdefault(device.process_index, []).append(device)
    fewest = min(map(len, of_process.values()))
    if count is not None and count > fewest:
        raise DataError(f"--devices must be at most {fewest}, the devices {_there()}, got {count}")
    devices = [d for process in sorted(of_process) for d in of_process[process][:count]]
    if len(devices) == 1:
        return Devices(None)
    # Axes that XLA divides as it sees fit: a loss that draws random numbers needs no word on where.
    return Devices(jax.make_mesh((len(devices),), ("batch",), (AxisType.Auto,), devices=devices))


def _there() -> str:
    return "here" if jax.process_count() == 1 else "of the process that has the fewest"


def _where() -> str:
    count = jax.process_count()
    return "here" if count == 1 else f"of {count} processes"
