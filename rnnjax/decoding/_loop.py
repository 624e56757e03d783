"""The loop that writes, whatever it writes: each chosen value is the next input of its row."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from rnnjax import masking
from rnnjax._checks import check_key
from rnnjax._numerics import as_mappable, where
from rnnjax.base import Carry, Key


class Writing(NamedTuple):
    """The state of the loop, for rows [B]. Rows that go on have all the same number of values.

    Attributes:
        step: how many values the longest row has.
        carry: of the model, leaves [B, ...], which has read all values but the last.
        last: [B, ...], the last value of each row, which the model has not read yet.
        keys: [B].
        ended: [B].
        new: [B], how many values of each row are new.
        values: [B, N, ...], what is written.
        log_probs: [B, N].
        seen: what the chooser keeps of each row besides; a tree.
    """

    step: Array
    carry: Carry
    last: Array
    keys: Array
    ended: Array
    new: Array
    values: Array
    log_probs: Array
    seen: Any


class Choice(NamedTuple):
    """The next value of every row, [B, ...], and what follows from it.

    Attributes:
        value: what was chosen.
        log_prob: [B], of the value.
        ends: [B] or False, whether it is the last one of its row.
        none_left: [B] or False, whether there was none to choose: the row ends before it.
    """

    value: Array
    log_prob: Array
    ends: Any
    none_left: Any


def start_writing(carry: Carry, last: Array, keys: Array, room: Array, seen: Any = ()) -> Writing:
    """The state before the first value; ``room`` [B, N, ...] is filled with what pads a row."""
    count, length = room.shape[:2]
    return Writing(
        jnp.zeros((), jnp.int32),
        carry,
        last,
        keys,
        jnp.zeros(count, bool),
        jnp.zeros(count, jnp.int32),
        room,
        jnp.zeros((count, length), jnp.float32),
        seen,
    )


def write_rows(
    start: Writing,
    outputs: Any,
    read: Callable[[Carry, Array], tuple[Carry, Any]],
    choose: Callable[[Array, Any, Any], Choice],
    note: Callable[[Any, Array], Any] = lambda seen, value: seen,
    *,
    draws: bool = True,
) -> Writing:
    """Write until every row has ended, or all its room is taken.

    Args:
        start: from :func:`start_writing`.
        outputs: of the model on what came before, for the first value: it needs no step.
        read: ``(carry, value) -> (carry, outputs)``, the step of the model. The last value of a
            row is not read.
        choose: ``(keys, outputs, seen) -> Choice``.
        note: ``(seen, value) -> seen``; what becomes of rows that have ended is not read.
        draws: whether ``choose`` uses its keys; else they stay as they are.
    """
    length = start.values.shape[1]
    if draws:
        start = start._replace(keys=jax.vmap(as_mappable)(start.keys))

    def put(now: Writing, carry: Carry, outputs: Any) -> Writing:
        keys, draw = now.keys, now.keys
        if draws:
            split = jax.vmap(jax.random.split)(now.keys)
            keys, draw = split[:, 0], split[:, 1]
        choice = choose(draw, outputs, now.seen)
        ended = now.ended | choice.none_left
        padding = now.values[:, now.step]
        return now._replace(
            step=now.step + 1,
            # A row that has ended takes no step, nor one that ends before its next value.
            carry=where_rows(ended, now.carry, carry),
            last=where_rows(~ended, choice.value, now.last),
            keys=where_rows(now.ended, now.keys, keys),
            ended=ended | choice.ends,
            new=jnp.where(ended, now.new, now.new + 1),
            values=now.values.at[:, now.step].set(where_rows(~ended, choice.value, padding)),
            log_probs=now.log_probs.at[:, now.step].set(
                jnp.where(ended, 0.0, choice.log_prob).astype(now.log_probs.dtype)
            ),
            seen=note(now.seen, choice.value),
        )

    def read_and_put(now: Writing) -> Writing:
        return put(now, *read(now.carry, now.last))

    return lax.while_loop(
        lambda now: (now.step < length) & ~jnp.all(now.ended),
        read_and_put,
        put(start, start.carry, outputs),
    )


def where_rows(rows: Array, yes: Any, no: Any) -> Any:
    """Leaves of ``yes`` in the rows that are True, of ``no`` in the others."""

    def select(a: Array, b: Array) -> Array:
        return where(rows.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(select, yes, no)


def prompt_lengths(lengths: Any, batch: tuple[int, ...], time: int) -> Array:
    """The lengths of prompts [..., T], those that are traced clipped to [1, T]; None means all.

    Raises:
        ValueError: naming the first that is out of range.
    """
    if lengths is None:
        return _all_of(batch, time)
    lengths = masking.check_lengths(lengths, batch, time)
    if isinstance(lengths, Tracer):
        return jnp.clip(lengths.astype(jnp.int32), 1, time)
    lengths = np.asarray(jax.device_get(lengths), np.int32)
    if np.any(lengths < 1):
        place = tuple(int(i) for i in np.argwhere(lengths < 1)[0])
        raise ValueError(
            f"lengths must be at least 1, got 0 at index {place}: an empty prompt needs a start"
        )
    return masking.computed_now(jax.device_put, lengths)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _all_of(batch: tuple[int, ...], time: int) -> Array:
    return jnp.full(batch, time, jnp.int32)


def row_keys(key: Any, batch: tuple[int, ...], draws: bool) -> Array:
    """Keys [...], one a row: as given, or from one key by the place of the row in the batch.

    Raises:
        ValueError: there is no key, and something is drawn.
    """
    if key is None:
        if draws:
            raise ValueError(
                "key must be given where values are drawn, got None: greedy() alone needs none"
            )
        return _keys_by_place(None, batch)
    each = _keys_of_rows(key, batch) if batch else None
    if each is not None:
        return each
    key = check_key(key)
    return _keys_by_place(key, batch) if batch else key


@functools.partial(jax.jit, static_argnums=1)
def _keys_by_place(key: Key | None, batch: tuple[int, ...]) -> Array:
    key = as_mappable(jax.random.key(0) if key is None else key)
    rows = jnp.arange(math.prod(batch))
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(rows).reshape(batch)


def _keys_of_rows(key: Any, batch: tuple[int, ...]) -> Array | None:
    """Keys [...], one a row, as typed keys; None if these are none.

    The dtype is asked for, too: one key of ``jax.random.PRNGKey`` is two numbers, as if for two
    rows.
    """
    if not isinstance(key, Array | np.ndarray):
        return None
    if isinstance(key, Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key if key.shape == batch else None
    raw = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    if key.dtype == raw.dtype and key.shape == (*batch, *raw.shape):
        return jax.random.wrap_key_data(jnp.asarray(key))
    return None


def as_arrays(name: str, tree: Any, batch: tuple[int, ...] = (), of: str = "start") -> Any:
    """A tree of arrays with the axes of the batch in front, those of the argument ``of``.

    Raises:
        ValueError: naming the leaf that is no array of numbers, or has other axes.
    """

    def check(path: Any, leaf: Any) -> Any:
        place = name + jax.tree_util.keystr(path)
        array = masking.as_array(place, leaf)
        if array.shape[: len(batch)] != batch:
            raise ValueError(
                f"{place} must have the batch shape of {of}, {batch}, got shape {array.shape}"
            )
        return array

    return jax.tree_util.tree_map_with_path(check, tree)


def as_rows(batch: tuple[int, ...], tree: Any) -> Any:
    """Leaves [..., *] as rows [B, *]."""
    # Counted: a size of -1 would be unknown in a batch of no rows.
    count = math.prod(batch)
    return jax.tree.map(lambda a: a.reshape(count, *a.shape[len(batch) :]), tree)


def as_batch(batch: tuple[int, ...], tree: Any) -> Any:
    """Rows [B, *] as leaves [..., *]."""
    return jax.tree.map(lambda a: a.reshape(*batch, *a.shape[1:]), tree)
