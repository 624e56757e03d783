"""Safetensors files, opened so that their header can be looked at before memory is taken."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from safetensors import safe_open

# By their names in the format: those that the library reads into NumPy.
_DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "U32": np.uint32,
    "I32": np.int32,
    "F32": np.float32,
    "U64": np.uint64,
    "I64": np.int64,
    "F64": np.float64,
    "C64": np.complex64,
}


KNOWN_DTYPES = frozenset(map(np.dtype, _DTYPES.values()))


class Entry(NamedTuple):
    """What the header says of one array."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size of the array."""
        return self.dtype.itemsize * math.prod(self.shape)


class TensorFile(NamedTuple):
    """An open file whose header has been checked; the arrays are still on the disk.

    Attributes:
        entries: what the header says of each array.
        metadata: the strings beside them.
    """

    entries: dict[str, Entry]
    metadata: dict[str, str]
    opened: safe_open

    @property
    def nbytes(self) -> int:
        """The size of all arrays together."""
        return sum(entry.nbytes for entry in self.entries.values())

    def read(self, name: str) -> np.ndarray:
        """One of the arrays."""
        return self.opened.get_tensor(name)


@contextlib.contextmanager
def open_tensors(path: str | os.PathLike[str]) -> Iterator[TensorFile]:
    """Opens a safetensors file.

    The library holds the header against the file: its length (100 MB at most), shapes against
    bytes, and that each byte belongs to exactly one array.

    Args:
        path: the file.

    Raises:
        ValueError: it is no whole safetensors file, or has arrays NumPy cannot hold; says why.
        FileNotFoundError: there is no such file.

    Example:
        >>> import tempfile
        >>> import safetensors.numpy
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/w.safetensors"
        ...     safetensors.numpy.save_file({"bias": np.arange(3, dtype=np.float32)}, path)
        ...     with open_tensors(path) as file:
        ...         print(file.entries["bias"].shape, file.nbytes, file.read("bias"))
        (3,) 12 [0. 1. 2.]
    """
    import safetensors

    if not Path(path).is_file():
        raise FileNotFoundError(f"{os.fspath(path)} must be a weight file, got no such file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            entries = {name: _entry(name, file.get_slice(name)) for name in list(file.keys())}
            yield TensorFile(entries, dict(file.metadata() or {}), file)
    except (safetensors.SafetensorError, _FormatError) as error:
        raise ValueError(f"{path} must be a whole safetensors file, got {error}") from None


class _FormatError(Exception):
    """Why a file cannot be read, before it is known by name."""


def _entry(name: str, header: Any) -> Entry:
    kind, shape = header.get_dtype(), tuple(header.get_shape())
    if kind not in _DTYPES:
        raise _FormatError(f"{name!r} of dtype {kind!r}, which is not known here")
    entry = Entry(np.dtype(_DTYPES[kind]), shape)
    try:
        np.broadcast_to(np.zeros((), entry.dtype), shape)  # takes no memory for the shape
    except ValueError as error:
        raise _FormatError(f"{name!r}: {error}") from None
    return entry
