"""Models that write after they have read: their functions, and the head above their decoder."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_flag, check_id, check_key, check_params, check_rate, check_size
from rnnjax._native import jit
from rnnjax._numerics import affine
from rnnjax._recipe import Made
from rnnjax.base import Carry, Cell, Key, Layer
from rnnjax.layers._memory import Attended, Memory
from rnnjax.layers.attention import Attention
from rnnjax.models._decoder_head import Head, check_head
from rnnjax.models._decoder_parts import Parts
from rnnjax.models._dropout import locked_dropout, split_key
from rnnjax.models._sources import Places, Tokens, read_tokens
from rnnjax.models.embedding import Embedding, check_tokens


class SequenceToSequenceParams(NamedTuple):
    """Parameters of all parts; () for parts that have none.

    ``bridge`` holds a ``LinearParams`` for each array of the decoder's carry. ``decoder`` is
    ``LayersParams`` where there are layers above the one that attends.
    """

    source: Any
    encoder: Any
    bridge: Any
    target: Any
    decoder: Any
    attention: Any
    head: Any


class _SequenceToSequenceFields(NamedTuple):
    init: Callable[[Key], SequenceToSequenceParams]
    # Weights are None without attention; Any, so that a model with attention needs no test for it.
    apply: Callable[..., tuple[Array, Array | Any]]
    encode: Callable[..., tuple[Carry, Memory | None]]
    step: Callable[..., tuple[Carry, Array, Array | Any]]
    start: int
    source_size: int
    vocab_size: int
    source_ndim: int
    teach: Callable[..., tuple[Array, Attended | None]]
    features: Callable[..., tuple[Array, Attended | None]]
    head_weights: Callable[[SequenceToSequenceParams], tuple[Array, Array]]


class SequenceToSequence(Made, _SequenceToSequenceFields):
    """A model from sequences, or from the places of pictures, to sequences, as pure functions.

    Two that were made from equal arguments are equal. Of a ``captioner``, ``source`` is
    [..., S, M], the vectors of places, and not token ids.

    Attributes:
        init: ``(key) -> params``.
        apply: ``(params, source [..., S], source_lengths [...], target [..., T],
            target_lengths [...], *, key) -> (logits [..., T, V], weights [..., T, S])``: logits of
            every token of the target after those before it; behind the end of a target, those of a
            zero output. The start token is put before the target here. Weights are None without
            attention. A ``key`` means training.
        encode: ``(params, source, lengths, *, key) -> (carry, memory)``: the decoder's carry before
            the start token, and what it attends to; None without attention. A memory of few places
            also holds their part of the logits, which is then made once and not at every step.
        step: ``(params, carry, token [...], memory) -> (carry, logits [..., V],
            weights [..., S])``, as :func:`rnnjax.beam_search` takes it.
        start: the id of the start token.
        source_size: the number of token ids of sources; of a captioner, M.
        vocab_size: V, the number of token ids of targets.
        source_ndim: the axes of one source: 1, and of a captioner 2.
        teach: ``apply`` with all that attention says, for losses that need it:
            ``(logits, attended)``, a :class:`rnnjax.Attended` or None.
        features: ``teach`` without the last product: what it multiplies, [..., T, F], in place of
            the logits, for :func:`rnnjax.metrics.linear_cross_entropy`.
        head_weights: ``(params) -> (w [F, V], bias [V])``, of the last product.
    """


def make_model(
    reader: Tokens | Places,
    words: Embedding,
    decoder: Cell | Layer,
    *,
    start: int,
    attention: Attention | None,
    above: Cell | Layer | None,
    bridge: str,
    head_size: int | None,
    tie: bool,
    dropout: float,
) -> SequenceToSequence:
    """A model that reads by ``reader`` and writes ``words``.

    The other arguments are those of the public factories.

    Raises:
        ValueError: an argument that does not fit, named in the message.
    """
    parts = Parts.checked(reader, words, decoder, attention, above, bridge)
    inner = None if head_size is None else check_size("head_size", head_size)
    head = Head.checked(parts.read_sizes, words, inner, check_flag("tie", tie))
    rate, first = check_rate("dropout", dropout), check_id("start", start, words.vocab_size)

    def init(key: Key) -> SequenceToSequenceParams:
        keys = jax.random.split(check_key(key), 7)
        table, encoding = reader.init(keys[0], keys[1])
        decoding = parts.decoder_init(keys[4], words.output_size)
        return SequenceToSequenceParams(
            table,
            encoding,
            parts.draw_bridge(keys[2], encoding, decoding),
            words.init(keys[3]),
            decoding,
            parts.draw_attention(keys[5]),
            head.init(keys[6]),
        )

    def read(
        params: SequenceToSequenceParams, source: Array, lengths: Any, key: Key | None
    ) -> tuple[Carry, Memory | None]:
        params = _checked(params)
        final, states, valid = reader.read(params, source, lengths, rate, key)
        carry = parts.cross(params, final, states.shape[:-2])
        return carry, parts.remember(params, states, valid)

    def encode(
        params: SequenceToSequenceParams,
        source: Array,
        lengths: Any = None,
        *,
        key: Key | None = None,
    ) -> tuple[Carry, Memory | None]:
        carry, memory = read(params, source, lengths, key)
        # What is made of each place is read at each step of a text. The texts of sources are about
        # as long as these; those of pictures are short, and their places are many.
        if isinstance(reader, Tokens):
            memory = head.remember(params, memory)
        return carry, memory

    def features(
        params: SequenceToSequenceParams,
        source: Array,
        source_lengths: Any,
        target: Array,
        target_lengths: Any = None,
        *,
        key: Key | None = None,
    ) -> tuple[Array, Attended | None]:
        reading, drop, inside, out = split_key(key, 4)
        carry, memory = read(params, source, source_lengths, reading)
        tokens, valid = read_tokens("target", target, target_lengths, words.vocab_size)
        batch = masking.as_array("source", source).shape[: -reader.ndim]
        if tokens.shape[:-1] != batch:
            raise ValueError(
                f"target must have the batch axes of source, {batch}, got shape {tokens.shape}"
            )
        # The start token in front, and the last one off: what is padded stays divided as it is.
        shift = [(0, 0, 0)] * len(batch) + [(1, -1, 0)]
        before = jax.lax.pad(tokens, jnp.asarray(first, tokens.dtype), shift)
        xs = locked_dropout(drop, words.apply(params.target, before), rate)
        outputs = parts.decode(params, carry, xs, valid, memory, inside)
        joined = masking.zero_padding(valid, head.join(outputs, memory, xs))
        attended = outputs if isinstance(outputs, Attended) else None
        return head.below(params, locked_dropout(out, joined, rate)), attended

    def head_weights(params: SequenceToSequenceParams) -> tuple[Array, Array]:
        return head.weights(_checked(params))

    def teach(
        params: SequenceToSequenceParams,
        source: Array,
        source_lengths: Any,
        target: Array,
        target_lengths: Any = None,
        *,
        key: Key | None = None,
    ) -> tuple[Array, Attended | None]:
        pair = source, source_lengths, target, target_lengths
        below, attended = features(params, *pair, key=key)
        return affine(below, *head_weights(params)), attended

    def apply(
        params: SequenceToSequenceParams,
        source: Array,
        source_lengths: Any,
        target: Array,
        target_lengths: Any = None,
        *,
        key: Key | None = None,
    ) -> tuple[Array, Array | None]:
        logits, attended = teach(params, source, source_lengths, target, target_lengths, key=key)
        return logits, None if attended is None else attended.weights

    def step(
        params: SequenceToSequenceParams, carry: Carry, token: Array, memory: Memory | None = None
    ) -> tuple[Carry, Array, Array | None]:
        params = _checked(params)
        # Ids are looked at here, where their values may be known.
        token = check_tokens(token, words.vocab_size, "token")
        parts.check_encoded(carry, memory, token.shape)
        carry = jax.tree.map(functools.partial(masking.as_array, "carry"), carry)
        return _step(parts, head, params, carry, token, memory)

    sizes = first, reader.size, words.vocab_size, reader.ndim
    model = SequenceToSequence(init, apply, encode, step, *sizes, teach, features, head_weights)
    # Parts that do not fit are refused here, not later.
    shapes = jax.eval_shape(init, jax.random.key(0))
    jax.eval_shape(parts.check_decoder, shapes)
    return model


def _checked(params: Any) -> SequenceToSequenceParams:
    params = check_params(params, SequenceToSequenceParams)
    check_head(params.head)
    return params


# One program, where operation after operation would each be a call of its own; for equal models,
# the same one.
@functools.partial(jit, static=2)
def _step(
    parts: Parts,
    head: Head,
    params: SequenceToSequenceParams,
    carry: Carry,
    token: Array,
    memory: Memory | None,
) -> tuple[Carry, Array, Array | None]:
    x = parts.target.apply(params.target, token)
    carry, outputs = parts.decode_one(params, carry, x, memory)
    logits = head.logits_of_step(params, outputs, memory, x[..., None, :])[..., 0, :]
    return carry, logits, outputs.weights[..., 0, :] if isinstance(outputs, Attended) else None
