"""What models that write after they have read share: bridge, decoder, attention and head."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import (
    check_carry,
    check_flag,
    check_id,
    check_key,
    check_params,
    check_rate,
    check_size,
)
from rnnjax._native import jit
from rnnjax._numerics import affine
from rnnjax._recipe import Made
from rnnjax.base import Carry, Cell, Key, Layer, Params
from rnnjax.engine.one_step import carry_of_batch, step_in_program
from rnnjax.engine.unroll import unroll
from rnnjax.initializers import draw_linear
from rnnjax.layers._input_feeding import FeedingCarry
from rnnjax.layers._memory import Attended, Memory
from rnnjax.layers.attention import Attention, weighted_mean
from rnnjax.layers.attention_cell import prepare_memory
from rnnjax.layers.recurrent import as_layer
from rnnjax.models._encoding import LinearParams
from rnnjax.models._sources import Places, Tokens, read_tokens, split_key
from rnnjax.models.embedding import Embedding, check_tokens, table_of
from rnnjax.models.language_model import SoftmaxParams, locked_dropout


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


class DeepHeadParams(NamedTuple):
    """``hidden`` [F, head_size], None without ``head_size``; ``output``: to the vocabulary."""

    hidden: LinearParams | None
    output: SoftmaxParams


class LayersParams(NamedTuple):
    """Parameters of the cell that attends, and of the layers ``above`` it."""

    attending: Any
    above: Any


class LayersCarry(NamedTuple):
    """The carry of the cell that attends, and of the layers ``above`` it."""

    attending: Any
    above: Any


class _SequenceToSequenceFields(NamedTuple):
    init: Callable[[Key], SequenceToSequenceParams]
    apply: Callable[..., tuple[Array, Array | None]]
    encode: Callable[..., tuple[Carry, Memory | None]]
    step: Callable[..., tuple[Carry, Array, Array | None]]
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
            every token of the target after those before it. The start token is put before the
            target here. Weights are None without attention. A ``key`` means training.
        encode: ``(params, source, lengths, *, key) -> (carry, memory)``: the decoder's carry before
            the start token, and what it attends to; None without attention.
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
    source: Tokens | Places,
    target: Embedding,
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
    """A model that reads ``source``; the other arguments are those of the public factories.

    Raises:
        ValueError: an argument that does not fit, named in the message.
    """
    parts = _Parts.checked(source, target, decoder, attention, above, bridge)
    inner = None if head_size is None else check_size("head_size", head_size)
    tied = check_flag("tie", tie)
    if tied:
        _check_tied(target, inner)
    rate, first = check_rate("dropout", dropout), check_id("start", start, target.vocab_size)

    def init(key: Key) -> SequenceToSequenceParams:
        keys = jax.random.split(check_key(key), 7)
        table, encoding = source.init(keys[0], keys[1])
        decoding = parts.decoder_init(keys[4], target.output_size)
        return SequenceToSequenceParams(
            table,
            encoding,
            parts.draw_bridge(keys[2], encoding, decoding),
            target.init(keys[3]),
            decoding,
            parts.draw_attention(keys[5]),
            _draw_head(keys[6], parts.feature_size, inner, target.vocab_size, tied),
        )

    def encode(
        params: SequenceToSequenceParams,
        given: Array,
        lengths: Any = None,
        *,
        key: Key | None = None,
    ) -> tuple[Carry, Memory | None]:
        params = check_params(params, SequenceToSequenceParams)
        final, states, valid = source.read(params, given, lengths, rate, key)
        carry = parts.cross(params, final, states.shape[:-2])
        return carry, parts.remember(params, states, valid)

    def features(
        params: SequenceToSequenceParams,
        given: Array,
        source_lengths: Any,
        target_tokens: Array,
        target_lengths: Any = None,
        *,
        key: Key | None = None,
    ) -> tuple[Array, Attended | None]:
        reading, drop, inside, out = split_key(key, 4)
        carry, memory = encode(params, given, source_lengths, key=reading)
        tokens, valid = read_tokens("target", target_tokens, target_lengths, target.vocab_size)
        batch = masking.as_array("source", given).shape[: -source.ndim]
        if tokens.shape[:-1] != batch:
            raise ValueError(
                f"target must have the batch axes of source, {batch}, got shape {tokens.shape}"
            )
        starts = jnp.full((*batch, 1), first, tokens.dtype)
        before = jnp.concatenate([starts, tokens], axis=-1)[..., :-1]
        xs = locked_dropout(drop, target.apply(params.target, before), rate)
        read, attended = parts.decode(params, carry, xs, valid, memory, inside)
        read = locked_dropout(out, masking.zero_padding(valid, read), rate)
        return _below_head(params, read), attended

    def head_weights(params: SequenceToSequenceParams) -> tuple[Array, Array]:
        check_params(params, SequenceToSequenceParams)
        return _head_weights(tied, params)

    def teach(
        params: SequenceToSequenceParams,
        given: Array,
        source_lengths: Any,
        target_tokens: Array,
        target_lengths: Any = None,
        *,
        key: Key | None = None,
    ) -> tuple[Array, Attended | None]:
        pair = given, source_lengths, target_tokens, target_lengths
        read, attended = features(params, *pair, key=key)
        return affine(read, *_head_weights(tied, params)), attended

    def apply(
        params: SequenceToSequenceParams,
        given: Array,
        source_lengths: Any,
        target_tokens: Array,
        target_lengths: Any = None,
        *,
        key: Key | None = None,
    ) -> tuple[Array, Array | None]:
        logits, attended = teach(
            params, given, source_lengths, target_tokens, target_lengths, key=key
        )
        return logits, None if attended is None else attended.weights

    def step(
        params: SequenceToSequenceParams, carry: Carry, token: Array, memory: Memory | None = None
    ) -> tuple[Carry, Array, Array | None]:
        params = check_params(params, SequenceToSequenceParams)
        parts.check_memory(memory)
        carry = jax.tree.map(functools.partial(masking.as_array, "carry"), carry)
        # Ids are looked at here, where their values may be known.
        token = check_tokens(token, target.vocab_size, "token")
        return _step(parts, tied, params, carry, token, memory)

    sizes = first, source.size, target.vocab_size, source.ndim
    model = SequenceToSequence(init, apply, encode, step, *sizes, teach, features, head_weights)
    # Parts that do not fit are refused here, not later.
    shapes = jax.eval_shape(init, jax.random.key(0))
    jax.eval_shape(lambda p: parts.remember(p, jnp.zeros((1, source.output_size)), None), shapes)
    return model


class _Parts(NamedTuple):
    """The parts of a model, and what passes between them."""

    source: Tokens | Places
    decoder: Cell | Layer  # a cell where attention is inside it
    target: Embedding
    attention: Attention | None
    above: Layer | None  # on top of a decoder that attends by itself
    bridge: str

    @classmethod
    def checked(
        cls, source: Any, target: Any, decoder: Any, attention: Any, above: Any, bridge: Any
    ) -> "_Parts":
        """The parts.

        Raises:
            ValueError: naming the part that does not fit.
        """
        if not isinstance(target, Embedding):
            raise ValueError(f"target must be a rnnjax.Embedding, got {type(target).__name__}")
        for name, part in (("decoder", decoder), ("above", above)):
            if not isinstance(part, Cell | Layer) and not (name == "above" and part is None):
                kind = type(part).__name__
                raise ValueError(f"{name} must be a rnnjax.Cell or rnnjax.Layer, got {kind}")
        if not isinstance(attention, Attention | None):
            kind = type(attention).__name__
            raise ValueError(f"attention must be a rnnjax.attention(...) or None, got {kind}")
        if bridge not in source.bridges:
            raise ValueError(f"bridge must be one of {', '.join(source.bridges)}, got {bridge!r}")
        on_top = None if above is None else as_layer(above)
        if isinstance(decoder, Cell) and decoder.context is not None:
            if attention is not None:
                raise ValueError(
                    "attention must be None where the decoder is an attention_cell, got one"
                )
            if on_top is not None and not on_top.causal:
                raise ValueError("above must not read ahead, got one with a part run in reverse")
            return cls(source, decoder, target, None, on_top, bridge)
        if on_top is not None:
            raise ValueError(
                "above must be None where the decoder is no attention_cell, got a layer: "
                "use decoder=rnnjax.stack(...)"
            )
        decoder = as_layer(decoder)
        if not decoder.causal:
            raise ValueError("decoder must not read ahead, got one with a part run in reverse")
        return cls(source, decoder, target, attention, None, bridge)

    @property
    def attends(self) -> bool:
        return isinstance(self.decoder, Cell) or self.attention is not None

    @property
    def output_size(self) -> int:
        return (self.above or self.decoder).output_size

    @property
    def feature_size(self) -> int:
        """What the head reads: the output, what was read of the memory, and the token before."""
        context = self.source.output_size if self.attends else 0
        return self.output_size + context + self.target.output_size

    def decoder_init(self, key: Key, input_size: int) -> Params:
        decoding = self.decoder.init(key, input_size)
        if self.above is None:
            return decoding
        on_top = self.above.init(jax.random.fold_in(key, 1), self.decoder.output_size)
        return LayersParams(decoding, on_top)

    def draw_attention(self, key: Key) -> Params:
        if self.attention is None:
            return ()
        return self.attention.init(key, self.decoder.output_size, self.source.output_size)

    def decoder_carry(self, params: Params, batch: tuple[int, ...]) -> Carry:
        if isinstance(self.decoder, Layer):
            return self.decoder.initial_carry(params, batch)
        if self.above is None:
            return carry_of_batch(self.decoder.initial_carry(params), batch)
        attending = carry_of_batch(self.decoder.initial_carry(params.attending), batch)
        return LayersCarry(attending, self.above.initial_carry(params.above, batch))

    def draw_bridge(self, key: Key, encoder: Params, decoder: Params) -> tuple:
        """A linear map to each array of the decoder's carry, where the bridge has any."""
        final = self.source.final_shapes(encoder)
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
            # A size of -1 would be unknown in a batch of no rows.
            ends = [
                a.reshape(*batch, math.prod(a.shape[len(batch) :])) for a in jax.tree.leaves(final)
            ]
            known = jnp.concatenate(ends, axis=-1)
            leaves, structure = jax.tree.flatten(crossed)
            crossed = structure.unflatten(
                jnp.tanh(affine(known, p.w, p.bias)).reshape(a.shape).astype(a.dtype)
                for p, a in zip(params.bridge, leaves, strict=True)
            )
        return _with_fed(own, crossed)

    def remember(
        self, params: SequenceToSequenceParams, states: Array, valid: Array | None
    ) -> Memory | None:
        """What is attended to, with all that can be made of it once."""
        if not self.attends:
            return None
        real = jnp.ones(states.shape[:-1], bool) if valid is None else valid
        memory = Memory(states, real)
        if isinstance(self.decoder, Cell):
            return prepare_memory(self.decoder, self.attending(params.decoder), memory)
        assert self.attention is not None
        return memory._replace(keys=self.attention.keys(params.attention, states))

    def attending(self, decoder: Params) -> Params:
        """The parameters of the cell that attends."""
        return decoder if self.above is None else decoder.attending

    def decode(
        self,
        params: SequenceToSequenceParams,
        carry: Carry,
        xs: Array,
        valid: Array | None,
        memory: Memory | None,
        key: Key | None,
    ) -> tuple[Array, Attended | None]:
        """What the head reads at all steps [..., T, F], and how the memory was read."""
        if isinstance(self.decoder, Cell):
            own = carry if self.above is None else carry.attending
            _, attended = unroll(
                self.decoder,
                self.attending(params.decoder),
                xs,
                mask=valid,
                initial_carry=own,
                key=key,
                context=memory,
            )
            if self.above is not None:
                _, hs = self.above.apply(
                    params.decoder.above,
                    attended.output,
                    mask=valid,
                    initial_carry=carry.above,
                    key=None if key is None else jax.random.fold_in(key, 1),
                )
                attended = attended._replace(output=hs)
            return _join(attended, memory, xs), attended
        _, hs = self.decoder.apply(params.decoder, xs, mask=valid, initial_carry=carry, key=key)
        weights = self.attend(params, hs, memory)
        if weights is None:
            return _join(hs, memory, xs), None
        attended = Attended(hs, weights)
        features = _join(attended, memory, xs)
        return features, attended._replace(weights=masking.zero_padding(valid, weights))

    def check_memory(self, memory: Any) -> None:
        if self.attends and not isinstance(memory, Memory):
            raise ValueError(f"memory must be what encode gave, got {type(memory).__name__}")

    def decode_one(
        self, params: SequenceToSequenceParams, carry: Carry, x: Array, memory: Memory | None
    ) -> tuple[Carry, Array, Array | None]:
        """The carry after one step, what the head reads [..., F], and the weights [..., S]."""
        if isinstance(self.decoder, Cell):
            own = carry if self.above is None else carry.attending
            weights_of = self.attending(params.decoder)
            new, attended = step_in_program(self.decoder, weights_of, own, x, memory)
            if self.above is not None:
                on_top, h = self.above.step(params.decoder.above, carry.above, attended.output)
                new, attended = LayersCarry(new, on_top), attended._replace(output=h)
            at_once = jax.tree.map(lambda a: a[..., None, :], attended)
            features = _join(at_once, memory, x[..., None, :])
            return new, features[..., 0, :], attended.weights
        carry, h = self.decoder.step(params.decoder, carry, x)
        hs = h[..., None, :]
        weights = self.attend(params, hs, memory)
        read = hs if weights is None else Attended(hs, weights)
        features = _join(read, memory, x[..., None, :])
        return carry, features[..., 0, :], None if weights is None else weights[..., 0, :]

    def attend(
        self, params: SequenceToSequenceParams, hs: Array, memory: Memory | None
    ) -> Array | None:
        """The weights [..., T, S] of attention outside of the recurrence."""
        if self.attention is None:
            return None
        assert memory is not None
        assert memory.keys is not None
        w_q = self.attention.query_weights(params.attention)
        queries = hs if w_q is None else affine(hs, w_q)
        return self.attention.weigh(params.attention, queries, memory.keys, memory.mask)


