"""The flat weight vector against the reference of ``jax.experimental.rnn``, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop_cases import (
    CELLS,
    LENGTHS,
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
    run,
)
from jax.experimental import rnn

from rnnjax.interop import cudnn as interop
from rnnjax.interop import torch as torch_interop

pytestmark = pytest.mark.usefixtures("float64", "quick_compile")

SHAPES = [(1, False), (1, True), (2, False), (2, True)]


def unpack(flat, num_layers, bidirectional):
    return rnn.unpack_lstm_weights(flat, D, H, num_layers, bidirectional)


def reference(num_layers, bidirectional):
    rows = num_layers * (2 if bidirectional else 1)
    zeros = jnp.zeros((rows, B, H))

    def apply(flat, xs):
        weights = unpack(flat, num_layers, bidirectional)
        sizes = D, H, num_layers, 0.0, bidirectional
        ys, h, c = rnn.lstm_ref(xs, zeros, zeros, *weights, jnp.asarray(LENGTHS), *sizes)
        return (h, c), ys

    return apply


@pytest.mark.parametrize(("num_layers", "bidirectional"), SHAPES)
def test_a_flat_vector_gives_the_values_and_gradients_of_lstm_ref(num_layers, bidirectional):
    count = rnn.get_num_params_in_lstm(D, H, num_layers, bidirectional)
    flat, xs = 0.5 * normal(0, count), normal(1, B, T, D)
    params = interop.import_weights(flat, D, H, num_layers, bidirectional)
    layer = make_layer(CELLS["lstm"], num_layers, bidirectional)
    (carry, ys), pullback = run(layer, params, xs, LENGTHS)
    apply = jax.jit(reference(num_layers, bidirectional))
    (final, expected), reference_pullback = jax.vjp(apply, jnp.asarray(flat), jnp.asarray(xs))
    got = torch_interop.export_carry("lstm", carry)
    assert_close((got, ys), (jax.tree.map(np.asarray, final), expected))
    back = torch_interop.import_carry("lstm", got, bidirectional=bidirectional)
    assert_equal(back, jax.tree.map(np.asarray, carry))

    cotangents = draw_like((carry, ys), seed=2)
    d_params, d_xs = pullback(cotangents)
    d_final = torch_interop.export_carry("lstm", cotangents[0])
    d_flat, d_reference_xs = reference_pullback((d_final, cotangents[1]))
    assert_close(d_xs, d_reference_xs, "gradient")
    got = unpack(interop.export_weights(d_params), num_layers, bidirectional)
    w_ih, w_hh, b_ih, b_hh = unpack(d_flat, num_layers, bidirectional)
    assert_close(got[:3], (w_ih, w_hh, b_ih), "gradient")
    assert_close(b_hh, b_ih, "gradient")  # only the sum of the two biases acts


@pytest.mark.parametrize(("num_layers", "bidirectional"), SHAPES)
def test_exported_vectors_come_back_and_mean_the_same_to_lstm_ref(num_layers, bidirectional):
    layer = make_layer(CELLS["lstm"], num_layers, bidirectional)
    params, xs = random_params(layer), jnp.asarray(normal(1, B, T, D))
    flat = interop.export_weights(params)
    assert flat.shape == (rnn.get_num_params_in_lstm(D, H, num_layers, bidirectional),)
    assert_equal(interop.import_weights(flat, D, H, num_layers, bidirectional), params)
    _, ys = layer.apply(params, xs, LENGTHS)
    _, expected = reference(num_layers, bidirectional)(flat, xs)
    assert_close(ys, expected)


def test_a_vector_of_another_length_is_refused():
    flat = normal(0, rnn.get_num_params_in_lstm(D, H, 2, True))
    with pytest.raises(ValueError, match=r"expected a vector of length 144, got \(736,\)"):
        interop.import_weights(flat, D, H)
