"""What is read before a model writes: tokens through an encoder, or the places of a picture."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_floating
from rnnjax._numerics import accumulation_dtype
from rnnjax.base import Cell, Key, Layer, Params
from rnnjax.layers.recurrent import as_layer, not_a_layer
from rnnjax.models._dropout import locked_dropout, split_key
from rnnjax.models.embedding import Embedding, check_tokens, not_an_embedding


class Tokens(NamedTuple):
    """Sequences of tokens, embedded and read by a layer; its final carry is what crosses."""

    embedding: Embedding
    encoder: Layer

    @classmethod
    def checked(cls, source: Any, encoder: Any) -> "Tokens":
        """Both parts.

        Raises:
            ValueError: naming the part that does not fit.
        """
        if not isinstance(source, Embedding):
            raise not_an_embedding("source", source)
        if not isinstance(encoder, Cell | Layer):
            raise not_a_layer("encoder", encoder)
        if isinstance(encoder, Cell) and encoder.context is not None:
            raise ValueError("encoder must be without attention, got a cell that takes a context")
        return cls(source, as_layer(encoder))

    @property
    def ndim(self) -> int:
        return 1

    @property
    def size(self) -> int:
        return self.embedding.vocab_size

    @property
    def output_size(self) -> int:
        return self.encoder.output_size

    @property
    def bridges(self) -> tuple[str, ...]:
        return ("tanh", "copy", "zeros")

    def init(self, of_source: Key, of_encoder: Key) -> tuple[Params, Params]:
        encoding = self.encoder.init(of_encoder, self.embedding.output_size)
        return self.embedding.init(of_source), encoding

    def final_shapes(self, encoder: Params) -> Any:
        """The shapes of what crosses, for one example."""
        return jax.eval_shape(self.encoder.initial_carry, encoder)

    def read(
        self, params: Any, source: Any, lengths: Any, dropout: float, key: Key | None
    ) -> tuple[Any, Array, Array | None]:
        """What crosses, the states [..., S, M], and which of them are real."""
        tokens, valid = read_tokens("source", source, lengths, self.embedding.vocab_size)
        drop, inside = split_key(key, 2)
        xs = locked_dropout(drop, self.embedding.apply(params.source, tokens), dropout)
        final, states = self.encoder.apply(params.encoder, xs, mask=valid, key=inside)
        return final, states, valid


class Places(NamedTuple):
    """The places of a picture, as vectors, in no order; their mean is what crosses."""

    size: int

    @property
    def ndim(self) -> int:
        return 2

    @property
    def output_size(self) -> int:
        return self.size

    @property
    def bridges(self) -> tuple[str, ...]:
        return ("tanh", "zeros")

    def init(self, of_source: Key, of_encoder: Key) -> tuple[Params, Params]:
        return (), ()

    def final_shapes(self, encoder: Params) -> Any:
        """The shapes of what crosses, for one example."""
        return jax.ShapeDtypeStruct((self.size,), jnp.float32)

    def read(
        self, params: Any, source: Any, lengths: Any, dropout: float, key: Key | None
    ) -> tuple[Any, Array, Array | None]:
        """What crosses, the vectors [..., S, M], and which of them are real."""
        places = jnp.asarray(masking.as_array("source", source))
        if places.ndim < 2 or places.shape[-1] != self.size:
            raise ValueError(f"source must have shape [..., S, {self.size}], got {places.shape}")
        check_floating("source", places)
        valid = _real("source", lengths, places.shape[:-2], places.shape[-2])
        places = masking.zero_padding(valid, places)
        # At least float32, and 0 where there is no place.
        total = jnp.sum(places.astype(accumulation_dtype(places.dtype)), axis=-2)
        count: Any = places.shape[-2]
        if valid is not None:
            count = jnp.sum(valid, axis=-1, dtype=total.dtype)[..., None]
        return total / jnp.maximum(count, 1), places, valid


def read_tokens(
    name: str, tokens: Any, lengths: Any, vocab_size: int
) -> tuple[Array, Array | None]:
    """Ids [..., T], 0 where they are not real, and which are; None where all are."""
    tokens = masking.as_integers(name, tokens)
    if not tokens.ndim:
        raise ValueError(f"{name} must have shape [..., T], got a scalar")
    valid = _real(name, lengths, tokens.shape[:-1], tokens.shape[-1])
    return check_tokens(tokens, vocab_size, name, valid), valid


def _real(name: str, lengths: Any, batch: tuple[int, ...], steps: int) -> Array | None:
    try:
        return masking.valid_steps(lengths, None, batch, steps)
    except ValueError as error:
        raise ValueError(f"{name}_{error}") from None  # which of the two lengths it speaks of
