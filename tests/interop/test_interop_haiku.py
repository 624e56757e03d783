"""Weights of live Haiku cores, in float64: values and gradients, both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop_cases import (
    CELLS,
    B,
    D,
    H,
    T,
    assert_close,
    assert_equal,
    draw_like,
    make_layer,
    normal,
    random_params,
    run,
    states,
)

import rnnjax
from rnnjax.interop import haiku as interop

pytestmark = pytest.mark.usefixtures("float64", "quick_compile")

hk = pytest.importorskip("haiku", reason="haiku is not installed: its weights are untested")

CASES = {
    "vanilla": (rnnjax.vanilla(H, jax.nn.relu), hk.VanillaRNN, "vanilla_rnn"),
    "lstm": (CELLS["lstm"], hk.LSTM, "lstm"),
    "gru_reset_before": (CELLS["gru_reset_before"], hk.GRU, "gru"),
}


def make(kind, num_layers, **options):
    """A Haiku transform of a stack, and the name of its modules in the form of our parameters."""
    _, make_core, name = CASES[kind]

    def apply(xs):
        core = hk.DeepRNN([make_core(H, **options) for _ in range(num_layers)])
        ys, final = hk.dynamic_unroll(core, xs, core.initial_state(B), time_major=False)
        return final, ys

    modules = tuple(name if i == 0 else f"{name}_{i}" for i in range(num_layers))
    transformed = hk.without_apply_rng(hk.transform(apply))
    return transformed, modules if num_layers > 1 else name


def draw_weights(transformed):
    shapes = jax.eval_shape(transformed.init, jax.random.key(0), jnp.ones((B, T, D)))
    return draw_like(shapes, seed=0, scale=0.5)


def haiku_gradients(kind, gradients, modules):
    """Ours under Haiku's names. Export is affine (the forget bias); gradients want its slope."""
    exported = interop.export_weights(kind, gradients, modules)
    zero = interop.export_weights(kind, jax.tree.map(np.zeros_like, gradients), modules)
    exported = jax.tree.map(np.subtract, exported, zero)
    for name in [name for name in exported if kind == "vanilla" and name.endswith("linear_1")]:
        exported[name]["b"] = exported[name.removesuffix("_1")]["b"]  # only the sum acts
    return exported


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("kind", CASES)
def test_imported_weights_give_the_values_and_gradients_of_haiku(kind, num_layers):
    transformed, modules = make(kind, num_layers)
    weights, xs = draw_weights(transformed), normal(1, B, T, D)
    layer = make_layer(CASES[kind][0], num_layers)
    (carry, ys), pullback = run(layer, interop.import_weights(kind, weights, modules), xs)
    arguments = jax.tree.map(jnp.asarray, (weights, xs))
    (final, haiku_ys), haiku_pullback = jax.vjp(jax.jit(transformed.apply), *arguments)
    assert_close((states(carry), ys), (states(final), haiku_ys))

    cotangents = draw_like((carry, ys), seed=2)
    d_params, d_xs = pullback(cotangents)
    d_final = jax.tree.unflatten(jax.tree.structure(final), states(cotangents[0]))
    d_weights, d_haiku_xs = haiku_pullback((d_final, cotangents[1]))
    assert_close(d_xs, d_haiku_xs, "gradient")
    assert_close(haiku_gradients(kind, d_params, modules), dict(d_weights), "gradient")


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("kind", CASES)
def test_exported_weights_have_the_names_and_values_of_haiku(kind, num_layers):
    transformed, modules = make(kind, num_layers)
    layer = make_layer(CASES[kind][0], num_layers)
    params = random_params(layer)
    weights = interop.export_weights(kind, params, modules)
    assert jax.tree.map(np.shape, weights) == jax.tree.map(np.shape, draw_weights(transformed))
    xs = jnp.asarray(normal(1, B, T, D))
    carry, ys = layer.apply(params, xs)
    final, haiku_ys = transformed.apply(weights, xs)
    assert_close((states(carry), ys), (states(final), haiku_ys))


