"""What a classifier of texts trains on: words that are hidden, and classes that are divided."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.running.classifier_fitting import classification_loss
from experiments.running.text import hold_out
from rnnjax.data import UNKNOWN, Batch, Examples

TOKENS = np.random.default_rng(0).integers(2, 9, (20, 100))


def tokens_read(rate, key):
    """What the model reads of a batch, and the loss of logits that are 0."""
    read = []

    def apply(params, tokens, lengths, key):
        read.append(np.asarray(tokens))
        return jnp.zeros((len(tokens), 2))

    batch = Batch(TOKENS, np.full(20, 100), np.zeros(20, int), np.ones(20, np.float32))
    loss, _ = classification_loss(SimpleNamespace(apply=apply), rate)(None, batch, key)
    assert float(loss) == pytest.approx(np.log(2))
    return read[0]


def test_words_are_hidden_at_their_rate_and_in_training_alone():
    read = tokens_read(0.3, jax.random.key(0))
    hidden = read != TOKENS
    assert np.all(read[hidden] == UNKNOWN)
    assert hidden.mean() == pytest.approx(0.3, abs=0.04)  # of 2,000 words
    assert np.any(hidden != (tokens_read(0.3, jax.random.key(1)) != TOKENS))
    for rate, key in ((0.3, None), (0.0, jax.random.key(0))):
        np.testing.assert_array_equal(tokens_read(rate, key), TOKENS)


@pytest.mark.parametrize("seed", range(5))
def test_a_rare_class_is_in_both_parts_of_the_training_texts(seed):
    labels = [0] * 80 + [1] * 20
    texts = [str(n) for n in range(100)]
    dataset = SimpleNamespace(name="own", train=Examples(texts, labels))
    train, validation = hold_out(dataset, 0.1, seed)
    assert np.bincount(validation.labels).tolist() == [8, 2]
    assert np.bincount(train.labels).tolist() == [72, 18]
    assert sorted([*train.texts, *validation.texts]) == sorted(texts)
