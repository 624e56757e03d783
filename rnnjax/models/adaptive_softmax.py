"""A softmax over many words that spends its time on the frequent ones."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_key, check_number, check_params, check_shape, check_size
from rnnjax._numerics import affine
from rnnjax._recipe import Made, factory
from rnnjax.base import Key
from rnnjax.initializers import draw_linear


class _AdaptiveSoftmaxFields(NamedTuple):
    init: Callable[[Key], Any]
    log_prob: Callable[[Any, Array, Array], Array]
    log_probs: Callable[[Any, Array], Array]
    input_size: int
    vocab_size: int


class AdaptiveSoftmax(Made, _AdaptiveSoftmaxFields):
    """Probabilities of words in clusters, as pure functions.

    Attributes:
        init: ``(key) -> params``.
        log_prob: ``(params, hs [..., H], targets [...]) -> [...]``, without all words' logits.
        log_probs: ``(params, hs [..., H]) -> [..., V]``, of all words.
        input_size: H.
        vocab_size: V.
    """


class Cluster(NamedTuple):
    """``down`` [H, H / d^k], and ``w`` [H / d^k, n], ``bias`` [n] of the words in the cluster."""

    down: Array
    w: Array
    bias: Array


class AdaptiveSoftmaxParams(NamedTuple):
    """Of the frequent words and of the choice among clusters, ``w`` [H, n + K] and ``bias``."""

    w: Array
    bias: Array
    clusters: tuple[Cluster, ...]


@factory
def adaptive_softmax(
    input_size: int, vocab_size: int, cutoffs: Sequence[int], *, divisor: float = 4.0
) -> AdaptiveSoftmax:
    r"""A softmax whose rare words stand in clusters, each with a narrower input.

    .. math::

        P(w | h) = \begin{cases} P_0(w | h) & w < n_1 \\
            P_0(\text{cluster } k | h)\, P_k(w | D_k h) & n_k \le w < n_{k+1} \end{cases}

    with :math:`D_k h` of size :math:`H / d^k`. Ids must be sorted by how frequent they are, as
    ``rnnjax.data.Vocabulary`` sorts them.

    Args:
        input_size: H.
        vocab_size: V.
        cutoffs: :math:`n_1 < n_2 < \dots < V`: where each cluster begins.
        divisor: d.

    Raises:
        ValueError: cutoffs that do not grow or do not lie in [1, V), or a divisor below 1.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> softmax = rnnjax.adaptive_softmax(8, 1000, cutoffs=[100, 400])
        >>> params = softmax.init(jax.random.key(0))
        >>> softmax.log_prob(params, jnp.ones((3, 8)), jnp.array([1, 100, 999])).shape
        (3,)
        >>> total = jnp.sum(jnp.exp(softmax.log_probs(params, jnp.ones(8))))
        >>> round(float(total), 5)
        1.0

    References:
        Grave, Joulin, Cissé, Grangier and Jégou, "Efficient softmax approximation for GPUs", ICML
        2017.
    """
    size, words = check_size("input_size", input_size), check_size("vocab_size", vocab_size)
    if isinstance(cutoffs, str) or not isinstance(cutoffs, Iterable):
        raise ValueError(f"cutoffs must be several integers, got {cutoffs!r}")
    begins = tuple(check_size("cutoffs", n) for n in cutoffs)
    ends = (*begins[1:], words)
    if not begins or any(end <= begin for begin, end in zip(begins, ends, strict=True)):
        raise ValueError(f"cutoffs must grow within [1, {words}), got {tuple(cutoffs)}")
    expected = "a finite number of at least 1"
    divisor = check_number("divisor", divisor, expected, lambda d: 1 <= d < math.inf)
    first = begins[0]
    widths = [max(1, int(size // divisor ** (k + 1))) for k in range(len(begins))]

    def init(key: Key) -> AdaptiveSoftmaxParams:
        head, *rest = jax.random.split(check_key(key), 1 + len(begins))
        clusters = []
        for inner, begin, end, width in zip(rest, begins, ends, widths, strict=True):
            one, two = jax.random.split(inner)
            down, _ = draw_linear(one, size, width)
            clusters.append(Cluster(down, *draw_linear(two, width, end - begin)))
        w, bias = draw_linear(head, size, first + len(begins))
        return AdaptiveSoftmaxParams(w, bias, tuple(clusters))

    def checked(params: Any) -> AdaptiveSoftmaxParams:
        params = check_params(params, AdaptiveSoftmaxParams)
        if len(params.clusters) != len(begins):
            raise ValueError(
                f"params.clusters must be {len(begins)}, one for each of cutoffs, "
                f"got {len(params.clusters)}"
            )
        check_count("w", params.w, first + len(begins))
        for k, (cluster, begin, end) in enumerate(zip(params.clusters, begins, ends, strict=True)):
            check_shape(f"params.clusters[{k}].down", cluster.down, (size, widths[k]))
            check_count(f"clusters[{k}].w", cluster.w, end - begin)
        return params

    def check_count(name: str, w: Array, count: int) -> None:
        if w.shape[-1] != count:
            raise ValueError(
                f"params.{name} must have size {count} in the last axis, got shape {w.shape}"
            )

    def head_of(params: AdaptiveSoftmaxParams, hs: Array) -> Array:
        return jax.nn.log_softmax(affine(hs, params.w, params.bias, name="hs"), axis=-1)

    def within(cluster: Cluster, hs: Array) -> Array:
        narrow = affine(hs, cluster.down).astype(cluster.w.dtype)
        return jax.nn.log_softmax(affine(narrow, cluster.w, cluster.bias), axis=-1)

    def log_prob(params: AdaptiveSoftmaxParams, hs: Array, targets: Array) -> Array:
        params, hs = checked(params), jnp.asarray(masking.as_array("hs", hs))
        # Of at least 32 bits: a number of words need not fit fewer.
        head, targets = head_of(params, hs), masking.as_integers("targets", targets)
        if targets.shape != head.shape[:-1]:
            raise ValueError(
                f"targets must have shape {head.shape[:-1]}, that of hs without its last axis, "
                f"got shape {targets.shape}"
            )
        result = _pick(head, targets, first)
        for k, (cluster, begin, end) in enumerate(zip(params.clusters, begins, ends, strict=True)):
            inside = _pick(within(cluster, hs), targets - begin, end - begin)
            result = jnp.where(targets >= begin, head[..., first + k] + inside, result)
        outside = (targets < 0) | (targets >= words)
        return jnp.where(outside, jnp.nan, result)

    def log_probs(params: AdaptiveSoftmaxParams, hs: Array) -> Array:
        params, hs = checked(params), jnp.asarray(masking.as_array("hs", hs))
        head = head_of(params, hs)
        parts = [head[..., :first]]
        for k, cluster in enumerate(params.clusters):
            parts.append(head[..., first + k, None] + within(cluster, hs))
        return jnp.concatenate(parts, axis=-1)

    return AdaptiveSoftmax(init, log_prob, log_probs, size, words)


def _pick(log_probs: Array, targets: Array, count: int) -> Array:
    """Of each row the number at its target, clipped to [0, count): elsewhere it is not used."""
    places = jnp.clip(targets, 0, count - 1)[..., None]
    return jnp.take_along_axis(log_probs, places, axis=-1).squeeze(-1)
