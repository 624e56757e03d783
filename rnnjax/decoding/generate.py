"""The loop that writes: each chosen token is the next input, for a whole batch in one program."""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_id, check_ids, check_size, telling_given_away
from rnnjax._devices import with_automatic_axes
from rnnjax._native import jit
from rnnjax.base import Carry, Key
from rnnjax.decoding._loop import (
    Choice,
    as_arrays,
    as_batch,
    as_rows,
    prompt_lengths,
    row_keys,
    start_writing,
    where_rows,
    write_rows,
)
from rnnjax.decoding._numbers import split_numbers, with_numbers
from rnnjax.decoding.sampling import History, Sampling, log_probabilities, sample
from rnnjax.models._encoder_decoder import SequenceToSequence
from rnnjax.models._token_table import step_with_table, token_table
from rnnjax.models.embedding import check_tokens
from rnnjax.models.language_model import LanguageModel


class Generated(NamedTuple):
    """What :func:`generate` wrote.

    Attributes:
        tokens: int32 [..., N], the new tokens; ``pad`` behind the end of a row.
        lengths: int32 [...], new tokens of each row, the one that stopped it included.
        log_probs: float32 [..., N], log of the model's own probability of each token, whatever the
            sampler made of it; 0 behind the end of a row.
        carry: the carry after all tokens but ``last``.
        last: int32 [...], the last token of each row, which the model has not read yet.
        keys: [...], one key a row for what comes next.

    To go on where this ended: ``generate(model, params, last[..., None], initial_carry=carry,
    key=keys, ...)`` writes what one longer call would have written, unless the sampler looks at the
    history: of the tokens before ``last`` it knows nothing then.
    """

    tokens: Array
    lengths: Array
    log_probs: Array
    carry: Carry
    last: Array
    keys: Array


def generate(
    model: Any,
    params: Any,
    prompt: Any,
    lengths: Any = None,
    *,
    max_new_tokens: int,
    key: Key | None = None,
    sampling: Sampling | None = None,
    stop: Any = None,
    pad: int = 0,
    initial_carry: Carry = None,
    memory: Any = None,
) -> Generated:
    r"""Go on with texts: a whole batch of ragged prompts in one compiled loop.

    .. math:: x_{t+1} \sim \mathrm{sampling}(P(\cdot \mid x_1 \dots x_t))

    The model is a language model, or one that reads before it writes: a translator or a captioner.
    Its prompt begins with ``model.start``, which the words that a text must begin with may follow;
    what it has read are ``initial_carry`` and ``memory``.

    The loop ends when all rows have stopped. What a row writes depends on its prompt and its key
    alone: not on other rows, their order, the padding, nor ``max_new_tokens``. A row whose sampler
    leaves no token at all, or whose logits are NaN, ends there.

    It is compiled for each shape of the prompt and each ``max_new_tokens``, ``stop`` and ``pad``,
    and for the rules of ``sampling``, but not for another temperature, ``top_p``, ``min_p`` or
    penalty, of which each row may have its own. Where prompts grow, pad them to a few lengths.

    Args:
        model: a ``rnnjax.LanguageModel``, or a ``rnnjax.SequenceToSequence``.
        params: its parameters.
        prompt: token ids [..., T], T at least 1.
        lengths: tokens [...] of each prompt, integers in [1, T]; None means all.
        max_new_tokens: N, the most tokens to write in a row.
        key: one key, from which each row gets its own by its place in the batch, or an array of
            keys [...], one a row. May be left out where ``sampling`` draws nothing.
        sampling: how a token is chosen, :func:`rnnjax.sample` or :func:`rnnjax.greedy` with
            transformers of logits; by default a draw from the model's own distribution. A number in
            it may be an array [...], one a row: ``rnnjax.temperature(jnp.array([0.5, 1.0]))``.
        stop: an id, or several: a row ends with the first of them that it writes.
        pad: the id that fills a row behind its end.
        initial_carry: the carry before the prompt; None starts a language model anew. Of another
            model, that of ``encode``.
        memory: that of ``encode``, leaves [..., ...]; None for a language model.

    Raises:
        ValueError: an empty prompt, ids outside the vocabulary, a missing key, or another argument
            of wrong shape, dtype or value, named in the message.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> model = rnnjax.language_model(rnnjax.embedding(50, 8), rnnjax.lstm(16))
        >>> params = model.init(jax.random.key(0))
        >>> sampling = rnnjax.sample(rnnjax.temperature(0.8), rnnjax.top_k(10))
        >>> prompt = jnp.array([[5, 7, 9], [3, 0, 0]])
        >>> out = rnnjax.generate(model, params, prompt, lengths=[3, 1], max_new_tokens=6,
        ...                       key=jax.random.key(1), sampling=sampling)
        >>> out.tokens.shape, out.lengths.tolist()
        ((2, 6), [6, 6])

        Three translations of one sentence:

        >>> words, rnn = rnnjax.embedding(20, 8), rnnjax.gru(16)
        >>> model = rnnjax.sequence_to_sequence(words, rnn, words, rnn, start=2)
        >>> params = model.init(jax.random.key(0))
        >>> carry, memory = model.encode(params, jnp.array([[4, 5, 6]] * 3))
        >>> out = rnnjax.generate(model, params, jnp.full((3, 1), model.start), max_new_tokens=5,
        ...                       key=jax.random.key(1), stop=3, initial_carry=carry, memory=memory)
        >>> out.tokens.shape, out.log_probs.shape
        ((3, 5), (3, 5))
    """
    _check_model(model)
    how = _check_how(model, max_new_tokens, sampling, stop, pad)
    given = {"params": params, "prompt": prompt, "initial_carry": initial_carry, "memory": memory}
    with telling_given_away(**given):
        ids, ends = _check_prompt(prompt, lengths, model.vocab_size)
        batch = ids.shape[:-1]
        keys = row_keys(key, batch, how.sampling.draws)
        table = token_table(model, params)
        carry, memory = _check_read(model, initial_carry, memory, batch)
        how, numbers = _split(how, batch)
        out, _ = _generate(how, params, table, ids, ends, keys, numbers, carry, memory, None)
    return out


