"""Input feeding: the state after a step asks, and the answer is an input of the next step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax._checks import check_key
from rnnjax._numerics import accumulation_dtype, affine
from rnnjax.base import Cell, Key, Noise, NoiseShape
from rnnjax.engine._products import gate_widths
from rnnjax.initializers import draw_linear
from rnnjax.layers._memory import (
    Attended,
    Memory,
    add_to_gates,
    checked_memory,
    cut_gates,
    draw_gate_weights,
    gate_sizes,
    recurrent_weights,
)
from rnnjax.layers.attention import Attention, weighted_mean


class InputFeedingParams(NamedTuple):
    """``cell`` and ``attention`` are those of the two parts; ``feed`` [A, G*H] is the matrix from
    the last attentional output to the gates, ``output`` [M + O, A] makes that output."""

    cell: Any
    attention: Any
    feed: Array
    output: Array


class FeedingCarry(NamedTuple):
    """``cell``: the carry of the cell; ``fed`` [A]: the attentional output of the step before."""

    cell: Any
    fed: Array


def feeding(cell: Cell, attention: Attention, memory_size: int, output_size: int) -> Cell:
    """The state after the step asks, and the answer is an input of the next step."""

    def init(key: Key, input_size: int) -> InputFeedingParams:
        inner, asking, feed, output = jax.random.split(check_key(key), 4)
        params = cell.init(inner, input_size)
        widths, _ = gate_sizes(cell, params, input_size)
        return InputFeedingParams(
            params,
            attention.init(asking, cell.output_size, memory_size),
            draw_gate_weights(feed, output_size, widths),
            draw_linear(output, memory_size + cell.output_size, output_size)[0],
        )

    def initial_carry(params: InputFeedingParams) -> FeedingCarry:
        zeros = jnp.zeros((output_size,), accumulation_dtype(params.output.dtype))
        return FeedingCarry(cell.initial_carry(params.cell), zeros)

    def context(params: InputFeedingParams, given: Any) -> Memory:
        memory = checked_memory(given, memory_size)
        if memory.keys is not None:
            return memory
        return memory._replace(keys=attention.keys(params.attention, memory.states))

    def plain_step(
        params: InputFeedingParams, carry: FeedingCarry, x_proj: tuple, memory: Memory
    ) -> tuple[FeedingCarry, Attended]:
        assert cell.update is not None
        assert cell.hidden is not None
        assert memory.keys is not None
        w_hh = recurrent_weights(cell, params.cell)
        widths = gate_widths(w_hh, x_proj)
        h_proj = cut_gates(affine(cell.hidden(carry.cell), w_hh), widths)
        x_proj = add_to_gates(x_proj, h_proj, affine(carry.fed, params.feed))
        new, y = cell.update(params.cell, carry.cell, x_proj, h_proj)
        w_q = attention.query_weights(params.attention)
        query = y if w_q is None else affine(y, w_q)
        weights = attention.weigh(params.attention, query[None], memory.keys, memory.mask)
        answer = weighted_mean(weights, memory.states)[0]
        joined = jnp.concatenate([answer.astype(y.dtype), y])
        fed = jnp.tanh(affine(joined, params.output))
        return FeedingCarry(new, fed), Attended(fed, weights[0])

    def noise(key: Key, params: InputFeedingParams, shape: NoiseShape) -> Noise:
        assert cell.noise is not None
        return cell.noise(key, params.cell, shape)

    return Cell(
        output_size=output_size,
        init=init,
        initial_carry=initial_carry,
        project=lambda params, x: cell.project(params.cell, x),
        plain_step=plain_step,
        noise=cell.noise and noise,
        context=context,
    )
