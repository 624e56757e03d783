"""Keras on JAX: its layers by ``stateless_call`` under ``jax.jit``, padding told by a mask."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")  # read when Keras is imported

import jax.numpy as jnp
import keras

from experiments.throughput.libraries.entries import Entry, Program, Refusal, Step, one_entry
from experiments.throughput.problems import Problem
from rnnjax.interop import keras as interop

LAYERS = {
    "vanilla": keras.layers.SimpleRNN,
    "lstm": keras.layers.LSTM,
    "gru": keras.layers.GRU,
    "gru_reset_before": keras.layers.GRU,
}


def enter(problem: Problem) -> Iterator[Entry | Refusal]:
    backend = keras.backend.backend()
    reason = None if backend == "jax" else f"it runs on {backend} here: set KERAS_BACKEND=jax"
    return one_entry("keras", reason, problem, lambda: _make(problem))


def _make(problem: Problem) -> Program | Step:
    options: dict[str, Any] = {"return_sequences": True, "dtype": problem.case.dtype}
    # Its own orthogonal matrices cannot be drawn in bfloat16; replaced below.
    options["recurrent_initializer"] = "zeros"
    if problem.kind.startswith("gru"):
        options["reset_after"] = problem.kind == "gru"

    def one() -> Any:
        return LAYERS[problem.kind](problem.case.shape.hidden_size, **options)

    weights = interop.export_weights(problem.kind, problem.params)
    layers, arrays = [one()], [weights]
    if problem.bidirectional:
        layers, arrays = [keras.layers.Bidirectional(one()) for _ in range(2)], weights
    shape = problem.xs.shape
    for layer, own in zip(layers, arrays, strict=True):
        layer.build(shape)
        layer.set_weights(own)
        shape = (*shape[:2], problem.weights.shape[-1])
    if problem.case.streaming:
        return _step(layers[0].cell, problem)
    fixed = [[v.value for v in layer.non_trainable_variables] for layer in layers]

    def apply(params: Any, xs: Any, lengths: Any) -> Any:
        mask = None
        if lengths is not None:
            mask = jnp.arange(xs.shape[1])[None] < lengths[:, None]
        for layer, own, rest in zip(layers, params, fixed, strict=True):
            xs = layer.stateless_call(own, rest, xs, mask=mask)[0]
        return xs

    return Program(apply, [[v.value for v in layer.trainable_variables] for layer in layers])


def _step(cell: Any, problem: Problem) -> Step:
    fixed = [v.value for v in cell.non_trainable_variables]

    def apply(params: Any, states: Any, x: Any) -> Any:
        y, states = cell.stateless_call(params, fixed, x, states)[0]
        return states, y

    zeros = jnp.zeros((1, problem.case.shape.hidden_size), problem.xs.dtype)
    states = [zeros] * (2 if problem.kind == "lstm" else 1)
    return Step(apply, [v.value for v in cell.trainable_variables], states)
