"""The one error of the data package, and the checks of arguments that raise it."""

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnjax._reading import has_masked


class DataError(ValueError):
    """Data that cannot be used as it is.

    The message says what must be and what came instead; for a file it names the file and the
    first bad rows, so that the reader can open the file and mend them.

    Example:
        >>> from rnnjax.data import DataError, pad
        >>> try:
        ...     pad([[1, 2, 3]], length=2)
        ... except DataError as error:
        ...     print(error)
        sequence 0 must have at most 2 steps, got 3
    """


def rows_error(path: Path, wanted: str, bad: Sequence[str]) -> DataError:
    """The error for a file that must have ``wanted``, with the first three of its bad rows."""
    shown = "; ".join(bad[:3])
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    return DataError(f"{path} must have {wanted}, got {shown}{more}")


def check_integer(name: str, value: Any) -> int:
    """``value``, an integer of Python, NumPy or JAX, as an ``int``.

    Raises:
        DataError: naming ``name`` and what came instead.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    # Python takes flags for integers; those of NumPy have no index.
    if number is None or isinstance(value, bool):
        raise DataError(f"{name} must be an integer, got {value!r}")
    return number


def check_count(name: str, value: Any, least: int = 1) -> int:
    """``value``, an integer of Python, NumPy or JAX, as an ``int``.

    Raises:
        DataError: naming ``name``; it is no integer, or below ``least``.
    """
    number = check_integer(name, value)
    if number < least:
        raise DataError(f"{name} must be at least {least}, got {number}")
    return number


def check_seed(seed: Any) -> int:
    """The seed as an ``int``; NumPy would take None for "another one every time".

    Raises:
        DataError: it is no integer, or below 0.
    """
    return check_count("seed", seed, least=0)


def check_flag(name: str, value: Any) -> bool:
    """``value``, True or False of Python or NumPy, as a ``bool``.

    Raises:
        DataError: naming ``name`` and what came instead.
    """
    if not isinstance(value, bool | np.bool_):
        raise DataError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def check_integers(name: str, values: Any) -> NDArray[np.int64]:
    """An array of integers, of any kind, as int64; a float is never cut to one.

    Raises:
        DataError: naming ``name`` and what came instead.
    """
    if has_masked(values):
        raise DataError(f"{name} must have no masked numbers, got {values!s:.60}")
    try:
        array = np.asarray(values)
    except (ValueError, RuntimeError, TypeError):
        array = np.asarray(None)  # rows of unequal length, or what NumPy cannot read
    if array.size and array.dtype.kind not in "iu":
        raise DataError(f"{name} must be integers, got {values!r:.60}")
    return array.astype(np.int64)


def check_text(name: str, value: Any) -> str:
    """``value``, which is one string.

    Raises:
        DataError: naming ``name`` and what came instead.
    """
    if not isinstance(value, str):
        raise DataError(f"{name} must be a string, got {value!r:.60}")
    return value
