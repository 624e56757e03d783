"""The loss of a linear head in chunks against NumPy float64, and against the loss of its logits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, PartitionSpec

import rnnjax
from rnnjax.metrics import accuracy, cross_entropy, linear_cross_entropy, of_linear_heads

pytestmark = pytest.mark.usefixtures("quick_compile")

B, T, F, C = 3, 5, 4, 7
RNG = np.random.default_rng(0)
X, W, BIAS = RNG.normal(size=(B, T, F)), RNG.normal(size=(F, C)), RNG.normal(size=C)
LABELS = RNG.integers(0, C, (B, T))
MASK = np.arange(T) < np.array([[5], [0], [3]])
WEIGHTS = np.where(MASK, RNG.uniform(0.5, 2.0, (B, T)), 0.0)
WEIGHTS[0, 1] *= -1  # a weight as any other


@pytest.fixture(params=[4, 512], ids=["chunks of 4 rows", "all at once"])
def chunks(request, monkeypatch):
    monkeypatch.setattr(of_linear_heads, "_LOGITS", 1)
    monkeypatch.setattr(of_linear_heads, "_LEAST_ROWS", request.param)


def law(x, w, bias, labels, weights):
    """The weighted sum of entropies, and its gradients, in float64."""
    logits = x.reshape(-1, F) @ w + bias
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows, labels, weights = np.arange(len(logits)), labels.ravel(), weights.ravel()
    entropies = -np.log(shares[rows, labels])
    errors = shares.copy()
    errors[rows, labels] -= 1
    errors *= weights[:, None]
    of_x = (errors @ w.T).reshape(x.shape)
    return entropies @ weights, (of_x, x.reshape(-1, F).T @ errors, errors.sum(axis=0)), entropies


@pytest.mark.usefixtures("chunks")
def test_the_loss_and_its_gradients_are_those_of_numpy():
    total, gradients, entropies = law(X, W, BIAS, LABELS, WEIGHTS)
    with jax.enable_x64(True):

        def loss(x, w, bias, weights):
            return linear_cross_entropy(x, w, bias, jnp.asarray(LABELS), weights)[0].total

        found, own = jax.value_and_grad(loss, (0, 1, 2, 3))(
            *map(jnp.asarray, (X, W, BIAS, WEIGHTS))
        )
        np.testing.assert_allclose(found, total, rtol=1e-13)
        for one, other in zip(own, gradients, strict=False):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)
        # Of a weight of 0 nothing is computed: its derivative is 0, and not the entropy.
        np.testing.assert_allclose(own[3].ravel(), np.where(WEIGHTS.ravel(), entropies, 0.0))


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("weights", [None, MASK, WEIGHTS.astype(np.float32)])
def test_it_is_the_loss_and_the_accuracy_of_the_logits(weights):
    # Whole numbers, so that logits are exact and some are equal; of some, exp is infinite.
    x, w = 40 * jnp.round(2 * jnp.asarray(X, jnp.float32)), jnp.round(jnp.asarray(W, jnp.float32))
    labels = jnp.asarray(LABELS)
    logits = x @ w
    loss, hits = linear_cross_entropy(x, w, None, labels, weights)
    expected, expected_hits = (f(logits, labels, weights) for f in (cross_entropy, accuracy))
    np.testing.assert_allclose(loss.total, expected.total, rtol=1e-5)
    np.testing.assert_allclose(hits.total, expected_hits.total, rtol=1e-6)
    assert loss.count == hits.count == expected.count
    assert loss.count.dtype == expected.count.dtype


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("x64", [False, True])
def test_dtypes_do_not_depend_on_the_number_of_rows(x64):
    narrow = (jnp.asarray(a, jnp.float32) for a in (X, W, BIAS))
    with jax.enable_x64(x64):
        for mean in linear_cross_entropy(*narrow, LABELS, MASK):
            assert mean.total.dtype == jnp.result_type(float)
            assert mean.count.dtype == jnp.result_type(int)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("label", [-1, C, C + 1])
def test_a_label_that_is_no_class_makes_the_loss_nan_and_no_hit(label):
    labels = jnp.asarray(LABELS).at[0, 0].set(label)
    w = jnp.zeros((F, C))  # all logits are equal: the first class is the guess
    loss, hits = linear_cross_entropy(jnp.asarray(X, jnp.float32), w, None, labels)
    assert jnp.isnan(loss.total)
    assert hits.total == np.sum(np.asarray(labels) == 0)


@pytest.mark.usefixtures("chunks")
def test_logits_of_nan_guess_nothing():
    x = jnp.full((9, F), jnp.nan)
    loss, hits = linear_cross_entropy(x, jnp.ones((F, C)), None, jnp.zeros(9, int))
    assert jnp.isnan(loss.total)
    assert hits.total == 0


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("what", [np.nan, np.inf])
def test_rows_of_weight_0_are_never_read(what):
    def loss(x, w):
        return linear_cross_entropy(x, w, None, jnp.asarray(LABELS), MASK)[0].value

    x, w = jnp.asarray(X, jnp.float32), jnp.asarray(W, jnp.float32)
    spoilt = jnp.where(MASK[..., None], x, what)
    good, bad = (jax.value_and_grad(loss, (0, 1))(given, w) for given in (x, spoilt))
    jax.tree.map(np.testing.assert_array_equal, bad, good)
    assert not np.any(np.asarray(bad[1][0])[~MASK])


# Of 7 rows that count, so that the last chunk is not full.
SEVEN = MASK & (np.arange(B * T).reshape(B, T) > 0)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("label", [None, C - 1], ids=["class 0", "all but one class"])
def test_a_class_that_is_ruled_out_has_a_loss_and_gradients_that_are_finite(label):
    """Rows behind the last ones that count stand in for class 0, whose entropy is infinite."""
    bias = np.asarray(BIAS, np.float32)
    bias[: label or 1] = -np.inf
    labels = np.full_like(LABELS, label) if label else np.maximum(LABELS, 1)
    given = jnp.asarray(X, jnp.float32), jnp.asarray(W, jnp.float32), jnp.asarray(bias)

    def ours(x, w, bias):
        return linear_cross_entropy(x, w, bias, labels, SEVEN)[0].value

    def theirs(x, w, bias):
        return cross_entropy(x @ w + bias[None, None], labels, SEVEN).value

    found, expected = (jax.value_and_grad(f, (0, 1, 2))(*given) for f in (ours, theirs))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )


@pytest.mark.usefixtures("chunks")
def test_a_training_step_takes_a_class_that_is_ruled_out():
    x, bias = jnp.asarray(X, jnp.float32), jnp.asarray(BIAS, jnp.float32).at[0].set(-jnp.inf)
    labels = jnp.maximum(jnp.asarray(LABELS), 1)

    def loss_fn(w, batch, key):
        loss, hits = linear_cross_entropy(x, w, bias, labels, batch)
        return loss.value, {"loss": loss, "accuracy": hits}

    optimizer = optax.sgd(0.5)
    w = jnp.asarray(W, jnp.float32)
    state = rnnjax.init_train_state(jax.random.key(0), w, optimizer)
    state, metrics = rnnjax.make_train_step(loss_fn, optimizer, donate_state=False)(state, SEVEN)
    gradient = jax.grad(lambda w: cross_entropy(x @ w + bias[None, None], labels, SEVEN).value)(w)
    np.testing.assert_allclose(state.params, w - 0.5 * gradient, rtol=1e-5, atol=1e-6)
    expected = cross_entropy(x @ w + bias[None, None], labels, SEVEN)
    np.testing.assert_allclose(metrics["loss"].total, expected.total, rtol=1e-5)


def test_only_chunks_with_rows_that_count_are_computed(monkeypatch):
    monkeypatch.setattr(of_linear_heads, "_LOGITS", 1)
    monkeypatch.setattr(of_linear_heads, "_LEAST_ROWS", 4)
    computed, of_rows = [], of_linear_heads._of_rows

    def counted(x, *others):
        jax.debug.callback(lambda: computed.append(len(x)))
        return of_rows(x, *others)

    monkeypatch.setattr(of_linear_heads, "_of_rows", counted)
    x, w, labels = jnp.ones((4, 8, F)), jnp.ones((F, C)), jnp.zeros((4, 8), int)
    gradient = jax.jit(
        jax.grad(lambda x, mask: linear_cross_entropy(x, w, None, labels, mask)[0].total)
    )
    for count, chunks in ((0, 0), (1, 1), (4, 1), (5, 2), (32, 8)):
        computed.clear()
        gradient(x, RNG.permutation(np.arange(32) < count).reshape(4, 8)).block_until_ready()
        jax.effects_barrier()
        assert computed == [4] * chunks


def arrays_of(jaxpr):
    """The shapes of all arrays in a program and in the loops of it."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from arrays_of(inner)