# One program, where operation after operation would each be a call of its own; for equal models,
# the same one.
@functools.partial(jit, static_argnums=(0, 1))
def _step(
    parts: _Parts,
    tied: bool,
    params: SequenceToSequenceParams,
    carry: Carry,
    token: Array,
    memory: Memory | None,
) -> tuple[Carry, Array, Array | None]:
    x = parts.target.apply(params.target, token)
    carry, features, weights = parts.decode_one(params, carry, x, memory)
    logits = affine(_below_head(params, features), *_head_weights(tied, params))
    return carry, logits, weights


def _below_head(params: SequenceToSequenceParams, features: Array) -> Array:
    """What the last product multiplies."""
    hidden = params.head.hidden
    return features if hidden is None else jnp.tanh(affine(features, hidden.w, hidden.bias))


def _head_weights(tied: bool, params: SequenceToSequenceParams) -> tuple[Array, Array]:
    output = params.head.output
    return table_of(params.target).T if tied else output.w, output.bias


def _join(hs: Array | Attended, memory: Memory | None, xs: Array) -> Array:
    """Outputs, what was read of the memory, and the tokens before, side by side."""
    if not isinstance(hs, Attended):
        return jnp.concatenate([hs, xs.astype(hs.dtype)], axis=-1)
    assert memory is not None
    dtype = hs.output.dtype
    read = weighted_mean(hs.shares, memory.states).astype(dtype)
    return jnp.concatenate([hs.output, read, xs.astype(dtype)], axis=-1)


