"""Weights of live Flax nnx modules, in float64 on padded batches: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop_cases import (
    CELLS,
    LENGTHS,
    B,
    D,
    H,
    T,
    as_flax,
    assert_close,
    assert_equal,
    at_valid_steps,
    draw_like,
    make_layer,
    normal,
    random_params,
    run,
    states,
)

from rnnjax import GRUParams
from rnnjax.interop import nnx as interop

pytestmark = pytest.mark.usefixtures("float64_of_others", "quick_compile")

nnx = pytest.importorskip("flax.nnx", reason="flax is not installed: its weights are untested")

CASES = {
    "vanilla": nnx.SimpleCell,
    "lstm": nnx.LSTMCell,
    "optimized_lstm": nnx.OptimizedLSTMCell,
    "gru": nnx.GRUCell,
}


def make(kind, size, bidirectional):
    def one():
        options = {"dtype": jnp.float64, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
        return nnx.RNN(CASES[kind](size, H, **options), return_carry=True)

    return nnx.Bidirectional(one(), one(), return_carry=True) if bidirectional else one()


def get_weights(module):
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def set_weights(module, weights):
    state = nnx.state(module, nnx.Param)
    nnx.replace_by_pure_dict(state, weights)
    nnx.update(module, state)


def run_nnx(modules, weights, xs):
    """Outputs at real steps, and the final carries of all layers, as Flax gives them."""
    carries = []
    for module, layer in zip(modules, weights, strict=True):
        graph, state, rest = nnx.split(module, nnx.Param, ...)
        nnx.replace_by_pure_dict(state, layer)
        options = {"seq_lengths": jnp.asarray(LENGTHS), "rngs": nnx.Rngs(0)}
        carry, xs = nnx.merge(graph, state, rest)(xs, **options)
        xs = at_valid_steps(xs)
        carries.append(carry)
    return carries, xs


def without_hidden_bias(params):
    """The bias that a GRU of nnx does not have, set to zero."""

    def clear(cell):
        return cell._replace(hidden_bias=np.zeros(H)) if isinstance(cell, GRUParams) else cell

    return jax.tree.map(clear, params, is_leaf=lambda node: isinstance(node, GRUParams))


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "bidirectional"])
@pytest.mark.parametrize(
    ("kind", "num_layers"),
    [(k, n) for k in CASES for n in (1, 2) if (k, n) != ("optimized_lstm", 2)],
)
def test_imported_weights_give_the_values_and_gradients_of_nnx(kind, num_layers, bidirectional):
    sizes = [D, *[2 * H if bidirectional else H] * (num_layers - 1)]
    modules = [make(kind, size, bidirectional) for size in sizes]
    weights = [draw_like(get_weights(m), seed, 0.5) for seed, m in enumerate(modules)]
    xs = normal(5, B, T, D)
    params = interop.import_weights(kind, weights if num_layers > 1 else weights[0])
    layer = make_layer(CELLS[kind], num_layers, bidirectional)
    (carry, ys), pullback = run(layer, params, xs, LENGTHS)
    arguments = jax.tree.map(jnp.asarray, (weights, xs))
    theirs = jax.jit(lambda weights, xs: run_nnx(modules, weights, xs))
    (flax_carry, flax_ys), flax_pullback = jax.vjp(theirs, *arguments)
    assert_close((as_flax(carry), ys), (states(flax_carry), flax_ys))

    cotangents = draw_like((carry, ys), seed=6)
    d_params, d_xs = pullback(cotangents)
    flax_cotangents = jax.tree.unflatten(jax.tree.structure(flax_carry), as_flax(cotangents[0]))
    d_weights, d_flax_xs = flax_pullback((flax_cotangents, cotangents[1]))
    assert_close(d_xs, d_flax_xs, "gradient")
    d_params = without_hidden_bias(d_params if num_layers > 1 else (d_params,))
    assert_close(interop.export_weights(kind, d_params), d_weights, "gradient")


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "bidirectional"])
@pytest.mark.parametrize("kind", CASES)
def test_exported_weights_are_set_as_the_docstring_says(kind, bidirectional):
    module = make(kind, D, bidirectional)
    params = without_hidden_bias(random_params(make_layer(CELLS[kind], 1, bidirectional)))
    weights = interop.export_weights(kind, params)
    before = get_weights(module)
    set_weights(module, weights)
    assert jax.tree.map(jnp.shape, before) == jax.tree.map(jnp.shape, weights)
    assert_equal(interop.import_weights(kind, get_weights(module)), params)


def test_a_gru_with_a_hidden_bias_is_refused():
    params = random_params(make_layer(CELLS["gru"], 2, True))
    with pytest.raises(
        ValueError, match=r"params\[1\]\.backward: hidden_bias must be zero, as nnx has no weights"
    ):
        interop.export_weights("gru", params)
