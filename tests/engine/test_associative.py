"""Runs in parallel over time by an associative scan: the recurrence itself, and cells under it."""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import B, D, H, One, T, batch_alone, ragged
from jax.test_util import check_grads
from trees import EXACT, assert_trees_equal

import rnnjax
from rnnjax.cells.lru import lru
from rnnjax.cells.min_gru import min_gru
from rnnjax.cells.min_lstm import min_lstm
from rnnjax.engine._associative import linear_recurrence

pytestmark = pytest.mark.usefixtures("float64", "quick_compile")

FORWARD_AND_REVERSE = pytest.mark.parametrize("reverse", [False, True])


# ---- the recurrence


def draw(shape, seed, kind):
    rng = np.random.default_rng(seed)
    real = rng.normal(size=shape)
    return real + 1j * rng.normal(size=shape) if kind is complex else real


def numpy_recurrence(decay, drive, starts, reverse):
    state, states = np.zeros(drive.shape[1:], drive.dtype), np.zeros_like(drive)
    for t in sorted(range(len(drive)), reverse=reverse):
        if starts is not None:
            state = np.where(starts[t][:, None], 0, state)
        if decay.ndim > drive.ndim:
            state = np.einsum("bij,bj->bi", decay[t], state) + drive[t]
        else:
            state = decay[t] * state + drive[t]
        states[t] = state
    return states


@pytest.mark.parametrize("time", [0, 1, 7])
@pytest.mark.parametrize("with_starts", [False, True])
@pytest.mark.parametrize(("kind", "matrices"), [(float, True), (complex, False)])
@FORWARD_AND_REVERSE
def test_the_states_are_those_of_a_numpy_loop(reverse, kind, matrices, with_starts, time):
    decay = draw((time, 2, 3, 3) if matrices else (time, 2, 3), 0, kind)
    drive = draw((time, 2, 3), 1, kind)
    starts = draw((time, 2), 2, float) > 0.5 if with_starts else None
    states = linear_recurrence(decay, drive, starts, reverse=reverse)
    np.testing.assert_allclose(states, numpy_recurrence(decay, drive, starts, reverse), **EXACT)


def test_derivatives_of_both_orders_equal_finite_differences():
    decay, drive = draw((4, 2, 2, 2), 0, float), draw((4, 2, 2), 1, float)
    starts = draw((4, 2), 2, float) > 0.3
    solve = jax.jit(lambda a, b: linear_recurrence(a, b, starts, reverse=True))
    check_grads(solve, (decay, drive), order=2, modes=("fwd", "rev"), rtol=1e-6)


def test_products_of_many_matrices_are_taken_in_full_precision_on_any_device():
    """What a GPU or a TPU would round to fewer bits in each of them."""
    decay, drive = draw((8, 2, 2, 2), 0, float), draw((8, 2, 2), 1, float)
    derivative = jax.grad(lambda a, b: jnp.sum(linear_recurrence(a, b) ** 2), (0, 1))
    text = str(jax.make_jaxpr(derivative)(decay, drive))
    found = re.findall(r"\bprecision=(.*)", text)
    assert len(found) == text.count("dot_general[") > 4
    assert all("HIGHEST" in precision for precision in found), found


def test_complex_gradients_are_those_of_a_python_loop():
    decay, drive = draw((6, 2, 3), 0, complex), draw((6, 2, 3), 1, complex)

    def python_loop(decay, drive):
        states = [drive[0]]
        for t in range(1, 6):
            states.append(decay[t] * states[-1] + drive[t])
        return jnp.stack(states)

    def grads(run):
        weigh = draw((6, 2, 3), 2, complex)
        return jax.grad(lambda *args: jnp.sum((weigh * run(*args)).real), (0, 1))(decay, drive)

    assert_trees_equal(grads(linear_recurrence), grads(python_loop))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@FORWARD_AND_REVERSE
def test_what_is_not_finite_stays_in_its_segment(reverse, bad):
    decay, drive = draw((6, 1, 2), 0, float), draw((6, 1, 2), 1, float)
    starts = np.array([False, False, False, True, False, False])[:, None]
    if reverse:
        starts = np.roll(starts, -1)
    first = slice(3, None) if reverse else slice(None, 3)  # the segment that is run first
    second = slice(None, 3) if reverse else slice(3, None)
    run = functools.partial(linear_recurrence, starts=starts, reverse=reverse)
    grad = jax.grad(lambda a, b: jnp.sum(run(a, b)[second] ** 2), argnums=(0, 1))
    clean = run(decay, drive), *grad(decay, drive)
    decay[first], drive[first] = bad, bad
    dirty = run(decay, drive), *grad(decay, drive)
    for a, e in zip(dirty, clean, strict=True):
        np.testing.assert_array_equal(a[second], e[second])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@FORWARD_AND_REVERSE