def _fed_apart(carry: Carry) -> Carry:
    """The carry without what input feeding adds, which begins as zeros."""
    if isinstance(carry, LayersCarry):
        return carry._replace(attending=_fed_apart(carry.attending))
    return carry.cell if isinstance(carry, FeedingCarry) else carry


def _with_fed(own: Carry, crossed: Carry) -> Carry:
    """``crossed`` with what :func:`_fed_apart` took from ``own``."""
    if isinstance(own, LayersCarry):
        return crossed._replace(attending=_with_fed(own.attending, crossed.attending))
    return own._replace(cell=crossed) if isinstance(own, FeedingCarry) else crossed


def _draw_head(
    key: Key, features: int, inner: int | None, vocab_size: int, tied: bool
) -> DeepHeadParams:
    below, above = jax.random.split(key)
    hidden = None if inner is None else LinearParams(*draw_linear(below, features, inner))
    w, bias = draw_linear(above, features if inner is None else inner, vocab_size)
    return DeepHeadParams(hidden, SoftmaxParams(None if tied else w, bias))


def _size(tree: Any) -> int:
    return sum(a.size for a in jax.tree.leaves(tree))


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)


def _check_tied(target: Embedding, head_size: int | None) -> None:
    shapes = jax.eval_shape(lambda: target.init(jax.random.key(0)))
    if not hasattr(shapes, "vectors"):
        raise ValueError("tie=True needs a target with a table, such as rnnjax.embedding(...)")
    if head_size != target.output_size:
        raise ValueError(
            f"tie=True needs a head_size of {target.output_size}, the size of target's vectors, "
            f"got {head_size}"
        )
