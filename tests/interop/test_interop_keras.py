"""Weights of live Keras layers, in float64 on masks with holes: values, gradients, both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop_cases import (
    CELLS,
    B,
    D,
    H,
    T,
    assert_close,
    assert_equal,
    draw_like,
    make_layer,
    normal,
    random_params,
    states,
)

from rnnjax.interop import keras as interop

pytestmark = pytest.mark.usefixtures("float64_of_others", "quick_compile")

keras = pytest.importorskip("keras", reason="keras is not installed: its weights are untested")

MASK = np.array([[0, 0, 1, 1, 1], [1, 1, 0, 1, 0], [1, 1, 1, 0, 0]]) > 0
assert MASK.shape == (B, T)
CASES = {
    "vanilla": (keras.layers.SimpleRNN, {}),
    "lstm": (keras.layers.LSTM, {}),
    "gru": (keras.layers.GRU, {"reset_after": True}),
    "gru_reset_before": (keras.layers.GRU, {"reset_after": False}),
}


@keras.saving.register_keras_serializable("rnnjax_interop")  # Bidirectional copies by config
def float64_tanh(x):
    """The tanh of Keras itself rounds to float32 on this backend."""
    return jnp.tanh(x)


def make(kind, num_layers, bidirectional, **options):
    """A stack of Keras layers with weights; all of them give outputs and states."""
    make_layer, own = CASES[kind]
    options |= {"return_sequences": True, "return_state": True, "dtype": "float64"}
    layers, size = [], D
    for _ in range(num_layers):
        layer = make_layer(H, activation=float64_tanh, **own, **options)
        if bidirectional:
            layer = keras.layers.Bidirectional(layer, dtype="float64")
        layer.build((B, T, size))
        layers.append(layer)
        size = 2 * H if bidirectional else H
    return layers


def get_weights(layer):
    """``layer.get_weights()`` without the warning that Keras itself causes in NumPy."""
    return [np.asarray(w.value) for w in layer.weights]


def run_keras(layers, weights, xs):
    """Outputs at real steps, and the final states of all layers in one list."""
    ys, final = xs, []
    for layer, own in zip(layers, weights, strict=True):
        fixed = [w.value for w in layer.non_trainable_variables]
        (ys, *new), _ = layer.stateless_call(own, fixed, ys, mask=jnp.asarray(MASK))
        final += new
    return jnp.where(MASK[:, :, None], ys, 0), final


def keras_gradients(kind, gradients):
    """Ours in Keras's order; where only the sum of two biases acts, each has its gradient."""
    exported = interop.export_weights(kind, gradients)
    if kind == "gru":
        for bias in [array for layer in exported for array in layer[2::3]]:
            bias[1, : 2 * H] = bias[0, : 2 * H]
    return exported


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "bidirectional"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("kind", CASES)
def test_imported_weights_give_the_values_and_gradients_of_keras(kind, num_layers, bidirectional):
    layers = make(kind, num_layers, bidirectional)
    weights = [draw_like(get_weights(layer), seed, 0.5) for seed, layer in enumerate(layers)]
    xs = normal(5, B, T, D)
    ours = make_layer(CELLS[kind], num_layers, bidirectional)
    params = interop.import_weights(kind, weights if num_layers > 1 else weights[0])

    def apply(params, xs):
        carry, ys = ours.apply(params, xs, mask=MASK)
        return ys, states(carry)

    def theirs(weights, xs):
        return run_keras(layers, weights, xs)

    got, pullback = jax.vjp(jax.jit(apply), jax.tree.map(jnp.asarray, params), jnp.asarray(xs))
    arguments = jax.tree.map(jnp.asarray, (weights, xs))
    expected, keras_pullback = jax.vjp(jax.jit(theirs), *arguments)
    assert_close(got, expected)

    cotangents = draw_like(got, seed=6)
    d_params, d_xs = pullback(cotangents)
    d_weights, d_keras_xs = keras_pullback(cotangents)
    assert_close(d_xs, d_keras_xs, "gradient")
    d_params = d_params if num_layers > 1 else (d_params,)
    assert_close(keras_gradients(kind, d_params), d_weights, "gradient")


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "bidirectional"])
@pytest.mark.parametrize("kind", CASES)
def test_set_weights_takes_exported_weights_and_get_weights_gives_them_back(kind, bidirectional):
    (layer,) = make(kind, 1, bidirectional)
    params = random_params(make_layer(CELLS[kind], 1, bidirectional))
    layer.set_weights(interop.export_weights(kind, params))
    assert_equal(interop.import_weights(kind, get_weights(layer)), params)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "bidirectional"])
@pytest.mark.parametrize("kind", CASES)
def test_layers_without_biases_come_and_go_exactly(kind, bidirectional):
    (layer,) = make(kind, 1, bidirectional, use_bias=False)
    weights = get_weights(layer)
    params = interop.import_weights(kind, weights)
    assert_equal(interop.export_weights(kind, params, bias=False), weights)
    ours = make_layer(CELLS[kind], 1, bidirectional)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, random_params(ours))
