"""Several heads side by side, as one."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax._checks import check_key, describe
from rnnjax._recipe import factory
from rnnjax.base import Key
from rnnjax.heads.head import Head, as_they_are, check_values


@factory
def joint_head(*heads: Head) -> Head:
    r"""A vector in parts, each with a head of its own: :math:`p(v) = \prod_k p_k(v_k)`.

    The parts are independent once the output of the layer is known. Parameters and distributions
    are tuples, one entry a head; values are the parts behind one another.

    Args:
        heads: the heads, in the order of the parts; all of vectors.

    Raises:
        ValueError: no head, or one of ids.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> pen = rnnjax.joint_head(rnnjax.gaussian_mixture_head(20, 2), rnnjax.bernoulli_head(1))
        >>> params = pen.init(jax.random.key(0), 16)
        >>> strokes = pen.sample(jax.random.key(1), pen.apply(params, jnp.zeros((5, 16))))
        >>> strokes.shape  # how far to the right, how far up, and whether the pen is lifted
        (5, 3)
    """
    if not heads:
        raise ValueError("joint_head needs at least one head, got none")
    for head in heads:
        if not isinstance(head, Head) or len(head.value_shape) != 1:
            raise ValueError(f"heads must be of vectors [..., D], got {head!r}")
    sizes = [head.value_shape[0] for head in heads]
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes) - 1)]
    value_shape = (sum(sizes),)

    def each(name: str, parts: Any) -> tuple:
        if not isinstance(parts, tuple | list) or len(parts) != len(heads):
            raise ValueError(
                f"{name} must be a tuple of {len(heads)}, one entry a head, got {describe(parts)}"
            )
        return tuple(parts)

    def init(key: Key, input_size: int) -> tuple:
        keys = jax.random.split(check_key(key), len(heads))
        return tuple(head.init(k, input_size) for head, k in zip(heads, keys, strict=True))

    def apply(params: tuple, hs: Array) -> tuple:
        return tuple(
            head.apply(own, hs) for head, own in zip(heads, each("params", params), strict=True)
        )

    def parts(given: tuple, values: Any) -> Any:
        split = jnp.split(check_values(values, value_shape), ends, axis=-1)
        return zip(heads, each("distribution", given), split, strict=True)

    def log_prob(given: tuple, values: Any, mask: Any = None) -> Array:
        scores = [head.log_prob(own, part, mask) for head, own, part in parts(given, values)]
        return jax.tree.reduce(jnp.add, scores)

    def loss(given: tuple, values: Any, mask: Any = None) -> tuple[Array, Array]:
        pairs = [head.loss(own, part, mask) for head, own, part in parts(given, values)]
        totals, counts = zip(*pairs, strict=True)
        return jax.tree.reduce(jnp.add, totals), counts[0]

    def sample(key: Key, given: tuple) -> Array:
        keys = jax.random.split(check_key(key), len(heads))
        own = each("distribution", given)
        drawn = [head.sample(k, one) for head, k, one in zip(heads, keys, own, strict=True)]
        return jnp.concatenate(drawn, axis=-1)

    return Head(init, apply, log_prob, loss, sample, as_they_are, value_shape, value_shape[0])
