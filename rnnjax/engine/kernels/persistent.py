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
(``Exchange.multiply`` in ``mosaic``); multiply it by the weights, coming in through a ring of
pieces where it is too long to be in shared memory at once; ``update`` on tiles of [16 units, 16
sequences]; write the new h and raise the counter (``Exchange.send``). The inputs of the next step
are on their way meanwhile. Backwards is the same with the cotangents of ``h W`` in the place of h;
the gradient of W is one product after the loop.

Nothing is written for one cell: ``update``, ``hidden`` and the derivatives that JAX takes of them
are traced and run inside the kernel. In the order to read them:

    _pointwise           functions found to act unit by unit, and run on tiles
    _pieces              a cell taken apart
    _tile_functions      its functions and their derivatives, for tiles
    _steps               one step of a tile, forwards and backwards
    _tiles               how a loop is cut, and its arrays by tiles
    _launch              sizes and functions put together: what a kernel is started with
    mosaic/              the kernels, and all that depends on the unstable parts of Pallas:
        tiles                numbers in registers and in shared memory
        exchange             what the CTAs of a tile give each other, and the product of it
        launching            starting a kernel, what a CTA reads
        forward_kernel, backward_kernel
    _rows                the kernels on arrays by rows, and their cotangents put together
    _row_axes            where the rows lie in these arrays
    _mapped_rows         batches made by ``vmap``
    _divided_rows        batches divided among devices
    _differentiable      the loop with its derivatives
    this file            whether a loop runs here, the refusals, and running it

All CTAs of a launch wait for each other, so all must be on the device at once. A launch that could
not be is refused before it starts, by the processors and the shared memory of the device; batches
of more tiles than fit are run in rounds.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax._devices import is_partly_manual, placed_array
from rnnjax._numerics import varying_like
from rnnjax.base import Cell
from rnnjax.engine import _loop
from rnnjax.engine._step import Inputs, Loop, Weights
from rnnjax.engine._usage import example_shapes
from rnnjax.engine.kernels import _device
from rnnjax.engine.kernels._device import Device
from rnnjax.engine.kernels._differentiable import differentiable_loop
from rnnjax.engine.kernels._launch import Kernels, Launch, LoopOptions, make_launch
from rnnjax.engine.kernels._pieces import ExampleShapes, find_pieces
from rnnjax.engine.kernels._pointwise import NotPointwiseError
from rnnjax.engine.kernels._tiles import TooLargeError

OLDEST_JAX = (0, 11)
DTYPES = ("float32", "bfloat16", "float16")
# Fewer steps than these are not worth the seconds that the kernels take to compile.
FEWEST_STEPS = 16
# What ``jax_default_matmul_precision`` may ask for: no more than three products of bfloat16 give.
# fmt: off
PRECISIONS = (
    None, "default", "fastest", "bfloat16", "BF16_BF16_F32", "high", "bfloat16_3x",
    "BF16_BF16_F32_X3", "tensorfloat32", "TF32_TF32_F32",
)
# fmt: on
NO_STEP = "there is no step to run"
READS_CONTEXT = "the cell reads constants of the sequence"


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
    if is_partly_manual(problem.arrays):
        return "in jax.shard_map it needs all axes of the mesh to be manual, and some are not"
    if not isinstance(problem.time, int) or not isinstance(problem.batch, int):
        return "its shapes must be known when it is compiled, and these are symbolic"
    if problem.time == 0 or problem.batch == 0:
        return NO_STEP
    reason = _refused_dtype(problem.shapes.w_hh.dtype)
    if reason is not None:
        return reason
    shares = device.batch_shares
    if shares is None and by_itself:
        return (
            "axes of the kind Auto do not say yet how they divide the batch: it runs by name, or on"
            " axes of the kind Explicit"
        )
    problem = problem._replace(batch=math.ceil(problem.batch / (shares or 1)))
    try:
        launch = _launch(problem, device)
    except (NotPointwiseError, TooLargeError) as error:
        return str(error)
    if by_itself and launch.tiling.rounds > 1:
        sequences = f"{problem.batch} sequences{device.describe_shares()}"
        return f"{sequences} would take {launch.tiling.rounds} rounds"
    taken, room = launch.tiling.at_once * launch.tiling.groups, device.for_two().room
    if by_itself and taken > room:
        # Two launches that each wait for room which the other has would wait for ever. By name, the
        # caller says that nothing like it runs beside, but for what ``device.shares`` counts.
        return (
            f"it would take {taken} processors at once, and its share is {room} of "
            f"{device.processors}: another such loop may run beside it"
        )
    if by_itself and problem.time < FEWEST_STEPS:
        return f"{problem.time} steps are too few to gain by it"
    return launch