def stream_text(
    model: Any,
    params: Any,
    prompt: Any,
    lengths: Any = None,
    *,
    max_new_tokens: int,
    key: Key | None = None,
    sampling: Sampling | None = None,
    stop: Any = None,
    initial_carry: Carry = None,
    block_size: int = 16,
) -> Iterator[np.ndarray]:
    """The new tokens of one text as they come, ``block_size`` at a time, each block [n].

    Together they are what :func:`generate` writes with the same arguments, whatever the sampler
    looks back at. Every block but the first is one call of the same compiled program.

    Args:
        model: as for ``generate``, and so are the others.
        params: its parameters.
        prompt: token ids [T].
        lengths: how many of them, or None.
        max_new_tokens: the most tokens to write.
        key: one key.
        sampling: how a token is chosen.
        stop: ids that end the text.
        initial_carry: the carry before the prompt.
        block_size: tokens in a block; the last one may be shorter.

    Raises:
        ValueError: as ``generate``, at once, or a prompt of more than one text.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> model = rnnjax.language_model(rnnjax.embedding(50, 8), rnnjax.lstm(16))
        >>> params = model.init(jax.random.key(0))
        >>> blocks = rnnjax.stream_text(model, params, jnp.array([5]), max_new_tokens=10,
        ...                             key=jax.random.key(1), block_size=4)
        >>> [len(block) for block in blocks]
        [4, 4, 2]
    """
    _check_language_model(model)
    block = check_size("block_size", block_size)
    left = check_size("max_new_tokens", max_new_tokens)
    prompt, lengths = _check_prompt(prompt, lengths, model.vocab_size)
    if prompt.ndim != 1:
        raise ValueError(f"prompt must have shape [T], got shape {prompt.shape}")
    size = min(block, left)
    room = math.ceil(left / size) * size  # for whole blocks, of which the last is cut
    how = _check_how(model, size, sampling, stop, 0, room=room)
    # Checked here and not at the first block: what follows runs only when that is asked for.
    keys, carry = row_keys(key, (), how.sampling.draws), as_arrays("initial_carry", initial_carry)
    how, numbers = _split(how, ())
    given = prompt, lengths, keys, numbers, carry
    return _blocks(how, params, given, left)


