"""A short convolution over time that looks back alone, each channel by itself."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import (
    check_batch_shape,
    check_carry,
    check_function,
    check_key,
    check_shape,
    check_size,
    describe,
)
from rnnjax._devices import with_automatic_axes
from rnnjax._numerics import accumulation_dtype, carry_dtype
from rnnjax._recipe import factory
from rnnjax.base import Carry, Key, Layer
from rnnjax.layers._common import StepArguments, activated, one_array, with_signature
from rnnjax.transforms.precision import Policy, as_operand, as_state, cast_parameters


class CausalConvolutionParams(NamedTuple):
    """``w`` [K, D], the newest step first, and ``bias`` [D]."""

    w: Array
    bias: Array


@factory
def causal_convolution(
    size: int,
    window: int = 4,
    activation: Callable[[Array], Array] | None = None,
    *,
    policy: Policy | None = None,
) -> Layer:
    r"""A convolution over the last K steps, each channel by itself.

    .. math:: y_t = f\Big(b + \sum_{k=0}^{K-1} w_k \odot x_{t-k}\Big)

    Steps are counted as everywhere: a masked step is none, so that :math:`x_{t-1}` is the input of
    the last real step; before the start of a sequence, and before a reset, inputs are zeros. The
    carry is the last K - 1 inputs, [K - 1, D], the newest last. All steps are computed at once.

    Args:
        size: D, of inputs and outputs.
        window: K.
        activation: f; None for the identity.
        policy: the dtypes, as for ``with_policy``.

    Raises:
        ValueError: a size is not a positive integer; when it runs, an input of another size.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> layer = rnnjax.causal_convolution(3, window=4)
        >>> params = layer.init(jax.random.key(0), 3)
        >>> carry, ys = layer.apply(params, jnp.ones((2, 5, 3)), lengths=[5, 2])
        >>> carry.shape, ys.shape
        ((2, 3, 3), (2, 5, 3))

    References:
        Gu and Dao, "Mamba", 2023, arXiv:2312.00752; De et al., "Griffin", 2024, arXiv:2402.19427:
        both have one of K = 4 before their recurrence.
    """
    channels, reach = check_size("size", size), check_size("window", window)
    if activation is not None:
        check_function("activation", activation)

    def init(key: Key, input_size: int) -> CausalConvolutionParams:
        if check_size("input_size", input_size) != channels:
            raise ValueError(f"input_size must be size, {channels}, got {input_size}")
        shape, bound = (reach, channels), reach**-0.5
        w = jax.random.uniform(check_key(key), shape, jnp.float32, -bound, bound)
        params = CausalConvolutionParams(w, jnp.zeros((channels,), jnp.float32))
        return cast_parameters(policy, params)

    def dtype_of(params: CausalConvolutionParams) -> jnp.dtype:
        return carry_dtype(params) if policy is None else jnp.dtype(policy.state)

    def own_carry(params: CausalConvolutionParams, batch_shape: tuple[int, ...] = ()) -> Array:
        return jnp.zeros((*check_batch_shape(batch_shape), reach - 1, channels), dtype_of(params))

    def apply(
        params: CausalConvolutionParams,
        xs: Array,
        steps: StepArguments,
        initial_carry: Carry,
        key: Key | None,
    ) -> tuple[Carry, Array]:
        if "context" in steps:
            came = describe(steps["context"])
            raise ValueError(f"context must be None for causal_convolution, got {came}")
        xs = one_array(xs)
        if xs.shape[-1] != channels:
            raise ValueError(f"xs must have shape [..., T, {channels}], got shape {xs.shape}")
        check_shape("params.w", params.w, (reach, channels))
        check_shape("params.bias", params.bias, (channels,))
        batch, time = xs.shape[:-2], xs.shape[-2]
        mask, resets = steps["mask"], steps["resets"]
        valid = masking.valid_steps(steps["lengths"], mask, batch, time)
        if resets is not None:
            resets = masking.check_flags("resets", resets, batch, time)
        start = own_carry(params, batch)
        if initial_carry is not None:
            start = check_carry("initial_carry", initial_carry, jax.eval_shape(lambda: start))
        # Rounded as what the carry keeps of them, and summed in no less than 32 bits.
        work = accumulation_dtype(start.dtype)
        past = masking.zero_padding(valid, xs).astype(start.dtype).astype(work)
        w = as_operand(policy, params.w).astype(work)

        def run(given: tuple) -> tuple[Array, Array]:
            past, valid, resets, start, w, bias = given
            if mask is None and resets is None:
                carry, total = _evenly(past, valid, start.astype(work), w)
            else:
                carry, total = _by_places(past, valid, resets, start.astype(work), w)
            total = total + bias.astype(total.dtype).reshape((1,) * (total.ndim - 1) + bias.shape)
            return carry.astype(start.dtype), total

        given = (past, valid, resets, start, w, params.bias)
        carry, ys = with_automatic_axes(run, given, xs, len(batch))
        return carry, as_state(policy, activated(activation, valid, ys))

    return Layer(
        init=init,
        apply=with_signature(apply, CausalConvolutionParams),
        output_size=channels,
        last=masking.take_last,
        initial_carry=own_carry,
        direction="forward",
    )


def _weighted(w: Array, k: int, xs: Array) -> Array:
    return xs * w[k].reshape((1,) * (xs.ndim - 1) + w.shape[1:])


def _numbers(count: int, ndim: int) -> Array:
    """0 to count - 1 along the last of ``ndim`` axes."""
    return jnp.arange(count, dtype=jnp.int32).reshape((1,) * (ndim - 1) + (count,))


def _evenly(past: Array, valid: Array | None, start: Array, w: Array) -> tuple[Array, Array]:
    """Real steps come first, and no segment begins among them: what is k steps back is k back."""
    reach, time = len(w) - 1, past.shape[-2]
    joined = jnp.concatenate([start, past], axis=-2)
    total = jnp.zeros_like(past)
    for k in range(reach + 1):
        total += _weighted(w, k, joined[..., reach - k : reach - k + time, :])
    if valid is None:
        return joined[..., time:, :], total
    length = jnp.sum(valid, axis=-1, dtype=jnp.int32)[..., None]
    places = length + _numbers(reach, length.ndim)
    return jnp.take_along_axis(joined, places[..., None], axis=-2), total


def _by_places(
    past: Array, valid: Array | None, resets: Array | None, start: Array, w: Array
) -> tuple[Array, Array]:
    """Any mask, any resets: each real step looks up where those before it stand.

    Real steps are numbered; those of the carry have the numbers below 0.
    """
    reach, time = len(w) - 1, past.shape[-2]
    real = jnp.ones(past.shape[:-1], bool) if valid is None else valid
    starts = jnp.zeros_like(real) if resets is None else resets & real
    number = jnp.cumsum(real, axis=-1, dtype=jnp.int32) - 1
    segment = jnp.cumsum(starts, axis=-1, dtype=jnp.int32)
    place_of = jnp.argsort(~real, axis=-1, stable=True).astype(jnp.int32)
    joined = jnp.concatenate([start, past], axis=-2)
    older = jnp.zeros((*segment.shape[:-1], reach), jnp.int32)
    segments = jnp.concatenate([older, segment], axis=-1)

    def at(number: Array, of: Array) -> Array:
        """The inputs with these numbers [..., M], zeros where another segment is theirs."""
        inside = number  # without steps, all that is looked up is in the carry
        if time:
            inside = jnp.take_along_axis(place_of, jnp.maximum(number, 0), axis=-1)
        places = jnp.maximum(reach + jnp.where(number < 0, number, inside), 0)
        found = jnp.take_along_axis(joined, places[..., None], axis=-2)
        same = jnp.take_along_axis(segments, places, axis=-1) == of
        return jnp.where(same[..., None], found, 0)

    total = jnp.zeros_like(past)
    for k in range(reach + 1):
        total += _weighted(w, k, at(number - k, segment))
    count = jnp.sum(real, axis=-1, dtype=jnp.int32)[..., None]
    last = jnp.max(segments, axis=-1, keepdims=True, initial=0)
    newest = count - reach + _numbers(reach, count.ndim)
    return at(newest, jnp.broadcast_to(last, newest.shape)), total