def test_the_decay_of_a_start_is_never_read(reverse, bad):
    decay, drive = draw((6, 1, 2), 0, float), draw((6, 1, 2), 1, float)
    starts = (np.arange(6) == 3)[:, None]
    run = functools.partial(linear_recurrence, starts=starts, reverse=reverse)
    grad = jax.grad(lambda a, b: jnp.sum(run(a, b) ** 2), argnums=(0, 1))
    clean = run(decay, drive), *grad(decay, drive)
    decay[3] = bad
    dirty = run(decay, drive), *grad(decay, drive)
    for a, e in zip(dirty, clean, strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("time", [2, 7, 8])
@FORWARD_AND_REVERSE
def test_no_state_crosses_a_start_wherever_it_is(reverse, time):
    """The scan joins steps in pairs, pairs of pairs and so on: each pair is asked for."""
    decay, drive = draw((time, 1, 2), 0, float), draw((time, 1, 2), 1, float)
    for start in range(time - 1) if reverse else range(1, time):
        steps = np.arange(time)
        earlier = steps > start if reverse else steps < start
        spoiled = np.where(earlier[:, None, None], np.nan, drive)
        starts = (steps == start)[:, None]
        states = linear_recurrence(decay, spoiled, starts, reverse=reverse)
        expected = numpy_recurrence(decay, spoiled, starts, reverse)
        assert np.all(np.isfinite(expected) == ~earlier[:, None, None])
        np.testing.assert_allclose(states, expected, **EXACT)


def test_the_recurrence_is_solved_for_each_row_of_a_vmap():
    decay, drive = draw((2, 5, 3, 2), 0, float), draw((2, 5, 3, 2), 1, float)

    def grad(decay, drive):
        return jax.grad(lambda *args: jnp.sum(linear_recurrence(*args) ** 3), (0, 1))(decay, drive)

    both = jax.vmap(grad)(decay, drive)
    for i in range(2):
        assert_trees_equal(jax.tree.map(lambda a, i=i: a[i], both), grad(decay[i], drive[i]))


@pytest.mark.parametrize("shape", [(5, 2), (5, 2, 4), (5, 2, 3, 4), (4, 2, 3)])
def test_a_decay_that_fits_no_drive_is_refused(shape):
    message = r"decay must have the shape of drive, \(5, 2, 3\), .* \(5, 2, 3, 3\), got shape"
    with pytest.raises(ValueError, match=message):
        linear_recurrence(jnp.ones(shape), jnp.ones((5, 2, 3)))


# ---- cells


class TwoLeaves(NamedTuple):
    slow: Any  # [H], real
    spin: Any  # [2], complex


class OwnParams(NamedTuple):
    w_ih: Any
    w_hh: Any
    turn: Any
    start: Any


def users_linear_cell() -> rnnjax.Cell:
    """From outside the library: two leaves, one of them complex, a learned start, a decay made of
    the input, and an output that is nonlinear in what recurrent weights make of the carry."""

    def init(key, input_size):
        ih, hh, turn, start = jax.random.split(key, 4)
        return OwnParams(
            jax.random.normal(ih, (input_size, 2 * H)),
            jax.random.normal(hh, (H + 2, H)),
            jax.random.normal(turn, (2,)),
            TwoLeaves(jax.random.normal(start, (H,)), jnp.array([1.0 + 2j, 0.5j])),
        )

    def linear(params, x_proj):
        decay = TwoLeaves(jax.nn.sigmoid(x_proj[1]), 0.9 * jnp.exp(1j * params.turn))
        return decay, TwoLeaves(jnp.tanh(x_proj[0]), x_proj[0][:2] + 1j * x_proj[1][:2])

    def update(params, carry, x_proj, h_proj):
        decay, drive = linear(params, x_proj)
        new = jax.tree.map(lambda a, s, b: a * s + b, decay, carry, drive)
        return new, jnp.sin(h_proj[0] + x_proj[0]) + new.slow

    return rnnjax.Cell(
        output_size=H,
        init=init,
        initial_carry=lambda params: params.start,
        project=lambda params, x: tuple(jnp.split(x @ params.w_ih, 2)),
        recurrent=lambda params: params.w_hh,
        hidden=lambda carry: jnp.concatenate([carry.slow, carry.spin.real]),
        update=update,
        linear=linear,
    )


CELLS = {
    "min_gru": min_gru(H),
    "min_lstm": min_lstm(H),
    "lru": lru(H, 3),
    "s5": rnnjax.s5(H, 3),
    "s4d": rnnjax.s4d(D, 2),
    "users_own": users_linear_cell(),
}
EVERY_CELL = pytest.mark.parametrize("name", CELLS)
COMPLEX_CELLS = pytest.mark.parametrize("name", ["lru", "users_own"])


def parameters(name, seed=1):
    params = CELLS[name].init(jax.random.key(seed), D)
    return jax.tree.map(lambda a: a.astype(jnp.result_type(a, jnp.float64)), params)


def weigh(*results):
    """A loss that feels every real and imaginary part of all results differently."""
    parts = [p for a in jax.tree.leaves(results) for p in (a.real, a.imag)]
    return sum(
        jnp.sum(p * jnp.cos(jnp.arange(p.size, dtype=float) + i).reshape(p.shape))
        for i, p in enumerate(parts)
    )


def random_carry(name, params):
    fresh = CELLS[name].initial_carry(params)
    return jax.tree.map(
        lambda a: jax.random.normal(jax.random.key(a.size), (B, *a.shape), a.dtype), fresh
    )


def everything(run, *args):
    """The results of a run, and the gradients to all it was given."""

    def loss(*args):
        results = run(*args)
        return weigh(results), results

    (_, results), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*args)
    return results, grads