def test_no_array_has_the_logits_of_all_rows(monkeypatch):
    monkeypatch.setattr(of_linear_heads, "_LOGITS", 1)
    monkeypatch.setattr(of_linear_heads, "_LEAST_ROWS", 8)
    x, w, labels = jnp.ones((64, F)), jnp.ones((F, 50)), jnp.zeros(64, int)

    def gradients(loss):
        return max(
            np.prod(shape)
            for shape in arrays_of(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, w).jaxpr)
        )

    assert gradients(lambda x, w: cross_entropy(x @ w, labels).value) == 64 * 50
    assert gradients(lambda x, w: linear_cross_entropy(x, w, None, labels)[0].value) == 8 * 50


def test_the_gradient_of_a_frozen_head_is_not_computed():
    x, w, labels = jnp.ones((6, F)), jnp.ones((F, 50)), jnp.zeros(6, int)

    def loss(x):
        return linear_cross_entropy(x, w, None, labels)[0].value

    assert (F, 50) not in set(arrays_of(jax.make_jaxpr(jax.grad(loss))(x).jaxpr))


@pytest.mark.usefixtures("chunks")
def test_forward_mode_and_second_derivatives_are_those_of_the_logits():
    x, w, labels = X[0].astype(np.float32), W.astype(np.float32), LABELS[0]

    def ours(x, w):
        return linear_cross_entropy(x, w, None, labels)[0].value

    def theirs(x, w):
        return cross_entropy(x @ w, labels).value

    changes = jnp.cos(x), jnp.sin(w)
    np.testing.assert_allclose(
        jax.jvp(ours, (x, w), changes)[1], jax.jvp(theirs, (x, w), changes)[1], rtol=1e-4
    )
    np.testing.assert_allclose(jax.hessian(ours)(x, w), jax.hessian(theirs)(x, w), atol=1e-5)


