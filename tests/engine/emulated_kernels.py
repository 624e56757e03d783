"""The kernels of ``rnnjax.engine.kernels`` in plain JAX: the same steps on the same tiles.

What is left out is what only a GPU has: the order in which its processors write and read, and its
own sigmoid and tanh. Products are of the same 16-bit parts, summed in float32.
"""

import jax
import jax.numpy as jnp
from jax import lax

from rnnjax._numerics import varying_like
from rnnjax.engine.kernels._device import Device
from rnnjax.engine.kernels._launch import BackwardResults, ForwardResults, Kernels
from rnnjax.engine.kernels._steps import (
    Flags,
    Kept,
    backward_step,
    forward_step,
    hidden_units,
    through_hidden,
)
from rnnjax.engine.kernels._tiles import UNITS

H100 = Device("NVIDIA H100 80GB HBM3", "9.0", 132, 232_448)


def _cut(a, axis):
    """A stack of tiles as a list of them."""
    if a is None:
        return []
    return jnp.split(a, a.shape[axis] // UNITS, axis=axis)


def _send(launch, product, blocks):
    """[tiles, groups, UNITS, width] blocks -> [tiles, parts pieces, depth, columns], 16 bits."""
    tiling, parts = launch.tiling, []
    left = jnp.concatenate(blocks, axis=-1)
    left = left.reshape(tiling.tiles, tiling.padded_size, -1)
    for _ in range(tiling.parts):
        parts.append(left.astype(tiling.dtype))
        left = left - parts[-1].astype(jnp.float32)
    sent = jnp.stack(parts, axis=1)
    return sent.reshape(tiling.tiles, tiling.parts * product.pieces, product.depth, -1)


def _multiply(launch, product, w, sent):
    """-> [tiles, groups, ROWS, columns]"""
    parts, pieces = launch.tiling.parts, product.pieces
    w, sent = w.astype(jnp.float32), sent.astype(jnp.float32)
    total = 0
    for piece in range(pieces):
        for part in range(parts):
            for other in range(parts - part):
                total += jnp.einsum(
                    "grk,bkn->bgrn",
                    w[:, other * pieces + piece],
                    sent[:, part * pieces + piece],
                    precision="highest",
                )
    return total


def _flags(launch, flags):
    """Flags of a step, [tiles, 1, UNITS, width] spread over the groups."""
    found = dict(zip(launch.flags, _cut(flags, -2), strict=True))
    spread = {
        name: jnp.broadcast_to(a[:, None] > 0.5, (len(a), launch.tiling.groups, *a.shape[1:]))
        for name, a in found.items()
    }
    return Flags(spread.get("valid"), spread.get("reset"))


def _params(launch, par):
    """Parameters for all tiles, and which units are no padding."""
    tiling = launch.tiling
    par = [jnp.broadcast_to(a[None], (tiling.tiles, *a.shape)) for a in _cut(par, -2)]
    units = par.pop() > 0.5 if launch.pads_units else None
    return par, units


def _on_tiles(function):
    return jax.vmap(jax.vmap(function))


def _in_run_order(launch, tree):
    return jax.tree.map(lambda a: a[::-1], tree) if launch.options.reverse else tree


def forward(launch, arrays, save):
    tiling, product, steps = launch.tiling, launch.forward, launch.steps
    par, units = _params(launch, arrays.par)
    reset_carry = _cut(arrays.reset_carry, -2)
    noise = arrays.noise

    def step(carry, at):
        x, flags = at
        h = _on_tiles(lambda *a: hidden_units(steps, *a))(carry, noise, units)
        sent = _send(launch, product, [h])
        result = _multiply(launch, product, arrays.w, sent)
        hs = _cut(result, -2)[: tiling.gates]

        def one(*args):
            return forward_step(steps, *args)

        done = _on_tiles(one)(par, reset_carry, carry, _cut(x, -2), hs, _flags(launch, flags))
        ys = [*done.ys, *(done.carry_out if launch.all_carries else [])]
        kept = jnp.concatenate(done.kept, axis=-2) if done.kept and save else None
        return done.next_carry, (sent, jnp.concatenate(ys, axis=-2), kept)

    steps_in = _in_run_order(launch, (arrays.x, arrays.flags))
    last, outs = lax.scan(step, _cut(arrays.start, -2), steps_in)
    h, ys, kept = _in_run_order(launch, outs)
    return ForwardResults(h, ys, jnp.concatenate(last, axis=-2), kept)


def backward(launch, arrays):
    tiling, product, steps = launch.tiling, launch.backward, launch.steps
    pieces, width = steps.pieces, tiling.width
    par, units = _params(launch, arrays.par)
    noise = arrays.noise
    zero = jnp.zeros((tiling.tiles, tiling.groups, UNITS, width))

    def step(state, at):
        d_carry, d_par, d_reset_carry, d_noise = state
        kept, read_alone, d_ys, flags = at
        kept = Kept(_cut(kept, -2), _cut(read_alone, -2))
        outs = _cut(d_ys, -2)

        def one(*args):
            return backward_step(steps, *args)

        done = _on_tiles(one)(
            par, kept, d_carry, outs[: pieces.outputs], outs[pieces.outputs :],
            _flags(launch, flags), units,
        )  # fmt: skip
        padding = [zero] * (tiling.gate_blocks - tiling.gates)
        sent = _send(launch, product, [*done.d_gates, *padding])
        result = _multiply(launch, product, arrays.w, sent)
        d_h = sum(
            result[..., k * UNITS : (k + 1) * UNITS, k * width : (k + 1) * width]
            for k in range(tiling.gates)
        )
        d_carry, d_here = _on_tiles(lambda *a: through_hidden(steps, *a))(
            kept, done.d_carry, d_h, noise
        )
        add = lambda a, b: [x + y for x, y in zip(a, b, strict=True)]  # noqa: E731
        state = (
            d_carry,
            add(d_par, done.d_par),
            add(d_reset_carry, done.d_reset_carry),
            d_noise if noise is None else d_noise + d_here,
        )
        d_read_alone = jnp.concatenate(done.d_read_alone, axis=-2) if done.d_read_alone else None
        return state, (sent, d_read_alone)

    resets = "reset" in launch.flags
    state = (
        _cut(arrays.d_last, -2),
        [zero] * launch.params,
        [zero] * (pieces.carries * resets),
        None if noise is None else zero,
    )
    state = varying_like(arrays, state)
    steps_in = _in_run_order(launch, (arrays.kept, arrays.read_alone, arrays.d_ys, arrays.flags))
    state, outs = lax.scan(step, state, steps_in, reverse=True)
    d_gates, d_read_alone = _in_run_order(launch, outs)
    stack = lambda a: jnp.concatenate(a, axis=-2) if a else None  # noqa: E731
    d_start, d_par, d_reset_carry, d_noise = state
    return BackwardResults(
        d_gates, d_read_alone, stack(d_start), stack(d_par), stack(d_reset_carry), d_noise
    )


KERNELS = Kernels(forward, backward)
