"""What does not fit, or has no exact counterpart, is refused by name; no library is needed."""

import re
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from interop_cases import CELLS, D, H, make_layer, random_params

import rnnjax
from rnnjax.interop import equinox, haiku, keras, linen, nnx, onnx, torch

LSTM = random_params(make_layer(CELLS["lstm"]))
GRU = random_params(make_layer(CELLS["gru"]))
HALF = np.float16


def refuses(*messages):
    """A ValueError that says all of the messages."""
    return pytest.raises(ValueError, match="(?s)" + ".*".join(map(re.escape, messages)))


def test_every_entry_that_does_not_fit_is_named():
    weights = torch.export_weights("lstm", random_params(make_layer(CELLS["lstm"], 2)), "b.")
    del weights["b.bias_hh_l0"]
    weights["b.extra"] = np.zeros(3)
    weights["b.weight_ih_l0"] = np.zeros((4 * H, D), np.int32)
    weights["b.weight_hh_l1"] = np.zeros((4 * H, H + 1))
    weights["other.weight"] = np.zeros(3)
    with refuses(
        "PyTorch 'lstm' at 'b.' must have weights that fit, got:",
        "extra must be absent, got ndarray",
        "weight_ih_l0 must be of floating dtype, got int32",
        f"bias_hh_l0 must have shape [4H] with H = {H}, got nothing",
        f"weight_hh_l1 must have shape [4H, H] with H = {H}, got ({4 * H}, {H + 1})",
    ) as error:
        torch.import_weights("lstm", weights, prefix="b.")
    assert "other" not in str(error.value)
    assert len(str(error.value).splitlines()) == 5


def test_the_surest_entry_tells_the_sizes_of_the_others():
    """Of weights [4H, H] it is the axis that is H itself; a bias [4H] of 4H - 1 tells nothing."""
    gates = {"weight_ih_l0": np.zeros((3 * H, D)), "weight_hh_l0": np.zeros((3 * H, H))}
    with refuses(
        f"weight_hh_l0 must have shape [4H, H] with H = {H}, got ({3 * H}, {H})\n",
        f"weight_ih_l0 must have shape [4H, D] with H = {H}, D = {D}, got ({3 * H}, {D})",
    ):
        torch.import_weights("lstm", gates)
    weights = {"a/linear": {"w": np.zeros((D + H, 4 * H)), "b": np.zeros(4 * H - 1)}}
    with refuses(f"got:\n  linear/b must have shape [4H], got ({4 * H - 1},)"):
        haiku.import_weights("lstm", weights, "a")


def test_a_missing_layer_is_named():
    weights = {
        name.replace("_l0", "_l1"): a for name, a in torch.export_weights("gru", GRU).items()
    }
    with refuses(
        *(f"{name} must have shape [3H" for name in ("weight_hh_l0", "weight_ih_l0")), "got nothing"
    ):
        torch.import_weights("gru", weights)
    with refuses("weight_hh_l0 must have shape [3H, H]"):
        torch.import_weights("gru", weights, prefix="elsewhere.")


