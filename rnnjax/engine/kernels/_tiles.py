"""How a loop is cut into tiles, whether a device can hold it, and arrays as the kernels take them.

The batch is cut into tiles of ``width`` sequences, the hidden units into groups of ``UNITS``. A
CTA (a block of threads on one processor of the GPU) runs one group of one tile over all steps.
Arrays by rows, [T, B, k, H], are what the rest of the library has. The kernels take them by
tiles, [T, tiles, groups, k UNITS, width]: what a CTA reads at one step lies in one piece.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from rnnjax.engine.kernels._device import Device

UNITS = 16  # hidden units of a CTA
ROWS = 64  # of a tensor core's product: the units of a CTA for up to four gates
MOST_GATES = ROWS // UNITS
WIDTHS = (16, 32, 64)  # sequences of a tile; four gates of 64 are the widest product there is
DEPTHS = (256, 128, 64)  # units that are multiplied together
# Barriers, and what the compiler aligns and takes for itself.
RESERVED_BYTES = 6 * 1024


class TooLargeError(ValueError):
    """Why a device has no room for a loop."""


class Product(NamedTuple):
    """A product with the recurrent weights, in pieces of ``depth`` units.

    Attributes:
        depth: units multiplied together; a divisor of the padded size.
        pieces: how many of them there are.
        columns: of what the weights multiply, of one tile.
        slots: pieces of it that are in shared memory at once, for each 16-bit part of a number.
        paired: two CTAs, neighbours on the device, read each piece from the L2 cache once for both.
    """

    depth: int
    pieces: int
    columns: int
    slots: int
    paired: bool = False


class Tiling(NamedTuple):
    """Sizes of a loop in tiles.

    Attributes:
        time, batch, size: T, B and H.
        gates: G.
        width: sequences of a tile.
        tiles: of the batch, padded so that every round has as many.
        rounds: tiles that a CTA runs one after the other.
        groups: of units, padded.
        parts: 16-bit numbers that a number is multiplied as: 2 for float32, else 1.
        dtype: of those.
    """

    time: int
    batch: int
    size: int
    gates: int
    width: int
    tiles: int
    rounds: int
    groups: int
    parts: int
    dtype: Any

    @property
    def at_once(self) -> int:
        """Tiles that run at the same time."""
        return self.tiles // self.rounds

    @property
    def padded_size(self) -> int:
        """H with the units that pad the last product."""
        return self.groups * UNITS

    def describe(self) -> str:
        """How it is cut, in words."""
        rounds = f" in {self.rounds} rounds" if self.rounds > 1 else ""
        tiles = "1 tile" if self.tiles == 1 else f"{self.tiles} tiles"
        return (
            f"{tiles} of {self.width} sequences{rounds}, each on {self.groups} "
            f"processors with {UNITS} units"
        )

    @property
    def gate_blocks(self) -> int:
        """Gates in the columns of a backward product: the tensor core takes 1, 2 or 4 alike."""
        return 1 if self.gates == 1 else 2 if self.gates == 2 else 4


def tilings(
    device: Device, time: int, batch: int, size: int, gates: int, parts: int, dtype: Any
) -> list[Tiling]:
    """Ways to cut a loop, the best first: few rounds, then narrow tiles.

    Raises:
        TooLargeError: one tile alone needs more processors than the device has.
    """
    # Up to a multiple of ROWS: a piece of a product is at least 64 units deep (DEPTHS).
    groups = math.ceil(size / ROWS) * (ROWS // UNITS)
    if groups > device.room:
        shared = f" for one of {device.shares} that may run at once" if device.shares > 1 else ""
        raise TooLargeError(
            f"{size} hidden units take {groups} processors at once, and the device has "
            f"{device.room}{shared}"
        )
    most = device.room // groups
    ways = []
    for width in WIDTHS:
        # Rounds of equally many tiles, so that every CTA has work in each of them.
        needed = math.ceil(batch / width)
        rounds = math.ceil(needed / most)
        tiles = math.ceil(needed / rounds) * rounds
        ways.append(Tiling(time, batch, size, gates, width, tiles, rounds, groups, parts, dtype))
    return sorted(ways, key=lambda way: (way.rounds, way.width))


def plan_product(device: Device, tiling: Tiling, columns: int, other_bytes: int) -> Product:
    """How a CTA multiplies its weights, which stay in shared memory, by ``columns``.

    Raises:
        TooLargeError: the weights and two pieces of what they multiply do not fit beside
            ``other_bytes``.
    """
    weights = tiling.parts * tiling.padded_size * ROWS * 2  # bytes: 2 for a 16-bit number
    left = device.shared_memory - RESERVED_BYTES - weights - other_bytes
    # The deepest pieces that fit: each is a copy and a wait. Two at least, so that one is on its
    # way while the other is multiplied.
    for depth in DEPTHS:
        if tiling.padded_size % depth:
            continue
        pieces = tiling.padded_size // depth
        slots = min(pieces, left // (tiling.parts * depth * columns * 2))
        if slots >= min(2, pieces):
            # Two neighbours read a piece together where no slot is filled twice in a step: neither
            # then writes into what the other still reads.
            return Product(depth, pieces, columns, slots, paired=slots == pieces)
    raise TooLargeError(
        f"its share of the recurrent weights ({weights} bytes) and the arrays of a step "
        f"({other_bytes} bytes) do not fit into {device.shared_memory} bytes of shared memory"
    )


# ---- arrays by rows and by tiles ---------------------------------------------------------------


def _pad(a: Array, sizes: dict[int, int]) -> Array:
    """``a`` with zeros behind, up to ``sizes`` by axis."""
    widths = [(0, 0)] * a.ndim
    for axis, size in sizes.items():
        widths[axis] = (0, size - a.shape[axis])
    return jnp.pad(a, widths) if any(after for _, after in widths) else a


def to_tiles(tiling: Tiling, a: Array) -> Array:
    """[T, B, k, H] -> [T, tiles, groups, k UNITS, width]."""
    t, tiles, width, groups = a.shape[0], tiling.tiles, tiling.width, tiling.groups
    a = _pad(a, {1: tiles * width, 3: tiling.padded_size})
    # Sequences last: in a register tile a thread holds neighbours along the batch, and a copy of
    # one CTA's part of a step is one stretch of memory.
    a = a.reshape(t, tiles, width, a.shape[2], groups, UNITS).transpose(0, 1, 4, 3, 5, 2)
    return a.reshape(t, tiles, groups, -1, width)


def from_tiles(tiling: Tiling, a: Array) -> Array:
    """[T, tiles, groups, k UNITS, width] -> [T, B, k, H]."""
    t, tiles, groups, _, width = a.shape
    a = a.reshape(t, tiles, groups, -1, UNITS, width).transpose(0, 1, 5, 3, 2, 4)
    a = a.reshape(t, tiles * width, -1, groups * UNITS)
    return a[:, : tiling.batch, :, : tiling.size]


def flags_to_tiles(tiling: Tiling, flags: Array) -> Array:
    """[T, B, k] -> [T, tiles, k UNITS, width], the same for every unit; padding is 0."""
    flags = _pad(flags.astype(jnp.float32), {1: tiling.tiles * tiling.width})
    t, _, count = flags.shape
    flags = flags.reshape(t, tiling.tiles, tiling.width, count, 1).transpose(0, 1, 3, 4, 2)
    flags = jnp.broadcast_to(flags, (*flags.shape[:3], UNITS, tiling.width))
    return flags.reshape(t, tiling.tiles, count * UNITS, tiling.width)


def params_to_tiles(tiling: Tiling, params: Array) -> Array:
    """[k, H] -> [groups, k UNITS, width], the same for every sequence; padding is 0."""
    params = _pad(params, {1: tiling.padded_size})
    params = params.reshape(-1, tiling.groups, UNITS).transpose(1, 0, 2)
    params = params.reshape(tiling.groups, -1, 1)
    return jnp.broadcast_to(params, (*params.shape[:2], tiling.width))


def split_parts(a: Array, parts: int, dtype: Any) -> Array:
    """``a`` as a sum of 16-bit arrays, on a new first axis: each is what those before it lack."""
    about, pieces = jnp.finfo(dtype), []
    for _ in range(parts):
        # Not by a cast there and back: XLA takes the liberty to leave such a pair out.
        rounded = lax.reduce_precision(a, about.nexp, about.nmant) if parts > 1 else a
        pieces.append(rounded.astype(dtype))
        a = a - rounded
    return jnp.stack(pieces)


def forward_weights(tiling: Tiling, product: Product, w: Any) -> Array:
    """[H, G H] -> [groups, parts pieces, ROWS, depth]: W^T, its rows (gate, unit) of a group."""
    w = _padded_weights(tiling, w)
    w = w.reshape(tiling.parts, product.pieces, product.depth, tiling.gates, tiling.groups, UNITS)
    return _rows_of_weights(tiling, w.transpose(4, 0, 1, 3, 5, 2))


def backward_weights(tiling: Tiling, product: Product, w: Array) -> Array:
    """[H, G H] -> [groups, parts pieces, ROWS, depth]: W by gate, its rows (gate, unit)."""
    w = _padded_weights(tiling, w)
    w = w.reshape(tiling.parts, tiling.groups, UNITS, tiling.gates, product.pieces, product.depth)
    return _rows_of_weights(tiling, w.transpose(1, 0, 4, 3, 2, 5))


def _padded_weights(tiling: Tiling, w: Array) -> Array:
    w = w.reshape(w.shape[0], tiling.gates, tiling.size)
    w = _pad(w, {0: tiling.padded_size, 2: tiling.padded_size})
    return split_parts(w, tiling.parts, tiling.dtype)


def _rows_of_weights(tiling: Tiling, w: Array) -> Array:
    groups, parts, pieces, gates, _, depth = w.shape
    w = w.reshape(groups, parts * pieces, gates * UNITS, depth)
    return _pad(w, {2: ROWS})


def from_product(tiling: Tiling, a: Array) -> Array:
    """[T, tiles, parts pieces, depth, k width] -> [parts, T, B, k, H]: what a product reads."""
    t, tiles, parts, columns = *a.shape[:2], tiling.parts, a.shape[-1]
    a = a.reshape(t, tiles, parts, tiling.padded_size, columns // tiling.width, tiling.width)
    a = a.transpose(2, 0, 1, 5, 4, 3)
    a = a.reshape(parts, t, tiles * tiling.width, -1, tiling.padded_size)
    return a[:, :, : tiling.batch, :, : tiling.size]