@pytest.mark.parametrize(
    ("name", "reverse"), [*((name, False) for name in CELLS), ("users_own", True)]
)
@pytest.mark.kept
def test_a_batch_is_each_sequence_alone(name, reverse):
    params, batch = parameters(name), ragged("all")
    start = random_carry(name, params)

    def engine(params, start, xs):
        options = {"reverse": reverse, "implementation": "associative", **batch.options}
        return rnnjax.unroll(CELLS[name], params, xs, initial_carry=start, **options)

    def oracle(params, start, xs):
        return batch_alone(One(CELLS[name], reverse), params, batch, start, xs)

    both = [everything(run, params, start, batch.xs) for run in (engine, oracle)]
    assert_trees_equal(*both)


@pytest.mark.parametrize(("name", "reverse"), [("lru", True), ("users_own", False)])
def test_all_that_the_scan_gives_is_the_same(name, reverse):
    params, batch = parameters(name), ragged("all")

    def run(implementation):
        def unroll(params, start, xs):
            return rnnjax.unroll(
                CELLS[name],
                params,
                xs,
                initial_carry=start,
                reverse=reverse,
                all_carries=True,
                include_initial=True,
                implementation=implementation,
                **batch.options,
            )

        return everything(unroll, params, random_carry(name, params), batch.xs)

    assert_trees_equal(run("associative"), run("scan"))


@pytest.mark.full
def test_a_learned_start_and_norms_leave_a_cell_what_runs_in_parallel_over_time():
    batch = ragged("resets")
    for make in (rnnjax.learn_initial_carry, rnnjax.layer_norm):
        cell = make(CELLS["min_gru"])
        params = jax.tree.map(lambda a: a.astype(float), cell.init(jax.random.key(1), D))
        params = jax.tree.map(lambda a: a + 0.3 * draw(a.shape, 2, float), params)

        def run(params, way, cell=cell):
            options = {"implementation": way, **batch.options}
            results = rnnjax.unroll(cell, params, batch.xs, **options)
            return weigh(results), results

        found, expected = (
            jax.value_and_grad(run, has_aux=True)(params, way) for way in ("associative", "scan")
        )
        assert_trees_equal(found, expected)


def test_noise_of_the_hidden_state_is_that_of_the_scan():
    cell = rnnjax.variational_dropout(CELLS["users_own"], inputs=0.5, hidden=0.5)
    params, batch, key = parameters("users_own"), ragged("all"), jax.random.key(3)
    both = (
        rnnjax.unroll(cell, params, batch.xs, key=key, implementation=name, **batch.options)
        for name in ("scan", "associative")
    )
    assert_trees_equal(*both)


