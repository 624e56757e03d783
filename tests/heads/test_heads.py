"""Heads are the densities of SciPy in float64, draw by them, and never read a masked step."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import rnnjax
from rnnjax.heads import GaussianMixture

pytestmark = pytest.mark.usefixtures("quick_compile")

B, T, H = 2, 3, 4
PEN = rnnjax.joint_head(rnnjax.gaussian_mixture_head(2, 2), rnnjax.bernoulli_head(1))
HEADS = {
    "bernoulli": rnnjax.bernoulli_head(5),
    "categorical": rnnjax.categorical_head(5),
    "mixture": rnnjax.gaussian_mixture_head(3),
    "bivariate": rnnjax.gaussian_mixture_head(3, 2),
    "quantile": rnnjax.quantile_head((0.1, 0.5, 0.9), 2),
    "joint": PEN,
}
EVERY_HEAD = pytest.mark.parametrize("name", HEADS)


def problem(name, dtype="float64"):
    """A head with parameters, outputs of a layer [B, T, H], and values for them."""
    head, rng = HEADS[name], np.random.default_rng(0)
    params = head.init(jax.random.key(0), H)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), dtype), params)
    values = {
        "bernoulli": rng.integers(0, 2, (B, T, 5)).astype(dtype),
        "categorical": rng.integers(0, 5, (B, T)),
        "joint": np.concatenate([rng.normal(size=(B, T, 2)), rng.integers(0, 2, (B, T, 1))], -1),
    }.get(name, rng.normal(size=(B, T, *head.value_shape)))
    return head, params, rng.normal(size=(B, T, H)), values


def mixture_log_prob(outputs, value, count, size, floor=1e-3):
    """Of one value, by SciPy's multivariate normal, from the outputs in the order of the paper."""
    split = np.split(outputs, np.cumsum([count, count * size, count * size]))
    means, raw = (part.reshape(count, size) for part in split[1:3])
    scales = np.exp(raw) + floor
    correlations = np.tanh(split[3]) if size == 2 else np.zeros(count)
    logs = []
    for mean, scale, rho in zip(means, scales, correlations, strict=True):
        cov = np.diag(scale**2)
        if size == 2:
            cov[0, 1] = cov[1, 0] = rho * scale[0] * scale[1]
        logs.append(scipy.stats.multivariate_normal(mean, cov).logpdf(value))
    return scipy.special.logsumexp(scipy.special.log_softmax(split[0]) + np.array(logs))


def expected_log_prob(name, outputs, value):
    if name == "bernoulli":
        return scipy.stats.bernoulli(scipy.special.expit(outputs)).logpmf(value).sum()
    if name == "categorical":
        return scipy.special.log_softmax(outputs)[value]
    if name == "joint":
        pen = scipy.stats.bernoulli(scipy.special.expit(outputs[1])).logpmf(value[2])[0]
        return mixture_log_prob(outputs[0], value[:2], 2, 2) + pen
    return mixture_log_prob(outputs, value, 3, HEADS[name].value_shape[0])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", [n for n in HEADS if n != "quantile"])
def test_log_probabilities_are_those_of_scipy(name):
    head, params, hs, values = problem(name)
    found = head.log_prob(head.apply(params, hs), values)
    parts = params if name == "joint" else (params,)
    for place in np.ndindex(B, T):
        outputs = [hs[place] @ np.asarray(p.w) + np.asarray(p.bias) for p in parts]
        outputs = outputs if name == "joint" else outputs[0]
        expected = expected_log_prob(name, outputs, values[place])
        np.testing.assert_allclose(found[place], expected, rtol=1e-10)
    total, count = head.loss(head.apply(params, hs), values)
    np.testing.assert_allclose(total, -np.sum(found), rtol=1e-12)
    assert int(count) == B * T


