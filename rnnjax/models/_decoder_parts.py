"""The parts of a model that writes after it has read: source, bridge, decoder and attention."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import describe
from rnnjax._numerics import affine
from rnnjax._recipe import Made
from rnnjax.base import Carry, Cell, Key, Layer, Params
from rnnjax.engine.one_step import carry_of_batch, step_in_program
from rnnjax.engine.unroll import unroll
from rnnjax.layers._input_feeding import FeedingCarry
from rnnjax.layers._memory import Attended, Memory
from rnnjax.layers.attention import Attention
from rnnjax.layers.attention_cell import prepare_memory
from rnnjax.layers.recurrent import as_layer, not_a_layer
from rnnjax.models._bridge import cross, draw_bridge
from rnnjax.models._dropout import split_key
from rnnjax.models._encoding import LinearParams
from rnnjax.models._sources import Places, Tokens
from rnnjax.models.embedding import Embedding, not_an_embedding


class LayersParams(NamedTuple):
    """Parameters of the cell that attends, and of the layers ``above`` it."""

    attending: Any
    above: Any


class LayersCarry(NamedTuple):
    """The carry of the cell that attends, and of the layers ``above`` it."""

    attending: Any
    above: Any


class Parts(NamedTuple):
    """The parts of a model, and what passes between them.

    The ``params`` of its methods are those of the whole model, ``SequenceToSequenceParams``.
    """

    source: Tokens | Places
    decoder: Cell | Layer  # a cell where attention is inside it
    target: Embedding
    attention: Attention | None
    above: Layer | None  # on top of a decoder that attends by itself
    bridge: str

    @classmethod
    def checked(
        cls, source: Any, target: Any, decoder: Any, attention: Any, above: Any, bridge: Any
    ) -> "Parts":
        """The parts.

        Raises:
            ValueError: naming the part that does not fit.
        """
        if not isinstance(target, Embedding):
            raise not_an_embedding("target", target)
        for name, part in (("decoder", decoder), ("above", above)):
            if not isinstance(part, Cell | Layer) and not (name == "above" and part is None):
                raise not_a_layer(name, part)
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
        if _reads_context(decoder):
            raise ValueError(
                f"decoder must be the attention_cell alone, got {decoder!r}: "
                "give the layers on top of it as above=..."
            )
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
    def read_sizes(self) -> tuple[int, int, int]:
        """Of what the head reads: the output, what was read of the memory, and the token before."""
        context = self.source.output_size if self.attends else 0
        return self.output_size, context, self.target.output_size

    def decoder_init(self, key: Key, input_size: int) -> Params:
        if self.above is None:
            return self.decoder.init(key, input_size)
        inner, on_top = jax.random.split(key)
        return LayersParams(
            self.decoder.init(inner, input_size),
            self.above.init(on_top, self.decoder.output_size),
        )

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

    def draw_bridge(self, key: Key, encoder: Params, decoder: Params) -> tuple[LinearParams, ...]:
        final = self.source.final_shapes(encoder)
        carry = jax.eval_shape(lambda p: self.decoder_carry(p, ()), decoder)
        return draw_bridge(self.bridge, key, final, _fed_apart(carry))

    def cross(self, params: Any, final: Carry, batch: tuple[int, ...]) -> Carry:
        """From the carry with which the encoder ends to that with which the decoder begins."""
        own = self.decoder_carry(params.decoder, batch)
        if self.bridge == "zeros":
            return own
        return _with_fed(own, cross(self.bridge, params.bridge, final, _fed_apart(own), batch))

    def remember(self, params: Any, states: Array, valid: Array | None) -> Memory | None:
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
        params: Any,
        carry: Carry,
        xs: Array,
        valid: Array | None,
        memory: Memory | None,
        key: Key | None,
    ) -> Array | Attended:
        """The outputs of all steps [..., T, O], with attention and how the memory was read."""
        if isinstance(self.decoder, Cell):
            own = carry if self.above is None else carry.attending
            inner, on_top = (key, None) if self.above is None else split_key(key, 2)
            _, attended = unroll(
                self.decoder,
                self.attending(params.decoder),
                xs,
                mask=valid,
                initial_carry=own,
                key=inner,
                context=memory,
            )
            if self.above is not None:
                _, hs = self.above.apply(
                    params.decoder.above,
                    attended.output,
                    mask=valid,
                    initial_carry=carry.above,
                    key=on_top,
                )
                attended = attended._replace(output=hs)
            return attended
        _, hs = self.decoder.apply(params.decoder, xs, mask=valid, initial_carry=carry, key=key)
        weights = self.attend(params, hs, memory)
        return hs if weights is None else Attended(hs, masking.zero_padding(valid, weights))

    def check_decoder(self, params: Any) -> None:
        """Refuse a decoder that cannot read what the source gives, or does not say how it did."""
        memory = self.remember(params, jnp.zeros((1, self.source.output_size)), None)
        if not isinstance(self.decoder, Cell):
            return
        weights, x = self.attending(params.decoder), jnp.zeros(self.target.output_size)
        carry = self.decoder.initial_carry(weights)
        _, attended = step_in_program(self.decoder, weights, carry, x, memory)
        if not isinstance(attended, Attended):
            raise ValueError(
                "decoder must give rnnjax.Attended where it takes a context, as an attention_cell "
                f"does, got {describe(attended)}"
            )

    def check_encoded(self, carry: Any, memory: Any, batch: tuple[int, ...]) -> None:
        """Refuse what is not of ``encode``, or is of sources of another batch."""
        if self.attends and not isinstance(memory, Memory):
            raise ValueError(f"memory must be what encode gave, got {type(memory).__name__}")
        if self.attends and memory.states.shape[:-2] != batch:
            raise ValueError(
                f"memory must have the batch axes of token, {batch}, "
                f"got states of shape {memory.states.shape}"
            )
        if carry is None:
            raise ValueError("carry must be what encode gave, got None")

    def decode_one(
        self, params: Any, carry: Carry, x: Array, memory: Memory | None
    ) -> tuple[Carry, Array | Attended]:
        """The carry after one step, and what :meth:`decode` gives, of a T of 1."""
        if isinstance(self.decoder, Cell):
            own = carry if self.above is None else carry.attending
            weights_of = self.attending(params.decoder)
            new, attended = step_in_program(self.decoder, weights_of, own, x, memory)
            if self.above is not None:
                on_top, h = self.above.step(params.decoder.above, carry.above, attended.output)
                new, attended = LayersCarry(new, on_top), attended._replace(output=h)
            return new, jax.tree.map(lambda a: a[..., None, :], attended)
        carry, h = self.decoder.step(params.decoder, carry, x)
        hs = h[..., None, :]
        weights = self.attend(params, hs, memory)
        return carry, hs if weights is None else Attended(hs, weights)

    def attend(self, params: Any, hs: Array, memory: Memory | None) -> Array | None:
        """The weights [..., T, S] of attention outside of the recurrence."""
        if self.attention is None:
            return None
        assert memory is not None
        assert memory.keys is not None
        w_q = self.attention.query_weights(params.attention)
        queries = hs if w_q is None else affine(hs, w_q)
        return self.attention.weigh(params.attention, queries, memory.keys, memory.mask)


def _reads_context(part: Any) -> bool:
    """Whether a cell that takes a context is inside, as far as it is known of what it was made."""
    if isinstance(part, Cell):
        return part.context is not None
    recipe = getattr(part, "_recipe", None)
    made_of = () if recipe is None else tuple(recipe.arguments.values())
    return any(map(_reads_context, jax.tree.leaves(made_of, is_leaf=lambda a: isinstance(a, Made))))


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
