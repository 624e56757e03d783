"""One of several classes at a time."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_size
from rnnjax._recipe import factory
from rnnjax._values import check_range
from rnnjax.base import Key
from rnnjax.heads.head import Head, make_head


def _log_prob(logits: Array, values: Array) -> Array:
    count = logits.shape[-1]
    places = jnp.clip(values, 0, count - 1)[..., None]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), places, axis=-1).squeeze(-1)
    return jnp.where((values < 0) | (values >= count), jnp.nan, chosen)


def _sample(key: Key, logits: Array) -> Array:
    # The usual draw resolves no probability below 2^-24.
    return jax.random.categorical(key, logits, mode="high").astype(jnp.int32)


@factory
def categorical_head(num_classes: int) -> Head:
    r"""One of C classes, :math:`\log P(v) = \log \mathrm{softmax}(h W + b)_v`.

    The distribution is the array of logits [..., C], a value an id; as a layer reads it, it is
    one-hot. An id outside [0, C) has the log probability NaN, and is not read: it is refused, or
    where ids are traced it is zeros. For texts see :func:`rnnjax.language_model`.

    Args:
        num_classes: C.

    Raises:
        ValueError: the number is not a positive integer.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> head = rnnjax.categorical_head(4)
        >>> params = head.init(jax.random.key(0), 16)
        >>> logits = head.apply(params, jnp.zeros((2, 5, 16)))
        >>> total, count = head.loss(logits, jnp.zeros((2, 5), int))
        >>> round(float(total / count), 3)  # log 4
        1.386
    """
    size = check_size("num_classes", num_classes)

    def encode(values: Any) -> Array:
        ids = masking.as_integers("values", values)
        check_range("values", ids, size, f"[0, {size})")
        return jax.nn.one_hot(ids, size, dtype=jnp.float32)

    return make_head(
        size,
        (),
        lambda outputs: outputs,
        _log_prob,
        _sample,
        encode=encode,
        input_size=size,
    )
