"""Series out of a model: each drawn value is the next input, for a whole batch in one program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_size, telling_given_away
from rnnjax._devices import with_automatic_axes
from rnnjax._native import jit
from rnnjax._recipe import compared
from rnnjax.base import Carry, Key
from rnnjax.decoding._loop import (
    Choice,
    as_arrays,
    as_batch,
    as_rows,
    prompt_lengths,
    row_keys,
    start_writing,
    write_rows,
)
from rnnjax.heads import Head
from rnnjax.models import SeriesModel


class GeneratedSeries(NamedTuple):
    """What :func:`generate_series` wrote.

    Attributes:
        values: [..., N, D], or ids [..., N]; zeros behind the end of a row.
        lengths: int32 [...], new values of each row, the one that stopped it included.
        log_probs: float32 [..., N], of each value under the model; 0 behind the end of a row.
        carry: the carry after all values but ``last``.
        last: [..., D], the last value of each row, which the model has not read yet.
        keys: [...], one key a row for what comes next.

    To go on where this ended: ``generate_series(model, params, last[..., None, :],
    initial_carry=carry, key=keys, ...)`` writes what one longer call would have written.
    """

    values: Array
    lengths: Array
    log_probs: Array
    carry: Carry
    last: Array
    keys: Array


def generate_series(
    model: SeriesModel,
    params: Any,
    prompt: Any,
    lengths: Any = None,
    *,
    max_new_steps: int,
    key: Key,
    stop: Callable[[Array], Array] | None = None,
    initial_carry: Carry = None,
    context: Any = None,
) -> GeneratedSeries:
    r"""Go on with series: a whole batch of ragged beginnings in one compiled loop.

    .. math:: v_{t+1} \sim p(\cdot \mid v_1 \dots v_t)

    The sibling of :func:`rnnjax.generate` for vectors. What a row writes depends on its prompt
    and its key alone: not on other rows, their order, the padding, nor ``max_new_steps``. A row
    whose distribution is NaN ends there.

    To draw otherwise, as with a lower variance, give a model whose head draws so:
    ``model._replace(head=model.head._replace(sample=...))``.

    Args:
        model: a ``rnnjax.series_model(...)`` whose head has a density.
        params: its parameters.
        prompt: values [..., T, D], T at least 1; ids [..., T] where the head is one of ids.
        lengths: values [...] of each prompt, integers in [1, T]; None means all.
        max_new_steps: N, the most values to write in a row.
        key: one key, from which each row gets its own by its place in the batch, or an array of
            keys [...], one a row.
        stop: ``(value [D]) -> bool``: a row ends with the first value of which it is True.
        initial_carry: the carry before the prompt; None starts anew.
        context: constants of each series, as for the layer of the model: a tree of arrays
            [..., anything], such as the text that is to be written by hand.

    Raises:
        ValueError: a head without density, an empty prompt, or an argument of wrong shape or
            value, named in the message.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> model = rnnjax.series_model(rnnjax.gru(16), rnnjax.bernoulli_head(88))
        >>> params = model.init(jax.random.key(0))
        >>> silence = jnp.zeros((2, 1, 88))
        >>> out = rnnjax.generate_series(model, params, silence, max_new_steps=6,
        ...                              key=jax.random.key(1))
        >>> out.values.shape, out.lengths.tolist()
        ((2, 6, 88), [6, 6])
    """
    if not isinstance(model, SeriesModel):
        raise ValueError(f"model must be a rnnjax.SeriesModel, got {type(model).__name__}")
    count = check_size("max_new_steps", max_new_steps)
    if stop is not None and not callable(stop):
        raise ValueError(f"stop must be a function of a value, or None, got {stop!r}")
    with telling_given_away(params=params, prompt=prompt, initial_carry=initial_carry):
        values, ends = _check_prompt(prompt, lengths, model.head)
        keys = row_keys(key, ends.shape, draws=True)
        carry = as_arrays("initial_carry", initial_carry)
        how = model, count, stop and compared(stop)
        return _generate(how, params, values, ends, keys, carry, context)


@functools.partial(jit, static=1)
def _generate(how: tuple, *given: Any) -> GeneratedSeries:
    prompt, lengths = given[1:3]
    return with_automatic_axes(lambda given: _series(*how, *given), given, prompt, lengths.ndim)


def _series(
    model: SeriesModel,
    count: int,
    stop: Callable[[Array], Array] | None,
    params: Any,
    prompt: Array,
    lengths: Array,
    keys: Array,
    initial_carry: Carry,
    context: Any,
) -> GeneratedSeries:
    batch, head = lengths.shape, model.head
    carry, distributions = model.apply(
        params, prompt, lengths, initial_carry=initial_carry, context=context
    )
    prompt, lengths, keys, carry, distributions, context = as_rows(
        batch, (prompt, lengths, keys, carry, distributions, context)
    )

    def at_last(leaf: Array) -> Array:
        return leaf[jnp.arange(leaf.shape[0]), lengths - 1]

    room = jnp.zeros((lengths.shape[0], count, *prompt.shape[2:]), prompt.dtype)

    def choose(keys: Array, distribution: Any, _: Any) -> Choice:
        value = jax.vmap(head.sample)(keys, distribution).astype(prompt.dtype)
        ends = False if stop is None else _ends(stop, value)
        log_prob = head.log_prob(distribution, value)
        # Of a distribution that is NaN there is no draw: many heads would give zeros for ever.
        return Choice(value, log_prob, ends, jnp.isnan(log_prob))

    end = write_rows(
        start_writing(carry, at_last(prompt), keys, room),
        jax.tree.map(at_last, distributions),
        lambda carry, value: model.step(params, carry, value, context=context),
        choose,
    )
    return as_batch(
        batch, GeneratedSeries(end.values, end.new, end.log_probs, end.carry, end.last, end.keys)
    )


def _ends(stop: Callable, values: Array) -> Array:
    """Which values end their rows, bool [B]."""
    ends = jax.vmap(stop)(values)
    if getattr(ends, "dtype", None) != jnp.bool_ or ends.shape != values.shape[:1]:
        one = jax.tree.map(lambda a: jax.typeof(a[0]).str_short(), ends)
        raise ValueError(f"stop must give True or False for a value, got {one!r}")
    return ends


def _check_prompt(prompt: Any, lengths: Any, head: Head) -> tuple[Array, Array]:
    value_shape = head.value_shape
    if value_shape:
        prompt = jnp.asarray(masking.as_array("prompt", prompt))
    else:
        prompt = masking.as_integers("prompt", prompt)
    if jnp.iscomplexobj(prompt):
        raise ValueError(f"prompt must be real, got dtype {prompt.dtype}")
    if value_shape and not jnp.issubdtype(prompt.dtype, jnp.floating):
        prompt = prompt.astype(float)
    steps = prompt.shape[: prompt.ndim - len(value_shape)]
    if prompt.shape[len(steps) :] != value_shape or not steps or not steps[-1]:
        expected = ", ".join(map(str, ("...", "T", *value_shape)))
        raise ValueError(
            f"prompt must have shape [{expected}] with T at least 1, got shape {prompt.shape}: "
            "begin with a value such as zeros"
        )
    ends = prompt_lengths(lengths, steps[:-1], steps[-1])
    if not value_shape:
        if lengths is not None:  # the padding need not be an id: it is never read
            valid = masking.valid_steps(ends, None, steps[:-1], steps[-1])
            prompt = masking.zero_padding_now(valid, prompt)
        head.encode(prompt)  # refuses others; in the compiled program nobody can look
    return prompt, ends
