"""Sequences into sequences: an encoder reads, a decoder writes, with or without attention."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_carry, check_flag, check_key, check_rate, check_size
from rnnjax._numerics import linear
from rnnjax._recipe import Made, factory
from rnnjax.base import Carry, Cell, Key, Layer, Params
from rnnjax.engine.one_step import spread, step_in_program
from rnnjax.engine.unroll import unroll
from rnnjax.initializers import draw_linear
from rnnjax.layers.attention import Attention, weighted_mean
from rnnjax.layers.attention_cell import FeedingCarry, Memory, prepare_memory
from rnnjax.layers.recurrent import as_layer
from rnnjax.models._encoding import LinearParams
from rnnjax.models.embedding import Embedding, check_tokens
from rnnjax.models.language_model import SoftmaxParams, locked_dropout

BRIDGES = ("tanh", "copy", "zeros")


class SequenceToSequenceParams(NamedTuple):
    """Parameters of all parts; () for parts that have none.

    ``bridge`` holds a ``LinearParams`` for each array of the decoder's carry.
    """

    source: Any
    encoder: Any
    bridge: Any
    target: Any
    decoder: Any
    attention: Any
    head: Any


class DeepHeadParams(NamedTuple):
    """``hidden`` [F, head_size], None without ``head_size``; ``output``: to the vocabulary."""

    hidden: LinearParams | None
    output: SoftmaxParams


class _SequenceToSequenceFields(NamedTuple):
    init: Callable[[Key], SequenceToSequenceParams]
    apply: Callable[..., tuple[Array, Array | None]]
    encode: Callable[..., tuple[Carry, Memory | None]]
    step: Callable[..., tuple[Carry, Array, Array | None]]
    start: int
    source_size: int
    vocab_size: int


class SequenceToSequence(Made, _SequenceToSequenceFields):
    """A model from sequences to sequences as pure functions.

    Two that were made from equal arguments are equal.

    Attributes:
        init: ``(key) -> params``.
        apply: ``(params, source [..., S], source_lengths [...], target [..., T],
            target_lengths [...], *, key) -> (logits [..., T, V], weights [..., T, S])``: logits of
            every token of the target after those before it. The start token is put before the
            target here. Weights are None without attention. A ``key`` means training.
        encode: ``(params, source, lengths, *, key) -> (carry, memory)``: the decoder's carry before
            the start token, and what it attends to; None without attention.
        step: ``(params, carry, token [...], memory) -> (carry, logits [..., V],
            weights [..., S])``, as :func:`rnnjax.beam_search` takes it.
        start: the id of the start token.
        source_size: the number of token ids of sources.
        vocab_size: V, the number of token ids of targets.
    """


@factory
def sequence_to_sequence(
    source: Embedding,
    encoder: Cell | Layer,
    target: Embedding,
    decoder: Cell | Layer,
    *,
    start: int,
    attention: Attention | None = None,
    bridge: str = "tanh",
    head_size: int | None = None,
    tie: bool = False,
    dropout: float = 0.0,
) -> SequenceToSequence:
    r"""An encoder, a decoder that writes token after token, and attention between them.

    .. math::

        m_1 \dots m_S, f &= \mathrm{encoder}(x_1 \dots x_S), \qquad s_0 = \mathrm{bridge}(f) \\
        s_t, h_t &= \mathrm{decoder}(s_{t-1}, y_{t-1}), \qquad
            c_t = \mathrm{attention}(h_t, m) \\
        P(y_t \mid y_1 \dots y_{t-1}, x) &= \mathrm{softmax}([h_t, c_t, y_{t-1}] W + b)

    There are three ways to attend:

    - ``attention=rnnjax.attention(...)``: outside of the recurrence (Luong). The decoder runs over
      all steps of a target, and then all of them attend at once: the fastest to train.
    - ``decoder=rnnjax.attention_cell(...)``: inside (Bahdanau, or with input feeding). What was
      read of the source is an input of the decoder.
    - neither: the decoder knows of the source what the bridge tells it.

    Args:
        source: from the token ids of sources to vectors.
        encoder: a cell or a layer of any direction; its outputs are the memory.
        target: from the token ids of targets to vectors.
        decoder: a cell or a layer that does not read ahead.
        start: the id of the token before the first one of a target.
        attention: outside of the recurrence, or None.
        bridge: from the carry f with which the encoder ends to that with which the decoder begins.
            ``"tanh"``: each of its arrays is :math:`\tanh(f W + b)` of all that f holds;
            ``"copy"``: f as it is, for an encoder with the carry of the decoder; ``"zeros"``: the
            decoder's own initial carry.
        head_size: a layer :math:`\tanh(\cdot\, W)` of this width below the logits; None for none.
        tie: the head multiplies by the table of ``target``; then ``head_size`` must be the size of
            its vectors.
        dropout: the rate at which embedded tokens of both sides, and what the head reads, are
            dropped in training, one mask for all steps of a sequence.

    Raises:
        ValueError: an argument that does not fit, named in the message.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> model = rnnjax.sequence_to_sequence(
        ...     rnnjax.embedding(20, 8), rnnjax.bidirectional(rnnjax.gru(6)),
        ...     rnnjax.embedding(30, 8), rnnjax.gru(16),
        ...     attention=rnnjax.attention("general"), start=2)
        >>> params = model.init(jax.random.key(0))
        >>> source, target = jnp.array([[4, 5, 6], [7, 0, 0]]), jnp.array([[8, 3], [3, 0]])
        >>> logits, weights = model.apply(params, source, [3, 1], target, [2, 1])
        >>> logits.shape, weights.shape
        ((2, 2, 30), (2, 2, 3))
        >>> carry, memory = model.encode(params, source, [3, 1])
        >>> beams = rnnjax.beam_search(model.step, params, carry, jnp.full(2, model.start), memory,
        ...                            stop=3, beam_size=4, max_length=6)
        >>> beams.tokens.shape
        (2, 4, 6)

    References:
        Sutskever, Vinyals and Le, "Sequence to sequence learning with neural networks", NIPS 2014;
        Bahdanau, Cho and Bengio, ICLR 2015; Luong, Pham and Manning, EMNLP 2015 (see
        :func:`rnnjax.attention`).
    """
    parts = _Parts.checked(source, encoder, target, decoder, attention, bridge)
    inner = None if head_size is None else check_size("head_size", head_size)
    tied = check_flag("tie", tie)
    if tied:
        _check_tied(target, inner)
    rate, first = check_rate("dropout", dropout), _check_start(start, target.vocab_size)

    def init(key: Key) -> SequenceToSequenceParams:
        keys = jax.random.split(check_key(key), 7)
        encoding = parts.encoder.init(keys[1], source.output_size)
        decoding = parts.decoder_init(keys[4], target.output_size)
        return SequenceToSequenceParams(
            source.init(keys[0]),
            encoding,
            parts.draw_bridge(keys[2], encoding, decoding),
            target.init(keys[3]),
            decoding,
            parts.draw_attention(keys[5]),
            _draw_head(keys[6], parts.feature_size, inner, target.vocab_size, tied),
        )

    def head(params: SequenceToSequenceParams, features: Array) -> Array:
        hidden, output = params.head
        if hidden is not None:
            features = jnp.tanh(linear(features, hidden.w, hidden.bias))
        return linear(features, params.target.vectors.T if tied else output.w, output.bias)

    def encode(
        params: SequenceToSequenceParams,
        source_tokens: Array,
        lengths: Any = None,
        *,
        key: Key | None = None,
    ) -> tuple[Carry, Memory | None]:
        tokens, valid = _tokens("source", source_tokens, lengths, source.vocab_size)
        drop, inside = _split(key, 2)
        xs = locked_dropout(drop, source.apply(params.source, tokens), rate)
        final, states = parts.encoder.apply(params.encoder, xs, mask=valid, key=inside)
        carry = parts.cross(params, final, tokens.shape[:-1])
        return carry, parts.remember(params, states, valid)

    def apply(
        params: SequenceToSequenceParams,
        source_tokens: Array,
        source_lengths: Any,
        target_tokens: Array,
        target_lengths: Any = None,
        *,
        key: Key | None = None,
    ) -> tuple[Array, Array | None]:
        reading, drop, inside, out = _split(key, 4)
        carry, memory = encode(params, source_tokens, source_lengths, key=reading)
        tokens, valid = _tokens("target", target_tokens, target_lengths, target.vocab_size)
        if tokens.shape[:-1] != jnp.shape(source_tokens)[:-1]:
            raise ValueError(
                f"target must have the batch axes of source, {jnp.shape(source_tokens)[:-1]}, "
                f"got shape {tokens.shape}"
            )
        starts = jnp.full((*tokens.shape[:-1], 1), first, tokens.dtype)
        before = jnp.concatenate([starts, tokens], axis=-1)[..., :-1]
        xs = locked_dropout(drop, target.apply(params.target, before), rate)
        features, weights = parts.decode(params, carry, xs, valid, memory, inside)
        features = masking.zero_padding(valid, features)
        return head(params, locked_dropout(out, features, rate)), weights

    def step(
        params: SequenceToSequenceParams, carry: Carry, token: Array, memory: Memory | None = None
    ) -> tuple[Carry, Array, Array | None]:
        x = target.apply(params.target, check_tokens(token, target.vocab_size, "token"))
        carry, features, weights = parts.decode_one(params, carry, x, memory)
        return carry, head(params, features), weights

    model = SequenceToSequence(
        init, apply, encode, step, first, source.vocab_size, target.vocab_size
    )
    jax.eval_shape(init, jax.random.key(0))  # parts that do not fit are refused here, not later
    return model


class _Parts(NamedTuple):
    """The parts of a model, and what passes between them."""

    encoder: Layer
    decoder: Cell | Layer  # a cell where attention is inside it
    target: Embedding
    attention: Attention | None
    bridge: str

    @classmethod
    def checked(
        cls, source: Any, encoder: Any, target: Any, decoder: Any, attention: Any, bridge: Any
    ) -> "_Parts":
        """The parts.

        Raises:
            ValueError: naming the part that does not fit.
        """
        for name, part in (("source", source), ("target", target)):
            if not isinstance(part, Embedding):
                raise ValueError(f"{name} must be a rnnjax.Embedding, got {type(part).__name__}")
        for name, part in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(part, Cell | Layer):
                kind = type(part).__name__
                raise ValueError(f"{name} must be a rnnjax.Cell or rnnjax.Layer, got {kind}")
        if isinstance(encoder, Cell) and encoder.context is not None:
            raise ValueError("encoder must be without attention, got a cell that takes a context")
        if not isinstance(attention, Attention | None):
            kind = type(attention).__name__
            raise ValueError(f"attention must be a rnnjax.attention(...) or None, got {kind}")
        if bridge not in BRIDGES:
            raise ValueError(f"bridge must be one of {', '.join(BRIDGES)}, got {bridge!r}")
        if isinstance(decoder, Cell) and decoder.context is not None:
            if attention is not None:
                raise ValueError("attention must be None where the decoder is an attention_cell")
            return cls(as_layer(encoder), decoder, target, None, bridge)
        decoder = as_layer(decoder)
        if not decoder.causal:
            raise ValueError("decoder must not read ahead, got one with a part run in reverse")
        return cls(as_layer(encoder), decoder, target, attention, bridge)

    @property
    def inside(self) -> bool:
        """Whether the decoder attends by itself."""
        return isinstance(self.decoder, Cell)

    @property
    def attends(self) -> bool:
        return self.inside or self.attention is not None

    @property
    def feature_size(self) -> int:
        """What the head reads: the output, what was read of the memory, and the token before."""
        context = self.encoder.output_size if self.attends else 0
        return self.decoder.output_size + context + self.target.output_size

    def decoder_init(self, key: Key, input_size: int) -> Params:
        return self.decoder.init(key, input_size)

    def draw_attention(self, key: Key) -> Params:
        if self.attention is None:
            return ()
        return self.attention.init(key, self.decoder.output_size, self.encoder.output_size)

    def decoder_carry(self, params: Params, batch: tuple[int, ...]) -> Carry:
        if isinstance(self.decoder, Cell):
            return spread(self.decoder.initial_carry(params), batch)
        return self.decoder.initial_carry(params, batch)

    def draw_bridge(self, key: Key, encoder: Params, decoder: Params) -> tuple:
        """A linear map to each array of the decoder's carry, where the bridge has any."""
        final = jax.eval_shape(self.encoder.initial_carry, encoder)
        carry = _fed_apart(jax.eval_shape(lambda p: self.decoder_carry(p, ()), decoder))
        if self.bridge == "copy":
            check_carry("the carry of the encoder (bridge='copy')", _zeros(final), carry)
        if self.bridge != "tanh":
            return ()
        for name, tree in (("encoder", final), ("decoder", carry)):
            if any(jnp.issubdtype(a.dtype, jnp.complexfloating) for a in jax.tree.leaves(tree)):
                raise ValueError(f"bridge='tanh' needs real carries, got a complex one of {name}")
        rows, leaves = _size(final), jax.tree.leaves(carry)
        keys = jax.random.split(key, max(len(leaves), 1))
        return tuple(
            LinearParams(*draw_linear(k, rows, a.size)) for k, a in zip(keys, leaves, strict=False)
        )

    def cross(self, params: SequenceToSequenceParams, final: Carry, batch: tuple) -> Carry:
        """From the carry with which the encoder ends to that with which the decoder begins."""
        own = self.decoder_carry(params.decoder, batch)
        if self.bridge == "zeros":
            return own
        crossed = _fed_apart(own)
        if self.bridge == "copy":
            crossed = check_carry("the carry of the encoder (bridge='copy')", final, crossed)
        else:
            ends = [a.reshape(*batch, -1) for a in jax.tree.leaves(final)]
            known = jnp.concatenate(ends, axis=-1)
            leaves, structure = jax.tree.flatten(crossed)
            crossed = structure.unflatten(
                jnp.tanh(linear(known, p.w, p.bias)).reshape(a.shape).astype(a.dtype)
                for p, a in zip(params.bridge, leaves, strict=True)
            )
        return own._replace(cell=crossed) if isinstance(own, FeedingCarry) else crossed

    def remember(
        self, params: SequenceToSequenceParams, states: Array, valid: Array | None
    ) -> Memory | None:
        """What is attended to, with all that can be made of it once."""
        if not self.attends:
            return None
        real = jnp.ones(states.shape[:-1], bool) if valid is None else valid
        memory = Memory(states, real)
        if isinstance(self.decoder, Cell):
            return prepare_memory(self.decoder, params.decoder, memory)
        assert self.attention is not None
        return memory._replace(keys=self.attention.keys(params.attention, states))

    def decode(
        self,
        params: SequenceToSequenceParams,
        carry: Carry,
        xs: Array,
        valid: Array | None,
        memory: Memory | None,
        key: Key | None,
    ) -> tuple[Array, Array | None]:
        """What the head reads at all steps [..., T, F], and the weights [..., T, S]."""
        options = {"mask": valid, "initial_carry": carry, "key": key}
        if isinstance(self.decoder, Cell):
            _, ys = unroll(self.decoder, params.decoder, xs, context=memory, **options)
            return _join(ys.output, ys.weights, memory, xs), ys.weights
        _, hs = self.decoder.apply(params.decoder, xs, **options)
        weights = self.attend(params, hs, memory)
        features = _join(hs, weights, memory, xs)
        return features, None if weights is None else masking.zero_padding(valid, weights)

    def decode_one(
        self, params: SequenceToSequenceParams, carry: Carry, x: Array, memory: Memory | None
    ) -> tuple[Carry, Array, Array | None]:
        """The carry after one step, what the head reads [..., F], and the weights [..., S]."""
        if self.attends and not isinstance(memory, Memory):
            raise ValueError(f"memory must be what encode gave, got {type(memory).__name__}")
        if isinstance(self.decoder, Cell):
            carry, y = step_in_program(self.decoder, params.decoder, carry, x, memory)
            hs, weights = y.output[..., None, :], y.weights[..., None, :]
        else:
            carry, h = self.decoder.step(params.decoder, carry, x)
            hs = h[..., None, :]
            weights = self.attend(params, hs, memory)
        features = _join(hs, weights, memory, x[..., None, :])
        weights = None if weights is None else weights[..., 0, :]
        return carry, features[..., 0, :], weights

    def attend(
        self, params: SequenceToSequenceParams, hs: Array, memory: Memory | None
    ) -> Array | None:
        """The weights [..., T, S] of attention outside of the recurrence."""
        if self.attention is None:
            return None
        assert memory is not None
        assert memory.keys is not None
        w_q = self.attention.query_weights(params.attention)
        queries = hs if w_q is None else linear(hs, w_q)
        return self.attention.weigh(params.attention, queries, memory.keys, memory.mask)


