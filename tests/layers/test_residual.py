"""Residual and skip connections against the same sums and joins written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import MASK, RESETS, B, D, H, T, ragged
from jax.flatten_util import ravel_pytree

import rnnjax
from rnnjax.layers import residual, skip_stack
from rnnjax.transforms import variational_dropout

pytestmark = pytest.mark.usefixtures("float64", "quick_compile")

EXACT = {"rtol": 1e-12, "atol": 1e-12}
OPTIONS = {"lengths": np.array([4, 3, 2]), "mask": MASK, "resets": RESETS}
VALID = MASK & (np.arange(T) < OPTIONS["lengths"][:, None])
KEY = jax.random.key(3)


def weigh(tree):
    """A loss that feels every element differently."""
    flat = ravel_pytree(tree)[0]
    return flat @ jnp.cos(jnp.arange(flat.size, dtype=flat.dtype))


def init(layer, size=D):
    params = layer.init(jax.random.key(0), size)
    return jax.tree.map(lambda a: a.astype(jnp.float64), params)


def check_value_and_gradient(layer, by_hand, params, size=D, key=None):
    """Both agree on clean inputs; with NaN in the padding the layer gives what it gave before."""
    xs = jax.random.normal(jax.random.key(5), (B, T, size))

    def everything(apply, xs):
        def loss(params, xs):
            results = apply(params, xs, **OPTIONS, key=key)
            return weigh(results), results

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, xs)

    clean = jnp.where(VALID[..., None], xs, 0)
    expected = everything(by_hand, clean)
    results = everything(layer.apply, jnp.where(VALID[..., None], xs, jnp.nan))
    for a, e in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, **EXACT)
    (_, (_, ys)), (_, d_xs) = results
    assert np.all(ys[~VALID] == 0)
    assert np.all(d_xs[~VALID] == 0)


@pytest.mark.parametrize(
    "inner",
    [
        rnnjax.recurrent(rnnjax.lstm(H), reverse=True),
        rnnjax.bidirectional(variational_dropout(rnnjax.gru(H // 2), inputs=0.4)),
    ],
)
def test_a_residual_layer_adds_its_input(inner):
    def by_hand(params, xs, **options):
        carry, ys = inner.apply(params, xs, **options)
        return carry, ys + jnp.where(VALID[..., None], xs, 0)

    layer = residual(inner)
    check_value_and_gradient(layer, by_hand, init(layer, H), size=H, key=KEY)


def test_a_stack_of_residual_layers_is_their_sums():
    first, second, third = rnnjax.gru(H), rnnjax.lstm(H), rnnjax.bidirectional(rnnjax.vanilla(2))

    def by_hand(params, xs, **options):
        layers = (rnnjax.recurrent(first), rnnjax.recurrent(second), third)
        results = []
        for layer, p in zip(layers, params, strict=True):
            carry, ys = layer.apply(p, xs, **options)
            xs = xs + ys if results else ys
            results.append(carry)
        return tuple(results), xs

    layer = rnnjax.stack(first, residual(second), residual(third))
    check_value_and_gradient(layer, by_hand, init(layer))


def test_a_skip_stack_joins_the_input_below_and_all_outputs_above():
    cells = rnnjax.gru(H), rnnjax.lstm(2), rnnjax.vanilla(3)

    def by_hand(params, xs, **options):
        first, h1 = rnnjax.unroll(cells[0], params[0], xs, **options)
        second, h2 = rnnjax.unroll(cells[1], params[1], jnp.concatenate([xs, h1], -1), **options)
        third, h3 = rnnjax.unroll(cells[2], params[2], jnp.concatenate([xs, h2], -1), **options)
        return (first, second, third), jnp.concatenate([h1, h2, h3], -1)

    layer = skip_stack(*cells)
    assert layer.output_size == H + 2 + 3
    check_value_and_gradient(layer, by_hand, init(layer))


def test_haiku_builds_the_same_skip_stack():
    haiku = pytest.importorskip("haiku")
    layer = skip_stack(*(rnnjax.vanilla(H, jax.nn.relu) for _ in range(3)))
    params, xs = init(layer), ragged("plain").xs

    def run(xs):
        core = haiku.deep_rnn_with_skip_connections([haiku.VanillaRNN(H) for _ in range(3)])
        return haiku.dynamic_unroll(core, xs, core.initial_state(B), time_major=False)

    transformed = haiku.without_apply_rng(haiku.transform(run))
    theirs = {}
    for index, name in enumerate(["vanilla_rnn", "vanilla_rnn_1", "vanilla_rnn_2"]):
        p = params[index]._replace(bias=jnp.arange(1.0, H + 1) / H)
        theirs[f"{name}/linear"] = {"w": p.w_ih, "b": p.bias}
        theirs[f"{name}/linear_1"] = {"w": p.w_hh, "b": jnp.zeros(H)}
        params = (*params[:index], p, *params[index + 1 :])
    with jax.numpy_rank_promotion("allow"):  # Haiku adds its biases so
        ys, carry = transformed.apply(theirs, xs)
    ours = layer.apply(params, xs)
    np.testing.assert_allclose(ours[1], ys, **EXACT)
    np.testing.assert_allclose(ours[0], carry, **EXACT)


def test_the_last_output_is_taken_part_by_part():
    layer = skip_stack(rnnjax.recurrent(rnnjax.gru(2), reverse=True), rnnjax.lstm(H))
    params, batch = init(layer), ragged("lengths")
    carry, ys = layer.apply(params, batch.xs, **batch.options)
    last = layer.last(ys, batch.valid)
    np.testing.assert_allclose(last, np.concatenate([carry[0], carry[1].h], -1), **EXACT)

    layer = residual(rnnjax.bidirectional(rnnjax.gru(2)))
    params, xs = init(layer, H), jnp.ones((B, T, H))
    carry, ys = layer.apply(params, xs, **batch.options)
    expected = 1 + np.concatenate([carry.forward, carry.backward], -1)
    np.testing.assert_allclose(layer.last(ys, batch.valid)[:2], expected[:2], **EXACT)
    assert np.all(layer.last(ys, batch.valid)[2] == 0)


def test_an_initial_carry_goes_to_each_layer():
    layer = skip_stack(rnnjax.gru(2), rnnjax.vanilla(H))
    params, xs = init(layer), jnp.ones((B, T, D))
    start = jnp.full((B, 2), 0.5), jnp.full((B, H), -0.5)
    carry, _ = layer.apply(params, xs, np.zeros(B, int), initial_carry=start)
    for ours, given in zip(carry, start, strict=True):
        np.testing.assert_array_equal(ours, given)
    half, _ = layer.apply(params, xs[:, :2], initial_carry=start)
    resumed, _ = layer.apply(params, xs[:, 2:], initial_carry=half)
    whole, _ = layer.apply(params, xs, initial_carry=start)
    for ours, expected in zip(resumed, whole, strict=True):
        np.testing.assert_allclose(ours, expected, **EXACT)


def test_a_classifier_takes_them_as_encoders():
    encoder = rnnjax.stack(rnnjax.gru(H), residual(skip_stack(rnnjax.gru(2), rnnjax.gru(2))))
    model = rnnjax.classifier(rnnjax.embedding(9, D), encoder, num_classes=2)
    params = model.init(jax.random.key(0))
    tokens, padded = jnp.array([[3, 4]]), jnp.array([[3, 4, 8, 8]])
    logits = model.apply(params, tokens)
    assert np.all(np.isfinite(logits))
    np.testing.assert_allclose(model.apply(params, padded, [2]), logits, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: residual(rnnjax.gru(H)).init(KEY, D), f"layer's output, {H}, got size {D}"),
        (lambda: residual("gru"), "a layer must be a rnnjax.Cell or a rnnjax.Layer, got str"),
        (lambda: residual([rnnjax.gru(H)]), r"got list: rnnjax.stack\(\*layers\) makes one layer"),
        (lambda: residual(rnnjax.gru), "got function: call it first"),
        (
            lambda: skip_stack(rnnjax.tagger(None, rnnjax.gru(4), 2)),
            "a layer must be a rnnjax.Cell or a rnnjax.Layer, got Model$",
        ),
        (lambda: skip_stack(), "skip_stack needs at least one layer"),
        (lambda: skip_stack(rnnjax.gru(2)).init(0, D), "key must be one key"),
        (
            lambda: skip_stack(rnnjax.gru(2)).apply((), jnp.ones((T, D)), initial_carry=0.0),
            "initial_carry must be a tuple of 1 parts",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_layers_that_skip_draw_noise_of_their_own():
    def drop_half(params, xs, lengths=None, *, key, **_):
        return (), jax.random.bernoulli(key, 0.5, (*xs.shape[:-1], 4)).astype(xs.dtype)

    half = rnnjax.Layer(lambda key, size: (), drop_half, 4, lambda ys, valid: ys[..., -1, :])
    _, ys = rnnjax.skip_stack(half, half).apply(((), ()), jnp.ones((50, 20, 3)), key=KEY)
    assert abs(np.mean(ys[..., :4] == ys[..., 4:]) - 0.5) < 0.05
