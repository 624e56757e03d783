"""Values against the recurrent cells of Flax linen on padded sequences, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

pytestmark = pytest.mark.usefixtures("float64_of_others")

nn = pytest.importorskip("flax.linen", reason="flax is not installed: its RNN cells untested")

B, T, D, H = 4, 6, 3, 5
LENGTHS = jnp.array([3, T, 1, 4])  # Flax returns a wrong carry at length 0
TOLERANCE = 1e-12


def join(weights, half, gates, leaf):
    return jnp.concatenate([weights[half + gate][leaf] for gate in gates], axis=-1)


def simple_params(w):
    return rnnjax.VanillaParams(w["i"]["kernel"], w["h"]["kernel"], w["i"]["bias"])


def lstm_params(w):
    return rnnjax.LSTMParams(
        join(w, "i", "ifgo", "kernel"), join(w, "h", "ifgo", "kernel"), join(w, "h", "ifgo", "bias")
    )


def gru_params(w):
    w_ih, w_hh = join(w, "i", "rzn", "kernel"), join(w, "h", "rzn", "kernel")
    return rnnjax.GRUParams(w_ih, w_hh, join(w, "i", "rzn", "bias"), w["hn"]["bias"])


CASES = {
    "SimpleCell": (rnnjax.vanilla(H), simple_params),
    "LSTMCell": (rnnjax.lstm(H), lstm_params),
    "OptimizedLSTMCell": (rnnjax.lstm(H), lstm_params),
    "GRUCell": (rnnjax.gru(H), gru_params),
}


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reverse"])
@pytest.mark.parametrize("name", CASES)
def test_padded_flax_has_the_same_outputs_at_valid_steps_and_the_same_carry(name, reverse):
    cell, to_params = CASES[name]
    flax_cell = getattr(nn, name)(features=H, param_dtype=jnp.float64)
    layer = nn.RNN(flax_cell, return_carry=True, reverse=reverse, keep_order=True)
    rng = np.random.default_rng(0)
    xs = jnp.asarray(rng.normal(size=(B, T, D)))
    shapes = jax.eval_shape(layer.init, jax.random.key(0), xs)
    variables = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), shapes)
    flax_carry, flax_ys = layer.apply(variables, xs, seq_lengths=LENGTHS)

    params = to_params(variables["params"]["cell"])
    carry, ys = rnnjax.unroll(cell, params, xs, LENGTHS, reverse=reverse)

    valid = np.arange(T) < LENGTHS[:, None]
    np.testing.assert_allclose(ys[valid], flax_ys[valid], rtol=TOLERANCE, atol=TOLERANCE)
    expected = flax_carry[::-1] if isinstance(flax_carry, tuple) else (flax_carry,)  # Flax: c, h
    got = carry if isinstance(carry, rnnjax.LSTMCarry) else (carry,)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE)