def test_only_the_forget_bias_of_a_round_trip_is_rounded():
    params = random_params(make_layer(CELLS["lstm"]))
    back = interop.import_weights("lstm", interop.export_weights("lstm", params, "a"), "a")
    forget = slice(H, 2 * H)
    rounded = params.bias.copy()
    rounded[forget] = (rounded[forget] - 1) + 1
    assert_equal(back, params._replace(bias=rounded))
    np.testing.assert_allclose(rounded, params.bias, rtol=0, atol=np.finfo(np.float64).eps)


@pytest.mark.parametrize("kind", ["vanilla", "gru_reset_before"])
def test_round_trips_are_exact(kind):
    params = random_params(make_layer(CELLS[kind], 2, True))
    modules = (rnnjax.Directions("a/~/core", "b"), rnnjax.Directions("c", "d"))
    weights = interop.export_weights(kind, params, modules)
    assert_equal(interop.import_weights(kind, weights, modules), params)


def test_a_core_without_second_bias_is_taken():
    transformed, name = make("vanilla", 1, double_bias=False)
    weights = draw_weights(transformed)
    assert "b" not in weights["vanilla_rnn/linear_1"]
    params = interop.import_weights("vanilla", weights, name)
    np.testing.assert_array_equal(params.bias, weights["vanilla_rnn/linear"]["b"])


def test_cores_are_found_among_other_modules():
    transformed, modules = make("lstm", 2)
    weights = dict(draw_weights(transformed)) | {"linear": {"w": np.ones((2, 2))}}
    params = interop.import_weights("lstm", weights, modules)
    assert_equal(params[1], interop.import_weights("lstm", weights, "lstm_1"))


def test_names_in_another_form_than_the_parameters_are_refused():
    params = random_params(make_layer(CELLS["lstm"], 2))
    with pytest.raises(ValueError, match="modules must have one name for each cell of params"):
        interop.export_weights("lstm", params, "lstm")
    with pytest.raises(ValueError, match="a name of its own for each cell"):
        interop.export_weights("lstm", params, ("lstm", "lstm"))


def test_the_reset_after_form_is_refused():
    with pytest.raises(
        ValueError,
        match=r"one of .*gru_reset_before.* for Haiku, got 'gru': its GRU is rnnjax.gru",
    ):
        interop.export_weights("gru", random_params(make_layer(CELLS["gru"])), "gru")


@pytest.mark.parametrize("reverse", [False, True])
def test_a_reset_core_in_reverse_resets_one_step_away(reverse):
    """There a flag belongs to the step in the order of the loop, here to the first of a segment."""
    cell, make_core, _ = CASES["vanilla"]
    resets = np.array([[0, 0, 1, 0], [0, 1, 0, 1]], bool)
    xs = normal(1, 2, 4, D)

    def apply(xs, flags):
        core = hk.ResetCore(make_core(H))
        given = (jnp.asarray(xs), jnp.asarray(flags))
        start = core.initial_state(2)
        return hk.dynamic_unroll(core, given, start, time_major=False, reverse=reverse)[0]

    transformed = hk.without_apply_rng(hk.transform(apply))
    shapes = jax.eval_shape(transformed.init, jax.random.key(0), xs, resets)
    weights = draw_like(shapes, seed=0, scale=0.5)
    named = {key.replace("reset_core/~/", ""): part for key, part in weights.items()}
    params = interop.import_weights("vanilla", named, next(iter(named)).rsplit("/", 1)[0])
    layer = rnnjax.recurrent(cell, reverse=reverse)
    _, ys = layer.apply(params, jnp.asarray(xs), resets=resets)
    shifted = np.concatenate([resets[:, 1:], np.zeros((2, 1), bool)], axis=1)
    assert_close(ys, transformed.apply(weights, xs, shifted if reverse else resets))
    other = transformed.apply(weights, xs, resets if reverse else shifted)
    assert not np.allclose(ys, other)
