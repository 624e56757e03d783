"""Attention: what of a memory a query needs, for all steps at once."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_floating, check_key, check_params, check_size
from rnnjax._numerics import accumulation_dtype, affine
from rnnjax._recipe import Made, factory
from rnnjax.base import Key
from rnnjax.initializers import draw_linear

KINDS = ("dot", "scaled", "general", "additive", "local")


class _AttentionFields(NamedTuple):
    init: Callable[[Key, int, int], Any]
    apply: Callable[..., tuple[Array, Array]]
    query_weights: Callable[[Any], Array | None]
    keys: Callable[[Any, Array], Array]
    weigh: Callable[[Any, Array, Array, Array], Array]


class Attention(Made, _AttentionFields):
    """Attention as pure functions.

    Attributes:
        init: ``(key, query_size, memory_size) -> params``.
        apply: ``(params, queries [..., T, H], memory [..., S, D], lengths [...], *, mask [..., S])
            -> (contexts [..., T, D], weights [..., T, S])``. ``lengths`` and ``mask`` say which
            places of the memory are real, as for ``unroll``.
        query_weights: ``(params) -> [H, A]``, what a query is multiplied by, so that a recurrent
            loop can do it together with its own product; None where a query is used as it is.
        keys: ``(params, memory [..., S, D]) -> [..., S, K]``, what a query meets: made once for
            each memory, of which places that are not real must be finite.
        weigh: ``(params, queries [..., T, A], keys [..., S, K], real [..., S]) ->
            weights [..., T, S]``, of queries that ``query_weights`` has multiplied.
    """


class GeneralParams(NamedTuple):
    """``w`` [H, D]."""

    w: Array


class AdditiveParams(NamedTuple):
    """``query`` [H, A], ``key`` [D, A] and ``v`` [A]; ``bias`` [A], or None for none."""

    query: Array
    key: Array
    v: Array
    bias: Array | None = None


class LocalParams(NamedTuple):
    """``w`` [H, D] of the scores, and ``place`` [H, A], ``v`` [A] of the place looked at."""

    w: Array
    place: Array
    v: Array


@factory
def attention(
    kind: str = "general", *, size: int | None = None, window: int | None = None
) -> Attention:
    r"""Weights over a memory, and the mean of the memory under them.

    .. math::

        a_{ts} = \frac{\exp e_{ts}}{\sum_{s'} \exp e_{ts'}}, \qquad c_t = \sum_s a_{ts} m_s

    with a score by ``kind``:

    .. math::

        \text{dot} &: h_t \cdot m_s \qquad \text{scaled} : h_t \cdot m_s / \sqrt{H} \\
        \text{general} &: h_t W \cdot m_s \qquad
        \text{additive} : v \cdot \tanh(h_t W_q + m_s W_k + b) \\
        \text{local} &: \text{general, times } \exp(-(s - p_t)^2 / 2 \sigma^2)
            \text{ after the softmax, } p_t = S \, \mathrm{sigmoid}(v \cdot \tanh(h_t W_p)),
            \ \sigma = \text{window} / 2

    b is 0 at first, and no parameter: weights of other libraries that have one are given as
    ``params._replace(bias=b)``, the sum of both where queries and keys have one each.

    Places that are not real have weight exactly 0 and are never read: NaN there changes nothing.
    Where no place is real, weights and context are 0. A local attention counts the real places
    alone, from 0, and S is their number.

    Args:
        kind: see above. Dot and scaled need queries as wide as the memory.
        size: A, of what is inside the tanh of "additive" and "local"; None for the size of the
            queries.
        window: how far from its place a local attention looks: twice the :math:`\sigma` above.
            None for 10.

    Raises:
        ValueError: an unknown kind, a ``size`` for one without a tanh, or a ``window`` for one that
            is not local; from ``init``, sizes that the kind does not take.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> attend = rnnjax.attention("additive")
        >>> params = attend.init(jax.random.key(0), 4, 6)
        >>> queries, memory = jnp.ones((2, 3, 4)), jnp.ones((2, 5, 6))
        >>> contexts, weights = attend.apply(params, queries, memory, lengths=[5, 2])
        >>> contexts.shape, weights[1, 0].tolist()
        ((2, 3, 6), [0.5, 0.5, 0.0, 0.0, 0.0])

    References:
        Bahdanau, Cho and Bengio, "Neural machine translation by jointly learning to align and
        translate", ICLR 2015 (additive); Luong, Pham and Manning, "Effective approaches to
        attention-based neural machine translation", EMNLP 2015 (dot, general, local).
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    inner = None if size is None else check_size("size", size)
    if inner is not None and kind not in ("additive", "local"):
        raise ValueError(f"size must be None for kind={kind!r}, which has no tanh, got {inner}")
    reach = 10 if window is None else check_size("window", window)
    if window is not None and kind != "local":
        raise ValueError(f"window must be None for kind={kind!r}, which is not local, got {reach}")

    def init(key: Key, query_size: int, memory_size: int) -> Any:
        one, two, three = jax.random.split(check_key(key), 3)
        queries = check_size("query_size", query_size)
        places = check_size("memory_size", memory_size)
        width = queries if inner is None else inner
        if kind in ("dot", "scaled"):
            if queries != places:
                raise ValueError(
                    f"kind={kind!r} needs queries as wide as the memory, {places}, got {queries}"
                )
            return ()
        if kind == "general":
            return GeneralParams(draw_linear(one, queries, places)[0])
        v = draw_linear(three, width, 1)[0][:, 0]
        if kind == "additive":
            query, memory = draw_linear(one, queries, width)[0], draw_linear(two, places, width)[0]
            return AdditiveParams(query, memory, v)
        return LocalParams(
            draw_linear(one, queries, places)[0], draw_linear(two, queries, width)[0], v
        )

    def query_weights(params: Any) -> Array | None:
        if kind in ("dot", "scaled"):
            return None
        if kind == "additive":
            return check_params(params, AdditiveParams).query
        if kind == "general":
            return check_params(params, GeneralParams).w
        params = check_params(params, LocalParams)
        return jnp.concatenate([params.w, params.place], axis=-1)

    def keys(params: Any, memory: Array) -> Array:
        if kind != "additive":
            return memory
        params = check_params(params, AdditiveParams)
        return affine(memory, params.key, params.bias, name="memory")

    def weigh(params: Any, queries: Array, keys: Array, real: Array) -> Array:
        places = None
        if kind == "local":
            width = keys.shape[-1]
            queries, places = queries[..., :width], queries[..., width:]
        weights = masked_softmax(_scores(kind, params, queries, keys), real[..., None, :])
        if places is None:
            return weights
        return weights * _nearness(params.v, places, real, reach).astype(weights.dtype)

    def apply(
        params: Any, queries: Array, memory: Array, lengths: Any = None, *, mask: Any = None
    ) -> tuple[Array, Array]:
        queries, memory = (
            _as_vectors(name, a) for name, a in (("queries", queries), ("memory", memory))
        )
        batch, steps = memory.shape[:-2], memory.shape[-2]
        if queries.shape[:-2] != batch:
            raise ValueError(
                f"queries must have shape [..., T, H] with the batch axes of memory, {batch}, "
                f"got shape {queries.shape}"
            )
        valid = masking.valid_steps(lengths, mask, batch, steps)
        memory = masking.zero_padding(valid, memory)
        real = jnp.ones((*batch, steps), bool) if valid is None else valid
        w_q = query_weights(params)
        queries = queries if w_q is None else affine(queries, w_q, name="queries")
        weights = weigh(params, queries, keys(params, memory), real)
        return weighted_mean(weights, memory), weights

    return Attention(init, apply, query_weights, keys, weigh)


