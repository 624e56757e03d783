"""The loss of a transducer beside the sum over all its paths, in NumPy and float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.metrics import transducer_loss

pytestmark = pytest.mark.usefixtures("quick_compile")

STEPS, PLACES, CLASSES = 4, 4, 3
LENGTHS, LABEL_LENGTHS = np.array([4, 3, 1, 2, 3, 0]), np.array([3, 0, 2, 1, 3, 1])
LABELS = np.array([[1, 2, 2], [0, 0, 0], [1, 1, 0], [2, 0, 0], [2, 1, 2], [1, 0, 0]])
WEIGHTS = np.array([1.0, 2.0, 0.5, -1.0, 1.0, 0.0])
LOGITS = np.random.default_rng(0).normal(size=(6, STEPS, PLACES, CLASSES)) * 2


def loss_over_all_paths(logits, labels, blank=0):
    """Minus the log of the summed probability of all orders of T blanks, one last, and U labels."""
    odds = np.exp(np.asarray(logits, np.float64))
    probabilities = odds / odds.sum(axis=-1, keepdims=True)
    steps, size = len(logits), len(labels)
    total = 0.0
    for written in itertools.combinations(range(steps + size - 1), size):
        step = place = 0
        product = 1.0
        for move in range(steps + size):
            if move in written:
                product *= probabilities[step, place, labels[place]]
                place += 1
            else:
                product *= probabilities[step, place, blank]
                step += 1
        total += product
    return -np.log(total)


def expected_of(logits, blank=0, labels=LABELS):
    rows = zip(logits, LENGTHS, labels, LABEL_LENGTHS, strict=True)
    return np.array(
        [loss_over_all_paths(x[:t, : u + 1], y[:u], blank) if t else 0.0 for x, t, y, u in rows]
    )


def padded(logits):
    """``logits`` with NaN wherever nothing is to be read."""
    step = np.arange(STEPS) < LENGTHS[:, None]
    place = np.arange(PLACES) <= LABEL_LENGTHS[:, None]
    real = step[:, :, None] & place[:, None] & (WEIGHTS != 0)[:, None, None]
    return np.where(real[..., None], logits, np.nan)


@pytest.mark.usefixtures("float64")
def test_a_row_costs_the_sum_over_its_paths_and_padding_is_not_read():
    expected = expected_of(LOGITS)
    labels = np.where(np.arange(PLACES - 1) < LABEL_LENGTHS[:, None], LABELS, -100)
    found = jax.jit(transducer_loss)(padded(LOGITS), LENGTHS, labels, LABEL_LENGTHS, WEIGHTS)
    np.testing.assert_allclose(found.total, expected @ WEIGHTS, rtol=1e-12)
    assert found.count == WEIGHTS.sum()
    for row in range(5):
        alone = transducer_loss(
            LOGITS[row, : LENGTHS[row], : LABEL_LENGTHS[row] + 1],
            None,
            LABELS[row, : LABEL_LENGTHS[row]],
            None,
        )
        np.testing.assert_allclose(alone.value, expected[row], rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_gradients_are_central_differences_and_zero_in_the_padding():
    def loss(logits):
        return transducer_loss(logits, LENGTHS, LABELS, LABEL_LENGTHS, WEIGHTS).total

    found = jax.grad(loss)(padded(LOGITS))
    expected, by = np.zeros_like(LOGITS), 1e-6
    for index in np.argwhere(np.isfinite(padded(LOGITS))):
        moved = np.zeros_like(LOGITS)
        moved[tuple(index)] = by
        row = index[0]
        one, two = (expected_of(LOGITS + sign * moved)[row] for sign in (1, -1))
        expected[tuple(index)] = WEIGHTS[row] * (one - two) / (2 * by)
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert np.all(np.asarray(found)[np.isnan(padded(LOGITS))] == 0)


@pytest.mark.usefixtures("float64")
def test_the_blank_may_be_any_class():
    labels = np.where(LABELS == 2, 0, LABELS)
    found = transducer_loss(padded(LOGITS), LENGTHS, labels, LABEL_LENGTHS, WEIGHTS, blank_id=2)
    np.testing.assert_allclose(found.total, expected_of(LOGITS, 2, labels) @ WEIGHTS, rtol=1e-12)


def test_unlikely_labels_of_a_long_row_stay_exact():
    """With equal logits every path is as likely: (1 / C) to the power of its moves, times paths."""
    steps, size, classes = 300, 60, 50
    logits = jnp.zeros((steps, size + 1, classes))
    found = transducer_loss(logits, None, jnp.ones(size, int), None).value
    moves = steps + size
    paths = sum(np.log(np.arange(1, moves))) - sum(np.log(np.arange(1, size + 1)))
    paths -= sum(np.log(np.arange(1, steps)))
    np.testing.assert_allclose(found, moves * np.log(classes) - paths, rtol=2e-6)
    unlikely = jnp.zeros((3, 2, 4)).at[..., 1].set(-1e4)
    assert 9_990 < transducer_loss(unlikely, None, jnp.array([1]), None).value < 10_010


def test_sixteen_bits_are_raised_and_whole_batches_need_no_axes():
    logits = jnp.asarray(LOGITS[0], jnp.bfloat16)
    found = transducer_loss(logits, 4, LABELS[0].astype(np.int8), 3)
    assert found.value.dtype == jnp.float32
    wide = transducer_loss(logits.astype(jnp.float32), 4, LABELS[0], 3)
    np.testing.assert_array_equal(found.value, wide.value)


@pytest.mark.parametrize("wrong", [-1, 0, CLASSES])
def test_a_label_that_is_none_costs_nan_where_its_row_counts(wrong):
    labels = LABELS.copy()
    labels[0, 1] = wrong
    arguments = (LOGITS, LENGTHS, labels, LABEL_LENGTHS)
    counted = np.array([1, 1, 1, 1, 1, 0])
    assert np.isnan(transducer_loss(*arguments, counted).value)
    assert np.isfinite(transducer_loss(*arguments, counted * (np.arange(6) > 0)).value)


def test_a_row_without_steps_costs_nan_where_it_counts():
    assert np.isnan(transducer_loss(LOGITS, LENGTHS, LABELS, LABEL_LENGTHS).value)


def test_checked_names_the_wrong_label():
    checked = rnnjax.checked(jax.jit(transducer_loss))
    labels = np.where(np.arange(PLACES - 1) < LABEL_LENGTHS[:, None], LABELS, -100)
    weights = jnp.asarray(WEIGHTS)
    assert np.isfinite(checked(LOGITS, LENGTHS, labels, LABEL_LENGTHS, weights).value)
    labels[0, 1] = 7
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\), got 7 at index \(0, 1\)"):
        checked(LOGITS, LENGTHS, labels, LABEL_LENGTHS, weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": LOGITS[0, 0]}, r"logits must be floating, of shape \[\.\.\., T, U \+ 1, C\]"),
        ({"logits": LOGITS.astype(int)}, "logits must be floating"),
        ({"labels": LABELS[:, :2]}, r"labels must have shape \(6, 3\) for logits \(6, 4, 4, 3\)"),
        ({"labels": LABELS * 1.0}, "labels must be integers"),
        ({"lengths": LENGTHS + 1}, r"lengths must lie in \[0, 4\], got 5 at index \(0,\)"),
        ({"lengths": LENGTHS[:5]}, r"lengths must be integers of shape \(6,\)"),
        ({"label_lengths": LABEL_LENGTHS + 1}, r"label_lengths must lie in \[0, 3\], got 4"),
        ({"label_lengths": LABEL_LENGTHS * 1.0}, "label_lengths must be integers of shape"),
        ({"weights": WEIGHTS[:5]}, r"weights must have shape \(6,\)"),
        ({"blank_id": 3}, "blank_id must"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {
        "logits": LOGITS,
        "lengths": LENGTHS,
        "labels": LABELS,
        "label_lengths": LABEL_LENGTHS,
        "weights": WEIGHTS,
    }
    with pytest.raises(ValueError, match=message):
        transducer_loss(**(arguments | change))
