"""A language model: which token comes next, at every step of a text."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_flag, check_key, check_pair, check_params, check_rate
from rnnjax._devices import with_automatic_axes
from rnnjax._numerics import affine
from rnnjax._recipe import Made, factory
from rnnjax._values import check_range
from rnnjax.base import Carry, Cell, Key, Layer
from rnnjax.initializers import draw_linear
from rnnjax.layers.recurrent import as_causal_layer
from rnnjax.models._dropout import drop_words, locked_dropout, split_key
from rnnjax.models.adaptive_softmax import AdaptiveSoftmax
from rnnjax.models.embedding import (
    Embedding,
    check_tied,
    check_tokens,
    not_an_embedding,
    table_of,
)
from rnnjax.models.features import Features


class LanguageModelParams(NamedTuple):
    """``embedding``, ``layer``; ``head``: :class:`SoftmaxParams`, or those of a given softmax."""

    embedding: Any
    layer: Any
    head: Any


class SoftmaxParams(NamedTuple):
    """``w`` [H, V], None where it is the embedding's table, and ``bias`` [V]."""

    w: Array | None
    bias: Array


class _LanguageModelFields(NamedTuple):
    init: Callable[[Key], LanguageModelParams]
    apply: Callable[..., tuple[Carry, Array]]
    step: Callable[[LanguageModelParams, Carry, Array], tuple[Carry, Array]]
    initial_carry: Callable[..., Carry]
    features: Callable[..., tuple[Carry, Features]]
    head: Callable[[LanguageModelParams, Array], Array]
    head_weights: Callable[[LanguageModelParams], tuple[Array, Array]]
    score: Callable[..., tuple[Carry, Array]]
    vocab_size: int


class LanguageModel(Made, _LanguageModelFields):
    """A language model as pure functions.

    Two that were made from equal arguments are equal.

    Attributes:
        init: ``(key) -> params``.
        apply: ``(params, tokens [..., T], lengths [...], *, mask, resets, initial_carry, key) ->
            (carry, logits [..., T, V])``: at every step the logits of the token after it.
        step: ``(params, carry, token [...]) -> (carry, logits [..., V])``; a carry of None is the
            one before the first token.
        initial_carry: ``(params, batch_shape) -> carry``.
        features: as ``apply``, but ``(carry, Features)``, for what needs the outputs of the layer:
            an activation penalty, or a head of one's own.
        head: ``(params, hs [..., H]) -> logits [..., V]``.
        head_weights: ``(params) -> (w [H, V], bias [V])``, for
            :func:`rnnjax.metrics.linear_cross_entropy`; a softmax of one's own has none.
        score: ``(params, (tokens, targets), lengths, *, ...) -> (carry, log_probs [..., T])``, of
            the targets alone: all that a loss needs, and the cheaper way to it where the softmax is
            an adaptive one. It is 0 at masked steps, whose targets are not read. Known targets
            outside [0, V) are refused, those that are traced have NaN. Other arguments are those of
            ``apply``.
        vocab_size: V.
    """


