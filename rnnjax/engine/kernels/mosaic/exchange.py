"""What the CTAs of a tile give each other at every step, and the product that they take of it."""

# What Pallas Mosaic GPU offers is not all declared as it is used.
# pyright: reportCallIssue=false, reportArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from rnnjax.engine.kernels._launch import Launch
from rnnjax.engine.kernels._tiles import ROWS, UNITS, Product
from rnnjax.engine.kernels.mosaic.tiles import F32, in_tile, swizzle_of, tiled


class Exchange(NamedTuple):
    """What the CTAs of a tile give each other at every step, and what they make of it.

    Attributes:
        launch, product: sizes.
        sent: global memory [T, tiles, parts pieces, depth, columns].
        weights, ring, bars: of the product, in shared memory.
        counter: of this tile: how many CTAs have sent how often.
        tile, group: this CTA.
    """

    launch: Launch
    product: Product
    sent: Any
    weights: Any
    ring: Any
    bars: Any
    counter: Any
    tile: Any
    group: Any

    def send(self, t: Any, buffer: Any, blocks: Sequence[Any]) -> None:
        """Give the others this CTA's rows of step ``t``, a [UNITS, width] block for each gate."""
        tiling, product = self.launch.tiling, self.product
        unit = self.group * UNITS
        piece = lax.div(unit, product.depth)
        row = pl.multiple_of(lax.rem(unit, product.depth), UNITS)
        # The copies of the step before must have read the buffer before it is written again.
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        # ``left`` is what the parts so far have not said: the first part is the number rounded to
        # 16 bits, the second what the rounding took away.
        for k, left in enumerate(in_tile(blocks)):
            for part in range(tiling.parts):
                rounded = left.astype(tiling.dtype)
                buffer[k * tiling.parts + part] = rounded
                if part + 1 < tiling.parts:
                    left = left - rounded.astype(F32)
        plgpu.commit_smem()
        for k in range(len(blocks)):
            for part in range(tiling.parts):
                columns = pl.ds(k * tiling.width, tiling.width)
                target = self.sent.at[
                    t, self.tile, part * product.pieces + piece, pl.ds(row, UNITS), columns
                ]
                plgpu.copy_smem_to_gmem(buffer.at[k * tiling.parts + part], target)
        plgpu.wait_smem_to_gmem(0)
        plgpu.semaphore_signal(self.counter, 1, memory_scope="gpu")

    def multiply(self, t: Any, times: Any, result: Any) -> None:
        """Wait until all have sent ``times`` times, and multiply the weights by step ``t``."""
        # Not decremented: a counter that only grows needs no second barrier to be set back.
        everyone = self.launch.tiling.groups
        plgpu.semaphore_wait(self.counter, everyone * times, decrement=False, memory_scope="gpu")
        # Both parts of a piece one after the other, so that each finds the weights of its piece.
        order = [
            (part, piece)
            for piece in range(self.product.pieces)
            for part in range(self.launch.tiling.parts)
        ]
        slots = self.product.slots * self.launch.tiling.parts

        def fetch(k: int) -> None:
            part, piece = order[k]
            source = self.sent.at[t, self.tile, part * self.product.pieces + piece]
            axes = {"collective_axes": "member"} if self.product.paired else {}
            target, bar = self.ring.at[k % slots], self.bars.at[k % slots]
            plgpu.copy_gmem_to_smem(source, target, bar, **axes)

        for k in range(slots):  # as much as there is room for is on its way at once
            fetch(k)

        def accumulate(sums: Any) -> Array:
            for k, (part, piece) in enumerate(order):
                plgpu.barrier_wait(self.bars.at[k % slots])
                # The product of the two small parts is left out: it is smaller than what the
                # split rounds off.
                for other in range(self.launch.tiling.parts - part):
                    weights = self.weights.at[other * self.product.pieces + piece]
                    plgpu.wgmma(sums, weights, self.ring.at[k % slots])
                if k + slots < len(order):
                    plgpu.wgmma_wait(0)
                    plgpu.commit_smem()  # a barrier: all warps are done with the slot
                    fetch(k + slots)
            return plgpu.wgmma_accumulator_load(sums)

        result[...] = pl.run_scoped(accumulate, plgpu.ACC((ROWS, self.product.columns), F32))
        plgpu.commit_smem()  # a barrier: each warp reads what others wrote


def product_scratch(launch: Launch, product: Product) -> dict[str, Any]:
    tiling, swizzle = launch.tiling, swizzle_of(product.columns)
    parts, slots = tiling.parts, product.slots * tiling.parts
    blocks = product.columns // tiling.width
    return {
        "weights": plgpu.SMEM(
            (parts * product.pieces, ROWS, product.depth), tiling.dtype, transforms=tiled(swizzle)
        ),
        "ring": plgpu.SMEM(
            (slots, product.depth, product.columns), tiling.dtype, transforms=tiled(swizzle)
        ),
        "result": plgpu.SMEM((ROWS, product.columns), F32),
        "buffer": plgpu.SMEM((blocks * parts, UNITS, tiling.width), tiling.dtype),
        "once": plgpu.Barrier(num_arrivals=parts * product.pieces),
        "ring_bars": plgpu.Barrier(num_barriers=slots),
    }
