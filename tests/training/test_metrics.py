"""Metrics against means taken by hand and in NumPy float64."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnjax.metrics import (
    Mean,
    Sum,
    absolute_error,
    accuracy,
    bits,
    compute,
    cross_entropy,
    evaluate,
    f1_by_class,
    huber_error,
    linear_cross_entropy,
    merge,
    perplexity,
    quantile_error,
    recall_by_class,
    squared_error,
    transducer_loss,
)

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
    assert mean.total.dtype == jnp.float32
    assert mean.total == mean.count == 1000


def test_sums_are_float64_under_x64():
    with jax.enable_x64(True):
        mean = Mean.of(jnp.full(10, 0.1, jnp.float64))
        assert mean.total.dtype == jnp.float64
        assert abs(mean.total.item() - 1.0) < 1e-15


def test_weights_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"weights must have shape \(3,\), got \(1,\)"):
        Mean.of(jnp.ones(3), jnp.ones(1))
    with pytest.raises(ValueError, match=r"\(3, 2\), got \(3,\): with one weight a row, take"):
        Mean.of(jnp.ones((3, 2)), jnp.ones(3))
    with pytest.raises(ValueError, match=r"\(3, 2\), got \(2,\)$"):
        Mean.of(jnp.ones((3, 2)), jnp.ones(2))


def test_cross_entropy_is_the_mean_of_the_rows():
    mean = cross_entropy(device(LOGITS), jnp.asarray(LABELS))
    assert mean.count == 4
    assert mean.total.item() == pytest.approx(entropies(LOGITS, LABELS).sum(), rel=1e-6)


def test_cross_entropy_weighs_tokens_of_a_sequence():
    logits, labels = LOGITS.reshape(2, 2, 3), LABELS.reshape(2, 2)
    weights = np.array([[1.0, 0.0], [0.25, -2.0]])
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


def test_who_has_jax_stop_at_the_first_nan_may_pad_labels_with_none():
    with jax.debug_nans(True):
        labels = jnp.array([0, 1, -1, 99])
        pair = jax.value_and_grad(lambda a: cross_entropy(a, labels, [1, 1, 0, 0]).value)(
            device(LOGITS)
        )
    assert pair[0].item() == pytest.approx(entropies(LOGITS, [0, 1, 1, 2])[:2].mean(), rel=1e-6)
    assert not np.any(pair[1][2:])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("label", [-1, -3, 3, 2**31 - 1, -(2**31)])
def test_a_label_out_of_range_makes_the_loss_nan_and_is_never_another_class(label, compiled):
    """-1 must not be the last class, also where nobody can look at it."""
    logits, labels = device(LOGITS), jnp.array([0, 1, label, 2])

    def measure(labels):
        entropy = cross_entropy(logits, labels).total
        return entropy, accuracy(logits, labels), recall_by_class(logits, labels)

    entropy, hits, recall = (jax.jit(measure) if compiled else measure)(labels)
    assert jnp.isnan(entropy)
    assert hits.total == 2  # rows 0 and 3; row 2 is a miss, though it counts
    assert hits.count == 4
    np.testing.assert_array_equal(recall, [[1, 0, 1], [1, 1, 1]])


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


def test_logits_of_one_sigmoid_unit_are_refused_and_have_a_way_out():
    """The softmax of one number is 1: it would be class 0 in every row, with a loss of 0."""
    z, labels = device([[2.0], [-1.0], [0.5]]), jnp.array([1, 1, 0])
    for metric in (accuracy, cross_entropy, recall_by_class, f1_by_class):
        with pytest.raises(ValueError, match=r"logits must be of 2 classes .*got shape \(3, 1\):"):
            metric(z, labels)
        with pytest.raises(ValueError, match="logits must be of 2 classes or more"):
            metric(z, device(labels)[:, None])  # as the loss of a sigmoid takes them
    z = z[..., 0]
    two = jnp.stack([jnp.zeros_like(z), z], -1)
    p = 1 / (1 + np.exp(-np.asarray(z, np.float64)))
    expected = -np.log(np.where(labels == 1, p, 1 - p))
    np.testing.assert_allclose(cross_entropy(two, labels).total, expected.sum(), rtol=1e-6)
    assert accuracy(two, labels) == (1, 3)


def test_a_row_of_nan_guesses_no_class():
    """The place of the largest would be that of the NaN: all rows would be of the first class."""
    logits, labels = jnp.array([[jnp.nan, 1.0], [0.0, jnp.nan], [3.0, 1.0]]), jnp.array([0, 1, 0])
    assert accuracy(logits, labels).total == 1
    assert accuracy(logits, jnp.array([2, 2, 1])).total == 0  # 2 is no class either
    np.testing.assert_array_equal(recall_by_class(logits, labels).total, [1, 0])
    np.testing.assert_array_equal(f1_by_class(logits, labels).count, [1 + 2, 0 + 1])


def test_complex_numbers_are_refused():
    with pytest.raises(ValueError, match="values must be real, got dtype complex64"):
        Mean.of(jnp.array([1 + 2j]))


def test_integers_that_would_be_cut_to_32_bits_are_refused():
    """JAX would make 0 of 2^40: a mean of sizes in bytes, or an error of times in nanoseconds."""
    wide = np.array([1, 2**40])
    pair = (np.float32(1), np.int64(1))
    for run in (
        lambda: Mean.of(wide),
        lambda: squared_error(np.zeros(2), wide),
        lambda: merge(pair, (pair[0], wide[1])),
    ):
        with pytest.raises(ValueError, match=r"must fit int32 .* got 1099511627776"):
            run()
    with jax.enable_x64(True):
        assert Mean.of(wide).total == 1 + 2**40


@pytest.mark.parametrize("metric", [accuracy, cross_entropy])
def test_labels_of_another_shape_are_refused_rather_than_broadcast(metric):
    with pytest.raises(ValueError, match=r"labels must have shape \(4,\).*got \(4, 1\)"):
        metric(device(LOGITS), jnp.asarray(LABELS)[:, None])
    with pytest.raises(ValueError, match="weights must have shape"):
        metric(device(LOGITS), jnp.asarray(LABELS), jnp.ones(3))


def test_metrics_obey_strict_dtype_promotion():
    with jax.numpy_dtype_promotion("strict"):
        labels = jnp.asarray(LABELS, jnp.uint8)
        mask = jnp.array([True, True, False, True])
        assert accuracy(device(LOGITS), labels, mask).count == 3
        half = device(LOGITS, jnp.bfloat16)
        assert jnp.isfinite(cross_entropy(device(LOGITS), labels, mask).value)
        assert jnp.isfinite(cross_entropy(half, labels, mask).value)
        assert merge(mask[0], mask[1]) == 2


def test_compute_names_the_metric_without_rows():
    metrics = {"loss": Mean.of(jnp.ones(2)), "recall": Mean.of(jnp.ones(2), jnp.zeros(2))}
    with pytest.raises(ValueError, match="'recall' must have a count above 0, got 0"):
        compute(metrics)


def test_means_of_steps_that_were_all_skipped_are_nan_and_other_empty_ones_are_refused():
    empty = Mean(jnp.zeros(()), jnp.zeros(()))
    figures = {"loss": empty, "grad_norm": empty, "skipped": Mean(jnp.ones(()), jnp.ones(()))}
    found = compute(merge(figures, figures))
    assert found.pop("skipped") == 1.0
    assert sorted(found) == ["grad_norm", "loss"]
    assert np.isnan(list(found.values())).all()
    # One of two steps was taken, and had no row; and no step at all.
    for skipped in (Mean(jnp.ones(()), jnp.array(2.0)), empty):
        with pytest.raises(ValueError, match="'grad_norm' must have a count above 0, got 0"):
            compute(figures | {"skipped": skipped})


def test_labels_of_pytorch_are_read_and_its_floats_are_refused():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    assert accuracy(logits, labels).value == 0.75
    with pytest.raises(ValueError, match="labels must be integers, got float32"):
        accuracy(logits, labels.float())


def test_one_hot_labels_are_refused_with_the_way_to_ids():
    logits, one_hot = jnp.zeros((2, 4)), np.eye(4)[[0, 3]]
    for labels in (one_hot, one_hot.astype(int)):
        with pytest.raises(ValueError, match=r", got .*: ids of one-hot labels are labels.argmax"):
            cross_entropy(logits, labels)
    with pytest.raises(ValueError, match=r", got \(2, 3\)$"):
        cross_entropy(logits, np.zeros((2, 3), int))


def test_a_pair_and_a_mean_are_merged_in_either_order():
    pair, mean = {"a": (1.5, 2)}, {"a": Mean(jnp.array(4.5), jnp.array(4))}
    for first, second in ((pair, mean), (mean, pair), (merge(pair, {"a": (0, 0)}), mean)):
        metric = merge(first, second)["a"]
        assert type(metric) is Mean
        assert (float(metric.total), float(metric.count), float(metric.value)) == (6.0, 6.0, 1.0)
    assert [float(total) for total in merge([1.0, 2.0], [3.0, 4.0])] == [4.0, 6.0]


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
    with pytest.raises(jax.errors.JAXTypeError):
        jax.jit(lambda params: evaluate(step, params, batches()))(jnp.ones(2))
    assert seen == [0, 1, 2, 3]


def test_evaluate_refuses_no_batches():
    with pytest.raises(ValueError, match="batches must be one or more, got none"):
        evaluate(lambda params, batch: {}, None, [])
    for one in ({"x": jnp.ones(2)}, Mean.of(jnp.ones(2))):
        with pytest.raises(ValueError, match="batches must be an iterable of batches, such as a"):
            evaluate(lambda params, batch: {"size": Mean.of(batch)}, None, one)


def test_a_count_goes_on_beyond_two_to_the_24():
    """Where the next float32 is two away: (2^24, then 101 batches of one row, then 2^24 more)."""
    total, one = Mean(jnp.array(2.0**24), jnp.array(2.0**24)), Mean(jnp.array(1.0), jnp.array(1.0))
    assert total.count + one.count == 2**24  # what one float makes of it
    for _ in range(101):
        total = merge(total, one)
    assert total.count == total.total == 2**24 + 101
    assert merge(total, total).count == 2**25 + 202
    assert compute({"rows": (total.total, 1)}) == {"rows": 2**24 + 101}
    assert float(merge(total, total).total) == 2**25 + 202
    assert compute({"mean": total}) == {"mean": 1.0}


def test_a_count_is_exact_over_billions_of_rows():
    """Doubled 40 times, one row added in between, against Python's integers."""
    total, expected = Mean.of(jnp.ones(3)), 3
    for _ in range(40):
        total, expected = merge(merge(total, total), Mean.of(jnp.ones(1))), 2 * expected + 1
        assert int(total.count) == int(total.total) == expected
    assert expected > 2**40


