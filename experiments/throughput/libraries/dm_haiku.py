"""Haiku: ``hk.dynamic_unroll`` over its cores. It has no lengths: ragged batches run padded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

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
from rnnjax.interop import haiku as interop

CORES = {"lstm": hk.LSTM, "gru_reset_before": hk.GRU}
MISSING = {
    "vanilla": "its VanillaRNN is for ReLU, not tanh",
    "gru": "its GRU is of the reset-before form",
}


def enter(problem: Problem) -> Iterator[Entry | Refusal]:
    return one_entry("haiku", MISSING.get(problem.kind), problem, lambda: _make(problem))


def _make(problem: Problem) -> Program | Step:
    core, size = CORES[problem.kind], problem.case.shape.hidden_size
    names: Any = "a"
    if problem.bidirectional:
        names = (rnnjax.Directions("a", "b"), rnnjax.Directions("c", "d"))
    weights = interop.export_weights(problem.kind, problem.params, names)

    def zeros(made: Any, xs: Any) -> Any:
        return jax.tree.map(lambda a: a.astype(xs.dtype), made.initial_state(xs.shape[-2]))

    def run(name: str, xs: Any) -> Any:
        made = core(size, name=name)
        return hk.dynamic_unroll(made, xs, zeros(made, xs))[0]

    def layer(xs: Any, lengths: Any) -> Any:
        if not problem.bidirectional:
            return run("a", xs)
        for ahead, back in (("a", "b"), ("c", "d")):
            behind = reversed_in_time(run(back, reversed_in_time(xs, lengths)), lengths)
            xs = jnp.concatenate([run(ahead, xs), behind], -1)
        return xs

    if problem.case.streaming:
        return _step(core, size, weights, problem)
    apply = hk.without_apply_rng(hk.transform(layer)).apply
    return Program(apply, weights, time_first=True)


def _step(core: Any, size: int, weights: Any, problem: Problem) -> Step:
    start = hk.without_apply_rng(hk.transform(lambda: core(size, name="a").initial_state(1)))
    carry = jax.tree.map(lambda a: a.astype(problem.xs.dtype), start.apply({}))

    def step(carry: Any, x: Any) -> Any:
        y, carry = core(size, name="a")(x, carry)
        return carry, y

    return Step(hk.without_apply_rng(hk.transform(step)).apply, weights, carry)
