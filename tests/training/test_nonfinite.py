"""Numbers that are not finite: the step is left out and counted, and a lost run ends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax.metrics import compute, merge
from rnnjax.training import (
    NonFiniteError,
    apply_gradients,
    check_finite,
    init_train_state,
    make_train_step,
)


def quadratic(params, batch, key):
    """The gradient is what the batch says, and so is what is added to the loss."""
    loss = (params["w"] * batch["slope"]).sum() + batch["offset"]
    return loss, {"loss": (loss, jnp.ones(()))}


def batches(*spoiled):
    """Batch k is sound unless spoiled[k] names the part that is not, and its value."""
    for part in spoiled:
        batch = {"slope": jnp.array([1.0, -2.0]), "offset": jnp.zeros(())}
        if part is not None:
            name, value = part
            batch[name] = jnp.full_like(batch[name], value)
        yield batch


def run(optimizer, *spoiled):
    state = init_train_state(jax.random.key(0), {"w": jnp.array([3.0, 5.0])}, optimizer)
    step = make_train_step(quadratic, optimizer)
    history = []
    for batch in batches(*spoiled):
        state, metrics = step(state, batch)
        history.append((jax.device_get(state), jax.device_get(metrics)))
    return history


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_norm_of_a_gradient_of_16_bits_is_taken_in_32(dtype):
    """The square of 300 is infinite in float16: the step would be left out."""
    optimizer, params = optax.sgd(1.0), {"w": jnp.zeros(10_000, dtype)}
    state = init_train_state(jax.random.key(0), params, optimizer)
    grads = {"w": jnp.full(10_000, 300, dtype)}
    state, metrics = apply_gradients(state, optimizer, jnp.zeros((), dtype), grads)
    np.testing.assert_array_equal(state.params["w"].astype("float32"), -300)
    assert metrics["skipped"] == (0, 1)
    np.testing.assert_allclose(metrics["grad_norm"], (30_000, 1), rtol=1e-6)


def test_a_square_that_overflows_the_state_of_adam_in_float16_leaves_the_step_out():
    """Kept, it would hold the parameter for ever: every later update is divided by infinity."""
    optimizer, params = optax.adam(0.01), {"w": jnp.ones(2, jnp.float16)}
    state = init_train_state(jax.random.key(0), params, optimizer)
    spike = {"w": jnp.array([300.0, 1.0], jnp.float16)}
    state, metrics = apply_gradients(state, optimizer, jnp.zeros(()), spike)
    np.testing.assert_array_equal(state.params["w"], params["w"])
    assert metrics["skipped"] == (1, 1)
    for _ in range(50):
        even = {"w": jnp.ones(2, jnp.float16)}
        state, metrics = apply_gradients(state, optimizer, jnp.zeros(()), even)
    # Both are moved alike, by about the rate at every step.
    np.testing.assert_allclose(state.params["w"].astype("float32"), 0.5, atol=0.03)
    assert int(state.skipped) == 1


BAD = [("slope", np.nan), ("slope", np.inf), ("offset", np.nan), ("offset", -np.inf)]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    "optimizer", [optax.sgd(0.1), optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))]
)
def test_a_step_that_is_not_finite_changes_no_parameter_and_no_moment(optimizer, bad):
    sound, skipped, after = run(optimizer, None, bad, None)
    for name in ("params", "opt_state"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(sound[0], name), getattr(skipped[0], name)
        )
    without, expected = run(optimizer, None, None)
    np.testing.assert_array_equal(after[0].params["w"], expected[0].params["w"])
    assert not np.array_equal(without[0].params["w"], expected[0].params["w"])
    assert [int(s.skipped) for s, _ in (sound, skipped, after)] == [0, 1, 1]
    assert [int(s.skipped_in_a_row) for s, _ in (sound, skipped, after)] == [0, 1, 0]
    assert [int(s.step) for s, _ in (sound, skipped, after)] == [1, 2, 3]


@pytest.mark.parametrize("slope", [3e38, np.inf, np.nan])
def test_an_infinite_gradient_of_a_finite_loss_changes_no_parameter(slope):
    @jax.custom_vjp
    def flat(w):
        return jnp.zeros(())

    flat.defvjp(lambda w: (jnp.zeros(()), w), lambda w, g: (jnp.full_like(w, slope),))

    def loss_fn(params, batch, key):
        loss = flat(params["w"])
        return loss, {"loss": (loss, jnp.ones(()))}

    # The norm of two gradients of 3e38 overflows, though each of them is finite.
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    state = init_train_state(jax.random.key(0), {"w": jnp.array([3.0, 5.0])}, optimizer)
    state, metrics = make_train_step(loss_fn, optimizer)(state, jnp.ones(2))
    assert state.params["w"].tolist() == [3.0, 5.0]
    assert [int(state.skipped), int(metrics["skipped"][0])] == [1, 1]


def test_skipped_steps_are_missing_from_sums_and_are_counted():
    history = run(optax.sgd(0.0), None, ("slope", np.nan), None)
    total = history[0][1]
    for _, metrics in history[1:]:
        total = merge(total, metrics)
    one = history[0][1]["loss"][0]
    assert total["loss"] == (2 * one, 2)
    assert total["skipped"] == (1, 3)
    np.testing.assert_allclose(total["grad_norm"], (2 * 5**0.5, 2), rtol=1e-6)


def test_a_skipped_step_may_be_logged_as_any_other():
    (_, taken), (_, skipped) = run(optax.sgd(0.1), None, ("offset", np.nan))
    np.testing.assert_allclose(compute(taken)["grad_norm"], 5**0.5, rtol=1e-6)
    np.testing.assert_equal(compute(skipped), {"loss": np.nan, "grad_norm": np.nan, "skipped": 1.0})


def test_a_norm_that_overflows_is_not_finite():
    """Clipping by such a norm would give zeros or NaN. The loss is 0, each slope is finite."""

    def loss_fn(params, batch, key):
        loss = (params["w"] * jnp.array([2e20, -2e20])).sum()
        return loss, {"loss": (loss, jnp.ones(()))}

    optimizer = optax.clip_by_global_norm(1.0)
    state = init_train_state(jax.random.key(0), {"w": jnp.array([3.0, 3.0])}, optimizer)
    loss, slope = jax.value_and_grad(lambda p: loss_fn(p, None, None)[0])(state.params)
    assert loss == 0
    assert jnp.isfinite(slope["w"]).all()
    assert jnp.isinf(jnp.linalg.norm(slope["w"]))
    state, metrics = make_train_step(loss_fn, optimizer)(state, {})
    assert state.params["w"].tolist() == [3.0, 3.0]
    assert state.skipped == metrics["skipped"][0] == 1
    assert metrics["loss"] == metrics["grad_norm"] == (0, 0)


def test_a_finite_loss_with_an_infinite_gradient_is_left_out():
    """The loss alone must not decide: here it is 0 and its slope in w is infinite."""

    def loss_fn(params, batch, key):
        loss = jnp.sqrt(params["w"]).sum()
        return loss, {"loss": (loss, jnp.ones(()))}

    optimizer = optax.sgd(0.1)
    state = init_train_state(jax.random.key(0), {"w": jnp.array([0.0, 4.0])}, optimizer)
    loss, slope = jax.value_and_grad(lambda p: loss_fn(p, None, None)[0])(state.params)
    assert jnp.isfinite(loss)
    assert jnp.isinf(slope["w"][0])
    state, metrics = make_train_step(loss_fn, optimizer)(state, {})
    assert state.params["w"].tolist() == [0.0, 4.0]
    assert state.skipped == metrics["skipped"][0] == 1
    assert metrics["loss"] == (0, 0)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(np.nan),
        optax.sgd(np.inf),
        optax.sgd(lambda step: jnp.where(step == 0, 3e38, 0.1)),  # overflows beside 3 and 5
        optax.chain(optax.adam(0.1), optax.scale(np.nan)),
        optax.chain(optax.adamw(0.1), optax.scale(np.inf)),
    ],
    ids=["nan rate", "infinite rate", "overflow", "nan last", "infinite last"],
)
def test_an_update_that_is_not_finite_is_left_out(optimizer):
    """Loss and gradient are sound; the parameters after the update would not be."""
    (state, metrics), *_ = run(optimizer, ("slope", 2.0))
    assert state.params["w"].tolist() == [3.0, 5.0]
    assert state.skipped == state.skipped_in_a_row == metrics["skipped"][0] == 1
    fresh = jax.device_get(optimizer.init({"w": jnp.array([3.0, 5.0])}))
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, fresh)


def test_an_update_that_is_not_finite_is_named_by_checked():
    state = init_train_state(jax.random.key(0), {"w": jnp.array([3.0, 5.0])}, optax.sgd(np.nan))
    step = rnnjax.checked(make_train_step(quadratic, optax.sgd(np.nan)))
    message = r"params after the update\['w'\] must be finite, got nan at index \(0,\)"
    with pytest.raises(ValueError, match=message):
        step(state, next(batches(None)))


def test_a_learning_rate_of_a_hundred_ends_with_finite_parameters_and_an_error():
    model = rnnjax.classifier(rnnjax.embedding(10, 4), rnnjax.vanilla(8, lambda a: a), 3)
    optimizer = optax.sgd(100.0)

    def loss_fn(params, batch, key):
        losses = optax.softmax_cross_entropy_with_integer_labels(
            model.apply(params, batch["tokens"]), batch["labels"]
        )
        return losses.mean(), {"loss": (losses.sum(), jnp.array(4.0))}

    state = init_train_state(jax.random.key(1), model.init(jax.random.key(0)), optimizer)
    step = make_train_step(loss_fn, optimizer)
    tokens = jax.random.randint(jax.random.key(2), (4, 40), 2, 10)
    batch = {"tokens": tokens, "labels": jnp.array([0, 1, 2, 0])}

    def train(state):
        for _ in range(100):
            state, _ = step(state, batch)
            check_finite(state, limit=5)
        return state

    with pytest.raises(NonFiniteError, match="in the last 5 steps"):
        train(state)


def test_the_limit_counts_only_steps_in_a_row():
    bad = ("slope", np.nan)
    history = run(optax.sgd(0.1), bad, bad, None, bad, bad, bad)
    for state, _ in history[:-1]:
        check_finite(state, limit=3)
    with pytest.raises(NonFiniteError, match=r"last 3 steps .* after step 3;"):
        check_finite(history[-1][0], limit=3)


def test_of_stacked_states_the_one_with_the_most_skipped_steps_is_told():
    """Of three members the second has lost its numbers, after its second step."""
    optimizer = optax.sgd(0.1)
    step = make_train_step(lambda p, x, key: (p["w"] * x, {}), optimizer)
    keys = jax.random.split(jax.random.key(0), 3)
    state = jax.vmap(lambda key: init_train_state(key, {"w": jnp.ones(())}, optimizer))(keys)
    run = jax.jit(jax.vmap(step))
    for xs in ([1, 1, np.nan], [1, 1, 1], [1, np.nan, 1], [1, np.nan, 1], [1, np.nan, np.nan]):
        state, _ = run(state, jnp.array(xs))
    check_finite(state, limit=4)
    with pytest.raises(NonFiniteError, match=r"of state 1 of 3 .* last 3 steps .* after step 2;"):
        check_finite(state, limit=3)


@pytest.mark.parametrize("name", ["skipped", "grad_norm"])
def test_a_metric_of_a_reserved_name_is_refused(name):
    def loss_fn(params, batch, key):
        return params["w"].sum(), {name: (jnp.ones(()), jnp.ones(()))}

    state = init_train_state(jax.random.key(0), {"w": jnp.ones(2)}, optax.sgd(0.1))
    with pytest.raises(ValueError, match=f'must not give the metric "{name}"'):
        make_train_step(loss_fn, optax.sgd(0.1))(state, jnp.ones(2))


@pytest.mark.parametrize("cell", ["vanilla", "lstm", "gru"])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_saturated_gates_stay_finite(cell, size):
    cell = getattr(rnnjax, cell)(4)
    params = cell.init(jax.random.key(0), 3)
    xs = jnp.full((2, 6, 3), size)

    def loss(params, xs):
        carry, ys = rnnjax.unroll(cell, params, xs)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves((carry, ys)))

    for leaf in jax.tree.leaves(jax.value_and_grad(loss, (0, 1))(params, xs)):
        assert jnp.all(jnp.isfinite(leaf))


@pytest.mark.parametrize("cell", ["vanilla", "lstm", "gru"])
def test_a_hundred_thousand_steps_stay_finite(cell):
    cell = getattr(rnnjax, cell)(2)
    params = cell.init(jax.random.key(0), 1)
    xs = jnp.sin(jnp.arange(100_000.0))[:, None]

    def loss(params, xs):
        carry, ys = rnnjax.unroll(cell, params, xs)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(carry)) + ys.mean()

    value, (grads, slope) = jax.value_and_grad(loss, (0, 1))(params, xs)
    for leaf in jax.tree.leaves((value, grads, slope)):
        assert jnp.all(jnp.isfinite(leaf))
    assert jnp.abs(slope[-1]) > 0
