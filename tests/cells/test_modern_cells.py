"""sLSTM, RG-LRU, coRNN, LMU and CfC against their equations in NumPy, and at their ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from numpy.testing import assert_allclose

import rnnjax
from rnnjax.cells.lmu import legendre_memory

D, H, N, T = 3, 4, 5, 9
CELLS = {
    "slstm": rnnjax.slstm(H),
    "rg_lru": rnnjax.rg_lru(H),
    "cornn": rnnjax.cornn(H, time_step=0.3, frequency=1.5, damping=0.7),
    "lmu": rnnjax.lmu(H, N, theta=6.5),
    "cfc": rnnjax.cfc(H),
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def slstm(p, xs):
    """Without the stabiliser: what it must cancel from."""
    h, c, n, ys = np.zeros(H), np.zeros(H), np.zeros(H), []
    for x in xs:
        i, f, z, o = np.split(x @ p.w_ih + h @ p.w_hh + p.bias, 4)
        c = sigmoid(f) * c + np.exp(i) * np.tanh(z)
        n = sigmoid(f) * n + np.exp(i)
        h = sigmoid(o) * c / n
        ys.append(h)
    return np.stack(ys)


def rg_lru(p, xs):
    h, ys = np.zeros(H), []
    for x in xs:
        u = x @ p.w_ih
        r, i = np.split(sigmoid(u @ p.w_gates + p.bias), 2)
        a = np.exp(-8 * np.log1p(np.exp(p.decay)) * r)
        h = a * h + np.sqrt(1 - a**2) * (i * u)
        ys.append(h)
    return np.stack(ys)


def cornn(p, xs):
    y, z, ys = np.zeros(H), np.zeros(H), []
    for x in xs:
        force = np.tanh(x @ p.w_ih + np.concatenate([y, z]) @ p.w_hh + p.bias)
        z = z + 0.3 * (force - 1.5 * y - 0.7 * z)
        y = y + 0.3 * z
        ys.append(y)
    return np.stack(ys)


def lmu(p, xs):
    a = np.zeros((N, N))
    for i in range(N):
        for j in range(N):
            a[i, j] = (2 * i + 1) * (-1 if i < j else (-1) ** (i - j + 1)) / 6.5
    b = np.array([(2 * i + 1) * (-1) ** i / 6.5 for i in range(N)])
    step = scipy.linalg.expm(a)
    hold = np.linalg.solve(a, (step - np.eye(N)) @ b)
    h, m, ys = np.zeros(H), np.zeros(N), []
    for x in xs:
        m = step @ m + hold * (x @ p.e_x + h @ p.e_h + m @ p.e_m)
        h = np.tanh(x @ p.w_ih + h @ p.w_hh + m @ p.w_mh)
        ys.append(h)
    return np.stack(ys)


def cfc(p, xs, elapsed=None):
    h, ys = np.zeros(H), []
    for x, time in zip(xs, np.ones(len(xs)) if elapsed is None else elapsed, strict=True):
        f, g, a, b = np.split(x @ p.w_ih + h @ p.w_hh + p.bias, 4)
        h = sigmoid(-a * time - b) * np.tanh(f) + sigmoid(a * time + b) * np.tanh(g)
        ys.append(h)
    return np.stack(ys)


REFERENCE = {"slstm": slstm, "rg_lru": rg_lru, "cornn": cornn, "lmu": lmu, "cfc": cfc}


def random_params(name, scale=1.0):
    params = CELLS[name].init(jax.random.key(0), D)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return jax.tree.map(lambda a: scale * a, jax.tree.unflatten(structure, moved))


@pytest.mark.parametrize("name", CELLS)
def test_outputs_are_those_of_the_equations(name):
    params = random_params(name)
    xs = np.asarray(jax.random.normal(jax.random.key(2), (T, D)))
    _, ys = rnnjax.unroll(CELLS[name], params, xs)
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    assert_allclose(ys, REFERENCE[name](wide, xs.astype(np.float64)), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_values_and_gradients_are_finite_at_extreme_inputs(name, size):
    params, xs = random_params(name), jnp.full((2, T, D), size)

    def loss(params, xs):
        return jnp.sum(rnnjax.unroll(CELLS[name], params, xs)[1])

    value, gradients = jax.value_and_grad(loss, (0, 1))(params, xs)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("gate", [0, 1])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_one_extreme_gate_of_the_slstm(gate, size):
    """Input gate, forget gate: from the first step on, one of them open or closed for good."""
    params = random_params("slstm")
    params = params._replace(bias=params.bias.at[gate * H : (gate + 1) * H].set(size))
    xs = jax.random.normal(jax.random.key(2), (T, D))

    def loss(params):
        return jnp.sum(rnnjax.unroll(CELLS["slstm"], params, xs)[1] ** 2)

    value, gradients = jax.value_and_grad(loss)(params)
    assert value > 0
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("implementation", ["scan", "associative"])
@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize(
    ("cell", "field", "part"),
    [
        (rnnjax.rg_lru(H), "bias", slice(0, H)),  # the gate of the recurrence
        (rnnjax.rg_lru(H), "bias", slice(H, None)),  # that of the input
        (rnnjax.s6(D, N), "step_bias", slice(None)),
    ],
    ids=["recurrence", "input", "step"],
)
def test_one_extreme_gate_of_a_cell_that_runs_in_parallel(cell, field, part, size, implementation):
    params = cell.init(jax.random.key(0), D)
    params = params._replace(**{field: getattr(params, field).at[part].set(size)})
    xs = jax.random.normal(jax.random.key(2), (2, T, D))

    @jax.jit
    def loss(params, xs):
        return jnp.sum(rnnjax.unroll(cell, params, xs, implementation=implementation)[1] ** 2)

    value, gradients = jax.value_and_grad(loss, (0, 1))(params, xs)
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves((value, gradients)))


def test_the_slstm_averages_what_it_keeps_for_good():
    """Forget gate open, input gates alike: the output is the mean of the candidates so far."""
    cell = rnnjax.slstm(1)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 1))
    w_ih = jnp.array([[0.0, 0.0, 1.0, 0.0]])
    params = params._replace(w_ih=w_ih, bias=jnp.array([0.0, 1e4, 0.0, 1e4]))
    xs = np.array([[1.0], [-2.0], [0.5]], np.float32)
    _, ys = rnnjax.unroll(cell, params, xs)
    assert_allclose(ys[:, 0], np.cumsum(np.tanh(xs[:, 0])) / [1, 2, 3], rtol=1e-6)


def test_a_first_carry_of_the_slstm_counts_as_its_equations_say():
    """One step from c and n, held against the equations in float64 and their derivatives."""
    i, f, z, o = gates = np.array([-3.0, 5.0, 0.7, 0.3])
    cell = rnnjax.slstm(1)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 1))
    params = params._replace(bias=jnp.asarray(gates, jnp.float32))
    zero = cell.initial_carry(params)

    def run(c, n):
        carry = zero._replace(c=zero.c + c, n=zero.n + n)
        return rnnjax.unroll(cell, params, jnp.zeros((1, 1)), initial_carry=carry)[1][0, 0]

    forget, write = 1 / (1 + np.exp(-f)), np.exp(i)
    total = forget * 0.5 + write * np.tanh(z)
    share = 1 / (1 + np.exp(-o))
    assert_allclose(run(0.5, 0.0), share * total / write, rtol=1e-6)
    assert_allclose(jax.grad(run)(0.5, 0.0), share * forget / write, rtol=1e-6)
    by_n = -share * total / write**2 * forget
    assert_allclose(jax.grad(run, 1)(0.5, 0.0), by_n, rtol=1e-6)
    # A normaliser below 0, where the quotient would have a pole, is one of 0.
    assert run(0.5, -0.3) == run(0.5, 0.0)
    assert jax.grad(run, 1)(0.5, -0.3) == 0


def test_the_rg_lru_in_parallel_is_the_loop():
    cell, params = CELLS["rg_lru"], random_params("rg_lru")
    xs = jax.random.normal(jax.random.key(2), (2, T, D))

    def run(implementation):
        def loss(params, xs):
            _, ys = rnnjax.unroll(cell, params, xs, [T, 4], implementation=implementation)
            return jnp.sum(jnp.sin(ys)), ys

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, xs)

    jax.tree.map(
        lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-6), run("associative"), run("scan")
    )


def test_decays_of_the_rg_lru_start_where_they_are_told_to():
    cell = rnnjax.rg_lru(200, min_decay=0.5, max_decay=0.6)
    decay = np.asarray(cell.init(jax.random.key(0), D).decay, np.float64)
    start = np.exp(-8 * np.log1p(np.exp(decay)))
    assert np.all((start >= 0.5 - 1e-5) & (start <= 0.6 + 1e-5))
    assert np.ptp(start) > 0.09
    one = rnnjax.rg_lru(2, min_decay=0.5, max_decay=0.5).init(jax.random.key(0), D).decay
    assert_allclose(np.exp(-8 * np.log1p(np.exp(one))), 0.5, rtol=1e-5)


def test_a_coupled_lstm_whose_gate_is_open_still_forgets_exponentially():
    cell = rnnjax.coupled_lstm(1)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 1))
    params = params._replace(bias=jnp.array([20.0, 0, 0]))
    start = rnnjax.LSTMCarry(jnp.zeros(1), jnp.ones(1))
    carry, _ = rnnjax.unroll(cell, params, jnp.zeros((1, 1)), initial_carry=start)
    assert_allclose(carry.c, 1 / (1 + np.exp(20)), rtol=1e-5)


def test_a_cornn_without_damping_keeps_its_energy():
    cell = rnnjax.cornn(1, time_step=0.1, frequency=2.0, damping=0)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 1))
    start = rnnjax.CoRNNCarry(jnp.ones(1), jnp.zeros(1))
    (y, z), _ = rnnjax.unroll(cell, params, jnp.zeros((777, 1)), initial_carry=start)
    assert_allclose(z**2 + 2 * y**2 - 0.1 * 2 * y * z, 2, rtol=1e-4)  # of the map of one step


@pytest.mark.parametrize(("size", "theta"), [(1, 1.0), (6, 3.0), (40, 784.0), (8, 0.5)])
def test_the_memory_is_the_zero_order_hold(size, theta):
    """By an ordinary differential equation solved in many small steps of a matrix exponential."""
    a, b = legendre_memory(size, theta)
    row, column = np.indices((size, size))
    continuous = (2 * row + 1) / theta * np.where(row < column, -1.0, (-1.0) ** (row - column + 1))
    drive = (2 * np.arange(size) + 1) * (-1.0) ** np.arange(size) / theta
    assert_allclose(a, scipy.linalg.expm(continuous), rtol=1e-9, atol=1e-9)
    hold = np.linalg.solve(continuous, (scipy.linalg.expm(continuous) - np.eye(size)) @ drive)
    assert_allclose(b, hold, rtol=1e-7, atol=1e-9)


def test_the_memory_recovers_a_signal_of_the_past():
    """A slow wave 20 steps ago, read from 8 numbers by the Legendre polynomials at the far end."""
    theta, a, b = 20.0, *legendre_memory(8, 20.0)
    wave = np.sin(np.arange(120) * 2 * np.pi / 40)
    m = np.zeros(8)
    for u in wave:
        m = a @ m + b * u
    delayed = np.polynomial.legendre.legval(
        1.0, m
    )  # P_i(2 * theta' / theta - 1), at theta' = theta
    assert abs(delayed - wave[-1 - int(theta)]) < 0.1


@pytest.mark.kept
def test_elapsed_times_are_an_input_of_the_cfc():
    """Ragged, with NaN behind the end of both inputs; the same through a layer and step by step."""
    params, cell = random_params("cfc"), CELLS["cfc"]
    xs = np.asarray(jax.random.normal(jax.random.key(2), (2, T, D)))
    sixteenths = jax.random.randint(jax.random.key(3), (2, T, 1), 0, 48)  # exact in 16 bits
    elapsed = np.asarray(sixteenths / 16)
    padding = (np.arange(T) >= np.array([[T], [4]]))[..., None]
    given = np.where(padding, np.nan, xs), np.where(padding, np.nan, elapsed)

    def loss(given):
        carry, ys = rnnjax.recurrent(cell).apply(params, given, [T, 4])
        return jnp.sum(ys), (carry, ys)

    ((_, (carry, ys)), (d_xs, d_elapsed)) = jax.value_and_grad(loss, has_aux=True)(given)
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    for row, steps in enumerate((T, 4)):
        expected = cfc(wide, xs[row, :steps], elapsed[row, :steps, 0])
        assert_allclose(ys[row, :steps], expected, rtol=2e-5, atol=2e-6)
        assert_allclose(carry[row], expected[-1], rtol=2e-5, atol=2e-6)
        half = np.zeros(steps)
        half[1] = 1e-4
        slope = [
            np.sum(cfc(wide, xs[row, :steps], elapsed[row, :steps, 0] + sign * half))
            for sign in (1, -1)
        ]
        assert_allclose(d_elapsed[row, 1, 0], (slope[0] - slope[1]) / 2e-4, rtol=1e-3, atol=1e-5)
    assert np.all(d_elapsed[1, 4:] == 0)
    assert np.all(d_xs[1, 4:] == 0)
    with jax.numpy_dtype_promotion("strict"):
        _, y = cell.step(params, None, (xs[:, 0], elapsed[:, 0].astype(np.float16)))
    assert_allclose(y, ys[:, 0], rtol=1e-6, atol=1e-7)
    above = rnnjax.output_head(rnnjax.stack(cell, rnnjax.gru(2)), 1)
    _, outputs = above.apply(above.init(jax.random.key(4), D), given, [T, 4])
    assert np.all(np.isfinite(outputs))
    assert np.all(outputs[1, 4:] == 0)


def test_elapsed_times_of_another_shape_are_refused():
    cell, xs = CELLS["cfc"], jnp.ones((2, T, D))
    params = cell.init(jax.random.key(0), D)
    for given in ((xs, xs), (xs,), (xs, xs[..., :1], xs[..., :1]), {"xs": xs}):
        with pytest.raises(ValueError, match=r"a tuple of them and of elapsed times \[..., 1\]"):
            rnnjax.unroll(cell, params, given)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rnnjax.cfc(1.5), "hidden_size must be a positive integer"),
        (lambda: rnnjax.slstm(0), "hidden_size must be a positive integer"),
        (lambda: rnnjax.rg_lru(2, min_decay=0.9, max_decay=0.8), "min_decay must be at most"),
        (lambda: rnnjax.rg_lru(2, max_decay=1.0), r"max_decay must be a number in \(0, 1\)"),
        (lambda: rnnjax.cornn(2, time_step=0), "time_step must be positive and finite"),
        (lambda: rnnjax.cornn(2, damping=-1.0), "damping must be finite and at least 0"),
        (lambda: rnnjax.lmu(2, 3, float("nan")), "theta must be positive and finite"),
        (lambda: rnnjax.lmu(2, 0, 1.0), "memory_size must be a positive integer"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_heads_of_the_slstm_are_a_matrix_that_is_zero_between_them():
    cell = rnnjax.slstm(H, num_heads=2)
    params = cell.init(jax.random.key(0), D)
    assert params.w_hh.shape == (2, 2, 8)
    whole = np.zeros((H, 4, H))  # [from, gate, to]
    for head in range(2):
        units = slice(2 * head, 2 * head + 2)
        whole[units, :, units] = np.asarray(params.w_hh[head]).reshape(2, 4, 2)
    dense = params._replace(w_hh=jnp.asarray(whole.reshape(H, 4 * H), jnp.float32))
    xs = jax.random.normal(jax.random.key(2), (2, T, D))
    _, expected = rnnjax.unroll(CELLS["slstm"], dense, xs)
    _, found = rnnjax.unroll(cell, params, xs)
    assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="num_heads must divide hidden_size 4, got 3"):
        rnnjax.slstm(H, num_heads=3)


@pytest.mark.parametrize(
    "transform",
    [
        rnnjax.layer_norm,
        lambda cell: rnnjax.variational_dropout(cell, hidden=0.5),
        lambda cell: rnnjax.weight_drop(cell, 0.5),
        lambda cell: rnnjax.with_policy(cell, rnnjax.Policy(compute="bfloat16")),
    ],
)
def test_transforms_take_cells_with_heads(transform):
    cell = transform(rnnjax.slstm(H, num_heads=2))
    params = cell.init(jax.random.key(0), D)
    _, ys = rnnjax.unroll(cell, params, jnp.ones((2, T, D)), key=jax.random.key(1))
    assert ys.shape == (2, T, H)
    assert np.all(np.isfinite(ys))
