"""The kernels on arrays by rows, as the rest of the library has them: to tiles, and back."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from rnnjax._devices import may_merge_axes
from rnnjax._numerics import varying_like
from rnnjax.engine._step import Inputs, Weights
from rnnjax.engine.kernels import _tiles
from rnnjax.engine.kernels._launch import BackwardArrays, ForwardArrays, Kernels, Launch
from rnnjax.engine.kernels._row_axes import ARGUMENTS, SAVED, RowAxes


def _flag_tiles(launch: Launch, inputs: Inputs) -> Array | None:
    flags = []
    if inputs.valid is not None:
        flags.append(inputs.valid)
    if inputs.resets is not None:
        flags.append(_before_next(launch, inputs.resets))
    return _tiles.flags_to_tiles(launch.tiling, jnp.stack(flags, axis=2)) if flags else None


def _before_next(launch: Launch, resets: Array) -> Array:
    """Whether the carry begins anew before the step that comes after each."""
    none = jnp.zeros_like(resets[:1])
    if launch.options.reverse:
        return jnp.concatenate([none, resets[:-1]])
    return jnp.concatenate([resets[1:], none])


def _first_reset(launch: Launch, resets: Array) -> Array:
    return resets[-1 if launch.options.reverse else 0][:, None]


def _stack(launch: Launch, leaves: list, axis: int) -> Array | None:
    """Leaves [..., B, H] as tiles of a stack of them."""
    if not leaves:
        return None
    stacked = jnp.stack([a.astype(jnp.float32) for a in leaves], axis=axis)
    if axis == 1:
        return _tiles.to_tiles(launch.tiling, stacked[None])[0]
    return _tiles.to_tiles(launch.tiling, stacked)


def _param_tiles(launch: Launch, params: Any) -> Array | None:
    size = launch.tiling.size
    leaves = jax.tree.leaves(params)
    rows = [leaves[k].astype(jnp.float32) for k in launch.steps.pieces.reads]
    rows = [jnp.broadcast_to(a, (size,)) if a.ndim == 0 else a for a in rows]
    if launch.pads_units:
        rows.append(jnp.ones((size,), jnp.float32))
    return _tiles.params_to_tiles(launch.tiling, jnp.stack(rows)) if rows else None


def _unstack(a: Array, axis: int) -> list:
    return [lax.index_in_dim(a, k, axis, keepdims=False) for k in range(a.shape[axis])]


def run_forward(
    launch: Launch,
    kernels: Kernels,
    weights: Weights,
    carry: Any,
    inputs: Inputs,
    *,
    save: bool = True,
) -> tuple[Any, Any]:
    """``((carry, ys), saved)`` by rows; saved are h [parts, T, B, 1, H] and kept [T, B, k, H]."""
    tiling, pieces = launch.tiling, launch.steps.pieces
    start, reset_carry = jax.tree.leaves(carry), jax.tree.leaves(weights.reset_carry)
    if inputs.resets is not None:
        first = _first_reset(launch, inputs.resets)
        start = [jnp.where(first, f, c) for f, c in zip(reset_carry, start, strict=True)]
    noise = weights.hidden_noise
    arrays = ForwardArrays(
        _stack(launch, jax.tree.leaves(inputs.x_projs), 2),
        _tiles.forward_weights(tiling, launch.forward, weights.w_hh),
        _param_tiles(launch, weights.params),
        _stack(launch, start, 1),
        _stack(launch, reset_carry, 1) if inputs.resets is not None else None,
        None if noise is None else _stack(launch, [noise], 1),
        _flag_tiles(launch, inputs),
    )
    found = varying_like(arrays, kernels.forward(launch, arrays, save))
    tree = jax.tree.structure(carry)
    last = _unstack(_tiles.from_tiles(tiling, found.last[None])[0], 1)
    outputs = _unstack(_tiles.from_tiles(tiling, found.ys), 2)
    ys = [a.astype(dtype) for a, dtype in zip(outputs, pieces.output_dtypes, strict=False)]
    ys = jax.tree.unflatten(pieces.output_tree, ys)
    if launch.all_carries:
        ys = (ys, jax.tree.unflatten(tree, outputs[pieces.outputs :]))
    kept = None if found.kept is None else _tiles.from_tiles(tiling, found.kept)
    saved = (_tiles.from_product(tiling, found.h), kept)
    return (jax.tree.unflatten(tree, last), ys), saved


class BackwardRows(NamedTuple):
    """What the backward kernel gives, by rows; ``d_par`` of each sequence."""

    d_gates: Any  # [parts, T, B, G, H]
    d_read_alone: Any  # [T, B, k, H]
    d_start: Any  # [B, C, H]
    d_par: Any  # [B, k, H]
    d_reset_carry: Any
    d_noise: Any


FORWARD_AXES = RowAxes(ARGUMENTS, ((0, 1), SAVED))
BACKWARD_AXES = RowAxes((ARGUMENTS, SAVED, (0, 1)), BackwardRows(2, 1, 0, 0, 0, 0))


def run_backward(
    launch: Launch, kernels: Kernels, args: tuple, saved: tuple, cotangents: tuple
) -> BackwardRows:
    weights, _, inputs = args
    d_last, d_ys = cotangents
    tiling, noise = launch.tiling, weights.hidden_noise
    leaves = jax.tree.leaves(inputs.x_projs)
    arrays = BackwardArrays(
        _tiles.backward_weights(tiling, launch.backward, weights.w_hh),
        None if saved[1] is None else _tiles.to_tiles(tiling, saved[1]),
        _stack(launch, [leaves[k] for k in launch.steps.read_alone], 2),
        _stack(launch, jax.tree.leaves(d_ys), 2),
        _flag_tiles(launch, inputs),
        _param_tiles(launch, weights.params),
        _stack(launch, jax.tree.leaves(d_last), 1),
        None if noise is None else _stack(launch, [noise], 1),
    )
    found = varying_like(arrays, kernels.backward(launch, arrays))

    def rows(a: Array | None) -> Array | None:
        return None if a is None else _tiles.from_tiles(tiling, a[None])[0]

    d_gates = _tiles.from_product(tiling, found.d_gates)[:, :, :, : tiling.gates]
    return BackwardRows(
        d_gates,
        None if found.d_read_alone is None else _tiles.from_tiles(tiling, found.d_read_alone),
        *map(rows, (found.d_start, found.d_par, found.d_reset_carry, found.d_noise)),
    )


def cotangents_of(launch: Launch, args: tuple, saved: tuple, rows: BackwardRows) -> list:
    """Cotangents of the leaves of ``args`` that move, in their order."""
    weights, carry, inputs = args
    pieces, parts = launch.steps.pieces, launch.tiling.parts
    d_start = _unstack(rows.d_start, 1)
    d_reset_carry = [jnp.zeros_like(d) for d in d_start]
    if rows.d_reset_carry is not None:
        first = _first_reset(launch, inputs.resets)
        began = [jnp.where(first, d, jnp.zeros_like(d)) for d in d_start]
        d_reset_carry = [a + b for a, b in zip(_unstack(rows.d_reset_carry, 1), began, strict=True)]
        d_start = [jnp.where(first, jnp.zeros_like(d), d) for d in d_start]
    # One axis of steps and rows, but where rows are divided among devices: see may_merge_axes.
    merged = may_merge_axes((args, rows))
    d_gates = functools.reduce(jnp.add, [rows.d_gates[p].astype(jnp.float32) for p in range(parts)])
    by_leaf = dict(enumerate(_cut_gates(d_gates, merged)))
    if rows.d_read_alone is not None:
        by_leaf |= dict(zip(pieces.moving, _unstack(rows.d_read_alone, 2), strict=True))
    leaves = jax.tree.leaves(inputs.x_projs)
    d_x = [by_leaf[k].astype(a.dtype) for k, a in enumerate(leaves) if moves(a)]
    moving = (
        [_weight_gradient(saved[0], rows.d_gates, merged).astype(weights.w_hh.dtype)],
        _params_gradient(launch, weights.params, rows.d_par),
        d_reset_carry,
        [] if rows.d_noise is None else [rows.d_noise[:, 0].astype(weights.hidden_noise.dtype)],
        [d.astype(c.dtype) for d, c in zip(d_start, jax.tree.leaves(carry), strict=True)],
        d_x,
    )
    return [leaf for part in moving for leaf in part]


def _cut_gates(d: Array, merged: bool) -> list[Array]:
    """[T, B, G, H] -> G arrays [T, B, H].

    Cut as ``project`` cuts its product: then XLA joins them to its cotangent without copies, which
    were a quarter of the bytes that a training step moves (compiled for an H100, from 128 units).
    """
    *steps, gates, size = d.shape
    flat = d.reshape(*([math.prod(steps)] if merged else steps), gates * size)
    return [piece.reshape(*steps, size) for piece in jnp.split(flat, gates, axis=-1)]


def _weight_gradient(h: Array, d: Array, merged: bool) -> Array:
    """The sum of ``h_t^T d_t`` over all steps and rows, in products of 16-bit parts.

    ``h`` [parts, T, B, 1, H], ``d`` [parts, T, B, G, H].
    """
    steps = (-1,) if merged else h.shape[1:3]
    h, d = (a.reshape(len(a), *steps, math.prod(a.shape[3:])) for a in (h, d))
    axes = tuple(range(len(steps)))
    # float32 as hi + lo: hi hi + hi lo + lo hi. The fourth, lo lo, is below what the split rounds.
    pairs = [(p, q) for p in range(len(h)) for q in range(len(d)) if p + q < len(h)]
    products = [
        lax.dot_general(h[p], d[q], ((axes, axes), ((), ())), preferred_element_type=jnp.float32)
        for p, q in pairs
    ]
    return sum(products[1:], start=products[0])


def _params_gradient(launch: Launch, params: Any, d_par: Array | None) -> list:
    leaves = jax.tree.leaves(params)
    found = (
        {}
        if d_par is None
        else dict(zip(launch.steps.pieces.reads, jnp.sum(d_par, axis=0), strict=True))
    )
    gradients = []
    for k, leaf in enumerate(leaves):
        if not moves(leaf):
            continue
        if k not in found:
            gradients.append(jnp.zeros_like(leaf))
        else:
            d = found[k] if leaf.ndim else jnp.sum(found[k])
            gradients.append(d.astype(leaf.dtype))
    return gradients


def moves(a: Array) -> bool:
    return jnp.issubdtype(a.dtype, jnp.inexact)
