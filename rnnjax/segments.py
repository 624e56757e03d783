"""Where segments start and end: episodes of a rollout, and sequences packed in one row.

``resets`` [..., T] says where segments start and is what ``unroll`` reads. Segment ids [..., T] say
which segment a step belongs to, 1, 2, 3, ... over the whole batch, and 0 where a step is masked:
what is wanted of each segment, its pool or its final carry, is looked up by them.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer
from numpy.typing import ArrayLike

from rnnjax import masking
from rnnjax._checks import check_carry, check_flag, check_floating, check_size, check_takes
from rnnjax._devices import with_automatic_axes
from rnnjax._numerics import accumulation_dtype
from rnnjax._values import check_range
from rnnjax.base import Carry

__all__ = [
    "pool_segments",
    "resets_from_dones",
    "resets_from_segment_ids",
    "segment_carries",
    "segment_ids_from_resets",
    "valid_from_dones",
]

RecordedWith = Literal["action", "observation"]
AutoReset = Literal["same_step", "next_step", "none"]


def resets_from_dones(
    dones: Any,
    previous: Any,
    *,
    recorded_with: RecordedWith = "action",
    auto_reset: AutoReset = "same_step",
) -> Array:
    """The ``resets`` of a rollout: True at the first step of every episode.

    A step is an observation and the action taken on it. Where the episode after a done starts is
    decided by two things. What the flag stands beside: the action that ended the episode, or the
    observation that came back with the flag and belongs to the step after. And what that
    observation is: with ``"same_step"`` the first of the next episode; with ``"next_step"`` the
    last of the old one, and the first of the next comes one step later.

    ============= =========== ============
    recorded_with auto_reset  resets[t]
    ============= =========== ============
    "observation" "same_step" dones[t]
    "action"      "same_step" dones[t - 1]
    "observation" "next_step" dones[t - 1]
    "action"      "next_step" dones[t - 2]
    either        "none"      False
    ============= =========== ============

    An environment that the caller resets as soon as it says done counts as ``"same_step"``.

    Args:
        dones: bool [..., T], the flags of the rollout, of termination and truncation alike.
        previous: bool [..., T'], the flags of the steps just before the rollout, such as all of
            the rollout before; its last two are enough. None says that no episode ended just
            before, as in the first rollout: the carry it starts with is the right one.
        recorded_with: "action" or "observation".
        auto_reset: "same_step", "next_step", or "none" for an environment that is left alone when
            it is done. See :func:`valid_from_dones` for the steps that mean nothing.

    Returns:
        bool [..., T], for ``unroll(..., resets=)``.

    Raises:
        ValueError: flags of wrong shape or dtype, too few previous ones, or an unknown convention.

    Example:
        >>> from rnnjax.segments import resets_from_dones
        >>> dones = [False, True, False, False]
        >>> resets_from_dones(dones, previous=[True]).tolist()
        [True, False, True, False]
        >>> resets_from_dones(dones, None, auto_reset="next_step").tolist()
        [False, False, False, True]
    """
    dones, previous = _check_dones(dones, previous)
    delay = _delay(recorded_with, auto_reset)
    if auto_reset == "none":
        return jnp.zeros_like(dones)
    return _delayed(dones, previous, delay)


def valid_from_dones(
    dones: Any,
    previous: Any,
    *,
    recorded_with: RecordedWith = "action",
    auto_reset: AutoReset = "same_step",
) -> Array:
    """True at the steps of a rollout whose action the environment acted on.

    With ``"same_step"`` all are. With ``"next_step"`` the step that shows the last observation of
    an episode is not: its action is passed over. With ``"none"`` no step after the end is. These
    are the weights of a loss; as ``unroll(..., mask=)`` they also keep what follows the end away
    from the recurrence.

    Args:
        dones: bool [..., T], as in :func:`resets_from_dones`.
        previous: bool [..., T'], as there; with "none" any flag in it means that the environment
            was done before the rollout began.
        recorded_with: as there.
        auto_reset: as there.

    Returns:
        bool [..., T].

    Raises:
        ValueError: as there.

    Example:
        >>> from rnnjax.segments import valid_from_dones
        >>> dones = [False, True, False, False]
        >>> valid_from_dones(dones, None, auto_reset="next_step").tolist()
        [True, True, False, True]
        >>> valid_from_dones(dones, None, auto_reset="none").tolist()
        [True, True, False, False]
    """
    dones, previous = _check_dones(dones, previous)
    delay = _delay(recorded_with, auto_reset)
    if auto_reset == "same_step":
        return jnp.ones_like(dones)
    if auto_reset == "next_step":
        return ~_delayed(dones, previous, delay - 1)
    over = _delayed(dones, None, delay)
    if previous is not None:
        over = over | jnp.any(previous, -1, keepdims=True)
    return jnp.cumsum(over, -1) == 0


def segment_ids_from_resets(resets: Any, mask: Any = None) -> Array:
    """Numbers the segments of a batch, row after row and in the order of time.

    The first real step of a row starts a segment, flagged or not. A flag on a masked step is not
    read, as in ``unroll``.

    Args:
        resets: bool [..., T].
        mask: bool [..., T], True where a step is real; None means all.

    Returns:
        int32 [..., T]: 1, 2, 3, ..., and 0 where a step is masked.

    Raises:
        ValueError: flags of wrong shape or dtype.

    Example:
        >>> from rnnjax.segments import segment_ids_from_resets
        >>> segment_ids_from_resets([[False, False, True], [True, True, False]]).tolist()
        [[1, 1, 2], [3, 4, 4]]
    """
    resets = _check_flags("resets", resets)
    valid = jnp.ones_like(resets)
    if mask is not None:
        valid = masking.check_flags("mask", mask, resets.shape[:-1], resets.shape[-1])
    starts = valid & (resets | (jnp.cumsum(valid, -1) == 1))
    numbers = jnp.cumsum(starts.reshape(-1), dtype=jnp.int32).reshape(starts.shape)
    return jnp.where(valid, numbers, 0)


def resets_from_segment_ids(segment_ids: Any) -> Array:
    """True at the first step of every segment: where the id is not that of the real step before.

    Args:
        segment_ids: integers [..., T], 0 where a step is masked.

    Returns:
        bool [..., T].

    Raises:
        ValueError: ids that are not integers, or are below 0.

    Example:
        >>> from rnnjax.segments import resets_from_segment_ids
        >>> resets_from_segment_ids([[1, 1, 2, 0, 2, 0]]).tolist()
        [[True, False, True, False, False, False]]
    """
    ids = _check_ids(segment_ids)
    end = int(jnp.iinfo(ids.dtype).max) + 1
    check_range("segment_ids", ids, end, "[0, N] (0 where a step is masked)")
    ids = jnp.maximum(ids, 0)  # those that could not be checked
    last_real = lax.associative_scan(
        lambda earlier, here: jnp.where(here != 0, here, earlier), ids, axis=ids.ndim - 1
    )
    before = jnp.concatenate([jnp.zeros_like(ids[..., :1]), last_real], axis=-1)[..., :-1]
    return (ids != 0) & (ids != before)


def pool_segments(
    ys: ArrayLike,
    segment_ids: Any,
    num_segments: int,
    pooling: str = "last",
    *,
    last: Callable[[Array, Array], Array] = masking.take_last,
) -> Array:
    """One vector a segment, from the outputs of packed rows.

    Args:
        ys: outputs [..., T, O].
        segment_ids: integers [..., T] in [0, num_segments], 0 where a step is masked. Traced ones
            cannot be checked; steps of an id outside the range are left out.
        num_segments: N.
        pooling: "last", "mean" or "max" over the steps of a segment.
        last: what "last" means to the layer that gave ``ys``: its ``Layer.last``. A bidirectional
            layer takes its forward half at the last step of a segment and its backward half at the
            first.

    Returns:
        [N, O]: row i belongs to segment i + 1. Zero where a segment has no step.

    Raises:
        ValueError: an unknown pooling, ids of wrong shape, dtype or value, or a ``last`` that is no
            function of outputs and a mask.

    Example:
        >>> import jax.numpy as jnp
        >>> from rnnjax.segments import pool_segments
        >>> ys = jnp.array([[[1.0], [3.0], [5.0], [jnp.nan]]])
        >>> ids = jnp.array([[1, 1, 2, 0]])
        >>> pool_segments(ys, ids, 3, "mean").tolist(), pool_segments(ys, ids, 3).tolist()
        ([[2.0], [5.0], [0.0]], [[3.0], [5.0], [0.0]])
    """
    if pooling not in ("last", "mean", "max"):
        raise ValueError(f"pooling must be 'last', 'mean' or 'max', got {pooling!r}")
    check_takes("last", last, "ys", "valid")
    ids, count = check_segments(segment_ids, num_segments)
    ys = jnp.asarray(masking.as_array("ys", ys))
    check_floating("ys", ys)
    if ids.shape != ys.shape[:-1]:
        raise ValueError(f"segment_ids must have shape {ys.shape[:-1]}, got shape {ids.shape}")

    def pool(given: tuple[Array, Array]) -> Array:
        ys, ids = given
        if pooling == "last":
            ends = jnp.stack(_at_ends(ys, ids, count), axis=-2)
            present = _sizes(ids, count) > 0
            return last(ends, jnp.stack([present, present], axis=-1))
        steps = ys.reshape(-1, ys.shape[-1])
        return (_mean if pooling == "mean" else _max)(steps, ids.reshape(-1), count)

    # Segments of any row may come next to each other: no axis of the result is that of the rows.
    return with_automatic_axes(pool, (ys, ids), ys, 0)


def segment_carries(
    carries: Carry,
    segment_ids: Any,
    num_segments: int,
    initial_carry: Carry,
    *,
    reverse: bool = False,
) -> Carry:
    """The final carry of every segment, from the carries after every step.

    Args:
        carries: leaves [..., T, H], from ``unroll(..., all_carries=True)``.
        segment_ids: integers [..., T] in [0, num_segments], as in :func:`pool_segments`.
        num_segments: N.
        initial_carry: what a segment without a step keeps: ``cell.initial_carry(params)``, leaves
            [H].
        reverse: the carries are those of a run in reverse, which ends a segment at its first step.

    Returns:
        Leaves [N, H]: row i belongs to segment i + 1.

    Raises:
        ValueError: ids of wrong dtype or value, or carries that do not fit them or each other.

    Example:
        >>> import jax.numpy as jnp
        >>> from rnnjax.segments import segment_carries
        >>> carries, ids = jnp.arange(4.0).reshape(1, 4, 1), jnp.array([[1, 1, 2, 0]])
        >>> segment_carries(carries, ids, 3, jnp.array([-1.0])).tolist()
        [[1.0], [2.0], [-1.0]]
    """
    ids, count = check_segments(segment_ids, num_segments)
    reverse = check_flag("reverse", reverse)
    carries = jax.tree.map(jnp.asarray, carries)
    for leaf in jax.tree.leaves(carries):
        if leaf.shape[: ids.ndim] != ids.shape:
            raise ValueError(
                f"carries must have the leading axes of segment_ids, {ids.shape}, "
                f"got shape {leaf.shape}"
            )

    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[ids.ndim :], a.dtype), carries)
    initial_carry = check_carry("initial_carry", initial_carry, one)

    def pick(given: tuple[Carry, Array, Carry]) -> Carry:
        carries, ids, start = given
        picked = jax.tree.map(lambda a: _at_ends(a, ids, count)[0 if reverse else 1], carries)
        fresh = jax.tree.map(lambda a, b: jnp.broadcast_to(a, b.shape), start, picked)
        return masking.select(_sizes(ids, count) > 0, picked, fresh)

    return with_automatic_axes(pick, (carries, ids, initial_carry), ids, 0)


def _sizes(ids: Array, count: int) -> Array:
    """The number of steps [N] of each segment."""
    return jnp.bincount(ids.reshape(-1), length=count + 1)[1:]


def _at_ends(values: Array, ids: Array, count: int) -> tuple[Array, Array]:
    """``values`` [..., T, H] at the first and at the last step of each segment, [N, H] each."""
    shape = values.shape[ids.ndim :]
    if not ids.size:  # there is no step to look at, not even in place of a missing one
        nothing = jnp.zeros((count, *shape), values.dtype)
        return nothing, nothing
    flat = values.reshape(-1, *shape)
    places = jnp.arange(ids.size, dtype=jnp.int32)
    first = jax.ops.segment_min(places, ids.reshape(-1), count + 1)[1:]
    last = jax.ops.segment_max(places, ids.reshape(-1), count + 1)[1:]
    # A segment without a step has no place; its value is never read.
    return flat.at[first].get(mode="clip"), flat.at[last].get(mode="clip")


def _mean(steps: Array, ids: Array, count: int) -> Array:
    wide = steps.astype(accumulation_dtype(steps.dtype))
    total = jax.ops.segment_sum(wide, ids, count + 1)[1:]  # masked steps are a row by themselves
    sizes = _sizes(ids, count).astype(total.dtype)
    return (total / jnp.maximum(sizes, 1)[:, None]).astype(steps.dtype)


# One program: its infinity is no value that jax_debug_infs would stop at.
@functools.partial(jax.jit, static_argnums=2, inline=True)
def _max(steps: Array, ids: Array, count: int) -> Array:
    highest = jax.ops.segment_max(steps, ids, count + 1)[1:]
    return masking.zero_padding(_sizes(ids, count) > 0, highest)


def _delay(recorded_with: str, auto_reset: str) -> int:
    """Steps from a flag to the first step of the next episode."""
    if recorded_with not in ("action", "observation"):
        raise ValueError(f"recorded_with must be 'action' or 'observation', got {recorded_with!r}")
    if auto_reset not in ("same_step", "next_step", "none"):
        raise ValueError(
            f"auto_reset must be 'same_step', 'next_step' or 'none', got {auto_reset!r}"
        )
    return (recorded_with == "action") + (auto_reset == "next_step")


def _delayed(flags: Array, previous: Array | None, delay: int) -> Array:
    """``flags`` moved ``delay`` steps later in time, behind the last of ``previous``."""
    if previous is None:
        previous = jnp.zeros((*flags.shape[:-1], delay), bool)
    known = previous.shape[-1]
    if known < delay:
        raise ValueError(f"previous must have at least {delay} flags in each row, got {known}")
    return jnp.concatenate([previous[..., known - delay :], flags], -1)[..., : flags.shape[-1]]


def _check_dones(dones: Any, previous: Any) -> tuple[Array, Array | None]:
    dones = _check_flags("dones", dones)
    if previous is None:
        return dones, None
    before = _check_flags("previous", previous)
    if before.shape[:-1] != dones.shape[:-1]:
        raise ValueError(
            f"previous must have the batch shape of dones, {dones.shape[:-1]}, and an axis of "
            f"time, got shape {before.shape}"
        )
    return dones, before


def _check_flags(name: str, flags: Any) -> Array:
    flags = masking.as_array(name, flags)
    if not flags.ndim:
        raise ValueError(f"{name} must have shape [..., T], got a scalar")
    return masking.check_flags(name, flags, flags.shape[:-1], flags.shape[-1])


def _check_ids(segment_ids: Any) -> Array:
    ids = masking.as_integers("segment_ids", segment_ids)
    if ids.ndim < 1:
        raise ValueError("segment_ids must have shape [..., T], got a scalar")
    return ids


def check_segments(segment_ids: Any, num_segments: Any) -> tuple[Array, int]:
    """The ids as int32 and their number, both checked.

    Raises:
        ValueError: ids that are not integers, or outside [0, num_segments]; no positive number.
    """
    ids, count = _check_ids(segment_ids), check_size("num_segments", num_segments)
    check_range("segment_ids", ids, count + 1, f"[0, {count}] (num_segments is {count})")
    if isinstance(ids, Tracer):
        # Not to be checked, so left out: as an index of JAX, -1 would be the last segment.
        ids = jnp.where((ids < 0) | (ids > count), 0, ids)
    return masking.computed_now(lambda array: array.astype(jnp.int32), ids), count