def _blocks(how: "_How", params: Any, given: tuple, left: int) -> Iterator[np.ndarray]:
    """The blocks of :func:`stream_text`, from arguments that were checked.

    The history of a block is that of the one before it, which has all tokens up to the last one,
    the prompt of this block; the first one makes room in it for the tokens of all.
    """
    with telling_given_away(params=params):
        table = token_table(how.model, params)
    size, history = how.max_new_tokens, None
    prompt, lengths, key, numbers, carry = given
    while left:
        with telling_given_away(params=params):
            out, history = _generate(
                how, params, table, prompt, lengths, key, numbers, carry, None, history
            )
        how = how._replace(room=size)  # not read from now on: one program for all further blocks
        tokens, length = jax.device_get((out.tokens, out.lengths))
        count = min(size, left)  # a shorter block is cut: of its own size it was another program
        tokens = tokens[: min(length, count)]
        if len(tokens):
            yield tokens
        if len(tokens) < count or tokens[-1] in how.stop:
            return
        left -= count
        prompt, lengths = jnp.expand_dims(out.last, 0), prompt_lengths(None, (), 1)
        key, carry = out.keys, out.carry


class _How(NamedTuple):
    """What is fixed when the loop is compiled."""

    model: Any
    sampling: Sampling  # its rules: their numbers are given apart
    max_new_tokens: int
    stop: tuple[int, ...]
    pad: int
    room: int  # for new tokens in a history that is made here


@functools.partial(jit, static=1)
def _generate(
    how: _How,
    params: Any,
    table: Any,
    prompt: Array,
    lengths: Array,
    keys: Array,
    numbers: list[Array],
    initial_carry: Carry,
    memory: Any,
    history: History | None,
) -> tuple[Generated, History]:
    given = params, table, prompt, lengths, keys, numbers, initial_carry, memory, history
    return with_automatic_axes(lambda given: _texts(how, *given), given, prompt, prompt.ndim - 1)


def _texts(
    how: _How,
    params: Any,
    table: Any,
    prompt: Array,
    lengths: Array,
    keys: Array,
    numbers: list[Array],
    initial_carry: Carry,
    memory: Any,
    history: History | None,
) -> tuple[Generated, History]:
    batch = prompt.shape[:-1]
    carry, logits = _read_prompt(how.model, params, prompt, lengths, initial_carry, memory)
    numbers = [jnp.broadcast_to(number, batch) for number in numbers]
    carry, memory, prompt, lengths, keys, numbers, logits = as_rows(
        batch, (carry, memory, prompt, lengths, keys, numbers, logits)
    )
    count = prompt.shape[0]  # not its len, which cannot be free in an exported program
    room = jnp.full((count, how.max_new_tokens), how.pad, jnp.int32)
    last = jnp.take_along_axis(prompt, lengths[:, None] - 1, axis=1)[:, 0]
    if history is None:
        later = jnp.full((count, how.room), how.pad, jnp.int32)
        history = History(jnp.concatenate([prompt, later], 1), lengths, jnp.zeros_like(lengths))
    else:
        history = as_rows(batch, history)
    end = write_rows(
        start_writing(carry, last, keys, room, history),
        logits,
        functools.partial(_step, how.model, params, table, memory),
        functools.partial(_choose, how, numbers),
        _note,
        draws=how.sampling.draws,
    )
    out = Generated(end.values, end.new, end.log_probs, end.carry, end.last, end.keys)
    return as_batch(batch, (out, end.seen))


def _read_prompt(
    model: Any, params: Any, prompt: Array, lengths: Array, carry: Carry, memory: Any
) -> tuple[Carry, Array]:
    """The carry after the prompts [..., T], and the logits [..., V] of what follows."""
    batch, time = prompt.shape[:-1], prompt.shape[-1]
    if isinstance(model, LanguageModel):
        carry, features = model.features(params, prompt, lengths, initial_carry=carry)
        valid = masking.lengths_to_mask(lengths, time)
        return carry, model.head(params, masking.take_last(features.raw, valid))
    # A start token, as a rule, or few words: a loop over steps, rather than one over layers.
    carry, memory, prompt, lengths = as_rows(batch, (carry, memory, prompt, lengths))
    read = functools.partial(_step, model, params, None, memory)

    def further(state: tuple[Carry, Array], at: tuple[Array, Array]) -> tuple[Any, None]:
        place, token = at
        return where_rows(place < lengths, read(state[0], token), state), None

    first = read(carry, prompt[:, 0])
    state, _ = jax.lax.scan(further, first, (jnp.arange(1, time), prompt[:, 1:].T))
    return as_batch(batch, state)


