"""Linear recurrences in parallel over time, and cells whose recurrence is one.

The steps of :math:`s_t = a_t s_{t-1} + b_t` are affine maps. Composing them is associative, so all
prefixes of T of them take about log T rounds of parallel work in place of T dependent steps. A
masked step is the identity; a step that starts a segment is a constant map.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from rnnjax.base import Carry, Cell
from rnnjax.engine._products import h_proj_of, noisy
from rnnjax.engine._step import Inputs, Loop, Weights
from rnnjax.masking import select, zero_padding


def run_associative(
    cell: Cell, loop: Loop, weights: Weights, carry: Carry, inputs: Inputs
) -> tuple[Carry, Any]:
    """What ``run_scan`` gives, in parallel over time, for a cell with ``linear``.

    The states are those of the recurrence that ``linear`` describes, to rounding; the outputs are
    those of ``update`` at every step, its carry left aside.
    """
    assert cell.linear is not None
    assert cell.update is not None
    params, x_projs = weights.params, inputs.x_projs
    decay, drive = over_steps(cell.linear)(params, x_projs)
    of_leaf = functools.partial(_carries, loop.reverse, inputs)
    carries = jax.tree.map(of_leaf, decay, drive, weights.reset_carry, carry)
    entered = _reset(inputs.resets, weights.reset_carry, before(carries, loop.reverse))
    products = _products(cell, weights, entered, x_projs)
    _, ys = over_steps(cell.update)(params, entered, x_projs, products)
    ys = zero_padding(inputs.valid, ys)
    if loop.all_carries:
        ys = (ys, after(carries, loop.reverse))
    return last(carries, loop.reverse), ys


def over_steps(function: Callable) -> Callable:
    """``function`` of parameters and of what changes with the step, for all of [T, B] at once."""

    def all_steps(params: Any, *args: Any) -> Any:
        axes = (None, *(0 for _ in args))
        return jax.vmap(jax.vmap(function, axes), axes)(params, *args)

    return all_steps


def _reset(resets: Array | None, reset_carry: Any, states: Any) -> Any:
    if resets is None:
        return states
    reset_carry = jax.tree.map(lambda a, b: jnp.broadcast_to(a, b.shape), reset_carry, states)
    return select(resets, reset_carry, states)


def _carries(
    reverse: bool, inputs: Inputs, decay: Array, drive: Array, reset_carry: Array, carry: Array
) -> Array:
    """The history of one leaf of the carry, its initial value as the first of T + 1 drives."""
    # In the dtype of the carry, which is float32 or wider: T factors below 1 in 16 bits would be
    # rounded T times.
    decay, drive = decay.astype(carry.dtype), drive.astype(carry.dtype)
    decay = select(inputs.valid, decay, jnp.ones_like(decay))
    drive = zero_padding(inputs.valid, drive)
    # At a start the drive takes in what the decay makes of the first carry; the flag then cuts what
    # came before. A decay of 0 in place of the flag would let NaN of the segment before through.
    starts = inputs.resets
    if starts is not None:
        drive = select(starts, decay * reset_carry[None] + drive, drive)
        starts = history(jnp.ones_like(starts, shape=carry.shape[:1]), starts, reverse)
    # The initial carry is a step of its own that forgets all before it: no special case follows.
    decay = history(jnp.zeros_like(carry), decay, reverse)
    return linear_recurrence(decay, history(carry, drive, reverse), starts, reverse=reverse)


def _products(cell: Cell, weights: Weights, entered: Carry, x_projs: tuple) -> tuple[Array, ...]:
    """``h_proj`` of every step: one product, since all states before a step are known."""
    if weights.w_hh is None:
        return ()
    assert cell.hidden is not None
    h = jax.vmap(jax.vmap(cell.hidden))(entered)
    noise = weights.hidden_noise
    return h_proj_of(noisy(h, None if noise is None else noise[None]), weights.w_hh, x_projs)


def linear_recurrence(
    decay: Array, drive: Array, starts: Array | None = None, *, reverse: bool = False
) -> Array:
    r"""All states of a linear recurrence, by an associative scan.

    .. math:: s_t = a_t s_{t-1} + b_t, \qquad s_{-1} = 0

    Derivatives of any order are those of the recurrence, not of the scan: the cotangents obey a
    recurrence in the other direction, solved in the same way, and nothing but the decay and the
    states is kept for it.

    Args:
        decay: :math:`a_t`, [T, ...] like ``drive``, or matrices [T, ..., P, P].
        drive: :math:`b_t`, [T, ..., P], real or complex, of the dtype of ``decay``.
        starts: bool [T, B], over leading axes of ``drive``. Where True the state before the step
            is forgotten, whatever it is: NaN or Inf in one segment does not reach the next.
        reverse: run from the last step to the first.

    Returns:
        The states [T, ..., P].

    Raises:
        ValueError: ``decay`` is neither of the shape of ``drive`` nor matrices for it.

    Example:
        >>> import jax.numpy as jnp
        >>> from rnnjax.engine._associative import linear_recurrence
        >>> linear_recurrence(jnp.array([2.0, 2.0, 3.0]), jnp.ones(3)).tolist()
        [1.0, 3.0, 10.0]

    References:
        Blelloch, "Prefix sums and their applications", Carnegie Mellon University, 1990; Martin
        and Cundy, "Parallelizing linear recurrent neural nets over sequence length", ICLR 2018,
        arXiv:1709.04057.
    """
    if decay.shape not in (drive.shape, (*drive.shape, *drive.shape[-1:])):
        raise ValueError(
            f"decay must have the shape of drive, {drive.shape}, or that of matrices for it, "
            f"{(*drive.shape, *drive.shape[-1:])}, got shape {decay.shape}"
        )

    def defect(states: Array) -> Array:
        return states - _apply(decay, forget(starts, shift(states, reverse)))

    def solve(_: Any, drive: Array) -> Array:
        return _scan(decay, drive, starts, reverse)

    # The transposed system runs the other way: the cotangent of a state comes from the step behind
    # it, through that step's decay, and not across the start of a segment.
    def solve_transposed(_: Any, drive: Array) -> Array:
        following = shift(_transpose(decay, drive), not reverse)
        crossings = None if starts is None else shift(starts, not reverse)
        return _scan(following, drive, crossings, not reverse)

    # Tells JAX that the states solve a linear system, which is all it needs for every derivative:
    # those of the scan itself would keep the log T levels of its tree.
    return lax.custom_linear_solve(defect, drive, solve, solve_transposed)


def _scan(decay: Array, drive: Array, starts: Array | None, reverse: bool) -> Array:
    def compose(earlier: tuple, later: tuple) -> tuple:
        (decay, drive), (next_decay, next_drive) = earlier[:2], later[:2]
        flags = ()
        if starts is not None:
            decay, drive = forget(later[2], (decay, drive))
            flags = (earlier[2] | later[2],)
        product = _compose_decays(next_decay, decay, drive)
        return product, _apply(next_decay, drive) + next_drive, *flags

    # The flag travels with the pair: composed over a start, a map forgets its left part, whatever
    # values that has.
    elements = (decay, drive) if starts is None else (forget(starts, decay), drive, starts)
    return lax.associative_scan(compose, elements, reverse=reverse)[1]


def _is_matrix(decay: Array, drive: Array) -> bool:
    return decay.ndim > drive.ndim


# Full precision, whatever a device does by default: the products of many matrices are taken.
def _apply(decay: Array, state: Array) -> Array:
    if _is_matrix(decay, state):
        return jnp.einsum("...ij,...j->...i", decay, state, precision="highest")
    return decay * state


def _compose_decays(later: Array, earlier: Array, drive: Array) -> Array:
    if _is_matrix(later, drive):
        return jnp.matmul(later, earlier, precision="highest")
    return later * earlier


def _transpose(decay: Array, drive: Array) -> Array:
    return jnp.swapaxes(decay, -1, -2) if _is_matrix(decay, drive) else decay


def forget(starts: Array | None, states: Any) -> Any:
    """``states`` with exact zeros where a segment starts."""
    return zero_padding(None if starts is None else ~starts, states)


def shift(states: Array, reverse: bool) -> Array:
    """What stood one step earlier in the order of the loop; zero (or False) at its first step."""
    zero = jnp.zeros(states.shape[1:], states.dtype)
    return before(history(zero, states, reverse), reverse)


def history(first: Any, states: Any, reverse: bool) -> Any:
    """Leaves [T + 1, ...]: the states of all steps and, where the loop begins, ``first``."""

    def join(first: Array, states: Array) -> Array:
        return jnp.concatenate([states, first[None]] if reverse else [first[None], states])

    return jax.tree.map(join, first, states)


def before(history: Any, reverse: bool) -> Any:
    """Of a history, the state before each step, leaves [T, ...]."""
    return jax.tree.map(lambda a: a[1:] if reverse else a[:-1], history)


def after(history: Any, reverse: bool) -> Any:
    """Of a history, the state after each step, leaves [T, ...]."""
    return before(history, not reverse)


def last(history: Any, reverse: bool) -> Any:
    """Of a history, the state after the last step taken."""
    return jax.tree.map(lambda a: a[0 if reverse else -1], history)
