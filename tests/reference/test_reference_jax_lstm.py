"""A two-layer bidirectional LSTM against the reference that JAX keeps for its cuDNN binding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn

import rnnjax

pytestmark = pytest.mark.usefixtures("float64")

B, T, D, H, LAYERS = 4, 7, 3, 5, 2
LENGTHS = jnp.array([3, T, 1, 5], jnp.int32)  # the reference reads the wrong carry at length 0
TOLERANCE = {"value": 1e-12, "gradient": 1e-11}
LAYER = rnnjax.stack(*[rnnjax.bidirectional(rnnjax.lstm(H))] * LAYERS)


def unpack(flat):
    """``W_ih, W_hh, b_ih, b_hh``, each by number: two directions of layer 0, two of layer 1."""
    return rnn.unpack_lstm_weights(flat, D, H, LAYERS, bidirectional=True)


def by_direction(make):
    """The tree of the stack, with ``make(number)`` for each direction of each layer."""
    return tuple(rnnjax.Directions(make(2 * layer), make(2 * layer + 1)) for layer in range(LAYERS))


def to_carries(h, c):
    return by_direction(lambda k: rnnjax.LSTMCarry(h[k], c[k]))


def reference(flat, xs, h_0, c_0):
    ys, h, c = rnn.lstm_ref(xs, h_0, c_0, *unpack(flat), LENGTHS, D, H, LAYERS, 0.0, True)
    return to_carries(h, c), ys


def ours(flat, xs, h_0, c_0):
    w_ih, w_hh, b_ih, b_hh = unpack(flat)
    params = by_direction(
        lambda k: rnnjax.LSTMParams(w_ih[k].T, w_hh[k].T, b_ih[k] + b_hh[k]),
    )
    return LAYER.apply(params, xs, LENGTHS, initial_carry=to_carries(h_0, c_0))


def problem():
    """Flat weights, inputs and initial states: the arguments of both functions."""
    count = rnn.get_num_params_in_lstm(D, H, LAYERS, bidirectional=True)
    shapes = [(count,), (B, T, D), (2 * LAYERS, B, H), (2 * LAYERS, B, H)]
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


def assert_close(got, expected, kind):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=TOLERANCE[kind], atol=TOLERANCE[kind])


def test_lstm_ref_has_the_same_outputs_final_carries_and_gradients():
    arguments = problem()
    expected, reference_pullback = jax.vjp(jax.jit(reference), *arguments)
    got, pullback = jax.vjp(jax.jit(ours), *arguments)
    rng = np.random.default_rng(1)
    cotangents = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), expected)
    assert_close(got, expected, "value")
    d_flat, *gradients = pullback(cotangents)
    d_reference, *others = reference_pullback(cotangents)
    assert_close(unpack(d_flat), unpack(d_reference), "gradient")
    assert_close(gradients, others, "gradient")