def _step(
    model: Any, params: Any, table: Any, memory: Any, carry: Carry, token: Array
) -> tuple[Carry, Array]:
    """The carry after a token of each row, and the logits of the next."""
    if isinstance(model, LanguageModel):
        return step_with_table(model, params, table, carry, token)
    carry, logits, _ = model.step(params, carry, token, memory)
    return carry, logits


def _split(how: _How, batch: tuple[int, ...]) -> tuple[_How, list[Array]]:
    sampling, numbers = split_numbers(how.sampling, batch)
    return how._replace(sampling=sampling), numbers


def _choose(
    how: _How, numbers: list[Array], keys: Array, logits: Array, history: History
) -> Choice:
    """A token for every row."""

    def of_row(numbers: list[Array], key: Array, logits: Array, history: History) -> Array:
        return with_numbers(how.sampling, numbers)(key, logits, history)

    token = jax.vmap(of_row)(numbers, keys, logits, history)
    log_probs = log_probabilities(logits.astype(jnp.float32))
    log_prob = jnp.take_along_axis(log_probs, jnp.maximum(token, 0)[:, None], axis=1)[:, 0]
    stopped = jnp.isin(token, jnp.array(how.stop, jnp.int32)) if how.stop else False
    return Choice(token, log_prob, stopped, token < 0)


def _note(history: History, token: Array) -> History:
    # Rows that have ended are written to as well: their history is not read again.
    places = jnp.arange(token.shape[0]), history.length
    tokens = history.tokens.at[places].set(token, mode="drop")
    return History(tokens, history.length + 1, history.new + 1)


def _check_prompt(prompt: Any, lengths: Any, vocab_size: int) -> tuple[Array, Array]:
    prompt = masking.as_integers("prompt", prompt)
    if not prompt.ndim or not prompt.shape[-1]:
        raise ValueError(
            f"prompt must have shape [..., T] with T at least 1, got shape {prompt.shape}: "
            "begin with a start token"
        )
    batch, time = prompt.shape[:-1], prompt.shape[-1]
    ends = prompt_lengths(lengths, batch, time)
    # The padding need not be an id: it is never read.
    valid = None if lengths is None else masking.valid_steps(ends, None, batch, time)
    return check_tokens(prompt, vocab_size, "prompt", valid).astype(jnp.int32), ends


def _check_model(model: Any) -> None:
    """Refuse what is no model, such as one given behind its parameters."""
    if not isinstance(model, LanguageModel | SequenceToSequence):
        raise ValueError(
            "model must be a rnnjax.language_model(...), or one that reads before it writes, such "
            f"as a rnnjax.sequence_to_sequence(...), got {type(model).__name__}"
        )


def _check_language_model(model: Any) -> None:
    if not isinstance(model, LanguageModel):
        hint = ": rnnjax.generate writes with it" if isinstance(model, SequenceToSequence) else ""
        kind = type(model).__name__
        raise ValueError(f"model must be a rnnjax.language_model(...), got {kind}{hint}")


def _check_read(model: Any, carry: Carry, memory: Any, batch: tuple[int, ...]) -> tuple[Carry, Any]:
    """What a model has read before the prompt, as arrays."""
    if isinstance(model, LanguageModel):
        if memory is not None:
            kind = type(memory).__name__
            raise ValueError(f"memory must be None for a language model, got {kind}")
        return as_arrays("initial_carry", carry), None
    if carry is None:
        raise ValueError("initial_carry must be the carry that model.encode gave, got None")
    carry = as_arrays("initial_carry", carry, batch, of="prompt")
    return carry, as_arrays("memory", memory, batch, of="prompt")


def _check_how(
    model: Any, count: Any, sampling: Any, stop: Any, pad: Any, room: int | None = None
) -> _How:
    sampling = sample() if sampling is None else sampling
    if not isinstance(sampling, Sampling):
        raise ValueError(
            f"sampling must be rnnjax.sample(...) or rnnjax.greedy(), got {sampling!r}"
        )
    size = model.vocab_size
    stops = () if stop is None else check_ids("stop", stop, size)
    number = check_size("max_new_tokens", count)
    number_of_pad = check_id("pad", pad, size)
    return _How(model, sampling, number, stops, number_of_pad, number if room is None else room)
