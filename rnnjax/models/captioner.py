"""Pictures into texts: a decoder looks at the places of a picture while it writes."""

from rnnjax._checks import check_size
from rnnjax._recipe import factory
from rnnjax.base import Cell, Layer
from rnnjax.layers.attention import Attention
from rnnjax.models._encoder_decoder import SequenceToSequence, make_model
from rnnjax.models._sources import Places
from rnnjax.models.embedding import Embedding


@factory
def captioner(
    memory_size: int,
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
    r"""A decoder that writes about a picture, and looks at one part of it after another.

    .. math::

        s_0 &= \mathrm{bridge}\left(\frac{1}{S} \sum_s m_s\right), \qquad
            s_t, h_t = \mathrm{decoder}(s_{t-1}, y_{t-1}, m) \\
        P(y_t \mid y_1 \dots y_{t-1}, m) &= \mathrm{softmax}([h_t, c_t, y_{t-1}] W + b)

    The picture comes as vectors of its places, [..., S, M], of no order: the last feature map of a
    convolutional network with its two axes as one, or one vector for each object that a detector
    found. With ``decoder=rnnjax.attention_cell(cell, M, selector=True)`` it attends to them before
    every word, softly or, with ``hard=True``, to one place; then :func:`rnnjax.score_function`
    belongs to the loss. :func:`rnnjax.doubly_stochastic_penalty` asks for attention to all places.

    What comes back is a model as from :func:`rnnjax.sequence_to_sequence`, with these vectors in
    the place of the source, and so ``apply``, ``beam_search`` and ``scheduled_sampling`` are as
    there. Gradients reach the vectors, and the network that made them.

    Args:
        memory_size: M.
        target: from the token ids of texts to vectors.
        decoder: an ``attention_cell``; or a cell or layer that does not read ahead, which without
            ``attention`` knows the mean of the picture and nothing else.
        start: the id of the token before the first one of a text.
        attention: outside of the recurrence, or None.
        above: layers on top of an ``attention_cell``, as there.
        bridge: ``"tanh"``: each array of the decoder's first carry is :math:`\tanh(\bar m W + b)`
            of the mean over the real places; ``"zeros"``: the decoder's own initial carry.
        head_size: as there.
        tie: as there.
        dropout: the rate at which embedded tokens, and what the head reads, are dropped in
            training.

    Raises:
        ValueError: an argument that does not fit, named in the message.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> decoder = rnnjax.attention_cell(rnnjax.lstm(16), memory_size=6, selector=True)
        >>> model = rnnjax.captioner(6, rnnjax.embedding(30, 8), decoder, start=2)
        >>> params = model.init(jax.random.key(0))
        >>> feature_map = jnp.ones((2, 4, 4, 6))  # [B, rows, columns, M]
        >>> places, text = feature_map.reshape(2, 16, 6), jnp.array([[8, 9, 3], [7, 3, 0]])
        >>> logits, weights = model.apply(params, places, None, text, [3, 2])
        >>> logits.shape, weights.shape
        ((2, 3, 30), (2, 3, 16))

    References:
        Xu et al., "Show, attend and tell: neural image caption generation with visual attention",
        ICML 2015.
    """
    return make_model(
        Places(check_size("memory_size", memory_size)),
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
