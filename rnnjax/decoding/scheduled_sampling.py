"""Teaching a model to go on behind its own tokens, right or wrong."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from rnnjax import masking
from rnnjax._checks import check_flag, check_key, check_scalar
from rnnjax._numerics import as_mappable, draw_flags
from rnnjax.base import Key
from rnnjax.models import SequenceToSequence
from rnnjax.models._sources import read_tokens


def scheduled_sampling(
    model: SequenceToSequence,
    params: Any,
    source: Array,
    source_lengths: Any,
    target: Array,
    target_lengths: Any = None,
    *,
    rate: Any,
    key: Key,
    draw: bool = False,
) -> tuple[Array, Array | None]:
    r"""What ``model.apply`` gives, where the decoder sometimes reads its own tokens.

    .. math::

        y'_t = \begin{cases}
            \hat y_t & \text{with probability } p \\
            y_t & \text{otherwise}
        \end{cases}

    is read behind step t in place of :math:`y_t`, with the model's own :math:`\hat y_t`, through
    which no gradient goes. A translator that is taught with right tokens alone never learns to go
    on behind a wrong one. Steps follow one another here, with ordinary autodiff: it is slower than
    ``model.apply``, and of dropout there is what the encoder has.

    Args:
        model: a ``rnnjax.sequence_to_sequence(...)`` or ``rnnjax.captioner(...)``.
        params: its parameters.
        source: token ids [..., S], or what the model reads in their place.
        source_lengths: [...], or None for all.
        target: token ids [..., T].
        target_lengths: [...], or None for all.
        rate: p in [0, 1], a number or a traced scalar, such as one that rises with the steps of
            training.
        key: decides where its own tokens are read, and dropout in the encoder.
        draw: the own token is drawn from the model's distribution; otherwise it is the likeliest.

    Returns:
        ``(logits [..., T, V], weights [..., T, S])`` as from ``model.apply``, both 0 behind the end
        of a target.

    Raises:
        ValueError: an argument of wrong shape or value, named in the message.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> model = rnnjax.sequence_to_sequence(
        ...     rnnjax.embedding(20, 8), rnnjax.gru(6), rnnjax.embedding(30, 8), rnnjax.gru(6),
        ...     start=2)
        >>> params = model.init(jax.random.key(0))
        >>> source, target = jnp.array([[4, 5, 6]]), jnp.array([[8, 3]])
        >>> logits, _ = rnnjax.scheduled_sampling(
        ...     model, params, source, None, target, rate=0.5, key=jax.random.key(1))
        >>> logits.shape
        (1, 2, 30)

    References:
        Bengio, Vinyals, Jaitly and Shazeer, "Scheduled sampling for sequence prediction with
        recurrent neural networks", NIPS 2015.
    """
    if not isinstance(model, SequenceToSequence):
        kind = type(model).__name__
        raise ValueError(f"model must be a rnnjax.sequence_to_sequence(...), got {kind}")
    draws = check_flag("draw", draw)
    rate = check_scalar("rate", rate, "a rate in [0, 1]", lambda p: 0 <= p <= 1)
    reading, tossing, drawing = jax.random.split(check_key(key), 3)
    source = masking.as_array("source", source)
    target, valid = read_tokens("target", target, target_lengths, model.vocab_size)
    batch, time = target.shape[:-1], target.shape[-1]
    of_source = source.shape[: -model.source_ndim]
    if batch != of_source:
        raise ValueError(
            f"target must have the batch axes of source, {of_source}, got shape {target.shape}"
        )
    carry, memory = model.encode(params, source, source_lengths, key=reading)

    def step(held: tuple, at: tuple) -> tuple[tuple, tuple]:
        carry, own = held
        taught, is_own, key = at
        token = jnp.where(is_own, own, taught)
        carry, logits, weights = model.step(params, carry, token, memory)
        # A choice: no gradient goes through it.
        chosen = jax.random.categorical(key, logits) if draws else jnp.argmax(logits, axis=-1)
        return (carry, chosen.astype(token.dtype)), (logits, weights)

    starts = jnp.full((*batch, 1), model.start, target.dtype)
    before = jnp.moveaxis(jnp.concatenate([starts, target], axis=-1)[..., :-1], -1, 0)
    tossed = draw_flags(tossing, rate, before.shape)
    # The start token is what it is.
    is_own = tossed & (jnp.arange(time) > 0).reshape(time, *(1,) * len(batch))
    steps = (before, is_own, jax.random.split(as_mappable(drawing), time))
    _, given = lax.scan(step, (carry, jnp.zeros(batch, target.dtype)), steps)
    logits, weights = jax.tree.map(lambda a: jnp.moveaxis(a, 0, len(batch)), given)
    return masking.zero_padding(valid, logits), masking.zero_padding(valid, weights)
