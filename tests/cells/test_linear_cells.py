"""Cells that are linear in their state against NumPy loops, written from the papers' equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

import rnnjax
from rnnjax.cells._common import inverse_softplus
from rnnjax.cells.lru import lru
from rnnjax.cells.min_gru import min_gru
from rnnjax.cells.min_lstm import min_lstm
from rnnjax.cells.s5 import hippo

pytestmark = pytest.mark.usefixtures("float64", "quick_compile")

B, T, D, H, N = 3, 6, 3, 4, 5
MASK = np.array([[1, 1, 0, 1, 0, 1], [0, 1, 1, 0, 1, 0], [0] * 6]) > 0
VALUE, DIFFERENCE = 1e-12, 1e-7  # float64; a central difference is no better


@pytest.fixture
def float32(float64):
    with jax.enable_x64(False):
        yield


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def min_gru_step(p, h, x):
    (w_z, w_n), (b_z, b_n) = np.split(p.w_ih, 2, axis=1), np.split(p.bias, 2)
    z = sigmoid(x @ w_z + b_z)
    h = (1 - z) * h + z * (x @ w_n + b_n)
    return h, h


def min_lstm_step(p, h, x):
    (w_i, w_f, w_n), (b_i, b_f, b_n) = np.split(p.w_ih, 3, axis=1), np.split(p.bias, 3)
    i, f = sigmoid(x @ w_i + b_i), sigmoid(x @ w_f + b_f)
    h = f / (f + i) * h + i / (f + i) * (x @ w_n + b_n)
    return h, h


def lru_step(p, s, x):
    eigenvalues = np.exp(-np.exp(p.nu_log) + 1j * np.exp(p.theta_log))
    s = eigenvalues * s + np.exp(p.gamma_log) * (x @ (p.b_real + 1j * p.b_imag))
    return s, (s @ (p.c_real + 1j * p.c_imag)).real + x @ p.d


def s5_step(p, s, x, elapsed=1.0):
    eigenvalues = -np.exp(p.decay_log) + 1j * p.frequency
    grown = np.exp(eigenvalues * np.exp(p.step_log) * elapsed)
    s = grown * s + (grown - 1) / eigenvalues * (x @ (p.b_real + 1j * p.b_imag))
    return s, 2 * (s @ (p.c_real + 1j * p.c_imag)).real + x @ p.d


def s4d_step(p, s, x, elapsed=1.0, sampling="hold"):
    eigenvalues = -np.exp(p.decay_log) + 1j * p.frequency
    step = np.exp(p.step_log)[:, None] * elapsed
    grown, held = np.exp(eigenvalues * step), np.expm1(eigenvalues * step) / eigenvalues
    if sampling == "bilinear":
        divisor = 1 - eigenvalues * step / 2
        grown, held = (1 + eigenvalues * step / 2) / divisor, step / divisor
    s = grown * s + held * x[:, None]
    return s, 2 * np.sum(s * (p.c_real + 1j * p.c_imag), axis=-1).real + p.d * x


def s6_step(p, s, x):
    step = np.log1p(np.exp(x @ p.w_down @ p.w_step + p.step_bias))
    s = np.exp(-step[:, None] * np.exp(p.decay_log)) * s + np.outer(step * x, x @ p.w_in)
    return s, s @ (x @ p.w_out) + p.d * x


CASES = {
    "min_gru": (min_gru(H), min_gru_step),
    "min_lstm": (min_lstm(H), min_lstm_step),
    "lru": (lru(H, N), lru_step),
    "s5": (rnnjax.s5(H, N), s5_step),
    "s6": (rnnjax.s6(D, N, step_rank=2), s6_step),
    "s4d": (rnnjax.s4d(D, N, frequencies="inverse"), s4d_step),
    "s4d bilinear": (
        rnnjax.s4d(D, N, sampling="bilinear"),
        functools.partial(s4d_step, sampling="bilinear"),
    ),
}
COMPLEX = ("lru", "s5", "s4d", "s4d bilinear")
EVERY_CELL = pytest.mark.parametrize("name", CASES)


def loop(step, p, carries, xs, reverse):
    """Each sequence by itself, over its real steps only."""
    size = step(p, carries[0], xs[0, 0])[1].size
    rows, ys = [], np.zeros((B, T, size))
    for b in range(B):
        carry = carries[b]
        for t in sorted(np.flatnonzero(MASK[b]), reverse=reverse):
            carry, ys[b, t] = step(p, carry, xs[b, t])
        rows.append(carry)
    return np.stack(rows), ys


def normal_like(tree, seed):
    rng = np.random.default_rng(seed)

    def draw(a):
        real = rng.normal(size=np.shape(a))
        return real + 1j * rng.normal(size=np.shape(a)) if np.iscomplexobj(a) else real

    return jax.tree.map(draw, tree)


def problem(cell, seed=0):
    """Random parameters, initial carries and inputs."""
    params = jax.tree.map(lambda a: a.astype(float), cell.init(jax.random.key(0), D))
    start = cell.initial_carry(params)
    carries = np.zeros((B, *start.shape), start.dtype)
    params = jax.tree.map(lambda a, b: a + 0.3 * b, params, normal_like(params, seed))
    params = jax.tree.map(np.asarray, params)
    return params, *normal_like((carries, np.zeros((B, T, D))), seed + 1)


@pytest.mark.parametrize("reverse", [False, True])
@EVERY_CELL
def test_unroll_equals_a_numpy_loop_over_the_real_steps(name, reverse):
    cell, step = CASES[name]
    params, carries, xs = problem(cell)
    for implementation in ("scan", "associative"):
        carry, ys = rnnjax.unroll(
            cell,
            params,
            xs,
            mask=MASK,
            initial_carry=carries,
            reverse=reverse,
            implementation=implementation,
        )
        expected_carry, expected = loop(step, params, carries, xs, reverse)
        np.testing.assert_allclose(carry, expected_carry, rtol=VALUE, atol=VALUE)
        np.testing.assert_allclose(ys, expected, rtol=VALUE, atol=VALUE)


@EVERY_CELL
def test_gradients_equal_finite_differences_of_the_numpy_loop(name):
    cell, step = CASES[name]
    arguments = problem(cell)
    weights = normal_like((arguments[1], np.zeros((B, T, cell.output_size))), seed=5)

    def weighted(carry, ys):
        return (weights[0].conj() * carry).sum().real + (weights[1] * ys).sum()

    def slope(implementation, direction):
        def ours(params, carries, xs):
            options = {"mask": MASK, "initial_carry": carries, "implementation": implementation}
            return weighted(*rnnjax.unroll(cell, params, xs, **options))

        grads = jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(*arguments)
        # JAX gives the gradient to a complex number z as d/d(Re z) - i d/d(Im z).
        products = jax.tree.map(lambda g, d: (g * d).sum().real, grads, direction)
        return sum(jax.tree.leaves(products))

    def numpy_along(direction, size):
        moved = jax.tree.map(lambda a, d: a + size * d, arguments, direction)
        return weighted(*loop(step, *moved, reverse=False))

    direction, size = normal_like(arguments, seed=6), 1e-5
    expected = (numpy_along(direction, size) - numpy_along(direction, -size)) / (2 * size)
    for implementation in ("scan", "associative"):
        got = slope(implementation, direction)
        np.testing.assert_allclose(got, expected, rtol=DIFFERENCE)


@EVERY_CELL
def test_linear_says_what_update_does(name):
    cell, _ = CASES[name]
    params, carries, xs = problem(cell)
    z = cell.project(params, xs[0, 0])
    decay, drive = cell.linear(params, z)
    carry, _ = cell.update(params, carries[0], z, ())
    np.testing.assert_allclose(decay * carries[0] + drive, carry, rtol=VALUE)


def test_gates_of_the_minimal_cells_are_those_of_the_equations():
    params, _, xs = problem(min_gru(H))
    _, (_, gates) = rnnjax.unroll(rnnjax.trace_gates(min_gru(H)), params, xs[0])
    z, n = np.split(xs[0] @ params.w_ih + params.bias, 2, axis=-1)
    np.testing.assert_allclose(gates.z, sigmoid(z), rtol=VALUE)
    np.testing.assert_allclose(gates.n, n, rtol=VALUE)
    params, _, xs = problem(min_lstm(H))
    _, (_, gates) = rnnjax.unroll(rnnjax.trace_gates(min_lstm(H)), params, xs[0])
    i, f, n = np.split(xs[0] @ params.w_ih + params.bias, 3, axis=-1)
    np.testing.assert_allclose(gates.f, sigmoid(f) / (sigmoid(f) + sigmoid(i)), rtol=VALUE)
    np.testing.assert_allclose(gates.i + gates.f, 1, rtol=VALUE)
    np.testing.assert_allclose(gates.n, n, rtol=VALUE)


def one_step(cell, bias, h):
    """The new state of a one-unit cell whose gates and candidate are those of its bias."""
    params = cell.init(jax.random.key(0), 1)._replace(bias=jnp.array(bias, "float32"))
    return cell.update(params, h, cell.project(params, jnp.zeros(1)), ())[0][0]


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize(("i", "f", "share"), [(-200, -200, 0.5), (-300, -200, 1), (200, -200, 0)])
def test_min_lstm_gates_that_are_both_closed_still_sum_to_one(i, f, share):
    """In float32 sigmoid(-200) is 0: the quotient of the two would be 0 / 0."""
    run = jax.value_and_grad(lambda bias, h: one_step(min_lstm(1), bias, h), argnums=(0, 1))
    new, (d_bias, d_h) = run(jnp.array([i, f, 3.0]), jnp.array([7.0]))
    np.testing.assert_allclose(new, 7 * share + 3 * (1 - share), rtol=1e-6)
    np.testing.assert_allclose(d_h, [share], rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(d_bias[2], 1 - share, rtol=1e-6, atol=1e-30)
    balanced = (7 - 3) * share * (1 - share)  # both gates closed: each still moves the balance
    np.testing.assert_allclose(d_bias[:2], [-balanced, balanced], rtol=1e-5, atol=1e-30)


@pytest.mark.usefixtures("float32")
def test_a_min_gru_whose_gate_is_open_still_forgets_exponentially():
    """In float32 1 - sigmoid(20) rounds to 0, the share kept does not."""
    kept = one_step(min_gru(1), [20.0, 0.0], jnp.array([1.0]))
    np.testing.assert_allclose(kept, np.exp(-20.0), rtol=1e-6)


def test_lru_eigenvalues_start_uniformly_over_the_ring():
    cell = lru(2, 4000, min_radius=0.6, max_radius=0.9, max_phase=0.5)
    params = cell.init(jax.random.key(0), 3)
    radius, phase = np.exp(-np.exp(params.nu_log)), np.exp(params.theta_log)
    assert radius.min() >= 0.6 - 1e-6
    assert radius.max() <= 0.9 + 1e-6
    assert phase.max() <= 0.5 + 1e-6
    uniform = np.linspace(0, 1, 4000)
    np.testing.assert_allclose(np.sort(radius**2), 0.36 + 0.45 * uniform, atol=0.02)
    np.testing.assert_allclose(np.sort(phase), 0.5 * uniform, atol=0.02)


def test_lru_states_start_with_unit_variance_under_white_noise():
    params = lru(2, 500, max_radius=0.99).init(jax.random.key(0), 30)
    radius = np.exp(-np.exp(params.nu_log))
    inputs = np.exp(2 * params.gamma_log) * (params.b_real**2 + params.b_imag**2).sum(0)
    np.testing.assert_allclose((inputs / (1 - radius**2)).mean(), 1, rtol=0.05)


@pytest.mark.parametrize("radii", [(0.0, 1.0), (1.0, 1.0), (0.0, 0.0)])
def test_lru_parameters_are_finite_and_real_at_the_edges_of_the_ring(radii):
    params = lru(2, 1000, min_radius=radii[0], max_radius=radii[1]).init(jax.random.key(0), 3)
    assert all(a.dtype == jnp.float32 and np.all(np.isfinite(a)) for a in params)


def test_an_lru_cannot_grow_whatever_its_parameters_are():
    cell = lru(H, N)
    params, _, _ = problem(cell)
    for nu_log in (-40.0, 0.0, 6.0):
        wild = params._replace(nu_log=jnp.full(N, nu_log), theta_log=jnp.full(N, 2.0))
        decay, _ = cell.linear(wild, cell.project(wild, jnp.ones(D)))
        assert np.all(np.abs(decay) <= 1 + 1e-15)


@pytest.mark.parametrize("implementation", ["scan", "associative"])
@pytest.mark.parametrize("name", ["s4d", "s4d bilinear", "s5"])
def test_elapsed_times_are_those_of_the_equations(name, implementation):
    cell, step = CASES[name]
    params, carries, xs = problem(cell)
    elapsed = np.random.default_rng(9).integers(0, 48, (B, T, 1)) / 16  # exact in 16 bits
    options = {"mask": MASK, "initial_carry": carries, "implementation": implementation}
    dirt = np.where(MASK[..., None], elapsed, np.nan).astype(np.float16)
    with jax.numpy_dtype_promotion("strict"):
        carry, ys = rnnjax.unroll(cell, params, (xs, dirt), **options)
    for b in range(B):
        state = carries[b]
        for t in np.flatnonzero(MASK[b]):
            state, y = step(params, state, xs[b, t], elapsed[b, t])
            np.testing.assert_allclose(ys[b, t], y, rtol=VALUE, atol=VALUE)
        np.testing.assert_allclose(carry[b], state, rtol=VALUE, atol=VALUE)


@pytest.mark.kept
@pytest.mark.parametrize("name", ["s5", "s4d"])
def test_two_steps_of_half_the_time_are_one_of_the_whole(name):
    """Also with an input: it is held, and the sampling is exact."""
    cell, _ = CASES[name]
    params, carries, xs = problem(cell)
    whole, _ = cell.step(params, carries, (xs[:, 0], np.full((B, 1), 1.4)))
    half = np.full((B, 1), 0.7)
    twice, _ = cell.step(params, carries, (xs[:, 0], half))
    twice, y = cell.step(params, twice, (xs[:, 0], half))
    np.testing.assert_allclose(twice, whole, rtol=VALUE)
    held, y_held = cell.step(params, twice, (xs[:, 0], np.zeros((B, 1))))
    np.testing.assert_allclose(held, twice, rtol=VALUE)
    np.testing.assert_allclose(y_held, y, rtol=VALUE)


def test_the_s5_starts_as_the_real_system_of_hippo():
    """Of one step time for all states: s' = A s + B u of size 2N, by matrix exponentials of A."""
    cell = rnnjax.s5(H, N, min_step=0.05, max_step=0.05)
    params = jax.tree.map(lambda a: np.asarray(a, float), cell.init(jax.random.key(0), D))
    row, column = np.indices((2 * N, 2 * N))
    legs = -np.sqrt((2 * row + 1) * (2 * column + 1)) * (row > column) - np.diag(row[:, 0] + 1)
    root = np.sqrt(np.arange(2 * N) + 0.5)
    a = legs + np.outer(root, root)
    eigenvalues, vectors = hippo(N)
    np.testing.assert_allclose(a @ vectors, vectors * eigenvalues, atol=1e-12)
    into = 2 * ((params.b_real + 1j * params.b_imag) @ vectors.T).real
    out = 2 * (vectors.conj() @ (params.c_real + 1j * params.c_imag)).real

    grown = scipy.linalg.expm(a * 0.05)
    held = np.linalg.solve(a, grown - np.eye(2 * N))
    xs = np.random.default_rng(0).normal(size=(T, D))
    state, expected = np.zeros(2 * N), []
    for x in xs:
        state = grown @ state + held @ (x @ into)
        expected.append(state @ out + x @ params.d)
    _, ys = rnnjax.unroll(cell, params, xs)
    np.testing.assert_allclose(ys, expected, rtol=1e-5, atol=1e-6)  # drawn in float32