@factory
def language_model(
    embedding: Embedding,
    layer: Cell | Layer,
    *,
    tie: bool = False,
    softmax: AdaptiveSoftmax | None = None,
    dropout: float = 0.0,
    word_dropout: float = 0.0,
) -> LanguageModel:
    r"""A recurrent language model: embedding, layer, and a linear head on the output of every step.

    .. math:: P(x_{t+1} \mid x_1 \dots x_t) = \mathrm{softmax}(y_t W + b)

    Masked steps have the logits of a zero output, the bias.

    Args:
        embedding: from token ids to vectors, ``rnnjax.embedding(...)`` or ``rnnjax.one_hot(...)``.
        layer: a cell or a layer that does not read ahead.
        tie: the head multiplies by the table of the embedding, :math:`W = E^\top`; the layer's
            output must then be as wide as a vector of the table.
        softmax: an :func:`rnnjax.adaptive_softmax` in place of the linear head, for many words; the
            logits of ``apply`` and ``step`` are then log probabilities.
        dropout: the rate at which embedded inputs, and outputs of the layer, are dropped in
            training, that is when ``apply`` is given a ``key``. One mask serves all steps of a
            sequence ("locked" dropout).
        word_dropout: the rate at which words are dropped from the embedding in training: a word
            that is dropped is zeros wherever it stands in the batch.

    Raises:
        ValueError: a rate outside [0, 1), a layer that reads ahead, or ``tie=True`` where the
            sizes differ or the embedding has no table.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> model = rnnjax.language_model(rnnjax.embedding(50, 8), rnnjax.lstm(16))
        >>> params = model.init(jax.random.key(0))
        >>> tokens = jnp.array([[5, 7, 9], [3, 0, 0]])
        >>> carry, logits = model.apply(params, tokens, lengths=[3, 1])
        >>> logits.shape
        (2, 3, 50)
        >>> carry, next_logits = model.step(params, carry, jnp.array([9, 3]))
        >>> next_logits.shape
        (2, 50)

    References:
        Press and Wolf, "Using the output embedding to improve language models", EACL 2017 (tied
        weights); Merity, Keskar and Socher, "Regularizing and optimizing LSTM language models",
        ICLR 2018 (dropout); Gal and Ghahramani, "A theoretically grounded application of dropout
        in recurrent neural networks", NIPS 2016.
    """
    if not isinstance(embedding, Embedding):
        raise not_an_embedding("embedding", embedding)
    below, tie = as_causal_layer(layer), check_flag("tie", tie)
    if tie:
        if softmax is not None:
            raise ValueError("tie=True needs the linear head, got a softmax")
        check_tied(embedding, "embedding", below.output_size, "the layer's output size")
    if softmax is not None:
        _check_softmax(softmax, below.output_size, embedding.vocab_size)
    rate, word_rate = check_rate("dropout", dropout), check_rate("word_dropout", word_dropout)
    vocab_size = embedding.vocab_size
    parts = _Parts(embedding, below, tie, softmax)
    head = functools.partial(_logits, parts)

    def init(key: Key) -> LanguageModelParams:
        table, inner, head_key = jax.random.split(check_key(key), 3)
        if softmax is None:
            w, bias = draw_linear(head_key, below.output_size, vocab_size)
            top = SoftmaxParams(None if tie else w, bias)
        else:
            top = softmax.init(head_key)
        layer_params = below.init(inner, embedding.output_size)
        return LanguageModelParams(embedding.init(table), layer_params, top)

    def features(
        params: LanguageModelParams,
        tokens: Array,
        lengths: Any = None,
        *,
        mask: Any = None,
        resets: Any = None,
        initial_carry: Carry = None,
        key: Key | None = None,
    ) -> tuple[Carry, Features]:
        params = check_params(params, LanguageModelParams)
        tokens, valid = _with_real_steps(tokens, lengths, mask)
        tokens = check_tokens(tokens, vocab_size, valid=valid)
        word_key, in_key, inner, out_key = split_key(key, 4)
        xs = embedding.apply(params.embedding, tokens)
        xs = drop_words(word_key, tokens, xs, vocab_size, word_rate)
        xs = locked_dropout(in_key, xs, rate)
        carry, ys = below.apply(
            params.layer, xs, mask=valid, resets=resets, initial_carry=initial_carry, key=inner
        )
        return carry, Features(ys, locked_dropout(out_key, ys, rate))

    def apply(
        params: LanguageModelParams,
        tokens: Array,
        lengths: Any = None,
        *,
        mask: Any = None,
        resets: Any = None,
        initial_carry: Carry = None,
        key: Key | None = None,
    ) -> tuple[Carry, Array]:
        options = {"mask": mask, "resets": resets, "initial_carry": initial_carry, "key": key}
        carry, outputs = features(params, tokens, lengths, **options)
        return carry, head(params, outputs.dropped)

    def score(
        params: LanguageModelParams,
        pair: tuple[Array, Array],
        lengths: Any = None,
        *,
        mask: Any = None,
        **options: Any,
    ) -> tuple[Carry, Array]:
        tokens, targets = check_pair("the pair (tokens, targets)", "a tuple of 2", pair)
        tokens, valid = _with_real_steps(tokens, lengths, mask)
        targets = masking.as_integers("targets", targets)
        if targets.shape != tokens.shape:
            raise ValueError(
                f"targets must have the shape of tokens, {tokens.shape}, got shape {targets.shape}"
            )
        targets = masking.zero_padding_now(valid, targets)
        check_range("targets", targets, vocab_size, f"[0, {vocab_size})")
        carry, outputs = features(params, tokens, mask=valid, **options)
        if softmax is not None:
            log_probs = softmax.log_prob(params.head, outputs.dropped, targets)
        else:
            logits = head(params, outputs.dropped)
            given, batch_axes = (logits, targets), logits.ndim - 1
            log_probs = with_automatic_axes(_chosen, given, logits, batch_axes)
        return carry, masking.zero_padding(valid, log_probs)

    def step(params: LanguageModelParams, carry: Carry, token: Array) -> tuple[Carry, Array]:
        params = check_params(params, LanguageModelParams)
        carry = jax.tree.map(functools.partial(masking.as_array, "carry"), carry)
        # Ids are looked at here, where their values may be known.
        return _step(parts, params, carry, check_tokens(token, vocab_size))

    def initial_carry(params: LanguageModelParams, batch_shape: tuple[int, ...] = ()) -> Carry:
        params = check_params(params, LanguageModelParams)
        return below.initial_carry(params.layer, batch_shape)

    above = head, functools.partial(_head_weights, parts), score
    return LanguageModel(init, apply, step, initial_carry, features, *above, vocab_size)