@pytest.mark.usefixtures("float64")
def test_a_density_of_two_numbers_is_1_over_the_plane_and_is_sharpened_by_its_equation():
    # Scales of 0.5 and more, far from the edges of the grid: the sum is then exact to 1e-9.
    outputs = np.concatenate([[0.3, -1], [0.5, -1, 1, 2], [0, -0.5, 0.2, 0.4], [0.6, -1.2]])
    head = rnnjax.gaussian_mixture_head(2, 2)
    identity = rnnjax.heads.HeadParams(jnp.eye(12), jnp.zeros(12))
    mixture, axis = head.apply(identity, outputs), np.arange(-16, 16, 0.2)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)

    def density(mixture):
        many = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(grid), *a.shape)), mixture)
        return np.exp(head.log_prob(many, grid))

    np.testing.assert_allclose(density(mixture).sum() * 0.04, 1, rtol=1e-9)
    sharp, b = mixture.sharpened(0.7), 0.7
    weights = scipy.special.softmax(outputs[:2]) ** (1 + b)
    expected = 0.0
    for m in range(2):
        scale = (np.exp(outputs[6 + 2 * m : 8 + 2 * m]) + 1e-3) * np.exp(-b)
        rho = np.tanh(outputs[10 + m]) * scale[0] * scale[1]
        normal = scipy.stats.multivariate_normal(
            outputs[2 + 2 * m : 4 + 2 * m], [[scale[0] ** 2, rho], [rho, scale[1] ** 2]]
        )
        expected += weights[m] / weights.sum() * normal.pdf(grid)
    np.testing.assert_allclose(density(sharp), expected, rtol=1e-9, atol=1e-300)


@pytest.mark.usefixtures("float64")
def test_the_loss_of_quantiles_is_the_pinball_loss_and_they_never_cross():
    head, params, hs, values = problem("quantile")
    quantiles = np.asarray(head.apply(params, hs))
    assert np.all(np.diff(quantiles) > 0)
    expected = 0.0
    for level, q in zip((0.1, 0.5, 0.9), np.moveaxis(quantiles, -1, 0), strict=True):
        expected += np.where(values > q, level * (values - q), (1 - level) * (q - values)).sum() / 3
    total, count = head.loss(quantiles, values)
    np.testing.assert_allclose(total, expected, rtol=1e-12)
    assert int(count) == B * T
    with pytest.raises(ValueError, match="log_prob needs a density, and quantile_head has none"):
        head.log_prob(quantiles, values)


@pytest.mark.usefixtures("float64")
def test_a_missing_number_of_a_horizon_is_left_out_and_the_others_count():
    head, _, _, _ = problem("quantile")
    rng = np.random.default_rng(3)
    quantiles, values = np.sort(rng.normal(size=(B, T, 2, 3))), rng.normal(size=(B, T, 2))
    there = np.array([[[1, 1], [1, 0], [0, 0]], [[0, 1], [1, 1], [0, 0]]], bool)
    wild = np.where(there, values, np.nan)
    total, count = jax.jit(head.loss)(quantiles, wild, there)
    expected = 0.0
    for b, t, d in np.argwhere(there):
        for level, q in zip((0.1, 0.5, 0.9), quantiles[b, t, d], strict=True):
            e = values[b, t, d] - q
            expected += max(level * e, (level - 1) * e) / 3
    np.testing.assert_allclose(total, expected, rtol=1e-12)
    assert int(count) == 4  # steps with one number or more
    spoilt = np.where(there[..., None], quantiles, np.nan)
    grad = jax.grad(lambda q: head.loss(q, wild, there)[0])(spoilt)
    assert np.all(np.isfinite(grad))
    np.testing.assert_array_equal(np.any(grad != 0, axis=-1), there)
    # A mask of steps, told number by number, is the same.
    steps = there[..., 0]
    by_step, by_number = (
        head.loss(quantiles, values, mask)
        for mask in (steps, np.broadcast_to(steps[..., None], values.shape))
    )
    np.testing.assert_array_equal(by_step, by_number)


@pytest.mark.usefixtures("float64")
@EVERY_HEAD
def test_a_masked_step_is_never_read(name):
    head, params, hs, values = problem(name)
    mask = np.array([[True, False, True], [False, False, True]])
    wild = np.where(mask[..., None], hs, np.nan)
    spoilt = values if name == "categorical" else np.where(mask[..., None], values, np.nan)
    spoilt = np.where(mask, values, -7) if name == "categorical" else spoilt

    @jax.jit
    def loss(hs, values, mask):
        # As a layer has them: zeros at masked steps.
        d = head.apply(params, hs if mask is None else jnp.where(mask[..., None], hs, 0))
        return head.loss(d, values, mask)

    total, count = loss(wild, spoilt, mask)
    expected, _ = loss(hs[mask], values[mask], None)
    np.testing.assert_allclose(total, expected, rtol=1e-12)
    assert int(count) == 3
    # Also where distributions are NaN themselves.
    grads = jax.jit(jax.grad(lambda d: head.loss(d, spoilt, mask)[0]))(head.apply(params, wild))
    for leaf in jax.tree.leaves(grads):
        assert not np.any(leaf[~mask])
        assert np.all(np.isfinite(leaf))


