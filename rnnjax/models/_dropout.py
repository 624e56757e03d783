"""What models drop in training: features of a whole sequence, and whole words."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_floating, check_key, check_rate
from rnnjax._devices import with_automatic_axes
from rnnjax._numerics import draw_flags, keep_scaled
from rnnjax.base import Key


def split_key(key: Key | None, count: int) -> Any:
    """Keys for ``count`` parts of a model; None for each without one."""
    return (None,) * count if key is None else jax.random.split(check_key(key), count)


def locked_dropout(key: Key | None, xs: Array, rate: float) -> Array:
    """``xs`` [..., T, H] with features dropped at ``rate``, the same at all steps of a sequence.

    What is kept is scaled by ``1 / (1 - rate)``. Without a key, or at rate 0, ``xs`` itself.

    Raises:
        ValueError: a rate outside [0, 1), ``xs`` of fewer axes or not floating, or a wrong key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rnnjax.models import locked_dropout
        >>> dropped = locked_dropout(jax.random.key(0), jnp.ones((5, 8)), 0.5)
        >>> bool(jnp.all(dropped == dropped[:1])), sorted(set(dropped[0].tolist()))
        (True, [0.0, 2.0])

    References:
        Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural
        networks", NIPS 2016.
    """
    rate = check_rate("rate", rate)
    check_floating("xs", xs)
    if xs.ndim < 2:
        raise ValueError(f"xs must have shape [..., T, H], got shape {xs.shape}")
    if key is None or rate == 0.0:
        return xs
    key, xs = check_key(key), jnp.asarray(masking.as_array("xs", xs))

    def dropped(given: tuple[Key, Array]) -> Array:
        key, xs = given
        keep = draw_flags(key, 1.0 - rate, (*xs.shape[:-2], 1, xs.shape[-1]))
        return keep_scaled(keep, xs, rate)

    return with_automatic_axes(dropped, (key, xs), xs, xs.ndim)


def drop_words(key: Key | None, tokens: Array, xs: Array, vocab_size: int, rate: float) -> Array:
    """``xs`` [..., T, E] with words dropped: those drawn from the vocabulary, wherever they are."""
    if key is None or rate == 0.0:
        return xs

    def dropped(given: tuple[Key, Array, Array]) -> Array:
        key, tokens, xs = given
        keep = draw_flags(key, 1.0 - rate, (vocab_size,))[tokens]
        return keep_scaled(keep[..., None], xs, rate)

    return with_automatic_axes(dropped, (key, tokens, xs), xs, xs.ndim)
