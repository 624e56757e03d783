"""The two kernels, written for Pallas Mosaic GPU: all that depends on its unstable parts.

Read the picture in :mod:`rnnjax.engine.kernels.persistent` first. What is particular here:

- A product needs 64 rows: the 16 units of a CTA for up to four gates, the rest is padding. Its
  result is stored in shared memory and read back gate by gate as [16, width] in ``TILE``, the one
  layout of registers in which all that is pointwise is done.
- Both operands of a product have the same swizzle, so it follows from the narrower one.
- A copy to global memory must be complete (``wait_smem_to_gmem(0)``), not only read, before the
  counter is raised: that is what makes it visible to the other CTAs.
- The counter starts at 0 at each launch and only grows, so one barrier a step is enough.
- Barriers between the warps of a CTA are our own (``unsafe_no_auto_barriers``). ``commit_smem``,
  ``semaphore_wait`` and ``wait_smem_to_gmem`` each are one. Every array in shared memory that is
  written by threads has one of them between the write and the reads, and between the reads and the
  next write; what a copy fills is waited for by all, and is filled again after such a barrier.
- Two CTAs of a cluster read what they multiply together (``collective_axes``). Any two neighbours
  can be on the device at the same time, so that takes nothing from the count of processors.

What was tried on one H200 (LSTM, bfloat16; training, microseconds a step; the same bits
in all but the last):

| (B, T, D, H) | barriers of Pallas | our own | and in pairs | and 16 bits kept |
|---|---:|---:|---:|---:|
| 64, 128, 256, 256 | 6.07 | 5.78 | 5.72 | 5.63 |
| 32, 512, 512, 512 | 7.00 | 6.72 | 6.69 | 6.64 |
| 16, 1024, 768, 768 | 7.62 | 7.41 | 7.25 | 7.19 |
| 32, 256, 1024, 1024 | 12.25 | 12.08 | 11.51 | 11.52 |
| 128, 256, 1024, 1024 | 47.0 | 46.0 | 43.1 | 43.1 |

The last was left out: it gains next to nothing, and gradients differ by 3e-3 of their norm.
"""

# What Pallas Mosaic GPU offers is not all declared as it is used.
# pyright: reportCallIssue=false, reportArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from rnnjax.engine.kernels._launch import (
    BackwardArrays,
    BackwardResults,
    ForwardArrays,
    ForwardResults,
    Launch,
)
from rnnjax.engine.kernels._steps import (
    Flags,
    Kept,
    backward_step,
    forward_step,
    hidden_units,
    through_hidden,
)
from rnnjax.engine.kernels._tiles import ROWS, UNITS, Product

F32 = jnp.float32
# [16, 16] over the 128 threads of a CTA: a warp has 4 rows, a thread 2 neighbours of one.
TILE = plgpu.Layout.TILED(
    plgpu.Tiling(((16, 16), (4, 16), (2,))), warp_dims=(-5,), lane_dims=(-3, -2), vector_dim=-1
)


def _swizzle(columns: int) -> int:
    return plgpu.find_swizzle(min(columns, 64) * 16)