@pytest.mark.usefixtures("chunks")
def test_members_of_a_vmap_have_their_own_loss_and_gradient():
    x, w, labels = jnp.asarray(X, jnp.float32), jnp.asarray(W, jnp.float32), jnp.asarray(LABELS)

    def loss(x, labels, mask):
        return linear_cross_entropy(x, w, None, labels, mask)[0].total

    mapped = jax.vmap(jax.value_and_grad(loss))(x, labels, jnp.asarray(MASK))
    for i in range(B):
        alone = jax.value_and_grad(loss)(x[i], labels[i], MASK[i])
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one[i], other, rtol=1e-5, atol=1e-6),  # noqa: B023
            mapped,
            alone,
        )


@pytest.mark.usefixtures("chunks")
def test_sixteen_bits_are_added_up_in_32():
    # In bfloat16 a sum of entropies, or of ones, stays where it is from 256 on.
    x, w = jnp.ones((2048, F), jnp.bfloat16), jnp.zeros((F, 2), jnp.bfloat16)

    def loss(x, w, bias):
        loss, hits = linear_cross_entropy(x, w, bias, jnp.zeros(2048, int))
        return loss.total, (loss.count, hits.total)

    (total, counts), (of_x, of_w, of_bias) = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(
        x, w, jnp.zeros(2, jnp.bfloat16)
    )
    assert (total.dtype, of_x.dtype, of_w.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    np.testing.assert_array_equal(of_bias.astype(np.float32), [-1024.0, 1024.0])
    np.testing.assert_allclose(total, 2048 * np.log(2), rtol=1e-5)
    np.testing.assert_array_equal(counts, 2048)
    np.testing.assert_array_equal(of_w.astype(np.float32), np.tile([-1024.0, 1024.0], (F, 1)))


@pytest.mark.usefixtures("chunks")
def test_the_gradient_of_a_bias_has_no_rounding_of_the_weights():
    # Features are whole numbers, so that products with weights of 16 bits are exact.
    w, bias, x = jnp.asarray(W, jnp.bfloat16), jnp.asarray(BIAS, jnp.float32), np.round(2 * X)
    expected = law(x, np.asarray(w, float), np.asarray(bias, float), LABELS, MASK * 1.0)[1][2]

    def loss(bias):
        return linear_cross_entropy(jnp.asarray(x, w.dtype), w, bias, LABELS, MASK)[0].total

    np.testing.assert_allclose(jax.grad(loss)(bias), expected, rtol=1e-4, atol=1e-5)


def test_inside_of_shard_map_every_device_has_the_loss_of_its_rows():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    x, w, labels = jnp.asarray(X, jnp.float32), jnp.asarray(W, jnp.float32), jnp.asarray(LABELS)

    def loss(x, w, labels):
        return jax.lax.psum(linear_cross_entropy(x, w, None, labels)[0].total, "data")

    rows, whole = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(loss, mesh=mesh, in_specs=(rows, whole, rows), out_specs=whole)
    found = jax.value_and_grad(mapped, (0, 1))(x, w, labels)
    alone = jax.value_and_grad(lambda x, w: cross_entropy(x @ w, labels).total, (0, 1))(x, w)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, alone)


