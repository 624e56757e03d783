"""All that turns lengths and masks into valid steps, and valid steps into selections and pools.

A mask is True where a step is real. Lengths and masks that are concrete are checked; inside a
transformation, where their values are not known, lengths are clipped to [0, T].
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export
from jax.core import Tracer
from numpy.typing import ArrayLike

from rnnjax import _checks, _values
from rnnjax._devices import with_automatic_axes
from rnnjax._numerics import mean_dtype
from rnnjax._reading import as_array
from rnnjax._values import check_range

# What a model of your own needs; the rest is for the rooms of this package alone.
__all__ = ["lengths_to_mask", "max_pool", "mean_pool", "take_first", "take_last", "zero_padding"]


def lengths_to_mask(lengths: ArrayLike, time: int) -> Array:
    """The mask [..., T] of sequences padded on the right: True where ``t < length``.

    Lengths whose values are traced cannot be checked and are clipped to [0, T].

    Raises:
        ValueError: lengths or a time that are not integers, a time below 0, or (where the values
            are known) a length outside [0, T].

    Example:
        >>> import rnnjax
        >>> rnnjax.lengths_to_mask([2, 0], 3).tolist()
        [[True, True, False], [False, False, False]]
    """
    array = _integers("lengths", lengths)
    time = _checks.python_scalar("time", time)
    if isinstance(time, int) and not isinstance(time, bool) and time >= 0:
        check_range("lengths", array, time + 1, f"[0, {time}] (a row has {time} steps)")
    elif not export.is_symbolic_dim(time):  # as T may be in an exported program
        raise ValueError(f"time must be an integer of at least 0, got {time!r}")
    return _mask_of(array, time)


def _mask_of(lengths: Any, time: Any) -> Array:
    """The mask of lengths that are integers; beyond [0, time] they count as clipped to it."""
    if lengths.dtype.itemsize >= 4:  # what int32 cannot hold is beyond any T
        numpy = np if isinstance(lengths, np.ndarray) else jnp
        lengths = numpy.clip(lengths, 0, np.iinfo(np.int32).max)
    lengths = jnp.asarray(lengths).astype(jnp.int32)
    steps = jnp.arange(time, dtype=jnp.int32)
    return jnp.less(
        jax.lax.broadcast_in_dim(steps, (*lengths.shape, time), (lengths.ndim,)),
        jnp.expand_dims(lengths, -1),
    )


def check_lengths(lengths: Any, batch: tuple[int, ...], time: int) -> Any:
    """Lengths as integers of shape ``batch``: int32 of NumPy, or the array of JAX that came.

    Raises:
        ValueError: a wrong shape or dtype, or (where the values are concrete) a length outside
            [0, time]. Traced lengths are not looked at; :func:`real_steps` clips them.
    """
    array = _integers("lengths", lengths)
    if array.shape != batch:
        raise ValueError(
            f"lengths must have shape {batch}, one for each sequence, got shape {array.shape}"
        )
    check_range("lengths", array, time + 1, f"[0, {time}] (a row has {time} steps)")
    if isinstance(array, np.ndarray):  # known to lie in the range
        return array.astype(np.int32)
    return array


def check_flags(name: str, flags: Any, batch: tuple[int, ...], time: int) -> Array:
    """``flags`` as a bool array of JAX of shape ``batch + (time,)``.

    Raises:
        ValueError: naming ``name``, what was expected and what came.
    """
    return computed_now(jnp.asarray, flags_as_given(name, flags, batch, time))


def flags_as_given(name: str, flags: Any, batch: tuple[int, ...], time: int) -> Any:
    """What :func:`check_flags` gives, but of NumPy where the flags are not of JAX yet.

    Raises:
        ValueError: as there.
    """
    array = as_array(name, flags)
    _checks.check_shape(name, array, (*batch, time))
    if array.dtype != jnp.bool_:
        raise ValueError(f"{name} must be of dtype bool, got dtype {array.dtype}")
    return array


def as_integers(name: str, value: Any) -> Array:
    """``value`` as an array of integers of at least 32 bits.

    Raises:
        ValueError: it is something else, or (where it is not of JAX yet) a number does not fit.
    """
    array = _values.check_width(name, _integers(name, value))
    if isinstance(array, Array) and array.dtype.itemsize >= 4:
        return array
    return computed_now(_of_32_bits, array)


def _of_32_bits(integers: Any) -> Array:
    array = jnp.asarray(integers)
    return array if array.dtype.itemsize >= 4 else array.astype(jnp.int32)


def computed_now(fn: Callable[..., Any], *given: Any) -> Any:
    """``fn(*given)`` of arrays, as a value that can be looked at wherever those given can.

    Inside ``jax.jit`` an operation on known arrays would become a part of the program, and what
    comes of it be unknown until that runs: ids outside of their range could not be refused.
    """
    made = fn(*given)
    if _is_traced(given) or not _is_traced(made):
        return made
    with jax.ensure_compile_time_eval():
        return fn(*given)


def _is_traced(tree: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def _integers(name: str, value: Any) -> Any:
    array = as_array(name, value)
    if not array.size and isinstance(value, list | tuple):
        return array.astype(np.int32)  # an empty list has no dtype of its own
    if not jnp.issubdtype(array.dtype, jnp.integer):
        # In the third place other libraries take the carry, a mask or a key.
        meant = ""
        if name == "lengths" and jnp.issubdtype(array.dtype, jnp.floating) and array.ndim > 1:
            meant = ": a carry is given by name, initial_carry=carry"
        if name == "lengths" and array.dtype == bool and array.ndim:
            meant = ": a mask is given by name, mask=mask"
        if name == "lengths" and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            meant = ": a key is given by name, key=key"
        raise ValueError(f"{name} must be integers, got dtype {array.dtype}{meant}")
    return array


def valid_steps(lengths: Any, mask: Any, batch: tuple[int, ...], time: int) -> Array | None:
    """The steps [..., T] that are real by ``lengths`` and by ``mask``; None where all are.

    Raises:
        ValueError: from :func:`check_lengths` and :func:`check_flags`.
    """
    if lengths is not None:
        lengths = check_lengths(lengths, batch, time)
    if mask is not None:
        mask = check_flags("mask", mask, batch, time)
    return computed_now(_real_steps, lengths, mask, time)


def real_steps(lengths: Any, mask: Any, time: int) -> Array | None:
    """What :func:`valid_steps` gives for a mask and lengths that were checked, inside a program.

    Lengths that could not be checked, since they were traced, count as clipped to [0, time].
    """
    valid = None if lengths is None else _mask_of(lengths, time)
    if mask is not None:
        valid = mask if valid is None else valid & mask
    return valid


# By itself one program: single operations would each copy their constants to the device.
_real_steps = jax.jit(real_steps, static_argnums=2, inline=True)


def select(keep: Array | None, new: Any, old: Any) -> Any:
    """``new`` where ``keep`` is True, else ``old``, leaf by leaf; ``keep`` None keeps all.

    ``keep`` holds the leading axes of every leaf. A choice, never a product: NaN or Inf in the
    branch not taken does not reach the result.
    """
    if keep is None:
        return new
    return jax.tree.map(lambda a, b: jnp.where(_spread(keep, a.ndim), a, b), new, old)


def zero_padding(valid: Array | None, xs: Any) -> Any:
    """``xs`` with exact zeros wherever ``valid``, bool over its leading axes, is False.

    Raises:
        ValueError: ``valid`` is not bool, or not of the leading axes of ``xs``.
    """
    if valid is None:
        return xs
    valid = jnp.asarray(as_array("valid", valid))
    if valid.dtype != jnp.bool_:
        raise ValueError(f"valid must be of dtype bool, got dtype {valid.dtype}")
    for shape in map(jnp.shape, jax.tree.leaves(xs)):
        if shape[: valid.ndim] != valid.shape:
            raise ValueError(
                f"valid must have the leading axes of xs, whose shape is {shape}, "
                f"got shape {valid.shape}"
            )
    return select(valid, xs, jax.tree.map(jnp.zeros_like, xs))


_zero_padding = jax.jit(zero_padding, inline=True)


def zero_padding_now(valid: Array | None, xs: Any) -> Any:
    """:func:`zero_padding` by itself: of known arrays known, and one program as ``_real_steps``."""
    return xs if valid is None else computed_now(_zero_padding, valid, xs)


def _spread(flags: Array, ndim: int) -> Array:
    return flags.reshape(flags.shape + (1,) * (ndim - flags.ndim))


def resets_before(resets: Array | None, valid: Array | None, reverse: bool) -> Array | None:
    """The steps [..., T] before which a loop must return to the initial carry.

    A segment starts at a real step whose flag is set; flags on masked steps are never read. Run
    in reverse, the carry is left where the segment of the step differs from that of the next real
    step, so that both directions see the same segments.
    """
    if resets is None:
        return None
    starts = resets if valid is None else resets & valid
    if not reverse:
        return starts
    following = _shift_back(starts)
    if valid is None:
        return following
    return valid & _at_next_real_step(following, _shift_back(valid))


def _shift_back(flags: Array) -> Array:
    """``flags`` moved one step towards the start of time, False in the place set free."""
    end = jnp.zeros((*flags.shape[:-1], 1), bool)
    return jnp.concatenate([flags, end], axis=-1)[..., 1:]


def _at_next_real_step(following: Array, real: Array) -> Array:
    """Spread what stands at each ``real`` step back over the masked steps before it."""

    def nearest(later: tuple[Array, Array], here: tuple[Array, Array]) -> tuple[Array, Array]:
        found, value = here
        return found | later[0], jnp.where(found, value, later[1])

    axis = following.ndim - 1
    _, value = jax.lax.associative_scan(nearest, (real, following), reverse=True, axis=axis)
    return value


def take_last(ys: Array | np.ndarray, valid: ArrayLike | None) -> Array:
    """The output [..., O] of the last valid step of ``ys`` [..., T, O]; zero without one.

    ``valid`` is the mask [..., T], or the lengths [...]; None for all steps.
    """
    valid = _as_mask(ys, valid)
    return _take(ys, valid, lambda: valid.shape[-1] - 1 - jnp.argmax(jnp.flip(valid, -1), -1))


def take_first(ys: Array | np.ndarray, valid: ArrayLike | None) -> Array:
    """The output [..., O] of the first valid step of ``ys`` [..., T, O]; zero without one.

    ``valid`` is the mask [..., T], or the lengths [...]; None for all steps.
    """
    valid = _as_mask(ys, valid)
    return _take(ys, valid, lambda: jnp.argmax(valid, -1))


def _as_mask(ys: Any, valid: Any) -> Array:
    _checks.check_floating("ys", ys)
    if ys.ndim < 2:
        raise ValueError(f"ys must have shape [..., T, O], got shape {ys.shape}")
    batch, time = ys.shape[:-2], ys.shape[-2]
    if valid is None:
        return jnp.ones((*batch, time), bool)
    array = as_array("valid", valid)
    if array.dtype != jnp.bool_ and array.shape == batch:
        return _mask_of(check_lengths(array, batch, time), time)
    if array.dtype != jnp.bool_ or array.shape != (*batch, time):
        raise ValueError(
            f"valid must be a mask, bool of shape {(*batch, time)}, or lengths, integers of shape "
            f"{batch}, got dtype {array.dtype} and shape {array.shape}"
        )
    return jnp.asarray(array)


def _take(ys: Any, valid: Array, index: Callable[[], Array]) -> Array:
    if ys.shape[-2] == 0:  # there is no step to look at, not even in place of a missing one
        return jnp.zeros((*ys.shape[:-2], ys.shape[-1]), ys.dtype)

    def pick(pair: tuple[Array, Array]) -> Array:
        # A choice, not an index: its derivative is no scatter. On a CPU a training step takes as
        # long or less (.86 of the time for a GRU of 256 units on 32 sequences of 100 steps).
        ys, index = pair
        here = jax.lax.broadcasted_iota(index.dtype, valid.shape, index.ndim) == index[..., None]
        return jnp.where(here[..., None], ys, 0).sum(axis=-2)

    picked = with_automatic_axes(pick, (ys, index()), ys, ys.ndim - 2)
    return zero_padding(jnp.any(valid, -1), picked)


def mean_pool(ys: Array | np.ndarray, valid: ArrayLike | None) -> Array:
    """The mean [..., O] over the valid steps of ``ys`` [..., T, O]; zero where there is none.

    ``valid`` is the mask [..., T], or the lengths [...]; None for all steps.

    Example:
        >>> import jax.numpy as jnp
        >>> from rnnjax.masking import mean_pool
        >>> mean_pool(jnp.array([[1.0], [3.0], [jnp.nan]]), jnp.array([True, True, False])).tolist()
        [2.0]
    """
    valid, ys = _as_mask(ys, valid), jnp.asarray(ys)
    # Sums and counts of 16 bits would stop at 256 or be rounded; the mean comes back as it came.
    steps = zero_padding(valid, ys).astype(mean_dtype(ys.dtype))
    total = jnp.sum(steps, axis=-2)
    count = jnp.sum(valid, axis=-1, keepdims=True, dtype=total.dtype)
    return (total / jnp.maximum(count, 1)).astype(ys.dtype)


def max_pool(ys: Array | np.ndarray, valid: ArrayLike | None) -> Array:
    """The maximum [..., O] over the valid steps of ``ys`` [..., T, O]; zero where there is none.

    ``valid`` is the mask [..., T], or the lengths [...]; None for all steps.
    """
    return _max_pool(ys, _as_mask(ys, valid))


# One program: its infinity is no value that jax_debug_infs would stop at.
@functools.partial(jax.jit, inline=True)
def _max_pool(ys: Any, valid: Array) -> Array:
    lowest = jnp.full_like(ys, -jnp.inf)
    highest = jnp.max(select(valid, ys, lowest), axis=-2, initial=-jnp.inf)
    return zero_padding(jnp.any(valid, -1), highest)