def test_the_s4d_starts_as_its_paper_says():
    linear = rnnjax.s4d(2000, 3).init(jax.random.key(0), 2000)
    np.testing.assert_allclose(linear.frequency, np.tile([0, np.pi, 2 * np.pi], (2000, 1)))
    np.testing.assert_allclose(linear.decay_log, np.log(0.5), rtol=1e-6)
    uniform = np.linspace(np.log(0.001), np.log(0.1), 2000)
    np.testing.assert_allclose(np.sort(linear.step_log), uniform, atol=0.2)
    np.testing.assert_allclose(np.mean(linear.c_real**2 + linear.c_imag**2), 1, atol=0.05)
    inverse = rnnjax.s4d(2, 3, frequencies="inverse").init(jax.random.key(0), 2)
    expected = 6 / np.pi * (6 / np.array([1, 3, 5]) - 1)
    np.testing.assert_allclose(inverse.frequency[1], expected, rtol=1e-6)


def test_the_steps_of_an_s6_start_between_its_bounds():
    params = rnnjax.s6(2000, 3, min_step=0.01, max_step=0.1).init(jax.random.key(0), 2000)
    steps = np.sort(np.log(np.log1p(np.exp(np.asarray(params.step_bias, float)))))
    uniform = np.linspace(np.log(0.01), np.log(0.1), 2000)
    np.testing.assert_allclose(steps, uniform, atol=0.1)
    np.testing.assert_allclose(np.exp(params.decay_log), np.tile([1, 2, 3], (2000, 1)), rtol=1e-6)


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_an_s6_that_is_driven_to_the_end_of_its_range_stays_finite(size):
    cell = rnnjax.s6(D, N)
    params = cell.init(jax.random.key(0), D)
    for implementation in ("scan", "associative"):
        run = jax.value_and_grad(
            lambda p, i=implementation: jnp.mean(
                rnnjax.unroll(cell, p, jnp.full((T, D), size), implementation=i)[1]
            )
        )
        assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(run(params)))


