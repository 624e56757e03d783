"""``jax.experimental.rnn``, JAX's binding of cuDNN: LSTM in float32 on a GPU of NVIDIA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.throughput.libraries.entries import Entry, Program, Refusal, one_entry
from experiments.throughput.problems import Problem
from rnnjax.interop import torch

NAME = "jax.experimental.rnn"


def enter(problem: Problem) -> Iterator[Entry | Refusal]:
    reason = None
    if problem.kind != "lstm":
        reason = "it has the LSTM only"
    elif problem.case.dtype != "float32":
        reason = "it is for float32 only"
    elif problem.case.streaming:
        reason = "it has no single steps"
    return one_entry(NAME, reason, problem, lambda: _make(problem))


def _make(problem: Problem) -> Program:
    from jax.experimental import rnn

    batch, steps, size, hidden = problem.case.shape
    layers = 2 if problem.bidirectional else 1
    rows = layers * (2 if problem.bidirectional else 1)

    def apply(weights: Any, xs: Any, lengths: Any) -> Any:
        zeros = jnp.zeros((rows, batch, hidden), xs.dtype)
        if lengths is None:
            lengths = jnp.full(batch, steps, jnp.int32)
        options = (size, hidden, layers, 0.0, problem.bidirectional)
        result: Any = rnn.lstm(xs, zeros, zeros, weights, lengths, *options)
        return result[0]

    return Program(apply, _flat_weights(problem.params))


def _flat_weights(params: Any) -> np.ndarray:
    """All matrices as PyTorch lays them out, then all biases, as one vector for ``rnn.lstm``."""
    arrays = torch.export_weights("lstm", params)
    matrices = [array for name, array in arrays.items() if name.startswith("weight")]
    biases = [array for name, array in arrays.items() if name.startswith("bias")]
    return np.concatenate([array.ravel() for array in (*matrices, *biases)])
