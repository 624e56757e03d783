"""Metrics against means taken by hand and in NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnjax.metrics import Mean, accuracy, compute, cross_entropy, evaluate, merge

pytestmark = pytest.mark.usefixtures("quick_compile")

LOGITS = np.array([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3], [1.0, 4.0, -2.0], [0.0, 0.0, 1.0]])
LABELS = np.array([0, 1, 1, 2])


def entropies(logits, labels):
    """-log softmax(logits)[label], row by row in float64."""
    rows = zip(np.asarray(logits, np.float64), labels, strict=True)
    return np.array([np.log(np.exp(row).sum()) - row[label] for row, label in rows])


def device(array, dtype=jnp.float32):
    return jnp.asarray(array, dtype)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_however_the_rows_are_batched_the_mean_is_that_of_all_rows(sizes, seed):
    values = np.random.default_rng(seed).normal(size=sum(sizes)).astype(np.float32)
    parts = np.split(values, np.cumsum(sizes)[:-1])
    total = Mean.of(jnp.asarray(parts[0]))
    for part in parts[1:]:
        total = merge(total, Mean.of(jnp.asarray(part)))
    expected = values.astype(np.float64).mean()
    assert compute({"mean": total})["mean"] == pytest.approx(expected, abs=1e-5)
    assert total.count == sum(sizes)


def test_weights_are_weights():
    mean = Mean.of(device([1.0, 2.0, 4.0]), device([0.5, 0.0, 2.0]))
    assert (mean.total.item(), mean.count.item()) == (8.5, 2.5)
    assert mean.value.item() == pytest.approx(3.4)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 3e38])
def test_a_value_of_weight_0_changes_neither_sum_nor_gradient(poison):
    weights = device([1, 0, 2])

    def total(values):
        return Mean.of(values, weights).total

    value, gradient = jax.value_and_grad(total)(device([1.0, poison, 3.0]))
    assert value == 7.0
    np.testing.assert_array_equal(gradient, [1.0, 0.0, 2.0])


def test_a_mask_is_a_weight_and_hits_are_values():
    mean = Mean.of(jnp.array([True, True, False, True]), jnp.array([True, False, True, True]))
    assert (mean.total.item(), mean.count.item()) == (2.0, 3.0)


def test_half_precision_is_summed_in_float32():
    # In bfloat16 the sum would stay at 256: 257 is no bfloat16.
    mean = Mean.of(jnp.ones(1000, jnp.bfloat16))
    assert mean.total.dtype == mean.count.dtype == jnp.float32
    assert mean.total == 1000


def test_sums_are_float64_under_x64():
    with jax.enable_x64(True):
        mean = Mean.of(jnp.full(10, 0.1, jnp.float64))
        assert mean.total.dtype == jnp.float64
        assert abs(mean.total.item() - 1.0) < 1e-15


def test_weights_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"weights: expected shape \(3,\), got \(1,\)"):
        Mean.of(jnp.ones(3), jnp.ones(1))


def test_cross_entropy_is_the_mean_of_the_rows():
    mean = cross_entropy(device(LOGITS), jnp.asarray(LABELS))
    assert mean.count == 4
    assert mean.total.item() == pytest.approx(entropies(LOGITS, LABELS).sum(), rel=1e-6)


def test_cross_entropy_weighs_tokens_of_a_sequence():
    logits, labels = LOGITS.reshape(2, 2, 3), LABELS.reshape(2, 2)
    weights = np.array([[1.0, 0.0], [0.25, 2.0]])
    mean = cross_entropy(device(logits), jnp.asarray(labels), device(weights))
    expected = (entropies(LOGITS, LABELS) * weights.ravel()).sum() / weights.sum()
    assert mean.value.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_row_of_weight_0_is_never_read_and_has_gradient_0(poison):
    weights = device([1, 1, 0, 1])
    labels = jnp.array([0, 1, 99, 2])

    def loss(logits):
        return cross_entropy(logits, labels, weights).value

    clean = jax.grad(loss)(device(LOGITS))
    value, gradient = jax.value_and_grad(loss)(device(LOGITS).at[2].set(poison))
    expected = np.delete(entropies(LOGITS, LABELS), 2).mean()
    assert value.item() == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(gradient, clean)
    np.testing.assert_array_equal(gradient[2], [0, 0, 0])
    assert np.all(gradient[0] != 0)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_makes_the_loss_nan(label):
    assert jnp.isnan(cross_entropy(device(LOGITS), jnp.array([0, 1, label, 2])).total)


def test_cross_entropy_of_bfloat16_logits_is_float32():
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    mean = cross_entropy(logits, jnp.asarray(LABELS))
    expected = entropies(np.asarray(logits, np.float64), LABELS).sum()
    assert mean.total.item() == pytest.approx(expected, rel=1e-6)


def test_accuracy_counts_hits_of_the_rows_that_count():
    logits, labels = device(LOGITS), jnp.asarray(LABELS)  # the second row is the only miss
    assert accuracy(logits, labels).value == 0.75
    assert accuracy(logits, labels, device([1, 1, 0, 0])).value == 0.5
    assert accuracy(logits, labels, device([0, 1, 0, 0])).value == 0.0


@pytest.mark.parametrize("metric", [accuracy, cross_entropy])
def test_labels_of_another_shape_are_refused_rather_than_broadcast(metric):
    with pytest.raises(ValueError, match=r"labels: expected shape \(4,\).*got \(4, 1\)"):
        metric(device(LOGITS), jnp.asarray(LABELS)[:, None])
    with pytest.raises(ValueError, match="weights: expected shape"):
        metric(device(LOGITS), jnp.asarray(LABELS), jnp.ones(3))


def test_metrics_obey_strict_dtype_promotion():
    with jax.numpy_dtype_promotion("strict"):
        labels = jnp.asarray(LABELS, jnp.uint8)
        mask = jnp.array([True, True, False, True])
        assert accuracy(device(LOGITS), labels, mask).count == 3
        half = device(LOGITS, jnp.bfloat16)
        assert jnp.isfinite(cross_entropy(device(LOGITS), labels, mask).value)
        assert jnp.isfinite(cross_entropy(half, labels, mask).value)


def test_compute_names_the_metric_without_rows():
    metrics = {"loss": Mean.of(jnp.ones(2)), "recall": Mean.of(jnp.ones(2), jnp.zeros(2))}
    with pytest.raises(ValueError, match="'recall' has count 0"):
        compute(metrics)


def test_compute_takes_any_pair_and_gives_plain_floats():
    figures = compute({"grad_norm": (jnp.array(6.0), jnp.array(4.0)), "loss": (1, 2)})
    assert figures == {"grad_norm": 1.5, "loss": 0.5}
    assert {type(value) for value in figures.values()} == {float}


def test_compute_shows_a_diverged_loss():
    assert np.isnan(compute({"loss": Mean.of(device([1.0, np.nan]))})["loss"])


def test_evaluate_weighs_a_short_last_batch_by_its_rows():
    def step(params, batch):
        return {"size": Mean.of(params * batch), "hits": Mean.of(batch > 2)}

    batches = (device(rows) for rows in ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [10.0]))
    # 31 / 7, where the mean of the three means would be 17 / 3.
    assert evaluate(step, 2.0, batches) == pytest.approx({"size": 62 / 7, "hits": 5 / 7})


def test_evaluate_reads_nothing_from_the_device_before_the_last_batch():
    seen = []

    def batches():
        for number in range(4):
            seen.append(number)
            yield number

    def step(params, batch):
        return {"loss": Mean.of(params * batch)}

    # Under jit whatever needs a number fails, so that the first reading shows itself.
    with pytest.raises(jax.errors.ConcretizationTypeError):
        jax.jit(lambda params: evaluate(step, params, batches()))(jnp.ones(2))
    assert seen == [0, 1, 2, 3]


def test_evaluate_refuses_no_batches():
    with pytest.raises(ValueError, match="no batches"):
        evaluate(lambda params, batch: {}, None, [])
