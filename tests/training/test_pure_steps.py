"""A step is a pure function: called, compiled, looped over, mapped and differentiated alike."""

import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from processes import run

import rnnjax
from rnnjax.metrics import Mean
from rnnjax.training import (
    CompiledStep,
    Sequences,
    apply_gradients,
    init_train_state,
    make_eval_step,
    make_train_step,
    make_truncated_step,
)

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
RNG = np.random.default_rng(0)
BATCHES = jax.tree.map(jnp.float32, {"x": RNG.normal(size=(5, 4, 3)), "y": RNG.normal(size=(5, 4))})


def loss_fn(params, batch, key):
    x = batch["x"]
    if key is not None:  # noise in training, so that a wrong key would show
        x = x + 0.1 * jax.random.normal(key, x.shape)
    loss = Mean.of(jnp.square(x @ params["w"] - batch["y"]))
    return loss.value, {"loss": loss}


def start(seed=0, dtype=jnp.float32):
    params = {"w": jax.random.normal(jax.random.key(seed), (3,), dtype)}
    return init_train_state(jax.random.key(seed), params, OPTIMIZER)


def take(number):
    return jax.tree.map(lambda a: a[number], BATCHES)


def called_one_by_one(state, count=5):
    step, all_metrics = make_train_step(loss_fn, OPTIMIZER), []
    for number in range(count):
        state, metrics = step(state, take(number))
        all_metrics.append(metrics)
    return state, jax.tree.map(lambda *a: jnp.stack(a), *all_metrics)


def assert_close(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_scan_over_a_step_is_the_steps_one_by_one():
    step = make_train_step(loss_fn, OPTIMIZER)
    assert_close(jax.lax.scan(step, start(), BATCHES), called_one_by_one(start()))
    assert_close(
        jax.jit(lambda s: jax.lax.scan(step, s, BATCHES))(start()), called_one_by_one(start())
    )


def test_a_step_within_jit_is_the_step_and_reports_nothing():
    step = make_train_step(loss_fn, OPTIMIZER)
    state, metrics = jax.jit(step)(start(), take(0))
    expected, figures = step(start(), take(0))
    assert_close((state, metrics), (expected, figures))
    assert len(step.compilations) == 1  # that of the direct call


def test_vmap_of_a_step_is_each_state_alone_and_gives_nothing_away():
    step = make_train_step(loss_fn, OPTIMIZER)
    states = jax.tree.map(lambda *a: jnp.stack(a), *[start(seed) for seed in range(3)])
    together, metrics = jax.vmap(step, in_axes=(0, None))(states, take(0))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(states))
    for number in range(3):
        alone = step(start(number), take(0))
        assert_close(jax.tree.map(lambda a, n=number: a[n], (together, metrics)), alone)


def test_the_derivative_of_a_step_is_that_of_the_update():
    """Of SGD with loss (x w - y)²: d w' / d w = 1 - 2 rate x², also where the gradient is 0."""
    rate, optimizer = 0.1, optax.sgd(0.1)

    def quadratic(params, batch, key):
        return jnp.square(batch["x"] * params - batch["y"]), {}

    step = make_train_step(quadratic, optimizer)

    def after(w, x, y):
        state = init_train_state(jax.random.key(0), jnp.array(0.0), optimizer)
        return step(state._replace(params=w), {"x": x, "y": y})[0].params

    for y in (3.0, 1.0):  # at the second one the gradient at w = 0.5 vanishes
        slopes = jax.grad(after, argnums=(0, 2))(jnp.array(0.5), jnp.array(2.0), jnp.array(y))
        np.testing.assert_allclose(slopes, (1 - 2 * rate * 4, 2 * rate * 2), rtol=1e-6)


def test_a_step_whose_loss_closes_over_what_is_differentiated_gives_nothing_away():
    """As hyper-gradients are written: no argument of the step is traced, its loss is."""
    params = jnp.array([1.0, -2.0])
    state = init_train_state(jax.random.key(0), params, optax.sgd(0.1))

    def after_a_step(weight):
        step = make_train_step(lambda p, *_: (weight * jnp.sum(p**2), {}), optax.sgd(0.1))
        return jnp.sum(step(state, None)[0].params)

    # p (1 - 0.2 w), summed, by w.
    expected = -0.2 * np.sum([1.0, -2.0])
    np.testing.assert_allclose(jax.grad(after_a_step)(1.0), expected, rtol=1e-6)
    _, tangent = jax.jvp(after_a_step, (1.0,), (1.0,))
    np.testing.assert_allclose(tangent, expected, rtol=1e-6)
    np.testing.assert_array_equal(state.params, params)


def test_the_derivative_of_a_step_after_which_the_norm_is_zero_is_finite():
    """The derivative of a root at 0 is infinite, and 0 times it NaN."""

    def after(w):
        state = init_train_state(jax.random.key(0), jnp.array(0.0), optax.sgd(0.1))
        new, _ = apply_gradients(state._replace(params=w), optax.sgd(0.1), w * w, 2 * w)
        return jax.lax.scan(lambda s, _: (s, s), new.params, None, 2)[0]

    assert jax.grad(after)(jnp.array(0.0)) == pytest.approx(0.8)


