"""The kernels of ``rnnjax.engine.kernels`` themselves, run on a CPU by the interpreter of Pallas.

    python tests/engine/interpreted_kernels.py "16 bits" rounds      these rows, or all

They give the numbers of the same steps in plain JAX (``emulated_kernels.py``), which
``test_kernels.py`` and ``test_kernels_law.py`` hold to the scan and to a loop in float64.

It runs the CTAs of a cluster side by side, one thread each, with their barriers, their copies and
their shared memory, and watches who reads and writes what: two accesses that nothing orders are an
error, and so is reading what nobody has written. Clusters come one after the other, and it knows no
counters in global memory. So here all CTAs of a tile are one cluster, and its barriers stand in for
the counter: a CTA arrives where it would raise the counter, and waits where it would wait for it.

Two things that it leaves out are put in here: that a product reads its operands
(``_watched_product``), and that each CTA of a pair copies one half to both (``_copy_for_a_pair``).

Not seen here: the counter itself, how numbers lie in registers, what the warps of one CTA do to
each other, a product that is not waited for, and the processor's own sigmoid and tanh.
"""

import contextlib
import dataclasses
import functools
import sys

import jax
import pytest
from emulated_kernels import H100
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks
from jax._src.pallas.mosaic_gpu.interpret.jaxpr_interpret import JaxprInterpreter
from jax._src.pallas.mosaic_gpu.interpret.shared_memory import HostAllocationKey
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from test_kernels import ALL, CELLS, PLAIN, assert_close, emulated, problem, values_and_gradients

from rnnjax.engine.kernels import _differentiable, persistent

# Room for the weights, but not for all that they multiply: a slot of the ring is filled again.
SMALL = H100._replace(shared_memory=47_000)
FEW = H100._replace(processors=4)
ROWS = {
    "16 bits": ("lstm", 3, 18, 20, PLAIN, {"dtype": "bfloat16"}, H100),
    "32 bits, all options": ("own", 3, 18, 20, ALL, {"flags": True, "noise": True}, H100),
    "resets, pieces read alone": ("gru", 3, 4, 20, PLAIN, {"flags": True}, H100),
    "rounds": ("vanilla", 2, 70, 20, ALL, {"flags": True}, FEW),
    "pieces in pairs": ("gru", 2, 16, 192, ALL, {"flags": True}, H100),
    "a ring": ("vanilla", 2, 16, 192, PLAIN, {"dtype": "float16"}, SMALL),
}
# A sum in another order, as other processors take it, may turn the last bit of what is sent: of the
# 11 bits of float16, the 8 of bfloat16, or 16 where float32 is sent as two numbers of bfloat16. If
# all were turned, results would differ by a unit of it; half a unit is allowed.
TOLERANCE = {"float32": 2**-17, "bfloat16": 2**-9, "float16": 2**-12}


class _Counters:
    """In the place of the counters, which nothing here reads."""

    @property
    def at(self):
        return self

    def __getitem__(self, index):
        return self


def _key(array):
    return HostAllocationKey.from_array(array)


def _access(memory, key, transforms):
    transforms = gpu_callbacks._remove_noop_transforms(transforms)
    return memory.access(key, jax.tree.map(int, transforms))


_product = gpu_callbacks.wgmma


@gpu_callbacks.fail_on_exception
def _watched_product(*, thread, source_info=None, **given):
    """A product, which reads its operands as copies do: what threads wrote must be committed."""
    memory = gpu_callbacks._get_shared_memory()
    clock = memory.incr_clock(thread)
    clock.inc(memory.get_next_tma_thread_id())
    for name in ("a", "b"):
        key = _key(given[f"{name}_allocation_key_as_array"])
        access = _access(memory, key, given[f"{name}_transforms"])
        gpu_callbacks.get_races().check_read(
            thread, clock.async_smem_clock.copy(), key, access, source_info=source_info
        )
    with memory.lock:
        memory.clocks[thread].update(clock)
    return _product(thread=thread, source_info=source_info, **given)


