"""Weights of live torch modules, in float64 on packed sequences: values, gradients, both ways."""

import jax
import numpy as np
import pytest
from interop_cases import (
    CELLS,
    LENGTHS,
    B,
    D,
    H,
    P,
    T,
    assert_close,
    assert_equal,
    draw_like,
    make_layer,
    normal,
    run,
    states,
)

import rnnjax
from rnnjax.interop import torch as interop

pytestmark = pytest.mark.usefixtures("quick_compile")

torch = pytest.importorskip("torch", reason="torch is not installed: its weights are untested")
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402

CASES = {
    "vanilla": ("vanilla", torch.nn.RNN, {}),
    "rnn relu": ("vanilla", torch.nn.RNN, {"nonlinearity": "relu"}),
    "lstm": ("lstm", torch.nn.LSTM, {}),
    "projected_lstm": ("projected_lstm", torch.nn.LSTM, {"proj_size": P}),
    "gru": ("gru", torch.nn.GRU, {}),
}


@pytest.fixture(autouse=True)
def float64():
    torch.manual_seed(0)
    with jax.enable_x64(True):
        yield


def make(case, **options):
    """The kind, our cell, and the torch module."""
    kind, make_module, own = CASES[case]
    cell = rnnjax.vanilla(H, jax.nn.relu) if "relu" in case else CELLS[kind]
    module = make_module(D, H, batch_first=True, dtype=torch.float64, **own, **options)
    return kind, cell, module


def run_torch(module, xs):
    """Outputs, and the final states h, or h and c, on packed sequences."""
    packed = pack_padded_sequence(xs, LENGTHS, batch_first=True, enforce_sorted=False)
    packed_ys, final = module(packed)
    ys, _ = pad_packed_sequence(packed_ys, batch_first=True, total_length=T)
    return ys, final if isinstance(final, tuple) else (final,)


def arrays(tensors):
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def load(module, weights):
    module.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})


def torch_gradients(kind, gradients):
    """Ours under torch's names; where only the sum of two biases acts, each has its gradient."""
    exported = interop.export_weights(kind, gradients)
    for name in [name for name in exported if name.startswith("bias_hh")]:
        alone = exported[name][2 * H :] if kind == "gru" else exported[name][:0]
        of_sum = exported[name.replace("hh", "ih")]
        exported[name] = np.concatenate([of_sum[: len(of_sum) - len(alone)], alone])
    return exported


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "bidirectional"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_imported_weights_give_the_values_and_gradients_of_torch(case, num_layers, bidirectional):
    kind, cell, module = make(case, num_layers=num_layers, bidirectional=bidirectional)
    params = interop.import_weights(kind, module.state_dict())
    layer = make_layer(cell, num_layers, bidirectional)
    xs = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    ys, final = run_torch(module, xs)
    (carry, got), pullback = run(layer, params, xs.detach().numpy(), LENGTHS)
    assert_close(got, ys.detach().numpy())
    expected = interop.import_carry(
        kind,
        [s.detach().numpy() for s in final] if len(final) == 2 else final[0].detach().numpy(),
        bidirectional=bidirectional,
    )
    assert_close(carry, expected)

    of_carry, of_ys = draw_like((carry, got), seed=1)
    d_final = interop.export_carry(kind, of_carry)
    d_final = d_final if isinstance(d_final, tuple) else (d_final,)
    torch.autograd.backward([ys, *final], [torch.from_numpy(a) for a in (of_ys, *d_final)])
    d_params, d_xs = pullback((of_carry, of_ys))
    assert_close(d_xs, xs.grad.numpy(), "gradient")
    expected = {name: weight.grad.numpy() for name, weight in module.named_parameters()}
    assert_close(torch_gradients(kind, d_params), expected, "gradient")


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "bidirectional"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_exported_weights_load_and_change_no_output(case, num_layers, bidirectional):
    kind, _, module = make(case, num_layers=num_layers, bidirectional=bidirectional)
    _, _, other = make(case, num_layers=num_layers, bidirectional=bidirectional)
    params = interop.import_weights(kind, module.state_dict())
    load(other, interop.export_weights(kind, params))
    xs = torch.from_numpy(normal(0, B, T, D))
    for a, b in zip(states(run_torch(other, xs)), states(run_torch(module, xs)), strict=True):
        assert_close(a.detach().numpy(), b.detach().numpy())


@pytest.mark.parametrize("case", CASES)
def test_a_module_without_biases_comes_and_goes_exactly(case):
    kind, cell, module = make(case, bias=False, num_layers=2, bidirectional=True)
    params = interop.import_weights(kind, module.state_dict())
    assert_equal(interop.export_weights(kind, params, bias=False), arrays(module.state_dict()))
    xs = normal(0, B, T, D)
    (_, got), _ = run(make_layer(cell, 2, True), params, xs, LENGTHS)
    assert_close(got, run_torch(module, torch.from_numpy(xs))[0].detach().numpy())


@pytest.mark.parametrize(
    ("kind", "make_cell"),
    [("vanilla", torch.nn.RNNCell), ("lstm", torch.nn.LSTMCell), ("gru", torch.nn.GRUCell)],
)
def test_torch_cells_come_and_go(kind, make_cell):
    module, other = (make_cell(D, H, dtype=torch.float64) for _ in range(2))
    params = interop.import_weights(kind, module.state_dict())
    load(other, interop.export_weights(kind, params, cell=True))
    xs = normal(0, B, T, D)
    (_, got), _ = run(make_layer(CELLS[kind]), params, xs)
    for one in (module, other):
        state, ys = None, []
        for x in torch.from_numpy(xs).unbind(1):
            state = one(x, state)
            ys.append(state[0] if kind == "lstm" else state)
        assert_close(got, torch.stack(ys, 1).detach().numpy())


def test_a_module_is_found_in_a_larger_one_and_put_back():
    model = torch.nn.ModuleDict(
        {"embedding": torch.nn.Embedding(9, D), "rnn": torch.nn.GRU(D, H), "head": torch.nn.Tanh()}
    )
    params = interop.import_weights("gru", model.state_dict(), prefix="rnn.")
    weights = interop.export_weights("gru", params, prefix="rnn.")
    result = model.load_state_dict(
        {name: torch.from_numpy(array) for name, array in weights.items()}, strict=False
    )
    assert result.missing_keys == ["embedding.weight"]
    assert result.unexpected_keys == []


def test_imported_weights_do_not_follow_further_training():
    module = torch.nn.GRU(D, H)
    params = interop.import_weights("gru", module.state_dict())
    before = jax.tree.map(np.copy, params)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(1.0)
    assert_equal(params, before)


def test_tensors_that_numpy_cannot_read_are_named():
    half = {name: a.bfloat16() for name, a in torch.nn.RNN(D, H).state_dict().items()}
    with pytest.raises(ValueError, match="weight_ih_l0 must be readable by NumPy, got"):
        interop.import_weights("vanilla", half)
    with pytest.raises(ValueError, match="weight_hh_l0 must be readable by NumPy, got"):
        interop.import_weights("vanilla", dict(torch.nn.RNN(D, H).named_parameters()))
    for state in (torch.ones(1, 2, H, dtype=torch.bfloat16), torch.ones(1, 2, H).requires_grad_()):
        with pytest.raises(ValueError, match="state must be readable by NumPy, got"):
            interop.import_carry("gru", state)
