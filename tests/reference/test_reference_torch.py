"""Values and gradients against torch on packed, unsorted sequences, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

torch = pytest.importorskip("torch", reason="torch is not installed: its RNN, LSTM, GRU untested")
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402

B, T, D, H = 4, 6, 3, 5
LENGTHS = [3, T, 1, 4]
TOLERANCE = {"value": 1e-12, "gradient": 1e-11}
CASES = {
    "rnn tanh": (rnnjax.vanilla(H), torch.nn.RNN, torch.nn.RNNCell, {}),
    "rnn relu": (
        rnnjax.vanilla(H, jax.nn.relu),
        torch.nn.RNN,
        torch.nn.RNNCell,
        {"nonlinearity": "relu"},
    ),
    "lstm": (rnnjax.lstm(H), torch.nn.LSTM, torch.nn.LSTMCell, {}),
    "gru": (rnnjax.gru(H), torch.nn.GRU, torch.nn.GRUCell, {}),
}


@pytest.fixture(autouse=True)
def float64():
    torch.manual_seed(0)
    with jax.enable_x64(True):
        yield


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def array(tensor):
    return jnp.asarray(tensor.detach().numpy())


def to_params(weights):
    """``weight_ih, weight_hh, bias_ih, bias_hh`` of torch as the parameters of our cell."""
    w_ih, w_hh, b_ih, b_hh = weights
    bias = b_ih + b_hh
    if len(bias) == 3 * H:  # a GRU: the hidden half of n is multiplied by r, and stays apart
        bias = jnp.concatenate([bias[: 2 * H], b_ih[2 * H :]])
        return rnnjax.GRUParams(w_ih.T, w_hh.T, bias, b_hh[2 * H :])
    kind = rnnjax.LSTMParams if len(bias) == 4 * H else rnnjax.VanillaParams
    return kind(w_ih.T, w_hh.T, bias)


def states(carry):
    """A carry as the list of states that torch gives: [h] or [h, c]."""
    return list(carry) if isinstance(carry, rnnjax.LSTMCarry) else [carry]


def to_carry(arrays):
    return rnnjax.LSTMCarry(*arrays) if len(arrays) == 2 else arrays[0]


def assert_close(got, expected, kind):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, array(b), rtol=TOLERANCE[kind], atol=TOLERANCE[kind])


def run_packed(module, xs, initial=None):
    packed = pack_padded_sequence(xs, LENGTHS, batch_first=True, enforce_sorted=False)
    if initial is not None:
        initial = tuple(initial) if len(initial) == 2 else initial[0]
    packed_ys, final = module(packed, initial)
    ys, _ = pad_packed_sequence(packed_ys, batch_first=True, total_length=T)
    return ys, list(final) if isinstance(final, tuple) else [final]


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "bidirectional"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_packed_torch_has_the_same_outputs_states_and_gradients(case, num_layers, bidirectional):
    cell, torch_layer, _, options = CASES[case]
    options = options | {"num_layers": num_layers, "bidirectional": bidirectional}
    module = torch_layer(D, H, batch_first=True, dtype=torch.float64, **options)
    parts = num_layers * (2 if bidirectional else 1)
    xs = normal(B, T, D)
    initial = [normal(parts, B, H) for _ in range(2 if case == "lstm" else 1)]
    ys, final = run_packed(module, xs, initial)
    cotangents = [torch.randn_like(a) for a in (ys, *final)]
    torch.autograd.backward([ys, *final], cotangents)

    layer = rnnjax.stack(*[rnnjax.bidirectional(cell) if bidirectional else cell] * num_layers)

    def nested(rows):
        if not bidirectional:
            return tuple(rows)
        return tuple(rnnjax.Directions(*rows[k : k + 2]) for k in range(0, parts, 2))

    def ours(weights, xs, initial):
        params = nested([to_params(weights[4 * k : 4 * k + 4]) for k in range(parts)])
        carries = nested([to_carry([a[k] for a in initial]) for k in range(parts)])
        carry, ys = layer.apply(params, xs, LENGTHS, initial_carry=carries)
        rows = [part for floor in carry for part in (floor if bidirectional else [floor])]
        return [ys, *(jnp.stack(kind) for kind in zip(*map(states, rows), strict=True))]

    arguments = list(module.parameters()), [xs], initial
    weights, (inputs,), carries = jax.tree.map(array, arguments)
    got, pullback = jax.vjp(jax.jit(ours), weights, inputs, carries)
    gradients = pullback([array(a) for a in cotangents])
    assert_close(got, [ys, *final], "value")
    expected = [a.grad for a in jax.tree.leaves(arguments)]
    assert_close(jax.tree.leaves(gradients), expected, "gradient")


@pytest.mark.parametrize("case", CASES)
def test_without_initial_states_both_start_from_zero(case):
    cell, torch_layer, _, options = CASES[case]
    module = torch_layer(D, H, batch_first=True, dtype=torch.float64, **options)
    xs = normal(B, T, D)
    ys, final = run_packed(module, xs)
    carry, got = rnnjax.unroll(cell, to_params(map(array, module.parameters())), array(xs), LENGTHS)
    assert_close([got, *states(carry)], [ys, *(a[0] for a in final)], "value")


@pytest.mark.parametrize("case", CASES)
def test_unroll_equals_a_python_loop_over_the_torch_cell(case):
    cell, _, torch_cell, options = CASES[case]
    module = torch_cell(D, H, dtype=torch.float64, **options)
    xs, state, expected = normal(B, T, D), None, []
    for t in range(T):
        state = module(xs[:, t], state)
        expected.append(state[0] if case == "lstm" else state)
    carry, ys = rnnjax.unroll(cell, to_params(map(array, module.parameters())), array(xs))
    assert_close([ys], [torch.stack(expected, dim=1)], "value")
    assert_close(states(carry), state if case == "lstm" else [state], "value")
