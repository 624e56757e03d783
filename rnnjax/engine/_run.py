"""One call as its plan says: all steps at once, or chunk after chunk of them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax._devices import with_automatic_axes
from rnnjax._native import jit
from rnnjax.base import Carry, Cell
from rnnjax.engine import _associative, _chunked, _loop
from rnnjax.engine._accumulation import cell_reading_wide, in_dtypes_of, in_sum_dtypes
from rnnjax.engine._arguments import check_outputs
from rnnjax.engine._plan import Plan, Request, make_plan, size_of, with_choice
from rnnjax.engine._prepare import (
    Call,
    Prepared,
    StepInputs,
    batch_first,
    prepare,
    project,
    unflatten,
)
from rnnjax.engine._step import Loop, scan
from rnnjax.engine.kernels import persistent


class Static(NamedTuple):
    """What is fixed when a call is compiled, beside the cell.

    Attributes:
        reverse: run backwards in time.
        all_carries: give the carry after every step, too.
        include_initial: and the one before the first.
        request: how the caller wants it run.
        platform: of the devices of the arrays.
        device: the GPU that the persistent kernel would run on, or why it does not.
        mapped: how many such calls ``jax.vmap`` makes one.
    """

    reverse: bool
    all_carries: bool
    include_initial: bool
    request: Request
    platform: str
    device: persistent.Device | str
    mapped: int = 1


# The one program of a call. Cell and options are compared by value, so that a cell built anew from
# equal arguments finds the program that is there.
@functools.partial(jit, static=2)
def run_call(cell: Cell, static: Static, call: Call) -> tuple[Carry, Any]:
    """``(carry, ys)`` of one call, as one compiled program."""
    batch, _ = call.sizes()
    first = jax.tree.leaves(call.xs)[0]
    # On a mesh of Explicit axes, JAX would want to be told how each result inside is divided.
    whole = functools.partial(_run_call, cell, static)
    return with_automatic_axes(whole, call, first, len(batch))


def _run_call(cell: Cell, static: Static, call: Call) -> tuple[Carry, Any]:
    request = with_choice(cell, static.request, static.all_carries, call.sizes()[1])
    static = static._replace(request=request)
    plan = make_plan(request, size_of(cell, call.params, call.xs, static.mapped), static.platform)
    loop = Loop(static.reverse, plan.scan_unroll, static.all_carries, plan.packed)
    prepared = prepare(cell, loop.reverse, call)
    final, ys = _run_plan(cell, loop, _implementation(static, plan), plan, call, prepared)
    check_outputs(cell, ys[0] if loop.all_carries else ys)
    if static.include_initial:
        ys = (ys[0], _with_initial(loop, prepared.carry, ys[1]))
    batch, _ = call.sizes()
    return unflatten(batch, final), batch_first(batch, ys)


def _implementation(static: Static, plan: Plan) -> Callable:
    """What runs the loop: of the scan and the persistent kernel, the arrays decide in the end."""
    if plan.implementation == "associative":
        return _associative.run_associative
    if plan.implementation == "chunked":
        return _chunked.run_chunk
    if static.request.implementation == "scan":
        return _loop.run_scan
    by_name = static.request.implementation == "persistent"
    # An ensemble would run member after member in the kernel, and in the scan all at once.
    if static.mapped > 1 and not by_name:
        return _loop.run_scan
    return functools.partial(persistent.run_chosen, by_name, static.device)


def kernel_for(
    cell: Cell, static: Static, call: Call, chunk: int | None
) -> persistent.Launch | str:
    """The persistent kernel for ``chunk`` steps of a call, or why there is none.

    Shapes are enough of a call. None are all steps.
    """
    by_name = static.request.implementation == "persistent"
    if isinstance(static.device, str) and not by_name:
        return static.device
    if cell.context is not None:
        return persistent.refused(persistent.READS_CONTEXT, by_name)

    def arguments(call: Call) -> tuple[Any, Any, Any]:
        prepared = prepare(cell, static.reverse, call)
        steps = jax.tree.map(lambda a: a[:chunk], prepared.steps)
        weights, inputs = project(cell, call.params, prepared, steps)
        return weights._replace(params=in_sum_dtypes(call.params)), prepared.carry, inputs

    loop = Loop(static.reverse, 1, static.all_carries)
    inner = cell_reading_wide(cell, call.params)
    shapes = jax.eval_shape(arguments, call)
    return persistent.choose(inner, loop, shapes, static.device, by_name, call)


def _run_plan(
    cell: Cell, loop: Loop, run: Callable, plan: Plan, call: Call, prepared: Prepared
) -> tuple[Carry, Any]:
    params = call.params
    inner, wide = cell_reading_wide(cell, params), in_sum_dtypes(params)

    def some_steps(wide: Any, prepared: Prepared, carry: Carry, some: StepInputs) -> Any:
        weights, inputs = project(cell, in_dtypes_of(wide, params), prepared, some)
        return run(inner, loop, weights._replace(params=wide), carry, inputs)

    # The parameters are given wide, and cast where they are read: see ``_accumulation``.
    # The steps of all chunks, and the noise of all steps, are read chunk by chunk.
    constant = prepared._replace(steps=None, noise=prepared.noise._replace(steps=()))
    inside, outside = some_steps, some_steps
    if plan.recompute:
        # Inside a loop nothing could be shared with the first run anyway. Outside of one, XLA would
        # find both runs equal and keep what was to be computed again: a barrier keeps them apart.
        inside = jax.checkpoint(some_steps, prevent_cse=False)
        outside = jax.checkpoint(some_steps, prevent_cse=True)
    in_loop = functools.partial(inside, wide, constant)
    alone = functools.partial(outside, wide, constant)
    if plan.chunk is None or plan.chunk >= call.sizes()[1]:
        return alone(prepared.carry, prepared.steps)
    return _in_chunks(in_loop, alone, loop.reverse, plan.chunk, prepared)


def _in_chunks(
    in_loop: Callable, alone: Callable, reverse: bool, chunk: int, prepared: Prepared
) -> tuple[Carry, Any]:
    """Run ``chunk`` steps at a time, fewer than there are, and those left over by themselves."""
    carry, steps = prepared.carry, prepared.steps
    time = jax.tree.leaves(steps.xs)[0].shape[0]
    # The chunks are scanned over, so they must have one length; what is left over runs outside.
    whole = time - time % chunk
    chunks = jax.tree.map(lambda a: a[:whole].reshape(whole // chunk, chunk, *a.shape[1:]), steps)
    rest = jax.tree.map(lambda a: a[whole:], steps)
    results = []
    # Backwards in time the steps left over come first, since they are at the end of time.
    if reverse and whole < time:
        carry, ys = alone(carry, rest)
        results.append(ys)
    carry, ys = scan(Loop(reverse), in_loop, carry, chunks)
    results.append(jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), ys))
    if not reverse and whole < time:
        carry, ys = alone(carry, rest)
        results.append(ys)
    if reverse:
        results.reverse()
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *results)


def _with_initial(loop: Loop, initial: Carry, carries: Carry) -> Carry:
    def join(start: Array, rest: Array) -> Array:
        parts = [rest, start[None]] if loop.reverse else [start[None], rest]
        return jnp.concatenate(parts)

    return jax.tree.map(join, initial, carries)
