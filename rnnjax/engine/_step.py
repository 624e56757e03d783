"""One step of the loop over time: what it reads, and what resets, masks and batches do to it."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from rnnjax._checks import describe
from rnnjax.base import Cell
from rnnjax.masking import select, zero_padding


class Weights(NamedTuple):
    """What the loop reads at every step."""

    w_hh: Array | None  # [P, G*H], or blocks [heads, P/heads, G*H/heads]
    params: Any  # what update reads of them; in the dtypes their gradients are summed in
    reset_carry: Any  # the carry after a reset, [B, ...] a leaf
    hidden_noise: Array | None = None  # [B, P], what h is multiplied by before w_hh
    context: Any = None  # constants of each sequence, [B, ...] a leaf; None if the cell has none


class Inputs(NamedTuple):
    """What the loop reads step by step, time first."""

    x_projs: tuple[Any, ...]  # [T, B, ...] a leaf: the gates, then what only update reads
    valid: Array | None  # [T, B]; None where every step is real
    resets: Array | None  # [T, B], True: return to reset_carry before this step


class Loop(NamedTuple):
    """How to run over time; all of it is fixed when the loop is compiled."""

    reverse: bool = False
    scan_unroll: int = 1
    all_carries: bool = False  # outputs are (y, carry)
    packed: int = 0  # where nothing is differentiated, a step cuts so many x_projs out of one array


def scan(loop: Loop, step: Callable, carry: Any, inputs: Any) -> tuple[Any, Any]:
    """``lax.scan`` as ``loop`` says.

    Compiled under ``jax.disable_jit`` too: a Python loop in its place cannot run 0 steps, and the
    residuals of its steps, which are compared by identity, would not have one structure.
    """
    with jax.disable_jit(False):
        return lax.scan(step, carry, inputs, reverse=loop.reverse, unroll=loop.scan_unroll)


def packed_inputs(loop: Loop, inputs: Inputs) -> tuple[Inputs, Callable[[Inputs], Inputs]]:
    """Inputs of which a loop cuts the gates of each step out of one array, and what cuts them.

    Cut before the loop, the gates of all steps would be copied. Side by side again they are the
    product that they were cut out of, which XLA sees, so that nothing is copied.

    Not for a loop that is differentiated: its transpose would add to the whole array at every step.
    """
    leaves, structure = jax.tree.flatten(inputs.x_projs)
    gates, others = leaves[: loop.packed], leaves[loop.packed :]
    time, rows = gates[0].shape[:2]
    # A matrix, as the product gave it: with an axis of time XLA would reckon the places one by one.
    packed = jnp.concatenate([a.reshape(time * rows, a.shape[-1]) for a in gates], axis=-1)
    widths = [a.shape[-1] for a in gates]
    starts = [0, *itertools.accumulate(widths)]

    def cut(at: Inputs) -> Inputs:
        row, *others = at.x_projs
        pieces = [
            lax.dynamic_slice(packed, (row, start), (rows, width))
            for start, width in zip(starts, widths, strict=False)
        ]
        return at._replace(x_projs=structure.unflatten([*pieces, *others]))

    return inputs._replace(x_projs=(rows * jnp.arange(time), *others)), cut


def over_batch(function: Callable | None) -> Callable:
    """``function(params, carry, ...)`` of one example for a batch, parameters shared.

    Raises:
        ValueError: its result is no pair (an array of two rows would be taken apart as one), or
            its carry is another tree than the one before, or has other shapes or dtypes.
    """
    assert function is not None

    def batched(params: Any, *rest: Any) -> tuple[Any, Any]:
        result = jax.vmap(function, (None, *(0 for _ in rest)))(params, *rest)
        if not isinstance(result, tuple) or len(result) != 2:
            raise ValueError(
                f"a cell's update or plain_step must give (carry, y), got {describe(result)}"
            )
        before, after, output = (_shapes_of_one(tree) for tree in (rest[0], *result))
        if before != after:
            swapped = ", and a carry in the place of y: the carry comes first"
            raise ValueError(
                f"a cell's update or plain_step must give a carry like the one before, {before}, "
                f"got {after}{swapped if output == before else ''}"
            )
        for old, new in zip(jax.tree.leaves(rest[0]), jax.tree.leaves(result[0]), strict=True):
            if old.dtype != new.dtype:
                raise ValueError(
                    "a cell's update or plain_step must give a carry of the dtype of the one "
                    f"before, {old.dtype}, got {new.dtype}: initial_carry should make the first one"
                    " in float32 or wider, also where the parameters have 16 bits"
                )
        return result

    return batched


def _shapes_of_one(carry: Any) -> Any:
    """The shapes of the carry of one example, in its tree."""
    return jax.tree.map(lambda leaf: leaf.shape[1:], carry)


def context_of(weights: Weights) -> tuple:
    """The further arguments of ``update``: the constants of the sequence, if the cell has any."""
    return () if weights.context is None else (weights.context,)


def hidden_of(cell: Cell, weights: Weights, carry: Any) -> Array | None:
    """What the recurrent weights multiply, [B, P]; None without recurrent weights.

    Raises:
        ValueError: it is no array of one axis for each example, as of a carry of a whole batch.
    """
    if weights.w_hh is None:
        return None
    assert cell.hidden is not None
    h = jax.vmap(cell.hidden)(carry)
    if not hasattr(h, "shape") or h.ndim != 2:
        given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), h)
        raise ValueError(
            "a cell's hidden must give an array [P] (the carry is that of one example, without "
            f"batch axes), got {describe(given)}"
        )
    return h


def reset(at: Inputs, reset_carry: Any, carry: Any) -> Any:
    """The carry a step begins with."""
    # Where there are no resets at all nothing is compiled for them.
    return carry if at.resets is None else select(at.resets, reset_carry, carry)


def hold(loop: Loop, at: Inputs, held: Any, new: Any, y: Any) -> tuple[Any, Any]:
    """The carry and the output a step ends with: held, and zero, where it is not real.

    A choice, not a product: NaN that ``update`` made of a masked step goes no further.
    """
    carry, y = select(at.valid, new, held), zero_padding(at.valid, y)
    return carry, (y, carry) if loop.all_carries else y
