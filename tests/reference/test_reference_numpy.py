"""Cells and their gradients against NumPy loops, written from the equations, in float64."""

import jax
import numpy as np
import pytest

import rnnjax

pytestmark = pytest.mark.usefixtures("float64")

B, T, D, H = 5, 6, 3, 4
LENGTHS = np.array([4, 0, T, 1, 3])
MASK = np.array([[1, 1, 0, 1, 0, 1], [0, 1, 1, 0, 1, 0], [1] * 6, [0] * 6, [0, 0, 1, 1, 1, 0]]) > 0
RAGGED = {"lengths": {"lengths": LENGTHS}, "mask with holes": {"mask": MASK}}
TOLERANCE = {"value": 1e-12, "gradient": 1e-11, "finite difference": 1e-8}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def simple_step(f):
    def step(p, h, x):
        h = f(x @ p.w_ih + h @ p.w_hh + p.bias)
        return h, h

    return step


def lstm_step(p, carry, x):
    i, f, g, o = np.split(x @ p.w_ih + carry.h @ p.w_hh + p.bias, 4)
    c = sigmoid(f) * carry.c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return rnnjax.LSTMCarry(h, c), h


def gru_after_step(p, h, x):
    (xr, xz, xn), (hr, hz, hn) = np.split(x @ p.w_ih + p.bias, 3), np.split(h @ p.w_hh, 3)
    r, z = sigmoid(xr + hr), sigmoid(xz + hz)
    h = (1 - z) * np.tanh(xn + r * (hn + p.hidden_bias)) + z * h
    return h, h


def gru_before_step(p, h, x):
    (xr, xz, xn), (wr, wz, wn) = np.split(x @ p.w_ih + p.bias, 3), np.split(p.w_hh, 3, axis=1)
    r, z = sigmoid(xr + h @ wr), sigmoid(xz + h @ wz)
    h = (1 - z) * np.tanh(xn + (r * h) @ wn) + z * h
    return h, h


CASES = {
    "vanilla tanh": (rnnjax.vanilla(H), simple_step(np.tanh)),
    "vanilla relu": (rnnjax.vanilla(H, jax.nn.relu), simple_step(lambda a: np.maximum(a, 0))),
    "vanilla sigmoid": (rnnjax.vanilla(H, jax.nn.sigmoid), simple_step(sigmoid)),
    "lstm": (rnnjax.lstm(H), lstm_step),
    "gru reset after": (rnnjax.gru(H), gru_after_step),
    "gru reset before": (rnnjax.gru(H, reset_after=False), gru_before_step),
}


def loop(step, p, carries, xs, valid, reverse):
    """Each sequence by itself, over its valid steps only."""
    rows, ys = [], np.zeros((B, T, H))
    for b in range(B):
        carry = jax.tree.map(lambda a, b=b: a[b], carries)
        for t in sorted(np.flatnonzero(valid[b]), reverse=reverse):
            carry, ys[b, t] = step(p, carry, xs[b, t])
        rows.append(carry)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows), ys


def valid_steps(ragged):
    return MASK if "mask" in ragged else np.arange(T) < LENGTHS[:, None]


def normal_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: rng.normal(size=np.shape(a)), tree)


def problem(cell):
    """Random parameters, initial carries and inputs: arguments of every function below."""
    params = cell.init(jax.random.key(0), D)
    carries = jax.tree.map(lambda a: np.zeros((B, *a.shape)), cell.initial_carry(params))
    return normal_like((params, carries, np.zeros((B, T, D))), seed=0)


def assert_close(got, expected, kind):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=TOLERANCE[kind], atol=TOLERANCE[kind])


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reverse"])
@pytest.mark.parametrize("ragged", RAGGED.values(), ids=RAGGED.keys())
@pytest.mark.parametrize("case", CASES)
def test_unroll_equals_a_numpy_loop_over_the_valid_steps(case, ragged, reverse):
    cell, step = CASES[case]
    params, carries, xs = problem(cell)
    got = rnnjax.unroll(cell, params, xs, initial_carry=carries, reverse=reverse, **ragged)
    assert_close(got, loop(step, params, carries, xs, valid_steps(ragged), reverse), "value")


