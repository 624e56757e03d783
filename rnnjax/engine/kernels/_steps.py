"""One step of a tile, forwards and backwards, as found in a cell: the mathematics of the kernels.

Nothing here knows of a GPU. The functions take and give lists of arrays of one shape, a tile
[UNITS, width] each; the tests run them tile by tile in plain JAX.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from rnnjax.engine.kernels._tile_functions import TileFunctions


class Flags(NamedTuple):
    """Of a step, for each sequence of a tile, the same for all units; None where there are none."""

    valid: Any  # the step is no padding
    reset: Any  # the carry that leaves it is thrown away and begins anew


def _select_each(flag: Any, a: Sequence, b: Sequence) -> list:
    if flag is None:
        return list(a)
    return [lax.select(flag, x, y) for x, y in zip(a, b, strict=True)]


def _zero(a: Array) -> Array:
    return jnp.zeros_like(a)  # not a * 0: what stands in padding may be NaN


def hidden_units(steps: TileFunctions, carry: Sequence, noise: Any, units: Any) -> Array:
    """What the recurrent weights multiply; 0 in units that only fill the last group."""
    (h,) = steps.hidden(*carry)
    h = h if noise is None else h * noise
    return h if units is None else lax.select(units, h, _zero(h))


class Forward(NamedTuple):
    """What a step gives."""

    next_carry: list  # the carry that enters the next step
    carry_out: list  # the carry that leaves this one, before it may begin anew
    ys: list
    kept: list  # for the derivative


def forward_step(
    steps: TileFunctions, par: Sequence, reset_carry: Sequence, carry: Sequence, xs: Sequence,
    hs: Sequence, flags: Flags,
) -> Forward:  # fmt: skip
    """A step of a tile; ``par`` are the parameters that ``update`` reads."""
    pieces = steps.pieces
    rest = iter(par)
    full = [next(rest) if k in pieces.reads else None for k in range(len(pieces.params))]
    results = steps.update(*full, *carry, *xs, *hs)
    new, ys = results[: pieces.carries], results[pieces.carries :]
    carry_out = _select_each(flags.valid, new, carry)
    ys = _select_each(flags.valid, ys, [_zero(y) for y in ys])
    # The reset of the next step is done here, at the end of this one: the h that is sent to the
    # other CTAs must be that of the carry which the next step begins with.
    next_carry = (
        carry_out if flags.reset is None else _select_each(flags.reset, reset_carry, carry_out)
    )
    kept = [
        *[carry[k] for k in steps.entered],
        *[xs[k] + hs[k] for k in steps.sums],
        *[hs[k] for k in steps.h_alone],
    ]
    return Forward(next_carry, carry_out, ys, kept)


class Kept(NamedTuple):
    """What a step's derivative gets: ``Forward.kept``, and ``x_proj`` where it is read again."""

    kept: Sequence
    read_alone: Sequence


class Backward(NamedTuple):
    """What the derivative of a step gives."""

    d_gates: list  # cotangents of h_proj, and of x_proj where both meet
    d_read_alone: list  # cotangents of the moving leaves of x_proj that are read alone
    d_par: list  # what it adds to those of the parameters
    d_reset_carry: list  # what it adds to those of the carry after a reset
    d_carry: list  # of the carry that entered, but for what comes back through the product


def _entered_carry(steps: TileFunctions, kept: Kept) -> list:
    carry: list = [None] * steps.pieces.carries
    for k, a in zip(steps.entered, kept.kept[: len(steps.entered)], strict=True):
        carry[k] = a
    return carry


def backward_step(
    steps: TileFunctions, par: Sequence, kept: Kept, d_carry: Sequence, d_ys: Sequence,
    d_carries: Sequence, flags: Flags, units: Any,
) -> Backward:  # fmt: skip
    """The derivative of a step.

    Args:
        steps: the functions.
        par: the parameters that ``update`` reads.
        kept: what the step kept.
        d_carry: cotangents of the carry that enters the step after it.
        d_ys: of its outputs.
        d_carries: of the carry that it gave as an output; () where it gave none.
        flags: its own.
        units: False in units that only fill the last group; None where there are none.
    """
    pieces = steps.pieces
    none = [_zero(d) for d in d_carry]
    d_reset_carry = [] if flags.reset is None else _select_each(flags.reset, d_carry, none)
    d_carry_out = list(d_carry) if flags.reset is None else _select_each(flags.reset, none, d_carry)
    if d_carries:
        d_carry_out = [a + b for a, b in zip(d_carry_out, d_carries, strict=True)]
    d_new = _select_each(flags.valid, d_carry_out, none)
    d_ys = _select_each(flags.valid, d_ys, [_zero(d) for d in d_ys])
    after = len(steps.entered)
    sums = kept.kept[after : after + len(steps.sums)]
    by_gate = dict(zip(steps.h_alone, kept.kept[after + len(steps.sums) :], strict=True))
    h_alone = [by_gate.get(k) for k in range(pieces.gates) if not pieces.only_added[k]]
    by_leaf = dict(zip(steps.read_alone, kept.read_alone, strict=True))
    read_alone = [by_leaf.get(k) for k in pieces.read_alone]
    unread = [None] * (len(pieces.params) - len(pieces.reads))
    results = iter(
        steps.update_back(
            *par, *_entered_carry(steps, kept), *sums, *read_alone, *h_alone, *d_new, *d_ys, *unread
        )
    )

    def take(count: int) -> list:
        return [next(results) for _ in range(count)]

    d_par, d_entered = take(len(pieces.reads)), take(pieces.carries)
    d_gates, d_read_alone = take(pieces.gates), take(len(pieces.moving))
    if flags.valid is not None:
        d_entered = _select_each(flags.valid, d_entered, d_carry_out)
    # Units that only fill the last group have made-up values; zeroed here, they reach neither the
    # product nor the gradient of the weights.
    if units is not None:
        d_gates = [lax.select(units, d, _zero(d)) for d in d_gates]
    return Backward(d_gates, d_read_alone, d_par, d_reset_carry, d_entered)


def through_hidden(
    steps: TileFunctions, kept: Kept, d_carry: Sequence, d_h: Array, noise: Any
) -> tuple[list, Any]:
    """Add what comes back through the product; also the cotangent of the noise, if there is any."""
    carry, d_noise = _entered_carry(steps, kept), None
    if noise is not None:
        (clean,) = steps.hidden(*carry)
        d_noise, d_h = d_h * clean, d_h * noise
    through = steps.hidden_back(*carry, d_h)
    return [a + b for a, b in zip(d_carry, through, strict=True)], d_noise
