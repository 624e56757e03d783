"""Micro-batches one by one are the whole batch at once, whatever their sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rnnjax.metrics import Mean, accuracy, cross_entropy, recall_by_class
from rnnjax.training import init_train_state, make_accumulating_step, make_train_step

RNG = np.random.default_rng(0)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))


def loss_fn(params, batch, key):
    logits = jnp.tanh(batch["x"] @ params["w"]) @ params["v"]
    loss = cross_entropy(logits, batch["labels"], batch["weights"])
    hits = accuracy(logits, batch["labels"], batch["weights"])
    return loss.value, {"loss": loss, "accuracy": hits}


def start(dtype=jnp.float32):
    params = {"w": RNG_W.astype(dtype), "v": RNG_V.astype(dtype)}
    return init_train_state(jax.random.key(0), params, OPTIMIZER)


RNG_W = jnp.asarray(RNG.normal(size=(3, 5)), jnp.float32)
RNG_V = jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32)


def batch(weights):
    rows = len(weights)
    return {
        "x": jnp.asarray(RNG.normal(size=(rows, 3)), jnp.float32),
        "labels": jnp.asarray(RNG.integers(0, 4, rows)),
        "weights": jnp.asarray(weights, jnp.float32),
    }


def cut(whole, count):
    return jax.tree.map(lambda a: a.reshape(count, -1, *a.shape[1:]), whole)


@pytest.mark.parametrize(
    "weights",
    [[1] * 16, [1] * 8 + [1] + [0] * 7, [1, 0] * 8, [0] * 8 + [1] * 8, [0.5] * 8 + [3] * 8],
    ids=["full", "8 and 1 rows", "every other", "the first one empty", "weighted"],
)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_an_update_of_micro_batches_is_that_of_all_rows_at_once(weights, count):
    whole = batch(weights)
    expected, figures = make_train_step(loss_fn, OPTIMIZER)(start(), whole)
    state, metrics = make_accumulating_step(loss_fn, OPTIMIZER)(start(), cut(whole, count))
    assert state.skipped == 0
    for name in ("w", "v"):
        # Adam's first step is a sign where the gradient is far from its epsilon.
        np.testing.assert_allclose(state.params[name], expected.params[name], rtol=1e-5, atol=1e-6)
    for moment in ("mu", "nu"):
        got, right = (getattr(s.opt_state[1][0], moment) for s in (state, expected))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8), got, right
        )
    for name in ("loss", "accuracy", "grad_norm", "skipped"):
        np.testing.assert_allclose(metrics[name], figures[name], rtol=1e-5)


def test_sums_of_sixteen_bits_are_taken_in_thirty_two():
    """257 micro-batches of gradient 1: a sum in bfloat16 would stay at 256."""

    def slope_one(params, batch, key):
        loss = Mean.of(params.astype(jnp.float32) * batch)
        return loss.value, {"loss": loss}

    state = init_train_state(jax.random.key(0), jnp.zeros((), jnp.bfloat16), optax.sgd(1.0))
    step = make_accumulating_step(slope_one, optax.sgd(1.0))
    state, metrics = step(state, jnp.ones((300, 1)))
    assert state.params == -1
    assert metrics["loss"].count == 300
    assert metrics["grad_norm"][0] == 1


def test_a_micro_batch_whose_mean_is_that_of_nothing_counts_nothing():
    """0 / 0 is NaN, in the loss, in its gradient and in what else is measured of it."""

    def plain_mean(params, batch, key):
        total, count = jnp.sum(params * batch["x"] * batch["real"]), jnp.sum(batch["real"])
        return total / count, {"loss": (total, count), "mean": (total / count, jnp.ones(()))}

    batches = {"x": jnp.array([[1.0, 2.0], [5.0, 5.0], [6.0, 7.0]])}
    batches["real"] = jnp.array([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    state = init_train_state(jax.random.key(0), jnp.array(2.0), optax.sgd(1.0))
    state, metrics = make_accumulating_step(plain_mean, optax.sgd(1.0))(state, batches)
    assert state.params == 2 - (1 + 2 + 6) / 3
    assert metrics["loss"] == (18, 3)
    assert metrics["mean"] == (3 + 12, 2)


def test_a_metric_counts_its_own_rows_in_a_micro_batch_without_rows_for_the_loss():
    """Such as the hits of one task where no row has a label of the other."""

    def two_tasks(params, batch, key):
        loss = Mean.of(params * batch["x"], batch["taught"])
        return loss.value, {"loss": loss, "other": Mean.of(batch["x"], batch["other"])}

    batches = {
        "x": jnp.array([[1.0, 2.0], [4.0, 8.0]]),
        "taught": jnp.array([[1, 1], [0, 0]]),
        "other": jnp.array([[0, 1], [1, 0]]),
    }
    state = init_train_state(jax.random.key(0), jnp.array(2.0), optax.sgd(1.0))
    state, metrics = make_accumulating_step(two_tasks, optax.sgd(1.0))(state, batches)
    assert state.params == 2 - (1 + 2) / 2
    assert metrics["loss"] == (6, 2)
    assert metrics["other"] == (2 + 4, 2)


def test_the_optimizer_gets_the_loss_of_all_and_gradients_of_the_dtype_of_parameters():
    def init(params):
        return jnp.zeros(())

    def update(grads, state, params=None, *, value, **others):
        assert grads.dtype == params.dtype
        return grads, value

    optimizer = optax.GradientTransformationExtraArgs(init, update)
    state = init_train_state(jax.random.key(0), jnp.array(2.0, jnp.bfloat16), optimizer)

    def mean(params, rows, key):
        loss = Mean.of(params.astype(jnp.float32) * rows, rows > 0)
        return loss.value, {"loss": loss}

    rows = jnp.array([[1.0, 2.0], [6.0, 0.0]])
    assert make_accumulating_step(mean, optimizer)(state, rows)[0].opt_state == 2 * (1 + 2 + 6) / 3


def test_every_micro_batch_draws_noise_of_its_own():
    def noisy(params, batch, key):
        noise = jax.random.normal(key)
        return noise * params, {"loss": (noise, jnp.array(1.0)), "noise": (noise, jnp.array(1.0))}

    state = init_train_state(jax.random.key(3), jnp.zeros(()), optax.sgd(1.0))
    state, _ = make_accumulating_step(noisy, optax.sgd(1.0))(state, jnp.zeros((4, 1)))
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 0), k) for k in range(4)]
    expected = -np.mean([jax.random.normal(key) for key in keys])
    np.testing.assert_allclose(state.params, expected, rtol=1e-5)


def test_a_bad_micro_batch_leaves_the_whole_update_out():
    whole = batch([1] * 8)
    whole["x"] = whole["x"].at[5].set(jnp.inf * 0)
    state, metrics = make_accumulating_step(loss_fn, OPTIMIZER)(start(), cut(whole, 4))
    assert state.skipped == 1
    assert metrics["loss"].count == 0
    np.testing.assert_array_equal(state.params["w"], RNG_W)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8, jnp.bool_])
def test_metrics_of_few_bits_are_added_up_in_32(dtype):
    """33 + 33 + ... in bfloat16 is 256, then 288; 100 + 100 in 8 bits is -56."""
    each = {jnp.bfloat16: 33, jnp.int8: 100, jnp.bool_: 1}[dtype]

    def counting(params, batch, key):
        figure = jnp.asarray(each, dtype)
        return params, {"loss": (figure, figure)}

    state = init_train_state(jax.random.key(0), jnp.ones(()), optax.sgd(0.5))
    state, metrics = make_accumulating_step(counting, optax.sgd(0.5))(state, jnp.zeros((40, 1)))
    assert [float(figure) for figure in metrics["loss"]] == [40 * each] * 2
    assert state.params == 0.5  # each micro-batch has the gradient 1


def test_one_program_holds_the_activations_of_one_micro_batch():
    def wide(params, batch, key):
        loss = Mean.of(jnp.square(jnp.tanh(batch @ params) @ params.T - batch))
        return loss.value, {"loss": loss}

    state = init_train_state(jax.random.key(0), jnp.ones((8, 512)), optax.sgd(0.1))
    rows = jnp.ones((2048, 8))

    def memory(step, rows):
        compiled = jax.jit(step.function).lower(state, rows).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = memory(make_train_step(wide, optax.sgd(0.1)), rows)
    parts = memory(make_accumulating_step(wide, optax.sgd(0.1)), rows.reshape(16, -1, 8))
    assert parts < whole / 4


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ({"a": jnp.ones((2, 3)), "b": jnp.ones(3)}, r"batches\['b'\] must have .* got 3 beside 2"),
        ({"a": jnp.ones(())}, r"batches\['a'\] must have .* got a scalar"),
        ({"a": jnp.ones((0, 3))}, r"batches\['a'\] must have .* got 0"),
        ({}, r"batches must have leaves"),
        ({"a": jnp.ones((2, 3))}, r"loss_fn must give the metric 'loss', got \['other'\]"),
    ],
)  # fmt: skip
def test_batches_that_are_no_micro_batches_are_refused(batches, message):
    other = lambda params, batch, key: (params.sum(), {"other": (params.sum(), 1)})  # noqa: E731
    state = init_train_state(jax.random.key(0), jnp.ones(3), optax.sgd(0.1))
    with pytest.raises(ValueError, match=message):
        make_accumulating_step(other, optax.sgd(0.1))(state, batches)


def test_a_list_of_micro_batches_is_refused_with_the_way_to_stack_them():
    rows = [batch([1] * 4), batch([1, 1, 0, 0])]
    step = make_accumulating_step(loss_fn, OPTIMIZER, donate_state=False)
    for parts in (rows, [tuple(part.values()) for part in rows]):
        with pytest.raises(
            ValueError, match=r"batches must be one tree .*, got a list of 2: stack"
        ):
            step(start(), parts)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    assert step(start(), stacked)[1]["loss"].count == 6
    # Lists that are themselves a batch: of arrays, and of unlike trees.
    pair = lambda params, batch, key: loss_fn(params, {**batch[0], "weights": batch[1]}, key)  # noqa: E731
    weights = stacked.pop("weights")
    assert make_accumulating_step(pair, OPTIMIZER)(start(), [stacked, weights])[0].skipped == 0


def test_a_weight_of_several_counts_is_refused_by_its_name():
    def by_class(params, batch, key):
        loss, metrics = loss_fn(params, batch, key)
        recall = recall_by_class(jnp.zeros((4, 3)), batch["labels"] % 3)
        return loss, {**metrics, "recall": recall}

    step = make_accumulating_step(by_class, OPTIMIZER, metric="recall")
    message = r"metric must name one whose count is a scalar, got 'recall' .* of shape \(3,\)"
    with pytest.raises(ValueError, match=message):
        step(start(), cut(batch([1] * 8), 2))
