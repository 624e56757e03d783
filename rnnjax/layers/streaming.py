"""A sequence in pieces: the same outputs, bit for bit, however it is cut."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.core import Tracer

from rnnjax import masking
from rnnjax._checks import check_size, telling_given_away
from rnnjax._values import is_transformed
from rnnjax.base import Carry, Cell, Layer, Params
from rnnjax.engine._arguments import check_xs
from rnnjax.engine.one_step import (
    Block,
    require_causal,
    run_block,
    run_only_step,
)

Stream = Callable[..., tuple[Carry, Any]]


def make_stream(layer: Cell | Layer, *, block_size: int = 32) -> Stream:
    """Inference on a sequence that comes in pieces, of any lengths.

    The outputs are equal to the last bit to those of the whole sequence fed in one piece, and to
    those of ``layer.step`` called by itself. ``unroll`` in pieces does not promise that: a compiler
    may sum in another order for another number of steps. Here every step, in whatever piece, is
    one and the same compiled step.

    Every piece must be fed outside of ``jax.jit`` and of other transformations: it is brought to
    the host, and cut there. Inside, use ``layer.step`` in a ``jax.lax.scan``.

    Args:
        layer: a cell, run forwards, or a layer whose outputs depend on past inputs alone
            (``layer.causal``).
        block_size: K, the most steps that are run by one call of the compiled loop. Larger ones
            are faster on long pieces. It does not change the results.

    Returns:
        ``stream(params, xs [..., n, D], lengths=None, *, mask, resets, initial_carry,
        context) -> (carry, ys [..., n, O])``, with the arguments of a layer; ``xs`` may be a tree,
        as for ``unroll``. Hand the carry on as
        ``initial_carry`` of the next piece; None starts anew.

    Raises:
        ValueError: a layer that reads ahead; from the stream, where arguments are traced, and for
            whatever the layer refuses.

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
    require_causal("a stream", layer)
    size = max(2, check_size("block_size", block_size))

    def stream(
        params: Params,
        xs: Any,
        lengths: Any = None,
        *,
        mask: Any = None,
        resets: Any = None,
        initial_carry: Carry = None,
        context: Any = None,
    ) -> tuple[Carry, Any]:
        _refuse_tracers(params, xs, lengths, mask, resets, initial_carry, context)
        with telling_given_away(params=params, xs=xs, initial_carry=initial_carry):
            xs = jax.tree.map(_canonical, check_xs(xs))
            *batch, time = jax.tree.leaves(xs)[0].shape[:-1]
            batch = tuple(batch)
            valid = masking.valid_steps(lengths, mask, batch, time)
            if resets is not None:
                resets = masking.check_flags("resets", resets, batch, time)
            # What is copied is copied by name, for those who forbid other copies
            # (jax_transfer_guard).
            if time == 1:
                xs = jax.tree.map(lambda a: a if isinstance(a, Array) else jax.device_put(a), xs)
                return run_only_step(layer, params, initial_carry, xs, valid, resets, context)
            piece = _time_first(xs, valid, resets)
            carry, results = initial_carry, []
            for count, block in _blocks(piece, size):
                block, steps = jax.device_put((block, np.int32(count)))
                carry, ys = run_block(layer, params, carry, block, steps, context)
                results.append((count, ys))
            return carry, _concatenate_in_time(results, len(batch))

    return stream


def _refuse_tracers(*arguments: Any) -> None:
    if is_transformed() or any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arguments)):
        raise ValueError(
            "a stream must be fed outside of jax.jit, jax.grad and other transformations, got a "
            "call inside of one; there, use layer.step, in a jax.lax.scan for several steps"
        )


def _canonical(xs: Any) -> Any:
    dtype = jax.dtypes.canonicalize_dtype(xs.dtype)
    # astype would be a call of a program even where it changes nothing.
    return xs if xs.dtype == dtype else xs.astype(dtype)


def _time_first(xs: Any, valid: Any, resets: Any) -> Block:
    """The steps of a piece, time first, on the host."""
    xs, valid, resets = jax.device_get((xs, valid, resets))
    shape = jax.tree.leaves(xs)[0].shape[:-1]
    mask = np.ones(shape, bool) if valid is None else valid
    resets = np.zeros(shape, bool) if resets is None else resets
    xs = jax.tree.map(lambda a: np.moveaxis(a, -2, 0), xs)
    return Block(xs, np.moveaxis(mask, -1, 0), np.moveaxis(resets, -1, 0))


def _blocks(piece: Block, size: int) -> Iterator[tuple[int, Block]]:
    """Blocks of ``size`` steps, and how many of them are real; a piece without steps is one."""
    time = len(piece.mask)
    for begin in range(0, max(time, 1), size):
        part = jax.tree.map(lambda a, begin=begin: a[begin : begin + size], piece)
        yield len(part.mask), jax.tree.map(functools.partial(_padded, size), part)


def _padded(size: int, a: np.ndarray) -> np.ndarray:
    whole = np.zeros((size, *a.shape[1:]), a.dtype)
    whole[: len(a)] = a
    return whole


def _concatenate_in_time(results: list[tuple[int, Any]], batch_axes: int) -> Any:
    def join(*parts: np.ndarray) -> np.ndarray:
        real = [part[:count] for (count, _), part in zip(results, parts, strict=True)]
        return np.moveaxis(np.concatenate(real), 0, batch_axes)

    pieces = [ys for _, ys in results]
    whole = jax.tree.map(join, *jax.device_get(pieces))
    return jax.tree.map(lambda a, first: jax.device_put(a, _home(first)), whole, pieces[0])


def _home(array: Array) -> Any:
    """The one device to which an array is committed, if it is."""
    devices = array.devices()
    return next(iter(devices)) if array.committed and len(devices) == 1 else None
