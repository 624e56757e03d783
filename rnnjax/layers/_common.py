"""What all layers share: their signature, their keys, the check of their parts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax._checks import check_key
from rnnjax.base import Apply, Carry, Key, Params

Steps = dict[str, Any]  # lengths, mask and resets, handed on as they came


def apply_dropout(key: Key | None, xs: Array, rate: float) -> Array:
    """``xs`` with each element zeroed at ``rate`` and the rest scaled by ``1 / (1 - rate)``.

    Without a key, or at rate 0, ``xs`` itself.

    References:
        Srivastava et al., "Dropout", JMLR 15 (2014).
    """
    if key is None or rate == 0.0:
        return xs
    keep = jax.random.bernoulli(key, 1.0 - rate, xs.shape)
    return jnp.where(keep, xs / (1.0 - rate), jnp.zeros_like(xs))


def _public(apply: Callable) -> Apply:
    """``apply`` under the signature all layers share."""

    def public(
        params: Params,
        xs: Array,
        lengths: Any = None,
        *,
        mask: Any = None,
        resets: Any = None,
        initial_carry: Carry = None,
        key: Key | None = None,
    ) -> tuple[Carry, Any]:
        steps: Steps = {"lengths": lengths, "mask": mask, "resets": resets}
        return apply(params, xs, steps, initial_carry, key)

    return public


def _split_key(key: Key | None, count: int, stream: int = 0) -> Any:
    if key is None:
        return [None] * count
    return jax.random.split(jax.random.fold_in(check_key(key), stream), count)


def _check_parts(name: str, parts: Any, count: int, kinds: Any = tuple) -> None:
    if isinstance(parts, kinds) and len(parts) == count:
        return
    length = f" of {len(parts)}" if isinstance(parts, tuple | list) else ""
    shown = jax.tree.map(
        lambda leaf: jax.typeof(leaf).str_short() if hasattr(leaf, "shape") else leaf, parts
    )
    raise ValueError(
        f"{name} must be a tuple of {count} parts, got {type(parts).__name__}{length}, {shown!r}"
    )
