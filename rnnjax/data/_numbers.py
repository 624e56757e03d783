"""Numbers out of lists and arrays, as int32 or float32, and none of them another than it was."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnjax._reading import has_masked
from rnnjax.data.errors import DataError

INT32 = np.iinfo(np.int32)
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def to_numbers(what: str, values: Any) -> NDArray[Any]:
    """A list or an array as an array of integers or floats, of whatever size they are.

    Raises:
        DataError: naming ``what``; it has anything else, or lists of unequal length.
    """
    if has_masked(values):
        raise DataError(f"{what} must have no masked numbers, got {values!s:.60}")
    try:
        array = np.asarray(values)
    except ValueError as error:  # lists of unequal length in it
        raise DataError(
            f"{what} must have steps of one shape, of integers or floats, got {error}"
        ) from None
    except (RuntimeError, TypeError) as error:  # what PyTorch says of tensors
        kind = type(values).__name__
        raise DataError(f"{what} must be readable by NumPy, got {kind}: {error}") from error
    if array.ndim < 1 or not (array.dtype.kind in "iu" or is_float(array)):
        found = f"{array.ndim} axes of {array.dtype}" if array.ndim else f"{values!r:.60}"
        raise DataError(f"{what} must have integers or floats, got {found}")
    if array.dtype == np.float64 and np.any(np.abs(array) >= 2.0**63):
        # NumPy makes floats of integers where one needs 64 bits without a sign.
        numbers = np.array(values, object).ravel()
        if all(isinstance(number, int | np.integer) for number in numbers):
            raise DataError(f"{what} must have 32-bit integers, got {max(numbers)}")
    return array


def is_float(array: NDArray[Any]) -> bool:
    """Whether these numbers are floats; bfloat16 is a kind of its own to NumPy."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def to_int32(what: str, array: NDArray[np.integer]) -> NDArray[np.int32]:
    """Integers of any size as int32.

    Raises:
        DataError: naming ``what`` and the first that is too large.
    """
    if array.size and not INT32.min <= array.min() <= array.max() <= INT32.max:
        bad = array[(array < INT32.min) | (array > INT32.max)]
        raise DataError(f"{what} must have 32-bit integers, got {bad[0]}")
    return array.astype(np.int32)


def to_float32(what: str, array: NDArray[Any]) -> NDArray[np.float32]:
    """Numbers of any size as float32, rounded; NaN and infinity stay what they are.

    Raises:
        DataError: naming ``what`` and the first number that would become infinite.
    """
    with np.errstate(over="ignore"):
        rounded = array.astype(np.float32)
    infinite = np.isinf(rounded)
    if infinite.any() and (bad := array[infinite & np.isfinite(array)]).size:
        raise DataError(f"{what} must have numbers that float32 can hold, got {bad[0]}")
    return rounded
