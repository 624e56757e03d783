"""A sequence in pieces: the same outputs, bit for bit, however it is cut."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from rnnjax import masking
from rnnjax._checks import check_floating, check_size
from rnnjax.base import Carry, Cell, Layer, Params
from rnnjax.layers.recurrent import recurrent

Stream = Callable[..., tuple[Carry, Any]]


class Block(NamedTuple):
    """Up to K steps, time first, so that a step is one stretch of memory.

    Attributes:
        xs: [K, ..., D].
        mask: bool [K, ...].
        resets: bool [K, ...].
    """

    xs: Any
    mask: Any
    resets: Any


def make_stream(layer: Cell | Layer, *, block_size: int = 32) -> Stream:
    """Inference on a sequence that comes in pieces, of any lengths.

    The outputs are equal to the last bit to those of the whole sequence fed in one piece.
    ``unroll`` in pieces does not promise that: a compiler may sum in another order for another
    number of steps. Here every step, in whatever piece, is run by one and the same compiled loop,
    over a block of ``block_size`` steps of which it takes as many as there are. A piece of a
    single step is the path for low latency.

    Every piece must be fed outside of ``jax.jit`` and of other transformations, where it would
    become part of a larger program, compiled for its length.

    Args:
        layer: a cell, run forwards, or a layer none of whose parts runs in reverse.
        block_size: K, the most steps that are run by one call of the compiled loop. Larger ones
            are faster on long pieces, smaller ones on single steps. It does not change the
            results.

    Returns:
        ``stream(params, xs [..., n, D], lengths=None, *, mask, resets, initial_carry) ->
        (carry, ys [..., n, O])``, with the arguments of a layer. Hand the carry on as
        ``initial_carry`` of the next piece; None starts anew.

    Raises:
        ValueError: from the stream, where an output depends on a later input, where arguments are
            traced, and for whatever the layer refuses.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> from rnnjax import make_stream
        >>> layer = rnnjax.stack(rnnjax.lstm(4), rnnjax.gru(4))
        >>> params = layer.init(jax.random.key(0), 3)
        >>> xs = jax.random.normal(jax.random.key(1), (2, 9, 3))
        >>> stream = make_stream(layer)
        >>> _, whole = stream(params, xs)
        >>> carry, first = stream(params, xs[:, :2])
        >>> carry, second = stream(params, xs[:, 2:], initial_carry=carry)
        >>> bool(jnp.all(jnp.concatenate([first, second], axis=1) == whole))
        True
    """
    whole = recurrent(layer) if isinstance(layer, Cell) else layer
    if not isinstance(whole, Layer):
        raise ValueError(f"layer must be a rnnjax.Cell or rnnjax.Layer, got {type(layer).__name__}")
    size = check_size("block_size", block_size)
    known_causal = set()

    def stream(
        params: Params,
        xs: Any,
        lengths: Any = None,
        *,
        mask: Any = None,
        resets: Any = None,
        initial_carry: Carry = None,
    ) -> tuple[Carry, Any]:
        _refuse_tracers(params, xs, lengths, mask, resets, initial_carry)
        piece = _checked(xs, lengths, mask, resets)
        *batch, input_size = piece.xs.shape[1:]
        if input_size not in known_causal:
            _check_causal(whole, params, input_size, piece.xs.dtype)
            known_causal.add(input_size)
        carry = initial_carry
        if carry is None:
            nothing = np.zeros((*batch, 0, input_size), piece.xs.dtype)
            carry = _fresh_carry(whole, params, nothing)
        results = []
        for count, block in _blocks(piece, size):
            carry, ys = _run_block(whole, params, carry, block, count)
            results.append((count, ys))
        return carry, _joined(results, len(batch))

    return stream


@functools.partial(jax.jit, static_argnums=0)
def _run_block(
    layer: Layer, params: Params, carry: Carry, block: Block, count: Array
) -> tuple[Carry, Any]:
    """The carry after ``count`` steps of a block, and outputs [K, ..., O], zero beyond them.

    The number of steps is data: what is compiled is one step, of one shape, in a loop.
    """
    # No step: the carry as the layer checks it and in the dtype in which it computes.
    carry, _ = layer.apply(params, block.xs[0][..., None, :][..., :0, :], initial_carry=carry)

    def one(carry: Carry, at: Block) -> tuple[Carry, Any]:
        step = {"mask": at.mask[..., None], "resets": at.resets[..., None]}
        carry, ys = layer.apply(params, at.xs[..., None, :], **step, initial_carry=carry)
        return carry, jax.tree.map(lambda y: jnp.squeeze(y, at.mask.ndim), ys)

    def body(i: Array, held: tuple[Carry, Any]) -> tuple[Carry, Any]:
        carry, ys = held
        at = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), block)
        carry, y = one(carry, at)
        put = functools.partial(lax.dynamic_update_index_in_dim, index=i, axis=0)
        return carry, jax.tree.map(put, ys, y)

    first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), block)
    _, y = jax.eval_shape(one, carry, first)
    room = jax.tree.map(lambda a: jnp.zeros((len(block.mask), *a.shape), a.dtype), y)
    return lax.fori_loop(0, count, body, (carry, room))


@functools.partial(jax.jit, static_argnums=0)
def _fresh_carry(layer: Layer, params: Params, nothing: Array) -> Carry:
    return layer.apply(params, nothing)[0]


@functools.partial(jax.jit, static_argnums=0)
def _first_output(layer: Layer, params: Params, xs: Array) -> Any:
    _, ys = layer.apply(params, xs)
    return jax.tree.map(lambda y: y[0], ys)


def _check_causal(layer: Layer, params: Params, input_size: int, dtype: Any) -> None:
    """One program on two inputs that differ in their second step alone."""
    xs = np.zeros((2, 2, input_size), dtype)
    xs[1, 1] = 10 * np.cos(np.arange(input_size))
    one, two = (jax.tree.leaves(_first_output(layer, params, x)) for x in xs)
    if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, two, strict=True)):
        raise ValueError(
            "a stream needs a layer whose outputs depend on past inputs alone: this one is "
            "bidirectional, or runs in reverse"
        )


def _refuse_tracers(*arguments: Any) -> None:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arguments)):
        raise ValueError(
            "a stream must be fed outside of jax.jit, jax.grad and other transformations: within "
            "one, equality to the last bit could not be promised; use unroll there"
        )


def _checked(xs: Any, lengths: Any, mask: Any, resets: Any) -> Block:
    """The steps of a piece, time first, on the host."""
    xs = np.asarray(xs)
    if xs.ndim < 2:
        raise ValueError(f"xs must have shape [..., n, D], got shape {xs.shape}")
    xs = xs.astype(jax.dtypes.canonicalize_dtype(xs.dtype), copy=False)
    check_floating("xs", xs)
    batch, time = xs.shape[:-2], xs.shape[-2]
    valid = masking.valid_steps(lengths, mask, batch, time)
    mask = np.ones((*batch, time), bool) if valid is None else np.asarray(valid)
    if resets is None:
        resets = np.zeros((*batch, time), bool)
    else:
        resets = np.asarray(masking.check_flags("resets", resets, batch, time))
    return Block(np.moveaxis(xs, -2, 0), np.moveaxis(mask, -1, 0), np.moveaxis(resets, -1, 0))


def _blocks(piece: Block, size: int) -> Iterator[tuple[int, Block]]:
    """Blocks of ``size`` steps, and how many of them are real; a piece without steps is one."""
    time = len(piece.mask)
    for begin in range(0, max(time, 1), size):
        part = [a[begin : begin + size] for a in piece]
        block = Block(*(np.zeros((size, *a.shape[1:]), a.dtype) for a in part))
        for whole, a in zip(block, part, strict=True):
            whole[: len(a)] = a
        yield len(part[0]), block


def _joined(results: list[tuple[int, Any]], batch_axes: int) -> Any:
    def join(*parts: Array) -> Array:
        real = [np.asarray(p)[:count] for (count, _), p in zip(results, parts, strict=True)]
        return jnp.asarray(np.moveaxis(np.concatenate(real), 0, batch_axes))

    return jax.tree.map(join, *(ys for _, ys in results))
