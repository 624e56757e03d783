"""What cells that read from a memory share: the memory, and how an answer enters the gates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_cell, describe
from rnnjax.base import Cell, Key, Noise, NoiseShape, Params
from rnnjax.engine._products import gate_widths
from rnnjax.initializers import draw_linear


class Memory(NamedTuple):
    """What is attended to, for each sequence of a batch.

    Made by hand it is ``Memory(states, mask)``. What only depends on it, keys and values, is made
    of it once (``prepare_memory``), not at every step, and logits by the ``encode`` of a model.

    Attributes:
        states: [..., S, M], such as the outputs of an encoder.
        mask: bool [..., S], True where a place is real; the others are never read.
        keys: [..., S, K], what queries meet.
        values: [..., S, G*H], the states through the matrix of the gates; None where attention is
            outside the recurrence or reads the states themselves.
        logits: [..., S, V], the states through the head of a model that translates; None where
            there are so many places that this would be more to read than the head itself.
    """

    states: Array
    mask: Array
    # None until they are made; Any, so that what has made them needs no test for it.
    keys: Array | Any = None
    values: Array | Any = None
    logits: Array | Any = None


class Attended(NamedTuple):
    """What a cell with attention gives at every step.

    Attributes:
        output: [..., T, O].
        weights: [..., T, S], the attention to each place of the memory.
        read: [..., T, S], how much of each place was read, where that is something else than the
            weights: with a selector and with hard attention. None otherwise.
        drawn: [..., T, S], with hard attention 1 at the place that was taken, and 0 everywhere at
            steps where the mean was read. None otherwise.
    """

    output: Array
    weights: Array
    read: Array | None = None
    drawn: Array | None = None

    @property
    def shares(self) -> Array:
        """How much of each place was read: contexts are these times the memory."""
        return self.weights if self.read is None else self.read


def check_reading_cell(cell: Any) -> None:
    """Refuse what cannot read from a memory before its step."""
    cell = check_cell(cell)
    if cell.recurrent is None or cell.update is None:
        raise ValueError(
            "cell must be one that gives recurrent weights and update, so that its gates are "
            f"known, got {cell!r}"
        )
    if cell.context is not None:
        raise ValueError(f"cell must take no context of its own, got {cell!r}")


def recurrent_weights(cell: Cell, params: Params) -> Array:
    assert cell.recurrent is not None
    w_hh = cell.recurrent(params)
    if w_hh.ndim != 2:
        raise ValueError(
            f"cell must have recurrent weights [P, G*H] of one head, got shape {w_hh.shape}"
        )
    return w_hh


def gate_sizes(cell: Cell, params: Params, input_size: int) -> tuple[tuple[int, ...], int]:
    """The widths of the gates, and that of the state that the recurrent weights multiply."""
    x = jax.ShapeDtypeStruct((input_size,), jnp.float32)
    w_hh = jax.eval_shape(lambda p: recurrent_weights(cell, p), params)
    return gate_widths(w_hh, jax.eval_shape(cell.project, params, x)), w_hh.shape[0]


def draw_gate_weights(key: Key, rows: int, widths: tuple[int, ...]) -> Array:
    keys = jax.random.split(key, len(widths))
    return jnp.concatenate(
        [draw_linear(k, rows, width)[0] for k, width in zip(keys, widths, strict=True)], axis=-1
    )


def cut_gates(packed: Array, widths: tuple[int, ...]) -> tuple[Array, ...]:
    """A vector of all gates as one a gate."""
    ends = [sum(widths[: i + 1]) for i in range(len(widths))]
    return tuple(jnp.split(packed, ends[:-1], axis=-1))


def add_to_gates(x_proj: tuple, h_proj: tuple, packed: Array) -> tuple:
    """The pieces of ``x_proj`` that are gates, as those of ``h_proj`` are, with a further input."""
    added = cut_gates(packed, tuple(piece.shape[-1] for piece in h_proj))
    gates = (x + a for x, a in zip(x_proj, added, strict=False))
    return (*gates, *x_proj[len(added) :])


def with_columns(w_hh: Array, columns: list[Array]) -> Array:
    """The recurrent weights and what else the state is multiplied by, for one product of both."""
    return jnp.concatenate([w_hh, *(column.astype(w_hh.dtype) for column in columns)], axis=-1)


def behind_gates(cell: Cell, params: Params, x: Any, more: list[Array]) -> tuple:
    """``project`` of the cell, with a piece for each of the further columns behind the gates.

    The engine divides its product as these pieces are, so each column meets its piece.
    """
    pieces = cell.project(params, x)
    gates = len(gate_widths(recurrent_weights(cell, params), pieces))
    return (*pieces[:gates], *more, *pieces[gates:])


def take_last(x_proj: tuple, h_proj: tuple) -> tuple[tuple, tuple, Array]:
    """Both without the last piece that is in the engine's product, and the sum of these."""
    last = len(h_proj) - 1
    return (*x_proj[:last], *x_proj[last + 1 :]), h_proj[:last], x_proj[last] + h_proj[last]


def draw_noise(
    cell: Cell, key: Key, params: Params, shape: NoiseShape, columns: list[Array]
) -> Noise:
    """The noise of the cell: on its own weights, and not on the further columns."""
    drawn = Noise() if cell.noise is None else cell.noise(key, params, shape)
    if drawn.recurrent is None:
        return drawn
    clean = [jnp.ones_like(column, dtype=drawn.recurrent.dtype) for column in columns]
    return drawn._replace(recurrent=jnp.concatenate([drawn.recurrent, *clean], axis=-1))


def checked_memory(given: Any, memory_size: int) -> Memory:
    """The memory of one sequence, zeros where it is not real.

    Raises:
        ValueError: it is no memory, or of another size.
    """
    if not isinstance(given, Memory):
        raise ValueError(f"context must be a rnnjax.Memory(states, mask), got {describe(given)}")
    states, mask = given.states, given.mask
    if mask is None:
        raise ValueError("context.mask must be bool of shape [..., S] as context.states, got None")
    if states.ndim != 2 or states.shape[-1] != memory_size:
        raise ValueError(
            f"context.states must have shape [..., S, {memory_size}], got size "
            f"{states.shape[-1]}: memory_size must be the size of what is attended to"
        )
    if mask.shape != states.shape[:1] or mask.dtype != bool:
        raise ValueError(
            "context.mask must be bool of shape [..., S] as context.states, "
            f"got {mask.dtype} for {mask.shape[-1:]} places of {states.shape[0]}"
        )
    return given._replace(states=masking.zero_padding(mask, states))
