"""Gates put in another order, and biases made one."""

import jax.numpy as jnp
import numpy as np


def reorder(array: np.ndarray, have: str, want: str, axis: int = -1) -> np.ndarray:
    """The gates, one letter each, in another order along ``axis``.

    A gate that is not wanted is left out, one that is wanted but not there is zero.

    Example:
        >>> reorder(np.array([10, 20, 30]), "zrn", "rzn")
        array([20, 10, 30])
    """
    pieces = dict(zip(have, np.split(array, len(have), axis), strict=True))
    zeros = np.zeros_like(pieces[have[0]])
    return np.concatenate([pieces.get(gate, zeros) for gate in want], axis)


def add_bias(first: np.ndarray, second: np.ndarray, what: str) -> np.ndarray:
    """The sum of two biases, in their dtype.

    From float32 on, the sum is rounded once, as it would be in the other library. A narrower
    dtype keeps too few digits for that: there a sum that has to be rounded is refused.

    Raises:
        ValueError: naming ``what`` was added, where the sum is not exact in 16 bits.
    """
    total = first + second
    if jnp.finfo(total.dtype).bits < 32:
        exact = first.astype(np.float64) + second.astype(np.float64)
        if not np.array_equal(total.astype(np.float64), exact):
            raise ValueError(
                f"{what} must have a sum that is exact in {total.dtype}, got one that is not: "
                "convert the weights to float32 first"
            )
    return total
