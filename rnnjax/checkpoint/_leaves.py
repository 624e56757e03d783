"""The arrays of a state under their paths, and what is known of each."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax._checks import shown
from rnnjax._native import in_native_order

# What is written and comes back bit for bit. Of text, dates and objects Orbax writes nothing, and
# of numbers of fewer than eight bits, or more than sixty-four, not all.
_WRITTEN = {
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *("int2", "int4", "bfloat16", "float16", "float32", "float64", "complex64", "complex128"),
    *("float4_e2m1fn", "float8_e3m4", "float8_e4m3b11fnuz", "float8_e4m3fn"),
    *("float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
}


def named(what: str, tree: Any) -> dict[str, Any]:
    """The leaves under their paths, as in ".params['w']".

    Raises:
        ValueError: one is no array, or none that can be written, or two have the same path; names
            it, as a part of ``what``.
    """
    leaves = [(jax.tree_util.keystr(p), leaf) for p, leaf in jax.tree.leaves_with_path(tree)]
    for name, leaf in leaves:
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
            got = type(leaf).__name__ if hasattr(leaf, "shape") else shown(leaf)
            raise ValueError(f"{what}{name} must be an array of JAX or NumPy, got {got}")
        if not is_key(leaf) and leaf.dtype.name not in _WRITTEN:
            raise ValueError(
                f"{what}{name} must be an array of numbers or flags, got dtype {leaf.dtype}"
            )
    doubled = [name for name, times in Counter(name for name, _ in leaves).items() if times > 1]
    if doubled:
        raise ValueError(f"{what} must have one leaf a path, got several at {', '.join(doubled)}")
    # Orbax would write another byte order as this one, and the manifest would say the other.
    return {n: in_native_order(a) if isinstance(a, np.ndarray) else a for n, a in leaves}


def kind_of(leaf: Any) -> str:
    """Dtype and shape as in the manifest, ``float32[2,3]``."""
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def is_key(leaf: Any) -> bool:
    """Whether an array is one of typed keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def without_keys(leaves: dict[str, Any]) -> dict[str, Any]:
    """The leaves with keys as the numbers in them, and without those that have no elements.

    Orbax refuses arrays without elements, and the manifest says all there is to know of them.
    """
    plain = {n: jax.random.key_data(leaf) if is_key(leaf) else leaf for n, leaf in leaves.items()}
    return {name: leaf for name, leaf in plain.items() if leaf.size}


def is_divided(name: str, leaf: Any) -> bool:
    """Whether no process has all of an array.

    Raises:
        ValueError: this process has nothing of it.
    """
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return False
    if not leaf.addressable_shards:
        raise ValueError(f"state{name} must have a part in every process, got {leaf.sharding}")
    return not leaf.is_fully_replicated


def to_host(leaves: dict[str, Any]) -> dict[str, np.ndarray]:
    """Copies of arrays in the memory of the host."""
    # Copied: NumPy's arrays may be changed before they are written, and the memory of JAX's could
    # not be given away (donated) in the next step while NumPy looks at it.
    return {name: np.array(leaf) for name, leaf in jax.device_get(leaves).items()}
