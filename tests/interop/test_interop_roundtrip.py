"""What is exported comes back as it was, in every library's layout; none of them is needed."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop_cases import CELLS, D, H, assert_equal, make_layer, random_params

import rnnjax
from rnnjax.interop import equinox, haiku, keras, linen, nnx, onnx, torch

pytestmark = pytest.mark.usefixtures("quick_compile")

NAMES = {
    (1, False): "a",
    (1, True): rnnjax.Directions("a", "b"),
    (2, False): ("a", "b"),
    (2, True): (rnnjax.Directions("a", "b"), rnnjax.Directions("c", "d")),
}


def haiku_there_and_back(kind, params):
    layers = params if type(params) is tuple else (params,)
    names = NAMES[len(layers), isinstance(layers[0], rnnjax.Directions)]
    return haiku.import_weights(kind, haiku.export_weights(kind, params, names), names)


def there_and_back(library):
    return lambda kind, params: library.import_weights(kind, library.export_weights(kind, params))


ROUND_TRIPS = {
    "torch": (there_and_back(torch), ["vanilla", "lstm", "projected_lstm", "gru"]),
    "keras": (there_and_back(keras), ["vanilla", "lstm", "gru", "gru_reset_before"]),
    "linen": (there_and_back(linen), ["vanilla", "lstm", "gru", "minimal_gated"]),
    "nnx": (there_and_back(nnx), ["vanilla", "lstm", "optimized_lstm"]),
    "haiku": (haiku_there_and_back, ["vanilla", "gru_reset_before"]),
    "equinox": (there_and_back(equinox), ["lstm", "gru"]),
    "onnx": (
        there_and_back(onnx),
        ["vanilla", "lstm", "peephole_lstm", "coupled_lstm", "gru", "gru_reset_before"],
    ),
}
CASES = [(name, kind) for name, (_, kinds) in ROUND_TRIPS.items() for kind in kinds]


def test_none_of_the_libraries_is_imported():
    libraries = ("torch", "keras", "flax", "haiku", "equinox", "onnx", "jax.experimental.rnn")
    code = f"import sys, rnnjax.interop; print([m for m in {libraries} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("num_layers", "bidirectional"), NAMES, ids=str)
@pytest.mark.parametrize(("library", "kind"), CASES)
def test_a_round_trip_changes_no_bit_and_no_dtype(library, kind, num_layers, bidirectional, dtype):
    params = random_params(make_layer(CELLS[kind], num_layers, bidirectional), 0, jnp.dtype(dtype))
    assert_equal(ROUND_TRIPS[library][0](kind, params), params)


def test_directions_of_weights_are_no_stack():
    params = random_params(make_layer(CELLS["lstm"], 1, bidirectional=True))
    for library in (keras, linen, nnx, equinox):
        weights = rnnjax.Directions(*(library.export_weights("lstm", half) for half in params))
        assert_equal(library.import_weights("lstm", weights), params)


def test_biases_that_are_not_there_are_zeros_of_the_dtype_that_came():
    drawn = random_params(make_layer(CELLS["gru"]), 0, np.float32)
    params = drawn._replace(bias=0 * drawn.bias, hidden_bias=0 * drawn.hidden_bias)
    for library in (torch, keras, equinox):
        weights = library.export_weights("gru", params, bias=False)
        assert_equal(library.import_weights("gru", weights), params)


def test_arrays_lie_row_by_row_on_both_sides():
    """safetensors 0.8 writes the numbers of an array as they lie in memory."""
    params = random_params(make_layer(CELLS["lstm"]))
    for library in (torch, keras, linen, nnx, haiku, equinox, onnx):
        names = ["a"] if library is haiku else []
        weights = library.export_weights("lstm", params, *names)
        back = library.import_weights("lstm", weights, *names)
        assert all(leaf.flags.c_contiguous for leaf in jax.tree.leaves((weights, back)))


def test_more_than_ten_layers_of_torch_come_back():
    params = random_params(make_layer(CELLS["vanilla"], 11))
    assert_equal(there_and_back(torch)("vanilla", params), params)


@pytest.mark.parametrize(("library", "kind"), CASES)
def test_arrays_of_jax_are_taken_and_arrays_of_numpy_given(library, kind):
    layer = make_layer(CELLS[kind], 1, True)
    params = layer.init(jax.random.key(0), D)
    back = ROUND_TRIPS[library][0](kind, params)
    assert {type(leaf) for leaf in jax.tree.leaves(back)} == {np.ndarray}
    assert_equal(back, jax.device_get(params))


def test_a_stack_of_one_layer_comes_back_as_that_layer_where_names_cannot_tell():
    params = random_params(make_layer(CELLS["gru"]))
    assert_equal(there_and_back(torch)("gru", (params,)), params)
    for library in (keras, linen, onnx, equinox):
        assert_equal(there_and_back(library)("gru", (params,)), (params,))


def test_layers_take_imported_weights_as_they_are():
    layer = make_layer(CELLS["projected_lstm"], 2, True)
    weights = torch.export_weights("projected_lstm", layer.init(jax.random.key(0), D))
    params = torch.import_weights("projected_lstm", weights)
    carry, ys = layer.apply(params, jnp.ones((2, 3, D)), lengths=[3, 1])
    assert carry[1].backward.c.shape == (2, H)
    assert bool(jnp.all(ys[1, 1:] == 0))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("kind", ["vanilla", "lstm", "projected_lstm", "gru"])
def test_carries_of_torch_come_back(kind, num_layers, bidirectional):
    layer = make_layer(CELLS[kind], num_layers, bidirectional)
    carry, _ = layer.apply(layer.init(jax.random.key(0), D), jnp.ones((2, 3, D)))
    state = torch.export_carry(kind, carry)
    rows = num_layers * (2 if bidirectional else 1)
    assert {len(part) for part in jax.tree.leaves(state)} == {rows}
    back = torch.import_carry(kind, state, bidirectional=bidirectional)
    assert_equal(back, jax.device_get(carry))
