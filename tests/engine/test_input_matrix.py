"""Odd and wrong input through the API: a right answer, or an error that says what is wrong.

What each wrong argument of ``unroll`` says is in test_bad_input.py, what the odd but right ones
give for every cell in test_sequence_law.py; here are the rest, for layers and classifiers too.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import rnnjax
from rnnjax.data import BucketedBatches, DataError, pad
from rnnjax.masking import mean_pool
from rnnjax.metrics import accuracy, cross_entropy

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
CELL = rnnjax.lstm(2)
PARAMS = CELL.init(KEY, 3)
XS = jax.random.normal(KEY, (2, 5, 3))
LAYER = rnnjax.bidirectional(rnnjax.gru(2))
LAYER_PARAMS = LAYER.init(KEY, 3)
MODEL = rnnjax.classifier(rnnjax.embedding(10, 3), CELL, 4)
WEIGHTS = MODEL.init(KEY)
TOKENS = np.array([[1, 2, 3], [4, 5, 6]])
TABLE = rnnjax.embedding(300, vectors=np.arange(300.0)[:, None])
HUGE = np.array([[1, 2**33 + 5, 3], [4, 5, 6]])  # cut to 32 bits it would be id 5
LOGITS = jnp.array([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]])


def unroll(xs=XS, lengths=None, params=PARAMS, **options):
    return rnnjax.unroll(CELL, params, xs, lengths, **options)


def layer(lengths=None, xs=XS, **options):
    return LAYER.apply(LAYER_PARAMS, xs, lengths, **options)


def classify(tokens=TOKENS, lengths=None, params=WEIGHTS, **options):
    return MODEL.apply(params, tokens, lengths, **options)


def segments(ids, count=2):
    return classify(segment_ids=ids, num_segments=count)


WRONG = {
    # lengths, mask, resets
    "lengths: a word": (lambda: unroll(lengths="ab"), "lengths", "array of numbers", "str"),
    "lengths: None among them": (lambda: unroll(lengths=[5, None]), "lengths", "numbers", "None"),
    "lengths: words": (lambda: unroll(lengths=["5", "2"]), "lengths", "numbers", "['5', '2']"),
    "lengths: objects": (
        lambda: unroll(lengths=np.array([5, 2], object)),
        "lengths",
        "numbers",
        "dtype object",
    ),
    "lengths: one for all": (lambda: unroll(lengths=5), "lengths", "(2,)", "()"),
    "lengths: a column": (lambda: unroll(lengths=[[5], [2]]), "lengths", "(2,)", "(2, 1)"),
    "lengths: beyond 32 bits": (
        lambda: unroll(lengths=np.array([2**33 + 5, 2])),
        "lengths",
        "[0, 5]",
        "8589934597 at index (0,)",
    ),
    "lengths: traced floats": (
        lambda: jax.jit(lambda n: unroll(lengths=n))(jnp.array([3.0, 2.0])),
        "lengths",
        "integers",
        "float32",
    ),
    "lengths: traced shape": (
        lambda: jax.jit(lambda n: unroll(lengths=n))(jnp.array([3])),
        "lengths",
        "(2,)",
        "(1,)",
    ),
    "mask: batch and time": (
        lambda: unroll(mask=np.ones((5, 2), bool)),
        "mask",
        "(2, 5)",
        "(5, 2)",
    ),
    "mask: a row missing": (lambda: unroll(mask=[[True] * 5, None]), "mask", "one array", "rows"),
    "resets: floats": (lambda: unroll(resets=np.ones((2, 5))), "resets", "bool", "float64"),
    "time: half a step": (lambda: rnnjax.lengths_to_mask([2], 2.5), "time", "integer", "2.5"),
    "time: below 0": (lambda: rnnjax.lengths_to_mask([2], -1), "time", "at least 0", "-1"),
    "time: a flag": (lambda: rnnjax.lengths_to_mask([2], True), "time", "integer", "True"),
    "time: a word": (lambda: rnnjax.lengths_to_mask([2], "3"), "time", "integer", "'3'"),
    "time: narrow floats": (
        lambda: rnnjax.lengths_to_mask([2], np.float32(2)),
        "time",
        "integer",
        "2.0",
    ),
    "lengths_to_mask": (lambda: rnnjax.lengths_to_mask([2.5], 3), "lengths", "integers", "float64"),
    "layer: too long": (lambda: layer([6, 1]), "lengths", "[0, 5]", "6 at index (0,)"),
    "layer: negative": (lambda: layer([5, -1]), "lengths", "[0, 5]", "-1 at index (1,)"),
    "layer: float": (lambda: layer([3.0, 1]), "lengths", "integers", "float64"),
    "layer: bool": (lambda: layer([True, False]), "lengths", "integers", "bool"),
    "layer: input size": (lambda: layer(xs=jnp.ones((2, 5, 7))), "xs", "size 3", "size 7"),
    "model: too long": (lambda: classify(lengths=[4, 1]), "lengths", "[0, 3]", "4 at index (0,)"),
    "model: float": (lambda: classify(lengths=[3.0, 1]), "lengths", "integers", "float64"),
    "model: mask": (lambda: classify(mask=TOKENS), "mask", "bool", "int64"),
    # xs and what goes with it
    "xs: nothing": (lambda: unroll(None), "xs", "array of numbers", "None"),
    "xs: a text": (lambda: unroll("abc"), "xs", "array of numbers", "'abc'"),
    "xs: rows of unequal size": (lambda: unroll([[[1.0]], [[1.0]] * 2]), "xs", "one array", "rows"),
    "xs: complex": (lambda: unroll(XS + 0j), "xs", "floating", "complex64"),
    "xs: bool": (lambda: unroll(XS > 0), "xs", "floating", "bool"),
    "xs: no features": (lambda: unroll(XS[..., :0]), "xs", "size 3", "size 0"),
    "carry: a word": (lambda: unroll(initial_carry="zeros"), "initial_carry", "numbers", "zeros"),
    "carry: complex": (
        lambda: unroll(initial_carry=rnnjax.LSTMCarry(jnp.zeros((2, 2)) + 1j, jnp.zeros((2, 2)))),
        "initial_carry.h",
        "real",
        "complex64",
    ),
    "reverse: a word": (lambda: unroll(reverse="no"), "reverse", "True or False", "'no'"),
    "all_carries: a number": (lambda: unroll(all_carries=2), "all_carries", "True or False", "2"),
    "scan_unroll: a bool": (lambda: unroll(scan_unroll=True), "scan_unroll", "positive", "True"),
    "key: a seed": (lambda: unroll(key=3), "key", "jax.random.key(0)", "3"),
    "xs: several inputs": (lambda: unroll((XS, XS)), "xs", "one array", "a tuple of 2"),
    "xs: named inputs": (lambda: unroll({"x": XS}), "xs", "one array", "dict"),
    # parameters
    "params: none": (lambda: unroll(params=None), "params", "LSTMParams", "None"),
    "params: of a GRU": (
        lambda: unroll(params=rnnjax.gru(2).init(KEY, 3)),
        "params",
        "LSTMParams",
        "GRUParams",
    ),
    "params: as a dict": (
        lambda: unroll(params=PARAMS._asdict()),
        "params",
        "LSTMParams",
        "a dict of w_ih",
    ),
    "params: of another hidden_size": (
        lambda: unroll(params=rnnjax.lstm(3).init(KEY, 3)),
        "params.w_ih",
        "(3, 8)",
        "(3, 12)",
    ),
    "params: bias": (
        lambda: unroll(params=PARAMS._replace(bias=jnp.zeros(7))),
        "params.bias",
        "(8,)",
        "(7,)",
    ),
    "params: recurrent": (
        lambda: unroll(params=PARAMS._replace(w_hh=jnp.zeros((2, 6)))),
        "params.w_hh",
        "(2, 8)",
        "(2, 6)",
    ),
    "params: integers": (
        lambda: unroll(params=jax.tree.map(lambda a: a.astype(int), PARAMS)),
        "params.w_ih",
        "float32",
        "int32",
    ),
    "params: a smaller vocabulary": (
        lambda: classify(params=WEIGHTS._replace(embedding=type(WEIGHTS[0])(jnp.ones((5, 3))))),
        "params.vectors",
        "(10, 3)",
        "(5, 3)",
    ),
    "model params: none": (
        lambda: classify(params=None),
        "params",
        "ClassifierParams(embedding, encoder, head)",
        "None",
    ),
    # token ids
    "tokens: nothing": (lambda: classify(None), "tokens", "array of numbers", "None"),
    "tokens: a text": (lambda: classify("a text"), "tokens", "array of numbers", "'a text'"),
    "tokens: words": (lambda: classify(["a", "b"]), "tokens", "array of numbers", "['a', 'b']"),
    "tokens: rows of unequal size": (
        lambda: classify([[1, 2], [3]]),
        "tokens",
        "one array",
        "rows",
    ),
    "tokens: one id": (lambda: classify(3), "tokens", "[..., T]", "got shape ()"),
    "tokens: bool": (lambda: classify(TOKENS > 2), "tokens", "integers", "bool"),
    "tokens: beyond 32 bits": (
        lambda: classify(HUGE),
        "tokens",
        "int32",
        "8589934597 at index (0, 1)",
    ),
    "tokens: as far below": (lambda: classify(-HUGE), "tokens", "int32", "-8589934597"),
    "embedding: beyond 32 bits": (
        lambda: TABLE.apply(TABLE.init(KEY), HUGE),
        "tokens",
        "int32",
        "8589934597",
    ),
    "one_hot: beyond 32 bits": (
        lambda: rnnjax.one_hot(9).apply((), HUGE),
        "tokens",
        "int32",
        "85899",
    ),
    "model: a seed as key": (lambda: classify(key=0), "key", "jax.random.key(0)", "0"),
    "segment_ids: floats": (lambda: segments(TOKENS * 1.0), "segment_ids", "integers", "float64"),
    "segment_ids: shape": (lambda: segments([[1, 1]]), "segment_ids", "(2, 3)", "(1, 2)"),
    "segment_ids: too large": (lambda: segments(TOKENS), "segment_ids", "[0, 2]", "3 at index"),
    "segment_ids: beyond 32 bits": (lambda: segments(HUGE), "segment_ids", "int32", "8589934597"),
    "classifier: a cell first": (
        lambda: rnnjax.classifier(CELL, CELL, 3),
        "embedding",
        "rnnjax.Embedding",
        "Cell",
    ),
    "classifier: a name": (
        lambda: rnnjax.classifier(rnnjax.embedding(10, 2), "lstm", 3),
        "encoder",
        "rnnjax.Cell",
        "str",
    ),
    # labels
    "labels: floats": (
        lambda: accuracy(LOGITS, jnp.array([0.7, 1])),
        "labels",
        "integers",
        "float",
    ),
    "labels: bool": (lambda: cross_entropy(LOGITS, LOGITS[:, 0] > 0), "labels", "integers", "bool"),
    "logits: integers": (
        lambda: cross_entropy(LOGITS.astype(int), jnp.array([0, 1])),
        "logits",
        "floating",
        "int32",
    ),
    "logits: no class": (
        lambda: cross_entropy(LOGITS[:, :0], jnp.array([0, 1])),
        "logits",
        "at least one class",
        "(2, 0)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_message_names_argument_expectation_and_what_came(case):
    call, *parts = WRONG[case]
    with pytest.raises(ValueError, match=re.escape(parts[0])) as caught:
        call()
    for part in parts[1:]:
        assert part in str(caught.value)


# What the host sees first


@pytest.mark.parametrize(
    ("ids", "labels", "message"),
    [
        ([[1, 10]], [0], r"sequence 0 must have .*\[0, 10\), got 10"),
        ([[1], [-1]], [0, 0], r"sequence 1 must have .*\[0, 10\), got -1"),
        ([[1], [2**33 + 5]], [0, 0], "sequence 1 must have 32-bit integers, got 8589934597"),
        ([[1], [2**31, 2**63]], [0, 0], f"sequence 1 must have 32-bit integers, got {2**63}"),
        ([[1.0]], [0], r"ids must be integers in \[0, 10\), got float32"),
        ([[True]], [0], "sequence 0 must have integers or floats, got 1 axes of bool"),
        ([["a"]], [0], "sequence 0 must have integers or floats, got 1 axes of <U1"),
        ([[1], []], [0, 0], "sequence 1 must have at least 1 step, got 0"),
        ([[1]], [3], r"sequence 0 must have labels in \[0, 3\), got 3"),
        ([[1], [2]], [0, -1], r"sequence 1 must have labels in \[0, 3\), got -1"),
        ([[1]], [0.0], r"labels must be integers in \[0, 3\), got float32"),
        ([[1]], [2**33], "labels must have 32-bit integers, got 8589934592"),
    ],
)
def test_the_batcher_names_the_bad_example(ids, labels, message):
    with pytest.raises(DataError, match=message):
        BucketedBatches(
            ids, labels, batch_size=2, boundaries=(4,), seed=0, vocab_size=10, num_classes=3
        )


# Odd, but right


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "uint32", "int64", "uint64"])
def test_ids_of_any_integer_dtype_name_the_same_rows(dtype):
    ids, params = np.array([127, 0], dtype), TABLE.init(KEY)
    np.testing.assert_array_equal(TABLE.apply(params, ids)[:, 0], [127, 0])
    np.testing.assert_array_equal(jax.jit(TABLE.apply)(params, jnp.asarray(ids))[:, 0], [127, 0])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64"])
def test_labels_of_any_integer_dtype_name_the_same_classes(dtype):
    logits = jnp.zeros((2, 300)).at[0, 127].set(5.0)
    labels = np.array([127, 1], dtype)
    assert accuracy(logits, labels).total == 1
    entropy = np.log(np.exp(5.0) + 299) - 5 + np.log(300)
    np.testing.assert_allclose(cross_entropy(logits, labels).total, entropy, rtol=1e-6)


@pytest.mark.parametrize(
    "label", [np.int8(-1), np.int64(300), np.int64(2**32 + 1), np.int64(-(2**32) + 1)]
)
def test_no_label_outside_the_classes_becomes_one_in_another_dtype(label):
    labels, logits = np.array([label, 1], label.dtype), jnp.zeros((2, 300)).at[:, 1].set(1.0)
    assert np.isnan(cross_entropy(logits, labels).total)
    assert accuracy(logits, labels).total == 1


def test_plain_lists_do_for_arrays():
    as_lists = unroll(np.asarray(XS).tolist(), [5, 2], mask=[[True] * 5, [True] * 5])
    as_tuples = unroll(tuple(tuple(map(tuple, rows)) for rows in np.asarray(XS)), [5, 2])
    expected = jax.tree.leaves(unroll(XS, [5, 2]))
    for a, b in zip(jax.tree.leaves((as_lists, as_tuples)), 2 * expected, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(
        cross_entropy(LOGITS.tolist(), [2, 0]).total, cross_entropy(LOGITS, jnp.array([2, 0])).total
    )


LAYERS_OF_NUMPY = [
    rnnjax.causal_convolution(3, 2),
    rnnjax.dense(2),
    rnnjax.gated(rnnjax.min_gru(3), 3),
    rnnjax.grid_lstm(3, 2),
    rnnjax.output_head(rnnjax.lstm(3), 2),
    rnnjax.rms_norm(rnnjax.recurrent(rnnjax.s5(3))),
]
MODELS_OF_NUMPY = [
    rnnjax.classifier(rnnjax.embedding(4, 3), rnnjax.gru(3), 2, pooling="mean"),
    rnnjax.language_model(rnnjax.embedding(4, 3), rnnjax.lstm(3), tie=True),
]


@pytest.mark.parametrize("part", [*LAYERS_OF_NUMPY, *MODELS_OF_NUMPY], ids=repr)
def test_weights_of_numpy_of_64_bits_are_those_of_32_without_a_warning(part):
    """As other libraries save them; JAX warns where it is asked for what it does not have."""
    if part in MODELS_OF_NUMPY:
        params, given = part.init(KEY), np.array([[1, 2, 3, 0, 1], [3, 3, 0, 1, 2]])
    else:
        params, given = part.init(KEY, 3), np.random.default_rng(0).normal(size=(2, 5, 3))
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    found, expected = part.apply(wide, given, [5, 2]), part.apply(params, given, [5, 2])
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_pools_heads_and_attention_take_numbers_of_numpy_of_64_bits_without_a_warning():
    ys = np.random.default_rng(0).normal(size=(2, 5, 2))
    np.testing.assert_allclose(
        mean_pool(ys, np.array([5, 2])), [ys[0].mean(0), ys[1, :2].mean(0)], rtol=1e-5, atol=1e-6
    )
    head, attend = rnnjax.bernoulli_head(3), rnnjax.attention("general")
    w, bias = (np.asarray(a, np.float64) for a in head.init(KEY, 2))
    logits = head.apply(rnnjax.heads.HeadParams(w, bias), jnp.asarray(ys))
    np.testing.assert_allclose(logits, ys @ w + bias, rtol=1e-5, atol=1e-6)
    (w,) = attend.init(KEY, 2, 2)
    wide = type(attend.init(KEY, 2, 2))(np.asarray(w, np.float64))
    weights = scipy.special.softmax(ys @ np.asarray(w) @ ys.swapaxes(1, 2), axis=-1)
    np.testing.assert_allclose(attend.apply(wide, ys, ys)[0], weights @ ys, rtol=1e-5, atol=1e-6)


def test_bytes_of_another_order_are_the_numbers_they_are():
    """A compiled function of JAX reads them as they lie once it has seen arrays of that shape."""
    xs, lengths, mask = np.asarray(XS), np.array([5, 2]), np.ones((2, 5), bool)
    carry = rnnjax.LSTMCarry(*np.full((2, 2, 2), 0.5, np.float32))
    expected = unroll(xs, lengths, mask=mask, initial_carry=carry)[1]
    other = jax.tree.map(lambda a: a.astype(a.dtype.newbyteorder(">")), (xs, lengths, carry))
    found = unroll(*other[:2], mask=mask, initial_carry=other[2])[1]
    np.testing.assert_array_equal(found, expected)
    labels = np.array([2, 0])
    assert accuracy(np.asarray(LOGITS).astype(">f4"), labels.astype(">i4")).total == 2


def test_masked_numbers_are_refused():
    hidden = np.ma.masked_greater(np.asarray(XS), 0.5)
    with pytest.raises(ValueError, match="xs must be a plain array, got one with masked numbers"):
        unroll(hidden)
    np.testing.assert_array_equal(unroll(np.ma.array(XS))[1], unroll(XS)[1])


def test_a_list_may_mix_numbers_and_traced_values():
    found = jax.jit(lambda n: unroll(lengths=[n, 2]))(4)
    np.testing.assert_allclose(found[1], unroll(lengths=[4, 2])[1], rtol=1e-6)


def test_the_time_of_a_mask_is_any_integer():
    for time in (np.int64(2), np.uint8(2), jnp.array(2)):
        assert rnnjax.lengths_to_mask([1], time).tolist() == [[True, False]]


@pytest.mark.parametrize("kind", [list, np.asarray, jnp.asarray])
@pytest.mark.parametrize("length", [3, -1, 2**31 - 1])
def test_a_mask_of_known_lengths_refuses_those_of_no_row(kind, length):
    message = rf"lengths must lie in \[0, 2\] \(a row has 2 steps\), got {length} at index \(1,\)"
    given = kind([1, length])
    with pytest.raises(ValueError, match=message):
        rnnjax.lengths_to_mask(given, 2)
    with pytest.raises(ValueError, match=message):  # known inside a program, too
        jax.jit(lambda x: x * rnnjax.lengths_to_mask(given, 2))(1.0)


def test_traced_lengths_beyond_int32_are_beyond_every_step():
    to_mask = jax.jit(rnnjax.lengths_to_mask, static_argnums=1)
    unsigned = np.array([2**32 - 1, 1], np.uint32)  # the first would be -1
    assert to_mask(unsigned, 2).tolist() == [[True] * 2, [True, False]]
    assert to_mask(np.array([7, -7]), 2).tolist() == [[True] * 2, [False] * 2]
    with jax.enable_x64(True):
        # Of each the lower 32 bits alone would be another length: 0 or 1.
        wide = np.array([2**33, 1 - 2**33, 2**32 + 1])
        assert to_mask(wide, 2).tolist() == [[True] * 2, [False] * 2, [True] * 2]
        assert to_mask(np.array([2**63, 1], np.uint64), 2).tolist() == [[True] * 2, [True, False]]


def test_a_wrong_length_of_a_mask_is_named_where_values_are_checked():
    checked = rnnjax.checked(jax.jit(lambda lengths: rnnjax.lengths_to_mask(lengths, 2)))
    assert checked(jnp.array([2, 0])).tolist() == [[True] * 2, [False] * 2]
    with pytest.raises(ValueError, match=r"lengths must lie in \[0, 2\] .*, got 3 at index \(1,\)"):
        checked(jnp.array([2, 3]))


@pytest.mark.parametrize(
    ("pooling", "shape"),
    [("last", (2, 0)), ("mean", (2, 0)), ("max", (2, 0)), ("last", (0, 3)), ("last", (0, 0))],
)
def test_a_classifier_takes_no_steps_and_no_rows_with_gradients(pooling, shape):
    model = rnnjax.classifier(rnnjax.embedding(10, 3), CELL, 4, pooling=pooling)

    def loss(params):
        logits = model.apply(params, np.zeros(shape, int), np.zeros(shape[:1], int))
        return logits.sum(), logits

    grads, logits = jax.grad(loss, has_aux=True)(WEIGHTS)
    np.testing.assert_array_equal(logits, np.tile(WEIGHTS.head.bias, (shape[0], 1)))
    expected = jax.tree.map(jnp.zeros_like, grads)
    expected = expected._replace(head=expected.head._replace(bias=jnp.full(4, float(shape[0]))))
    jax.tree.map(np.testing.assert_array_equal, grads, expected)


def test_empty_lists_of_lengths_and_texts_are_an_empty_batch():
    assert unroll(XS[:0], [])[1].shape == (0, 5, 2)
    assert classify(*pad([])).shape == (0, 4)
    assert classify([[], []]).shape == (2, 4)


@jax.jit
def values_and_gradients(xs, lengths):
    def loss(params, xs):
        carry, ys = LAYER.apply(params, xs, lengths)
        return jnp.sum(ys**2) + sum(jnp.sum(c) for c in carry), (carry, ys)

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(LAYER_PARAMS, xs)


@pytest.mark.parametrize("dirt", [np.nan, np.inf, -np.inf, 1e38, -1e38])
def test_dirt_in_the_padding_of_a_layer_changes_no_bit(dirt):
    lengths = jnp.array([3, 0])
    padding = ~rnnjax.lengths_to_mask(lengths, 5)
    clean = values_and_gradients(XS, lengths)
    dirty = values_and_gradients(jnp.where(padding[..., None], dirt, XS), lengths)
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    (_, (_, ys)), (_, d_xs) = dirty
    assert not np.any(np.asarray(ys)[padding])
    assert not np.any(np.asarray(d_xs)[padding])
    assert np.any(np.asarray(d_xs)[0, :3])