LIBRARIES = {
    "PyTorch": lambda kind: torch.import_weights(kind, {}),
    "Keras": lambda kind: keras.import_weights(kind, []),
    "Flax linen": lambda kind: linen.import_weights(kind, {}),
    "Flax nnx": lambda kind: nnx.import_weights(kind, {}),
    "Haiku": lambda kind: haiku.import_weights(kind, {}, "a"),
    "Equinox": lambda kind: equinox.import_weights(kind, None),
    "ONNX": lambda kind: onnx.import_weights(kind, {}),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_unknown_kind_is_refused_with_those_there_are(library):
    with refuses("kind must be one of ['", f"] for {library}, got 'bilstm'"):
        LIBRARIES[library]("bilstm")


EXPORTS = {
    "torch": torch.export_weights,
    "keras": keras.export_weights,
    "linen": linen.export_weights,
    "nnx": nnx.export_weights,
    "haiku": lambda kind, params: haiku.export_weights(kind, params, "a"),
    "equinox": equinox.export_weights,
    "onnx": onnx.export_weights,
}


@pytest.mark.parametrize(("former", "name"), [("rnn", "vanilla"), ("mgu", "minimal_gated")])
def test_a_former_name_of_a_kind_is_taken_for_that_of_its_cell(former, name):
    params = random_params(make_layer(CELLS[name]))
    message = f"the kind '{former}' is called '{name}' now"
    with pytest.warns(DeprecationWarning, match=message) as warned:
        weights = linen.export_weights(former, params)
    assert warned[0].filename == __file__  # else Python would not show it
    assert weights.keys() == linen.export_weights(name, params).keys()


@pytest.mark.parametrize("library", EXPORTS)
def test_parameters_of_another_cell_are_refused(library):
    with refuses("must be LSTMParams for kind 'lstm', got GRUParams"):
        EXPORTS[library]("lstm", GRU)


@pytest.mark.parametrize("library", ["torch", "linen", "nnx", "equinox", "keras", "onnx"])
def test_the_reset_before_form_is_no_reset_after_gru(library):
    with refuses("kind 'gru'", "hidden_bias must have shape", "got nothing"):
        EXPORTS[library]("gru", GRU._replace(hidden_bias=None))


@pytest.mark.parametrize("library", ["haiku", "keras", "onnx"])
def test_the_reset_after_form_is_no_reset_before_gru(library):
    with refuses("kind 'gru_reset_before'", "hidden_bias must be absent"):
        EXPORTS[library]("gru_reset_before", GRU)


def test_a_bias_of_the_other_reset_form_is_refused_by_keras():
    after = keras.export_weights("gru", GRU)
    with refuses(f"bias must have shape [3H] with H = {H}, got (2, {3 * H})"):
        keras.import_weights("gru_reset_before", after)
    before = keras.export_weights("gru_reset_before", GRU._replace(hidden_bias=None))
    with refuses(f"bias must have shape [2, 3H] with H = {H}, got ({3 * H},)"):
        keras.import_weights("gru", before)


@pytest.mark.parametrize("library", EXPORTS)
def test_parameters_that_do_not_fit_together_are_refused(library):
    wrong = LSTM._replace(bias=np.zeros(3 * H))
    with refuses(f"bias must have shape [4H] with H = {H}, got ({3 * H},)"):
        EXPORTS[library]("lstm", wrong)
    with refuses("all must have one dtype, got", "bias float32"):
        EXPORTS[library]("lstm", LSTM._replace(bias=LSTM.bias.astype(np.float32)))


def test_all_cells_that_do_not_fit_are_named():
    wrong = LSTM._replace(bias=np.zeros(3 * H))
    with refuses("params[0].backward", "params[1].forward"):
        linen.export_weights(
            "lstm", (rnnjax.Directions(LSTM, wrong), rnnjax.Directions(wrong, LSTM))
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_biases_of_16_bits_are_added_only_where_that_is_exact(dtype):
    dtype = jnp.dtype(dtype)
    params = random_params(make_layer(CELLS["lstm"]), 0, dtype)
    small = np.full(4 * H, 2.0**-12, dtype)
    weights = torch.export_weights("lstm", params)
    exact = weights | {"bias_ih_l0": small, "bias_hh_l0": small + small}
    assert torch.import_weights("lstm", exact).bias.tolist() == [3 * 2.0**-12] * (4 * H)
    inexact = weights | {"bias_ih_l0": small, "bias_hh_l0": np.ones_like(small)}
    exactness = f"must have a sum that is exact in {dtype}, got one that is not: "
    with refuses("bias_ih_l0 and bias_hh_l0", exactness + "convert the weights to float32 first"):
        torch.import_weights("lstm", inexact)
    widened = {name: array.astype(np.float32) for name, array in inexact.items()}
    assert torch.import_weights("lstm", widened).bias.tolist() == [1 + 2.0**-12] * (4 * H)


def test_every_library_that_adds_biases_of_16_bits_refuses_to_round():
    lstm, gru = (
        random_params(make_layer(CELLS[kind]), 0, HALF)._replace(bias=np.ones(n * H, HALF))
        for kind, n in (("lstm", 4), ("gru", 3))
    )
    node = onnx.export_weights("lstm", lstm)
    node["B"][:, 4 * H :] = 2.0**-12
    with refuses("the two halves of B must have a sum that is exact in float16"):
        onnx.import_weights("lstm", node)
    layer = keras.export_weights("gru", gru)
    layer[2][1] = 2.0**-12
    with refuses("the two rows of bias must have a sum that is exact in float16"):
        keras.import_weights("gru", layer)
    core = haiku.export_weights("lstm", lstm, "a")
    core["a/linear"]["b"][:] = 2.0**-12
    with refuses("+1 and the forget bias must have a sum that is exact in float16"):
        haiku.import_weights("lstm", core, "a")
    with refuses("-1 and the forget bias must have a sum that is exact in float16"):
        haiku.export_weights("lstm", lstm._replace(bias=np.full(4 * H, 2.0**-12, HALF)), "a")


@pytest.mark.parametrize("export", [torch.export_weights, keras.export_weights])
def test_biases_are_not_dropped_unless_they_are_zero(export):
    for params in (GRU, GRU._replace(bias=np.zeros(3 * H)), GRU._replace(hidden_bias=np.zeros(H))):
        with refuses("must have zero biases", "without biases, got others"):
            export("gru", params, bias=False)
        with refuses("must have zero biases", "without biases, got others"):
            equinox.export_weights("gru", params, bias=False)


def test_a_torch_module_is_one_size_and_one_direction_or_two():
    with refuses(
        "params must have two directions in every layer for PyTorch, or in none, got both"
    ):
        torch.export_weights("lstm", (rnnjax.Directions(LSTM, LSTM), LSTM))
    with refuses("one PyTorch module for all layers", "weight_ih_l1 must have shape [4H, H]"):
        torch.export_weights("lstm", (LSTM, LSTM))
    with refuses("params must be those of a cell that PyTorch has, got 2 rows of weights"):
        torch.export_weights("lstm", rnnjax.Directions(LSTM, LSTM), cell=True)
    projected = random_params(make_layer(CELLS["projected_lstm"]))
    with refuses("a cell that PyTorch has, got 1 rows of weights of kind 'projected_lstm'"):
        torch.export_weights("projected_lstm", projected, cell=True)


def test_what_is_no_tree_of_weights_is_named():
    with refuses("weights must be arrays by name, got NoneType"):
        torch.import_weights("lstm", None)
    with refuses("weights must be arrays by name, got the name 1"):
        torch.import_weights("lstm", {1: np.zeros(2)})
    with refuses("prefix must be a string, got None"):
        torch.import_weights("lstm", torch.export_weights("lstm", LSTM), None)
    with refuses("weights must be a list, as get_weights() gives, got NoneType"):
        keras.import_weights("lstm", None)
    h = np.zeros((2, H))
    with refuses("carry must be one array a row for 'gru', got LSTMCarry(h, c)"):
        torch.export_carry("gru", rnnjax.LSTMCarry(h, h))
    with refuses("carry must be LSTMCarry(h, c) a row for 'lstm', got an array of shape (2, "):
        torch.export_carry("lstm", (h, h))
    with refuses("carry must be one array a row for 'gru', got an array of shape ()"):
        torch.export_carry("gru", np.array(1.0))
    with refuses("carry must be one array a row for 'gru', got a tuple of 0"):
        torch.export_carry("gru", ())
    with refuses("carry must have rows of one shape for PyTorch, got [((2, "):
        torch.export_carry("gru", (h, h[:, 1:]))
    with refuses("weights must be arrays by name, got list"):
        haiku.import_weights("lstm", [], "a")
    with refuses("weights['a'] must be arrays by name, got ndarray"):
        haiku.import_weights("lstm", {"a": h}, "a")
    with refuses("params must be LSTMParams for kind 'lstm', got tuple"):
        onnx.export_weights("lstm", ())


@pytest.mark.parametrize(
    ("convert", "flag"),
    [
        (lambda: torch.export_weights("lstm", LSTM, bias="no"), "bias"),
        (lambda: torch.export_weights("lstm", LSTM, cell="no"), "cell"),
        (
            lambda: torch.import_carry("gru", np.zeros((2, 2, H)), bidirectional="no"),
            "bidirectional",
        ),
        (lambda: keras.export_weights("lstm", LSTM, bias="no"), "bias"),
        (lambda: equinox.export_weights("lstm", LSTM, bias="no"), "bias"),
    ],
)
def test_a_word_is_no_flag(convert, flag):
    """It would be taken for True."""
    with refuses(f"{flag} must be True or False, got 'no'"):
        convert()


def test_weights_of_another_byte_order_are_the_numbers_they_are():
    arrays = torch.export_weights("lstm", LSTM)
    swapped = {name: a.astype(a.dtype.newbyteorder(">")) for name, a in arrays.items()}
    for found, expected in zip(torch.import_weights("lstm", swapped), LSTM, strict=True):
        assert found.dtype.isnative
        np.testing.assert_array_equal(found, expected)


def test_a_torch_state_of_odd_rows_is_not_bidirectional():
    with refuses("state must have an even number of rows, two a layer, got 3"):
        torch.import_carry("gru", np.zeros((3, 2, H)), bidirectional=True)


def test_a_torch_state_of_an_lstm_is_a_pair():
    """h alone, of two layers, would be taken for h and c of as many layers as there are rows."""
    h = np.zeros((2, 3, H))
    with refuses("state must be (h, c) for 'lstm', got an array of shape (2, 3, "):
        torch.import_carry("lstm", h)
    with refuses("state must be one array h for 'gru', got a tuple of 2"):
        torch.import_carry("gru", (h, h))
    with refuses("state must be (h, c) for 'lstm', got a tuple of 3"):
        torch.import_carry("lstm", (h, h, h))
    with refuses("state must have shape [layers * directions, B, H]"):
        torch.import_carry("lstm", (h, h[:1]))
    with refuses("state must have shape [layers * directions, B, H]"):
        torch.import_carry("gru", h[0, 0])


def test_a_keras_layer_is_two_three_four_or_six_arrays():
    arrays = keras.export_weights("lstm", LSTM)
    for count in (0, 1, 5, 7):
        with refuses("must have the arrays kernel, recurrent_kernel, bias", f"got {count} arrays"):
            keras.import_weights("lstm", (arrays * 3)[:count])
    with refuses("got 9 arrays: of a stack, give a list with get_weights() of every layer"):
        keras.import_weights("lstm", [np.ones((3, 16)), np.ones((4, 16)), np.ones(16)] * 3)
    with refuses("weights[1] must have the arrays", "got 1 arrays"):
        keras.import_weights("lstm", [arrays, arrays[:1]])
    with refuses("weights.backward must have the arrays", "got 1 arrays"):
        keras.import_weights("lstm", rnnjax.Directions(arrays, arrays[:1]))


def test_flax_weights_are_named_down_to_the_leaf():
    weights = linen.export_weights("gru", GRU)["cell"]
    weights["hn"]["bais"] = weights["hn"].pop("bias")
    with refuses("linen 'gru'", "hn/bais must be absent", "hn/bias must have shape [H]"):
        linen.import_weights("gru", {"cell": weights})
    with refuses("forward_rnn/cell/hn/kernel must be absent"):
        linen.import_weights("gru", {"forward_rnn": {"cell": weights}})
    with refuses("weights must be those of a cell by name, got ndarray"):
        linen.import_weights("gru", [np.zeros(3)])


def test_haiku_rows_must_hold_an_input():
    weights = {"a/linear": {"w": np.zeros((H, 4 * H)), "b": np.zeros(4 * H)}}
    with refuses(f"linear/w must have input rows above {H} hidden ones, got {H} rows"):
        haiku.import_weights("lstm", weights, "a")
    with refuses("weights must have the module 'b'", "got ['a/linear']"):
        haiku.import_weights("lstm", weights, "b")


def test_equinox_cells_are_named_in_their_tree():
    bare = SimpleNamespace(weight_ih=np.zeros((3 * H, D)), bias=np.zeros(3 * H))
    with refuses(
        "cells[0].backward, Equinox 'gru'", "weight_hh must have shape", "bias_n must have shape"
    ):
        whole = equinox.export_weights("gru", GRU)
        equinox.import_weights("gru", (rnnjax.Directions(whole, vars(bare)),))


def test_an_object_that_is_no_equinox_cell_of_that_kind_is_refused():
    """Its arrays may have the right names and shapes and yet be used otherwise."""
    for kind in ("gru", "lstm"):
        weights = equinox.export_weights(kind, GRU if kind == "gru" else LSTM)
        with refuses(f"cells, Equinox '{kind}', must be an equinox.nn.{kind.upper()}Cell"):
            equinox.import_weights(kind, SimpleNamespace(**weights))
        namesake = type(f"{kind.upper()}Cell", (SimpleNamespace,), {})
        with refuses(f"cells, Equinox '{kind}', must be an equinox.nn.{namesake.__name__}"):
            equinox.import_weights(kind, namesake(**weights))


def test_a_torch_prefix_that_is_not_quite_right_is_corrected():
    weights = torch.export_weights("lstm", LSTM, "lstm.") | {"head.weight": np.zeros((2, H))}
    for prefix in ("", "lstm", "encoder."):
        with refuses(
            f"PyTorch 'lstm' at {prefix!r} must have weight_ih_l0", "mean prefix='lstm.'?"
        ) as e:
            torch.import_weights("lstm", weights, prefix=prefix)
        assert len(str(e.value).splitlines()) == 1
    two = weights | torch.export_weights("gru", GRU, "decoder.rnn.")
    with refuses("did you mean prefix='lstm.' or prefix='decoder.rnn.'?"):
        torch.import_weights("lstm", two)
    cell = torch.export_weights("gru", GRU, "cell.", cell=True)
    with refuses("did you mean prefix='cell.'?"):
        torch.import_weights("gru", cell)


def test_flax_weights_that_lie_deeper_are_pointed_at():
    weights = {"params": {"encoder": linen.export_weights("gru", GRU), "head": {}}}
    with refuses("linen 'gru'", "did you mean weights['params']['encoder']['cell']?") as error:
        linen.import_weights("gru", weights)
    assert len(str(error.value).splitlines()) == 1
    both = linen.export_weights("lstm", rnnjax.Directions(LSTM, LSTM))
    with refuses("did you mean weights['bi']['forward_rnn']['cell'] or weights['bi']"):
        linen.import_weights("lstm", {"bi": both, "head": {}})


@pytest.mark.parametrize("params", [LSTM, rnnjax.Directions(LSTM, LSTM)])
def test_what_lies_beside_the_cells_of_flax_is_not_passed_over(params):
    weights = linen.export_weights("lstm", params) | {"dense": {"kernel": np.zeros((H, 2))}}
    with refuses("linen 'lstm'", "must be a cell, got none there; did you mean weights['"):
        linen.import_weights("lstm", weights)


def test_haiku_modules_that_are_there_are_named():
    core = {"head/linear": {}} | haiku.export_weights("lstm", LSTM, "net/~/lstm")
    with refuses("weights must have the module 'lstm'", "did you mean 'net/~/lstm'?"):
        haiku.import_weights("lstm", core, "lstm")


def test_onnx_nodes_have_one_or_two_directions():
    one = onnx.export_weights("gru", GRU)
    for count in (0, 3):
        node = {name: np.repeat(array, count, 0) for name, array in one.items()}
        with refuses(f"nodes, ONNX 'gru' must have one or two directions, got {count}"):
            onnx.import_weights("gru", node)
    wide = random_params(rnnjax.recurrent(rnnjax.gru(H + 1)))
    with refuses("ONNX needs two directions of the same sizes"):
        onnx.export_weights("gru", rnnjax.Directions(GRU, wide))
    node = onnx.export_weights("lstm", LSTM) | {"P": np.zeros((1, 3 * H))}
    with refuses("ONNX 'lstm'", "P must be absent"):
        onnx.import_weights("lstm", node)


def test_onnx_nodes_that_compute_something_else_are_refused():
    assert onnx.kind_of("LSTM", {"activations": [b"Sigmoid", b"Tanh", b"Tanh"] * 2}) == "lstm"
    with refuses("GRU must have the activations ['sigmoid', 'tanh'], got ['hardsigmoid', 'tanh']"):
        onnx.kind_of("GRU", {"activations": ["HardSigmoid", "Tanh"]})
    with refuses("RNN must have the activations ['tanh'], got ['relu']"):
        onnx.kind_of("RNN", {"activations": ["Relu"]})
    for attributes, shown in (
        ({"clip": 3.0}, "clip=3.0"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"direction": b"sideways"}, "direction='sideways'"),
        ({"layout": 2}, "layout=2"),
        ({"activation_alpha": [0.2]}, "activation_alpha=[0.2]"),
        ({"some_new_option": 0}, "some_new_option=0"),
    ):
        with refuses(f"LSTM must have attributes that a cell here has, got {shown}"):
            onnx.kind_of("LSTM", {"hidden_size": 5, **attributes})
    assert onnx.kind_of("LSTM", {"hidden_size": 5, "direction": "reverse", "layout": 1}) == "lstm"
    with refuses("LSTM must have attributes that a cell here has, got input_forget with peepholes"):
        onnx.kind_of("LSTM", {"input_forget": 1}, peepholes=True)
    with refuses("op_type must be one of ['RNN', 'LSTM', 'GRU'], got 'Conv'"):
        onnx.kind_of("Conv", {})
