"""The Mogrifier LSTM beside a loop in NumPy float64, and beside the LSTM that it contains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

D, H, T = 5, 4, 6
XS = jax.random.normal(jax.random.key(0), (T, D))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def loop(params, xs):
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    h = c = np.zeros(H)
    outputs = []
    for x in np.asarray(xs, np.float64):
        inner = h
        for i, w in enumerate(p.rounds):
            matrix = w[0] @ w[1] if isinstance(w, tuple) else w
            if i % 2 == 0:
                x = 2 * sigmoid(inner @ matrix) * x
            else:
                inner = 2 * sigmoid(x @ matrix) * inner
        i, f, g, o = np.split(x @ p.w_ih + inner @ p.w_hh + p.bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.array(outputs)


@pytest.mark.parametrize(("rounds", "rank"), [(1, None), (2, None), (5, None), (4, 3)])
def test_outputs_are_those_of_a_loop_in_numpy(rounds, rank):
    cell = rnnjax.mogrifier_lstm(H, rounds=rounds, rank=rank)
    params = cell.init(jax.random.key(1), D)
    _, ys = rnnjax.unroll(cell, params, XS)
    np.testing.assert_allclose(ys, loop(params, XS), rtol=1e-5, atol=1e-6)


def test_without_rounds_it_is_the_lstm():
    cell, plain = rnnjax.mogrifier_lstm(H, rounds=0), rnnjax.lstm(H)
    params = cell.init(jax.random.key(1), D)
    _, ys = rnnjax.unroll(cell, params, XS)
    lstm_params = rnnjax.cells.LSTMParams(params.w_ih, params.w_hh, params.bias)
    expected = rnnjax.unroll(plain, lstm_params, XS)[1]
    np.testing.assert_allclose(ys, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"rounds": -1}, {"rank": 0}, {"rounds": 2.5}])
def test_wrong_sizes_are_named(options):
    expected = "a whole number from 0 on" if "rounds" in options else "a positive integer"
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be {expected}"):
        rnnjax.mogrifier_lstm(H, **options)


def test_extreme_gates_are_finite():
    cell = rnnjax.mogrifier_lstm(H)
    params = jax.tree.map(lambda a: a * 1e4, cell.init(jax.random.key(1), D))
    loss = lambda p: jnp.sum(rnnjax.unroll(cell, p, XS)[1] ** 2)  # noqa: E731
    for leaf in jax.tree.leaves(jax.grad(loss)(params)):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("rounds", [0, 3])
def test_inputs_of_another_size_are_refused(rounds, size):
    cell = rnnjax.mogrifier_lstm(4, rounds=rounds)
    params = cell.init(jax.random.key(0), 6)
    with pytest.raises(ValueError, match=rf"must have (shape \(4, {size}\)|size 6 .* {size})"):
        rnnjax.unroll(cell, params, jnp.ones((2, 5, size)))
    with pytest.raises(ValueError, match="xs must be one array, got a tuple of 2"):
        rnnjax.unroll(cell, params, (jnp.ones((2, 5, 6)), jnp.ones((2, 5, 1))))
