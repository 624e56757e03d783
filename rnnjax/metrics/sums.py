"""Sums that stay exact where one float would round."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from rnnjax._native import jit
from rnnjax._numerics import accumulation_dtype


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Sum:
    """What `merge` adds up: a number, or an array of them, as the sum of two floats.

    One float32 counts to 2^24 and no further, and a sum that has grown large no longer feels what
    is added to it. Two of them, the second holding what the first rounded off, carry 48 bits.
    It is an array to ``jax.numpy`` (rounded to one float), and float64 to NumPy and ``float``.
    Arithmetic and ``round`` give such an array, too; comparisons see all digits, as NumPy does.

    Example:
        >>> from rnnjax.metrics import Mean, merge
        >>> large = Mean(jnp.array(0.0), jnp.array(2.0**24))  # from here on a float32 is even
        >>> one = Mean(jnp.array(0.0), jnp.array(1.0))
        >>> float(large.count + one.count), float(merge(large, one).count)
        (16777216.0, 16777217.0)

    References:
        Knuth, "The Art of Computer Programming", volume 2, section 4.2.2: the error of a sum is
        itself a float.
    """

    high: Array
    low: Array

    @property
    def value(self) -> Array:
        """The number, rounded to one float, on the device."""
        return jnp.asarray(self.high) + self.low

    @property
    def shape(self) -> tuple[int, ...]:
        return jnp.shape(self.high)

    @property
    def dtype(self) -> Any:
        return jnp.result_type(self.high)

    def item(self) -> float:
        """The number, in the precision of Python; waits for the device."""
        return float(self)

    def __jax_array__(self) -> Array:
        return self.value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        high, low = jax.device_get((self.high, self.low))
        return np.asarray(np.float64(high) + np.float64(low), dtype)

    def __float__(self) -> float:
        return float(np.asarray(self))

    def __int__(self) -> int:
        return int(float(self))

    def __format__(self, spec: str) -> str:
        return format(float(self), spec)

    def __bool__(self) -> bool:
        return bool(np.asarray(self))

    def __eq__(self, other: object) -> Any:
        return _compared(operator.eq, self, other)

    def __ne__(self, other: object) -> Any:
        return _compared(operator.ne, self, other)

    def __lt__(self, other: Any) -> Any:
        return _compared(operator.lt, self, other)

    def __le__(self, other: Any) -> Any:
        return _compared(operator.le, self, other)

    def __gt__(self, other: Any) -> Any:
        return _compared(operator.gt, self, other)

    def __ge__(self, other: Any) -> Any:
        return _compared(operator.ge, self, other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __add__(self, other: Any) -> Array:
        return self.value + as_number(other)

    def __radd__(self, other: Any) -> Array:
        return as_number(other) + self.value

    def __sub__(self, other: Any) -> Array:
        return self.value - as_number(other)

    def __rsub__(self, other: Any) -> Array:
        return as_number(other) - self.value

    def __mul__(self, other: Any) -> Array:
        return self.value * as_number(other)

    def __rmul__(self, other: Any) -> Array:
        return as_number(other) * self.value

    def __truediv__(self, other: Any) -> Array:
        return self.value / as_number(other)

    def __rtruediv__(self, other: Any) -> Array:
        return as_number(other) / self.value

    def __neg__(self) -> Array:
        return -self.value

    def __abs__(self) -> Array:
        return abs(self.value)

    def __round__(self, digits: int | None = None) -> Array:
        return round(self.value, digits)


def _compared(holds: Callable[[Any, Any], Any], first: Any, second: Any) -> Any:
    """In float64, which has all digits of a sum, wherever both numbers are known."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((first, second))):
        return holds(as_number(first), as_number(second))
    return holds(np.asarray(first), np.asarray(second))


# One dispatch for the whole tree; leaf by leaf costs several times as much.
@jit
def add(first: Any, second: Any) -> Any:
    return jax.tree.map(plus, first, second, is_leaf=is_sum)


def is_sum(node: Any) -> bool:
    return isinstance(node, Sum)


def plus(first: Any, second: Any) -> Sum:
    a, b = as_sum(first), as_sum(second)
    dtype = np.promote_types(a.dtype, b.dtype)
    a, b = jax.tree.map(lambda leaf: leaf.astype(dtype), (a, b))
    high, low = _two_sum(a.high, b.high)
    return Sum(*_two_sum(high, low + (a.low + b.low)))


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded sum, and exactly what was rounded off."""
    total = a + b
    of_b = total - a
    rest = (a - (total - of_b)) + (b - of_b)
    # What is infinite has no rest, but infinity less infinity would be NaN.
    return total, jnp.where(jnp.isfinite(total), rest, 0)


def as_sum(number: Any) -> Sum:
    if isinstance(number, Sum):
        return number
    array = jnp.asarray(number)
    if jnp.issubdtype(array.dtype, jnp.floating):
        high = array.astype(accumulation_dtype(array.dtype))
        return Sum(high, jnp.zeros_like(high))
    dtype = jnp.result_type(float)
    if array.dtype == jnp.bool_:
        return Sum(array.astype(dtype), jnp.zeros(array.shape, dtype))
    # Cut in two, each part short enough for a float: a large integer alone would be rounded.
    return Sum((array >> 12).astype(dtype) * 4096, (array & 4095).astype(dtype))


def as_number(number: Any) -> Array:
    return number.value if isinstance(number, Sum) else jnp.asarray(number)
