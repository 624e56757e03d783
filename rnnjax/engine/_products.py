"""The one product inside the loop over time: the hidden state times the recurrent weights.

The weights are a matrix [P, G*H], or blocks [heads, P/heads, G*H/heads] of a matrix that is zero
outside them: head n multiplies its own part of the hidden state and gives its own part of every
gate. What the product gives is called *packed* here: the columns of all heads on one axis, head
after head. :func:`cut` makes of it one array a gate, in which the heads lie side by side.
"""

import itertools
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from rnnjax._numerics import accumulation_dtype, affine, carry_dtype


def gate_widths(w_hh: Array | None, x_projs: tuple[Any, ...]) -> tuple[int, ...]:
    """The widths of the pieces of ``h @ w_hh``: those of the first pieces of ``x_projs``.

    Raises:
        ValueError: no number of first pieces is as wide as the recurrent weights, or the heads do
            not divide a piece.
    """
    if w_hh is None:
        return ()
    if w_hh.ndim not in (2, 3):
        raise ValueError(
            "a cell's recurrent must give weights [P, G*H] or blocks [heads, P/heads, G*H/heads], "
            f"got shape {w_hh.shape}"
        )
    heads = _heads(w_hh)
    columns = heads * w_hh.shape[-1]
    widths: list[int] = []
    # As many pieces as the columns of the weights are used up by; those behind them (noise, flags,
    # a skip connection) have no part in the product. A piece without a shape is a tree, no gate.
    for x_proj in x_projs:
        if sum(widths) >= columns or not hasattr(x_proj, "shape"):
            break
        widths.append(x_proj.shape[-1])
    if sum(widths) != columns:
        raise ValueError(
            f"a cell's recurrent weights {w_hh.shape} must be as wide as the first pieces of "
            f"project together, got {len(widths)} pieces of widths {widths}"
        )
    if any(width % heads for width in widths):
        raise ValueError(
            f"each gate of a cell with {heads} heads must have a width divisible by {heads}, "
            f"got widths {widths}"
        )
    return tuple(widths)


def _heads(w_hh: Array) -> int:
    return w_hh.shape[0] if w_hh.ndim == 3 else 1


def multiply(h: Array, w_hh: Array) -> Array:
    """``h`` [..., P] times the recurrent weights, packed, in at least float32."""
    if w_hh.ndim == 2:
        return affine(h, w_hh, name="a cell's hidden(carry)")
    return _multiply_blocks(h, w_hh, transposed=False)


def transpose_weights(w_hh: Array) -> Array:
    """The weights of the backward loop: those of :func:`multiply_transposed`."""
    # The last two axes, so that a matrix and blocks of one [heads, P/heads, ...] are alike.
    return jnp.swapaxes(w_hh, -1, -2)


def multiply_transposed(x: Array, w_t: Array) -> Array:
    """``x`` [..., P] times what :func:`transpose_weights` gave, packed.

    Written so that the transposition inside the loop, which is the gradient of this product, reads
    ``w_t`` as it lies: the contraction is over its second axis.
    """
    if w_t.ndim == 3:
        return _multiply_blocks(x, w_t, transposed=True)
    out = accumulation_dtype(w_t.dtype)
    # In value this is ``x @ w``. The backward loop runs its transpose, ``d @ w_t``, which reads the
    # rows of ``w_t`` one after the other; out of ``w`` it would have to read columns.
    axes = (((x.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(x.astype(w_t.dtype), w_t, axes, preferred_element_type=out)


def _multiply_blocks(x: Array, w: Array, *, transposed: bool) -> Array:
    heads, rows = w.shape[0], w.shape[2 if transposed else 1]
    if x.shape[-1] != heads * rows:
        raise ValueError(
            f"a cell's hidden must give {heads * rows} features, as {heads} blocks of recurrent "
            f"weights have rows together, got {x.shape[-1]}"
        )
    x = x.reshape(*x.shape[:-1], heads, rows).astype(w.dtype)
    # One batched product. A loop over the heads would be as many small ones a step.
    out = jnp.einsum(
        "...np,nqp->...nq" if transposed else "...np,npq->...nq",
        x,
        w,
        preferred_element_type=accumulation_dtype(w.dtype),
    )
    return out.reshape(*out.shape[:-2], out.shape[-2] * out.shape[-1])


def cut(packed: Array, w_hh: Array, widths: tuple[int, ...]) -> tuple[Array, ...]:
    """A packed product as one array [..., H] a gate."""
    heads = _heads(w_hh)
    # Each head gives its own part of every gate, so within a head the gates end at a heads-th of
    # where they end in all.
    ends = [end // heads for end in itertools.accumulate(widths)]
    if heads == 1:
        return tuple(jnp.split(packed, ends[:-1], axis=-1))
    blocks = packed.reshape(*packed.shape[:-1], heads, ends[-1])
    pieces = jnp.split(blocks, ends[:-1], axis=-1)
    return tuple(
        piece.reshape(*packed.shape[:-1], width)
        for piece, width in zip(pieces, widths, strict=True)
    )


def join(pieces: list[Array], w_hh: Array) -> Array:
    """The packed product that :func:`cut` would cut into ``pieces``."""
    heads = _heads(w_hh)
    if heads == 1:
        return jnp.concatenate(pieces, axis=-1)
    blocks = [p.reshape(*p.shape[:-1], heads, p.shape[-1] // heads) for p in pieces]
    joined = jnp.concatenate(blocks, axis=-1)
    return joined.reshape(*joined.shape[:-2], joined.shape[-2] * joined.shape[-1])


def h_proj_of(h: Array, w_hh: Array | None, x_projs: tuple[Any, ...]) -> tuple[Array, ...]:
    """``h`` times the recurrent weights in pieces, one a gate; () without recurrent weights."""
    if w_hh is None:
        return ()
    return cut(multiply(h, w_hh), w_hh, gate_widths(w_hh, x_projs))


def noisy(h: Array, noise: Array | None) -> Array:
    """``h``, or inputs, times their noise, if there is any, in the wider dtype of the two."""
    if noise is None:
        return h
    wide = carry_dtype((h, noise))
    return h.astype(wide) * noise.astype(wide)
