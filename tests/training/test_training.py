"""Training steps against NumPy float64; what compiles, what is given away, what repeats."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rnnjax.metrics import Mean
from rnnjax.training import (
    EarlyStopping,
    apply_gradients,
    average_parameters,
    averaged,
    averaged_from,
    init_train_state,
    make_eval_step,
    make_train_step,
    make_truncated_step,
    no_longer_improves,
)

RNG = np.random.default_rng(0)
BATCHES = [(RNG.normal(size=(4, 3)), RNG.normal(size=4)) for _ in range(3)]


def squared_error(params, batch, key):
    x, y = batch
    error = x @ params["w"] + params["b"] - y
    return (error**2).mean(), {"loss": ((error**2).sum(), jnp.array(float(y.size)))}


def noisy(params, batch, key):
    """A loss whose gradient is the noise itself."""
    noise = jax.random.normal(key, params["w"].shape)
    return (noise * params["w"]).sum(), {}


def start(dtype=jnp.float32):
    return {"w": jnp.zeros(3, dtype), "b": jnp.zeros((), dtype)}


def to_device(batch):
    return tuple(jnp.asarray(array, jnp.float32) for array in batch)


def counted(loss_fn):
    """The loss function, and the list of the batch shapes that it was traced for."""
    traces = []

    def loss(params, batch, key):
        traces.append(jax.tree.map(jnp.shape, batch))
        return loss_fn(params, batch, key)

    return loss, traces


def assert_trees_equal(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_sgd_steps_are_those_of_numpy():
    w, b, rate, norms = np.zeros(3), 0.0, 0.1, []
    state = init_train_state(jax.random.key(0), start(), optax.sgd(rate))
    step = make_train_step(squared_error, optax.sgd(rate))
    for x, y in BATCHES:
        error = x @ w + b - y
        gradient_w, gradient_b = 2 * x.T @ error / len(y), 2 * error.mean()
        w, b = w - rate * gradient_w, b - rate * gradient_b
        norm = np.sqrt((gradient_w**2).sum() + gradient_b**2)

        state, metrics = step(state, to_device((x, y)))
        assert metrics["loss"][0].item() == pytest.approx((error**2).sum(), rel=1e-5)
        assert metrics["loss"][1] == 4
        assert metrics["grad_norm"].value.item() == pytest.approx(norm, rel=1e-5)
        assert metrics["grad_norm"].count == 1
        assert metrics["skipped"].value == 0
        norms.append(norm)
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-5)
    np.testing.assert_allclose(state.params["b"], b, rtol=1e-5)
    assert state.step == len(norms) == 3


def test_clipping_and_schedules_are_parts_of_the_optimizer():
    """One step of length schedule(step) * clip along the gradient, as the norm is above it."""
    schedule = optax.linear_schedule(0.5, 0.1, transition_steps=2)
    optimizer = optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(schedule))
    state = init_train_state(jax.random.key(0), start(), optimizer)
    step = make_train_step(squared_error, optimizer)
    for rate in (0.5, 0.3, 0.1, 0.1):
        before = jax.tree.map(np.asarray, jax.device_get(state.params))
        state, metrics = step(state, to_device(BATCHES[0]))
        moved = jax.tree.map(lambda new, old: ((new - old) ** 2).sum(), state.params, before)
        assert metrics["grad_norm"][0] > 0.01  # that of the gradient, not of the clipped one
        assert np.sqrt(sum(jax.tree.leaves(moved))) == pytest.approx(rate * 0.01, rel=1e-3)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adamw(0.1),
        # Adam's 0.999 is 1 as a bfloat16, and so injected it divides by 0 in Optax itself.
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
        optax.apply_if_finite(optax.sgd(0.1, momentum=0.9), 3),
        optax.MultiSteps(optax.adam(0.1), every_k_schedule=2).gradient_transformation(),
        optax.chain(optax.ema(0.9), optax.adam(0.1, mu_dtype=jnp.bfloat16)),
        optax.adafactor(0.1),
    ],
    ids=["adamw", "inject_hyperparams", "apply_if_finite", "multi_steps", "mixed", "adafactor"],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_any_optimizer_runs_one_program_and_keeps_its_dtypes(optimizer, dtype):
    loss_fn, traces = counted(squared_error)
    state = init_train_state(jax.random.key(0), start(dtype), optimizer)
    before = jax.tree.map(jax.typeof, state)
    step = make_train_step(loss_fn, optimizer)
    for batch in BATCHES:
        state, _ = step(state, jax.tree.map(lambda array: jnp.asarray(array, dtype), batch))
    assert jax.tree.map(jax.typeof, state) == before
    assert len(traces) == len(step.compilations) == 1
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.params))
    assert jnp.any(state.params["w"] != 0)


def test_a_step_needs_room_for_one_gradient_beside_the_state_it_is_given():
    """Leaving an update out must not cost a second state."""
    optimizer = optax.adam(0.1)
    params = {"w": jnp.zeros((1_000, 100))}

    def step(state, rows):
        loss, grads = jax.value_and_grad(lambda p: (p["w"][rows] ** 2).sum())(state.params)
        return apply_gradients(state, optimizer, loss, grads)

    state = init_train_state(jax.random.key(0), params, optimizer)
    compiled = jax.jit(step, donate_argnums=0).lower(state, jnp.arange(8)).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes >= 3 * params["w"].nbytes
    assert memory.temp_size_in_bytes < 1.5 * params["w"].nbytes


def test_an_optimizer_whose_state_drifts_to_another_dtype_is_held_to_the_first():
    def update(updates, state, params=None):
        return updates, state + jnp.ones((), jnp.float32)

    drifting = optax.GradientTransformation(lambda params: jnp.zeros((), jnp.bfloat16), update)
    state = init_train_state(jax.random.key(0), start(), drifting)
    step = make_train_step(squared_error, drifting)
    for batch in BATCHES:
        state, _ = step(state, to_device(batch))
    assert state.opt_state.dtype == jnp.bfloat16
    assert state.opt_state == 3


def test_weakly_typed_and_numpy_parameters_become_plain_arrays():
    params = {"weak": jnp.asarray(1.0), "python": 2.0, "numpy": np.ones(2, np.float32)}
    assert params["weak"].weak_type
    optimizer = optax.adam(0.1)
    state = init_train_state(jax.random.key(0), params, optimizer)
    assert not any(jax.typeof(leaf).weak_type for leaf in jax.tree.leaves(state))
    loss_fn, traces = counted(
        lambda p, batch, key: (p["weak"] * p["python"] * p["numpy"].sum(), {})
    )
    step = make_train_step(loss_fn, optimizer)
    for _ in range(3):
        state, _ = step(state, ())
    assert len(traces) == 1
    # Adam's first steps are of length 0.1 whatever the gradient, and 3 steps stay close to it.
    assert state.params["python"].item() == pytest.approx(2.0 - 0.3, abs=1e-2)


def test_batches_over_three_shapes_compile_three_times():
    loss_fn, traces = counted(squared_error)
    reports = []
    step = make_train_step(loss_fn, optax.sgd(0.1), on_compile=reports.append)
    evaluate = make_eval_step(loss_fn, on_compile=reports.append)
    state = init_train_state(jax.random.key(0), start(), optax.sgd(0.1))
    for size in (4, 2, 4, 8, 2, 2, 8, 4):
        state, _ = step(state, (jnp.ones((size, 3)), jnp.ones(size)))
    assert traces == [((4, 3), (4,)), ((2, 3), (2,)), ((8, 3), (8,))]
    assert [(made.name, made.shapes) for made in reports] == [
        ("train step", {"0": f"float32[{size},3]", "1": f"float32[{size}]"}) for size in (4, 2, 8)
    ]
    assert step.compilations == reports
    assert all(made.seconds > 0 for made in reports)

    for size in (4, 2, 4):
        evaluate(state.params, (jnp.ones((size, 3)), jnp.ones(size)))
    assert len(traces) == 5
    assert [made.name for made in reports[3:]] == ["eval step", "eval step"]


def test_dtype_and_structure_tell_batches_apart_but_numpy_and_jax_do_not():
    loss_fn, traces = counted(lambda params, batch, key: (params * 1.0, {}))
    step = make_eval_step(loss_fn)
    params = jnp.array(1.0)
    for batch in (
        {"a": jnp.ones(2)},
        {"a": np.ones(2, np.float32)},  # as the first
        {"b": jnp.ones(2)},
        {"a": jnp.ones(2, jnp.int32)},
        {"a": np.ones(2, np.int64)},  # as the one before: JAX makes it int32
        (jnp.ones(2),),
        jnp.ones(2),
    ):
        step(params, batch)
    assert [made.shapes for made in step.compilations] == [
        {"a": "float32[2]"},
        {"b": "float32[2]"},
        {"a": "int32[2]"},
        {"0": "float32[2]"},
        {"batch": "float32[2]"},
    ]
    assert len(traces) == 5


def test_a_failed_compilation_is_not_remembered():
    step = make_eval_step(squared_error)
    bad = (jnp.ones((4, 7)), jnp.ones(4))
    for _ in range(2):
        with pytest.raises(TypeError, match="dot_general"):
            step(start(), bad)
    assert step.compilations == []


def test_a_step_repeats_exactly_and_the_next_one_draws_other_noise():
    step = make_train_step(noisy, optax.sgd(1.0))
    key = jax.random.key(7)
    state = init_train_state(key, start(), optax.sgd(1.0))
    again = init_train_state(key, start(), optax.sgd(1.0))
    for number in range(3):
        before = np.array(state.params["w"])
        state, _ = step(state, ())
        again, _ = step(again, ())
        assert_trees_equal(jax.device_get(state.params), jax.device_get(again.params))
        noise = jax.random.normal(jax.random.fold_in(key, number), (3,))
        np.testing.assert_allclose(state.params["w"], before - noise, rtol=1e-5, atol=1e-6)


def test_a_step_from_the_middle_is_the_step_of_the_whole_run():
    step = make_train_step(noisy, optax.adam(0.1))
    state = init_train_state(jax.random.key(3), start(), optax.adam(0.1))
    states = []
    for _ in range(4):
        states.append(jax.tree.map(jnp.copy, state))
        state, _ = step(state, ())
    resumed = states[2]
    for _ in range(2):
        resumed, _ = step(resumed, ())
    assert_trees_equal(jax.device_get(resumed.params), jax.device_get(state.params))


def test_the_state_is_given_away_but_not_what_it_was_made_from():
    params, key = start(), jax.random.key(0)
    state = init_train_state(key, params, optax.adam(0.1))
    new, _ = make_train_step(squared_error, optax.adam(0.1))(state, to_device(BATCHES[0]))
    assert state.params["w"].is_deleted()
    assert not new.params["w"].is_deleted()
    np.testing.assert_array_equal(params["w"], np.zeros(3))
    jax.random.normal(key)  # would raise if the key had gone with the state


def test_a_state_that_was_given_away_is_told():
    step = make_train_step(squared_error, optax.adam(0.1))
    state = init_train_state(jax.random.key(0), start(), optax.adam(0.1))
    step(state, to_device(BATCHES[0]))
    with pytest.raises(ValueError, match=r"state must be the one .* whose array \.step was given"):
        step(state, to_device(BATCHES[0]))
    with pytest.raises(ValueError, match=r"params\['b'\] must still be there, got .* \(donated\)"):
        init_train_state(jax.random.key(0), state.params, optax.adam(0.1))


def test_an_array_of_the_state_in_the_batch_or_twice_in_the_state_is_named():
    """Such as the parameters of a target network, taken from the state; none of it is lost."""

    def loss_fn(params, target, key):
        return jnp.square(params["w"] - target["w"]).sum() + params["b"].sum(), {}

    optimizer = optax.sgd(0.25)
    step = make_train_step(loss_fn, optimizer)
    state = init_train_state(jax.random.key(0), {"w": jnp.ones(3), "b": jnp.ones(3)}, optimizer)
    in_both = r"batch\['b'\] must be .* got that of state\.params\['b'\]"
    with pytest.raises(ValueError, match=in_both):
        step(state, state.params)
    tied = state._replace(params={"w": state.params["b"], "b": state.params["b"]})
    with pytest.raises(ValueError, match=r"state\.params\['w'\] .* that of state\.params\['b'\]"):
        step(tied, {"w": jnp.zeros(3)})
    alias = jax.device_put(state.params, jax.devices()[0])  # other objects, the same memory
    with pytest.raises(ValueError, match=in_both):
        step(state, alias)

    new, _ = step(state, {"w": jnp.copy(state.params["w"]) - 2})
    np.testing.assert_array_equal(new.params["w"], np.zeros(3))
    alive, _ = make_train_step(loss_fn, optimizer, donate_state=False)(new, new.params)
    np.testing.assert_array_equal(alive.params["w"], new.params["w"])


def test_an_optimizer_that_keeps_the_parameters_can_be_donated_too():
    """Its state and the parameters start as the same arrays, which cannot be given away twice."""
    keep = optax.GradientTransformation(
        lambda params: params, lambda updates, state, params=None: (updates, state)
    )
    optimizer = optax.chain(keep, optax.sgd(0.1))
    state = init_train_state(jax.random.key(0), start(), optimizer)
    state, _ = make_train_step(squared_error, optimizer)(state, to_device(BATCHES[0]))
    np.testing.assert_array_equal(state.opt_state[0]["w"], np.zeros(3))
    assert jnp.any(state.params["w"] != 0)


def test_gradient_norm_of_half_precision_is_taken_in_float32():
    def loss_fn(params, batch, key):
        return params["w"].sum(), {}

    state = init_train_state(
        jax.random.key(0), {"w": jnp.zeros(1000, jnp.bfloat16)}, optax.sgd(0.1)
    )
    with jax.numpy_dtype_promotion("strict"):
        _, metrics = make_train_step(loss_fn, optax.sgd(0.1))(state, ())
    assert metrics["grad_norm"][0].dtype == jnp.float32
    assert metrics["grad_norm"][0].item() == pytest.approx(1000**0.5, rel=1e-6)


def test_gradient_norm_of_doubles_is_taken_in_float64(float64):
    def loss_fn(params, batch, key):
        return 1e-5 * params["narrow"].sum() + params["wide"].sum().astype(jnp.float32), {}

    params = {"narrow": jnp.zeros(3, jnp.float32), "wide": jnp.zeros(3, jnp.float64)}
    state = init_train_state(jax.random.key(0), params, optax.sgd(0.1))
    _, metrics = make_train_step(loss_fn, optax.sgd(0.1))(state, ())
    expected = np.sqrt(3 * float(np.float32(1e-5)) ** 2 + 3)
    assert expected != pytest.approx(3**0.5, rel=1e-12)
    assert metrics["grad_norm"][0].item() == pytest.approx(expected, rel=1e-15)


def test_a_metric_of_the_same_name_is_refused():
    def loss_fn(params, batch, key):
        return params["w"].sum(), {"grad_norm": (jnp.ones(()), jnp.ones(()))}

    state = init_train_state(jax.random.key(0), start(), optax.sgd(0.1))
    with pytest.raises(ValueError, match='must not give the metric "grad_norm"'):
        make_train_step(loss_fn, optax.sgd(0.1))(state, ())


@pytest.mark.parametrize("key", [lambda: jax.random.split(jax.random.key(0), 2), int, lambda: None])
def test_what_is_not_one_key_is_refused(key):
    with pytest.raises(ValueError, match=r"^key must be"):
        init_train_state(key(), start(), optax.sgd(0.1))


def test_the_order_of_the_release_before_is_taken_with_a_warning():
    key, optimizer = jax.random.key(5), optax.adam(0.1)
    with pytest.warns(DeprecationWarning, match="takes the key first"):
        old: Any = init_train_state(start(), optimizer, key)  # pyright: ignore
    assert_trees_equal(jax.device_get(old.params), jax.device_get(start()))
    new = init_train_state(key, start(), optimizer)
    assert jax.tree.map(jax.typeof, old) == jax.tree.map(jax.typeof, new)
    assert jnp.array_equal(jax.random.key_data(old.key), jax.random.key_data(key))


def test_a_parameter_without_a_gradient_is_refused_by_name():
    params = {"layers": [{"table": jnp.arange(3)}]}
    expected = r"params\['layers'\]\[0\]\['table'\] must be floating, got int32\[3\]"
    with pytest.raises(ValueError, match=expected):
        init_train_state(jax.random.key(0), params, optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"got complex64\[2\]: keep the real and the imaginary"):
        init_train_state(jax.random.key(0), jnp.ones(2) * 1j, optax.sgd(0.1))


def test_evaluation_gets_no_key_and_donates_nothing():
    keys = []

    def loss_fn(params, batch, key):
        keys.append(key)
        return squared_error(params, batch, key)

    params = start()
    metrics = make_eval_step(loss_fn)(params, to_device(BATCHES[0]))
    assert keys == [None]
    assert metrics["loss"][0].item() == pytest.approx((BATCHES[0][1] ** 2).sum(), rel=1e-5)
    np.testing.assert_array_equal(params["w"], np.zeros(3))


def watch(values, mode: Any = "max", patience=2):
    """Early stopping after those values; the parameters of epoch n are n."""
    stopping = EarlyStopping("score", mode=mode, patience=patience)
    stops = []
    for epoch, value in enumerate(values):
        stopping = stopping.update(epoch, {"score": value}, jnp.array(epoch))
        stops.append(stopping.should_stop)
    return stopping, stops


@pytest.mark.parametrize(
    ("mode", "values", "best", "stops"),
    [
        ("max", [1.0, 3.0, 2.0, 3.0], 1, [False, False, False, True]),
        ("min", [3.0, 1.0, 2.0, 0.5], 3, [False, False, False, False]),
        ("max", [1.0, np.nan, 2.0], 2, [False, False, False]),
        ("min", [np.nan, 5.0, np.nan, np.nan], 1, [False, False, False, True]),
        ("min", [np.inf, 5.0], 1, [False, False]),
    ],
)
def test_the_best_epoch_is_kept_and_patience_runs_out(mode, values, best, stops):
    stopping, stopped = watch(values, mode)
    assert stopping.best_epoch == best
    assert stopping.best_value == values[best]
    assert stopping.best_params == best
    assert stopped == stops


def test_nan_alone_is_never_the_best_and_stops_the_run():
    stopping, stops = watch([np.nan, np.nan, np.nan])
    assert stopping.best_value is stopping.best_epoch is stopping.best_params is None
    assert stops == [False, True, True]


def test_the_best_parameters_outlive_the_donated_state():
    step = make_train_step(squared_error, optax.sgd(0.1))
    state = init_train_state(jax.random.key(0), start(), optax.sgd(0.1))
    state, _ = step(state, to_device(BATCHES[0]))
    best, expected = state.params, np.array(state.params["w"])
    stopping = EarlyStopping("loss", mode="min", patience=1).update(1, {"loss": 0.5}, best)
    state, _ = step(state, to_device(BATCHES[1]))
    assert best["w"].is_deleted()
    np.testing.assert_array_equal(stopping.best_params["w"], expected)


@pytest.mark.parametrize("lost", [np.nan, np.inf, -np.inf])
def test_parameters_that_are_not_finite_are_never_the_best(lost):
    stopping = EarlyStopping("score", mode="max", patience=2)
    sound = {"w": jnp.ones(3), "count": jnp.array(7)}
    stopping = stopping.update(0, {"score": 0.9}, sound | {"w": jnp.array([1.0, lost, 1.0])})
    assert stopping.best_epoch is stopping.best_params is None
    stopping = stopping.update(1, {"score": 0.5}, sound)
    stopping = stopping.update(2, {"score": 0.8}, sound | {"w": jnp.array([[lost]], jnp.bfloat16)})
    assert (stopping.best_epoch, stopping.best_value, stopping.should_stop) == (1, 0.5, False)
    assert stopping.update(3, {"score": 1.0}, sound | {"w": jnp.array(lost)}).should_stop


def test_two_that_differ_in_their_parameters_alone_are_equal():
    trees = start(), {"w": jnp.ones(3), "b": jnp.ones(())}
    first, second = (EarlyStopping("f1", "max", 2).update(0, {"f1": 0.5}, p) for p in trees)
    assert first == second
    assert hash(first) == hash(second)
    assert first != second.update(1, {"f1": 0.6}, trees[1])


def test_an_unknown_metric_is_answered_with_those_there_are():
    stopping = EarlyStopping("f1", mode="max", patience=1)
    with pytest.raises(ValueError, match=r"metrics must have 'f1', .* got accuracy, loss$"):
        stopping.update(1, {"loss": 1.0, "accuracy": 0.5}, None)


@pytest.mark.parametrize(
    ("mode", "patience", "message"),
    [
        ("maximum", 1, 'mode must be "max" or "min", got '),
        ("max", 0, "patience must be a positive integer, got 0"),
        ("max", 1.5, "patience must be a positive integer, got 1.5"),
    ],
)
def test_early_stopping_checks_what_it_is_given(mode, patience, message):
    with pytest.raises(ValueError, match=message):
        EarlyStopping("loss", mode=mode, patience=patience)


def test_the_average_of_parameters_is_that_of_a_numpy_loop():
    optimizer = optax.chain(optax.sgd(0.1), average_parameters(0.6))
    state = init_train_state(jax.random.key(0), jnp.array([1.0, -2.0]), optimizer)
    step = make_train_step(lambda p, batch, key: ((p**2).sum(), {}), optimizer)
    params = average = np.array([1.0, -2.0])
    for t in range(1, 13):
        state, _ = step(state, {})
        params = params - 0.1 * 2 * params
        decay = min(0.6, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * params
        np.testing.assert_allclose(averaged(state.opt_state), average, rtol=1e-5)
    np.testing.assert_allclose(state.params, params, rtol=1e-5)


def test_an_average_begins_as_a_copy_of_the_parameters():
    """A loop may give both away: the same buffer twice is refused."""
    optimizer = optax.chain(optax.sgd(0.5), average_parameters(0.0))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = optimizer.update(2 * params, state, params)
        return optax.apply_updates(params, updates), state

    params = jnp.array([1.0, -2.0])
    params, state = step(params, optimizer.init(params))
    np.testing.assert_array_equal(params, [0.0, 0.0])
    np.testing.assert_array_equal(averaged(state), [0.0, 0.0])


@pytest.mark.parametrize("start", [None, 3, 5])
@pytest.mark.parametrize("compiled", [False, True])
def test_before_its_start_a_mean_is_the_last_parameters_to_the_last_digit(start, compiled):
    """Beside 1000, 1e-5 is lost: 1000 + (1e-5 - 1000) is 0 in float32."""
    link = averaged_from(start)
    update = jax.jit(link.update) if compiled else link.update
    state = link.init(jnp.array([1000.0, np.inf]))
    for number in (1e-5, -3e4, 1e-7):  # the third is the first of those from 3 on
        params = jnp.array([number, 1.0])
        _, state = update(jnp.zeros(2), state, params)
        np.testing.assert_array_equal(averaged(state), params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_slow_average_of_sixteen_bits_is_that_of_thirty_two(dtype):
    """2.0 for 10,000 steps, then 1.0 for 3,001: 1 + .999^3001 in float64."""
    link = average_parameters(0.999)

    @jax.jit
    def run(first, second):
        def move(target):
            def step(held, _):
                params, state = held
                updates, state = link.update(target - params, state, params)
                return (params + updates, state), None

            return step

        held = jax.lax.scan(move(first), (first, link.init(first)), None, 10_000)[0]
        return averaged(jax.lax.scan(move(second), held, None, 3_001)[0][1])

    average = run(jnp.array(2.0, dtype), jnp.array(1.0, dtype))
    assert average.dtype == jnp.float32
    assert average.item() == pytest.approx(1 + 0.999**3001, rel=1e-4)


def test_the_average_is_found_once_or_not_at_all():
    params = jnp.ones(2)
    with pytest.raises(ValueError, match="got 0"):
        averaged(optax.adam(0.1).init(params))
    twice = optax.chain(average_parameters(0.5), average_parameters(0.9))
    with pytest.raises(ValueError, match="got 2"):
        averaged(twice.init(params))
    with pytest.raises(ValueError, match="decay"):
        average_parameters(1.0)


@pytest.mark.parametrize("inside", [True, False])
def test_an_average_of_some_parameters_alone_is_refused(inside):
    """Where it stands behind the partition, it has what is frozen as it is."""
    link = average_parameters(0.5)
    learned = optax.chain(optax.sgd(1.0), link) if inside else optax.sgd(1.0)
    rules = {"learned": learned, "frozen": optax.set_to_zero()}
    optimizer = optax.partition(rules, {"w": "learned", "b": "frozen"})
    optimizer = optimizer if inside else optax.chain(optimizer, link)
    params = {"w": jnp.array(1.0), "b": jnp.array(3.0)}
    grads = jax.tree.map(lambda a: jnp.full_like(a, 2.0), params)
    _, state = optimizer.update(grads, optimizer.init(params), params)
    if inside:
        with pytest.raises(ValueError, match=r"of all parameters, got none of params\['b'\]: put"):
            averaged(state)
    else:
        average = averaged(state)
        np.testing.assert_allclose(average["w"], 2 / 11 * 1 + 9 / 11 * (1 - 2), rtol=1e-6)
        assert average["b"].item() == 3.0


@pytest.mark.parametrize("link", [average_parameters(0.5), averaged_from(None)])
def test_an_average_before_another_link_is_refused(link):
    params = jnp.ones(2)
    inner = optax.chain(optax.sgd(0.1), link)
    for wrong in (
        optax.chain(link, optax.sgd(0.1)),
        optax.chain(inner, optax.scale(0.5)),
        optax.chain(optax.clip(1.0), optax.apply_if_finite(optax.chain(link, optax.clip(1.0)), 3)),
    ):
        with pytest.raises(ValueError, match=r"links behind it: put it last in optax\.chain"):
            init_train_state(jax.random.key(0), params, wrong)
        with pytest.raises(ValueError, match=r"links behind it: put it last in optax\.chain"):
            averaged(wrong.init(params))
    named = optax.named_chain(("average", link), ("Adam", optax.adam(0.1)))
    with pytest.raises(ValueError, match=r"links behind it: put it last in optax\.chain"):
        init_train_state(jax.random.key(0), params, named)
    for right in (
        link,
        inner,
        optax.chain(optax.clip(1.0), optax.apply_if_finite(inner, 3)),
        optax.named_chain(("sgd", optax.sgd(0.1)), ("average", link)),
        optax.MultiSteps(inner, 2).gradient_transformation(),
        optax.inject_hyperparams(lambda rate: optax.chain(optax.sgd(rate), link))(0.1),
    ):
        state = init_train_state(jax.random.key(0), params, right)
        np.testing.assert_array_equal(averaged(state.opt_state), params)


def test_an_average_inside_of_what_changes_the_update_again_is_refused():
    inner = optax.chain(optax.sgd(0.1), average_parameters(0.5))
    for wrong, message in (
        (optax.contrib.mechanize(inner), "got one inside of MechanicState: put it last"),
        (optax.contrib.schedule_free(inner, 0.1), "got one inside of ScheduleFreeState"),
        (optax.flatten(inner), r"must be of a tree like params, .*: put .* outside of optax\.fl"),
    ):
        with pytest.raises(ValueError, match=message):
            init_train_state(jax.random.key(0), {"w": jnp.ones(2)}, wrong)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_average_is_of_parameters_as_they_are_kept(dtype):
    """Compiled too, where JAX would leave the rounding out; float16 keeps numbers below 6e-5."""
    optimizer = optax.chain(optax.sgd(0.03), averaged_from(None))
    params = jnp.concatenate([jnp.linspace(-2, 2, 500), jnp.linspace(1e-6, 5e-5, 50)])
    state = init_train_state(jax.random.key(0), params.astype(dtype), optimizer)
    slopes = jnp.where(jnp.arange(550) < 500, jnp.sin(jnp.arange(550.0)), 0).astype(dtype)
    step = make_train_step(lambda p, batch, key: ((p * batch).sum(), {}), optimizer)
    for _ in range(3):
        state, metrics = step(state, slopes)
        assert metrics["skipped"].total == 0
        np.testing.assert_array_equal(averaged(state.opt_state), state.params.astype("float32"))
    assert jnp.mean(state.params != params.astype(dtype)) > 0.5


def test_the_updates_of_a_mean_are_counted_without_skipped_steps():
    loss_fn = lambda p, batch, key: ((p * batch).sum(), {})  # noqa: E731
    optimizer = optax.chain(optax.sgd(1.0), averaged_from(None))
    state = init_train_state(jax.random.key(0), jnp.array(9.0), optimizer)
    for slope in (1.0, np.nan, 1.0):  # 8, skipped, 7
        state, _ = make_train_step(loss_fn, optimizer)(state, jnp.array(slope))
    optimizer = optax.chain(optax.sgd(1.0), averaged_from(int(state.step - state.skipped)))
    for _ in range(2):  # 6, 5
        state, _ = make_train_step(loss_fn, optimizer)(state, jnp.array(1.0))
    assert averaged(state.opt_state) == (7 + 6 + 5) / 3


def test_the_mean_from_a_step_on_is_that_of_numpy_and_may_begin_in_the_middle():
    """The step that starts it is only decided after the third: the state goes on."""
    history, optimizer = [], optax.chain(optax.sgd(0.1), averaged_from(None))
    state = init_train_state(jax.random.key(0), jnp.array([1.0, -2.0]), optimizer)
    for number in range(1, 10):
        if number == 4:
            optimizer = optax.chain(optax.sgd(0.1), averaged_from(4))
        step = make_train_step(lambda p, batch, key: ((p**2).sum(), {}), optimizer)
        state, _ = step(state, {})
        history.append(np.asarray(state.params, np.float64))
        expected = history[-1] if number < 4 else np.mean(history[3:], axis=0)
        np.testing.assert_allclose(averaged(state.opt_state), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="start must be a positive integer, got 0"):
        averaged_from(0)


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([], 1, False),
        ([3.0], 1, False),
        ([3.0, 2.0], 1, False),
        ([3.0, 4.0], 1, True),
        ([3.0, 4.0, 3.5], 3, False),  # nothing is long enough ago
        ([3.0, 2.0, 9.0, 2.5], 2, True),  # above 2.0, two checks before
        ([3.0, 2.0, 9.0, 2.0], 2, False),  # no better, but no worse
        ([3.0, 2.0, 2.5], 2, False),  # 2.0 is not long enough ago
        ([np.nan, 3.0, 4.0, 5.0], 2, True),  # NaN is no least loss
        ([np.nan, 3.0, 2.0, 2.5], 2, False),
        ([3.0, 2.0, 1.0, np.nan], 2, True),
        (np.array([3.0, 4.0, 4.5]), 2, True),
    ],
)
def test_a_loss_that_wavers_while_it_falls_goes_on(losses, patience, expected):
    assert no_longer_improves(losses, patience) is expected


@pytest.mark.parametrize("decay", ["0.9", None, True, 1.0, -0.1, np.nan])
def test_a_decay_that_is_no_rate_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay must be a rate in \[0, 1\), got"):
        average_parameters(decay)


def test_an_average_of_no_parameters_is_refused():
    link = average_parameters(np.float32(0.5))
    with pytest.raises(ValueError, match="params must be given to the update of an average"):
        link.update(jnp.ones(2), link.init(jnp.ones(2)))


SGD = optax.sgd(0.1)
NO_STEP = {
    "state must be a TrainState, as init_train_state gives, got a tuple of 2": lambda: (
        make_train_step(squared_error, SGD)((1, 2), BATCHES[0])
    ),
    "state must be a TrainState, as init_train_state gives, got None": lambda: make_train_step(
        squared_error, SGD
    )(None, BATCHES[0]),
    "loss_fn must be a function of params, batch and key, got int": lambda: make_eval_step(3),
    r"loss_fn must be a function of params, batch and key, got \(p, b\)": lambda: make_train_step(
        lambda p, b: (p.sum(), {}), SGD
    ),
    r"function of ys, targets and mask, got \(params, batch, key, more\)": lambda: (
        make_truncated_step(print, lambda params, batch, key, more: None, SGD, k1=2)
    ),
    "optimizer must be one of Optax, such as .*, got float": lambda: make_train_step(
        squared_error, 0.1
    ),
    "optimizer must be one of Optax, such as .*, got None": lambda: init_train_state(
        jax.random.key(0), {"w": jnp.ones(3)}, None
    ),
    r"params\['w'\] must be an array, got Tensor": lambda: init_train_state(
        jax.random.key(0), {"w": pytest.importorskip("torch").ones(2)}, optax.sgd(0.1)
    ),
    r"params\['w'\] must be an array, got str": lambda: init_train_state(
        jax.random.key(0), {"w": "x"}, SGD
    ),
    "metrics of loss_fn must have strings for names, got 3": lambda: make_eval_step(
        lambda params, batch, key: (jnp.zeros(()), {3: (1.0, 1)})
    )({}, BATCHES[0]),
    "the metric 'a' of loss_fn must be a pair": lambda: make_eval_step(
        lambda params, batch, key: (jnp.zeros(()), {"a": ("x", "y")})
    )({}, BATCHES[0]),
    r"metrics\['loss'\] must be a number, got None": lambda: EarlyStopping(
        "loss", mode="min", patience=1
    ).update(0, {"loss": None}, {}),
    r"metrics\['loss'\] must be a number, got Mean\(total, count\): compute\(metrics\) gives": (
        lambda: EarlyStopping("loss", "min", 1).update(0, {"loss": Mean.of(jnp.ones(3))}, {})
    ),
}


@pytest.mark.parametrize("message", NO_STEP)
def test_what_is_no_part_of_a_step_is_named(message):
    with pytest.raises(ValueError, match=message):
        NO_STEP[message]()
