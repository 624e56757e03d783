"""The kernel that is the derivative of a loop over time."""

# What Pallas Mosaic GPU offers is not all declared as it is used.
# pyright: reportCallIssue=false, reportArgumentType=false, reportPrivateImportUsage=false

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from rnnjax.engine.kernels._launch import BackwardArrays, BackwardResults, Launch
from rnnjax.engine.kernels._steps import Kept, backward_step, through_hidden
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
    zero_tile,
)


def backward(launch: Launch, arrays: BackwardArrays) -> BackwardResults:
    """The derivative of the loop: backwards through its steps."""
    tiling, product, pieces = launch.tiling, launch.backward, launch.steps.pieces
    time, carries, moving = tiling.time, pieces.carries, len(pieces.moving)
    inputs = launching.given_arrays(arrays)
    shape = jax.ShapeDtypeStruct
    lead = (time, tiling.tiles, tiling.groups)
    rows = (tiling.parts * product.pieces, product.depth, product.columns)
    resets, noisy = "reset" in launch.flags, "noise" in inputs
    per_tile = {
        "d_start": carries,
        "d_par": launch.params,
        "d_reset_carry": carries * resets,
        "d_noise": int(noisy),
    }
    results = {"d_gates": shape((time, tiling.tiles, *rows), tiling.dtype)}
    if moving:
        results["d_read_alone"] = shape((*lead, moving * UNITS, tiling.width), F32)
    for name, count in per_tile.items():
        if count:
            results[name] = shape((*lead[1:], count * UNITS, tiling.width), F32)
    by_step = [name for name in ("kept", "read_alone", "d_ys", "flags") if name in inputs]
    starts = [name for name in ("d_last", "noise") if name in inputs]
    scratch = product_scratch(launch, product) | tiles_scratch(launch, launch.backward_scratch())
    scratch["start_bar"] = plgpu.Barrier(num_arrivals=len(starts))
    scratch["par_bar"] = plgpu.Barrier()
    scratch["step_bars"] = plgpu.Barrier(num_arrivals=len(by_step), num_barriers=2)

    def body(refs: dict) -> None:
        group = launching.this_group(product)
        launching.load_once(launch, product, refs, group)
        par, units = launching.load_params(launch, refs)
        zero = zero_tile(launch)
        counters = pl.get_global(plgpu.SemaphoreType.REGULAR((tiling.tiles,)))

        def fetch(i: Any, tile: Any) -> None:
            t, slot = launch.at(time - 1 - i), lax.rem(i, 2)
            for name in by_step:
                source = refs[name].at[t, tile]
                source = source if name == "flags" else source.at[group]
                target = refs[f"{name}_s"].at[slot]
                plgpu.copy_gmem_to_smem(source, target, refs["step_bars"].at[slot])

        def from_product() -> Array:
            """The blocks of the result whose gates in rows and columns are the same."""
            blocks = [
                load_tile(refs["result"].at[unit_rows(k), pl.ds(k * tiling.width, tiling.width)])
                for k in range(tiling.gates)
            ]
            return sum(blocks[1:], start=blocks[0])

        def run_tile(tile: Any) -> None:
            exchange = Exchange(
                launch, product, refs["d_gates"], refs["weights"], refs["ring"],
                refs["ring_bars"], counters.at[tile], tile, group,
            )  # fmt: skip
            for name in starts:
                source = refs[name].at[tile, group]
                plgpu.copy_gmem_to_smem(source, refs[f"{name}_s"], refs["start_bar"])
            fetch(jnp.int32(0), tile)
            plgpu.barrier_wait(refs["start_bar"])
            noise = load_tile(refs["noise_s"].at[unit_rows(0)]) if noisy else None

            def step(i: Any, state: Any) -> Any:
                d_carry, d_par, d_reset_carry, d_noise = state
                t, slot = launch.at(time - 1 - i), lax.rem(i, 2)

                @pl.when(i + 1 < time)
                def _() -> None:
                    fetch(i + 1, tile)

                plgpu.barrier_wait(refs["step_bars"].at[slot])
                kept = load_all(refs["kept_s"].at[slot], launch.kept) if launch.kept else []
                read_alone = (
                    load_all(refs["read_alone_s"].at[slot], launch.read_alone)
                    if launch.read_alone
                    else []
                )
                d_outs = load_all(refs["d_ys_s"].at[slot], launch.outputs)
                flags = launching.load_flags(launch, refs, slot)
                kept = Kept(kept, read_alone)
                done = backward_step(
                    launch.steps, par, kept, d_carry, d_outs[: pieces.outputs],
                    d_outs[pieces.outputs :], flags, units,
                )  # fmt: skip
                padding = [zero] * (tiling.gate_blocks - tiling.gates)
                exchange.send(t, refs["buffer"], [*done.d_gates, *padding])
                if moving:
                    store_all(refs["d_read_alone_s"], done.d_read_alone)
                    plgpu.commit_smem()
                    plgpu.copy_smem_to_gmem(
                        refs["d_read_alone_s"], refs["d_read_alone"].at[t, tile, group]
                    )
                exchange.multiply(t, i + 1, refs["result"])
                d_carry, d_here = through_hidden(
                    launch.steps, kept, done.d_carry, from_product(), noise
                )
                add = lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True))  # noqa: E731
                d_noise = add(d_noise, [d_here]) if noisy else d_noise
                return (
                    tuple(in_tile(d_carry)),
                    add(d_par, done.d_par),
                    add(d_reset_carry, done.d_reset_carry),
                    d_noise,
                )

            d_last = tuple(load_all(refs["d_last_s"], carries))
            nothing = [(zero,) * per_tile[name] for name in ("d_par", "d_reset_carry", "d_noise")]
            sums = lax.fori_loop(0, time, step, (d_last, *nothing))
            for name, values in zip(per_tile, sums, strict=True):
                if not values:
                    continue
                plgpu.wait_smem_to_gmem(0)
                store_all(refs["sums_s"], values)
                plgpu.commit_smem()
                source = refs["sums_s"].at[unit_rows(0, len(values))]
                plgpu.copy_smem_to_gmem(source, refs[name].at[tile, group])
            plgpu.wait_smem_to_gmem(0)

        launching.run_all_tiles(launch, run_tile)

    found = launching.call_kernel(launch, product.paired, body, inputs, results, scratch)
    return BackwardResults(**{name: found.get(name) for name in BackwardResults._fields})
