"""What a head is, and what all heads share."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_key, check_params, check_size, describe
from rnnjax._numerics import affine, carry_dtype
from rnnjax._recipe import Made
from rnnjax._values import require_finite
from rnnjax.base import Key
from rnnjax.initializers import draw_linear


class HeadParams(NamedTuple):
    """``w`` [H, P] and ``bias`` [P], for the P parameters of the distribution."""

    w: Array
    bias: Array


class _HeadFields(NamedTuple):
    init: Callable[[Key, int], Any]
    apply: Callable[[Any, Array], Any]
    log_prob: Callable[..., Array]
    loss: Callable[..., tuple[Array, Array]]
    sample: Callable[[Key, Any], Array]
    encode: Callable[[Any], Array]
    value_shape: tuple[int, ...]
    input_size: int


class Head(Made, _HeadFields):
    """A distribution of the next value, as pure functions of the output of a layer.

    Values of masked steps are never read: NaN there changes nothing, and gradients there are zero.
    All numbers are computed in at least float32.

    Attributes:
        init: ``(key, input_size) -> params``.
        apply: ``(params, hs [..., H]) -> distribution``, its parameters, a tree of arrays [..., *].
        log_prob: ``(distribution, values, mask=None) -> [...]``, the logarithm of the density, or
            of the probability, of each value; 0 where ``mask`` [...] is False.
        loss: ``(distribution, values, mask=None) -> (total, count)``: what is to be made small,
            summed over the values that count, and their number. A loss function of
            ``rnnjax.make_train_step`` divides them; ``rnnjax.metrics.merge`` adds them up.
            ``quantile_head`` takes a mask of every number, [..., D], too.
        sample: ``(key, distribution) -> values``; every value is a draw of its own.
        encode: ``(values) -> [..., E]``, a value as a layer reads it.
        value_shape: the axes of a single value, ``(D,)``, or ``()`` for ids.
        input_size: E.
    """


def make_head(
    num_parameters: int,
    value_shape: tuple[int, ...],
    distribution: Callable[[Array], Any],
    log_prob: Callable[[Any, Array], Array],
    sample: Callable[[Key, Any], Array],
    *,
    encode: Callable[[Array], Array] | None = None,
    input_size: int | None = None,
    error: Callable[[Any, Array], Array] | None = None,
    start: Callable[[Array], Array] | None = None,
) -> Head:
    """A head with one linear map.

    Args:
        num_parameters: P.
        value_shape: of a single value.
        distribution: from [..., P], at least float32, to the distribution. All parameters zero
            must be one of finite density everywhere: it stands at steps that are masked.
        log_prob: of values that have the right shape.
        sample: a draw for every distribution.
        encode: values as a layer reads them; None for values as they are.
        input_size: the size of one that is encoded; None for that of the value.
        error: [..., D], in place of ``-log_prob`` in the loss: of every number by itself, so that
            some may be missing.
        start: changes the bias that the head starts with.
    """

    def init(key: Key, input_size: int) -> HeadParams:
        w, bias = draw_linear(check_key(key), check_size("input_size", input_size), num_parameters)
        return HeadParams(w, bias if start is None else start(bias))

    def apply(params: HeadParams, hs: Array) -> Any:
        params = check_params(params, HeadParams)
        hs = jnp.asarray(masking.as_array("hs", hs))
        return distribution(affine(hs, params.w, params.bias, name="hs", size=num_parameters))

    @functools.cache
    def single() -> Any:
        """The shapes of a single distribution."""
        return jax.eval_shape(distribution, jax.ShapeDtypeStruct((num_parameters,), jnp.float32))

    def masked(score: Callable, by_number: bool = False) -> Callable[..., Array]:
        return lambda given, values, mask=None: _score_real(
            score, value_shape, single(), given, values, mask, by_number
        )

    scored = masked(log_prob)
    error_of = masked(lambda d, v: -log_prob(d, v)) if error is None else masked(error, True)

    def draw(key: Key, given: Any) -> Array:
        return sample(check_key(key), jax.tree.map(jnp.asarray, given))

    return Head(
        init=init,
        apply=apply,
        log_prob=scored,
        loss=lambda given, values, mask=None: _summed(error_of(given, values, mask), mask),
        sample=draw,
        encode=as_they_are if encode is None else encode,
        value_shape=value_shape,
        input_size=value_shape[0] if input_size is None else input_size,
    )


def as_they_are(values: Any) -> Array:
    """Values as a layer reads them that are vectors already; flags and counts as float32."""
    values = jnp.asarray(masking.as_array("values", values))
    # Not as wide as x64 makes a float: with weights of float32 all that follows would be.
    return values if jnp.issubdtype(values.dtype, jnp.floating) else values.astype(jnp.float32)


def _score_real(
    score: Callable,
    value_shape: tuple[int, ...],
    single: Any,
    given: Any,
    values: Any,
    mask: Any,
    by_number: bool,
) -> Array:
    """``score(distribution, values)`` [...], 0 at masked steps, which are not read.

    ``by_number``: the score is [..., D], of which the sum is taken, and so may the mask be.
    """
    given = jax.tree.map(jnp.asarray, given)
    values = check_values(values, value_shape)
    # The widest of all, and no less than 32 bits, in which totals are kept.
    dtype = carry_dtype((given, values))
    given, values = jax.tree.map(
        lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, (given, values)
    )
    batch = values.shape[: values.ndim - len(value_shape)]
    expected = _batch_of(given, single)
    if batch != expected:
        raise ValueError(
            f"values must have shape {expected + value_shape}, one value for each distribution, "
            f"got shape {values.shape}"
        )
    if mask is not None:
        mask = jnp.asarray(masking.as_array("mask", mask))
        shapes = (batch, values.shape) if by_number else (batch,)
        if mask.dtype != bool or mask.shape not in shapes:
            raise ValueError(
                f"mask must be bool and have shape {' or '.join(map(str, shapes))}, got "
                f"{mask.dtype} of shape {mask.shape}"
            )
        if by_number and mask.shape == batch:
            mask = jnp.broadcast_to(mask[..., None], values.shape)
    # Both before and after: a value that is not selected still has its derivative taken.
    scores = score(*masking.zero_padding(mask, (given, values)))
    scores = masking.zero_padding(mask, scores)
    require_finite("the score of a value", scores, mask)
    return jnp.sum(scores, axis=-1) if by_number else scores


def _batch_of(given: Any, single: Any) -> tuple[int, ...]:
    """The axes of a distribution in front of those of a single one.

    Raises:
        ValueError: it is another distribution, as of a head of another size.
    """
    if jax.tree.structure(given) != jax.tree.structure(single):
        raise ValueError(f"distribution must be {describe(single)}, got {describe(given)}")
    pairs = list(zip(jax.tree.leaves(given), jax.tree.leaves(single), strict=True))
    batch = pairs[0][0].shape[: pairs[0][0].ndim - pairs[0][1].ndim]
    for leaf, one in pairs:
        if leaf.shape != (*batch, *one.shape):
            axes = ", ".join(("...", *map(str, one.shape)))
            raise ValueError(
                f"distribution must have arrays of shape [{axes}], as the head gives, "
                f"got shape {leaf.shape}"
            )
    return batch


def _summed(scores: Array, mask: Any) -> tuple[Array, Array]:
    """The sum of scores, at least float32, and how many of them count."""
    if mask is not None and jnp.ndim(mask) > scores.ndim:
        mask = jnp.any(jnp.asarray(mask), axis=-1)  # a step counts if one of its numbers is there
    count = jnp.array(scores.size) if mask is None else jnp.sum(jnp.asarray(mask))
    return jnp.sum(scores), count


def check_values(values: Any, value_shape: tuple[int, ...]) -> Array:
    """Values [..., *value_shape]: vectors as at least float32, and ids as integers.

    Raises:
        ValueError: they have another shape or dtype.
    """
    if not value_shape:
        return masking.as_integers("values", values)
    values = jnp.asarray(masking.as_array("values", values))
    if values.ndim < len(value_shape) or values.shape[-len(value_shape) :] != value_shape:
        sizes = ", ".join(map(str, value_shape))
        raise ValueError(f"values must have shape [..., {sizes}], got shape {values.shape}")
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise ValueError(f"values must be real, got dtype {values.dtype}")
    wide = jnp.issubdtype(values.dtype, jnp.floating) and jnp.finfo(values.dtype).bits >= 32
    return values if wide else values.astype(jnp.float32)