def test_a_step_repeats_where_its_state_is_kept():
    step = make_train_step(loss_fn, OPTIMIZER, donate_state=False)
    state = start()
    assert_close(step(state, take(0)), step(state, take(0)))
    assert not state.params["w"].is_deleted()


def test_parameters_of_another_dtype_are_one_more_program():
    step, evaluate = make_train_step(loss_fn, OPTIMIZER), make_eval_step(loss_fn)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float32):
        state = start(dtype=dtype)
        assert evaluate(state.params, take(0))["loss"].value.dtype == jnp.float32
        step(state, take(0))
    assert len(step.compilations) == len(evaluate.compilations) == 2


def test_another_precision_of_products_is_one_more_program():
    """What the call is surrounded by counts as much as its arguments."""
    step = make_eval_step(loss_fn)
    step(start().params, take(0))
    with jax.default_matmul_precision("float32"):
        step(start().params, take(0))
    assert len(step.compilations) == 2


def test_a_step_says_why_it_cannot_be_pickled():
    with pytest.raises(TypeError, match=r"train step.* cannot be pickled: make it anew"):
        pickle.dumps(make_train_step(loss_fn, OPTIMIZER))


def test_without_jit_the_step_is_taken_and_nothing_reported():
    step = make_train_step(loss_fn, OPTIMIZER)
    with jax.disable_jit():
        got = step(start(), take(0))
    assert step.compilations == []
    assert_close(got, step(start(), take(0)))


@pytest.mark.full
def test_a_truncated_step_within_jit_vmap_and_scan_is_the_step():
    layer, optimizer = rnnjax.recurrent(rnnjax.gru(2)), optax.adam(0.1)

    def square(ys, targets, mask):
        loss = Mean.of(jnp.square(ys - targets).sum(axis=-1), mask)
        return loss.value, {"loss": loss}

    def make():
        return make_truncated_step(layer.apply, square, optimizer, k1=2, k2=3)

    params = layer.init(jax.random.key(0), 3)
    state = init_train_state(jax.random.key(1), params, optimizer)
    xs = jax.random.normal(jax.random.key(2), (2, 4, 6, 3))
    batch = Sequences(xs[0], jnp.ones((4, 6, 2)))
    step = make()
    assert_close(jax.jit(step)(state, batch), make()(jax.tree.map(jnp.copy, state), batch))
    assert step.compilations == []

    both = Sequences(xs, jnp.ones((2, 4, 6, 2)))
    mapped = jax.vmap(step, in_axes=(None, 0))(state, both)
    second = make()(jax.tree.map(jnp.copy, state), jax.tree.map(lambda a: a[1], both))
    assert_close(jax.tree.map(lambda a: a[1], mapped), second)

    def body(held, xs):
        state, carry = held
        state, carry, metrics = step(state, Sequences(xs, jnp.ones((4, 6, 2))), carry)
        return (state, carry), metrics

    carry = layer.apply(params, xs[0][:, :0])[0]
    (looped, _), _ = jax.lax.scan(body, (state, carry), xs)
    direct, carry = jax.tree.map(jnp.copy, (state, carry))
    for part in xs:
        direct, carry, _ = step(direct, Sequences(part, jnp.ones((4, 6, 2))), carry)
    assert_close(looped, direct)


PLACED_OTHERWISE = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from rnnjax.training import init_train_state, make_eval_step, make_train_step

def loss_fn(params, batch, key):
    error = batch @ params
    return jnp.mean(error ** 2), {"loss": (jnp.sum(error ** 2), jnp.array(8.0))}

assert jax.device_count() == 4
batch = np.arange(24.0, dtype=np.float32).reshape(8, 3)
step, evaluate = make_train_step(loss_fn, optax.sgd(1e-3)), make_eval_step(loss_fn)
mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))
places = [None, jax.devices()[0], NamedSharding(mesh, P("batch")), jax.devices()[3], None]
results = []
for place in places:
    state = init_train_state(jax.random.key(0), jnp.ones(3), optax.sgd(1e-3))
    placed = batch if place is None else jax.device_put(batch, place)
    figures = evaluate(jnp.ones(3), placed)
    state, metrics = step(state, placed)
    results.append(jax.device_get((state.params, metrics, figures)))
