"""PyTorch's recurrent modules, computed by rnnjax, for PyTorch's own test cases to run on.

Each class stands for the module of ``torch.nn`` of that name: the same arguments, names of weights,
shapes of inputs and outputs, packed sequences, and gradients through ``backward``. What is under
test is the layer inside; this file only brings arrays from one form into the other.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.cells.projected_lstm import projected_lstm
from rnnjax.interop import torch as interop

torch = pytest.importorskip("torch", reason="torch is not installed: its test cases are not run")
from torch.nn.utils.rnn import (  # noqa: E402
    PackedSequence,
    pack_padded_sequence,
    pad_packed_sequence,
)

TOLERANCE = {"value": 1e-12, "gradient": 1e-11}
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


# One layer for all cases of the same form, so that it compiles once. Typed: 5.0 is not 5.
@functools.lru_cache(maxsize=None, typed=True)
def make_layer(kind, hidden_size, num_layers, bidirectional, nonlinearity, proj_size):
    if kind == "projected_lstm":
        cell = projected_lstm(hidden_size, proj_size)
    elif kind == "vanilla":
        cell = rnnjax.vanilla(hidden_size, ACTIVATIONS[nonlinearity])
    else:
        cell = {"lstm": rnnjax.lstm, "gru": rnnjax.gru}[kind](hidden_size)
    one = rnnjax.bidirectional(cell) if bidirectional else rnnjax.recurrent(cell)
    return one if num_layers == 1 else rnnjax.stack(*[one] * num_layers)


@functools.partial(jax.jit, static_argnums=0)
def apply(layer, lengths, params, xs, carry):
    return layer.apply(params, xs, lengths, initial_carry=carry)


@functools.partial(jax.jit, static_argnums=0)
def pull_back(layer, lengths, primals, cotangents):
    _, pullback = jax.vjp(functools.partial(apply, layer, lengths), *primals)
    return pullback(cotangents)


def array(tensor):
    return tensor.detach().numpy()


def tensor(values):
    return torch.from_numpy(np.array(values))


def tensors_of(kind, carry):
    """The states h, or h and c, of a carry."""
    states = interop.export_carry(kind, carry)
    return list(map(tensor, states if isinstance(states, tuple) else (states,)))


def gradients_of(kind, gradients, cell):
    """Gradients of parameters under PyTorch's names.

    Where only the sum of two biases acts, each of them has the gradient of the sum.
    """
    named = interop.export_weights(kind, gradients, cell=cell)
    for name in [name for name in named if name.startswith("bias_hh")]:
        shared = named[name.replace("hh", "ih")].copy()
        if kind == "gru":
            shared[2 * len(shared) // 3 :] = named[name][2 * len(shared) // 3 :]
        named[name] = shared
    return named


class Run(torch.autograd.Function):
    """One call of the layer of a module, and its derivative."""

    @staticmethod
    def forward(ctx, module, lengths, names, xs, *tensors):
        weights = dict(zip(names, map(array, tensors), strict=False))
        states = list(map(array, tensors[len(names) :]))
        carry = None
        if states:
            state = states if len(states) == 2 else states[0]
            carry = interop.import_carry(module.kind, state, bidirectional=module.bidirectional)
        params = interop.import_weights(module.kind, weights)
        ctx.call = module, lengths, names, jax.tree.map(jnp.asarray, (params, array(xs), carry))
        final, ys = apply(module.layer, lengths, *ctx.call[3])
        return tensor(ys), *tensors_of(module.kind, final)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, of_ys, *of_states):
        module, lengths, names, primals = ctx.call
        states = [array(state) for state in of_states]
        state = states if len(states) == 2 else states[0]
        of_carry = interop.import_carry(module.kind, state, bidirectional=module.bidirectional)
        cotangents = jax.tree.map(jnp.asarray, (of_carry, array(of_ys)))
        of_params, of_xs, of_initial = pull_back(module.layer, lengths, primals, cotangents)
        weights = gradients_of(module.kind, of_params, module.cell)
        initial = [] if of_initial is None else tensors_of(module.kind, of_initial)
        return None, None, None, tensor(of_xs), *(tensor(weights[n]) for n in names), *initial


class Module(torch.nn.Module):
    """What all six share: a layer of rnnjax, and its weights under PyTorch's names."""

    cell = False

    def __init__(
        self,
        kind,
        input_size,
        hidden_size,
        num_layers=1,
        bias=True,
        batch_first=False,
        bidirectional=False,
        nonlinearity="tanh",
        proj_size=0,
        dtype=torch.float64,
        device="cpu",
    ):
        super().__init__()
        assert device == "cpu"
        self.kind, self.batch_first, self.bidirectional = kind, batch_first, bidirectional
        self.layer = make_layer(
            kind, hidden_size, num_layers, bidirectional, nonlinearity, proj_size
        )
        params = self.layer.init(jax.random.key(0), input_size)
        for name, values in interop.export_weights(kind, params, cell=self.cell).items():
            if bias or not name.startswith("bias"):
                self.register_parameter(name, torch.nn.Parameter(tensor(values).to(dtype)))

    def run(self, xs, hx, lengths=None):
        """Outputs and final states of inputs with their time on the last axis but one."""
        names, weights = zip(*self.named_parameters(), strict=True)
        states = () if hx is None else hx if isinstance(hx, tuple) else (hx,)
        ys, *final = Run.apply(self, lengths, names, xs, *weights, *states)
        return ys, tuple(final) if len(final) == 2 else final[0]


