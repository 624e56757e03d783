"""Newton's method over all steps at once: the loop's answer, or a report that says otherwise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CELLS as TABLE
from cases import B, D, H, T, ragged
from trees import EXACT, assert_trees_equal

import rnnjax
from rnnjax.cells.indrnn import indrnn
from rnnjax.cells.lru import lru
from rnnjax.cells.projected_lstm import projected_lstm
from rnnjax.newton import unroll_newton
from rnnjax.regularizers import variational_dropout

pytestmark = pytest.mark.usefixtures("float64", "quick_compile")

CELLS = {**TABLE, "lru": lru(H, 3)}
LONG = 60


def parameters(cell, seed=1):
    params = cell.init(jax.random.key(seed), D)
    return jax.tree.map(lambda a: a.astype(jnp.result_type(a, jnp.float64)), params)


def chaotic(cell):
    """Recurrent weights so large that the states of the loop never settle."""
    params = parameters(cell)
    return params._replace(w_hh=4 * params.w_hh)


def inputs(time=LONG, rows=2):
    return jax.random.normal(jax.random.key(0), (rows, time, D))


def weigh(*results):
    parts = [p for a in jax.tree.leaves(results) for p in (a.real, a.imag)]
    return sum(
        jnp.sum(p * jnp.cos(jnp.arange(p.size, dtype=float) + i).reshape(p.shape))
        for i, p in enumerate(parts)
    )


def everything(run, *args):
    """The carry and outputs of a run, what else it gives, and the gradients to its arguments."""

    def loss(*args):
        carry, ys, *rest = run(*args)
        return weigh(carry, ys), ((carry, ys), rest)

    grad = jax.value_and_grad(loss, argnums=tuple(range(len(args))), has_aux=True)
    (_, (results, rest)), grads = jax.jit(grad)(*args)
    return (results, grads), rest


ROWS = [
    ("lstm", "full", False),
    ("gru_reset_before", "diagonal", True),
    ("users_own", "diagonal", False),
    ("lru", "full", True),
]


@pytest.mark.parametrize(("name", "jacobian", "reverse"), ROWS)
def test_value_and_gradient_are_those_of_the_loop(name, jacobian, reverse):
    """With lengths, holes in the mask, resets, NaN in the padding and a carry of its own."""
    cell, batch = CELLS[name], ragged("all")
    params = parameters(cell)
    xs = jnp.where(batch.valid[..., None], batch.xs, jnp.nan)
    start = jax.tree.map(
        lambda a: jax.random.normal(jax.random.key(a.size), (B, *a.shape), a.dtype),
        cell.initial_carry(params),
    )

    def run(unroll, params, start, xs, **options):
        options |= {"reverse": reverse, **batch.options}
        return unroll(cell, params, xs, initial_carry=start, **options)

    newton = functools.partial(run, unroll_newton, jacobian=jacobian)
    results, (report,) = everything(newton, params, start, xs)
    expected, _ = everything(functools.partial(run, rnnjax.unroll), params, start, xs)
    assert_trees_equal(results, expected)
    (_, ys), (_, _, d_xs) = results
    assert np.all(ys[~batch.valid] == 0)
    assert np.all(d_xs[~batch.valid] == 0)
    assert np.all(report.converged)


@pytest.mark.parametrize("jacobian", ["full", "diagonal"])
def test_a_long_sequence_in_float32_agrees_to_its_rounding(jacobian):
    cell = rnnjax.gru(8)
    params, xs = cell.init(jax.random.key(0), D), inputs(300).astype("float32")
    carry, ys, report = unroll_newton(cell, params, xs, [300, 170], jacobian=jacobian)
    expected_carry, expected = rnnjax.unroll(cell, params, xs, [300, 170])
    assert np.all(report.converged)
    assert np.all(report.residual <= 16 * np.finfo("float32").eps)
    np.testing.assert_allclose(ys, expected, atol=1e-5)
    np.testing.assert_allclose(carry, expected_carry, atol=1e-5)
    assert report.iterations < {"full": 8, "diagonal": 40}[jacobian]


def numpy_newton(params, xs, iterations, jacobian):
    """DEER for the tanh cell from its paper: a guess of all states, linearised, solved anew."""
    params, xs, states = jax.tree.map(np.asarray, params), np.asarray(xs), np.zeros((len(xs), H))
    for _ in range(iterations):
        before = np.vstack([np.zeros(H), states[:-1]])
        advanced = np.tanh(xs @ params.w_ih + before @ params.w_hh + params.bias)
        new, state = [], np.zeros(H)
        for t in range(len(xs)):
            slope = (1 - advanced[t] ** 2)[:, None] * params.w_hh.T
            slope = np.diag(np.diag(slope)) if jacobian == "diagonal" else slope
            state = advanced[t] + slope @ (state - before[t])
            new.append(state)
        states = np.array(new)
    before = np.vstack([np.zeros(H), states[:-1]])
    advanced = np.tanh(xs @ params.w_ih + before @ params.w_hh + params.bias)
    residual = (np.abs(advanced - states) / (1 + np.abs(states))).max()
    return advanced, residual


@pytest.mark.parametrize("jacobian", ["full", "diagonal"])
@pytest.mark.parametrize("iterations", [1, 3])
def test_each_iteration_and_its_residual_are_those_of_a_numpy_loop(jacobian, iterations):
    cell, xs = rnnjax.vanilla(H), inputs()[0]
    params = parameters(cell)
    options = {"jacobian": jacobian, "max_iterations": iterations}
    _, ys, report = unroll_newton(cell, params, xs, **options)
    expected, residual = numpy_newton(params, xs, iterations, jacobian)
    np.testing.assert_allclose(ys, expected, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(report.residual, residual, rtol=1e-7)
    assert report.iterations == iterations
    assert not report.converged


@pytest.mark.parametrize("jacobian", ["full", "diagonal"])
def test_what_does_not_converge_says_so_and_is_exact_up_to_where_it_came(jacobian):
    cell, xs = rnnjax.vanilla(H), inputs()
    params = chaotic(cell)
    options = {"jacobian": jacobian, "max_iterations": 5}
    _, ys, report = unroll_newton(cell, params, xs, [LONG, 4], **options)
    _, expected = rnnjax.unroll(cell, params, xs, [LONG, 4])
    assert report.converged.tolist() == [False, True]
    assert report.iterations == 5
    assert report.residual[0] > 1e-3
    assert np.abs(ys[0] - expected[0]).max() > 1e-2
    np.testing.assert_allclose(ys[0, :6], expected[0, :6], rtol=1e-9)
    np.testing.assert_allclose(ys[1], expected[1], rtol=1e-9)


@pytest.mark.parametrize("jacobian", ["full", "diagonal"])
def test_as_many_iterations_as_steps_always_suffice(jacobian):
    """With numbers beyond float64 on the way: products of 60 Jacobians of size 1e8."""
    cell = rnnjax.vanilla(H, lambda a: jnp.sin(1e8 * a))
    params, xs = parameters(cell), inputs()
    options = {"jacobian": jacobian, "max_iterations": LONG + 1}
    _, _, report = unroll_newton(cell, params, xs, **options)
    assert np.all(report.converged)
    assert report.iterations > 20


def test_a_sequence_with_nan_at_a_real_step_is_reported_and_harms_no_other():
    cell, xs = rnnjax.gru(H), inputs()
    params = parameters(cell)
    _, expected = rnnjax.unroll(cell, params, xs)
    _, ys, report = unroll_newton(cell, params, xs.at[0, 9].set(jnp.nan), max_iterations=30)
    assert report.converged.tolist() == [False, True]
    assert np.isnan(report.residual[0])
    np.testing.assert_allclose(ys[1], expected[1], **EXACT)
    _, alone, report = unroll_newton(cell, params, xs[:1].at[0, 9].set(jnp.nan), max_iterations=30)
    assert not report.converged[0]
    for row in (ys[0], alone[0]):
        np.testing.assert_allclose(row[:9], expected[0, :9], **EXACT)


def test_the_diagonal_is_the_full_jacobian_where_units_do_not_meet():
    """IndRNN, and a GRU whose recurrent weights are diagonal: the iterations are the same."""
    gru = rnnjax.gru(H)
    apart = parameters(gru)._replace(w_hh=jnp.tile(jnp.diag(jnp.arange(1.0, H + 1) / H), (1, 3)))
    one = indrnn(H, jnp.tanh)
    for cell, params in ((one, parameters(one)), (gru, apart)):
        runs = [
            unroll_newton(cell, params, inputs(), jacobian=kind, max_iterations=2)
            for kind in ("full", "diagonal")
        ]
        assert runs[0][2].residual.max() > 1e-12
        assert_trees_equal(*runs, rtol=1e-7, atol=1e-12)


def test_a_looser_tolerance_takes_fewer_iterations_and_is_kept():
    cell = rnnjax.lstm(H)
    run = functools.partial(unroll_newton, cell, parameters(cell), inputs(), jacobian="diagonal")
    loose, tight = run(tolerance=1e-3)[2], run(tolerance=1e-9)[2]
    assert loose.iterations < tight.iterations
    assert np.all(loose.converged & tight.converged)
    assert np.all(loose.residual <= 1e-3)
    assert np.all(tight.residual <= 1e-9)


def test_forward_mode_and_second_derivatives_are_those_of_the_loop():
    cell, xs = rnnjax.gru(H), inputs(12)
    params = parameters(cell)
    direction = jax.tree.map(jnp.cos, params)

    def derivatives(unroll):
        def loss(params):
            return weigh(*unroll(cell, params, xs, [12, 5])[:2])

        slope = jax.jvp(loss, (params,), (direction,))[1]
        return slope, jax.jvp(jax.grad(loss), (params,), (direction,))[1]

    assert_trees_equal(
        jax.jit(lambda: derivatives(unroll_newton))(), jax.jit(lambda: derivatives(rnnjax.unroll))()
    )


def test_vmap_over_parameters_and_batch_axes_agree_with_each_alone():
    cell, batch = rnnjax.gru(H), ragged("all")
    models = [parameters(cell, seed) for seed in (3, 4)]

    def run(params, axes=(B,)):
        xs, options = jax.tree.map(
            lambda a: jnp.reshape(a, (*axes, *a.shape[1:])), (batch.xs, batch.options)
        )
        carry, ys, report = unroll_newton(cell, params, xs, **options)
        return jax.tree.map(
            lambda a: a.reshape(B, *a.shape[len(axes) :]), (carry, ys, report.residual)
        )

    together = jax.vmap(run)(jax.tree.map(lambda *a: jnp.stack(a), *models))
    for i, params in enumerate(models):
        assert_trees_equal(jax.tree.map(lambda a, i=i: a[i], together), run(params))
    assert_trees_equal(run(models[0], (B, 1)), run(models[0]))


@pytest.mark.parametrize("shape", [(B, 0), (0, T)])
def test_no_steps_and_no_rows_are_allowed(shape):
    cell = rnnjax.lstm(H)
    params = parameters(cell)
    carry, ys, report = unroll_newton(cell, params, jnp.zeros((*shape, D)))
    assert ys.shape == (*shape, H)
    assert np.all(carry.c == 0)
    assert report.converged.shape == shape[:1]
    assert np.all(report.converged)
    assert report.iterations == 0


def test_a_key_gives_the_noise_that_it_gives_the_loop():
    """To a cell whose recurrent weights pair no unit with itself, too."""
    cell, xs = variational_dropout(projected_lstm(H, 2), inputs=0.3, hidden=0.4), inputs()
    params, key = parameters(cell), jax.random.key(5)
    carry, ys, report = unroll_newton(cell, params, xs, key=key, jacobian="diagonal")
    assert np.all(report.converged)
    assert_trees_equal((carry, ys), rnnjax.unroll(cell, params, xs, key=key))
    assert np.abs(ys - rnnjax.unroll(cell, params, xs)[1]).max() > 1e-2


def test_gates_are_traced_as_in_the_loop():
    cell, xs = rnnjax.trace_gates(rnnjax.gru(H)), inputs(8)
    params = parameters(cell)
    assert_trees_equal(unroll_newton(cell, params, xs)[:2], rnnjax.unroll(cell, params, xs))


BAD = {
    "jacobian must be 'full' or 'diagonal', got 'dense'": {"jacobian": "dense"},
    "tolerance must be a positive number, got 0": {"tolerance": 0},
    "tolerance must be a positive number, got nan": {"tolerance": float("nan")},
    "max_iterations must be a positive integer, got 0": {"max_iterations": 0},
    "lengths must lie in": {"lengths": [3, 99]},
    "resets must be of dtype bool": {"resets": jnp.ones((2, 8))},
    "initial_carry must have shape": {"initial_carry": jnp.ones((2, H + 1))},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message):
    cell = rnnjax.gru(H)
    with pytest.raises(ValueError, match=message):
        unroll_newton(cell, parameters(cell), inputs(8), **BAD[message])