@pytest.mark.parametrize("number", [0, 1, -1, 2**24 + 1, 2**31 - 1, -(2**31), 123456789])
def test_integers_of_any_size_are_merged_exactly(number):
    total = merge(jnp.array(number), jnp.array(1))
    assert int(total) == number + 1
    assert merge(jnp.array(number), jnp.array(True)) == number + 1


def test_merged_totals_are_those_of_float64():
    """A hundred thousand small numbers beside a large one, which one float32 would forget."""
    small = jnp.float32(0.1)
    total = merge(jnp.float32(1e7), jnp.float32(0))
    total = jax.lax.fori_loop(0, 100_000, lambda _, held: merge(held, small), total)
    assert float(total) == pytest.approx(1e7 + 100_000 * float(small), abs=1e-3)


def test_merged_sums_are_of_the_wider_dtype_and_never_of_16_bits():
    assert merge(jnp.float16(60_000), jnp.float16(60_000)) == 120_000
    with jax.enable_x64(True):
        narrow, wide = jnp.float32(1.0), jnp.float64(1 / 3)
        assert float(merge(narrow, wide)) == float(merge(wide, narrow)) == 1 + 1 / 3


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_stays_what_it_is(value):
    np.testing.assert_array_equal(merge(merge(value, 1.0), 2.0), value)