@EVERY_HEAD
def test_extreme_outputs_have_finite_losses_and_gradients(name):
    head, params, _, values = problem(name, "float32")
    run = jax.jit(jax.value_and_grad(lambda p, hs: head.loss(head.apply(p, hs), values)[0]))
    for size in (1e4, -1e4):
        loss, grads = run(params, jnp.full((B, T, H), size, jnp.float32))
        assert np.isfinite(loss)
        assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(grads))


def test_bernoulli_keeps_its_digits_where_it_is_almost_sure():
    found = HEADS["bernoulli"].log_prob(jnp.full(5, 20.0), np.ones(5))
    np.testing.assert_allclose(found, -5 * np.log1p(np.exp(-20.0)), rtol=1e-6)


def test_a_correlation_near_one_keeps_its_digits():
    """The second number all but follows from the first; 1 - rho^2 is 2e-5 here."""
    rho, values = np.tanh(6.0), np.array([0.7, 0.7002])
    mixture = GaussianMixture(*(np.array(a, "float32") for a in ([0], [[0, 0]], [[0, 0]], [6])))
    found = rnnjax.gaussian_mixture_head(1, 2).log_prob(mixture, values)
    z1, z2 = np.float32(values).astype(float)
    expected = -np.log(2 * np.pi) + np.log(np.cosh(6.0)) - z1**2 / 2
    expected -= (z2 - rho * z1) ** 2 / (1 - rho**2) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@EVERY_HEAD
def test_sixteen_bits_are_scored_in_thirty_two(name):
    head, params, hs, values = problem(name, "bfloat16")
    hs, kind = jnp.asarray(hs, "bfloat16"), "int8" if name == "categorical" else "bfloat16"
    values = jnp.asarray(values, kind)
    found, _ = head.loss(head.apply(params, hs), values)
    assert found.dtype == jnp.float32
    wide = jax.tree.map(lambda a: a.astype("float32"), (params, hs))
    values = values.astype("int32" if name == "categorical" else "float32")
    expected, _ = head.loss(head.apply(*wide), values)
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def draws(head, distribution, count=40_000):
    """So many of one distribution."""
    many = jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *np.shape(a))), distribution)
    return np.asarray(head.sample(jax.random.key(5), many))


def test_draws_of_bernoulli_and_categorical_come_as_often_as_they_say():
    logits = np.array([0.3, -1.0, 2.0])
    p = scipy.special.expit(logits)
    found = draws(rnnjax.bernoulli_head(3), jnp.asarray(logits))
    patterns = np.stack(np.indices((2, 2, 2)), -1).reshape(-1, 3)
    law = np.prod(np.where(patterns, p, 1 - p), axis=1)
    counts = np.bincount((found @ [4, 2, 1]).astype(int), minlength=8)
    assert scipy.stats.chisquare(counts, law * len(found)).pvalue > 1e-3

    found = draws(rnnjax.categorical_head(3), jnp.asarray(logits))
    law = scipy.special.softmax(logits)
    counts = np.bincount(found, minlength=3)
    assert scipy.stats.chisquare(counts, law * len(found)).pvalue > 1e-3


def test_a_value_that_is_almost_impossible_is_not_drawn():
    """Of probability 1.4e-11: not even with a key by which a uniform float32 is exactly 0."""
    head, key, logits = rnnjax.bernoulli_head(1), jax.random.key(46), jnp.full((1 << 16, 1), -25.0)
    assert jnp.min(jax.random.uniform(key, logits.shape)) == 0
    assert not np.any(head.sample(key, logits))
    assert np.all(head.sample(key, -logits))


def test_the_rarer_of_two_values_comes_as_often_whichever_it_is():
    """At a logit of 17 it has 4e-8, but 1 less that is 1 in float32."""
    head, key = rnnjax.bernoulli_head(1), jax.random.key(3)
    logits = jnp.tile(jnp.array([[0.5], [2.0], [9.0], [17.0]]), (1 << 14, 1))
    found = head.sample(key, logits)
    assert 0 < np.mean(found) < 1
    np.testing.assert_array_equal(head.sample(key, -logits), 1 - found)


