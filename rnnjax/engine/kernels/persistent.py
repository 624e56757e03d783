"""A loop over time as ONE kernel, forwards and backwards, for any cell that acts unit by unit.

The picture. A GPU runs the scan of an LSTM as thousands of small kernels, and most of the time of
each goes into starting it and into reading the recurrent weights again. Here the whole loop is one
kernel that starts once, and each of its CTAs (a block of 128 threads, alone on its processor)
keeps its part of the weights in shared memory for all T steps:

    batch  ->  tiles of 16, 32 or 64 sequences     every tile is a loop of its own
    units  ->  groups of 16                        one CTA has one group of one tile, all its gates

            group 0    group 1    group 2    group 3      of one tile, at step t
           +--------+ +--------+ +--------+ +--------+
    h_t -> | W_0 h_t| | W_1 h_t| | W_2 h_t| | W_3 h_t|    product of 64 rows: 16 units, 4 gates
           | update | | update | | update | | update |    the carry never leaves the registers
           +---+----+ +---+----+ +---+----+ +---+----+
               +----------+----------+----------+
                      h_{t+1} in global memory, that is in the L2 cache;
                      a counter says how many of the groups have written theirs

A step is: wait until the counter says that all groups of the tile have written their h
(``_Exchange.multiply`` in ``_mosaic``); multiply it by the weights, coming in through a ring of
pieces where it is too long to be in shared memory at once; ``update`` on tiles of [16 units, 16
sequences]; write the new h and raise the counter (``_Exchange.send``). The inputs of the next step
are on their way meanwhile. Backwards is the same with the cotangents of ``h W`` in the place of h;
the gradient of W is one product after the loop.

Nothing is written for one cell: ``update``, ``hidden`` and the derivatives that JAX takes of them
are traced and run inside the kernel. Read ``_pointwise`` (functions found to act unit by unit),
``_steps`` (a step of a tile), ``_tiles`` (sizes and arrays), ``_launch`` (both put together),
``_mosaic`` (the kernels), then this file (the derivative, batches made by ``vmap``, refusals).

All CTAs of a launch wait for each other, so all must be on the device at once. A launch that could
not be is refused before it starts, by the processors and the shared memory of the device; batches
of more tiles than fit are run in rounds.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from rnnjax._devices import may_merge_axes
from rnnjax._numerics import varying_like
from rnnjax.base import Cell
from rnnjax.engine import _loop
from rnnjax.engine._step import Inputs, Loop, Weights
from rnnjax.engine._usage import example_shapes
from rnnjax.engine.kernels import _device, _tiles
from rnnjax.engine.kernels._device import Device
from rnnjax.engine.kernels._launch import (
    BackwardArrays,
    ForwardArrays,
    Launch,
    LoopOptions,
    make_launch,
)
from rnnjax.engine.kernels._pointwise import NotPointwiseError
from rnnjax.engine.kernels._steps import ExampleShapes, find_pieces
from rnnjax.engine.kernels._tiles import TooLargeError

OLDEST_JAX = (0, 11)
DTYPES = ("float32", "bfloat16", "float16")
# Fewer steps than these are not worth the seconds that the kernels take to compile.
FEWEST_STEPS = 16
EXACT_PRECISIONS = ("highest", "float32")


class Problem(NamedTuple):
    """What decides whether and how a loop runs here.

    Attributes:
        cell: what is run.
        shapes: of one example.
        time, batch: T and B.
        options: what the call has.
        arrays: those whose place in a mesh decides, traced or not.
    """

    cell: Cell
    shapes: ExampleShapes
    time: Any
    batch: Any
    options: LoopOptions
    arrays: Any = ()


def plan(problem: Problem, device: Device | str, by_itself: bool) -> Launch | str:
    """The launch for a problem, or why there is none.

    Args:
        problem: the loop.
        device: what it is for, or why that is none for these kernels.
        by_itself: whether to say no also where the scan is as good.
    """
    if isinstance(device, str):
        return device
    if jax.__version_info__[:2] < OLDEST_JAX:
        return f"it needs JAX 0.11 or later, and this is {jax.__version__}"
    if not may_merge_axes(problem.arrays):
        return "there is more than one device: run it inside jax.shard_map, one program a device"
    if not isinstance(problem.time, int) or not isinstance(problem.batch, int):
        return "its shapes must be known when it is compiled, and these are symbolic"
    if problem.time == 0 or problem.batch == 0:
        return "there is no step to run"
    if problem.cell.plain_step is not None:
        return "the cell gives plain_step, which cannot be taken apart"
    reason = _refused_dtype(problem.shapes)
    if reason is not None:
        return reason
    try:
        launch = _launch(problem, device)
    except (NotPointwiseError, TooLargeError) as error:
        return str(error)
    if by_itself and launch.tiling.rounds > 1:
        return f"{problem.batch} sequences would take {launch.tiling.rounds} rounds"
    if by_itself and 2 * launch.tiling.at_once * launch.tiling.groups > device.processors:
        # Two launches that each wait for room which the other has would wait for ever. By name, the
        # caller says that nothing like it runs beside; the two directions of a layer might.
        return "it would take more than half of the device, and two such loops may run at once"
    if by_itself and problem.time < FEWEST_STEPS:
        return f"{problem.time} steps are too few to gain by it"
    return launch


def _refused_dtype(shapes: ExampleShapes) -> str | None:
    if shapes.w_hh is None:
        return "the cell has no recurrent weights"
    dtype = jnp.dtype(shapes.w_hh.dtype).name
    if dtype not in DTYPES:
        return f"its products are of {', '.join(DTYPES)}, and the recurrent weights are {dtype}"
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    if dtype == "float32" and precision in EXACT_PRECISIONS:
        return (
            "its float32 products are three of bfloat16, and jax_default_matmul_precision "
            f"asks for {precision!r}"
        )
    return None


def _launch(problem: Problem, device: Device) -> Launch:
    pieces = find_pieces(problem.cell, problem.shapes)
    dtype = problem.shapes.w_hh.dtype
    return make_launch(device, pieces, problem.options, problem.time, problem.batch, dtype)


def problem_of(cell: Cell, loop: Loop, weights: Weights, carry: Any, inputs: Inputs) -> Problem:
    """The problem that :func:`run_persistent` is given; its arguments may be shapes."""
    leaf = jax.tree.leaves(inputs.x_projs)[0]
    shapes = ExampleShapes(
        weights.w_hh,
        example_shapes(weights.params, 0),
        example_shapes(carry, 1),
        example_shapes(inputs.x_projs, 2),
    )
    options = LoopOptions(
        loop.reverse,
        loop.all_carries,
        inputs.valid is not None,
        inputs.resets is not None,
        weights.hidden_noise is not None,
    )
    arrays = [a for a in jax.tree.leaves((weights, inputs)) if isinstance(a, Array)]
    time, batch = leaf.shape[:2]
    return Problem(cell, shapes, time, batch, options, arrays)


class Kernels(NamedTuple):
    """What runs a launch: the kernels, or in the tests the same steps in plain JAX."""

    forward: Callable
    backward: Callable


def _mosaic() -> Kernels:
    # Not at the top: older releases of JAX have other names in there.
    from rnnjax.engine.kernels import _mosaic as kernels

    return Kernels(kernels.forward, kernels.backward)


def run_persistent(
    cell: Cell,
    loop: Loop,
    weights: Weights,
    carry: Any,
    inputs: Inputs,
    *,
    device: Device,
    by_itself: bool = False,
    kernels: Kernels | None = None,
) -> tuple[Any, Any]:
    """Run ``cell`` over time, with one batch axis: ``(carry, ys [T, B, O])``.

    Args:
        cell, loop, weights, carry, inputs: as the scan takes them.
        device: what it is for.
        by_itself: run the scan where it is compiled for anything but an NVIDIA GPU.
        kernels: what runs it; by default the kernels.

    Raises:
        NotPointwiseError: the cell is none that the kernels run.
        TooLargeError: the device has no room for it.
    """
    both = (weights, carry, inputs)
    if jax.sharding.get_abstract_mesh().manual_axes:
        both = jax.tree.map(functools.partial(_vary, both), both)
    return _differentiable(cell, loop, device, by_itself, kernels or _mosaic())(*both)


def _vary(given: Any, leaf: Array) -> Array:
    # What is the same on all devices becomes each one's own here, outside of the derivative, so
    # that the gradients of all devices are summed.
    return leaf if leaf.dtype == jnp.bool_ else varying_like(given, leaf)


def _differentiable(
    cell: Cell, loop: Loop, device: Device, by_itself: bool, kernels: Kernels
) -> Callable:
    scan = functools.partial(_loop.run_scan, cell, loop)

    def here(kernel: Callable, otherwise: Callable) -> Callable:
        if not by_itself:
            return kernel
        return lambda *args: lax.platform_dependent(*args, cuda=kernel, default=otherwise)

    def launch_for(weights: Weights, carry: Any, inputs: Inputs) -> Launch:
        return _launch(problem_of(cell, loop, weights, carry, inputs), device)

    def kernel_forward(weights: Weights, carry: Any, inputs: Inputs) -> Any:
        return _over_rows(
            lambda *args: _run_forward(launch_for(*args), kernels, *args), _FORWARD_AXES
        )(weights, carry, inputs)

    # Where one program is compiled for several platforms, the branch that is not for a GPU must
    # give results of the same shapes; what the kernel would have kept is never read there.
    def scan_forward(weights: Weights, carry: Any, inputs: Inputs) -> Any:
        made = jax.eval_shape(kernel_forward, weights, carry, inputs)[1]
        return scan(weights, carry, inputs), jax.tree.map(_zeros_of, made)

    def kernel_values(weights: Weights, carry: Any, inputs: Inputs) -> Any:
        return _over_rows(
            lambda *args: _run_forward(launch_for(*args), kernels, *args, save=False)[0],
            _Axes(_ARGUMENTS, (0, 1)),
        )(weights, carry, inputs)

    # Three derivatives, one inside the other. ``over_time`` is a custom_vjp: its two halves are the
    # two kernels. These halves are custom_jvps, whose rule is the scan's: so a derivative of the
    # gradient is right, if no faster than the scan.
    @jax.custom_jvp
    def forward(weights: Weights, carry: Any, inputs: Inputs) -> Any:
        return here(kernel_forward, scan_forward)(weights, carry, inputs)

    @forward.defjvp
    def forward_rule(primals: tuple, tangents: tuple) -> Any:
        results, saved = forward(*primals)
        moved = jax.jvp(scan, primals, tangents)[1]
        return (results, saved), (moved, jax.tree.map(jnp.zeros_like, saved))

    def kernel_backward(args: tuple, saved: Any, cotangents: Any) -> Any:
        def by_rows(args: tuple, saved: Any, cotangents: Any) -> Any:
            return _run_backward(launch_for(*args), kernels, args, saved, cotangents)

        rows = _over_rows(by_rows, _BACKWARD_AXES)(args, saved, cotangents)
        return _assemble(launch_for(*args), args, saved, rows)

    def scan_backward(args: tuple, saved: Any, cotangents: Any) -> Any:
        del saved
        moving, still = _by_movement(args)
        _, pull = jax.vjp(lambda some: scan(*_merged(some, still, args)), moving)
        return pull(cotangents)[0]

    @jax.custom_jvp
    def backward(args: tuple, saved: Any, cotangents: Any) -> Any:
        return here(kernel_backward, scan_backward)(args, saved, cotangents)

    @backward.defjvp
    def backward_rule(primals: tuple, tangents: tuple) -> Any:
        args, saved, cotangents = primals

        def by_scan(args: tuple, cotangents: Any) -> Any:
            return scan_backward(args, saved, cotangents)

        moved = jax.jvp(by_scan, (args, cotangents), (tangents[0], tangents[2]))[1]
        return backward(*primals), moved

    @jax.custom_vjp
    def over_time(weights: Weights, carry: Any, inputs: Inputs) -> Any:
        return here(kernel_values, scan)(weights, carry, inputs)

    def over_time_forward(weights: Weights, carry: Any, inputs: Inputs) -> Any:
        results, saved = forward(weights, carry, inputs)
        return results, ((weights, carry, inputs), saved)

    def over_time_backward(kept: tuple, cotangents: Any) -> tuple:
        args, saved = kept
        moved = iter(backward(args, saved, cotangents))
        leaves, tree = jax.tree.flatten(args)
        return jax.tree.unflatten(tree, [next(moved) if _moves(a) else _still(a) for a in leaves])

    over_time.defvjp(over_time_forward, over_time_backward)
    return over_time


def _moves(a: Array) -> bool:
    return jnp.issubdtype(a.dtype, jnp.floating)


def _still(a: Array) -> np.ndarray:
    return np.zeros(a.shape, jax.dtypes.float0)


def _by_movement(args: tuple) -> tuple[list, list]:
    leaves = jax.tree.leaves(args)
    return [a for a in leaves if _moves(a)], [a for a in leaves if not _moves(a)]


def _merged(moving: list, still: list, args: tuple) -> tuple:
    some, others = iter(moving), iter(still)
    leaves, tree = jax.tree.flatten(args)
    return jax.tree.unflatten(tree, [next(some) if _moves(a) else next(others) for a in leaves])


def _zeros_of(shape: Any) -> Array:
    return jnp.zeros(shape.shape, shape.dtype)


# ---- batches made by vmap ----------------------------------------------------------------------

# Where the rows of the batch lie in what the kernels take and give; None: all rows share it.
_SHARED: Any = None
_FIRST: Any = 0
_SECOND: Any = 1
_ARGUMENTS = (
    Weights(w_hh=_SHARED, params=_SHARED, reset_carry=_FIRST, hidden_noise=_FIRST),
    _FIRST,
    Inputs(x_projs=_SECOND, valid=_SECOND, resets=_SECOND),
)
_SAVED = (2, 1)  # h by parts, what is kept


class _Axes(NamedTuple):
    given: Any
    results: Any


def _over_rows(function: Callable, axes: _Axes) -> Callable:
    """``function`` such that an axis mapped by ``vmap`` joins the batch.

    An axis that is mapped over the weights does not: its members run one after the other.
    """
    mapped = jax.custom_batching.custom_vmap(function)

    @mapped.def_vmap
    def rule(axis_size: int, in_batched: Any, *args: Any) -> tuple[Any, Any]:
        everything = lambda tree: jax.tree.map(lambda _: True, tree)  # noqa: E731
        places = _places_of(axes.given, args)
        shared = [
            batched
            for batched, place in zip(jax.tree.leaves(in_batched), places, strict=True)
            if place is None
        ]
        if any(shared):
            results = _one_by_one(mapped, axis_size, in_batched, args)
            return results, everything(results)
        leaves, tree = jax.tree.flatten(args)
        joined = [
            a if place is None else _join_rows(a, batched, place, axis_size)
            for a, batched, place in zip(leaves, jax.tree.leaves(in_batched), places, strict=True)
        ]
        results = mapped(*jax.tree.unflatten(tree, joined))
        places = _places_of(axes.results, results)
        leaves, tree = jax.tree.flatten(results)
        parted = [_part_rows(a, place, axis_size) for a, place in zip(leaves, places, strict=True)]
        results = jax.tree.unflatten(tree, parted)
        return results, everything(results)

    return mapped


def _places_of(prefix: Any, tree: Any) -> list:
    """``prefix`` with one entry for each leaf of ``tree``."""
    spread = jax.tree.map(
        lambda place, below: [place] * len(jax.tree.leaves(below)),
        prefix,
        tree,
        is_leaf=lambda a: a is None,
    )
    found: list = []
    jax.tree.map(found.extend, spread, is_leaf=lambda a: isinstance(a, list))
    return found


def _join_rows(a: Array, batched: bool, place: int, count: int) -> Array:
    if not batched:
        a = jnp.broadcast_to(a[None], (count, *a.shape))
    a = jnp.moveaxis(a, 0, place)
    return a.reshape(*a.shape[:place], -1, *a.shape[place + 2 :])


def _part_rows(a: Array, place: int, count: int) -> Array:
    a = a.reshape(*a.shape[:place], count, -1, *a.shape[place + 1 :])
    return jnp.moveaxis(a, place, 0)


def _one_by_one(function: Callable, count: int, in_batched: Any, args: tuple) -> Any:
    leaves, tree = jax.tree.flatten(args)
    flags = jax.tree.leaves(in_batched)
    members = [a for a, batched in zip(leaves, flags, strict=True) if batched]

    def one(some: list) -> Any:
        rest = iter(some)
        whole = [next(rest) if b else a for a, b in zip(leaves, flags, strict=True)]
        return function(*jax.tree.unflatten(tree, whole))

    return lax.map(one, members)


# ---- from rows to tiles and back ---------------------------------------------------------------


def _flag_tiles(launch: Launch, inputs: Inputs) -> Array | None:
    flags = []
    if inputs.valid is not None:
        flags.append(inputs.valid)
    if inputs.resets is not None:
        flags.append(_before_next(launch, inputs.resets))
    return _tiles.flags_to_tiles(launch.tiling, jnp.stack(flags, axis=2)) if flags else None


def _before_next(launch: Launch, resets: Array) -> Array:
    """Whether the carry begins anew before the step that comes after each."""
    none = jnp.zeros_like(resets[:1])
    if launch.options.reverse:
        return jnp.concatenate([none, resets[:-1]])
    return jnp.concatenate([resets[1:], none])


def _first_reset(launch: Launch, resets: Array) -> Array:
    return resets[-1 if launch.options.reverse else 0][:, None]


def _stack(launch: Launch, leaves: list, axis: int) -> Array | None:
    """Leaves [..., B, H] as tiles of a stack of them."""
    if not leaves:
        return None
    stacked = jnp.stack([a.astype(jnp.float32) for a in leaves], axis=axis)
    if axis == 1:
        return _tiles.to_tiles(launch.tiling, stacked[None])[0]
    return _tiles.to_tiles(launch.tiling, stacked)


def _param_tiles(launch: Launch, params: Any) -> Array | None:
    size = launch.tiling.size
    leaves = jax.tree.leaves(params)
    rows = [leaves[k].astype(jnp.float32) for k in launch.steps.pieces.reads]
    rows = [jnp.broadcast_to(a, (size,)) if a.ndim == 0 else a for a in rows]
    if launch.pads_units:
        rows.append(jnp.ones((size,)))
    return _tiles.params_to_tiles(launch.tiling, jnp.stack(rows)) if rows else None


def _unstack(a: Array, axis: int) -> list:
    return [lax.index_in_dim(a, k, axis, keepdims=False) for k in range(a.shape[axis])]


def _run_forward(
    launch: Launch,
    kernels: Kernels,
    weights: Weights,
    carry: Any,
    inputs: Inputs,
    *,
    save: bool = True,
) -> tuple[Any, Any]:
    """``((carry, ys), saved)`` by rows; saved are h [parts, T, B, 1, H] and kept [T, B, k, H]."""
    tiling, pieces = launch.tiling, launch.steps.pieces
    start, reset_carry = jax.tree.leaves(carry), jax.tree.leaves(weights.reset_carry)
    if inputs.resets is not None:
        first = _first_reset(launch, inputs.resets)
        start = [jnp.where(first, f, c) for f, c in zip(reset_carry, start, strict=True)]
    noise = weights.hidden_noise
    arrays = ForwardArrays(
        _stack(launch, jax.tree.leaves(inputs.x_projs), 2),
        _tiles.forward_weights(tiling, launch.forward, weights.w_hh),
        _param_tiles(launch, weights.params),
        _stack(launch, start, 1),
        _stack(launch, reset_carry, 1) if inputs.resets is not None else None,
        None if noise is None else _stack(launch, [noise], 1),
        _flag_tiles(launch, inputs),
    )
    found = varying_like(arrays, kernels.forward(launch, arrays, save))
    tree = jax.tree.structure(carry)
    last = _unstack(_tiles.from_tiles(tiling, found.last[None])[0], 1)
    outputs = _unstack(_tiles.from_tiles(tiling, found.ys), 2)
    ys = jax.tree.unflatten(pieces.output_tree, outputs[: pieces.outputs])
    if launch.all_carries:
        ys = (ys, jax.tree.unflatten(tree, outputs[pieces.outputs :]))
    kept = None if found.kept is None else _tiles.from_tiles(tiling, found.kept)
    saved = (_tiles.from_product(tiling, found.h), kept)
    return (jax.tree.unflatten(tree, last), ys), saved


class _Rows(NamedTuple):
    """What the backward kernel gives, by rows; ``d_par`` of each sequence."""

    d_gates: Any  # [parts, T, B, G, H]
    d_read_alone: Any  # [T, B, k, H]
    d_start: Any  # [B, C, H]
    d_par: Any  # [B, k, H]
    d_reset_carry: Any
    d_noise: Any


_FORWARD_AXES = _Axes(_ARGUMENTS, ((0, 1), _SAVED))
_BACKWARD_AXES = _Axes((_ARGUMENTS, _SAVED, (0, 1)), _Rows(2, 1, 0, 0, 0, 0))


def _run_backward(
    launch: Launch, kernels: Kernels, args: tuple, saved: tuple, cotangents: tuple
) -> _Rows:
    weights, _, inputs = args
    d_last, d_ys = cotangents
    tiling, noise = launch.tiling, weights.hidden_noise
    leaves = jax.tree.leaves(inputs.x_projs)
    arrays = BackwardArrays(
        _tiles.backward_weights(tiling, launch.backward, weights.w_hh),
        None if saved[1] is None else _tiles.to_tiles(tiling, saved[1]),
        _stack(launch, [leaves[k] for k in launch.steps.read_alone], 2),
        _stack(launch, jax.tree.leaves(d_ys), 2),
        _flag_tiles(launch, inputs),
        _param_tiles(launch, weights.params),
        _stack(launch, jax.tree.leaves(d_last), 1),
        None if noise is None else _stack(launch, [noise], 1),
    )
    found = varying_like(arrays, kernels.backward(launch, arrays))

    def rows(a: Array | None) -> Array | None:
        return None if a is None else _tiles.from_tiles(tiling, a[None])[0]

    d_gates = _tiles.from_product(tiling, found.d_gates)[:, :, :, : tiling.gates]
    return _Rows(
        d_gates,
        None if found.d_read_alone is None else _tiles.from_tiles(tiling, found.d_read_alone),
        *map(rows, (found.d_start, found.d_par, found.d_reset_carry, found.d_noise)),
    )


def _assemble(launch: Launch, args: tuple, saved: tuple, rows: _Rows) -> list:
    """Cotangents of the leaves of ``args`` that move, in their order."""
    weights, carry, inputs = args
    pieces, parts = launch.steps.pieces, launch.tiling.parts
    d_start = _unstack(rows.d_start, 1)
    d_reset_carry = [jnp.zeros_like(d) for d in d_start]
    if rows.d_reset_carry is not None:
        first = _first_reset(launch, inputs.resets)
        began = [jnp.where(first, d, jnp.zeros_like(d)) for d in d_start]
        d_reset_carry = [a + b for a, b in zip(_unstack(rows.d_reset_carry, 1), began, strict=True)]
        d_start = [jnp.where(first, jnp.zeros_like(d), d) for d in d_start]
    d_gates = functools.reduce(jnp.add, [rows.d_gates[p].astype(jnp.float32) for p in range(parts)])
    by_leaf = dict(enumerate(_unstack(d_gates, 2)))
    if rows.d_read_alone is not None:
        by_leaf |= dict(zip(pieces.moving, _unstack(rows.d_read_alone, 2), strict=True))
    leaves = jax.tree.leaves(inputs.x_projs)
    d_x = [by_leaf[k].astype(a.dtype) for k, a in enumerate(leaves) if _moves(a)]
    moving = (
        [_weight_gradient(saved[0], rows.d_gates).astype(weights.w_hh.dtype)],
        _params_gradient(launch, weights.params, rows.d_par),
        d_reset_carry,
        [] if rows.d_noise is None else [rows.d_noise[:, 0].astype(weights.hidden_noise.dtype)],
        [d.astype(c.dtype) for d, c in zip(d_start, jax.tree.leaves(carry), strict=True)],
        d_x,
    )
    return [leaf for part in moving for leaf in part]


def _weight_gradient(h: Array, d: Array) -> Array:
    """The sum of ``h_t^T d_t`` over all steps and rows, in products of 16-bit parts."""
    size, columns = h.shape[-1], math.prod(d.shape[-2:])
    h, d = h.reshape(h.shape[0], -1, size), d.reshape(d.shape[0], -1, columns)
    # float32 as hi + lo: hi hi + hi lo + lo hi. The fourth, lo lo, is below what the split rounds.
    pairs = [(p, q) for p in range(len(h)) for q in range(len(d)) if p + q < len(h)]
    products = [
        lax.dot_general(h[p], d[q], (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        for p, q in pairs
    ]
    return sum(products[1:], start=products[0])


def _params_gradient(launch: Launch, params: Any, d_par: Array | None) -> list:
    leaves = jax.tree.leaves(params)
    found = (
        {}
        if d_par is None
        else dict(zip(launch.steps.pieces.reads, jnp.sum(d_par, axis=0), strict=True))
    )
    gradients = []
    for k, leaf in enumerate(leaves):
        if not _moves(leaf):
            continue
        if k not in found:
            gradients.append(jnp.zeros_like(leaf))
        else:
            d = found[k] if leaf.ndim else jnp.sum(found[k])
            gradients.append(d.astype(leaf.dtype))
    return gradients


# ---- the choice between the kernels and the scan -------------------------------------------------


def choose(
    cell: Cell, loop: Loop, arguments: tuple, device: Device | str, by_name: bool
) -> Launch | str:
    """The launch for what :func:`run_persistent` would be given, or why the scan runs.

    ``arguments`` may be shapes.

    Raises:
        ValueError: it was asked for by name and cannot run.
    """
    weights = arguments[0]
    if weights.context is not None:
        found = "the cell reads constants of the sequence"
    elif weights.w_hh is not None and weights.w_hh.ndim != 2:
        found = "its recurrent weights are blocks of a matrix"
    elif cell.plain_step is None and weights.w_hh is not None:
        found = plan(problem_of(cell, loop, *arguments), device, by_itself=not by_name)
    else:
        found = "the cell gives plain_step, or has no recurrent weights"
    if by_name and isinstance(found, str):
        raise ValueError(f"implementation must be one that can run here, got 'persistent': {found}")
    return found


def run_chosen(
    by_name: bool,
    device: Device | str,
    cell: Cell,
    loop: Loop,
    weights: Weights,
    carry: Any,
    inputs: Inputs,
) -> tuple[Any, Any]:
    """Run the kernels where they are asked for, or known to be right and faster; else the scan."""
    arguments = (weights, carry, inputs)
    if isinstance(device, str):
        if by_name:
            choose(cell, loop, arguments, device, by_name)  # raises with the reason
        return _loop.run_scan(cell, loop, *arguments)
    if isinstance(choose(cell, loop, arguments, device, by_name), str):
        return _loop.run_scan(cell, loop, *arguments)
    return run_persistent(cell, loop, *arguments, device=device, by_itself=not by_name)


def find_device(tree: Any) -> Device | str:
    """The GPU that a call on these arrays is for, or why it is none for these kernels.

    Where all are traced that is the device that JAX computes on unless told otherwise.
    """
    leaves = jax.tree.leaves(tree)
    arrays = [a for a in leaves if isinstance(a, Array) and not isinstance(a, Tracer)]
    # Committed arrays decide where a program runs; the others follow them.
    for leaf in sorted(arrays, key=lambda leaf: not leaf.committed):
        return _device.describe_gpu(min(leaf.devices(), key=lambda device: device.id))
    return _device.describe_gpu(_device.default_device())
