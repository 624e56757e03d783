"""Parameters whose bytes lie in another order, as files of other machines have them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax import metrics, training, weights

pytestmark = pytest.mark.usefixtures("quick_compile")

XS, TOKENS = jnp.ones((2, 2, 2)), jnp.array([[1, 2], [3, 0]])
WORDS = rnnjax.embedding(5, 2)
LAYER = rnnjax.stack(rnnjax.lstm(2), rnnjax.lru(3))
LANGUAGE_MODEL = rnnjax.language_model(WORDS, rnnjax.gru(2))
CLASSIFIER = rnnjax.classifier(WORDS, rnnjax.gru(2), 2)
TRANSLATOR = rnnjax.sequence_to_sequence(WORDS, rnnjax.gru(2), WORDS, rnnjax.gru(2), start=1)
ATTENDING = rnnjax.attention_cell(rnnjax.gru(2), 2)
WITH_ATTENTION = rnnjax.sequence_to_sequence(WORDS, rnnjax.gru(2), WORDS, ATTENDING, start=1)
RARE_WORDS = rnnjax.language_model(
    WORDS, rnnjax.gru(2), softmax=rnnjax.adaptive_softmax(2, 5, (2,))
)
HEAD = rnnjax.bernoulli_head(2)
GREEDY = {"max_new_tokens": 2, "sampling": rnnjax.greedy()}


def write(params):
    carry, memory = TRANSLATOR.encode(params, TOKENS)
    start = jnp.ones(2, int)
    sizes = {"beam_size": 2, "max_length": 2, "stop": 0}
    return rnnjax.beam_search(TRANSLATOR.step, params, carry, start, memory=memory, **sizes)


KEY = jax.random.key(0)
USES = {
    "a layer": (LAYER.init(KEY, 2), lambda p: LAYER.apply(p, XS)),
    "a layer of no array of JAX": (LAYER.init(KEY, 2), lambda p: LAYER.apply(p, np.asarray(XS))),
    "its step": (
        LAYER.init(KEY, 2),
        lambda p: LAYER.step(p, LAYER.initial_carry(p, (2,)), XS[:, 0]),
    ),
    "a language model": (LANGUAGE_MODEL.init(KEY), lambda p: LANGUAGE_MODEL.apply(p, TOKENS)),
    "a softmax of rare words": (RARE_WORDS.init(KEY), lambda p: RARE_WORDS.apply(p, TOKENS)),
    "a translator with attention": (
        WITH_ATTENTION.init(KEY),
        lambda p: WITH_ATTENTION.apply(p, TOKENS, None, TOKENS),
    ),
    "what it writes": (
        LANGUAGE_MODEL.init(KEY),
        lambda p: rnnjax.generate(LANGUAGE_MODEL, p, TOKENS, **GREEDY).log_probs,
    ),
    "a classifier": (CLASSIFIER.init(KEY), lambda p: CLASSIFIER.apply(p, TOKENS)),
    "a beam search": (TRANSLATOR.init(KEY), lambda p: write(p).log_probs),
    "a head": (HEAD.init(KEY, 2), lambda p: HEAD.apply(p, XS)),
    "merged metrics": (
        metrics.Mean(np.ones(2, np.float32), np.ones(2, np.int32)),
        lambda p: metrics.compute({"a": metrics.merge(p, p)}),
    ),
    "a mesh": ({"w": XS}, lambda p: training.replicate(jax.make_mesh((1,), ("batch",)), p)),
    "a batch on a mesh": (
        {"x": XS},
        lambda p: training.shard_batch(jax.make_mesh((1,), ("batch",)), p),
    ),
}


def reordered(tree, order):
    def swap(leaf):
        array = np.asarray(leaf)
        return array.astype(array.dtype.newbyteorder(order))

    return jax.tree.map(swap, tree)


@pytest.mark.parametrize("use", USES)
def test_parameters_in_another_byte_order_are_the_numbers_they_are(use):
    """A program of JAX misreads them, once it has seen arrays of NumPy of those shapes."""
    params, run = USES[use]
    expected = jax.tree.map(np.array, run(reordered(params, "<")))
    found = run(reordered(params, ">"))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_are_read_into_a_template_of_another_byte_order(tmp_path):
    params = reordered(CLASSIFIER.init(KEY), ">")
    weights.save_weights(tmp_path / "w", params)
    found = weights.load_weights(tmp_path / "w", params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)