@EVERY_CELL
def test_padding_is_never_read(name):
    params, batch = parameters(name), ragged("all")

    @jax.jit
    def value_and_grads(xs):
        def loss(params, xs):
            options = {"implementation": "associative", **batch.options}
            results = rnnjax.unroll(CELLS[name], params, xs, **options)
            return weigh(results), results

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, xs)

    clean = value_and_grads(jnp.where(batch.valid[..., None], batch.xs, 0))
    for fill in (np.nan, np.inf, -1e300):
        dirty = value_and_grads(jnp.where(batch.valid[..., None], batch.xs, fill))
        assert_trees_equal(dirty, clean, rtol=0, atol=0)
    (_, (_, ys)), (_, d_xs) = clean
    assert np.all(ys[~batch.valid] == 0)
    assert np.all(d_xs[~batch.valid] == 0)


@pytest.mark.parametrize("shape", [(B, 0), (0, T), (2, 0, 3)])
@COMPLEX_CELLS
def test_no_steps_and_no_rows_are_allowed(name, shape):
    params = parameters(name)

    def run(params, xs):
        lengths = np.zeros(shape[:-1], int)
        carry, ys = rnnjax.unroll(CELLS[name], params, xs, lengths, implementation="associative")
        assert ys.shape == (*shape, H)
        return weigh(carry, ys), carry

    (_, carry), grads = jax.value_and_grad(run, has_aux=True)(params, jnp.zeros((*shape, D)))
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
    fresh = CELLS[name].initial_carry(params)
    expected = jax.tree.map(lambda a: np.broadcast_to(a, (*shape[:-1], *a.shape)), fresh)
    assert_trees_equal(carry, expected, rtol=0, atol=0)


@COMPLEX_CELLS
def test_batch_axes_jit_and_vmap_over_parameters_agree(name):
    batch, models = ragged("all"), [parameters(name, seed) for seed in (3, 4)]

    def run(params, axes=(B,)):
        xs, options = jax.tree.map(
            lambda a: jnp.reshape(a, (*axes, *a.shape[1:])), (batch.xs, batch.options)
        )
        run = rnnjax.unroll(CELLS[name], params, xs, implementation="associative", **options)
        return jax.tree.map(lambda a: a.reshape(B, *a.shape[len(axes) :]), run)

    together = jax.vmap(run)(jax.tree.map(lambda *a: jnp.stack(a), *models))
    for i, params in enumerate(models):
        alone = run(params)
        assert_trees_equal(jax.tree.map(lambda a, i=i: a[i], together), alone)
        assert_trees_equal(run(params, (B, 1, 1)), alone)
        assert_trees_equal(jax.jit(run)(params), alone)


def primitives(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", None)
            if inner is not None:
                yield from primitives(getattr(inner, "jaxpr", inner))


@EVERY_CELL
def test_no_loop_over_time_is_left(name):
    params, xs = parameters(name), jnp.ones((2, 300, D))

    def loss(params):
        return weigh(rnnjax.unroll(CELLS[name], params, xs, implementation="associative"))

    found = set(primitives(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
    assert not {"scan", "while"} & found


@pytest.mark.parametrize("name", ["min_gru", "lru"])
def test_thousands_of_steps_in_float32_stay_near_float64(name):
    params = parameters(name)
    xs = jax.random.normal(jax.random.key(0), (4000, D))
    exact = rnnjax.unroll(CELLS[name], params, xs)[1]
    narrow = jax.tree.map(lambda a: a.astype("float32"), (params, xs))
    _, ys = rnnjax.unroll(CELLS[name], *narrow, implementation="associative")
    np.testing.assert_allclose(ys, exact, atol=1e-5 * np.abs(exact).max())


def test_layers_run_in_parallel_over_time_too():
    def layer(implementation):
        run = functools.partial(rnnjax.recurrent, implementation=implementation)
        ahead, back = run(min_gru(H)), run(lru(H, 3), reverse=True)
        return rnnjax.stack(rnnjax.bidirectional(ahead, back), run(min_lstm(H)))

    params = jax.tree.map(lambda a: a.astype(float), layer("scan").init(jax.random.key(0), D))
    batch = ragged("all")
    runs = [
        layer(name).apply(params, batch.xs, **batch.options) for name in ("associative", "scan")
    ]
    assert_trees_equal(*runs)


def test_a_cell_that_is_not_linear_is_refused():
    cell = rnnjax.lstm(H)
    params = cell.init(jax.random.key(0), D)
    with pytest.raises(ValueError, match="linear in its carry"):
        rnnjax.unroll(cell, params, jnp.ones((T, D)), implementation="associative")
