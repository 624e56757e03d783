"""The loop that writes: each chosen token is the next input, for a whole batch in one program."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from rnnjax import masking
from rnnjax._checks import check_key, check_size
from rnnjax._devices import with_automatic_axes
from rnnjax.base import Carry, Key
from rnnjax.decoding.sampling import History, Sampling, check_ids, sample
from rnnjax.models._token_table import step_with_table, token_table
from rnnjax.models.embedding import check_tokens


class Generated(NamedTuple):
    """What was written.

    Attributes:
        tokens: int32 [..., N], the new tokens; ``pad`` behind the end of a row.
        lengths: int32 [...], new tokens of each row, the one that stopped it included.
        log_probs: float32 [..., N], log of the model's own probability of each token, whatever the
            sampler made of it; 0 behind the end of a row.
        carry: the carry after all tokens but ``last``.
        last: int32 [...], the last token of each row, which the model has not read yet.
        keys: [...], one key a row for what comes next.

    To go on where this ended: ``generate(model, params, last[..., None], initial_carry=carry,
    key=keys, ...)`` writes what one longer call would have written.
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
) -> Generated:
    r"""Go on with texts: a whole batch of ragged prompts in one compiled loop.

    .. math:: x_{t+1} \sim \mathrm{sampling}(P(\cdot \mid x_1 \dots x_t))

    The loop ends when all rows have stopped. What a row writes depends on its prompt and its key
    alone: not on other rows, their order, the padding, nor ``max_new_tokens``. A row whose sampler
    leaves no token at all, or whose logits are NaN, ends there.

    Args:
        model: a ``rnnjax.LanguageModel``.
        params: its parameters.
        prompt: token ids [..., T], T at least 1.
        lengths: tokens [...] of each prompt, integers in [1, T]; None means all.
        max_new_tokens: N, the most tokens to write in a row.
        key: one key, from which each row gets its own by its place in the batch, or an array of
            keys [...], one a row. May be left out where ``sampling`` draws nothing.
        sampling: how a token is chosen, :func:`rnnjax.sample` or :func:`rnnjax.greedy` with
            transformers of logits; by default a draw from the model's own law.
        stop: an id, or several: a row ends with the first of them that it writes.
        pad: the id that fills a row behind its end.
        initial_carry: the carry before the prompt; None starts anew.

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
    """
    table = token_table(model, params)
    return _generate_with(
        table,
        model,
        params,
        prompt,
        lengths,
        max_new_tokens=max_new_tokens,
        key=key,
        sampling=sampling,
        stop=stop,
        pad=pad,
        initial_carry=initial_carry,
    )


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

    Together they are what :func:`generate` writes with the same arguments. Every block but the
    first is one call of the same compiled program.

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

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> model = rnnjax.language_model(rnnjax.embedding(50, 8), rnnjax.lstm(16))
        >>> params = model.init(jax.random.key(0))
        >>> blocks = rnnjax.stream_text(model, params, jnp.array([5]), max_new_tokens=10,
        ...                             key=jax.random.key(1), block_size=4)
        >>> [len(block) for block in blocks]
        [4, 4, 2]
    """
    block = check_size("block_size", block_size)
    left = check_size("max_new_tokens", max_new_tokens)
    if jnp.ndim(prompt) != 1:
        raise ValueError(f"prompt must have shape [T], got shape {jnp.shape(prompt)}")
    stops = () if stop is None else check_ids("stop", stop)
    table = token_table(model, params)
    while left:
        out = _generate_with(
            table,
            model,
            params,
            prompt,
            lengths,
            max_new_tokens=min(block, left),
            key=key,
            sampling=sampling,
            stop=stop,
            initial_carry=initial_carry,
        )
        tokens = np.asarray(out.tokens)[: int(out.lengths)]
        yield tokens
        if tokens[-1] in stops:
            return
        left -= len(tokens)
        prompt, lengths, key, initial_carry = out.last[None], None, out.keys, out.carry


def _generate_with(
    table: Any,
    model: Any,
    params: Any,
    prompt: Any,
    lengths: Any,
    *,
    max_new_tokens: int,
    key: Key | None,
    sampling: Sampling | None,
    stop: Any,
    pad: int = 0,
    initial_carry: Carry = None,
) -> Generated:
    """:func:`generate`, given what :func:`token_table` made."""
    sampling = sample() if sampling is None else sampling
    if not isinstance(sampling, Sampling):
        raise ValueError(
            f"sampling must be rnnjax.sample(...) or rnnjax.greedy(), got {sampling!r}"
        )
    count = check_size("max_new_tokens", max_new_tokens)
    prompt, lengths = _check_prompt(prompt, lengths, model.vocab_size)
    keys = _row_keys(key, prompt.shape[:-1], sampling)
    stops = () if stop is None else check_ids("stop", stop)
    for name, ids in (("stop", stops), ("pad", check_ids("pad", pad))):
        if any(i >= model.vocab_size for i in ids):
            raise ValueError(f"{name} must lie in [0, {model.vocab_size}), got {max(ids)}")
    how = _How(model, sampling, count, stops, int(pad))
    return _generate(how, params, table, prompt, lengths, keys, initial_carry)


class _How(NamedTuple):
    """What is fixed when the loop is compiled."""

    model: Any
    sampling: Sampling
    max_new_tokens: int
    stop: tuple[int, ...]
    pad: int


class _Writing(NamedTuple):
    """The state of the loop, for rows [B]. Rows that go on have all the same number of tokens."""

    step: Array  # how many tokens the longest row has
    carry: Carry
    last: Array  # [B]
    keys: Array  # [B]
    ended: Array  # [B]
    history: History
    tokens: Array  # [B, N]
    log_probs: Array  # [B, N]


@functools.partial(jax.jit, static_argnums=0)
def _generate(
    how: _How,
    params: Any,
    table: Any,
    prompt: Array,
    lengths: Array,
    keys: Array,
    initial_carry: Carry,
) -> Generated:
    given = params, table, prompt, lengths, keys, initial_carry
    return with_automatic_axes(lambda given: _texts(how, *given), given, prompt, prompt.ndim - 1)


def _texts(
    how: _How,
    params: Any,
    table: Any,
    prompt: Array,
    lengths: Array,
    keys: Array,
    initial_carry: Carry,
) -> Generated:
    batch, time = prompt.shape[:-1], prompt.shape[-1]
    carry, features = how.model.features(params, prompt, lengths, initial_carry=initial_carry)
    valid = masking.lengths_to_mask(lengths, time)
    logits = how.model.head(params, masking.take_last(features.raw, valid))

    def rows(a: Array) -> Array:
        return a.reshape(-1, *a.shape[len(batch) :])

    carry = jax.tree.map(rows, carry)
    prompt, lengths, keys, logits = map(rows, (prompt, lengths, keys, logits))
    count = len(prompt)
    room = jnp.full((count, how.max_new_tokens), how.pad, jnp.int32)
    start = _Writing(
        jnp.zeros((), jnp.int32),
        carry,
        jnp.take_along_axis(prompt, lengths[:, None] - 1, axis=1)[:, 0],
        keys,
        jnp.zeros(count, bool),
        History(jnp.concatenate([prompt, room], 1), lengths, jnp.zeros(count, jnp.int32)),
        room,
        jnp.zeros((count, how.max_new_tokens), jnp.float32),
    )

    def read_and_write(now: _Writing) -> _Writing:
        carry, logits = step_with_table(how.model, params, table, now.carry, now.last)
        # With one row the loop ends where the row does.
        carry = carry if count == 1 else _where(now.ended, now.carry, carry)
        return _write(how, now._replace(carry=carry), logits)

    # The first token needs no step of the model, and the last one is not read.
    end = lax.while_loop(
        lambda now: (now.step < how.max_new_tokens) & ~jnp.all(now.ended),
        read_and_write,
        _write(how, start, logits),
    )

    def batched(a: Array) -> Array:
        return a.reshape(*batch, *a.shape[1:])

    new = end.history.new
    result = Generated(end.tokens, new, end.log_probs, end.carry, end.last, end.keys)
    return jax.tree.map(batched, result)


def _write(how: _How, now: _Writing, logits: Array) -> _Writing:
    """A token is chosen in every row that goes on."""
    keys, draw = now.keys, now.keys
    if how.sampling.draws:
        split = jax.vmap(jax.random.split)(now.keys)
        keys, draw = split[:, 0], split[:, 1]
    token = jax.vmap(how.sampling)(draw, logits, now.history)
    none_left = token < 0
    going, rows = ~(now.ended | none_left), jnp.arange(len(token))
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, jnp.maximum(token, 0)[:, None], axis=1)[:, 0]
    log_probs = chosen - jax.nn.logsumexp(logits, axis=-1)
    history = now.history
    stopped = jnp.isin(token, jnp.array(how.stop, jnp.int32)) if how.stop else False
    return now._replace(
        step=now.step + 1,
        last=jnp.where(going, token, now.last),
        keys=_where(now.ended, now.keys, keys),
        ended=now.ended | stopped | none_left,
        # A row that has ended writes behind the end of the array, that is nowhere.
        history=History(
            history.tokens.at[rows, jnp.where(going, history.length, history.tokens.shape[1])].set(
                token, mode="drop"
            ),
            history.length + going,
            history.new + going,
        ),
        tokens=now.tokens.at[:, now.step].set(jnp.where(going, token, how.pad)),
        log_probs=now.log_probs.at[:, now.step].set(jnp.where(going, log_probs, 0.0)),
    )


def _where(rows: Array, yes: Any, no: Any) -> Any:
    """Leaves of ``yes`` in the rows that are True, of ``no`` in the others."""

    def select(a: Array, b: Array) -> Array:
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return jnp.where(rows, a, b)
        return jnp.where(rows.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(select, yes, no)


def _check_prompt(prompt: Any, lengths: Any, vocab_size: int) -> tuple[Array, Array]:
    prompt = check_tokens(prompt, vocab_size)
    if not prompt.ndim or not prompt.shape[-1]:
        raise ValueError(
            f"prompt must have shape [..., T] with T at least 1, got shape {prompt.shape}: "
            "begin with a start token"
        )
    batch, time = prompt.shape[:-1], prompt.shape[-1]
    if lengths is None:
        return prompt.astype(jnp.int32), jnp.full(batch, time, jnp.int32)
    lengths = masking.check_lengths(lengths, batch, time)
    if not isinstance(lengths, Tracer) and np.any(np.asarray(lengths) < 1):
        place = tuple(int(i) for i in np.argwhere(np.asarray(lengths) < 1)[0])
        raise ValueError(
            f"lengths must be at least 1, got 0 at index {place}: "
            "an empty prompt needs a start token"
        )
    return prompt.astype(jnp.int32), jnp.maximum(jnp.asarray(lengths), 1)


def _row_keys(key: Any, batch: tuple[int, ...], sampling: Sampling) -> Array:
    count = int(np.prod(batch))
    if key is None:
        if sampling.draws:
            raise ValueError("key must be given where sampling draws; greedy() needs none")
        key = jax.random.key(0)
    if getattr(key, "shape", None) == batch and batch:
        return key
    key = check_key(key)
    if not batch:
        return key
    rows = jnp.arange(count)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(rows).reshape(batch)
