"""The softmax in clusters is the one of PyTorch, and a law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

H, V, CUTOFFS = 16, 60, [10, 30]
SOFTMAX = rnnjax.adaptive_softmax(H, V, CUTOFFS)
PARAMS = SOFTMAX.init(jax.random.key(0))
HS = jax.random.normal(jax.random.key(1), (4, 5, H))


def test_probabilities_sum_to_one():
    total = np.exp(np.asarray(SOFTMAX.log_probs(PARAMS, HS), np.float64)).sum(-1)
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)


def test_the_probability_of_a_target_is_that_among_all():
    rows = jnp.tile(HS[0, 0], (V, 1))
    found = jax.jit(SOFTMAX.log_prob)(PARAMS, rows, jnp.arange(V))
    np.testing.assert_allclose(found, jax.jit(SOFTMAX.log_probs)(PARAMS, HS[0, 0]), rtol=1e-5)


def test_rarer_words_are_read_from_fewer_numbers():
    for divisor, widths in ((4, [4, 1]), (2.5, [6, 2]), (100, [1, 1])):
        softmax = rnnjax.adaptive_softmax(H, V, CUTOFFS, divisor=divisor)
        clusters = jax.eval_shape(softmax.init, jax.random.key(0)).clusters
        assert [cluster.down.shape[1] for cluster in clusters] == widths


@pytest.mark.parametrize("target", [-1, V, V + 7])
def test_a_target_outside_the_vocabulary_is_nan(target):
    values = SOFTMAX.log_prob(PARAMS, HS[0, :2], jnp.array([target, 3]))
    assert np.isnan(values[0])
    assert np.isfinite(values[1])


def test_it_is_that_of_pytorch_with_its_weights():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(H, V, CUTOFFS, div_value=4.0, head_bias=True)
    array = lambda tensor: jnp.asarray(tensor.detach().numpy())  # noqa: E731
    clusters = [
        rnnjax.models.Cluster(array(down.weight).T, array(up.weight).T, jnp.zeros(up.out_features))
        for down, up in theirs.tail
    ]
    head = theirs.head
    params = rnnjax.models.AdaptiveSoftmaxParams(
        array(head.weight).T, array(head.bias), tuple(clusters)
    )
    rows = np.array(HS.reshape(-1, H))
    expected = theirs.log_prob(torch.tensor(rows)).detach().numpy()
    np.testing.assert_allclose(SOFTMAX.log_probs(params, rows), expected, rtol=1e-5, atol=1e-5)


def test_a_language_model_scores_with_it_what_all_its_logits_say():
    model = rnnjax.language_model(rnnjax.embedding(V, 8), rnnjax.gru(H), softmax=SOFTMAX)
    params = model.init(jax.random.key(3))
    tokens = jax.random.randint(jax.random.key(4), (3, 7), 0, V)
    targets = jnp.roll(tokens, -1, axis=1)
    carry, scores = model.score(params, (tokens, targets), lengths=[7, 3, 0])
    end, logits = model.apply(params, tokens, lengths=[7, 3, 0])
    every = jax.nn.log_softmax(logits, axis=-1)
    expected = np.take_along_axis(np.asarray(every), np.asarray(targets)[..., None], -1)[..., 0]
    expected[1, 3:] = expected[2] = 0  # masked
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(carry, end)


@pytest.mark.parametrize(
    ("cutoffs", "words"),
    [([], "cutoffs"), ([10, 10], "cutoffs"), ([60], "cutoffs"), ([0], "cutoffs")],
)
def test_cutoffs_that_do_not_grow_are_refused(cutoffs, words):
    with pytest.raises(ValueError, match=words):
        rnnjax.adaptive_softmax(H, V, cutoffs)


def test_other_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="divisor must be a finite number of at least 1"):
        rnnjax.adaptive_softmax(H, V, CUTOFFS, divisor=0.5)
    with pytest.raises(ValueError, match="softmax must be made for inputs of size 4"):
        rnnjax.language_model(rnnjax.embedding(V, 8), rnnjax.gru(4), softmax=SOFTMAX)
    with pytest.raises(ValueError, match="tie=True"):
        rnnjax.language_model(rnnjax.embedding(V, H), rnnjax.gru(H), softmax=SOFTMAX, tie=True)


def test_targets_of_few_bits_are_the_words_they_name():
    """1,000 words do not fit 8 bits."""
    softmax = rnnjax.adaptive_softmax(H, 1000, [300])
    params, hs = softmax.init(jax.random.key(0)), jnp.ones((3, H))
    targets = [1, 99, 127]
    expected = softmax.log_probs(params, hs)[jnp.arange(3), jnp.array(targets)]
    for given in (np.array(targets, np.int8), np.array(targets, np.uint8), targets):
        np.testing.assert_allclose(softmax.log_prob(params, hs, given), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="targets must be integers, got dtype float32"):
        softmax.log_prob(params, hs, jnp.ones(3))
    with pytest.raises(ValueError, match=r"targets must have shape \(3,\)"):
        softmax.log_prob(params, hs, [1, 2])


@pytest.mark.parametrize(
    ("words", "cutoffs", "message"),
    [
        (20, [6], r"params.w must have size 6 in the last axis, got shape \(4, 7\)"),
        (21, [5], r"params.clusters\[0\].w must have size 15 in the last axis, got shape"),
    ],
)
def test_parameters_of_other_clusters_are_refused(words, cutoffs, message):
    softmax = rnnjax.adaptive_softmax(4, 20, [5])
    params = rnnjax.adaptive_softmax(4, words, cutoffs).init(jax.random.key(0))
    for run in (softmax.log_probs, lambda p, hs: softmax.log_prob(p, hs, jnp.zeros(3, int))):
        with pytest.raises(ValueError, match=message):
            run(params, jnp.ones((3, 4)))


def test_a_cluster_of_another_width_is_named():
    softmax = rnnjax.adaptive_softmax(8, 20, [5])
    params = rnnjax.adaptive_softmax(8, 20, [5], divisor=2.0).init(jax.random.key(0))
    message = r"params.clusters\[0\].down must have shape \(8, 2\), got shape \(8, 4\)"
    with pytest.raises(ValueError, match=message):
        softmax.log_probs(params, jnp.ones((3, 8)))


@pytest.mark.parametrize("cutoffs", [10, "10", None, [10.0]])
def test_cutoffs_that_are_no_integers_are_refused(cutoffs):
    with pytest.raises(ValueError, match="cutoffs must be"):
        rnnjax.adaptive_softmax(H, 1000, cutoffs)