def test_an_lru_is_trained_by_optax_as_any_cell():
    """A delay of two steps, which only the state can bridge."""
    cell, optimizer = lru(1, 8), optax.adam(2e-2)
    xs = jax.random.normal(jax.random.key(1), (16, 20, 1))
    params = cell.init(jax.random.key(0), 1)

    def loss(params):
        _, ys = rnnjax.unroll(cell, params, xs, implementation="associative")
        return jnp.mean((ys[:, 2:] - xs[:, :-2]) ** 2)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state, before = optimizer.init(params), loss(params)
    for _ in range(150):
        params, state = step(params, state)
    assert before > 1
    assert loss(params) < 0.1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@EVERY_CELL
def test_carries_and_outputs_stay_float32(name, dtype):
    cell, _ = CASES[name]
    params, _, xs = problem(cell)
    narrow = jax.tree.map(lambda a: a.astype(dtype), params)
    exact = jax.tree.map(lambda a: a.astype(float), narrow)
    xs = jnp.asarray(xs).astype(dtype)
    _, expected = rnnjax.unroll(cell, exact, xs.astype(float))
    for implementation in ("scan", "associative"):
        carry, ys = rnnjax.unroll(cell, narrow, xs, implementation=implementation)
        assert carry.dtype == (jnp.complex64 if name in COMPLEX else jnp.float32)
        assert ys.dtype == jnp.float32
        error = {"bfloat16": 6e-2, "float16": 6e-3, "float32": 3e-6}[dtype]
        np.testing.assert_allclose(ys, expected, atol=error * np.abs(expected).max())


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("name", ["lru", "s5", "s4d"])
def test_complex_cells_need_no_promotion_of_dtypes(name):
    cell = rnnjax.with_policy(CASES[name][0], rnnjax.Policy("bfloat16", "bfloat16", "float32"))
    with jax.numpy_dtype_promotion("strict"):
        params = cell.init(jax.random.key(0), D)
        grads = jax.grad(lambda p: jnp.sum(rnnjax.unroll(cell, p, jnp.ones((T, D)))[1]))(params)
    assert {a.dtype for a in grads} == {jnp.dtype("bfloat16")}


