"""Equinox: a scan over its cells, vmapped over the batch. Ragged batches run padded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

import rnnjax
from experiments.throughput.libraries.entries import (
    Entry,
    Program,
    Refusal,
    Step,
    one_entry,
    reversed_in_time,
)
from experiments.throughput.problems import Problem
from rnnjax.interop import equinox as interop

CELLS = {"lstm": eqx.nn.LSTMCell, "gru": eqx.nn.GRUCell}
MISSING = {
    "vanilla": "it has no vanilla cell",
    "gru_reset_before": "its GRU is of the reset-after form",
}


def enter(problem: Problem) -> Iterator[Entry | Refusal]:
    return one_entry("equinox", MISSING.get(problem.kind), problem, lambda: _make(problem))


def _make(problem: Problem) -> Program | Step:
    weights = interop.export_weights(problem.kind, problem.params)
    one, dtype = CELLS[problem.kind], jnp.dtype(problem.case.dtype)

    def with_weights(sizes: tuple[int, int], arrays: Any) -> Any:
        cell = one(*sizes, dtype=dtype, key=jax.random.key(0))
        names = list(arrays)
        new = [jnp.asarray(arrays[name]) for name in names]
        return eqx.tree_at(lambda c: [getattr(c, name) for name in names], cell, new)

    rows = [weights]
    if problem.bidirectional:
        rows = [row for layer in weights for row in layer]
    cells = [with_weights(*pair) for pair in zip(problem.rows, rows, strict=True)]
    dynamic, static = eqx.partition(cells, eqx.is_array)
    if problem.case.streaming:
        return _step(dynamic, static, problem)

    def apply(params: Any, xs: Any, lengths: Any) -> Any:
        made = eqx.combine(params, static)
        if len(made) == 1:
            return _run(made[0], xs)
        for pair in (made[:2], made[2:]):
            xs = _both(rnnjax.Directions(*pair), xs, lengths)
        return xs

    return Program(apply, dynamic)


def _start(cell: Any, dtype: Any) -> Any:
    zeros = jnp.zeros(cell.hidden_size, dtype)
    return (zeros, zeros) if isinstance(cell, eqx.nn.LSTMCell) else zeros


def _output(state: Any) -> Any:
    return state[0] if isinstance(state, tuple) else state


def _run(cell: Any, xs: Any) -> Any:
    def step(state: Any, x: Any) -> Any:
        state = cell(x, state)
        return state, _output(state)

    return jax.vmap(lambda x: lax.scan(step, _start(cell, xs.dtype), x)[1])(xs)


def _both(cells: rnnjax.Directions, xs: Any, lengths: Any) -> Any:
    def flip(a: Any) -> Any:
        return jnp.swapaxes(reversed_in_time(jnp.swapaxes(a, 0, 1), lengths), 0, 1)

    return jnp.concatenate([_run(cells.forward, xs), flip(_run(cells.backward, flip(xs)))], -1)


def _step(dynamic: Any, static: Any, problem: Problem) -> Step:
    def step(params: Any, state: Any, x: Any) -> Any:
        state = eqx.combine(params, static)[0](x, state)
        return state, _output(state)

    start = _start(eqx.combine(dynamic, static)[0], problem.xs.dtype)
    return Step(step, dynamic, start, axes=())