def _as_vectors(name: str, given: Any) -> Array:
    """An array [..., S, D] of floats.

    Raises:
        ValueError: naming ``name`` and what came instead.
    """
    array = masking.as_array(name, given)
    if array.ndim < 2:
        raise ValueError(f"{name} must have shape [..., T, D], got shape {array.shape}")
    check_floating(name, array)
    return jnp.asarray(array)


def weighted_mean(weights: Array, values: Array) -> Array:
    """Values [..., S, D] under weights [..., T, S]: [..., T, D], summed in at least float32."""
    dtype = accumulation_dtype(values.dtype)
    return jnp.einsum(
        "...ts,...sd->...td", weights.astype(values.dtype), values, preferred_element_type=dtype
    )


# One program: its infinity is no value that jax_debug_infs would stop at.
@functools.partial(jax.jit, inline=True)
def masked_softmax(scores: Array, real: Array) -> Array:
    """The softmax over the last axis of what is ``real``; 0 elsewhere, and where nothing is."""
    scores = scores.astype(accumulation_dtype(scores.dtype))
    scores = jnp.where(real, scores, -jnp.inf)
    most = jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf)
    shifted = jnp.where(real, scores - most, 0.0)
    exponents = jnp.where(real, jnp.exp(shifted), 0.0)
    total = jnp.sum(exponents, axis=-1, keepdims=True)
    return exponents / jnp.where(total == 0, 1.0, total)


def _scores(kind: str, params: Any, queries: Array, keys: Array) -> Array:
    """How well each query [..., T, A] meets each key [..., S, K]: [..., T, S]."""
    if kind == "additive":
        meeting = jnp.tanh(queries[..., :, None, :] + keys[..., None, :, :])
        return jnp.einsum("...a,a->...", meeting, params.v.astype(meeting.dtype))
    dtype = accumulation_dtype(keys.dtype)
    products = jnp.einsum(
        "...td,...sd->...ts", queries.astype(keys.dtype), keys, preferred_element_type=dtype
    )
    return products / queries.shape[-1] ** 0.5 if kind == "scaled" else products


def _nearness(v: Array, places: Array, real: Array, window: int) -> Array:
    """How near each place is to the one looked at, [..., T, S]."""
    dtype = places.dtype
    count = jnp.sum(real, axis=-1, dtype=dtype)[..., None]
    share = jax.nn.sigmoid(jnp.einsum("...a,a->...", jnp.tanh(places), v.astype(dtype)))
    # Places are counted among the real ones, so that a hole in the mask is no distance.
    counted = jnp.cumsum(real, axis=-1, dtype=dtype)[..., None, :] - 1
    distance = counted - (count * share)[..., None]
    return jnp.exp(-(distance**2) / (2 * (window / 2) ** 2))
