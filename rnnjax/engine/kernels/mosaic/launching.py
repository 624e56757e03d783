"""Starting a kernel on all CTAs, and what each of them reads before the loop and at every step."""

# What Pallas Mosaic GPU offers is not all declared as it is used.
# pyright: reportCallIssue=false, reportArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array, lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from rnnjax.engine.kernels._launch import Launch
from rnnjax.engine.kernels._steps import Flags
from rnnjax.engine.kernels._tiles import Product
from rnnjax.engine.kernels.mosaic.tiles import load_all, load_tile, unit_rows

PAIR = 2  # CTAs that read from the L2 cache together; any two neighbours can be on the device


def this_group(product: Product) -> Any:
    """The group of units of this CTA."""
    if product.paired:
        return lax.axis_index("pair") * PAIR + lax.axis_index("member")
    return lax.axis_index("group")


def run_all_tiles(launch: Launch, run_tile: Callable) -> None:
    """Run this CTA's tile of every round."""
    tiling = launch.tiling
    if tiling.rounds == 1:
        run_tile(lax.axis_index("tile"))
        return

    def one_round(k: Any, carry: Any) -> Any:
        run_tile(lax.axis_index("tile") + k * tiling.at_once)
        return carry

    lax.fori_loop(0, tiling.rounds, one_round, None)


def call_kernel(
    launch: Launch, paired: bool, body: Callable, arrays: dict, results: dict, scratch: dict
) -> dict:
    tiling = launch.tiling

    def with_names(*refs: Any, **others: Any) -> None:
        body(dict(zip([*arrays, *results], refs, strict=True)) | others)

    kernel = plgpu.kernel(
        with_names,
        out_type=list(results.values()),
        scratch_types=scratch,
        grid=(tiling.at_once, tiling.groups // PAIR) if paired else (tiling.at_once, tiling.groups),
        grid_names=("tile", "pair") if paired else ("tile", "group"),
        **({"cluster": (PAIR,), "cluster_names": ("member",)} if paired else {}),
        compiler_params=plgpu.CompilerParams(
            approx_math=launch.approximate, unsafe_no_auto_barriers=True
        ),
    )
    # Counts of steps and places are then integers of 32 bits, which is what the compiler takes.
    with jax.enable_x64(False):
        return dict(zip(results, kernel(*arrays.values()), strict=True))


def given_arrays(arrays: NamedTuple) -> dict[str, Array]:
    return {name: a for name, a in arrays._asdict().items() if a is not None}


def load_flags(launch: Launch, refs: dict, slot: Any) -> Flags:
    # Flags come as 0 and 1 in float32, laid out as everything else is.
    where = {name: k for k, name in enumerate(launch.flags)}

    def flag(name: str) -> Any:
        return (
            load_tile(refs["flags_s"].at[slot, unit_rows(where[name])]) > 0.5
            if name in where
            else None
        )

    return Flags(flag("valid"), flag("reset"))


def load_params(launch: Launch, refs: dict) -> tuple[list, Any]:
    """The parameters that ``update`` reads, and the units that are no padding."""
    par = load_all(refs["par_s"], launch.params) if launch.params else []
    units = (
        load_tile(refs["par_s"].at[unit_rows(launch.params)]) > 0.5 if launch.pads_units else None
    )
    return par, units


def load_once(launch: Launch, product: Product, refs: dict, group: Any) -> None:
    """The weights and parameters of this CTA, which stay for all steps and tiles."""
    for k in range(launch.tiling.parts * product.pieces):
        plgpu.copy_gmem_to_smem(refs["w"].at[group, k], refs["weights"].at[k], refs["once"])
    plgpu.barrier_wait(refs["once"])
    if "par" in refs:
        plgpu.copy_gmem_to_smem(refs["par"].at[group], refs["par_s"], refs["par_bar"])
        plgpu.barrier_wait(refs["par_bar"])
