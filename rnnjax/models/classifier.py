"""Models made of an embedding, a layer, a pool and a head."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_params
from rnnjax._recipe import Made, factory
from rnnjax.base import Cell, Key, Layer
from rnnjax.models._dropout import split_key
from rnnjax.models._encoding import Encoding, LinearParams, packed_steps
from rnnjax.models.embedding import Embedding
from rnnjax.segments import check_segments, pool_segments
from rnnjax.transforms.precision import Policy


class _ModelFields(NamedTuple):
    init: Callable[..., Any]
    apply: Callable[..., Array]


class Model(Made, _ModelFields):
    """A model as a pair of pure functions.

    Two that one function made from equal arguments are equal.

    Attributes:
        init: ``(key) -> params``; ``(key, input_size) -> params`` without an embedding.
        apply: ``(params, tokens [..., T], lengths [...], *, mask, key) -> logits``; or, for
            several texts in a row, ``(params, tokens [..., T], *, segment_ids [..., T], key)``,
            with ids as ``rnnjax.data.pack`` gives them. Without an embedding, vectors
            [..., T, D] stand in place of the tokens. Logits are [..., C] of a classifier,
            [N, C] of one that is given ``segment_ids`` and ``num_segments``, and [..., T, C] of
            a tagger.
    """

    _hints: ClassVar[Mapping[str, str]] = {
        **Made._hints,
        "forward": "apply(params, tokens, lengths) gives the logits",
        "predict": "apply(params, tokens, lengths) gives the logits",
        "step": "a layer has it, such as rnnjax.output_head(layer, num_classes)",
    }


class ClassifierParams(NamedTuple):
    """Parameters of the three parts of a classifier."""

    embedding: Any
    encoder: Any
    head: LinearParams


@factory
def classifier(
    embedding: Embedding | None,
    encoder: Cell | Layer,
    num_classes: int,
    *,
    pooling: str = "last",
    dropout: float = 0.0,
    policy: Policy | None = None,
) -> Model:
    r"""A classifier of texts: embedding, recurrent layer, pooling over valid steps, linear head.

    .. math:: \mathrm{logits} = \mathrm{pool}(y_1 \dots y_T) W + b

    A sequence of length 0 pools to zeros, so its logits are the bias. Packed texts have the
    logits they have alone; what is drawn once a row in training, they share.

    Args:
        embedding: from token ids to vectors, ``rnnjax.embedding(...)`` or ``rnnjax.one_hot(...)``;
            None for a classifier of sequences of vectors, such as measurements: its ``init``
            takes the input size too, and its ``apply`` vectors [..., T, D] in place of tokens, or
            what else the encoder reads, such as a tuple of vectors and elapsed times for ``cfc``.
        encoder: a cell or a layer.
        num_classes: C.
        pooling: "last", "mean" or "max". "last" is the output after the layer's own last step:
            for a bidirectional layer the forward half at the last valid step and the backward
            half at the first.
        dropout: the rate at which embedded inputs, and pooled outputs, are dropped in training,
            that is when ``apply`` is given a ``key``; 0 for inputs of several arrays.
        policy: the dtypes of all parts, as for ``with_policy``; logits are at least float32.

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
    parts = Encoding.checked(embedding, encoder, num_classes, dropout, policy)
    last = parts.layer.last
    pool = {"last": last, "mean": masking.mean_pool, "max": masking.max_pool}[pooling]

    def init(key: Key, input_size: int | None = None) -> ClassifierParams:
        return ClassifierParams(*parts.init(key, input_size))

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
        params = check_params(params, ClassifierParams)
        *keys, head_key = split_key(key, 3)
        inputs, shape = parts.as_inputs(tokens)
        resets, ids, count = None, None, 0
        if segment_ids is None and num_segments is not None:
            raise ValueError(f"num_segments must be None without segment_ids, got {num_segments}")
        if segment_ids is None:
            valid = masking.valid_steps(lengths, mask, shape[:-1], shape[-1])
        else:
            ids, count = check_segments(segment_ids, num_segments)
            valid, resets = packed_steps(shape, lengths, mask, ids)
        ys = parts.run(params, inputs, valid, resets, keys)
        if ids is not None:
            pooled = pool_segments(ys, ids, count, pooling, last=last)
        else:
            pooled = pool(ys, jnp.ones(shape, bool) if valid is None else valid)
        return parts.logits(params.head, pooled, head_key)

    return Model(init, apply)
