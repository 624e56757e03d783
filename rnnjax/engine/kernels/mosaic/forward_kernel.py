"""The kernel that runs a loop over time."""

# What Pallas Mosaic GPU offers is not all declared as it is used.
# pyright: reportCallIssue=false, reportArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from rnnjax.engine.kernels._launch import ForwardArrays, ForwardResults, Launch
from rnnjax.engine.kernels._steps import forward_step, hidden_units
from rnnjax.engine.kernels._tiles import UNITS
from rnnjax.engine.kernels.mosaic import launching
from rnnjax.engine.kernels.mosaic.exchange import Exchange, product_scratch
from rnnjax.engine.kernels.mosaic.tiles import (
    F32,
    in_tile,
    load_all,
    load_tile,
    store_all,
    tiles_scratch,
    unit_rows,
)


def forward(launch: Launch, arrays: ForwardArrays, save: bool) -> ForwardResults:
    """The loop over time; with ``save`` also what its derivative needs."""
    tiling, product, pieces = launch.tiling, launch.forward, launch.steps.pieces
    time = tiling.time
    inputs = launching.given_arrays(arrays)
    shape = jax.ShapeDtypeStruct
    lead = (time, tiling.tiles, tiling.groups)
    rows = (tiling.parts * product.pieces, product.depth, product.columns)
    results = {
        "h": shape((time, tiling.tiles, *rows), tiling.dtype),
        "ys": shape((*lead, launch.outputs * UNITS, tiling.width), F32),
        "last": shape((*lead[1:], pieces.carries * UNITS, tiling.width), F32),
    }
    if save and launch.kept:
        results["kept"] = shape((*lead, launch.kept * UNITS, tiling.width), F32)
    starts = [name for name in ("start", "reset_carry", "noise") if name in inputs]
    scratch = product_scratch(launch, product) | tiles_scratch(launch, launch.forward_scratch(save))
    scratch["start_bar"] = plgpu.Barrier(num_arrivals=len(starts))
    scratch["par_bar"] = plgpu.Barrier()
    scratch["step_bars"] = plgpu.Barrier(num_arrivals=1 + bool(launch.flags), num_barriers=2)

    def body(refs: dict) -> None:
        group = launching.this_group(product)
        launching.load_once(launch, product, refs, group)
        par, units = launching.load_params(launch, refs)
        counters = pl.get_global(plgpu.SemaphoreType.REGULAR((tiling.tiles,)))

        def fetch(i: Any, tile: Any) -> None:
            t, slot = launch.at(i), lax.rem(i, 2)
            bar = refs["step_bars"].at[slot]
            plgpu.copy_gmem_to_smem(refs["x"].at[t, tile, group], refs["x_s"].at[slot], bar)
            if launch.flags:
                plgpu.copy_gmem_to_smem(refs["flags"].at[t, tile], refs["flags_s"].at[slot], bar)

        def run_tile(tile: Any) -> None:
            exchange = Exchange(
                launch, product, refs["h"], refs["weights"], refs["ring"], refs["ring_bars"],
                counters.at[tile], tile, group,
            )  # fmt: skip
            for name in starts:
                source = refs[name].at[tile, group]
                plgpu.copy_gmem_to_smem(source, refs[f"{name}_s"], refs["start_bar"])
            fetch(jnp.int32(0), tile)
            plgpu.barrier_wait(refs["start_bar"])
            start = load_all(refs["start_s"], pieces.carries)
            reset_carry = (
                load_all(refs["reset_carry_s"], pieces.carries) if "reset_carry" in refs else []
            )
            noise = load_tile(refs["noise_s"].at[unit_rows(0)]) if "noise" in refs else None

            def send(i: Any, carry: Sequence) -> None:
                h = hidden_units(launch.steps, carry, noise, units)
                exchange.send(launch.at(i), refs["buffer"], [h])

            def step(i: Any, carry: Any) -> Any:
                t, slot = launch.at(i), lax.rem(i, 2)

                @pl.when(i + 1 < time)
                def _() -> None:
                    fetch(i + 1, tile)

                plgpu.barrier_wait(refs["step_bars"].at[slot])
                xs = load_all(refs["x_s"].at[slot], pieces.inputs)
                flags = launching.load_flags(launch, refs, slot)
                exchange.multiply(t, i + 1, refs["result"])
                hs = load_all(refs["result"], pieces.gates)
                done = forward_step(launch.steps, par, reset_carry, carry, xs, hs, flags)

                # Before the outputs are stored: the other CTAs wait for h, nobody for the outputs.
                @pl.when(i + 1 < time)
                def _() -> None:
                    send(i + 1, done.next_carry)

                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                store_all(refs["ys_s"], [*done.ys, *(done.carry_out if launch.all_carries else [])])
                if "kept" in refs:
                    store_all(refs["kept_s"], done.kept)
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(refs["ys_s"], refs["ys"].at[t, tile, group])
                if "kept" in refs:
                    plgpu.copy_smem_to_gmem(refs["kept_s"], refs["kept"].at[t, tile, group])
                return tuple(in_tile(done.next_carry))

            send(jnp.int32(0), start)
            last = lax.fori_loop(0, time, step, tuple(start))
            plgpu.wait_smem_to_gmem(0)
            store_all(refs["start_s"], last)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(refs["start_s"], refs["last"].at[tile, group])
            plgpu.wait_smem_to_gmem(0)

        launching.run_all_tiles(launch, run_tile)

    found = launching.call_kernel(launch, product.paired, body, inputs, results, scratch)
    return ForwardResults(found["h"], found["ys"], found["last"], found.get("kept"))
