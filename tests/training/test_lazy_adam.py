"""A row that was not read ends where every step would have moved it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax.training import init_lazy_adam, lazy_adam, lazy_adam_params, make_lazy_adam_step

RATE = 0.01


@pytest.mark.parametrize("form", ["pytorch", "keras"])
@pytest.mark.parametrize(
    ("begun", "lag", "scale"),
    # Of gradients of the last sizes, what keeps the root from 0 is seen; over one step it is exact.
    [(1, 1, 1), (1, 40, 1), (7, 300, 1), (900, 250, 1), (9, 20, 1e-5), (9, 1, 1e-7)],
)
def test_a_row_is_brought_up_to_date_as_if_each_step_had_moved_it(form, begun, lag, scale):
    random = np.random.default_rng(0)
    p, m = random.normal(size=(2, 1, 6)) * [[[1]], [[scale]]]
    v = m**2 * random.uniform(0.5, 50, (1, 6)) + 1e-9 * scale**2
    tails = lazy_adam.make_tails(begun + lag, form)
    table = lazy_adam.Table(
        jnp.asarray(np.stack([p, m, v], 1), jnp.float32), jnp.array([begun], jnp.int32)
    )
    got = lazy_adam.settle(table, jnp.int32(begun + lag), tails, RATE, form)
    for s in range(begun + 1, begun + lag + 1):
        m, v = 0.9 * m, 0.999 * v
        correct = np.sqrt(1 - 0.999**s)
        root = np.sqrt(v) + 1e-7 if form == "keras" else np.sqrt(v) + 1e-8 * correct
        p = p - RATE * correct / (1 - 0.9**s) * m / root
    np.testing.assert_allclose(got, p, atol=2e-6)


@pytest.mark.parametrize("form", ["pytorch", "keras"])
def test_the_tails_are_the_sums_over_all_steps_to_come(form):
    tails = lazy_adam.make_tails(2000, form)
    for s in (0, 7, 900):
        j = np.arange(1.0, 1000.0)
        mean, square = 1 - 0.9 ** (s + j), 1 - 0.999 ** (s + j)
        first = np.sum((0.9 / np.sqrt(0.999)) ** j * np.sqrt(square) / mean)
        terms = np.sqrt(square) if form == "keras" else square
        second = np.sum((0.9 / 0.999) ** j * terms / mean)
        found = tails.first[s], tails.second[s]
        np.testing.assert_allclose(found, (first, second), rtol=3e-7)


def test_the_step_is_adam_over_the_whole_table():
    random = np.random.default_rng(0)
    vectors = jnp.asarray(random.normal(size=(12, 3)), jnp.float32)
    rest = {"w": jnp.asarray(random.normal(size=3), jnp.float32)}
    batches = [random.choice(12, 4, replace=False) for _ in range(60)]

    def loss_fn(rows, rest, places, key):
        return jnp.sum((rows[places] @ rest["w"] - 1.0) ** 2), {}

    step = jax.jit(make_lazy_adam_step(loss_fn, RATE))
    state = init_lazy_adam(vectors, rest, max_steps=len(batches))
    assert state.rest["w"] is not rest["w"]
    dense, optimizer = {"vectors": vectors, **rest}, optax.adam(RATE)
    held = optimizer.init(dense)
    for ids in batches:
        # Two ids outside the table fill the rows up.
        rows = np.concatenate([ids, [12, 13]]).astype(np.int32)
        state, (loss, _) = step(state, rows, jnp.arange(4))

        def whole(p, ids=ids):
            return loss_fn(p["vectors"], p, ids, None)[0]

        expected, grads = jax.value_and_grad(whole)(dense)
        updates, held = optimizer.update(grads, held)
        dense = optax.apply_updates(dense, updates)
        np.testing.assert_allclose(loss, expected, rtol=2e-3)
    found, others = lazy_adam_params(state, RATE)
    np.testing.assert_allclose(found, dense["vectors"], atol=2e-4)
    np.testing.assert_allclose(others["w"], dense["w"], atol=2e-4)


@pytest.mark.parametrize("form", ["pytorch", "keras"])
def test_each_form_is_its_equation_and_each_parameter_has_its_rate(form):
    """Gradients so small that what is added below the line, and where, is seen."""
    slopes = 1e-7 * np.random.default_rng(0).normal(size=(6, 3, 2)).astype(np.float32)

    def loss_fn(rows, rest, slope, key):
        return jnp.sum(rows * slope) + jnp.sum((rest["fast"] + rest["slow"]) * slope), ()

    own = {"fast": 0.5, "slow": RATE / 8}
    step = jax.jit(make_lazy_adam_step(loss_fn, RATE, form=form, rates=lambda rest: own))
    zeros = jnp.zeros((3, 2))
    state = init_lazy_adam(zeros, {"fast": zeros, "slow": zeros}, max_steps=len(slopes), form=form)
    for found, expected in zip(state.tails, lazy_adam.make_tails(len(slopes), form), strict=True):
        np.testing.assert_array_equal(found, expected)
    moved = mean = square = np.zeros((3, 2))
    for s, slope in enumerate(slopes, start=1):
        state, _ = step(state, np.arange(3), slope)
        g = slope.astype(np.float64)
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2
        at_mean, at_square = 1 - 0.9**s, np.sqrt(1 - 0.999**s)
        if form == "keras":
            moved = moved - at_square / at_mean * mean / (np.sqrt(square) + 1e-7)
        else:
            moved = moved - mean / at_mean / (np.sqrt(square) / at_square + 1e-8)
    vectors, rest = lazy_adam_params(state, RATE, form=form)
    for found, rate in ((vectors, RATE), (rest["fast"], 0.5), (rest["slow"], RATE / 8)):
        np.testing.assert_allclose(found, rate * moved, rtol=2e-4)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="max_steps must be a positive integer"):
        init_lazy_adam(jnp.ones((2, 2)), (), max_steps=0)
    with pytest.raises(ValueError, match="form must be 'pytorch' or 'keras', got 'optax'"):
        init_lazy_adam(jnp.ones((2, 2)), (), max_steps=1, form="optax")
    with pytest.raises(ValueError, match="form must be 'pytorch' or 'keras', got 'optax'"):
        lazy_adam_params(init_lazy_adam(jnp.ones((2, 2)), (), max_steps=1), RATE, form="optax")


@pytest.mark.parametrize("outside", [-1, -3, 5, 100])
def test_an_id_outside_the_table_moves_no_row(outside):
    def loss_fn(rows, rest, places, key):
        return jnp.sum((rows - 1.0) ** 2), {}

    state = init_lazy_adam(jnp.full((5, 2), 0.5), (), max_steps=3)
    rows = np.array([0, outside])
    state, (loss, _) = make_lazy_adam_step(loss_fn, RATE)(state, rows, None)
    vectors, _ = lazy_adam_params(state, RATE)
    assert loss == 2 * 0.5**2 + 2 * 1.0**2  # the vector of an id outside is zeros
    assert np.all(vectors[0] != 0.5)
    assert np.all(vectors[1:] == 0.5)


def test_averages_of_16_bits_are_kept_in_32():
    """The mean square falls by a thousandth a step, which is nothing beside 8 bits."""

    def loss_fn(rows, rest, slope, key):
        return jnp.sum(rows * slope) + jnp.sum(rest["w"] * slope), {}

    rest = {"w": jnp.zeros(2, jnp.bfloat16)}
    state = init_lazy_adam(jnp.zeros((3, 2), jnp.bfloat16), rest, max_steps=50)
    step = jax.jit(make_lazy_adam_step(loss_fn, np.float32(0.0)))
    after, _ = jax.eval_shape(step, state, np.array([0]), jnp.bfloat16(1))
    assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, state)
    for slope in [1.0, *[0.0] * 40]:
        state, _ = step(state, np.array([0]), jnp.bfloat16(slope))
    expected = 0.001 * 0.999**40
    np.testing.assert_allclose(state.moments.square["w"], expected, rtol=1e-5)
    np.testing.assert_allclose(state.table.values[0, 2], expected, rtol=1e-5)
    assert state.rest["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("rate", ["0.1", -1.0, float("nan"), float("inf"), True, None])
def test_a_learning_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match="learning_rate must be finite and at least 0, got"):
        make_lazy_adam_step(lambda *_: None, rate)
    state = init_lazy_adam(jnp.ones((2, 2)), (), max_steps=1)
    with pytest.raises(ValueError, match="learning_rate must be finite and at least 0, got"):
        lazy_adam_params(state, rate)
    with pytest.raises(ValueError, match="form must be 'pytorch' or 'keras', got 'jax'"):
        make_lazy_adam_step(lambda *_: None, 0.1, form="jax")


def test_a_row_that_is_there_twice_is_refused_and_too_many_steps_are_seen():
    """Of two equal rows one would be written, whichever comes last: half of the gradient."""

    def loss_fn(rows, rest, places, key):
        return jnp.sum(rows[places] @ rest), ()

    step = make_lazy_adam_step(loss_fn, RATE)
    state = init_lazy_adam(jnp.ones((5, 2)), jnp.ones(2), max_steps=1)
    places = np.array([0, 1])
    step(state, np.array([3, 1, -1, -1, 7, 7]), places)  # ids outside may fill the shape
    with pytest.raises(ValueError, match="rows must be integers, got dtype float"):
        step(state, np.array([3.0, 1.0]), places)
    for run in (step, rnnjax.checked(jax.jit(step))):
        with pytest.raises(ValueError, match="rows must be distinct, got 3"):
            run(state, np.array([3, 1, 3]), places)
    later, _ = step(state, np.array([3, 1]), places)
    for run in (step, rnnjax.checked(jax.jit(step))):
        with pytest.raises(ValueError, match=r"state.step must lie in \[0, 1\), as max_steps is 1"):
            run(later, np.array([3, 1]), places)
