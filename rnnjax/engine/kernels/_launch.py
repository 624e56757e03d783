"""What a launch of the kernels is made of: sizes, functions, and the arrays that go in and out."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from rnnjax.engine.kernels._device import Device
from rnnjax.engine.kernels._pieces import Pieces
from rnnjax.engine.kernels._tile_functions import TileFunctions, make_tile_functions
from rnnjax.engine.kernels._tiles import (
    MOST_GATES,
    ROWS,
    UNITS,
    Product,
    Tiling,
    TooLargeError,
    plan_product,
    tilings,
)

ALIGNMENT = 1024  # of every array in shared memory


class LoopOptions(NamedTuple):
    """What a call of the loop has beside its cell.

    Attributes:
        reverse: from the last step to the first.
        all_carries: the carry after every step is an output, too.
        masked: some steps are padding.
        resets: the carry begins anew before some steps.
        noisy: the hidden state is multiplied by noise.
    """

    reverse: bool
    all_carries: bool
    masked: bool
    resets: bool
    noisy: bool


class Launch(NamedTuple):
    """One loop, ready for a device.

    Attributes:
        tiling: its sizes.
        steps: its functions, for tiles.
        options: what the call has.
        approximate: sigmoid, tanh, exp, log, sin, cos and square roots are the processor's own,
            with an error of 5e-4 of sigmoid and tanh; else they are exact to float32.
        forward, backward: the products.
    """

    tiling: Tiling
    steps: TileFunctions
    options: LoopOptions
    approximate: bool
    forward: Product = Product(0, 0, 0, 0)
    backward: Product = Product(0, 0, 0, 0)

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags of a step that there are, in their order."""
        return ("valid",) * self.options.masked + ("reset",) * self.options.resets

    @property
    def all_carries(self) -> bool:
        return self.options.all_carries

    @property
    def outputs(self) -> int:
        """Arrays that a step gives."""
        pieces = self.steps.pieces
        return pieces.outputs + pieces.carries * self.options.all_carries

    @property
    def kept(self) -> int:
        """Arrays of a step kept for the derivative."""
        return len(self.steps.entered) + len(self.steps.sums) + len(self.steps.h_alone)

    @property
    def read_alone(self) -> int:
        """Leaves of ``x_proj`` that the derivative reads again."""
        return len(self.steps.read_alone)

    @property
    def params(self) -> int:
        """Parameters that ``update`` reads."""
        return len(self.steps.pieces.reads)

    @property
    def pads_units(self) -> bool:
        return self.tiling.padded_size > self.tiling.size

    def at(self, i: Any) -> Any:
        """The place in time of step ``i`` of the run."""
        return self.tiling.time - 1 - i if self.options.reverse else i

    def forward_scratch(self, save: bool) -> dict[str, tuple[int, ...]]:
        """Tiles in shared memory beside the product's, by name; (2, k) are filled by turns."""
        pieces = self.steps.pieces
        return {
            "x_s": (2, pieces.inputs),
            "flags_s": (2, len(self.flags)),
            "par_s": (self.params + self.pads_units,),
            "start_s": (pieces.carries,),
            "reset_carry_s": (pieces.carries * self.options.resets,),
            "noise_s": (int(self.options.noisy),),
            "ys_s": (self.outputs,),
            "kept_s": (self.kept * save,),
        }

    def backward_scratch(self) -> dict[str, tuple[int, ...]]:
        """The same for the derivative."""
        pieces = self.steps.pieces
        return {
            "kept_s": (2, self.kept),
            "read_alone_s": (2, self.read_alone),
            "d_ys_s": (2, self.outputs),
            "flags_s": (2, len(self.flags)),
            "par_s": (self.params + self.pads_units,),
            "d_last_s": (pieces.carries,),
            "noise_s": (int(self.options.noisy),),
            "d_read_alone_s": (len(pieces.moving),),
            "sums_s": (max(pieces.carries, self.params, 1),),
        }


def make_launch(
    device: Device, pieces: Pieces, options: LoopOptions, time: int, batch: int, w_dtype: Any
) -> Launch:
    """Lay a loop out for ``device``.

    Raises:
        TooLargeError: it has no room for it.
        NotPointwiseError: the cell's functions are none that the kernels know.
    """
    if pieces.gates > MOST_GATES:
        raise TooLargeError(f"it takes up to {MOST_GATES} gates, and the cell has {pieces.gates}")
    # A tensor core multiplies 16-bit numbers: a float32 is taken as the sum of two bfloat16, which
    # hold 16 of its 24 bits and its whole range; float16 would overflow.
    exact = jnp.dtype(w_dtype) == jnp.float32
    parts, dtype = (2, jnp.bfloat16) if exact else (1, jnp.dtype(w_dtype))
    for tiling in (ways := tilings(device, time, batch, pieces.size, pieces.gates, parts, dtype)):
        steps = make_tile_functions(pieces, (UNITS, tiling.width), options.noisy, not exact)
        try:
            return _planned(device, Launch(tiling, steps, options, not exact))
        except TooLargeError:
            # The next way may have narrower tiles, which take less shared memory.
            if tiling is ways[-1]:
                raise
    raise AssertionError("unreachable: there is always one way to cut a loop")


def _planned(device: Device, launch: Launch) -> Launch:
    tiling = launch.tiling
    columns = tiling.gate_blocks * tiling.width
    forward = _bytes(launch, tiling.width, launch.forward_scratch(save=True))
    backward = _bytes(launch, columns, launch.backward_scratch())
    return launch._replace(
        forward=plan_product(device, tiling, tiling.width, forward),
        backward=plan_product(device, tiling, columns, backward),
    )


def _bytes(launch: Launch, columns: int, scratch: dict[str, tuple[int, ...]]) -> int:
    """Shared memory of all but the weights and what is multiplied by them."""
    tiling = launch.tiling
    # 4 bytes a number of what is pointwise; then the product's result, and its 16-bit operand of
    # this CTA, which is sent to the others.
    sizes = [math.prod(count) * UNITS * tiling.width * 4 for count in scratch.values()]
    sizes += [ROWS * columns * 4, columns * UNITS * tiling.parts * 2]
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)


class ForwardArrays(NamedTuple):
    """What the forward kernel takes; None where there is none.

    ``x`` [T, tiles, groups, leaves UNITS, width], ``w`` [groups, parts pieces, ROWS, depth],
    ``par`` [groups, k UNITS, width], the others [tiles, groups, k UNITS, width] but for
    ``flags`` [T, tiles, k UNITS, width].
    """

    x: Any
    w: Any
    par: Any
    start: Any
    reset_carry: Any
    noise: Any
    flags: Any


class ForwardResults(NamedTuple):
    """``h`` [T, tiles, parts pieces, depth, width], ``ys`` and ``kept`` like ``x``, ``last``."""

    h: Any
    ys: Any
    last: Any
    kept: Any


class BackwardArrays(NamedTuple):
    """What the backward kernel takes, laid out in the same way."""

    w: Any
    kept: Any
    read_alone: Any
    d_ys: Any
    flags: Any
    par: Any
    d_last: Any
    noise: Any


class BackwardResults(NamedTuple):
    """``d_gates`` [T, tiles, parts pieces, depth, columns], the others like their primals."""

    d_gates: Any
    d_read_alone: Any
    d_start: Any
    d_par: Any
    d_reset_carry: Any
    d_noise: Any


class Kernels(NamedTuple):
    """What runs a launch: the kernels, or in the tests the same steps in plain JAX."""

    forward: Callable
    backward: Callable