@gpu_callbacks.fail_on_exception
def _copy_for_a_pair(
    *, token, mesh_location, thread, src_allocation_key_as_array, src_transforms,
    dst_allocation_key_as_array, dst_transforms, barrier_allocation_key_as_array, source_info=None,
):  # fmt: skip
    """This CTA's half of what it and its neighbour copy, to both."""
    memory = gpu_callbacks._get_shared_memory()
    clock = memory.incr_clock(thread)
    source, target = _key(src_allocation_key_as_array), _key(dst_allocation_key_as_array)
    barrier = _key(barrier_allocation_key_as_array)

    def half(key, transforms):
        access = _access(memory, key, transforms)
        axis = next(k for k, part in enumerate(access.range) if isinstance(part, slice))
        whole = access.range[axis]
        size = (whole.stop - whole.start) // 2
        first = whole.start + mesh_location.block_coords[-1] * size
        parts = (*access.range[:axis], slice(first, first + size, 1), *access.range[axis + 1 :])
        return dataclasses.replace(access, range=parts)

    for block in (thread.block_id, thread.block_id ^ 1):
        copy = gpu_callbacks.AsyncCopyGmemToSmemTask(
            mesh_location=mesh_location,
            thread=thread,
            src_allocation_key=source,
            src_access=half(source, src_transforms),
            dst_allocation_key=dataclasses.replace(target, block_id=block),
            dst_access=half(target, dst_transforms),
            barrier_allocation_key=dataclasses.replace(barrier, block_id=block),
            source_info=source_info,
            clock=clock.copy(),
        )
        memory.execute_async_task(copy)
    return token


_interpret_copy = JaxprInterpreter._interpret_copy_gmem_to_smem_p


def _copy_alone_or_for_a_pair(self, eqn, *args):
    with pytest.MonkeyPatch.context() as patch:
        if eqn.params["collective_axes"]:
            patch.setattr(gpu_callbacks, "copy_gmem_to_smem", _copy_for_a_pair)
        return _interpret_copy(self, eqn, *args)


@contextlib.contextmanager
def interpreted(wait=plgpu.barrier_wait):
    """Kernels traced inside are interpreted; ``wait`` waits until all CTAs of a tile have sent."""
    barriers = []
    started = plgpu.kernel

    def kernel(body, *, scratch_types, grid, grid_names, cluster=(), cluster_names=(), **others):
        # (tiles, groups) or (tiles, pairs) of members: all but the tiles become the cluster.
        axes = (*grid_names[1:], *cluster_names)
        meeting = {f"all_{axis}": plgpu.ClusterBarrier(collective_axes=(axis,)) for axis in axes}
        if cluster:  # a piece has come when both halves have
            ring = scratch_types["ring_bars"]
            scratch_types |= {"ring_bars": dataclasses.replace(ring, num_arrivals=2)}

        def with_barriers(*refs, **scratch):
            barriers[:] = [scratch.pop(name) for name in meeting]
            body(*refs, **scratch)

        return started(
            with_barriers,
            scratch_types=scratch_types | meeting,
            grid=grid[:1],
            grid_names=grid_names[:1],
            cluster=(*grid[1:], *cluster),
            cluster_names=axes,
            interpret=plgpu.InterpretGPUParams(detect_races=True, num_tma_threads_per_device=64),
            **others,
        )

    def signal(counter, count, *, memory_scope):
        del counter, count, memory_scope
        plgpu.barrier_arrive(barriers[0])

    def wait_for_all(counter, count, *, decrement, memory_scope):
        del counter, count, decrement, memory_scope
        wait(barriers[0])
        # A barrier is one of the CTAs along one axis: those along the next meet after it.
        for barrier in barriers[1:]:
            plgpu.barrier_arrive(barrier)
            wait(barrier)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_callbacks, "wgmma", _watched_product)
        patch.setattr(JaxprInterpreter, "_interpret_copy_gmem_to_smem_p", _copy_alone_or_for_a_pair)
        patch.setattr(plgpu, "kernel", kernel)
        patch.setattr(plgpu, "semaphore_signal", signal)
        patch.setattr(plgpu, "semaphore_wait", wait_for_all)
        patch.setattr(pl, "get_global", lambda what: _Counters())
        # The interpreter calls Python in order; what XLA divides among devices may not.
        patch.setattr(_differentiable, "on_each_device", lambda function, axes: function)
        yield


def check(row, wait=plgpu.barrier_wait):
    """The kernels of one row beside the same steps in plain JAX."""
    name, time, batch, size, loop, options, device = ROWS[row]
    cell = CELLS[name](size)
    args = problem(cell, time, batch, size, **options)
    launch = persistent._launch(persistent.problem_of(cell, loop, *args), device)
    assert (launch.tiling.rounds > 1) == (row == "rounds")
    assert (launch.forward.slots < launch.forward.pieces) == (row == "a ring")
    run = functools.partial(persistent.run_persistent, cell, loop, device=device)
    with interpreted(wait):
        given = values_and_gradients(run, args)
    expected = values_and_gradients(emulated(cell, loop, device), args)
    assert_close(given, expected, TOLERANCE[options.get("dtype", "float32")])


if __name__ == "__main__":
    for row in sys.argv[1:] or ROWS:
        check(row)
        print(row, flush=True)