def _join(hs: Array, weights: Array | None, memory: Memory | None, xs: Array) -> Array:
    """Outputs, what was read of the memory, and the tokens before, side by side."""
    pieces = [hs, xs.astype(hs.dtype)]
    if weights is not None and memory is not None:
        pieces.insert(1, weighted_mean(weights, memory.states).astype(hs.dtype))
    return jnp.concatenate(pieces, axis=-1)


def _fed_apart(carry: Carry) -> Carry:
    """The carry without what input feeding adds, which begins as zeros."""
    return carry.cell if isinstance(carry, FeedingCarry) else carry


def _draw_head(
    key: Key, features: int, inner: int | None, vocab_size: int, tied: bool
) -> DeepHeadParams:
    below, above = jax.random.split(key)
    hidden = None if inner is None else LinearParams(*draw_linear(below, features, inner))
    w, bias = draw_linear(above, features if inner is None else inner, vocab_size)
    return DeepHeadParams(hidden, SoftmaxParams(None if tied else w, bias))


def _tokens(name: str, tokens: Any, lengths: Any, vocab_size: int) -> tuple[Array, Array | None]:
    """Ids [..., T], 0 where they are not real, and which are; None where all are."""
    tokens = masking.as_integers(name, tokens)
    if not tokens.ndim:
        raise ValueError(f"{name} must have shape [..., T], got a scalar")
    try:
        valid = masking.valid_steps(lengths, None, tokens.shape[:-1], tokens.shape[-1])
    except ValueError as error:
        raise ValueError(f"{name}_{error}") from None  # which of the two lengths it speaks of
    return check_tokens(masking.zero_padding(valid, tokens), vocab_size, name), valid


def _split(key: Key | None, count: int) -> Any:
    return (None,) * count if key is None else jax.random.split(check_key(key), count)


def _size(tree: Any) -> int:
    return sum(a.size for a in jax.tree.leaves(tree))


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)


def _check_start(start: Any, vocab_size: int) -> int:
    if isinstance(start, bool) or not hasattr(start, "__index__"):
        raise ValueError(f"start must be a token id, an integer, got {start!r}")
    if not 0 <= start < vocab_size:
        raise ValueError(f"start must lie in [0, {vocab_size}), got {start}")
    return int(start)


def _check_tied(target: Embedding, head_size: int | None) -> None:
    shapes = jax.eval_shape(lambda: target.init(jax.random.key(0)))
    if not hasattr(shapes, "vectors"):
        raise ValueError("tie=True needs a target with a table, such as rnnjax.embedding(...)")
    if head_size != target.output_size:
        raise ValueError(
            f"tie=True needs a head_size of {target.output_size}, the size of target's vectors, "
            f"got {head_size}"
        )