COUNTS = {
    "min_gru": D * 2 * H + 2 * H,
    "min_lstm": D * 3 * H + 3 * H,
    "lru": 3 * N + 2 * D * N + 2 * N * H + D * H,
    "s5": 3 * N + 2 * D * N + 2 * N * H + D * H,
    "s6": 2 * D * 2 + D + 3 * D * N + D,
    "s4d": 4 * D * N + 2 * D,
    "s4d bilinear": 4 * D * N + 2 * D,
}


@EVERY_CELL
def test_number_of_parameters_is_that_of_the_equations(name):
    params = CASES[name][0].init(jax.random.key(0), D)
    assert sum(a.size for a in jax.tree.leaves(params)) == COUNTS[name]


BAD = {
    "hidden_size must be a positive integer, got 0": lambda: min_gru(0),
    "hidden_size must be a positive integer, got 2.5": lambda: min_lstm(2.5),
    "state_size must be a positive integer, got 0": lambda: lru(3, 0),
    "initializer must be one of": lambda: min_lstm(3, initializer="mine"),
    "min_radius and max_radius must be in order": lambda: lru(3, min_radius=0.9, max_radius=0.5),
    "max_radius must be a number in \\[0, 1\\], got 1.5": lambda: lru(3, max_radius=1.5),
    "max_phase must be a phase in \\(0, 2 pi\\], got 0": lambda: lru(3, max_phase=0),
    "min_step must be positive and finite, got 0": lambda: rnnjax.s5(3, min_step=0),
    "min_step must be at most max_step, 0.1, got 0.2": lambda: rnnjax.s5(3, min_step=0.2),
    "frequencies must be 'linear' or 'inverse', got 'lin'": lambda: rnnjax.s4d(
        3, frequencies="lin"
    ),
    "sampling must be 'hold' or 'bilinear', got None": lambda: rnnjax.s4d(3, sampling=None),
    "state_size must be a positive integer, got 2.5": lambda: rnnjax.s6(3, 2.5),
    "max_step must be positive and finite, got inf": lambda: rnnjax.s6(3, max_step=np.inf),
    "input_size must be hidden_size, 3, got 4": lambda: rnnjax.s6(3).init(jax.random.key(0), 4),
    "input_size must be a positive integer": lambda: lru(3).init(jax.random.key(0), 0),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_sizes_are_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


@pytest.mark.parametrize(("size", "rank"), [(32, 1), (33, 2), (1024, 32)])
def test_the_rank_of_s6_is_a_32nd_of_its_size_rounded_up(size, rank):
    shapes = jax.eval_shape(lambda: rnnjax.s6(size, 2).init(jax.random.key(0), size))
    assert (shapes.w_down.shape, shapes.w_step.shape) == ((size, rank), (rank, size))


def test_the_softplus_is_undone_to_the_digits_of_float32():
    times = np.array([1e-6, 1e-3, 0.1, 1, 100], np.float32)
    found = np.asarray(inverse_softplus(jnp.asarray(times)), float)
    np.testing.assert_allclose(np.log1p(np.exp(found)), times, rtol=3e-6)
