"""What is given where numbers are read, as arrays."""

from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rnnjax._checks import describe
from rnnjax._native import in_native_order

_PLAIN = {int, float, bool}


def as_array(name: str, value: Any) -> Any:
    """``value`` as an array of numbers: of NumPy, so that it stays exact, or of JAX as it came.

    Raises:
        ValueError: naming ``name`` and what came instead.
    """
    if isinstance(value, Array):
        return value
    if has_masked(value):
        raise ValueError(f"{name} must be a plain array, got one with masked numbers: give a mask")
    if isinstance(value, list | tuple) and any(
        isinstance(leaf, Array) for leaf in jax.tree.leaves(value)
    ):
        try:
            return jnp.asarray(value)  # a list of traced numbers among others
        except (TypeError, ValueError):
            raise _several(name, value) from None
    try:
        array = in_native_order(np.asarray(value))
    except ValueError:
        raise _several(name, value) from None
    except (RuntimeError, TypeError) as error:  # what PyTorch says of tensors
        kind = type(value).__name__
        raise ValueError(f"{name} must be readable by NumPy, got {kind}: {error}") from error
    is_number = jnp.issubdtype(array.dtype, np.number) or array.dtype == np.bool_
    # Spans of time are integers to NumPy, and JAX has no floats of more than 64 bits.
    if not is_number or array.dtype.kind == "m" or array.real.dtype.itemsize > 8:
        came = f"{type(value).__name__} (dtype {array.dtype})"
        raise ValueError(f"{name} must be an array of numbers, got {came}: {value!r:.60}")
    return array


def has_masked(value: Any) -> bool:
    """Whether a masked array of NumPy, or one inside lists, has numbers that are masked."""
    if isinstance(value, list | tuple):
        # Plain numbers may be many: of them the types alone are looked at, of rows all at once.
        kinds = set(map(type, value))
        if kinds == {list}:
            kinds = set(map(type, chain.from_iterable(value)))
        if kinds <= _PLAIN or all(issubclass(kind, np.generic) for kind in kinds):
            return False
        return any(map(has_masked, value))
    return isinstance(value, np.ma.MaskedArray) and bool(np.any(value.mask))


def _several(name: str, value: Any) -> ValueError:
    """The error for arrays, or rows, of shapes that do not make one array."""
    leaves = jax.tree.leaves(value)
    if isinstance(value, tuple) and any(hasattr(leaf, "shape") for leaf in leaves):
        came = f"{describe(value)}: apply gives (carry, outputs)"
    elif any(isinstance(leaf, Array) for leaf in leaves):
        came = describe(value)
    else:
        came = "rows of unequal size: rnnjax.data.pad makes one of them"
    return ValueError(f"{name} must be one array, got {came}")