def test_a_merged_mean_is_used_as_any_other():
    total = merge(Mean.of(device([1.0, 2.0])), Mean.of(device([6.0])))
    assert isinstance(total.count, Sum)
    assert total.value == 3
    assert total.total / total.count == 3
    assert jnp.sqrt(total.total) == 3
    assert total.total.item() == 9
    assert f"{total.total:.1f}" == "9.0"
    with jax.numpy_dtype_promotion("strict"):
        assert total.value == 3
    assert merge(total, Mean(jnp.array(1.0), jnp.array(1))) == (10, 4)  # on either side
    assert merge(Mean(jnp.array(1.0), jnp.array(1)), total) == (10, 4)


OPERATIONS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


@pytest.mark.parametrize("other", [3, 5.5, np.float32(2), np.float64(5.5), "array", "sum"])
@pytest.mark.parametrize("sign", OPERATIONS)
def test_a_merged_total_is_counted_with_as_a_number_of_numpy(sign, other):
    """On either side, and as the array is that stood in its place before the first merge."""
    total = merge(jnp.array(4.0), jnp.array(1.5))
    other = {"array": jnp.array(2.5), "sum": merge(jnp.array(4.5), 1.0)}.get(other, other)
    operate, exact, value = OPERATIONS[sign], np.float64(5.5), np.float64(other)
    np.testing.assert_allclose(operate(total, other), operate(exact, value), rtol=1e-6)
    np.testing.assert_allclose(operate(other, total), operate(value, exact), rtol=1e-6)