def _tiled(swizzle: int) -> tuple:
    """How 16-bit operands of a product lie in shared memory."""
    return (plgpu.TilingTransform((8, swizzle * 8 // 16)), plgpu.SwizzleTransform(swizzle))


def _unit_rows(k: Any, count: int = 1) -> Any:
    return pl.ds(k * UNITS, count * UNITS)


def _load_tile(ref: Any) -> Array:
    return plgpu.load(ref, layout=TILE, optimized=False)


def _load_all(ref: Any, count: int, first: int = 0) -> list:
    return [_load_tile(ref.at[_unit_rows(first + k)]) for k in range(count)]


def _in_tile(values: Sequence) -> list:
    """``values`` in the layout of tiles: one that is the same number everywhere has none yet."""
    return [plgpu.layout_cast(value, TILE) for value in values]


def _store_all(ref: Any, values: Sequence) -> None:
    for k, value in enumerate(_in_tile(values)):
        ref[_unit_rows(k)] = value


def _zero_tile(launch: Launch) -> Array:
    return plgpu.layout_cast(jnp.full((UNITS, launch.tiling.width), 0, F32), TILE)


class _Exchange(NamedTuple):
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
        for k, left in enumerate(_in_tile(blocks)):
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


def _product_scratch(launch: Launch, product: Product) -> dict[str, Any]:
    tiling, swizzle = launch.tiling, _swizzle(product.columns)
    parts, slots = tiling.parts, product.slots * tiling.parts
    blocks = product.columns // tiling.width
    return {
        "weights": plgpu.SMEM(
            (parts * product.pieces, ROWS, product.depth), tiling.dtype, transforms=_tiled(swizzle)
        ),
        "ring": plgpu.SMEM(
            (slots, product.depth, product.columns), tiling.dtype, transforms=_tiled(swizzle)
        ),
        "result": plgpu.SMEM((ROWS, product.columns), F32),
        "buffer": plgpu.SMEM((blocks * parts, UNITS, tiling.width), tiling.dtype),
        "once": plgpu.Barrier(num_arrivals=parts * product.pieces),
        "ring_bars": plgpu.Barrier(num_barriers=slots),
    }


def _tiles_scratch(launch: Launch, counts: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Shared memory for stacks of tiles: of ``(k,)`` or, to be filled by turns, ``(2, k)``."""
    return {
        name: plgpu.SMEM((*count[:-1], count[-1] * UNITS, launch.tiling.width), F32)
        for name, count in counts.items()
        if count[-1]
    }


PAIR = 2  # CTAs that read from the L2 cache together; any two neighbours can be on the device


def _group(product: Product) -> Any:
    """The group of units of this CTA."""
    if product.paired:
        return lax.axis_index("pair") * PAIR + lax.axis_index("member")
    return lax.axis_index("group")


def _all_tiles(launch: Launch, run_tile: Callable) -> None:
    """Run this CTA's tile of every round."""
    tiling = launch.tiling
    if tiling.rounds == 1:
        run_tile(lax.axis_index("tile"))
        return

    def one_round(k: Any, carry: Any) -> Any:
        run_tile(lax.axis_index("tile") + k * tiling.at_once)
        return carry

    lax.fori_loop(0, tiling.rounds, one_round, None)


def _call_kernel(
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
            approx_math=launch.quick, unsafe_no_auto_barriers=True
        ),
    )
    return dict(zip(results, kernel(*arrays.values()), strict=True))


def _given(arrays: NamedTuple) -> dict[str, Array]:
    return {name: a for name, a in arrays._asdict().items() if a is not None}


def _flags(launch: Launch, refs: dict, slot: Any) -> Flags:
    # Flags come as 0 and 1 in float32, laid out as everything else is.
    where = {name: k for k, name in enumerate(launch.flags)}

    def flag(name: str) -> Any:
        return (
            _load_tile(refs["flags_s"].at[slot, _unit_rows(where[name])]) > 0.5
            if name in where
            else None
        )

    return Flags(flag("valid"), flag("reset"))


def _params(launch: Launch, refs: dict) -> tuple[list, Any]:
    """The parameters that ``update`` reads, and the units that are no padding."""
    par = _load_all(refs["par_s"], launch.params) if launch.params else []
    units = (
        _load_tile(refs["par_s"].at[_unit_rows(launch.params)]) > 0.5 if launch.pads_units else None
    )
    return par, units


def _load_once(launch: Launch, product: Product, refs: dict, group: Any) -> None:
    """The weights and parameters of this CTA, which stay for all steps and tiles."""
    for k in range(launch.tiling.parts * product.pieces):
        plgpu.copy_gmem_to_smem(refs["w"].at[group, k], refs["weights"].at[k], refs["once"])
    plgpu.barrier_wait(refs["once"])
    if "par" in refs:
        plgpu.copy_gmem_to_smem(refs["par"].at[group], refs["par_s"], refs["par_bar"])
        plgpu.barrier_wait(refs["par_bar"])


def forward(launch: Launch, arrays: ForwardArrays, save: bool) -> ForwardResults:
    """The loop over time; with ``save`` also what its derivative needs."""
    tiling, product, pieces = launch.tiling, launch.forward, launch.steps.pieces
    time = tiling.time
    inputs = _given(arrays)
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
    scratch = _product_scratch(launch, product) | _tiles_scratch(
        launch, launch.forward_scratch(save)
    )
    scratch["start_bar"] = plgpu.Barrier(num_arrivals=len(starts))
    scratch["par_bar"] = plgpu.Barrier()
    scratch["step_bars"] = plgpu.Barrier(num_arrivals=1 + bool(launch.flags), num_barriers=2)

    def body(refs: dict) -> None:
        group = _group(product)
        _load_once(launch, product, refs, group)
        par, units = _params(launch, refs)
        counters = pl.get_global(plgpu.SemaphoreType.REGULAR((tiling.tiles,)))

        def fetch(i: Any, tile: Any) -> None:
            t, slot = launch.at(i), lax.rem(i, 2)
            bar = refs["step_bars"].at[slot]
            plgpu.copy_gmem_to_smem(refs["x"].at[t, tile, group], refs["x_s"].at[slot], bar)
            if launch.flags:
                plgpu.copy_gmem_to_smem(refs["flags"].at[t, tile], refs["flags_s"].at[slot], bar)

        def run_tile(tile: Any) -> None:
            exchange = _Exchange(
                launch, product, refs["h"], refs["weights"], refs["ring"], refs["ring_bars"],
                counters.at[tile], tile, group,
            )  # fmt: skip
            for name in starts:
                source = refs[name].at[tile, group]
                plgpu.copy_gmem_to_smem(source, refs[f"{name}_s"], refs["start_bar"])
            fetch(jnp.int32(0), tile)
            plgpu.barrier_wait(refs["start_bar"])
            start = _load_all(refs["start_s"], pieces.carries)
            reset_carry = (
                _load_all(refs["reset_carry_s"], pieces.carries) if "reset_carry" in refs else []
            )
            noise = _load_tile(refs["noise_s"].at[_unit_rows(0)]) if "noise" in refs else None

            def send(i: Any, carry: Sequence) -> None:
                h = hidden_units(launch.steps, carry, noise, units)
                exchange.send(launch.at(i), refs["buffer"], [h])

            def step(i: Any, carry: Any) -> Any:
                t, slot = launch.at(i), lax.rem(i, 2)

                @pl.when(i + 1 < time)
                def _() -> None:
                    fetch(i + 1, tile)

                plgpu.barrier_wait(refs["step_bars"].at[slot])
                xs = _load_all(refs["x_s"].at[slot], pieces.inputs)
                flags = _flags(launch, refs, slot)
                exchange.multiply(t, i + 1, refs["result"])
                hs = _load_all(refs["result"], pieces.gates)
                done = forward_step(launch.steps, par, reset_carry, carry, xs, hs, flags)

                # Before the outputs are stored: the other CTAs wait for h, nobody for the outputs.
                @pl.when(i + 1 < time)
                def _() -> None:
                    send(i + 1, done.next_carry)

                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                _store_all(
                    refs["ys_s"], [*done.ys, *(done.carry_out if launch.all_carries else [])]
                )
                if "kept" in refs:
                    _store_all(refs["kept_s"], done.kept)
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(refs["ys_s"], refs["ys"].at[t, tile, group])
                if "kept" in refs:
                    plgpu.copy_smem_to_gmem(refs["kept_s"], refs["kept"].at[t, tile, group])
                return tuple(_in_tile(done.next_carry))

            send(jnp.int32(0), start)
            last = lax.fori_loop(0, time, step, tuple(start))
            plgpu.wait_smem_to_gmem(0)
            _store_all(refs["start_s"], last)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(refs["start_s"], refs["last"].at[tile, group])
            plgpu.wait_smem_to_gmem(0)

        _all_tiles(launch, run_tile)

    found = _call_kernel(launch, product.paired, body, inputs, results, scratch)
    return ForwardResults(found["h"], found["ys"], found["last"], found.get("kept"))


def backward(launch: Launch, arrays: BackwardArrays) -> BackwardResults:
    """The derivative of the loop: backwards through its steps."""
    tiling, product, pieces = launch.tiling, launch.backward, launch.steps.pieces
    time, carries, moving = tiling.time, pieces.carries, len(pieces.moving)
    inputs = _given(arrays)
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
    scratch = _product_scratch(launch, product) | _tiles_scratch(launch, launch.backward_scratch())
    scratch["start_bar"] = plgpu.Barrier(num_arrivals=len(starts))
    scratch["par_bar"] = plgpu.Barrier()
    scratch["step_bars"] = plgpu.Barrier(num_arrivals=len(by_step), num_barriers=2)

    def body(refs: dict) -> None:
        group = _group(product)
        _load_once(launch, product, refs, group)
        par, units = _params(launch, refs)
        zero = _zero_tile(launch)
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
                _load_tile(refs["result"].at[_unit_rows(k), pl.ds(k * tiling.width, tiling.width)])
                for k in range(tiling.gates)
            ]
            return sum(blocks[1:], start=blocks[0])

        def run_tile(tile: Any) -> None:
            exchange = _Exchange(
                launch, product, refs["d_gates"], refs["weights"], refs["ring"],
                refs["ring_bars"], counters.at[tile], tile, group,
            )  # fmt: skip
            for name in starts:
                source = refs[name].at[tile, group]
                plgpu.copy_gmem_to_smem(source, refs[f"{name}_s"], refs["start_bar"])
            fetch(jnp.int32(0), tile)
            plgpu.barrier_wait(refs["start_bar"])
            noise = _load_tile(refs["noise_s"].at[_unit_rows(0)]) if noisy else None

            def step(i: Any, state: Any) -> Any:
                d_carry, d_par, d_reset_carry, d_noise = state
                t, slot = launch.at(time - 1 - i), lax.rem(i, 2)

                @pl.when(i + 1 < time)
                def _() -> None:
                    fetch(i + 1, tile)

                plgpu.barrier_wait(refs["step_bars"].at[slot])
                kept = _load_all(refs["kept_s"].at[slot], launch.kept) if launch.kept else []
                read_alone = (
                    _load_all(refs["read_alone_s"].at[slot], launch.read_alone)
                    if launch.read_alone
                    else []
                )
                d_outs = _load_all(refs["d_ys_s"].at[slot], launch.outputs)
                flags = _flags(launch, refs, slot)
                kept = Kept(kept, read_alone)
                done = backward_step(
                    launch.steps, par, kept, d_carry, d_outs[: pieces.outputs],
                    d_outs[pieces.outputs :], flags, units,
                )  # fmt: skip
                padding = [zero] * (tiling.gate_blocks - tiling.gates)
                exchange.send(t, refs["buffer"], [*done.d_gates, *padding])
                if moving:
                    _store_all(refs["d_read_alone_s"], done.d_read_alone)
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
                    tuple(_in_tile(d_carry)),
                    add(d_par, done.d_par),
                    add(d_reset_carry, done.d_reset_carry),
                    d_noise,
                )

            d_last = tuple(_load_all(refs["d_last_s"], carries))
            nothing = [(zero,) * per_tile[name] for name in ("d_par", "d_reset_carry", "d_noise")]
            sums = lax.fori_loop(0, time, step, (d_last, *nothing))
            for name, values in zip(per_tile, sums, strict=True):
                if not values:
                    continue
                plgpu.wait_smem_to_gmem(0)
                _store_all(refs["sums_s"], values)
                plgpu.commit_smem()
                source = refs["sums_s"].at[_unit_rows(0, len(values))]
                plgpu.copy_smem_to_gmem(source, refs[name].at[tile, group])
            plgpu.wait_smem_to_gmem(0)

        _all_tiles(launch, run_tile)

    found = _call_kernel(launch, product.paired, body, inputs, results, scratch)
    return BackwardResults(**{name: found.get(name) for name in BackwardResults._fields})
