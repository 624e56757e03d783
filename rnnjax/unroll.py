"""A cell over a whole sequence, or over any number of them at once."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from . import masking
from .base import Carry, Cell, Params, check_floating
from .engine import Inputs, Weights, run


def unroll(
    cell: Cell,
    params: Params,
    xs: Array,
    lengths: Any = None,
    *,
    mask: Any = None,
    resets: Any = None,
    initial_carry: Carry = None,
    reverse: bool = False,
    scan_unroll: int = 1,
) -> tuple[Carry, Any]:
    r"""Run a cell over time, exactly as if each sequence of the batch were run alone.

    .. math:: s_t, y_t = \mathrm{cell}(s_{t-1}, x_t)

    What holds for every cell, in both directions, with any of the options together:

    - Outputs at real steps, the final carry and every gradient are those of the sequence run by
      itself, without its padding. Masked steps hold the carry and emit exact zeros.
    - Padding is never read: NaN or Inf there changes nothing, and its gradient is exactly zero.
    - A sequence of length 0 returns its initial carry. T = 0 and an empty batch work.
    - ``reverse=True`` runs from the last real step down to the first; outputs stay in the order
      of time, and the final carry is the one after the first real step.
    - The carry and the outputs are at least float32, whatever the dtype of the parameters.

    Args:
        cell: what to run.
        params: its parameters. Products are taken in their dtype, summed in at least float32.
        xs: inputs [..., T, D]: one sequence, or any number of batch axes.
        lengths: valid steps [...] of each sequence, integers in [0, T]; None means all. Where
            their values are traced they cannot be checked and are clipped to [0, T].
        mask: bool [..., T], True where a step is real; may be False anywhere. Together with
            ``lengths``, a step is real where both say so.
        resets: bool [..., T], True where a new segment starts: the carry returns to
            ``cell.initial_carry(params)`` before that step. The same array means the same
            segments in reverse: there the carry returns before a step whose next real step starts
            a segment. A flag on a masked step is not read.
        initial_carry: the carry before the first step, leaves [..., H]; by default
            ``cell.initial_carry(params)`` for every sequence.
        reverse: run backwards in time.
        scan_unroll: steps per iteration of the compiled loop; the result is the same.

    Returns:
        ``(carry, ys)``: the carry after the last step taken, leaves [..., H], and the outputs
        [..., T, O].

    Raises:
        ValueError: an argument of wrong shape, dtype or value, named in the message.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.lstm(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs = jax.random.normal(jax.random.key(1), (2, 5, 3))
        >>> carry, ys = rnnjax.unroll(cell, params, xs, lengths=[5, 2])
        >>> ys.shape, carry.h.shape
        ((2, 5, 4), (2, 4))
        >>> bool(jnp.all(carry.h[1] == ys[1, 1])), bool(jnp.all(ys[1, 2:] == 0))
        (True, True)
    """
    _check_cell(cell)
    xs = _check_xs(xs)
    batch, time = xs.shape[:-2], xs.shape[-2]
    valid = masking.valid_steps(lengths, mask, batch, time)
    if resets is not None:
        resets = masking.check_flags("resets", resets, batch, time)
    if initial_carry is not None:
        fresh = jax.eval_shape(cell.initial_carry, params)
        initial_carry = _check_carry(initial_carry, fresh, batch)
    if not isinstance(scan_unroll, int) or scan_unroll < 1:
        raise ValueError(f"scan_unroll must be a positive integer, got {scan_unroll!r}")
    return _unroll(cell, reverse, scan_unroll, params, xs, valid, resets, initial_carry)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _unroll(
    cell: Cell,
    reverse: bool,
    scan_unroll: int,
    params: Params,
    xs: Array,
    valid: Array | None,
    resets: Array | None,
    initial_carry: Carry,
) -> tuple[Carry, Any]:
    batch = xs.shape[:-2]
    count = math.prod(batch)
    resets = masking.resets_before(resets, valid, reverse)
    xs = masking.zero_padding(valid, xs)

    def time_first(a: Array) -> Array:
        return jnp.swapaxes(a.reshape(count, *a.shape[len(batch) :]), 0, 1)

    def batch_first(a: Array) -> Array:
        return jnp.swapaxes(a, 0, 1).reshape(*batch, a.shape[0], *a.shape[2:])

    xs = time_first(xs)
    # One carry a sequence, mapped over xs rather than broadcast so that it is sharded as they are.
    fresh = jax.vmap(lambda _: cell.initial_carry(params), in_axes=1, axis_size=count)(xs)
    carry = fresh
    if initial_carry is not None:
        carry = jax.tree.map(lambda a, b: a.reshape(b.shape), initial_carry, fresh)
    project = jax.vmap(jax.vmap(cell.project, in_axes=(None, 0)), in_axes=(None, 0))
    weights = Weights(cell.recurrent(params) if cell.recurrent else None, params, fresh)
    valid, resets = jax.tree.map(time_first, (valid, resets))
    inputs = Inputs(project(params, xs), valid, resets)
    _check_pieces(weights, inputs)
    carry, ys = run(cell, reverse, scan_unroll, weights, carry, inputs)
    carry = jax.tree.map(lambda a: a.reshape(*batch, *a.shape[1:]), carry)
    return carry, jax.tree.map(batch_first, ys)


def trace_gates(cell: Cell) -> Cell:
    """The same cell, whose outputs are ``(y, gates)``: the gate values of every step beside it.

    Gates of masked steps are zero, like every output.

    Args:
        cell: a cell with gates, such as ``lstm`` or ``gru``.

    Raises:
        ValueError: the cell has no gates to show.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.lstm(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> _, (ys, gates) = rnnjax.unroll(rnnjax.trace_gates(cell), params, jnp.ones((5, 3)))
        >>> gates.f.shape, bool(jnp.all((gates.f > 0) & (gates.f < 1)))
        ((5, 4), True)
    """
    if cell.gates is None:
        raise ValueError("this cell has no gates to trace: its field gates is None")
    gates, update, step = cell.gates, cell.update, cell.step

    def traced_update(params: Params, carry: Carry, z: tuple, r: tuple) -> tuple[Carry, Any]:
        assert update is not None
        new, y = update(params, carry, z, r)
        return new, (y, gates(params, carry, z, r))

    def traced_step(params: Params, carry: Carry, z: tuple) -> tuple[Carry, Any]:
        assert step is not None
        new, y = step(params, carry, z)
        return new, (y, gates(params, carry, z, ()))

    if step is not None:
        return cell._replace(step=traced_step)
    return cell._replace(update=traced_update)


def _check_cell(cell: Any) -> None:
    if not isinstance(cell, Cell):
        raise ValueError(f"cell must be a rnnjax.Cell, got {type(cell).__name__}")
    split = cell.update is not None and cell.hidden is not None
    if (cell.step is not None) == split:
        raise ValueError("a cell must give either hidden and update (with recurrent), or step")


def _check_pieces(weights: Weights, inputs: Inputs) -> None:
    if not isinstance(inputs.zs, tuple):
        raise ValueError(f"a cell's project must give a tuple, got {type(inputs.zs).__name__}")
    if weights.w_hh is not None and weights.w_hh.shape[-1] % len(inputs.zs):
        raise ValueError(
            f"a cell's recurrent weights {weights.w_hh.shape} must have one equal piece for each "
            f"of the {len(inputs.zs)} pieces of project"
        )
    for leaf in jax.tree.leaves(weights.fresh):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"a cell's carry must be of floating dtype, got {leaf.dtype}")


def _check_xs(xs: Any) -> Array:
    xs = jnp.asarray(xs)
    if xs.ndim < 2:
        raise ValueError(f"xs must have shape [..., T, D], got shape {xs.shape}")
    check_floating("xs", xs)
    return xs


def _check_carry(carry: Carry, fresh: Carry, batch: tuple[int, ...]) -> Carry:
    if jax.tree.structure(carry) != jax.tree.structure(fresh):
        raise ValueError(
            f"initial_carry must have the structure {jax.tree.structure(fresh)}, "
            f"got {jax.tree.structure(carry)}"
        )

    def check(path: Any, given: Any, expected: jax.ShapeDtypeStruct) -> Array:
        given = jnp.asarray(given)
        if given.shape != (*batch, *expected.shape):
            raise ValueError(
                f"initial_carry{jax.tree_util.keystr(path)} must have shape "
                f"{(*batch, *expected.shape)}, got shape {given.shape}"
            )
        return given.astype(expected.dtype)

    return jax.tree_util.tree_map_with_path(check, carry, fresh)
