"""Tiles of numbers in registers and in shared memory."""

# What Pallas Mosaic GPU offers is not all declared as it is used.
# pyright: reportCallIssue=false, reportArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from rnnjax.engine.kernels._launch import Launch
from rnnjax.engine.kernels._tiles import UNITS

F32 = jnp.float32
# [16, 16] over the 128 threads of a CTA: a warp has 4 rows, a thread 2 neighbours of one.
TILE = plgpu.Layout.TILED(
    plgpu.Tiling(((16, 16), (4, 16), (2,))), warp_dims=(-5,), lane_dims=(-3, -2), vector_dim=-1
)


def swizzle_of(columns: int) -> int:
    return plgpu.find_swizzle(min(columns, 64) * 16)


def tiled(swizzle: int) -> tuple:
    """How 16-bit operands of a product lie in shared memory."""
    return (plgpu.TilingTransform((8, swizzle * 8 // 16)), plgpu.SwizzleTransform(swizzle))


def unit_rows(k: Any, count: int = 1) -> Any:
    return pl.ds(k * UNITS, count * UNITS)


def load_tile(ref: Any) -> Array:
    return plgpu.load(ref, layout=TILE, optimized=False)


def load_all(ref: Any, count: int) -> list:
    return [load_tile(ref.at[unit_rows(k)]) for k in range(count)]


def in_tile(values: Sequence) -> list:
    """``values`` in the layout of tiles: one that is the same number everywhere has none yet."""
    return [plgpu.layout_cast(value, TILE) for value in values]


def store_all(ref: Any, values: Sequence) -> None:
    for k, value in enumerate(in_tile(values)):
        ref[unit_rows(k)] = value


def zero_tile(launch: Launch) -> Array:
    return plgpu.layout_cast(jnp.full((UNITS, launch.tiling.width), 0, F32), TILE)


def tiles_scratch(launch: Launch, counts: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Shared memory for stacks of tiles: of ``(k,)`` or, to be filled by turns, ``(2, k)``."""
    return {
        name: plgpu.SMEM((*count[:-1], count[-1] * UNITS, launch.tiling.width), F32)
        for name, count in counts.items()
        if count[-1]
    }
