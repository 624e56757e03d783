"""Sequences into sequences: an encoder reads, a decoder writes, with or without attention."""

from rnnjax._recipe import factory
from rnnjax.base import Cell, Layer
from rnnjax.layers.attention import Attention
from rnnjax.models._encoder_decoder import SequenceToSequence, make_model
from rnnjax.models._sources import Tokens
from rnnjax.models.embedding import Embedding


@factory
def sequence_to_sequence(
    source: Embedding,
    encoder: Cell | Layer,
    target: Embedding,
    decoder: Cell | Layer,
    *,
    start: int,
    attention: Attention | None = None,
    above: Cell | Layer | None = None,
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
        above: layers on top of a decoder that is an ``attention_cell``, such as
            ``rnnjax.stack(...)``: that cell alone attends, they read its outputs. The head reads
            the output of the last one.
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
    return make_model(
        Tokens.checked(source, encoder),
        target,
        decoder,
        start=start,
        attention=attention,
        above=above,
        bridge=bridge,
        head_size=head_size,
        tie=tie,
        dropout=dropout,
    )
