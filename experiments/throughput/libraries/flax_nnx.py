"""Flax nnx: ``nnx.RNN`` over its cells, the state split off, under ``jax.jit``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from flax import nnx

from experiments.throughput.libraries.entries import Entry, Program, Refusal, Step, one_entry
from experiments.throughput.problems import Problem
from rnnjax.interop import nnx as interop

CELLS = {
    "vanilla": ("vanilla", nnx.SimpleCell),
    "lstm": ("optimized_lstm", nnx.OptimizedLSTMCell),
    "gru": ("gru", nnx.GRUCell),
}
ZEROS = {"recurrent_kernel_init": nnx.initializers.zeros_init()}


def enter(problem: Problem) -> Iterator[Entry | Refusal]:
    reason = None if problem.kind in CELLS else "its GRU is of the reset-after form"
    return one_entry("flax.nnx", reason, problem, lambda: _make(problem))


def _make(problem: Problem) -> Program | Step:
    kind, cell = CELLS[problem.kind]
    dtype = jnp.dtype(problem.case.dtype)
    cells = [
        # Zeros, as its own orthogonal matrices cannot be drawn in bfloat16; replaced below.
        cell(size, hidden, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0), **ZEROS)
        for size, hidden in problem.rows
    ]
    weights = interop.export_weights(kind, problem.params)
    if problem.case.streaming:
        return _step(cells[0], weights["cell"])
    rnns = [nnx.RNN(one, time_major=True) for one in cells]
    if not problem.bidirectional:
        layers, weights = rnns, [weights]
    else:
        pairs = (rnns[:2], rnns[2:])
        layers = [nnx.Bidirectional(*pair, time_major=True, rngs=nnx.Rngs(0)) for pair in pairs]
    splits = [nnx.split(layer, nnx.Param, ...) for layer in layers]
    for (_, params, _), new in zip(splits, weights, strict=True):
        nnx.replace_by_pure_dict(params, new)

    def apply(params: Any, xs: Any, lengths: Any) -> Any:
        for (graph, _, rest), state in zip(splits, params, strict=True):
            xs = nnx.merge(graph, state, rest)(xs, seq_lengths=lengths, rngs=nnx.Rngs(0))
        return xs

    return Program(apply, [params for _, params, _ in splits], time_first=True)


def _step(cell: Any, weights: Any) -> Step:
    graph, params, rest = nnx.split(cell, nnx.Param, ...)
    nnx.replace_by_pure_dict(params, weights)
    carry = cell.initialize_carry((1, cell.in_features), nnx.Rngs(0))

    def apply(params: Any, carry: Any, x: Any) -> Any:
        return nnx.merge(graph, params, rest)(carry, x)

    return Step(apply, params, carry)