def test_draws_of_a_mixture_have_its_distribution_function():
    weights, means, scales = (
        np.array([0.2, 0.5, 0.3]),
        np.array([-2, 0, 3]),
        np.array([0.5, 1, 0.1]),
    )
    mixture = GaussianMixture(
        jnp.log(weights), means[:, None].astype("float32"), np.log(scales)[:, None], np.zeros(3)
    )
    found = draws(rnnjax.gaussian_mixture_head(3), mixture)[:, 0]

    def cdf(x):
        return scipy.stats.norm.cdf((x[:, None] - means) / scales) @ weights

    assert scipy.stats.kstest(found, cdf).pvalue > 1e-3


def test_draws_of_two_numbers_have_the_moments_of_the_mixture():
    weights, rho = np.array([0.3, 0.7]), np.array([0.9, -0.5])
    means, scales = np.array([[-1.0, 2.0], [1.0, 0.0]]), np.array([[0.5, 1.0], [1.0, 0.3]])
    mixture = GaussianMixture(jnp.log(weights), means, np.log(scales), np.arctanh(rho))
    found = draws(rnnjax.gaussian_mixture_head(2, 2), mixture)
    mean = weights @ means
    second = np.zeros((2, 2))
    for w, m, s, r in zip(weights, means, scales, rho, strict=True):
        second += w * (np.array([[s[0] ** 2, r * s[0] * s[1]], [r * s[0] * s[1], s[1] ** 2]]))
        second += w * np.outer(m, m)
    products = found[:, :, None] * found[:, None, :]
    for seen, expected in ((found, mean), (products, second)):
        error = seen.std(0) / np.sqrt(len(found))
        assert np.all(np.abs(seen.mean(0) - expected) < 4 * error)


def test_draws_of_quantiles_fall_below_each_as_often_as_its_level():
    quantiles = jnp.array([[-1.0, 0.5, 4.0]])
    found = draws(rnnjax.quantile_head((0.1, 0.5, 0.9)), quantiles)[:, 0]
    assert scipy.stats.binomtest(int((found < 0.5).sum()), len(found), 0.5).pvalue > 1e-3
    # Without tails the first and the last quantile themselves are drawn.
    assert scipy.stats.binomtest(int((found <= -1).sum()), len(found), 0.1).pvalue > 1e-3
    assert scipy.stats.binomtest(int((found >= 4).sum()), len(found), 0.1).pvalue > 1e-3
    inside = found[(found > -1) & (found < 0.5)]
    assert scipy.stats.kstest(inside, scipy.stats.uniform(-1, 1.5).cdf).pvalue > 1e-3


def test_draws_of_joined_heads_are_those_of_its_parts():
    mixture = GaussianMixture(*(jnp.array(a) for a in ([0.0], [[5.0, -5.0]], [[0.0, 0.0]], [0.0])))
    found = draws(PEN, (mixture, jnp.array([1.0])), 10_000)
    np.testing.assert_allclose(found.mean(0), [5, -5, scipy.special.expit(1.0)], atol=0.04)
    assert set(found[:, 2]) == {0.0, 1.0}