def test_merged_totals_are_added_up_rounded_and_turned_round():
    totals = [merge(jnp.array(float(n)), jnp.array(-2.25)) for n in range(4)]
    exact = np.arange(4) - 2.25
    assert sum(totals) == exact.sum()
    for total, value in zip(totals, exact, strict=True):
        assert (-total, abs(total)) == (-value, abs(value))
        assert (round(total), round(total, 1)) == (np.round(value), np.float32(np.round(value, 1)))
    assert min(totals) == exact.min()
    assert [bool(merge(n, -1)) for n in range(3)] == [True, False, True]


def test_merged_totals_are_compared_with_all_their_digits():
    """Of 2^24 + 1, which is no float32; also in a compiled function, as far as an array can."""
    total = merge(jnp.array(2.0**24), jnp.array(1.0))
    assert total > 2**24 > total - 1e8
    assert not total <= 2**24
    assert total != 2**24
    found = jax.jit(lambda total: (total > 5, total >= 5, total == 5, total / 2))(total)
    assert [float(part) for part in found] == [True, True, False, 2.0**23]


def test_merging_is_one_program_however_often_it_is_done():
    one = {"a": Mean.of(device([1.0])), "b": (jnp.array(1.0), jnp.array(2.0))}
    total = merge(merge(one, one), one)
    with jax.no_tracing():
        for _ in range(3):
            total = merge(total, one)
    assert total["b"] == (6, 12)


def test_the_entropy_of_equal_chances_in_other_units():
    entropy = cross_entropy(jnp.zeros((3, 5, 8)), jnp.zeros((3, 5), int))
    assert perplexity(entropy).item() == pytest.approx(8, rel=1e-6)
    assert bits(entropy).value.item() == pytest.approx(3, rel=1e-6)
    merged = merge(entropy, cross_entropy(jnp.zeros((1, 1, 2)), jnp.zeros((1, 1), int)))
    assert perplexity(merged).item() == pytest.approx(2 ** (46 / 16), rel=1e-6)
    assert bits(merged).count == 16


