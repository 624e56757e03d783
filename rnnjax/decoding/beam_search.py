"""The likeliest texts rather than drawn ones: several hypotheses side by side, in one program."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from rnnjax import masking
from rnnjax._checks import (
    call_error,
    check_id,
    check_number,
    check_size,
    describe,
    telling_given_away,
)
from rnnjax._devices import with_automatic_axes
from rnnjax._native import in_native_order
from rnnjax._numerics import accumulation_dtype
from rnnjax._recipe import compared
from rnnjax.base import Carry
from rnnjax.decoding._largest import largest
from rnnjax.decoding._loop import as_arrays
from rnnjax.decoding._numbers import check_one_number
from rnnjax.decoding.sampling import (
    History,
    Transform,
    apply_transform,
    check_transforms,
    log_probabilities,
)
from rnnjax.models.embedding import check_tokens


class Beams(NamedTuple):
    """The best hypotheses of each row, the best first.

    Attributes:
        tokens: int32 [..., K, N], the stop included; ``pad`` behind the end.
        lengths: int32 [..., K]; 0 where there are fewer than K hypotheses.
        scores: float32 [..., K], what they are sorted by; -inf where there is none.
        log_probs: float32 [..., K], log of the model's own probability of the whole text, whatever
            ``transforms`` made of it.
        ended: bool [..., K], whether the stop came; if not, the text was cut after N tokens.
    """

    tokens: Array
    lengths: Array
    scores: Array
    log_probs: Array
    ended: Array


def beam_search(
    step: Callable[..., tuple],
    params: Any,
    carry: Carry,
    start: Any,
    memory: Any = None,
    *,
    stop: int,
    beam_size: int,
    max_length: int,
    length_penalty: float = 0.6,
    coverage: float = 0.0,
    transforms: tuple[Transform, ...] = (),
    pad: int = 0,
) -> Beams:
    r"""The hypotheses with the best score that a beam of width K finds.

    .. math::

        \mathrm{score} = \frac{\log \tilde P(y)}{\left(\frac{5 + |y|}{6}\right)^{\alpha}} +
        \beta \sum_s \log \max\left(\min\left(\sum_t a_{ts}, 1\right), 10^{-6}\right)

    :math:`\log \tilde P` is the sum of the log probabilities of the tokens, as ``transforms`` leave
    them. At every step 2K candidates are kept: those of them that end are finished, and the best K
    others go on. So with K = 1 the text that goes on is that of greedy generation, and it competes
    with those that end, wherever the stop is the likeliest or the second likeliest token. What a
    row finds depends on that row alone. The loop ends when no live hypothesis of any row can beat
    what is finished there.

    Args:
        step: ``(params, carry, token [...]) -> (carry, logits [..., V])``, such as that of a
            language model; with a ``memory``, ``(params, carry, token, memory)``; to use
            ``coverage`` it must return ``(carry, logits, weights [..., S])``. The search is
            compiled for each function: one that is written inside a loop is another every time, and
            so is a method, or an object that is called. Arrays that a function reads beside its
            arguments are those of the first call: hand them in as ``params``.
        params: its parameters.
        carry: the carry before ``start``, leaves [..., ...].
        start: int [...], the token that is read first, such as a start token. Inside a compiled
            function, where it is not known, it is clamped to [0, V).
        memory: what a row reads but never changes, leaves [..., ...]: it is not copied for each
            hypothesis.
        stop: the id that ends a text.
        beam_size: K.
        max_length: N, the most tokens of a text, the stop included.
        length_penalty: :math:`\alpha`, at least 0. At 0 short texts win; 1 is nearly the mean. The
            divisor of a text of N tokens must not be above 1e30.
        coverage: :math:`\beta`, at least 0: prefers texts that attend to all of the source. Places
            of padding, which have no weight, add the same to all texts of a row.
        transforms: changes of the log probabilities before each choice, such as
            :func:`rnnjax.forbid` and :func:`rnnjax.repetition_penalty`. One above 0 counts as 0.
        pad: the id behind the end of a text.

    Raises:
        ValueError: an argument of wrong shape or value, named in the message.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> model = rnnjax.language_model(rnnjax.embedding(50, 8), rnnjax.lstm(16))
        >>> params = model.init(jax.random.key(0))
        >>> carry = model.initial_carry(params, (2,))
        >>> beams = rnnjax.beam_search(model.step, params, carry, jnp.array([3, 7]), stop=1,
        ...                            beam_size=4, max_length=6)
        >>> beams.tokens.shape, beams.scores.shape
        ((2, 4, 6), (2, 4))

    References:
        Wu et al., "Google's neural machine translation system", 2016, equation 14.
    """
    if not callable(step):
        kind = type(step).__name__
        raise ValueError(f"step must be a function, such as the step of a model, got {kind}")
    first = masking.as_integers("start", start)
    how = _How(
        compared(step),
        check_size("beam_size", beam_size),
        check_size("max_length", max_length),
        check_id("stop", stop),
        check_id("pad", pad),
        _check_length_penalty(length_penalty, max_length),
        _check_weight("coverage", coverage),
        tuple(map(compared, check_transforms(transforms))),
        memory is not None,
    )
    check_one_number(how.transforms)
    if carry is None:
        raise ValueError(
            "carry must be the one before start, such as model.initial_carry gives, got None"
        )
    params = in_native_order(params)
    carry = as_arrays("carry", carry, first.shape)
    memory = as_arrays("memory", memory, first.shape)
    vocab_size = _check_step(how, params, carry, first.astype(jnp.int32), memory)
    # Only then cut: of 64 bits, 2^32 would be 0.
    first = check_tokens(first, vocab_size, "start").astype(jnp.int32)
    for name, number in (("stop", how.stop), ("pad", how.pad)):
        check_id(name, number, vocab_size)
    with telling_given_away(params=params, carry=carry, memory=memory):
        return _search(how, params, carry, first, memory)


class _How(NamedTuple):
    """What is fixed when the search is compiled."""

    step: Callable
    beam_size: int
    max_length: int
    stop: int
    pad: int
    length_penalty: float
    coverage: float
    transforms: tuple[Transform, ...]
    has_memory: bool


class _Texts(NamedTuple):
    """Hypotheses [B, K]: live ones, or finished ones."""

    tokens: Array  # [B, K, N]
    lengths: Array
    log_probs: Array  # the model's own
    changed: Array  # those that count, as ``transforms`` leave them
    scores: Array
    ended: Array


class _Searching(NamedTuple):
    """The state of the loop."""

    written: Array  # tokens of every live hypothesis
    live: _Texts
    done: _Texts
    carry: Carry  # [B, K, ...] a leaf
    last: Array  # [B, K], the token that is read next
    covered: Array  # [B, K, S], attention so far; S = 0 without coverage


@functools.partial(jax.jit, static_argnums=0)
def _first_step(
    how: _How, params: Any, carry: Carry, start: Array, memory: Any
) -> tuple[Carry, Array]:
    """The carry and the logits, of which the shapes are asked for."""
    given = (memory,) if how.has_memory else ()
    result = how.step(params, carry, start, *given)
    if not isinstance(result, tuple) or len(result) < 2 or not hasattr(result[1], "shape"):
        raise ValueError(f"step must give (carry, logits), got {describe(result)}")
    return result[0], result[1]


def _check_step(how: _How, params: Any, carry: Carry, start: Array, memory: Any) -> int:
    """The size of the vocabulary.

    Raises:
        ValueError: the step takes a memory where there is none, or none where there is one; or it
            gives logits of other rows, or a carry it could not be given again.
    """
    _check_arguments(how)
    try:
        new, logits = _first_step.eval_shape(how, params, carry, start, memory)
    except (TypeError, ValueError):
        _check_start(how, params, carry, start, memory)
        raise
    if logits.shape[:-1] != start.shape or not logits.ndim:
        raise ValueError(
            f"step must give logits [..., V] for tokens of shape {start.shape}, "
            f"got shape {logits.shape}"
        )
    same = jax.tree.structure(carry) == jax.tree.structure(new)
    if not (same and all(map(_fits, jax.tree.leaves(carry), jax.tree.leaves(new)))):
        raise ValueError(
            "step must give a carry of the same structure, shapes and dtypes as the one it is "
            f"given, {jax.tree.map(_kind, carry)}, got {jax.tree.map(_kind, new)}"
        )
    return logits.shape[-1]


def _check_start(how: _How, params: Any, carry: Carry, start: Array, memory: Any) -> None:
    """After a step has failed: refuse a single token where it takes one for each row."""
    batches = {leaf.shape[:1] for leaf in jax.tree.leaves((carry, memory))}
    if start.shape or len(batches) != 1:
        return
    (batch,) = batches
    try:
        _first_step.eval_shape(how, params, carry, jnp.zeros(batch, start.dtype), memory)
    except (TypeError, ValueError):
        return
    raise ValueError(f"start must have the batch shape of the carry, {batch}, got shape ()")


def _check_arguments(how: _How) -> None:
    """Refuse a step that takes a memory where there is none, or none where there is one."""
    names = ("params", "carry", "token", *(("memory",) if how.has_memory else ()))
    error = call_error(how.step, *names)
    if error is not None:
        given = "a memory" if how.has_memory else "no memory"
        raise ValueError(
            f"step must take ({', '.join(names)}) where {given} is given, got one that does not: "
            f"{error}"
        )


def _fits(given: Any, new: Any) -> bool:
    """Whether a loop takes the second in place of the first; what is weakly typed it promotes."""
    same_dtype = jnp.result_type(given) == new.dtype or jax.typeof(given).weak_type
    return given.shape == new.shape and same_dtype


def _kind(leaf: Any) -> str:
    return f"{jnp.result_type(leaf)}{list(leaf.shape)}"


@functools.partial(jax.jit, static_argnums=0)
def _search(how: _How, params: Any, carry: Carry, start: Array, memory: Any) -> Beams:
    given = params, carry, start, memory
    return with_automatic_axes(lambda given: _best_texts(how, *given), given, start, start.ndim)


def _best_texts(how: _How, params: Any, carry: Carry, start: Array, memory: Any) -> Beams:
    batch = start.shape

    def rows(a: Array) -> Array:
        return a.reshape(math.prod(batch), *a.shape[len(batch) :])

    carry, start, memory = jax.tree.map(rows, (carry, start, memory))
    carry, last = jax.tree.map(lambda a: _repeat(a, how.beam_size), (carry, start))
    step = _over_beams(how, params, memory)
    _, _, weights = jax.eval_shape(step, carry, last)
    empty = _no_texts(how, start.shape[0])
    # One hypothesis to begin with: K equal ones would stay equal for ever.
    only = jnp.full(how.beam_size, -jnp.inf, jnp.float32).at[0].set(0.0)
    only = jnp.broadcast_to(only, empty.changed.shape)
    live = empty._replace(log_probs=jnp.zeros_like(only), changed=only)
    # Attention of 16 bits is added up in 32, as the scores are.
    covered = jnp.zeros(weights.shape, accumulation_dtype(weights.dtype))
    begin = _Searching(jnp.zeros((), jnp.int32), live, empty, carry, last, covered)
    end = lax.while_loop(
        functools.partial(_may_improve, how), functools.partial(_extend, how, step), begin
    )
    # A text that was cut competes with those that ended; nothing is live where all have.
    cut = end.live._replace(scores=_scores(how, end.live, end.covered))
    best = _best(_concatenate(end.done, cut), how.beam_size)
    found = jnp.isfinite(best.scores)
    lengths = jnp.where(found, best.lengths, 0)
    tokens = jnp.where(found[..., None], best.tokens, how.pad)
    log_probs = jnp.where(found, best.log_probs, -jnp.inf)
    scores = jnp.where(found, best.scores, -jnp.inf)  # of logits that are NaN it would be NaN
    beams = Beams(tokens, lengths, scores, log_probs, best.ended & found)
    return jax.tree.map(lambda a: a.reshape(*batch, *a.shape[1:]), beams)


def _over_beams(how: _How, params: Any, memory: Any) -> Callable:
    """``step`` for hypotheses [B, K]: the rows as its batch, mapped over the beam."""

    def step(carry: Carry, token: Array) -> tuple[Carry, Array, Array]:
        given = (memory,) if how.has_memory else ()
        carry, logits, *rest = how.step(params, carry, token, *given)
        if not how.coverage:
            return carry, logits, jnp.zeros((*token.shape, 0), jnp.float32)
        if not rest:
            raise ValueError("coverage needs a step that returns (carry, logits, weights)")
        return carry, logits, rest[0]

    return jax.vmap(step, in_axes=(1, 1), out_axes=1)


def _extend(how: _How, step: Callable, now: _Searching) -> _Searching:
    """Every live hypothesis with every next token; of these the best go on or are finished."""
    carry, logits, weights = step(now.carry, now.last)
    log_probs = log_probabilities(logits.astype(jnp.float32))
    # At most 0, so that the totals can only fall: see _may_improve.
    changed = jnp.minimum(_transformed(how, log_probs, now.live), 0.0)
    totals = now.live.changed[..., None] + changed
    # Not what is NaN either: among the largest it would come first or last by its sign.
    totals = jnp.where((log_probs > -jnp.inf) & (totals > -jnp.inf), totals, -jnp.inf)
    vocabulary = totals.shape[-1]
    # A batch of no rows says nothing of its columns, so that -1 would not do.
    totals = totals.reshape(totals.shape[0], how.beam_size * vocabulary)
    # 2 K candidates leave K that go on, even if K of them are stops.
    best, places = largest(totals, min(2 * how.beam_size, how.beam_size * vocabulary))
    parents, tokens = places // vocabulary, (places % vocabulary).astype(jnp.int32)
    covered = _gather(now.covered + weights, parents)
    texts = _gather(now.live, parents)
    own = jnp.take_along_axis(log_probs.reshape(totals.shape), places, axis=1)
    texts = texts._replace(
        tokens=texts.tokens.at[..., now.written].set(tokens),
        lengths=texts.lengths + 1,
        log_probs=texts.log_probs + own,
        changed=best,
        ended=tokens == how.stop,
    )
    scores = jnp.where(texts.ended, _scores(how, texts, covered), -jnp.inf)
    done = _best(_concatenate(now.done, texts._replace(scores=scores)), how.beam_size)
    going = jnp.where(texts.ended, -jnp.inf, best)
    _, chosen = lax.top_k(going, how.beam_size)
    live = _gather(texts._replace(changed=going), chosen)
    kept = jnp.take_along_axis(parents, chosen, axis=1)
    return _Searching(
        now.written + 1,
        live,
        done,
        _gather(carry, kept),
        jnp.take_along_axis(tokens, chosen, axis=1),
        _gather(covered, chosen),
    )


def _may_improve(how: _How, now: _Searching) -> Array:
    """Whether some live hypothesis of some row could still beat the worst finished one there."""
    # Log probabilities only fall, a longer text is divided by more, and coverage is at most 0.
    most = jnp.max(now.live.changed, axis=1) / _penalty(how, jnp.array(how.max_length))
    return (now.written < how.max_length) & jnp.any(most > jnp.min(now.done.scores, axis=1))


def _transformed(how: _How, log_probs: Array, live: _Texts) -> Array:
    history = History(live.tokens, live.lengths, live.lengths)
    for transform in how.transforms:
        change = functools.partial(apply_transform, transform)
        log_probs = jax.vmap(jax.vmap(change))(log_probs, history)
    return log_probs


def _scores(how: _How, texts: _Texts, covered: Array) -> Array:
    scores = texts.changed / _penalty(how, texts.lengths)
    if how.coverage:
        # A source step of weight 0 everywhere is padding, or was never looked at: floored.
        attended = jnp.log(jnp.clip(covered, 1e-6, 1.0))
        scores = scores + how.coverage * jnp.sum(attended, axis=-1)
    return scores


def _penalty(how: _How, lengths: Array) -> Array:
    return ((5.0 + lengths.astype(jnp.float32)) / 6.0) ** how.length_penalty


def _no_texts(how: _How, count: int) -> _Texts:
    shape = (count, how.beam_size)
    impossible = jnp.full(shape, -jnp.inf, jnp.float32)
    return _Texts(
        jnp.full((*shape, how.max_length), how.pad, jnp.int32),
        jnp.zeros(shape, jnp.int32),
        impossible,
        impossible,
        impossible,
        jnp.zeros(shape, bool),
    )


def _best(texts: _Texts, count: int) -> _Texts:
    return _gather(texts, lax.top_k(texts.scores, count)[1])


def _concatenate(one: _Texts, other: _Texts) -> _Texts:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), one, other)


def _gather(tree: Any, places: Array) -> Any:
    """Leaves [B, K, ...] as [B, M, ...], by places [B, M] of their second axis."""
    pick = jax.vmap(lambda row, i: row[i])
    return jax.tree.map(lambda a: pick(a, places), tree)


def _repeat(a: Array, count: int) -> Array:
    return jnp.broadcast_to(a[:, None], (a.shape[0], count, *a.shape[1:]))


def _check_length_penalty(value: Any, max_length: int) -> float:
    """Refuse one that makes the scores of long texts 0, all alike."""
    penalty, base = _check_weight("length_penalty", value), (5 + max_length) / 6
    most = 30 / math.log10(base) if base > 1 else math.inf
    if penalty > most:
        raise ValueError(
            f"length_penalty must be at most {most:.3g} for a max_length of {max_length}, beyond "
            f"which scores are rounded to 0, got {value!r}"
        )
    return penalty


def _check_weight(name: str, value: Any) -> float:
    expected = "a finite number of at least 0"
    return check_number(name, value, expected, lambda number: 0 <= number < math.inf)
