"""Flax linen: ``nn.RNN`` over its cells, of the LSTMs the optimized one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.throughput.libraries.entries import Entry, Program, Refusal, Step, one_entry
from experiments.throughput.problems import Problem
from rnnjax.interop import linen as interop

CELLS = {"vanilla": nn.SimpleCell, "lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}


def enter(problem: Problem) -> Iterator[Entry | Refusal]:
    reason = None if problem.kind in CELLS else "its GRU is of the reset-after form"
    return one_entry("flax.linen", reason, problem, lambda: _make(problem))


def _make(problem: Problem) -> Program | Step:
    dtype = jnp.dtype(problem.case.dtype)

    def cell() -> Any:
        size = problem.case.shape.hidden_size
        # Weights are given. Those of orthogonal rows, drawn to see their shapes, cannot be bfloat16
        # from JAX 0.12 on.
        drawn = nn.initializers.zeros
        return CELLS[problem.kind](
            size, dtype=dtype, param_dtype=dtype, recurrent_kernel_init=drawn
        )

    weights = interop.export_weights(problem.kind, problem.params)
    if problem.case.streaming:
        one = cell()
        carry = one.initialize_carry(jax.random.key(0), (1, problem.xs.shape[-1]))
        return Step(one.apply, {"params": weights["cell"]}, carry)

    def rnn() -> Any:
        return nn.RNN(cell(), time_major=True)

    layers, trees = [rnn()], [weights]
    if problem.bidirectional:
        layers = [nn.Bidirectional(rnn(), rnn(), time_major=True) for _ in range(2)]
        trees = weights

    def apply(params: Any, xs: Any, lengths: Any) -> Any:
        for layer, tree in zip(layers, params, strict=True):
            xs = layer.apply({"params": tree}, xs, seq_lengths=lengths)
        return xs

    return Program(apply, trees, time_first=True)