def test_a_batch_of_no_rows_has_a_loss_of_0():
    loss, hits = linear_cross_entropy(
        jnp.ones((0, T, F)), jnp.ones((F, C)), None, np.ones((0, T), int)
    )
    assert (loss.total, loss.count, hits.total) == (0, 0, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": np.ones((2, F), int)}, "features must be floating"),
        ({"w": np.ones((F + 1, C))}, r"w must have shape \[F, C\]"),
        ({"w": np.ones((F, 0))}, r"w must have shape \[F, C\]"),
        (
            {"w": np.ones((F, 1)), "bias": np.ones(1)},
            r"w must be of 2 classes or more, got shape \(4, 1\): for one sigmoid unit give",
        ),
        ({"bias": np.ones(C + 1)}, r"bias must have shape \(7,\)"),
        ({"labels": np.ones(3, int)}, r"labels must have shape \(2,\) for features \(2, 4\)"),
        ({"labels": np.ones(2)}, "labels must be integers"),
        ({"weights": np.ones(3)}, r"weights must have shape \(2,\)"),
    ],
)
def test_bad_input_is_named(changes, message):
    good = {"features": np.ones((2, F)), "w": np.ones((F, C)), "bias": np.ones(C)}
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**{**good, "labels": np.zeros(2, int), **changes})


def sequence_to_sequence(**options):
    embedding = rnnjax.embedding(9, 6)
    return rnnjax.sequence_to_sequence(
        embedding,
        rnnjax.gru(4),
        embedding,
        rnnjax.attention_cell(rnnjax.gru(5), 4),
        start=2,
        **options,
    )


@pytest.mark.parametrize("options", [{}, {"head_size": 6, "tie": True}, {"dropout": 0.3}])
def test_a_translator_has_the_loss_of_its_logits(options):
    model = sequence_to_sequence(**options)
    params, key = model.init(jax.random.key(0)), jax.random.key(1)
    pair = jnp.array([[4, 5, 6], [7, 8, 0]]), [3, 2], jnp.array([[5, 6, 3], [7, 3, 0]]), [3, 2]
    mask = rnnjax.lengths_to_mask(jnp.array([3, 2]), 3)

    def ours(params):
        features, _ = model.features(params, *pair, key=key)
        return linear_cross_entropy(features, *model.head_weights(params), pair[2], mask)[0].value

    def theirs(params):
        return cross_entropy(model.apply(params, *pair, key=key)[0], pair[2], mask).value

    found, expected = (jax.value_and_grad(loss)(params) for loss in (ours, theirs))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected
    )


@pytest.mark.parametrize("tie", [False, True])
def test_a_language_model_has_the_loss_of_its_logits(tie):
    model = rnnjax.language_model(rnnjax.embedding(9, 5), rnnjax.lstm(5), tie=tie)
    params, tokens = model.init(jax.random.key(0)), jnp.array([[4, 5, 6], [7, 8, 0]])

    def ours(params):
        _, features = model.features(params, tokens)
        return linear_cross_entropy(features.dropped, *model.head_weights(params), tokens)[0].value

    def theirs(params):
        return cross_entropy(model.apply(params, tokens)[1], tokens).value

    found, expected = (jax.value_and_grad(loss)(params) for loss in (ours, theirs))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected
    )


def test_a_softmax_of_its_own_has_no_weights_of_a_linear_head():
    softmax = rnnjax.adaptive_softmax(5, 9, (3,))
    model = rnnjax.language_model(rnnjax.embedding(9, 5), rnnjax.lstm(5), softmax=softmax)
    with pytest.raises(ValueError, match="head_weights needs the linear head, got a softmax"):
        model.head_weights(model.init(jax.random.key(0)))