class _Parts(NamedTuple):
    """What a language model is made of. Those of equal models are equal."""

    embedding: Embedding
    layer: Layer
    tie: bool
    softmax: AdaptiveSoftmax | None


def _with_real_steps(tokens: Any, lengths: Any, mask: Any) -> tuple[Array, Array | None]:
    """Integers [..., T], and which of them are real; None where all are."""
    tokens = masking.as_integers("tokens", tokens)
    if not tokens.ndim:
        raise ValueError("tokens must have shape [..., T], got a scalar")
    return tokens, masking.valid_steps(lengths, mask, tokens.shape[:-1], tokens.shape[-1])


# One program, where operation after operation would each be a call of its own; for equal models,
# the same one. Its arguments were looked at before.
@functools.partial(jax.jit, static_argnums=0)
def _step(
    parts: _Parts, params: LanguageModelParams, carry: Carry, token: Array
) -> tuple[Carry, Array]:
    x = parts.embedding.apply(params.embedding, token)
    carry, y = parts.layer.step(params.layer, carry, x)
    return carry, _logits(parts, params, y)


def _logits(parts: _Parts, params: LanguageModelParams, hs: Array) -> Array:
    if parts.softmax is not None:
        return parts.softmax.log_probs(params.head, hs)
    hs, vocab_size = masking.as_array("hs", hs), parts.embedding.vocab_size
    return affine(hs, *_head_weights(parts, params), name="hs", size=vocab_size)


def _head_weights(parts: _Parts, params: LanguageModelParams) -> tuple[Array, Array]:
    params = check_params(params, LanguageModelParams)
    if parts.softmax is not None:
        raise ValueError("head_weights needs the linear head, got a softmax: use score")
    top = check_params(params.head, SoftmaxParams, "params.head")
    return table_of(params.embedding).T if parts.tie else top.w, top.bias


def _chosen(pair: tuple[Array, Array]) -> Array:
    """Of logits [..., V] and targets [...] the log probability of each target, NaN for none."""
    logits, targets = pair
    every, vocab_size = jax.nn.log_softmax(logits, axis=-1), logits.shape[-1]
    places = jnp.clip(targets, 0, vocab_size - 1)[..., None]
    chosen = jnp.take_along_axis(every, places, axis=-1).squeeze(-1)
    return jnp.where((targets < 0) | (targets >= vocab_size), jnp.nan, chosen)


def _check_softmax(softmax: Any, size: int, vocab_size: int) -> None:
    if not isinstance(softmax, AdaptiveSoftmax):
        kind = type(softmax).__name__
        raise ValueError(f"softmax must be a rnnjax.adaptive_softmax(...), got {kind}")
    if (softmax.input_size, softmax.vocab_size) != (size, vocab_size):
        raise ValueError(
            f"softmax must be made for inputs of size {size} and {vocab_size} words, "
            f"got {softmax.input_size} and {softmax.vocab_size}"
        )