for result in results[1:]:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), result, results[0])
print(len(step.compilations), len(evaluate.compilations))
"""


def test_a_batch_placed_otherwise_is_one_more_program():
    """On no device by name, on the first, spread over four, on the last; then the first program."""
    assert run("-c", PLACED_OTHERWISE, devices=4).split() == ["4", "4"]


class Foreign:
    """An array of another library."""

    shape, dtype = (2,), "float32"


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": {"text": "abc"}}, r"batch\['x'\]\['text'\] must be an array of numbers, got 'abc'"),
        ({"x": [[1, 2], [3, 4]]}, r"batch\['x'\] must be an array, got a list: jnp.asarray"),
        ({"x": np.array(["a", "b"])}, r"batch\['x'\] must .* got an array of dtype <U1"),
        ((jnp.ones(2), object()), r"batch\[1\] must be an array of numbers, got object"),
        ("abc", r"batch must be an array of numbers, got 'abc'"),
        (
            Foreign(),
            r"batch must be an array of numbers, got \S+\.Foreign: numpy.asarray makes one",
        ),
        (
            {"x": np.array([3, 2**32 + 5])},
            r"batch\['x'\] must fit int32 .* got 4294967301",
        ),
    ],
)
def test_what_is_no_array_in_a_batch_is_named_by_its_path(batch, message):
    step = make_train_step(lambda params, batch, key: (params["w"].sum(), {}), OPTIMIZER)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"^{message}"):
            step(start(), batch)
    assert step.compilations == []


def test_bytes_of_another_order_are_the_numbers_they_are_to_a_compiled_step_too():
    step = CompiledStep("add", lambda state, batch: state + batch, donate_state=False)
    for state, batch in itertools.product((">f4", "<f4"), repeat=2):
        step(np.ones(3, np.float32), np.ones(3, np.float32))
        assert step(np.ones(3, state), np.ones(3, batch)).tolist() == [2.0, 2.0, 2.0]
    assert len(step.compilations) == 1


def test_a_step_inside_another_of_its_name_reports_its_own_compilation():
    inner = CompiledStep("add", lambda state, batch: state + batch, donate_state=False)

    def function(state, batch):
        with jax.ensure_compile_time_eval():
            inner(np.float32(1), np.float32(2))
        return state + batch

    outer = CompiledStep("add", function, donate_state=False)
    jax.jit(outer)(1.0, 2.0)
    assert (len(inner.compilations), outer.compilations) == (1, [])


def test_numbers_and_lists_of_arrays_in_a_batch_are_taken():
    step = CompiledStep(
        "sum", lambda state, batch: state + batch[0][0] * batch[1], donate_state=False
    )
    assert step(1.0, ([jnp.array(2.0)], 3)) == 7
    assert step.compilations[0].shapes == {"0.0": "float32[]", "1": "int32[]"}


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda loss: loss, r"loss_fn must return \(loss, metrics\), .* got float32\[\]"),
        (lambda loss: (loss, loss), r"loss_fn must return .* got \(float32\[\], float32\[\]\)"),
        (lambda loss: (loss[None], {}), r"loss of loss_fn must be a .* got float32\[1\]"),
        (lambda loss: (1, {}), r"loss of loss_fn must be a floating scalar, got int32\[\]"),
        (lambda loss: (loss, {"a": loss}), r"the metric 'a' .* must be a pair .* got float32\[\]"),
        (lambda loss: (loss, {"a": (loss[None], 1)}), r"the metric 'a' .* got \(float32\[1\], int"),
    ],
)  # fmt: skip
def test_a_loss_function_that_gives_something_else_is_refused_when_it_compiles(result, message):
    def wrong(params, batch, key):
        return result(params["w"].sum())

    with pytest.raises(ValueError, match=message):
        make_train_step(wrong, OPTIMIZER)(start(), take(0))
    with pytest.raises(ValueError, match=message):
        make_eval_step(wrong)(start().params, take(0))


def test_a_pair_of_a_loss_function_is_a_mean_of_the_step_like_any_other():
    def with_pairs(params, batch, key):
        loss, _ = loss_fn(params, batch, key)
        size = np.linalg.norm(np.arange(4.0))
        return loss, {"a": (jnp.float16(3), 2), "b": [size, jnp.ones(())], "c": Mean(loss, 1)}

    stepped = make_train_step(with_pairs, OPTIMIZER, donate_state=False)(start(), take(0))[1]
    measured = make_eval_step(with_pairs)(start().params, take(0))
    for metrics in (stepped, measured):
        assert {type(metric) for metric in metrics.values()} == {Mean}
        assert metrics["a"].value == 1.5
        assert metrics["b"].value == pytest.approx(14**0.5, rel=1e-6)


def test_a_batch_of_a_truncated_step_that_is_no_sequences_is_refused():
    layer = rnnjax.recurrent(rnnjax.gru(2))
    state = init_train_state(jax.random.key(0), layer.init(jax.random.key(0), 3), OPTIMIZER)
    step = make_truncated_step(layer.apply, lambda *_: (jnp.zeros(()), {}), OPTIMIZER, k1=1)
    message = r"batch must be Sequences\(xs, targets, mask, resets\), got tuple"
    with pytest.raises(ValueError, match=message):
        step(state, (jnp.ones((2, 4, 3)), jnp.ones((2, 4, 2))))
