"""PyTorch, eager: its layers on padded batches and on packed ones, its cells for single steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from experiments.running.run_folder import processors
from experiments.throughput.libraries.entries import Entry, Refusal, Running
from experiments.throughput.problems import Problem
from rnnjax.interop import torch as interop

LAYERS = {"vanilla": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
CELLS = {"vanilla": torch.nn.RNNCell, "lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Threads of OpenMP go on spinning for a while after a call, and take the cores from the next one.
PAUSE = 0.1


def enter(problem: Problem) -> Iterator[Entry | Refusal]:
    if problem.kind not in LAYERS:
        yield Refusal("torch", "its GRU is of the reset-after form")
        return
    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        yield Refusal("torch", "it is built for the CPU only")
        return
    torch.set_num_threads(processors())
    if problem.case.streaming:
        yield Entry("torch", lambda: _make_step(problem, cell=False), PAUSE)
        yield Entry("torch cell", lambda: _make_step(problem, cell=True), PAUSE)
        return
    if problem.lengths is not None and problem.bidirectional:
        yield Refusal("torch", "unless packed, its backward direction reads the padding")
    else:
        yield Entry("torch", lambda: _make(problem, packed=False), PAUSE)
    if problem.lengths is not None:
        yield Entry("torch packed", lambda: _make(problem, packed=True), PAUSE)


def _device() -> str:
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def _tensor(array: Any, dtype: str = "float32") -> torch.Tensor:
    # NumPy's bfloat16 is unknown to PyTorch; float32 holds the same numbers.
    whole = np.ascontiguousarray(np.asarray(array, np.float32))
    return torch.from_numpy(whole).to(_device(), DTYPES[dtype])


def _module(problem: Problem, cell: bool) -> torch.nn.Module:
    _, _, size, hidden = problem.case.shape
    if cell:
        module: torch.nn.Module = CELLS[problem.kind](size, hidden)
    else:
        options = {"num_layers": 2, "bidirectional": True} if problem.bidirectional else {}
        module = LAYERS[problem.kind](size, hidden, **options)
    module = module.to(_device(), DTYPES[problem.case.dtype])
    weights = interop.export_weights(problem.kind, problem.params, cell=cell)
    module.load_state_dict({n: _tensor(a, problem.case.dtype) for n, a in weights.items()})
    if isinstance(module, torch.nn.RNNBase):
        module.flatten_parameters()  # cuDNN is quickest where the weights are one chunk of memory
    return module


def _make(problem: Problem, packed: bool) -> Running:
    module = _module(problem, cell=False)
    xs = _tensor(problem.xs.swapaxes(0, 1), problem.case.dtype)
    weights = _tensor(problem.weights.swapaxes(0, 1))
    lengths = None if problem.lengths is None else torch.from_numpy(problem.lengths).long()

    def outputs() -> torch.Tensor:
        if not packed or lengths is None:
            return module(xs)[0]
        rows = pack_padded_sequence(xs, lengths, enforce_sorted=False)
        return pad_packed_sequence(module(rows)[0], total_length=len(xs))[0]

    def training() -> torch.Tensor:
        loss = (outputs().float() * weights).sum()
        return torch.autograd.grad(loss, [*module.parameters(), xs])[-1]

    def read(result: torch.Tensor) -> np.ndarray:
        return result.detach().float().cpu().numpy().swapaxes(0, 1)

    if problem.case.mode == "forward":
        return Running(_waited(outputs, grad=False), read)
    xs.requires_grad_()
    return Running(_waited(training, grad=True), read)


def _make_step(problem: Problem, cell: bool) -> Running:
    module, lstm = _module(problem, cell), problem.kind == "lstm"
    x = _tensor(problem.xs.reshape(1, -1) if cell else problem.xs, problem.case.dtype)
    zeros = x.new_zeros((*x.shape[:-1], problem.case.shape.hidden_size))
    carry = (zeros, zeros) if lstm else zeros

    def read(result: Any) -> np.ndarray:
        y = result[0] if lstm or not cell else result
        return y.float().cpu().numpy().reshape(1, 1, -1)

    return Running(_waited(lambda: module(x, carry), grad=False), read)


def _waited(call: Callable[[], Any], grad: bool) -> Callable[[], Any]:
    """``call``, and on a GPU all that it has set going."""

    def run() -> Any:
        with torch.inference_mode(not grad):
            result = call()
        if _device() == "cuda":
            torch.cuda.synchronize()
        return result

    return run
