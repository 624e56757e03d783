"""Values and gradients against Keras on masks with holes, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

pytestmark = pytest.mark.usefixtures("float64_of_others")

keras = pytest.importorskip("keras", reason="keras is not installed: its RNN layers untested")

T, D, H = 6, 3, 4
MASK = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 0, 1, 0, 1], [1, 1, 1, 0, 0, 0], [1] * 6, [0] * 6]) > 0
B = len(MASK)
TOLERANCE = {"value": 1e-12, "gradient": 1e-11}
CASES = {
    "simple tanh": (rnnjax.vanilla(H), keras.layers.SimpleRNN, {}),
    "simple relu": (rnnjax.vanilla(H, jax.nn.relu), keras.layers.SimpleRNN, {"activation": "relu"}),
    "lstm": (rnnjax.lstm(H), keras.layers.LSTM, {}),
    "gru reset after": (rnnjax.gru(H), keras.layers.GRU, {"reset_after": True}),
    "gru reset before": (rnnjax.gru(H, False), keras.layers.GRU, {"reset_after": False}),
}


@keras.saving.register_keras_serializable("rnnjax")  # Bidirectional copies a layer by its config
def exact_tanh(x):
    """The tanh of Keras itself rounds to float32 on this backend."""
    return jnp.tanh(x)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def reorder(gates):
    """Keras packs a GRU's gates z, r, n."""
    z, r, n = jnp.split(gates, 3, axis=-1)
    return jnp.concatenate([r, z, n], axis=-1)


def to_params(weights):
    """``kernel, recurrent_kernel, bias`` of Keras as the parameters of our cell."""
    w_ih, w_hh, bias = weights
    if w_hh.shape[1] == H:
        return rnnjax.VanillaParams(w_ih, w_hh, bias)
    if w_hh.shape[1] == 4 * H:
        return rnnjax.LSTMParams(w_ih, w_hh, bias)
    w_ih, w_hh, bias = map(reorder, (w_ih, w_hh, bias))
    if bias.ndim == 1:  # reset before
        return rnnjax.GRUParams(w_ih, w_hh, bias, None)
    of_input, of_state = bias
    bias = of_input.at[: 2 * H].add(of_state[: 2 * H])
    return rnnjax.GRUParams(w_ih, w_hh, bias, of_state[2 * H :])


def make(case, **options):
    """Our cell, and the Keras layer that returns all outputs and the final states."""
    cell, keras_layer, own = CASES[case]
    options |= {"return_sequences": True, "return_state": True, "dtype": "float64"}
    return cell, keras_layer(H, **{"activation": exact_tanh} | own, **options)


def build(layer):
    """Create the weights; the values returned are random, the biases too."""
    layer.build((B, T, D))
    return [normal(seed, *w.shape) for seed, w in enumerate(layer.trainable_variables)]


def run_keras(layer, weights, xs, states=None):
    """``(ys, final states)``, the outputs in the order in which Keras gives them."""
    fixed = [w.value for w in layer.non_trainable_variables]
    (ys, *final), _ = layer.stateless_call(weights, fixed, xs, mask=MASK, initial_state=states)
    return ys, final


def at_real_steps(ys):
    return jnp.where(MASK[:, :, None], ys, 0)


def states_of(carry):
    return list(carry) if isinstance(carry, rnnjax.LSTMCarry) else [carry]


def initial_states(case):
    return [normal(seed, B, H) for seed in ((20, 21) if case == "lstm" else (20,))]


def assert_close(got, expected, kind):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=TOLERANCE[kind], atol=TOLERANCE[kind])


@pytest.mark.parametrize("case", CASES)
def test_masked_keras_has_the_same_outputs_states_and_gradients(case):
    cell, layer = make(case)
    arguments = build(layer), normal(10, B, T, D), initial_states(case)

    def ours(weights, xs, states):
        carry = rnnjax.LSTMCarry(*states) if case == "lstm" else states[0]
        carry, ys = rnnjax.unroll(cell, to_params(weights), xs, mask=MASK, initial_carry=carry)
        return ys, states_of(carry)

    def theirs(*arguments):
        ys, final = run_keras(layer, *arguments)
        return at_real_steps(ys), final

    expected, keras_pullback = jax.vjp(jax.jit(theirs), *arguments)
    got, pullback = jax.vjp(jax.jit(ours), *arguments)
    cotangents = jax.tree.map(lambda a: normal(30 + a.ndim, *a.shape), expected)
    assert_close(got, expected, "value")
    assert_close(pullback(cotangents), keras_pullback(cotangents), "gradient")


@pytest.mark.parametrize("case", CASES)
def test_reverse_with_a_mask_equals_keras_go_backwards(case):
    cell, layer = make(case, go_backwards=True)
    weights, xs = build(layer), normal(10, B, T, D)
    carry, ys = rnnjax.unroll(cell, to_params(weights), xs, mask=MASK, reverse=True)
    backwards, final = run_keras(layer, weights, xs)
    assert_close(states_of(carry), final, "value")
    assert_close(ys, at_real_steps(backwards[:, ::-1]), "value")  # Keras: in order of computation


@pytest.mark.parametrize("case", CASES)
def test_bidirectional_keras_has_the_same_outputs_and_states(case):
    cell, one = make(case)
    layer = keras.layers.Bidirectional(one, dtype="float64")
    weights, xs = build(layer), normal(10, B, T, D)
    params = rnnjax.Directions(to_params(weights[:3]), to_params(weights[3:]))
    carry, ys = rnnjax.bidirectional(cell).apply(params, xs, mask=MASK)
    expected_ys, final = run_keras(layer, weights, xs)
    assert_close(states_of(carry.forward) + states_of(carry.backward), final, "value")
    assert_close(ys, at_real_steps(expected_ys), "value")
