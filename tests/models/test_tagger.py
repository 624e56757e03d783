"""A tagger: one label a step, the same for a text alone, padded and packed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

KEY = jax.random.key(0)
TOKENS = np.array([[3, 1, 4, 1], [5, 9, 0, 0], [0, 0, 0, 0]])
LENGTHS = np.array([4, 2, 0])


def make(**options):
    layer = rnnjax.bidirectional(rnnjax.lstm(4))
    model = rnnjax.tagger(rnnjax.embedding(10, 3), layer, 5, **options)
    params = model.init(KEY)
    return model, layer, params._replace(head=params.head._replace(bias=jnp.arange(1.0, 6.0)))


def test_logits_are_those_of_the_equation_for_each_text_alone():
    model, layer, params = make()
    logits = model.apply(params, TOKENS, LENGTHS)
    for row, length in enumerate(LENGTHS):
        xs = np.asarray(params.embedding.vectors)[TOKENS[row, :length]]
        ys = np.asarray(layer.apply(params.encoder, xs)[1], np.float64)
        expected = ys @ np.asarray(params.head.w, np.float64) + np.asarray(params.head.bias)
        np.testing.assert_allclose(logits[row, :length], expected, rtol=1e-5, atol=1e-6)
        assert np.all(logits[row, length:] == 0)


def test_packed_texts_are_tagged_as_alone():
    model, _, params = make()
    packed, ids = np.array([[3, 1, 4, 1, 5, 9, 0]]), np.array([[1, 1, 1, 1, 2, 2, 0]])
    logits = model.apply(params, packed, segment_ids=ids)[0]
    np.testing.assert_allclose(logits[:4], model.apply(params, TOKENS[0]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        logits[4:6], model.apply(params, TOKENS[1, :2]), rtol=1e-5, atol=1e-6
    )
    assert np.all(logits[6] == 0)
    with pytest.raises(ValueError, match="lengths and mask must be None with segment_ids"):
        model.apply(params, packed, [6], segment_ids=ids)


def test_dropout_needs_a_key():
    model, _, params = make(dropout=0.5)
    quiet = model.apply(params, TOKENS, LENGTHS)
    np.testing.assert_array_equal(quiet, make()[0].apply(params, TOKENS, LENGTHS))
    assert not np.allclose(model.apply(params, TOKENS, LENGTHS, key=KEY), quiet)


@pytest.mark.parametrize("make_model", [rnnjax.tagger, rnnjax.classifier])
def test_what_the_head_reads_is_dropped_in_training(make_model):
    """Nothing else can be: the embedding is zero, and the head shows what it reads."""
    model = make_model(rnnjax.embedding(10, 3, scale=0.0), rnnjax.gru(8), 8, dropout=0.5)
    params = jax.tree.map(lambda a: a + 0.3, model.init(KEY))
    zeros = jax.tree.map(jnp.zeros_like, params)
    head = zeros.head._replace(w=jnp.eye(8))
    params = params._replace(embedding=zeros.embedding, head=head)
    share = model.apply(params, TOKENS, key=KEY) / model.apply(params, TOKENS)
    assert np.unique(np.round(share, 5)).tolist() == [0, 2]


@pytest.mark.parametrize("make_model", [rnnjax.tagger, rnnjax.classifier])
def test_vectors_in_place_of_tokens(make_model):
    model = make_model(None, rnnjax.gru(4), 3)
    params = model.init(KEY, 2)
    xs = np.array(jax.random.normal(KEY, (2, 5, 2)))
    _, ys = rnnjax.unroll(rnnjax.gru(4), params.encoder, xs, [5, 3])
    logits = np.asarray(ys) @ np.asarray(params.head.w) + np.asarray(params.head.bias)
    expected = logits[0] if make_model is rnnjax.tagger else logits[0, -1]
    xs[1, 3:] = np.nan
    found = model.apply(params, xs, [5, 3])
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)
    assert np.all(np.isfinite(found))
    with pytest.raises(ValueError, match="input_size must be a positive integer, got None"):
        model.init(KEY)
    with pytest.raises(ValueError, match=r"xs must have shape \[\.\.\., T, D\]"):
        model.apply(params, xs[0, 0])


@pytest.mark.parametrize("make_model", [rnnjax.tagger, rnnjax.classifier])
def test_vectors_beside_elapsed_times(make_model):
    model = make_model(None, rnnjax.cfc(4), 3)
    params = model.init(KEY, 2)
    xs = np.array(jax.random.normal(KEY, (2, 5, 2)))
    elapsed = np.array(jax.random.uniform(jax.random.key(1), (2, 5, 1)))
    _, ys = rnnjax.unroll(rnnjax.cfc(4), params.encoder, (xs[1, :3], elapsed[1, :3]))
    logits = np.asarray(ys) @ np.asarray(params.head.w) + np.asarray(params.head.bias)
    xs[1, 3:], elapsed[1, 3:] = np.nan, np.nan
    found = model.apply(params, (xs, elapsed), [5, 3])
    if make_model is rnnjax.tagger:
        np.testing.assert_allclose(found[1, :3], logits, rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_allclose(found[1], logits[-1], rtol=1e-5, atol=1e-6)
    assert np.all(np.isfinite(found))
    dropping = make_model(None, rnnjax.cfc(4), 3, dropout=0.5)
    with pytest.raises(ValueError, match=r"dropout must be 0 for inputs of several arrays, got"):
        dropping.apply(params, (xs, elapsed), [5, 3])
    with pytest.raises(ValueError, match=r"xs\[1\] must have the batch and time axes \(2, 5\)"):
        model.apply(params, (xs, elapsed[:, :4]), [5, 3])


@pytest.mark.parametrize("make_model", [rnnjax.tagger, rnnjax.classifier])
def test_a_policy_reaches_every_part(make_model):
    policy = rnnjax.Policy("bfloat16", "bfloat16", "float32")
    arguments = (rnnjax.embedding(10, 3), rnnjax.bidirectional(rnnjax.lstm(4)), 5)
    model, plain = make_model(*arguments, policy=policy), make_model(*arguments)
    assert rnnjax.with_policy(plain, policy) == model
    params = model.init(KEY)
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    found, expected = model.apply(params, TOKENS, LENGTHS), plain.apply(wide, TOKENS, LENGTHS)
    assert found.dtype == jnp.float32
    assert not np.array_equal(found, expected)
    np.testing.assert_allclose(found, expected, atol=0.02)
    with pytest.raises(ValueError, match="must be without a policy, got"):
        rnnjax.with_policy(model, policy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", rnnjax.gru(2), 3), r"embedding must be a rnnjax\.Embedding or None, got str"),
        ((None, "x", 3), r"encoder must be a rnnjax\.Cell or a rnnjax\.Layer, got str"),
        ((None, rnnjax.gru(2), 0), "num_classes must be a positive integer"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        rnnjax.tagger(*arguments)


@pytest.mark.parametrize("table", [rnnjax.embedding(4, 2), rnnjax.one_hot(4)])
def test_ids_outside_are_clamped_where_they_are_traced(table):
    params = table.init(KEY)
    apply = jax.jit(table.apply)
    for dtype in (np.int8, np.int32):
        found = apply(params, np.array([-1, -4, -100, 4, 100], dtype))
        expected = table.apply(params, np.array([0, 0, 0, 3, 3]))
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match=r"tokens must lie in \[0, 4\), got -1"):
        table.apply(params, np.array([-1]))


def test_ids_outside_are_clamped_in_a_compiled_classifier():
    model = rnnjax.classifier(rnnjax.embedding(10, 2), rnnjax.gru(3), 2)
    params = model.init(KEY)
    found = jax.jit(model.apply)(params, np.array([[3, -1]]))
    np.testing.assert_allclose(found, model.apply(params, np.array([[3, 0]])), rtol=1e-6)
