"""Arrays of NumPy in the byte order of this machine, as files of other machines need not have them.

A function of ``jax.jit`` that was compiled for arrays of NumPy of that shape takes the bytes of
another order as they lie, without a word (JAX 0.10.2). So every program of this package is made
by :func:`jit`, which looks at its arguments first.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def in_native_order(tree: Any) -> Any:
    """A tree, or an array, with the numbers of its arrays in the byte order of this machine."""
    # Arrays of JAX need no further look: this is a part of every step of a layer or a model, and
    # there a microsecond can decide whether the thread that computes is still awake.
    if not any(map(_is_of_numpy, set(map(type, jax.tree_util.tree_leaves(tree))))):
        return tree
    return jax.tree.map(lambda leaf: _swapped(leaf) if _is_foreign(leaf) else leaf, tree)


def jit(function: Callable[..., Any], *, static: int = 0, **options: Any) -> Callable[..., Any]:
    """``jax.jit``, but arrays in another byte order are the numbers they are.

    Args:
        function: one of positional arguments.
        static: how many of the first arguments are fixed when it is compiled.
        options: the others of ``jax.jit``.

    Example:
        >>> import numpy as np
        >>> double = jit(lambda x: 2 * x)
        >>> [double(np.ones(2, order)).tolist() for order in ("<f4", ">f4")]
        [[2.0, 2.0], [2.0, 2.0]]
    """
    compiled = jax.jit(function, static_argnums=tuple(range(static)), **options)

    @functools.wraps(compiled)
    def run(*args: Any) -> Any:
        return compiled(*args[:static], *in_native_order(args[static:]))

    return run


def _is_of_numpy(kind: type) -> bool:
    return issubclass(kind, np.ndarray)


def _is_foreign(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and not leaf.dtype.isnative


def _swapped(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("="))
