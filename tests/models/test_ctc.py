"""``optax.ctc_loss`` behind our models and under our masks, as the guide uses it.

Beside the sum over all alignments, in NumPy and float64.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import EXACT, assert_trees_equal

import rnnjax

TEXTS = [[1, 2], [2, 2], [1], [], []]
LABELS, COUNTS = np.array([[1, 2], [2, 2], [1, 0], [0, 0], [0, 0]]), np.array([2, 2, 1, 0, 0])
STEPS, CLASSES = 4, 3
# The second text only just fits: a blank must stand between its two equal labels.
ENDS = np.asarray(rnnjax.lengths_to_mask([4, 3, 3, 3, 0], STEPS))
HOLES = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 0, 1], [0, 0, 0, 0]], bool)


def read(path, blank):
    return [symbol for symbol, _ in itertools.groupby(path) if symbol != blank]


def loss_over_all_paths(logits, text, blank=0):
    """Minus the log of the summed probability of every path [T] that reads as ``text``."""
    odds = np.exp(np.asarray(logits, np.float64))
    probabilities = odds / odds.sum(axis=-1, keepdims=True)
    steps, classes = probabilities.shape
    paths = itertools.product(range(classes), repeat=steps)
    ways = [path for path in paths if read(path, blank) == text]
    return -np.log(sum(np.prod(probabilities[range(steps), way]) for way in ways))


def losses_of(logits, mask, labels, counts, **options):
    label_mask = rnnjax.lengths_to_mask(counts, labels.shape[1])
    return optax.ctc_loss(logits, 1.0 - mask, labels, 1.0 - label_mask, **options)


@pytest.mark.full
@pytest.mark.parametrize("mask", [ENDS, HOLES], ids=["lengths", "mask with holes"])
@pytest.mark.usefixtures("float64", "quick_compile")
def test_each_row_costs_the_sum_over_its_alignments_as_if_it_were_alone(mask):
    model = rnnjax.tagger(None, rnnjax.gru(2), CLASSES)
    params = jax.tree.map(lambda a: a.astype(float), model.init(jax.random.key(0), 3))
    xs = np.random.default_rng(0).normal(size=(len(TEXTS), STEPS, 3))

    @jax.jit
    def derive(params, xs, mask, labels, counts):
        def loss(params, xs):
            losses = losses_of(model.apply(params, xs, mask=mask), mask, labels, counts)
            return losses.sum(), losses

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, xs)

    padded = np.where(mask[..., None], xs, np.nan)
    (_, losses), (of_params, of_xs) = derive(params, padded, mask, LABELS, COUNTS)
    assert np.all(of_xs[~mask] == 0)
    assert losses[-1] == 0  # of no steps, which Optax does not take alone

    summed = jax.tree.map(jnp.zeros_like, params)
    for row, text in enumerate(TEXTS[:-1]):
        alone, one = xs[row][mask[row]], slice(row, row + 1)
        expected = loss_over_all_paths(model.apply(params, alone), text)
        np.testing.assert_allclose(losses[row], expected, **EXACT)
        everything = np.ones((1, len(alone)), bool)
        _, (own, own_xs) = derive(params, alone[None], everything, LABELS[one], COUNTS[one])
        np.testing.assert_allclose(of_xs[row][mask[row]], own_xs[0], **EXACT)
        summed = jax.tree.map(jnp.add, summed, own)
    assert_trees_equal(of_params, summed)


@pytest.mark.usefixtures("float64", "quick_compile")
def test_the_blank_may_be_any_class():
    logits = np.random.default_rng(1).normal(size=(1, 4, CLASSES))
    found = losses_of(logits, np.ones((1, 4)), np.array([[0, 1, 1]]), np.array([3]), blank_id=2)
    np.testing.assert_allclose(found[0], loss_over_all_paths(logits[0], [0, 1, 1], 2), **EXACT)


@pytest.mark.usefixtures("quick_compile")
def test_a_text_that_needs_more_steps_costs_a_hundred_thousand_and_still_has_a_gradient():
    labels, counts = np.array([[1, 2, 1], [1, 1, 0], [1, 1, 2]]), np.array([3, 2, 3])
    mask = rnnjax.lengths_to_mask([2, 2, 3], STEPS)
    logits = jax.random.normal(jax.random.key(0), (3, STEPS, CLASSES))

    @jax.jit
    @jax.value_and_grad
    def derive(logits):
        return losses_of(logits, mask, labels, counts).sum()

    total, gradient = derive(logits)
    np.testing.assert_allclose(total, 3e5, rtol=1e-3)
    assert np.all(np.isfinite(gradient))
    assert np.all(np.abs(gradient).max(axis=(1, 2)) > 0.01)
