"""Several yes-or-no values at a time, such as the keys of a piano."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import log_sigmoid

from rnnjax._checks import check_size
from rnnjax._numerics import raised
from rnnjax._recipe import factory
from rnnjax.base import Key
from rnnjax.heads.head import Head, make_head


def _log_prob(logits: Array, values: Array) -> Array:
    # Each half by itself: v l - softplus(l) would lose all digits where the logit l is large.
    values = values.astype(logits.dtype)
    parts = values * log_sigmoid(logits) + (1 - values) * log_sigmoid(-logits)
    return jnp.sum(parts, axis=-1)


def _sample(key: Key, logits: Array) -> Array:
    # The rarer value is drawn, and with more bits than the 23 of a uniform float32, which is 0 in
    # one of 8 million draws: on either side a value comes as rarely as its logit says.
    rarer = jax.random.bernoulli(key, jax.nn.sigmoid(-jnp.abs(raised(logits))), mode="high")
    return (rarer ^ (logits > 0)).astype(logits.dtype)


@factory
def bernoulli_head(size: int) -> Head:
    r"""D values of 0 or 1 that are independent once the output of the layer is known.

    .. math::

        l = h W + b, \qquad \log P(v) = \sum_d v_d \log \sigma(l_d) + (1 - v_d) \log \sigma(-l_d)

    The distribution is the array of logits [..., D]. A value between 0 and 1 is scored by the
    cross entropy.

    Args:
        size: D.

    Raises:
        ValueError: the size is not a positive integer.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> head = rnnjax.bernoulli_head(88)
        >>> params = head.init(jax.random.key(0), 16)
        >>> logits = head.apply(params, jnp.zeros((2, 5, 16)))
        >>> total, count = head.loss(logits, jnp.zeros((2, 5, 88)))
        >>> round(float(total / count), 3), int(count)  # 88 log 2
        (60.997, 10)
        >>> head.sample(jax.random.key(1), logits).shape
        (2, 5, 88)
    """
    size = check_size("size", size)
    return make_head(size, (size,), lambda outputs: outputs, _log_prob, _sample)