ERRORS = {
    "squared": (squared_error, {}, lambda e: e**2),
    "absolute": (absolute_error, {}, np.abs),
    "huber": (
        huber_error,
        {"delta": 0.7},
        lambda e: np.where(np.abs(e) <= 0.7, e**2 / 2, 0.7 * (np.abs(e) - 0.35)),
    ),
    "quantile": (
        quantile_error,
        {"quantile": 0.9},
        lambda e: np.where(e < 0, 0.9 * -e, 0.1 * e),  # too low costs nine times as much
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_numbers_are_those_of_numpy_over_the_steps_that_are_real(name):
    metric, options, loss = ERRORS[name]
    rng = np.random.default_rng(0)
    predictions, targets = rng.normal(size=(2, 3, 5, 2))
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)
    expected = loss(predictions - targets)
    mean = metric(device(predictions), device(targets), **options)
    assert mean.count == 30
    assert mean.value.item() == pytest.approx(expected.mean(), rel=1e-5)

    spoiled = device(np.where(mask[..., None], predictions, np.nan))
    unknown = device(np.where(mask[..., None], targets, np.inf))
    mean = metric(spoiled, unknown, jnp.asarray(mask), **options)
    assert mean.count == 16
    assert mean.value.item() == pytest.approx(expected[mask].mean(), rel=1e-5)
    slope = jax.grad(lambda p: metric(p, unknown, jnp.asarray(mask), **options).total)(spoiled)
    clean = jax.grad(lambda p: metric(p, device(targets), **options).total)(device(predictions))
    np.testing.assert_array_equal(slope, np.where(mask[..., None], clean, 0))

    weights = rng.uniform(size=(3, 5, 2))
    mean = metric(device(predictions), device(targets), device(weights), **options)
    assert mean.total.item() == pytest.approx((weights * expected).sum(), rel=1e-5)
    assert mean.count.item() == pytest.approx(weights.sum(), rel=1e-5)


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_numbers_of_sixteen_bits_are_taken_in_thirty_two(name):
    """300 and 1 differ by 299, which is no bfloat16."""
    metric, options, loss = ERRORS[name]
    mean = metric(jnp.array([300.0], jnp.bfloat16), jnp.array([1.0], jnp.bfloat16), **options)
    assert mean.total.dtype == jnp.float32
    assert mean.value.item() == pytest.approx(loss(np.array(299.0)), rel=1e-6)


def test_the_best_constant_for_a_quantile_is_that_quantile():
    targets = device(np.arange(101.0))
    guesses = jnp.arange(0, 101, 5.0)
    costs = [quantile_error(jnp.full(101, g), targets, quantile=0.8).value for g in guesses]
    assert guesses[np.argmin(costs)] == 80


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: squared_error(a, a[:, 0]), r"targets must have shape \(2, 3\).* got \(2,\)"),
        (lambda a: squared_error(a, a, a[0]), r"weights must have the shape .* got \(3,\)"),
        (lambda a: absolute_error(a.astype(int), a), "predictions must be floating, got int32"),
        (lambda a: huber_error(a, a, delta=0.0), "delta must be a positive number, got 0.0"),
        (
            lambda a: quantile_error(a, a, quantile=1),
            r"quantile must be a number in \(0, 1\), got 1",
        ),
        (lambda a: huber_error(a, a, delta=float("nan")), "delta must be .* got nan"),
    ],
)
def test_errors_of_numbers_refuse_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((2, 3)))


def test_recall_and_f1_by_class_are_those_of_counting():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(40, 5)), rng.integers(0, 4, 40)
    weights = rng.integers(0, 2, 40)
    guesses = logits.argmax(axis=-1)
    real = weights == 1
    parts = [slice(0, 17), slice(17, 40)]
    for metric, ratio in (
        (recall_by_class, lambda hits, guessed, there: (hits, there)),
        (f1_by_class, lambda hits, guessed, there: (2 * hits, guessed + there)),
    ):
        found = [metric(device(logits)[p], labels[p], jnp.asarray(weights)[p]) for p in parts]
        got = compute({"it": merge(*found)})["it"]
        for c in range(5):
            hits = (real & (guesses == c) & (labels == c)).sum()
            top, bottom = ratio(hits, (real & (guesses == c)).sum(), (real & (labels == c)).sum())
            np.testing.assert_allclose(got[c], top / bottom if bottom else np.nan)
    assert np.isnan(compute({"it": recall_by_class(device(logits), labels)})["it"][4])
    # Weights that cancel each other leave no mean either.
    np.testing.assert_array_equal(
        compute({"it": (np.array([1.0, 1.0]), np.array([0.0, 2.0]))})["it"], [np.nan, 0.5]
    )


