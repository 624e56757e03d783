"""Attention in which the state before a step asks, and what is read enters its gates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import sigmoid

from rnnjax._checks import check_key
from rnnjax._numerics import accumulation_dtype, affine, as_mappable, key_apart
from rnnjax.base import Carry, Cell, Key, Noise, NoiseShape
from rnnjax.initializers import draw_linear
from rnnjax.layers._memory import (
    Attended,
    Memory,
    add_to_gates,
    behind_gates,
    checked_memory,
    draw_gate_weights,
    draw_noise,
    gate_sizes,
    recurrent_weights,
    take_last,
    with_columns,
)
from rnnjax.layers.attention import Attention, weighted_mean


class SelectorParams(NamedTuple):
    """``w`` [P] and ``bias`` [], from the state to how much of what is attended to is read."""

    w: Array
    bias: Array


class AttentionCellParams(NamedTuple):
    """``cell`` and ``attention`` are those of the two parts; ``context`` [M, G*H] is the matrix
    from what is read of the memory to the gates; ``selector`` is None without one."""

    cell: Any
    attention: Any
    context: Array
    selector: SelectorParams | None = None


class Draw(NamedTuple):
    """The noise of one step of hard attention: a number in [0, 1) that decides on the place, or
    -1 in a sequence that reads the mean."""

    number: Array


def asking_before(
    cell: Cell, attention: Attention, memory_size: int, selects: bool, mean_rate: float | None
) -> Cell:
    """The state before the step asks: one product, of the recurrent weights and the query's.

    ``mean_rate`` is None where attention is not hard.
    """

    def init(key: Key, input_size: int) -> AttentionCellParams:
        inner, asking, context, selecting = jax.random.split(check_key(key), 4)
        params = cell.init(inner, input_size)
        widths, state_size = gate_sizes(cell, params, input_size)
        return AttentionCellParams(
            params,
            attention.init(asking, state_size, memory_size),
            draw_gate_weights(context, memory_size, widths),
            _draw_selector(selecting, state_size) if selects else None,
        )

    def more_columns(params: AttentionCellParams) -> list[Array]:
        """What the state is multiplied by besides the recurrent weights."""
        w_q, selector = attention.query_weights(params.attention), params.selector
        columns = [] if w_q is None else [w_q]
        return columns if selector is None else [*columns, selector.w[:, None]]

    def recurrent(params: AttentionCellParams) -> Array:
        return with_columns(recurrent_weights(cell, params.cell), more_columns(params))

    def project(params: AttentionCellParams, x: Any) -> tuple:
        w_q, selector = attention.query_weights(params.attention), params.selector
        more = []
        if w_q is not None:
            more.append(jnp.zeros((w_q.shape[-1],), accumulation_dtype(w_q.dtype)))
        if selector is not None:
            more.append(selector.bias[None].astype(accumulation_dtype(selector.bias.dtype)))
        return behind_gates(cell, params.cell, x, more)

    def context(params: AttentionCellParams, given: Any) -> Memory:
        memory = checked_memory(given, memory_size)
        if memory.values is not None:
            return memory
        states = memory.states
        values = affine(states, params.context, name="memory.states")
        return memory._replace(keys=attention.keys(params.attention, states), values=values)

    def read(
        params: AttentionCellParams, carry: Carry, x_proj: tuple, h_proj: tuple, memory: Memory
    ) -> tuple[tuple, tuple, Attended]:
        """The pieces that the cell gets, with what was read of the memory, and how it was read."""
        assert memory.keys is not None
        assert memory.values is not None
        assert cell.hidden is not None
        draw = None
        if x_proj and isinstance(x_proj[-1], Draw):
            *pieces, draw = x_proj
            x_proj = tuple(pieces)
        query, share = cell.hidden(carry), None
        if params.selector is not None:
            x_proj, h_proj, beta = take_last(x_proj, h_proj)
            share = sigmoid(beta)
        if attention.query_weights(params.attention) is not None:
            x_proj, h_proj, query = take_last(x_proj, h_proj)
        weights = attention.weigh(params.attention, query[None], memory.keys, memory.mask)[0]
        shares = weights
        drawn = None if mean_rate is None else drawn_places(weights, draw)
        if drawn is not None:
            shares = drawn if draw is None else jnp.where(draw.number < 0, weights, drawn)
        shares = shares if share is None else share * shares
        answer = weighted_mean(shares[None], memory.values)[0]
        how = Attended(answer, weights, None if shares is weights else shares, drawn)
        return add_to_gates(x_proj, h_proj, answer), h_proj, how

    def update(
        params: AttentionCellParams, carry: Carry, x_proj: tuple, h_proj: tuple, memory: Memory
    ) -> tuple[Carry, Attended]:
        assert cell.update is not None
        x_proj, h_proj, how = read(params, carry, x_proj, h_proj, memory)
        new, y = cell.update(params.cell, carry, x_proj, h_proj)
        return new, how._replace(output=y)

    def gates(
        params: AttentionCellParams, carry: Carry, x_proj: tuple, h_proj: tuple, memory: Memory
    ) -> Any:
        assert cell.gates is not None
        x_proj, h_proj, _ = read(params, carry, x_proj, h_proj, memory)
        return cell.gates(params.cell, carry, x_proj, h_proj)

    def noise(key: Key, params: AttentionCellParams, shape: NoiseShape) -> Noise:
        drawn = draw_noise(cell, key, params.cell, shape, more_columns(params))
        if mean_rate is None:
            return drawn
        # Not split, so that the cell's own noise is what it is without attention.
        numbers = _draw_numbers(key_apart(key), shape, mean_rate)
        return drawn._replace(steps=(*drawn.steps, Draw(numbers)))

    return Cell(
        output_size=cell.output_size,
        init=init,
        initial_carry=lambda params: cell.initial_carry(params.cell),
        project=project,
        recurrent=recurrent,
        hidden=cell.hidden,
        update=update,
        gates=cell.gates and gates,
        noise=noise if cell.noise is not None or mean_rate is not None else None,
        context=context,
    )


def _draw_selector(key: Key, state_size: int) -> SelectorParams:
    w, bias = draw_linear(key, state_size, 1)
    return SelectorParams(w[:, 0], bias[0])


def _draw_numbers(key: Key, shape: NoiseShape, mean_rate: float) -> Array:
    """[T, B]: what is drawn for a sequence depends on its place in the batch and on the step."""
    tossing, drawing = jax.random.split(as_mappable(key))

    def uniform(key: Key) -> Array:
        # Not of 64 bits where JAX would: other numbers, one of which may round to 1.
        return jax.random.uniform(key, dtype=jnp.float32)

    def row(b: Array) -> Array:
        steps = jnp.arange(shape.time)
        numbers = jax.vmap(lambda t: uniform(jax.random.fold_in(of_row(b), t)))(steps)
        means = uniform(jax.random.fold_in(tossing, b)) < mean_rate
        return jnp.where(means, -1.0, numbers)

    def of_row(b: Array) -> Key:
        return jax.random.fold_in(drawing, b)

    return jax.vmap(row, out_axes=1)(jnp.arange(shape.batch))


def drawn_places(weights: Array, draw: Draw | None) -> Array:
    """1 at the place that is taken, 0 elsewhere, and everywhere where no place is real."""
    if not len(weights):  # of no places there is no largest
        return weights
    if draw is None:
        largest = jnp.arange(len(weights)) == jnp.argmax(weights)
        return (largest & (weights > 0)).astype(weights.dtype)
    # The place in whose part of [0, 1] the number lies. Parts are half open, so that one of
    # weight 0 holds no number, and a number of -1 lies in none.
    ends = jnp.cumsum(weights)
    begins = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])
    at = draw.number.astype(weights.dtype) * ends[-1]
    return ((begins <= at) & (at < ends)).astype(weights.dtype)