class Sequence(Module):
    """A module over whole sequences: [T, D], [T, B, D], [B, T, D] or packed."""

    def forward(self, xs, hx=None):
        if isinstance(xs, PackedSequence):
            padded, lengths = pad_packed_sequence(xs, batch_first=True)
            ys, final = self.run(padded, hx, jnp.asarray(lengths.numpy()))
            return pack_padded_sequence(ys, lengths, batch_first=True), final
        if self.batch_first or xs.ndim == 2:
            return self.run(xs, hx)
        ys, final = self.run(xs.transpose(0, 1), hx)
        return ys.transpose(0, 1), final


class Step(Module):
    """A module of one step: [D] or [B, D]."""

    cell = True

    def __init__(self, kind, input_size, hidden_size, bias=True, **options):
        super().__init__(kind, input_size, hidden_size, bias=bias, **options)

    def forward(self, xs, hx):
        rows = tuple(h[None] for h in hx) if isinstance(hx, tuple) else hx[None]
        _, final = self.run(xs[..., None, :], rows)
        return tuple(h[0] for h in final) if isinstance(final, tuple) else final[0]


class RNN(Sequence):
    def __init__(self, *sizes, **options):
        super().__init__("vanilla", *sizes, **options)


class LSTM(Sequence):
    def __init__(self, *sizes, proj_size=0, **options):
        kind = "projected_lstm" if proj_size else "lstm"
        super().__init__(kind, *sizes, proj_size=proj_size, **options)


class GRU(Sequence):
    def __init__(self, *sizes, **options):
        super().__init__("gru", *sizes, **options)


class RNNCell(Step):
    def __init__(self, *sizes, **options):
        super().__init__("vanilla", *sizes, **options)


class LSTMCell(Step):
    def __init__(self, *sizes, **options):
        super().__init__("lstm", *sizes, **options)


class GRUCell(Step):
    def __init__(self, *sizes, **options):
        super().__init__("gru", *sizes, **options)


STAND_INS = {judged.__name__: judged for judged in (RNN, LSTM, GRU, RNNCell, LSTMCell, GRUCell)}


def make_pair(name, *sizes, **options):
    """The module of ``torch.nn`` in float64, and ours with the same weights."""
    theirs = getattr(torch.nn, name)(*sizes, **{"dtype": torch.float64, **options})
    ours = STAND_INS[name](*sizes, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def tensors_in(tree):
    """The tensors in nested tuples, those of packed sequences included."""
    if isinstance(tree, PackedSequence):
        return [tree.data]
    return [tree] if isinstance(tree, torch.Tensor) else [a for b in tree for a in tensors_in(b)]


def outcome(call, weights, arguments):
    """All outputs of ``call(*arguments)``, and all gradients of their sum with random weights."""
    outputs = tensors_in(call(*arguments))
    generator = torch.Generator().manual_seed(1)
    cotangents = [
        torch.randn(a.shape, dtype=torch.float64, generator=generator).to(a) for a in outputs
    ]
    sources = {f"argument {i}": a for i, a in enumerate(tensors_in(arguments))} | dict(weights)
    gradients = torch.autograd.grad(outputs, list(sources.values()), cotangents)
    return outputs, dict(zip(sources, gradients, strict=True))


def assert_close(got, expected, kind="value"):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(
            array(a), array(b), rtol=TOLERANCE[kind], atol=TOLERANCE[kind], strict=True
        )


def assert_same_outcome(got, expected):
    for kind, ours, theirs in zip(TOLERANCE, got, expected, strict=True):
        assert_close(ours, theirs, kind)