@pytest.mark.parametrize("case", ["vanilla tanh", "lstm"])
def test_input_and_state_as_one_vector_times_one_matrix_give_the_same_outputs(case):
    cell, step = CASES[case]
    params, carries, xs = problem(cell)
    joined = np.concatenate([params.w_ih, params.w_hh])  # [D + H, G*H]

    def step_on_joined(p, carry, x):
        h = getattr(carry, "h", carry)
        z = np.concatenate([x, h]) @ joined
        return step(p._replace(w_ih=np.eye(z.size), w_hh=np.zeros((H, z.size))), carry, z)

    got = rnnjax.unroll(cell, params, xs, LENGTHS, initial_carry=carries)
    expected = loop(step_on_joined, params, carries, xs, valid_steps({}), reverse=False)
    assert_close(got, expected, "value")


def backpropagation_through_time(p, h0, xs, lengths, dys, dcarry):
    """Gradients of sum(dys * ys) + sum(dcarry * carry) for the tanh cell, written by hand."""
    dp = rnnjax.VanillaParams(np.zeros((D, H)), np.zeros((H, H)), np.zeros(H))
    dh0, dxs = np.zeros((B, H)), np.zeros((B, T, D))
    for b, length in enumerate(lengths):
        hs = [h0[b]]
        for t in range(length):
            hs.append(np.tanh(xs[b, t] @ p.w_ih + hs[t] @ p.w_hh + p.bias))
        dh = dcarry[b]
        for t in reversed(range(length)):
            da = (dh + dys[b, t]) * (1 - hs[t + 1] ** 2)
            dp = rnnjax.VanillaParams(
                dp.w_ih + np.outer(xs[b, t], da), dp.w_hh + np.outer(hs[t], da), dp.bias + da
            )
            dxs[b, t], dh = p.w_ih @ da, p.w_hh @ da
        dh0[b] = dh
    return dp, dh0, dxs


def test_gradients_of_the_simple_cell_equal_hand_written_backpropagation_through_time():
    cell = rnnjax.vanilla(H)
    arguments = problem(cell)
    dys, dcarry = normal_like((np.zeros((B, T, H)), np.zeros((B, H))), seed=1)

    def loss(params, carries, xs):
        carry, ys = rnnjax.unroll(cell, params, xs, LENGTHS, initial_carry=carries)
        return (dys * ys).sum() + (dcarry * carry).sum()

    got = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arguments)
    assert_close(got, backpropagation_through_time(*arguments, LENGTHS, dys, dcarry), "gradient")


@pytest.mark.parametrize("case", ["lstm", "gru reset after", "gru reset before"])
def test_gradients_through_a_mask_with_holes_equal_finite_differences_of_the_loop(case):
    cell, step = CASES[case]
    arguments = problem(cell)
    _, carries, xs = arguments
    weights = normal_like((carries, np.zeros((*xs.shape[:2], H))), seed=1)

    def weighted(result):
        return sum(jax.tree.leaves(jax.tree.map(lambda w, a: (w * a).sum(), weights, result)))

    def ours(params, carries, xs):
        return weighted(rnnjax.unroll(cell, params, xs, mask=MASK, initial_carry=carries))

    def numpy_along(direction, size):
        moved = jax.tree.map(lambda a, d: a + size * d, arguments, direction)
        return weighted(loop(step, *moved, MASK, reverse=False))

    gradient = jax.tree.leaves(jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(*arguments))
    for seed in (2, 3, 4):
        direction = normal_like(arguments, seed)
        got = sum((g * d).sum() for g, d in zip(gradient, jax.tree.leaves(direction), strict=True))
        size = 1e-5
        expected = (numpy_along(direction, size) - numpy_along(direction, -size)) / (2 * size)
        assert_close(got, expected, "finite difference")


PARAMETER_COUNTS = {
    "vanilla(16) on 64": (rnnjax.vanilla(16), 64, 64 * 16 + 16 * 16 + 16, 1_296),
    "lstm(8) on 64": (rnnjax.lstm(8), 64, 4 * (64 * 8 + 8 * 8 + 8), 2_336),
    "gru(8) on 64": (rnnjax.gru(8), 64, 3 * (64 * 8 + 8 * 8 + 8) + 8, 1_760),
    "gru(8) reset before on 64": (rnnjax.gru(8, False), 64, 3 * (64 * 8 + 8 * 8 + 8), 1_752),
}


@pytest.mark.parametrize("row", PARAMETER_COUNTS.values(), ids=PARAMETER_COUNTS.keys())
def test_number_of_parameters_is_that_of_the_equations(row):
    cell, input_size, written_out, total = row
    count = sum(a.size for a in jax.tree.leaves(cell.init(jax.random.key(0), input_size)))
    assert count == written_out == total
