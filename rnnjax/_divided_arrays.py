"""Arrays on disk that several processes write together, each the parts it has.

Each is an array in the format Zarr 3, one chunk for each part, so no two processes write one file
and any part of it can be read again, however it is divided then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np


class Part(NamedTuple):
    """A block of an array, and where in the array it begins."""

    start: tuple[int, ...]
    values: np.ndarray


def own_parts(array: jax.Array) -> list[Part]:
    """Copies of the parts that this process is to write; equal ones only one process writes."""
    shards = [shard for shard in array.addressable_shards if shard.replica_id == 0]
    values = jax.device_get([shard.data for shard in shards])
    # Copied: memory that NumPy looks at JAX would not give away in the next step.
    return [
        Part(tuple(axis.start or 0 for axis in shard.index), np.array(value))
        for shard, value in zip(shards, values, strict=True)
    ]


class Form(NamedTuple):
    """What all processes know of an array: its shape, dtype, and the shape of its parts."""

    shape: tuple[int, ...]
    dtype: np.dtype
    part: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size of the array."""
        return self.dtype.itemsize * math.prod(self.shape)


def form_of(array: jax.Array) -> Form:
    """The form of an array on its devices."""
    return Form(array.shape, np.dtype(array.dtype), array.sharding.shard_shape(array.shape))


def create(path: Path, form: Form) -> None:
    """Makes an array on the disk, still without values."""
    import tensorstore  # of Orbax

    layout = tensorstore.ChunkLayout(chunk_shape=form.part)
    tensorstore.open(
        _spec(path), create=True, dtype=form.dtype, shape=form.shape, chunk_layout=layout
    ).result()


def write(path: Path, parts: Sequence[Part]) -> list[Path]:
    """Writes parts of an array that has been made; the files, once they are on the disk."""
    store = open_array(path)
    for part in parts:
        ends = np.add(part.start, part.values.shape)
        where = tuple(slice(a, b) for a, b in zip(part.start, ends, strict=True))
        store[where].write(part.values).result()
    chunk = store.chunk_layout.write_chunk.shape
    numbers = [np.floor_divide(part.start, chunk) for part in parts]
    return [path.joinpath("c", *map(str, number)) for number in numbers]


def open_array(path: Path) -> Any:
    """The array; :func:`forms` says its shape and dtype before any of it is read."""
    import tensorstore

    return tensorstore.open(_spec(path), open=True).result()


def forms(arrays: dict[str, Any]) -> dict[str, Form]:
    """The forms of arrays on the disk."""
    return {
        name: Form(array.shape, array.dtype.numpy_dtype, array.chunk_layout.write_chunk.shape)
        for name, array in arrays.items()
    }


def read(array: Any, index: Any = ...) -> np.ndarray:
    """A part of an array on disk, or of NumPy's."""
    return array[index] if isinstance(array, np.ndarray) else array[index].read().result()


def _spec(path: Path) -> dict[str, Any]:
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        # Else a part that is all zeros would leave no file, and a lost file would read as zeros.
        "store_data_equal_to_fill_value": True,
        "fill_missing_data_reads": False,
    }
