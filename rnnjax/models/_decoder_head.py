"""From what a decoder gives to logits: what the head reads, and its products."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax._checks import check_params
from rnnjax._numerics import affine
from rnnjax.base import Key
from rnnjax.initializers import draw_linear
from rnnjax.layers._memory import Attended, Memory
from rnnjax.layers.attention import weighted_mean
from rnnjax.models._encoding import LinearParams
from rnnjax.models.embedding import Embedding, check_tied, table_of
from rnnjax.models.language_model import SoftmaxParams

# So many rows of ``context`` for each place, or more, and the logits of the places are made.
_ROWS_A_PLACE = 4


class DeepHeadParams(NamedTuple):
    """``hidden`` [F, head_size], None without ``head_size``; ``output``: to the vocabulary.

    ``context`` [M, V] is the part of the last product that multiplies what was read of the memory,
    None without attention and with a ``head_size``.
    """

    hidden: LinearParams | None
    output: SoftmaxParams
    context: Array | None


def check_head(params: Any) -> None:
    """Refuse what are no parameters of a head."""
    check_params(params, DeepHeadParams, "params.head")
    check_params(params.output, SoftmaxParams, "params.head.output")
    if params.hidden is not None:
        check_params(params.hidden, LinearParams, "params.head.hidden")


class Head(NamedTuple):
    """The head of a decoder with outputs [O] above a memory [M], 0 without, and token vectors [E].

    It reads :math:`[h_t, c_t, y_{t-1}]`. ``context``, the part of its matrix that multiplies
    :math:`c_t`, is an array of its own, so that a memory can be pushed through it once:
    :math:`c_t W_c = \\sum_s a_{ts} (m_s W_c)`.

    The ``params`` of its methods are those of the whole model, ``SequenceToSequenceParams``.
    """

    output_size: int
    memory_size: int
    token_size: int
    vocab_size: int
    inner: int | None
    tied: bool

    @classmethod
    def checked(
        cls, sizes: tuple[int, int, int], target: Embedding, inner: int | None, tied: bool
    ) -> "Head":
        """The head.

        Raises:
            ValueError: it is tied to a target without a table, or of another size.
        """
        if tied:
            check_tied(target, "target", inner, "head_size")
        return cls(*sizes, target.vocab_size, inner, tied)

    def init(self, key: Key) -> DeepHeadParams:
        below, above = jax.random.split(key)
        features = self.output_size + self.memory_size + self.token_size
        if self.inner is not None:
            hidden = LinearParams(*draw_linear(below, features, self.inner))
            w, bias = draw_linear(above, self.inner, self.vocab_size)
            return DeepHeadParams(hidden, SoftmaxParams(None if self.tied else w, bias), None)
        w, bias = draw_linear(above, features, self.vocab_size)
        if not self.memory_size:
            return DeepHeadParams(None, SoftmaxParams(w, bias), None)
        ends = self.output_size, self.output_size + self.memory_size
        of_output, context, of_token = jnp.split(w, ends)
        w = jnp.concatenate([of_output, of_token])
        return DeepHeadParams(None, SoftmaxParams(w, bias), context)

    def join(self, outputs: Array | Attended, memory: Memory | None, xs: Array) -> Array:
        """What it reads at all steps [..., T, F]: outputs, contexts and the tokens before."""
        if not isinstance(outputs, Attended):
            return jnp.concatenate([outputs, xs.astype(outputs.dtype)], axis=-1)
        assert memory is not None
        output, contexts = outputs.output, _contexts(outputs, memory)
        return jnp.concatenate([output, contexts, xs.astype(output.dtype)], axis=-1)

    def below(self, params: Any, read: Array) -> Array:
        """What the last product multiplies."""
        hidden = params.head.hidden
        return read if hidden is None else jnp.tanh(affine(read, hidden.w, hidden.bias))

    def weights(self, params: Any) -> tuple[Array, Array]:
        """The matrix [F, V] and the bias [V] of the last product."""
        output, context = params.head.output, params.head.context
        if self.tied:
            return table_of(params.target).T, output.bias
        if context is None:
            return output.w, output.bias
        of_output, of_token = jnp.split(output.w, [self.output_size])
        return jnp.concatenate([of_output, context, of_token]), output.bias

    def remember(self, params: Any, memory: Memory | None) -> Memory | None:
        """The memory with its part of the logits, where that is much smaller than ``context``.

        A step of a search reads either of them. With few places it is less to read: on 2 cores,
        6,000 tokens and 256 units, one sentence of 13 was translated in 1 / 1.4 of the time, with a
        beam of five in 1 / 1.55; four together in 1 / 1.3; 16 together, as many places as 0.8 of
        the rows of ``context``, in 1 / 1.1; with more it is level, and takes more memory.
        """
        context = params.head.context
        if memory is None or context is None:
            return memory
        places = memory.states.shape[:-1]
        known = all(isinstance(n, int) for n in places)
        if not known or _ROWS_A_PLACE * math.prod(places) > len(context):
            return memory
        return memory._replace(logits=affine(memory.states, context, name="memory.states"))

    def logits_of_step(
        self, params: Any, outputs: Array | Attended, memory: Memory | None, xs: Array
    ) -> Array:
        """The logits [..., 1, V] of one step."""
        context = params.head.context
        if context is None or not isinstance(outputs, Attended):
            return affine(self.below(params, self.join(outputs, memory, xs)), *self.weights(params))
        assert memory is not None
        others = self.join(outputs.output, None, xs)
        logits = affine(others, params.head.output.w, params.head.output.bias)
        if memory.logits is not None:
            return logits + weighted_mean(outputs.shares, memory.logits)
        return logits + affine(_contexts(outputs, memory), context)


def _contexts(outputs: Attended, memory: Memory) -> Array:
    """What was read of the memory [..., T, M], in the dtype of the outputs."""
    return weighted_mean(outputs.shares, memory.states).astype(outputs.output.dtype)