@pytest.mark.parametrize("weights", [None, np.uint8, bool, np.int8])
def test_rows_are_counted_beyond_what_the_dtype_of_their_weights_holds(weights):
    weights = weights and np.ones(300, weights)
    logits, labels = device(np.tile([0.0, 1.0], (300, 1))), np.ones(300, int)
    hits = accuracy(logits, labels, weights)
    assert hits == (300, 300)
    assert jnp.issubdtype(hits.count.dtype, jnp.integer)  # exact, however many there are
    np.testing.assert_array_equal(recall_by_class(logits, labels, weights), [[0, 300], [0, 300]])
    np.testing.assert_array_equal(f1_by_class(logits, labels, weights), [[0, 600], [0, 600]])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "weights",
    [
        [10**9] * 3,
        np.array([3_000_000_000, 1, 1_500_000_000], np.uint32),
        np.array([-(2**31), -5, -(2**31)], np.int32),
        np.full(2**16 + 1, 2**15 - 1, np.int16),
    ],
)
def test_a_count_never_wraps(weights, compiled):
    """Beyond 2^31, where an integer of 32 bits would be of the other sign."""
    exact = np.asarray(weights, np.float64)
    guesses = np.arange(len(exact)) % 2
    count, hits = exact.sum(), exact[guesses == 0].sum()

    def run(weights, logits):
        labels = jnp.zeros(len(exact), int)
        return {
            "error": squared_error(jnp.full(len(exact), 2.0), labels, weights),
            "hits": accuracy(logits, labels, weights),
            "recall": recall_by_class(logits, labels, weights),
            "f1": f1_by_class(logits, labels, weights),
        }

    weights = jnp.asarray(weights) if compiled else weights
    metrics = (jax.jit(run) if compiled else run)(weights, device(np.eye(2)[guesses]))
    assert metrics["error"].value == pytest.approx(4)
    for found, times in ((metrics, 1), (merge(metrics, metrics), 2)):
        for name in ("error", "hits"):
            np.testing.assert_allclose(found[name].count, times * count, rtol=1e-6)
        # These are added up one by one.
        np.testing.assert_allclose(found["recall"].count, [times * count, 0], rtol=1e-4)
        by_class = times * np.array([hits + count, count - hits])
        np.testing.assert_allclose(found["f1"].count, by_class, rtol=1e-4)
        assert compute(found)["hits"] == pytest.approx(hits / count)


@pytest.mark.parametrize("compiled", [False, True])
def test_narrow_weights_are_counted_in_whole_numbers(compiled):
    """Odd ones beyond 2^24, where each float32 is even."""

    def count(weights):
        return Mean.of(jnp.zeros(len(weights)), weights).count

    for size, weight in ((2**24 + 1, True), (2**18 + 1, np.int8(127)), (2**18 + 1, np.uint8(255))):
        found = (jax.jit(count) if compiled else count)(jnp.full(size, weight))
        assert int(found) == size * int(weight)


def test_an_integer_of_python_that_jax_would_not_hold_is_refused_by_name():
    for number in (3_000_000_000, -(2**31) - 1, 10**30):
        for pairs, name in (
            (((1.0, number), (1.0, 1)), "first"),
            (((1.0, 1), (1.0, number)), "second"),
        ):
            message = f"{name} must have integers that fit int32, got {number}: give it as a float"
            with pytest.raises(ValueError, match=message):
                merge(*pairs)
    assert merge((1.0, 2**31 - 1), (1.0, 3e9)).count == 2**31 - 1 + 3e9
    assert merge((1.0, True), (1.0, 1)).count == 2


def test_labels_of_any_width_are_the_class_they_say_or_none():
    """More classes than 8 bits hold, and numbers that would be a class if they were cut."""
    logits = jnp.eye(300)[:100]
    labels = np.arange(100)
    expected = cross_entropy(logits, labels).total
    for dtype in (np.int8, np.uint8, np.uint64):
        narrow = labels.astype(dtype)
        assert cross_entropy(logits, narrow).total == expected
        assert accuracy(logits, narrow).total == recall_by_class(logits, narrow).total.sum() == 100
    for wrong in (2**32 + 1, -(2**32) + 1):
        labels = np.where(np.arange(100) == 1, wrong, np.arange(100))
        assert jnp.isnan(cross_entropy(logits, labels).total)
        assert accuracy(logits, labels).total == 99
    labels = np.where(np.arange(100) == 1, -1, np.arange(100)).astype(np.int8)
    assert jnp.isnan(cross_entropy(logits, labels).total)
    # As a signed number of 32 bits it would be -1, and as an index the last class.
    labels = jnp.arange(100, dtype=jnp.uint32).at[1].set(2**32 - 1)
    assert jnp.isnan(cross_entropy(logits, labels).total)
    assert recall_by_class(logits, labels).count[-1] == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_mean_of_a_sum_of_16_bits_is_divided_in_32(dtype):
    """257 rows are 256 in bfloat16, and 70,000 are infinite in float16."""
    total = jnp.asarray(256, dtype)
    for count in (257, 70_000):
        mean = Mean(total, jnp.array(count))
        assert mean.value.dtype == jnp.float32
        np.testing.assert_allclose(mean.value, 256 / count, rtol=1e-6)
        np.testing.assert_allclose(perplexity(mean), np.exp(256 / count), rtol=1e-6)
        np.testing.assert_allclose(bits(mean).value, 256 / count / np.log(2), rtol=1e-6)


