"""Embeddings and the classifier built on them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax.data import pack, pad

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
TOKENS = np.array([[3, 1, 4, 1], [5, 9, 0, 0], [0, 0, 0, 0]])
LENGTHS = np.array([4, 2, 0])


def make(pooling="last", embedding=None, dropout=0.0):
    table = rnnjax.embedding(10, 3) if embedding is None else embedding
    model = rnnjax.classifier(
        table, rnnjax.bidirectional(rnnjax.lstm(4)), 5, pooling=pooling, dropout=dropout
    )
    return model, model.init(KEY)


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_logits_are_those_of_each_text_alone(pooling):
    model, params = make(pooling)
    logits = model.apply(params, TOKENS, LENGTHS)
    for row, length in enumerate(LENGTHS[:2]):
        alone = model.apply(params, TOKENS[row, :length])
        np.testing.assert_allclose(logits[row], alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(logits[2], params.head.bias)


@pytest.mark.parametrize(("pooling", "numpy_pool"), [("mean", np.mean), ("max", np.max)])
def test_pools_are_over_valid_steps_only(pooling, numpy_pool):
    model, params = make(pooling)
    layer = rnnjax.bidirectional(rnnjax.lstm(4))
    xs = np.asarray(params.embedding.vectors)[TOKENS[1, :2]]
    _, ys = layer.apply(params.encoder, xs)
    expected = numpy_pool(np.asarray(ys, np.float64), axis=0) @ params.head.w + params.head.bias
    np.testing.assert_allclose(
        model.apply(params, TOKENS, LENGTHS)[1], expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_ids_in_the_padding_are_never_read(pooling):
    model, params = make(pooling)
    dirty = np.where(np.arange(4) < LENGTHS[:, None], TOKENS, 7)

    def grad(tokens):
        loss = lambda p: (model.apply(p, tokens, LENGTHS) ** 2).sum()  # noqa: E731
        return jax.value_and_grad(loss)(params)

    clean = grad(TOKENS)
    jax.tree.map(np.testing.assert_array_equal, grad(dirty), clean)
    jax.tree.map(np.testing.assert_array_equal, grad(np.where(dirty == 7, -99, dirty)), clean)


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_packed_texts_have_the_logits_they_have_alone(pooling):
    model, params = make(pooling)
    texts = [[3, 4], [5, 6, 7], [8], []]
    packed = pack(texts, 4)
    dirty = np.where(packed.mask, packed.tokens, -99)
    segments = {"segment_ids": packed.segment_ids, "num_segments": 4}
    found = jax.jit(lambda params: model.apply(params, dirty, **segments))(params)
    expected = jax.jit(model.apply)(params, *pad(texts))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_segment_ids_leave_no_room_for_lengths():
    (model, params), ids = make(), jnp.ones((1, 4), int)
    for options in ({"lengths": [4]}, {"mask": ids > 0}):
        with pytest.raises(ValueError, match="lengths and mask must be None with segment_ids"):
            model.apply(params, ids, segment_ids=ids, num_segments=1, **options)
    with pytest.raises(ValueError, match="num_segments must be a positive integer, got None"):
        model.apply(params, ids, segment_ids=ids)
    with pytest.raises(ValueError, match="num_segments must be None without segment_ids, got 1"):
        model.apply(params, ids, num_segments=1)


def test_one_hot_times_weights_is_an_embedding_lookup():
    encoder = rnnjax.lstm(4)
    table = rnnjax.classifier(rnnjax.embedding(10, vectors=np.eye(10)), encoder, 5)
    hot = rnnjax.classifier(rnnjax.one_hot(10), encoder, 5)
    params = table.init(KEY)
    np.testing.assert_array_equal(
        hot.apply(params._replace(embedding=()), TOKENS, LENGTHS),
        table.apply(params, TOKENS, LENGTHS),
    )


def test_a_frozen_embedding_stays_while_the_rest_learns():
    vectors = np.arange(30.0).reshape(10, 3) / 30
    model, params = make(embedding=rnnjax.embedding(10, vectors=vectors, frozen=True))
    optimizer = optax.masked(optax.adamw(0.1, weight_decay=0.5), rnnjax.trainable)
    grads = jax.grad(lambda p: (model.apply(p, TOKENS, LENGTHS) ** 2).sum())(params)
    assert np.all(grads.embedding.vectors == 0)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(moved.embedding.vectors, np.float32(vectors))
    assert not np.allclose(moved.head.w, params.head.w)


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        (rnnjax.gru(4), "got Cell: it comes before the layer that reads it"),
        (rnnjax.embedding, "got function: call it first, as in rnnjax.embedding"),
        (100, "got int$"),
    ],
)
def test_what_is_no_embedding_is_named_with_what_was_meant(embedding, message):
    with pytest.raises(
        ValueError, match=f"embedding must be a rnnjax.Embedding or None, {message}"
    ):
        rnnjax.classifier(embedding, rnnjax.gru(4), 2)
    with pytest.raises(ValueError, match=f"embedding must be a rnnjax.Embedding, {message}"):
        rnnjax.language_model(embedding, rnnjax.gru(4))


def test_given_vectors_are_copied_and_what_is_no_table_is_named():
    vectors = np.ones((3, 2), np.float32)
    table = rnnjax.embedding(3, vectors=vectors)
    vectors[:] = 0
    assert np.all(np.asarray(table.init(jax.random.key(0)).vectors) == 1)
    of_two = rnnjax.embedding(2, 2).init(jax.random.key(0))
    for message, run in {
        r"vectors must have shape \(3, E\), got shape \(3, 0\)": (
            lambda: rnnjax.embedding(3, vectors=np.ones((3, 0)))
        ),
        r"vectors must have shape \(3, E\), got shape \(2, 2\)": (
            lambda: rnnjax.embedding(3, vectors=np.ones((2, 2)))
        ),
        "vectors must have size 4, embedding_size, got size 2": (
            lambda: rnnjax.embedding(3, 4, vectors=vectors)
        ),
        "scale must be finite": lambda: rnnjax.embedding(3, 2, scale=np.inf),
        "vectors must be real, got dtype complex128": (
            lambda: rnnjax.embedding(3, vectors=np.ones((3, 2)) * 1j)
        ),
        "vectors must be known when the table is made": (
            lambda: jax.jit(lambda v: rnnjax.embedding(3, vectors=v).init(jax.random.key(0)))(
                vectors
            )
        ),
        r"params.vectors must have shape \(3, 2\), got shape \(2, 2\)": (
            lambda: table.apply(of_two, [0])
        ),
        "input_size must be left out, as it is the embedding's, got 3": (
            lambda: rnnjax.classifier(table, rnnjax.gru(2), 2).init(jax.random.key(0), 3)
        ),
    }.items():
        with pytest.raises(ValueError, match=message):
            run()


def test_given_vectors_learn_unless_frozen():
    model, params = make(embedding=rnnjax.embedding(10, vectors=np.ones((10, 3))))
    grads = jax.grad(lambda p: (model.apply(p, TOKENS, LENGTHS) ** 2).sum())(params)
    assert np.any(grads.embedding.vectors[3] != 0)
    assert np.all(grads.embedding.vectors[0] == 0)


def test_dropout_needs_a_key_and_repeats_with_it():
    model, params = make(dropout=0.5)
    quiet = model.apply(params, TOKENS, LENGTHS)
    np.testing.assert_array_equal(quiet, make()[0].apply(params, TOKENS, LENGTHS))
    noisy = model.apply(params, TOKENS, LENGTHS, key=KEY)
    assert not np.allclose(noisy, quiet)
    np.testing.assert_array_equal(noisy, model.apply(params, TOKENS, LENGTHS, key=KEY))


def test_a_mask_does_what_lengths_do():
    model, params = make()
    mask = np.arange(4) < LENGTHS[:, None]
    np.testing.assert_array_equal(
        model.apply(params, TOKENS, mask=mask), model.apply(params, TOKENS, LENGTHS)
    )


def test_the_seed_models_have_their_published_sizes():
    def count(cell, embedding_size, vocab_size=20_000):
        model = rnnjax.classifier(rnnjax.embedding(vocab_size, embedding_size), cell, 4)
        shapes = jax.eval_shape(model.init, KEY)
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    assert count(rnnjax.vanilla(16), 64) == 1_281_364
    assert count(rnnjax.lstm(8), 64) == 1_282_372
    deep = rnnjax.stack(*[rnnjax.bidirectional(rnnjax.lstm(64))] * 2)
    assert count(deep, 128) == 2_758_148


def test_it_learns_to_tell_first_words_apart():
    model, params = make()
    tokens = np.random.default_rng(0).integers(1, 10, (64, 6))
    labels = tokens[:, 0] % 5
    optimizer = optax.adam(0.03)

    @jax.jit
    def step(params, state):
        def loss(p):
            logits = model.apply(p, tokens, np.full(64, 6))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    for _ in range(150):
        params, state, value = step(params, state)
    assert value < 0.05
    assert np.all(jnp.argmax(model.apply(params, tokens), -1) == labels)


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_a_model_of_16_bits_runs_where_promotion_is_strict(pooling):
    half = rnnjax.Policy("bfloat16", "bfloat16", "bfloat16")
    model = rnnjax.classifier(
        rnnjax.embedding(10, 3), rnnjax.gru(2), 4, pooling=pooling, policy=half
    )
    with jax.numpy_dtype_promotion("strict"):
        whole = jax.eval_shape(lambda: model.apply(model.init(KEY), TOKENS, LENGTHS))
        packed = jax.eval_shape(
            lambda: model.apply(model.init(KEY), TOKENS, segment_ids=TOKENS * 0, num_segments=1)
        )
    assert whole.shape == (len(TOKENS), 4)
    assert packed.shape == (1, 4)
