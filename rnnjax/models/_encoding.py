"""What models share: inputs brought to vectors, and vectors through a layer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_key, check_params, check_rate, check_size
from rnnjax._numerics import affine
from rnnjax.base import Cell, Key, Layer
from rnnjax.engine._arguments import check_xs
from rnnjax.initializers import draw_linear
from rnnjax.layers._common import elementwise_dropout
from rnnjax.layers.recurrent import as_layer, not_a_layer
from rnnjax.models.embedding import Embedding, check_tokens, not_an_embedding
from rnnjax.segments import resets_from_segment_ids
from rnnjax.transforms.precision import Policy, as_operand, cast_parameters


class LinearParams(NamedTuple):
    """``w`` [H, C] and ``bias`` [C]."""

    w: Array
    bias: Array


class Encoding(NamedTuple):
    """An embedding (None where inputs are vectors), a layer and a head of C classes."""

    embedding: Embedding | None
    layer: Layer
    num_classes: int
    rate: float
    policy: Policy | None

    @classmethod
    def checked(
        cls,
        embedding: Any,
        encoder: Cell | Layer,
        num_classes: int,
        dropout: float,
        policy: Policy | None,
    ) -> "Encoding":
        """The parts of a model.

        Raises:
            ValueError: naming the part that is none.
        """
        if not isinstance(embedding, Embedding | None):
            raise not_an_embedding("embedding", embedding, "a rnnjax.Embedding or None")
        if not isinstance(encoder, Cell | Layer):
            raise not_a_layer("encoder", encoder)
        classes, rate = check_size("num_classes", num_classes), check_rate("dropout", dropout)
        return cls(embedding, as_layer(encoder, policy=policy), classes, rate, policy)

    def init(self, key: Key, input_size: int | None) -> tuple[Any, Any, LinearParams]:
        """First parameters of the three parts."""
        table_key, layer_key, head_key = jax.random.split(check_key(key), 3)
        table: Any = ()
        if self.embedding is None:
            size = check_size("input_size", input_size)
        elif input_size not in (None, self.embedding.output_size):
            raise ValueError(
                f"input_size must be left out, as it is the embedding's, got {input_size}"
            )
        else:
            table, size = self.embedding.init(table_key), self.embedding.output_size
        head = LinearParams(*draw_linear(head_key, self.layer.output_size, self.num_classes))
        table, head = cast_parameters(self.policy, (table, head))
        return table, self.layer.init(layer_key, size), head

    def run(
        self, params: Any, inputs: Any, valid: Array | None, resets: Array | None, keys: Any
    ) -> Array:
        """The outputs of the layer [..., T, H]; ``keys`` are those of the inputs and the layer."""
        if self.embedding is None:
            xs = masking.zero_padding(valid, inputs)
        else:
            ids = check_tokens(inputs, self.embedding.vocab_size, valid=valid)
            xs = self.embedding.apply(params.embedding, ids)
        xs = elementwise_dropout(keys[0], xs, self.rate)
        return self.layer.apply(params.encoder, xs, mask=valid, resets=resets, key=keys[1])[1]

    def logits(self, head: LinearParams, ys: Array, key: Key | None) -> Array:
        """The head on outputs, or on pools of them."""
        head = check_params(head, LinearParams, "params.head")
        ys = elementwise_dropout(key, ys, self.rate)
        w = as_operand(self.policy, head.w)
        return affine(ys, w, head.bias, name="the encoder's output", size=self.num_classes)

    def as_inputs(self, inputs: Any) -> tuple[Any, tuple[int, ...]]:
        """Token ids [..., T], vectors [..., T, D] or a tree of them, and their shape up to T.

        Raises:
            ValueError: they are none of these, or a tree where inputs are dropped.
        """
        if self.embedding is not None:
            tokens = masking.as_integers("tokens", inputs)
            if not tokens.ndim:
                raise ValueError("tokens must have shape [..., T], got shape ()")
            return tokens, tokens.shape
        xs = jax.tree.map(jnp.asarray, check_xs(inputs))
        if self.rate and not hasattr(xs, "shape"):  # not all of them are features to drop
            raise ValueError(f"dropout must be 0 for inputs of several arrays, got {self.rate}")
        return xs, jax.tree.leaves(xs)[0].shape[:-1]


def packed_steps(
    shape: tuple[int, ...], lengths: Any, mask: Any, segment_ids: Array
) -> tuple[Array, Array]:
    """The real steps of packed rows, and the steps where a text starts.

    Raises:
        ValueError: ids of another shape than the inputs, or lengths or a mask beside them.
    """
    if lengths is not None or mask is not None:
        raise ValueError(
            "lengths and mask must be None with segment_ids, which say which steps are real, "
            "got one of them"
        )
    if segment_ids.shape != shape:
        raise ValueError(
            f"segment_ids must have the shape of the inputs up to T, {shape}, "
            f"got {segment_ids.shape}"
        )
    valid = masking.computed_now(lambda ids: ids > 0, segment_ids)
    return valid, resets_from_segment_ids(segment_ids)
