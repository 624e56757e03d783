"""Models made of an embedding, a layer, a pool and a head."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_key, check_rate, check_size
from rnnjax._numerics import linear
from rnnjax._recipe import Made, factory
from rnnjax.base import Cell, Key, Layer
from rnnjax.initializers import draw_linear
from rnnjax.layers._common import apply_dropout
from rnnjax.layers.recurrent import recurrent
from rnnjax.models.embedding import Embedding, check_tokens
from rnnjax.segments import check_segments, pool_segments, resets_from_segment_ids


class _ModelFields(NamedTuple):
    init: Callable[[Key], Any]
    apply: Callable[..., Array]


class Model(Made, _ModelFields):
    """A model as a pair of pure functions.

    Two that one function made from equal arguments are equal.

    Attributes:
        init: ``(key) -> params``.
        apply: ``(params, tokens [..., T], lengths [...], *, mask, key) -> logits [..., C]``; or,
            for several texts in a row, ``(params, tokens [..., T], *, segment_ids [..., T],
            num_segments, key) -> logits [N, C]``, with ids as ``rnnjax.data.pack`` gives them.
    """


class ClassifierParams(NamedTuple):
    """Parameters of the three parts of a classifier."""

    embedding: Any
    encoder: Any
    head: "LinearParams"


class LinearParams(NamedTuple):
    """``w`` [H, C] and ``bias`` [C]."""

    w: Array
    bias: Array


@factory
def classifier(
    embedding: Embedding,
    encoder: Cell | Layer,
    num_classes: int,
    *,
    pooling: str = "last",
    dropout: float = 0.0,
) -> Model:
    r"""A text classifier: embedding, recurrent layer, pooling over valid steps, linear head.

    .. math:: \mathrm{logits} = \mathrm{pool}(y_1 \dots y_T) W + b

    A sequence of length 0 pools to zeros, so its logits are the bias. Packed texts have the
    logits they have alone; what is drawn once a row in training, they share.

    Args:
        embedding: from token ids to vectors, ``rnnjax.embedding(...)`` or ``rnnjax.one_hot(...)``.
        encoder: a cell or a layer.
        num_classes: C.
        pooling: "last", "mean" or "max". "last" is the output after the layer's own last step:
            for a bidirectional layer the forward half at the last valid step and the backward
            half at the first.
        dropout: the rate at which embedded inputs, and pooled outputs, are dropped in training,
            that is when ``apply`` is given a ``key``.

    Raises:
        ValueError: an unknown pooling, a rate outside [0, 1), or a wrong size.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> model = rnnjax.classifier(rnnjax.embedding(100, 8), rnnjax.lstm(16), num_classes=4)
        >>> params = model.init(jax.random.key(0))
        >>> tokens = jnp.array([[5, 7, 9], [3, 0, 0]])
        >>> model.apply(params, tokens, lengths=[3, 1]).shape
        (2, 4)
        >>> ids = jnp.array([[1, 1, 2], [3, 0, 0]])
        >>> model.apply(params, tokens, segment_ids=ids, num_segments=3).shape
        (3, 4)
    """
    if pooling not in ("last", "mean", "max"):
        raise ValueError(f"pooling must be 'last', 'mean' or 'max', got {pooling!r}")
    if not isinstance(embedding, Embedding):
        raise ValueError(f"embedding must be a rnnjax.Embedding, got {type(embedding).__name__}")
    layer = recurrent(encoder) if isinstance(encoder, Cell) else encoder
    if not isinstance(layer, Layer):
        raise ValueError(
            f"encoder must be a rnnjax.Cell or a rnnjax.Layer, got {type(encoder).__name__}"
        )
    classes = check_size("num_classes", num_classes)
    rate = check_rate("dropout", dropout)
    pool = {"last": layer.last, "mean": masking.mean_pool, "max": masking.max_pool}[pooling]

    def init(key: Key) -> ClassifierParams:
        table, encode, head = jax.random.split(check_key(key), 3)
        return ClassifierParams(
            embedding.init(table),
            layer.init(encode, embedding.output_size),
            LinearParams(*draw_linear(head, layer.output_size, classes)),
        )

    def apply(
        params: ClassifierParams,
        tokens: Array,
        lengths: Any = None,
        *,
        mask: Any = None,
        segment_ids: Any = None,
        num_segments: int | None = None,
        key: Key | None = None,
    ) -> Array:
        keys = (None,) * 3 if key is None else jax.random.split(check_key(key), 3)
        drop_in, inner, drop_out = keys
        tokens, resets, count = _check_rank(masking.as_integers("tokens", tokens)), None, 0
        if segment_ids is not None:
            if lengths is not None or mask is not None:
                raise ValueError("segment_ids say which steps are real: give no lengths or mask")
            segment_ids, count = check_segments(segment_ids, num_segments)
            if segment_ids.shape != tokens.shape:
                raise ValueError(
                    f"segment_ids must have the shape of tokens, {tokens.shape}, "
                    f"got {segment_ids.shape}"
                )
            resets, mask = resets_from_segment_ids(segment_ids), segment_ids > 0
        valid = masking.valid_steps(lengths, mask, tokens.shape[:-1], tokens.shape[-1])
        tokens = check_tokens(masking.zero_padding(valid, tokens), embedding.vocab_size)
        xs = apply_dropout(drop_in, embedding.apply(params.embedding, tokens), rate)
        _, ys = layer.apply(params.encoder, xs, mask=valid, resets=resets, key=inner)
        if segment_ids is not None:
            pooled = pool_segments(ys, segment_ids, count, pooling, last=layer.last)
        else:
            pooled = pool(ys, jnp.ones(tokens.shape, bool) if valid is None else valid)
        pooled = apply_dropout(drop_out, pooled, rate)
        return linear(pooled, params.head.w, params.head.bias)

    return Model(init, apply)


def _check_rank(tokens: Array) -> Array:
    if not tokens.ndim:
        raise ValueError("tokens must have shape [..., T], got a scalar")
    return tokens
