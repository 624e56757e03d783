"""One label a step: parts of speech, phonemes, whether a measurement is out of the ordinary."""

from typing import Any, NamedTuple

from jax import Array

from rnnjax import masking
from rnnjax._checks import check_params
from rnnjax._recipe import factory
from rnnjax.base import Cell, Key, Layer
from rnnjax.models._dropout import split_key
from rnnjax.models._encoding import Encoding, LinearParams, packed_steps
from rnnjax.models.classifier import Model
from rnnjax.models.embedding import Embedding
from rnnjax.transforms.precision import Policy


class TaggerParams(NamedTuple):
    """Parameters of the three parts of a tagger; ``embedding`` is () where it has none."""

    embedding: Any
    encoder: Any
    head: LinearParams


@factory
def tagger(
    embedding: Embedding | None,
    encoder: Cell | Layer,
    num_classes: int,
    *,
    dropout: float = 0.0,
    policy: Policy | None = None,
) -> Model:
    r"""A model with one label a step: embedding, recurrent layer, linear head.

    .. math:: \mathrm{logits}_t = y_t W + b

    With a bidirectional layer a label depends on the whole sequence, with a causal one on what
    came before. Logits at masked steps are exact zeros; a loss leaves these steps out by the same
    lengths or mask. For numbers in place of labels see :func:`rnnjax.output_head`.

    Args:
        embedding: from token ids to vectors; None where inputs are vectors [..., T, D], or what
            else the encoder reads, as for a :func:`rnnjax.classifier`, and ``init`` takes the
            input size too.
        encoder: a cell or a layer.
        num_classes: C.
        dropout: the rate at which inputs, and outputs of the layer, are dropped in training, that
            is when ``apply`` is given a ``key``; 0 for inputs of several arrays.
        policy: the dtypes of all parts, as for ``with_policy``; logits are at least float32.

    Returns:
        A model, ``apply(params, tokens [..., T], lengths, *, mask, segment_ids, key) ->
        logits [..., T, C]``. ``segment_ids`` [..., T] are those of packed rows, 0 where a step is
        masked: each text is tagged as if it stood alone.

    Raises:
        ValueError: a rate outside [0, 1), a wrong size, or a part of a wrong type.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> layer = rnnjax.bidirectional(rnnjax.lstm(16))
        >>> model = rnnjax.tagger(rnnjax.embedding(100, 8), layer, num_classes=5)
        >>> params = model.init(jax.random.key(0))
        >>> logits = model.apply(params, jnp.array([[5, 7, 9], [3, 0, 0]]), lengths=[3, 1])
        >>> logits.shape, bool(jnp.all(logits[1, 1:] == 0))
        ((2, 3, 5), True)
    """
    parts = Encoding.checked(embedding, encoder, num_classes, dropout, policy)

    def init(key: Key, input_size: int | None = None) -> TaggerParams:
        return TaggerParams(*parts.init(key, input_size))

    def apply(
        params: TaggerParams,
        tokens: Array,
        lengths: Any = None,
        *,
        mask: Any = None,
        segment_ids: Any = None,
        key: Key | None = None,
    ) -> Array:
        params = check_params(params, TaggerParams)
        *keys, head_key = split_key(key, 3)
        inputs, shape = parts.as_inputs(tokens)
        if segment_ids is None:
            valid, resets = masking.valid_steps(lengths, mask, shape[:-1], shape[-1]), None
        else:
            ids = masking.as_integers("segment_ids", segment_ids)
            valid, resets = packed_steps(shape, lengths, mask, ids)
        ys = parts.run(params, inputs, valid, resets, keys)
        return masking.zero_padding(valid, parts.logits(params.head, ys, head_key))

    return Model(init, apply)