BAD = {
    "size must be a positive integer, got 0": lambda: rnnjax.bernoulli_head(0),
    "num_classes must be a positive integer, got 2.5": lambda: rnnjax.categorical_head(2.5),
    "size must be 1 or 2, got 3": lambda: rnnjax.gaussian_mixture_head(2, 3),
    "min_scale must be positive and finite, got 0": lambda: rnnjax.gaussian_mixture_head(
        2, min_scale=0
    ),
    "levels must be one or more, rising, got 0.5": lambda: rnnjax.quantile_head(0.5),
    "levels must be one or more, rising, got (0.5, 0.5)": lambda: rnnjax.quantile_head((0.5, 0.5)),
    "a level must be a number in (0, 1), got 1.0": lambda: rnnjax.quantile_head((0.1, 1.0)),
    "joint_head needs at least one head, got none": lambda: rnnjax.joint_head(),
    "heads must be of vectors [..., D], got ": lambda: rnnjax.joint_head(
        rnnjax.categorical_head(3)
    ),
    "values must have shape [..., 5], got shape (2, 3, 4)": lambda: HEADS["bernoulli"].log_prob(
        np.zeros((2, 3, 5)), np.zeros((2, 3, 4))
    ),
    "values must have shape (2, 3, 5), one value for each distribution, got shape (2, 5)": lambda: (
        HEADS["bernoulli"].log_prob(np.zeros((2, 3, 5)), np.zeros((2, 5)))
    ),
    "values must be integers": lambda: HEADS["categorical"].log_prob(np.zeros(5), np.array(1.0)),
    "values must lie in [0, 5), got 5 at index (1,)": lambda: HEADS["categorical"].encode([0, 5]),
    "values must lie in [0, 5), got -1 at index (0,)": lambda: HEADS["categorical"].encode([-1]),
    "values must be integers, got dtype float64": lambda: HEADS["categorical"].encode([1.5]),
    "values must be an array of numbers, got str": lambda: HEADS["bernoulli"].encode("10100"),
    "values must be one array, got rows of unequal size": lambda: HEADS["mixture"].log_prob(
        np.zeros((2, 3)), [[1.0], []]
    ),
    "hs must be an array of numbers, got str": lambda: HEADS["bernoulli"].apply(
        HEADS["bernoulli"].init(jax.random.key(0), 4), "hs"
    ),
    "mask must be bool and have shape (2,), got int32": lambda: HEADS["bernoulli"].log_prob(
        np.zeros((2, 5)), np.zeros((2, 5)), np.ones(2, "int32")
    ),
    "mask must be bool and have shape (4,) or (4, 2), got bool of shape (4, 3)": lambda: HEADS[
        "quantile"
    ].loss(np.zeros((4, 2, 3)), np.zeros((4, 2)), np.ones((4, 3), bool)),
    "mask must be bool and have shape (2,), got bool of shape (2, 5)": lambda: HEADS[
        "bernoulli"
    ].loss(np.zeros((2, 5)), np.zeros((2, 5)), np.ones((2, 5), bool)),
    "distribution must have arrays of shape [..., 5], as the head gives, got": lambda: HEADS[
        "bernoulli"
    ].log_prob(np.zeros((2, 1)), np.zeros((2, 5))),
    "distribution must be GaussianMixture(logits, mean, log_scale, angle), got an array": lambda: (
        HEADS["mixture"].loss(np.zeros((2, 3)), np.zeros((2, 1)))
    ),
    "params must be a tuple of 2, one entry a head, got None": lambda: PEN.apply(
        None, jnp.zeros((2, 4))
    ),
    "distribution must be a tuple of 2, one entry a head, got a tuple of 1": lambda: PEN.sample(
        jax.random.key(0), (np.zeros((2, 1)),)
    ),
    "mask must be an array of numbers, got str": lambda: HEADS["bernoulli"].loss(
        np.zeros((2, 5)), np.zeros((2, 5)), "ab"
    ),
    "the weights of the head must have shape (4, 5), got shape (4, 3)": lambda: HEADS[
        "bernoulli"
    ].apply(rnnjax.bernoulli_head(3).init(jax.random.key(0), 4), jnp.zeros((2, 4))),
    "hs must have size 4 in the last axis": lambda: HEADS["bernoulli"].apply(
        HEADS["bernoulli"].init(jax.random.key(0), 4), jnp.zeros((2, 3))
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_named(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        BAD[message]()


def test_equal_heads_of_a_joint_one_draw_apart():
    head = rnnjax.joint_head(*[rnnjax.gaussian_mixture_head(1)] * 2)
    one = head.apply(head.init(jax.random.key(0), 3), jnp.zeros((300, 3)))
    drawn = head.sample(jax.random.key(1), one)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.3


def test_no_scale_is_below_the_least_and_components_start_apart():
    head = rnnjax.gaussian_mixture_head(3, min_scale=0.05)
    params = head.init(jax.random.key(0), 2)
    np.testing.assert_allclose(params.bias[3:6], [-1, 0, 1])
    low = params._replace(w=0 * params.w, bias=0 * params.bias - 99)
    np.testing.assert_allclose(
        jnp.exp(head.apply(low, jnp.zeros((1, 2))).log_scale), 0.05, rtol=1e-5
    )


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
def test_the_loss_of_a_distribution_of_16_bits_is_summed_in_32(name):
    """Of 400 numbers, whose sum in bfloat16 is a multiple of 8 where it is above 1,024."""
    head, rng = HEADS[name], np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(400, 5)), jnp.bfloat16)
    values = rng.integers(0, 2, (400, 5)).astype("float32") if name == "bernoulli" else None
    values = rng.integers(0, 5, 400) if values is None else values
    wide = np.asarray(logits, np.float64)
    if name == "bernoulli":
        expected = -(values * scipy.special.log_expit(wide)).sum()
        expected -= ((1 - values) * scipy.special.log_expit(-wide)).sum()
    else:
        expected = -scipy.special.log_softmax(wide, -1)[np.arange(400), values].sum()
    total, count = head.loss(logits, values)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert (total.dtype, count) == (jnp.float32, 400)