def _refused_dtype(w_dtype: Any) -> str | None:
    dtype = jnp.dtype(w_dtype).name
    if dtype not in DTYPES:
        return f"its products are of {', '.join(DTYPES)}, and the recurrent weights are {dtype}"
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    if dtype == "float32" and precision not in PRECISIONS:
        return (
            "its float32 products are three of bfloat16, and jax_default_matmul_precision "
            f"asks for {precision!r}"
        )
    return None


def _launch(problem: Problem, device: Device) -> Launch:
    pieces = find_pieces(problem.cell, problem.shapes)
    dtype = problem.shapes.w_hh.dtype
    return make_launch(device, pieces, problem.options, problem.time, problem.batch, dtype)


def problem_of(
    cell: Cell, loop: Loop, weights: Weights, carry: Any, inputs: Inputs, arrays: Any = None
) -> Problem:
    """The problem that :func:`run_persistent` is given.

    Its arguments may be shapes; then ``arrays`` are those whose place in a mesh decides.
    """
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
    if arrays is None:
        arrays = [a for a in jax.tree.leaves((weights, inputs)) if isinstance(a, Array)]
    time, batch = leaf.shape[:2]
    return Problem(cell, shapes, time, batch, options, arrays)


def _mosaic() -> Kernels:
    # Not at the top: older releases of JAX have other names in there.
    from rnnjax.engine.kernels import mosaic

    return Kernels(mosaic.forward, mosaic.backward)


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

    # Under ``vmap`` the batch may be larger than the one that it was chosen for: then in rounds.
    device = device.for_two() if by_itself else device

    def launch_for(weights: Weights, carry: Any, inputs: Inputs) -> Launch:
        return _launch(problem_of(cell, loop, weights, carry, inputs), device)

    return differentiable_loop(cell, loop, launch_for, by_itself, kernels or _mosaic())(*both)


def _vary(given: Any, leaf: Array) -> Array:
    # What is the same on all devices becomes each one's own here, outside of the derivative, so
    # that the gradients of all devices are summed.
    return leaf if leaf.dtype == jnp.bool_ else varying_like(given, leaf)


def choose(
    cell: Cell,
    loop: Loop,
    arguments: tuple,
    device: Device | str,
    by_name: bool,
    arrays: Any = None,
) -> Launch | str:
    """The launch for what :func:`run_persistent` would be given, or why the scan runs.

    ``arguments`` may be shapes, those of ``arrays``.

    Raises:
        ValueError: it was asked for by name and cannot run.
    """
    weights = arguments[0]
    if weights.context is not None:
        return refused(READS_CONTEXT, by_name)
    if cell.plain_step is not None:
        return refused("the cell gives plain_step, which cannot be taken apart", by_name)
    if weights.w_hh is None:
        return refused("the cell has no recurrent weights", by_name)
    if weights.w_hh.ndim != 2:
        return refused("its recurrent weights are blocks of a matrix", by_name)
    found = plan(problem_of(cell, loop, *arguments, arrays=arrays), device, by_itself=not by_name)
    # No steps are run as well by the scan, whatever was asked for.
    return refused(found, by_name) if isinstance(found, str) and found != NO_STEP else found


def refused(reason: str, by_name: bool) -> str:
    """``reason``, why the scan runs.

    Raises:
        ValueError: the kernel was asked for by name.
    """
    if by_name:
        raise ValueError(
            f"implementation must be one that can run here, got 'persistent': {reason}"
        )
    return reason


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


def is_forward_mode(tree: Any) -> bool:
    """Whether ``jax.jvp`` is the innermost transformation of one of these arrays.

    JAX tells that from ``jax.grad`` by the type alone. Where a ``jax.jit`` or ``jax.vmap`` lies
    between, it cannot be seen.
    """
    return any(type(leaf).__name__ == "JVPTracer" for leaf in jax.tree.leaves(tree))


def explain_forward_mode(error: Exception, tree: Any) -> None:
    """Say what to do where forward mode goes through a kernel, which JAX refuses.

    Raises:
        TypeError: ``error`` is JAX's refusal, and a kernel may have run on the arrays of ``tree``.
    """
    if "forward-mode" in str(error) and not isinstance(find_device(tree), str):
        raise TypeError(
            "forward mode (jax.jvp, jax.jacfwd) needs implementation='scan': a persistent kernel "
            "has reverse mode alone"
        ) from error


def find_device(tree: Any, xs: Any = ()) -> Device | str:
    """The GPU that a call on these arrays is for, or why it is none for these kernels.

    ``xs`` are its inputs, [..., T, D] a leaf: how they are divided among devices counts. Where all
    are traced, that is the device that JAX computes on unless told otherwise.
    """
    placed = placed_array(tree)
    devices = [_device.default_device()] if placed is None else placed.devices()
    device = min(devices, key=lambda device: device.id)
    return _device.with_share(_device.describe_gpu(device), tree, xs)
