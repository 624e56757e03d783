"""A grid of LSTM blocks over time and depth: layers that hand a cell state up to the next one."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.nn import sigmoid

from rnnjax import masking
from rnnjax._checks import (
    check_batch_shape,
    check_carry,
    check_flag,
    check_key,
    check_size,
    describe,
    python_scalar,
)
from rnnjax._native import jit
from rnnjax._numerics import affine, carry_dtype, split_gates, varying_like
from rnnjax._recipe import factory
from rnnjax.base import Carry, Cell, Key, Layer
from rnnjax.cells._common import draw_packed, zeros_of
from rnnjax.cells.lstm import LSTMCarry, LSTMGates, lstm_gates
from rnnjax.engine._arguments import check_xs
from rnnjax.engine._plan import check_request
from rnnjax.engine.unroll import unroll
from rnnjax.initializers import CellInitializer, resolve
from rnnjax.layers._common import StepArguments, with_signature
from rnnjax.transforms.precision import (
    Policy,
    as_operand,
    cast_parameters,
    check_policy,
    with_policy,
)

PRIORITIES = ("depth", "time", None)
OUTPUTS = ("inside", "outside")


class GridSide(NamedTuple):
    """``w`` [N*H, 4H], for the outputs of all N sides, time above depth, and ``bias`` [4H] of one
    side; gates packed i, f, g, o."""

    w: Array
    bias: Array


class GridLSTMParams(NamedTuple):
    """``w`` [D, 2H] and ``bias`` [2H], from an input to the ``h`` and ``c`` that depth starts with;
    ``time`` and ``depth``, each a ``GridSide``, with an axis [L] in front where layers are not
    tied. ``time`` is None in one dimension."""

    w: Array
    bias: Array
    time: GridSide | None
    depth: GridSide


class _Grid(NamedTuple):
    """All that a grid is, but for its parameters."""

    size: int
    num_layers: int
    has_time: bool
    tied: bool
    priority: str | None
    output: str
    reverse: bool
    policy: Policy | None
    remat: int | str | None


@factory
def grid_lstm(
    hidden_size: int,
    num_layers: int,
    *,
    dimensions: int = 2,
    tied: bool = True,
    priority: str | None = "depth",
    output: str = "inside",
    reverse: bool = False,
    policy: Policy | None = None,
    remat: int | str | None = None,
    initializer: str | CellInitializer = "rnnjax",
) -> Layer:
    r"""A Grid LSTM: layers that are joined by LSTMs along depth as steps are along time.

    A block at step t of layer l has two sides, each an LSTM with an output h and a cell state c
    of its own: one comes from step t - 1, the other from layer l - 1. Both read both outputs:

    .. math::

        H &= [h^{time}_{t-1,l},\ h^{depth}_{t,l-1}] \\
        (i, f, g, o)^s &= H W^s + b^s, \qquad s \in \{time, depth\} \\
        c^{time}_{t,l} &= \sigma(f) c^{time}_{t-1,l} + \sigma(i) \tanh(g) \\
        c^{depth}_{t,l} &= \sigma(f) c^{depth}_{t,l-1} + \sigma(i) \tanh(g) \\
        h^s_{t,l} &= \tanh(\sigma(o) c^s_{t,l})

    Depth begins with the input, :math:`[h^{depth}_{t,0}, c^{depth}_{t,0}] = x_t W + b`, and the
    output is :math:`h^{depth}_{t,L}`. A gradient passes through many layers as it does through
    many steps: by the cell state.

    The carry is ``LSTMCarry(h, c)`` of the time sides, its leaves [..., L, H]. Only they are a
    loop over time, so all depth sides of a layer are one matrix product over all steps, unless
    priority is with time.

    Args:
        hidden_size: H, the same for both sides.
        num_layers: L.
        dimensions: 2, time and depth; or 1, depth alone, :math:`H = h^{depth}_{t,l-1}`: every step
            is by itself, the carry is ``()``. Vectors that are no sequences are given as [B, 1, D].
        tied: whether all layers have the same parameters.
        priority: the side that reads the other's new output, at its own step and layer, in place
            of the old one: ``"depth"``, ``"time"``, or None for neither. In one dimension it has
            no meaning.
        output: ``"inside"``, as above; ``"outside"``, :math:`h = \sigma(o) \tanh(c)`, as in
            ``lstm``.
        reverse: run from the last real step down to the first.
        policy: the dtypes, as for ``with_policy``.
        remat: what reverse mode keeps of a layer, as for ``unroll``.
        initializer: a name in ``rnnjax.initializers.PRESETS``, or one of your own: its input
            weights for what comes from the input and from the other side, its recurrent weights
            and forget bias for each side's own.

    Raises:
        ValueError: a size is not a positive integer, or another argument has none of its values.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> layer = rnnjax.grid_lstm(4, 6)
        >>> params = layer.init(jax.random.key(0), 3)
        >>> params.w.shape, params.time.w.shape, params.depth.w.shape
        ((3, 8), (8, 16), (8, 16))
        >>> carry, ys = layer.apply(params, jnp.ones((2, 5, 3)), lengths=[5, 2])
        >>> ys.shape, carry.h.shape
        ((2, 5, 4), (2, 6, 4))

    References:
        Kalchbrenner, Danihelka and Graves, "Grid long short-term memory", ICLR 2016,
        arXiv:1507.01526.
    """
    count = python_scalar("dimensions", dimensions)
    if type(count) is not int or count not in (1, 2):
        raise ValueError(f"dimensions must be 1 or 2, got {dimensions!r}")
    check_choice("priority", priority, PRIORITIES)
    check_choice("output", output, OUTPUTS)
    grid = _Grid(
        check_size("hidden_size", hidden_size),
        check_size("num_layers", num_layers),
        count == 2,
        check_flag("tied", tied),
        priority,
        output,
        check_flag("reverse", reverse),
        None if policy is None else check_policy(policy),
        check_request(_time_cell(1, "depth", "inside"), None, remat).remat,
    )
    draw = resolve(initializer)

    def init(key: Key, input_size: int) -> GridLSTMParams:
        first, second = jax.random.split(check_key(key))
        w = draw.w_ih(first, check_size("input_size", input_size), grid.size, 2)
        bias = jnp.zeros((2 * grid.size,), jnp.float32)
        if grid.tied:
            sides = _draw_sides(second, draw, grid)
        else:
            keys = jax.random.split(second, grid.num_layers)
            sides = jax.vmap(lambda k: _draw_sides(k, draw, grid))(keys)
        return cast_parameters(grid.policy, GridLSTMParams(w, bias, *sides))

    def apply(
        params: GridLSTMParams,
        xs: Array,
        steps: StepArguments,
        initial_carry: Carry,
        key: Key | None,
    ) -> tuple[Carry, Array]:
        _check_params(grid, params)
        if "context" in steps:
            raise ValueError(
                f"context must be None for grid_lstm, got {describe(steps['context'])}"
            )
        if key is not None:
            check_key(key)
        xs = check_xs(xs)
        if not hasattr(xs, "shape"):
            raise ValueError(f"xs must be an array [..., T, D], got {type(xs).__name__}")
        batch, time = xs.shape[:-2], xs.shape[-2]
        valid = masking.valid_steps(steps["lengths"], steps["mask"], batch, time)
        resets = steps["resets"]
        if resets is not None:
            resets = masking.check_flags("resets", resets, batch, time)
        start = own_carry(params, batch)
        if initial_carry is not None:
            start = check_carry("initial_carry", initial_carry, jax.eval_shape(lambda: start))
        return _run(grid, params, xs, valid, resets, start)

    def own_carry(params: GridLSTMParams, batch_shape: tuple[int, ...] = ()) -> Carry:
        _check_params(grid, params)
        if not grid.has_time:
            return ()
        shape = (*check_batch_shape(batch_shape), grid.num_layers, grid.size)
        dtype = _state_dtype(grid, params)
        # Two arrays: one that stood in both places could not be given away (donated).
        return LSTMCarry(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    return Layer(
        init=init,
        apply=with_signature(apply),
        output_size=grid.size,
        last=masking.take_first if grid.reverse else masking.take_last,
        initial_carry=own_carry,
        direction="backward" if grid.reverse else "forward",
    )


def check_choice(name: str, value: Any, choices: tuple) -> None:
    """Refuse what is none of the choices.

    Raises:
        ValueError: naming ``name``, the choices, and what came.
    """
    if not any(value is choice or value == choice for choice in choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_params(grid: _Grid, params: Any) -> None:
    rows = (2 if grid.has_time else 1) * grid.size
    shape = (*(() if grid.tied else (grid.num_layers,)), rows, 4 * grid.size)
    if not isinstance(params, GridLSTMParams) or params.depth.w.shape != shape:
        raise ValueError(
            f"params must be GridLSTMParams with depth.w of shape {shape}, got {describe(params)}"
            + (f", {params.depth.w.shape}" if isinstance(params, GridLSTMParams) else "")
        )


def _draw_sides(key: Key, draw: CellInitializer, grid: _Grid) -> tuple[GridSide | None, GridSide]:
    """The time side, None in one dimension, and the depth side of one layer."""
    size = grid.size

    def side(key: Key, place: int) -> GridSide:
        other, own, bias = draw_packed(draw, jax.random.split(key, 3), size, size, 4)
        rows = [other, own] if grid.has_time else [own]
        return GridSide(
            jnp.concatenate(rows[::-1] if place == 0 and grid.has_time else rows),
            bias.at[size : 2 * size].add(draw.forget_bias),
        )

    first, second = jax.random.split(key)
    return side(first, 0) if grid.has_time else None, side(second, 1)


def _state_dtype(grid: _Grid, params: GridLSTMParams) -> jnp.dtype:
    return carry_dtype(params) if grid.policy is None else jnp.dtype(grid.policy.state)


@functools.partial(jit, static=1)
def _run(
    grid: _Grid,
    params: GridLSTMParams,
    xs: Array,
    valid: Array | None,
    resets: Array | None,
    start: Carry,
) -> tuple[Carry, Array]:
    """The layers one after the other, in a loop whose body is one layer over all steps."""
    dtype = _state_dtype(grid, params)
    first = affine(masking.zero_padding(valid, xs), as_operand(grid.policy, params.w), params.bias)
    depth = LSTMCarry(*(a.astype(dtype) for a in split_gates(first, 2)))
    # A batch axis in front is that of the layers here: what a loop runs over comes first.
    starts = jax.tree.map(lambda a: jnp.moveaxis(a, -2, 0), start)
    sides = (params.time, params.depth)

    def one_layer(depth: LSTMCarry, own: tuple) -> tuple[LSTMCarry, Carry]:
        (time_side, depth_side), begin = own if not grid.tied else (sides, own)
        steps = {"mask": valid, "resets": resets, "initial_carry": begin}
        depth, carry = _layer(grid, time_side, depth_side, depth, steps)
        return jax.tree.map(lambda a: a.astype(dtype), (depth, carry))

    depth = varying_like((params, start, xs), depth)
    over = starts if grid.tied else (sides, starts)
    depth, carries = lax.scan(one_layer, depth, over, length=grid.num_layers)
    carry = jax.tree.map(lambda a: jnp.moveaxis(a, 0, -2), carries)
    return carry, masking.zero_padding(valid, depth.h)


def _layer(
    grid: _Grid, time_side: GridSide | None, depth_side: GridSide, depth: LSTMCarry, steps: dict
) -> tuple[LSTMCarry, Carry]:
    """One layer over all steps: the state of its depth sides, and the final carry of time."""
    if time_side is None:
        return _depth_step(grid, depth_side, depth, depth.h), ()
    cell = _time_cell(grid.size, grid.priority, grid.output)
    if grid.policy is not None:
        cell = with_policy(cell, grid.policy)
    options = {**steps, "reverse": grid.reverse, "remat": grid.remat}
    if grid.priority == "time":
        carry, (h, c) = unroll(cell, (time_side, depth_side), tuple(depth), **options)
        return LSTMCarry(h, c), carry
    carry, seen = unroll(cell, time_side, depth.h, **options)
    return _depth_step(grid, depth_side, depth, jnp.concatenate([seen, depth.h], axis=-1)), carry


def _depth_step(grid: _Grid, side: GridSide, depth: LSTMCarry, outputs: Array) -> LSTMCarry:
    """The depth side of all steps, from the outputs [..., N*H] of all sides."""
    sums = affine(outputs, as_operand(grid.policy, side.w), side.bias)
    return finish_side(grid.output, gates_of(sums), depth.c.astype(sums.dtype))


@factory
def _time_cell(size: int, priority: str | None, output: str) -> Cell:
    """The time side of a layer, as a cell that gives what the depth side reads.

    With priority for time, the depth side is a part of each step: the inputs are ``h`` and ``c``
    of the layer below, the outputs those of this one, the parameters those of both sides.
    """

    def project(side: GridSide, h: Array) -> tuple[Array, ...]:
        return split_gates(affine(h, side.w[size:], side.bias), 4)

    def update(
        side: GridSide, carry: LSTMCarry, x_proj: tuple, h_proj: tuple
    ) -> tuple[LSTMCarry, Array]:
        new = finish_side(output, lstm_gates(x_proj, h_proj), carry.c)
        return new, new.h if priority == "depth" else carry.h

    def project_both(params: tuple, x: tuple) -> tuple:
        _, depth_side = params
        h, c = x
        return *project(depth_side, h), c

    def both(params: tuple, carry: LSTMCarry, x_proj: tuple) -> tuple[LSTMCarry, tuple]:
        time_side, depth_side = params
        *sums, c = x_proj
        seen = split_gates(affine(carry.h, depth_side.w[:size]), 4)
        depth = finish_side(output, lstm_gates(tuple(sums), seen), c)
        outputs = jnp.concatenate([carry.h, depth.h])
        sums = affine(outputs, time_side.w, time_side.bias)
        return finish_side(output, gates_of(sums), carry.c), tuple(depth)

    def init(key: Key, input_size: int) -> Any:
        raise NotImplementedError("the grid draws the parameters of all its layers")

    initial_carry = zeros_of(size, size, carry=LSTMCarry)
    if priority == "time":
        return Cell(size, init, initial_carry, project=project_both, plain_step=both)
    return Cell(
        size,
        init,
        initial_carry,
        project,
        recurrent=lambda side: side.w[:size],
        hidden=lambda carry: carry.h,
        update=update,
    )


def gates_of(sums: Array) -> LSTMGates:
    """The gates of one side, from their sums packed i, f, g, o."""
    i, f, g, o = split_gates(sums, 4)
    return LSTMGates(sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o))


def finish_side(output: str, gates: LSTMGates, c: Array) -> LSTMCarry:
    """The step of one side once its gates are there, from its cell state."""
    c = gates.f * c + gates.i * gates.g
    return LSTMCarry(jnp.tanh(gates.o * c) if output == "inside" else gates.o * jnp.tanh(c), c)