def test_weights_may_be_a_list_and_must_be_numbers():
    logits, labels = jnp.array([[1.0, 0.0], [0.0, 3.0]]), jnp.array([0, 0])
    for metric in (cross_entropy, accuracy):
        found, expected = (metric(logits, labels, w) for w in ([1, 0], jnp.array([1, 0])))
        assert jax.tree.leaves(found) == jax.tree.leaves(expected)
    assert Mean.of([1.0, 3.0], [True, False]).value == 1
    with pytest.raises(ValueError, match="weights must be an array of numbers, got str"):
        accuracy(logits, labels, "ab")
    with pytest.raises(ValueError, match="delta must be a positive number, got '1'"):
        huber_error(logits, logits, delta="1")


HIDDEN = np.ma.masked_array([1.0, 2.0], [0, 1])
RAGGED = [[1.0, 2.0], [3.0]]
APPLIED = (jnp.ones((2, 4)), jnp.ones((2, 3, 4)))  # as a layer gives them: the carry, the outputs
ROWS = "rows of unequal size: rnnjax.data.pad makes one of them"
PAIR = r"a tuple of 2: apply gives \(carry, outputs\)"
TAKEN = {
    "values": Mean.of,
    "weights": lambda given: Mean.of([1.0, 2.0], given),
    "logits": lambda given: cross_entropy(given, [0, 1]),
    "labels": lambda given: accuracy(np.eye(2), given),
    "predictions": lambda given: squared_error(given, [1.0, 2.0]),
    "targets": lambda given: absolute_error(np.ones(2), given),
    "features": lambda given: linear_cross_entropy(given, np.eye(2), None, [0, 1]),
    "w": lambda given: linear_cross_entropy(np.eye(2), given, None, [0, 1]),
    "bias": lambda given: linear_cross_entropy(np.eye(2), np.eye(2), given, [0, 1]),
    "lengths": lambda given: transducer_loss(np.zeros((2, 3, 2, 4)), given, [[1], [1]], None),
}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (RAGGED, f"one array, got {ROWS}"),
        ([np.ones(2), np.ones(3)], f"one array, got {ROWS}"),
        (APPLIED, f"one array, got {PAIR}"),
        (tuple(map(np.asarray, APPLIED)), f"one array, got {PAIR}"),
        (HIDDEN, "a plain array, got one with masked numbers: give a mask"),
        ([HIDDEN, HIDDEN], "a plain array, got one with masked numbers: give a mask"),
        ([1.0, np.ma.masked], "a plain array, got one with masked numbers: give a mask"),
        ("ab", "an array of numbers, got str"),
    ],
    ids=["ragged", "rows", "applied", "applied in NumPy", "masked", "masks", "a mask", "text"],
)
@pytest.mark.parametrize("name", TAKEN)
def test_what_is_no_array_is_named(name, given, message):
    with pytest.raises(ValueError, match=f"^{name} must be {message}"):
        TAKEN[name](given)


@pytest.mark.parametrize("name", TAKEN)
def test_a_tensor_that_numpy_cannot_read_is_named(name):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for options in ({"requires_grad": True}, {"dtype": torch.bfloat16}):
        with pytest.raises(ValueError, match=f"^{name} must be readable by NumPy, got Tensor: "):
            TAKEN[name](torch.ones(2, **options))


def test_a_masked_array_without_masked_numbers_is_an_array():
    assert Mean.of(np.ma.masked_array([1.0, 3.0], [0, 0])).value == 2


def test_what_is_no_pair_is_named():
    one, two = Mean.of(jnp.ones(2)), recall_by_class(jnp.eye(3), jnp.arange(3))
    for run, message in {
        lambda: merge(one, two): r"sums of the shapes of first, \(\), got shape \(3,\)",
        lambda: merge({"a": one}, {"b": one}): "second must be a tree like first",
        lambda: compute({"loss": 3.0}): r"metric 'loss' must be a pair \(total, count\), got float",
        lambda: compute(None): "metrics must be a dict of pairs",
        lambda: perplexity(3.0): "entropy must be a pair",
        lambda: bits(None): "entropy must be a pair",
    }.items():
        with pytest.raises(ValueError, match=message):
            run()
