"""Weights of live Flax linen modules, in float64 on padded batches: values and gradients."""

import jax
import jax.numpy as jnp
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

from rnnjax.interop import linen as interop

pytestmark = pytest.mark.usefixtures("float64_of_others", "quick_compile")

nn = pytest.importorskip("flax.linen", reason="flax is not installed: its weights are untested")

CASES = {
    "SimpleCell": ("vanilla", nn.SimpleCell),
    "LSTMCell": ("lstm", nn.LSTMCell),
    "OptimizedLSTMCell": ("lstm", nn.OptimizedLSTMCell),
    "GRUCell": ("gru", nn.GRUCell),
    "MGUCell": ("minimal_gated", nn.MGUCell),
}


def make(make_cell, bidirectional):
    def one():
        return nn.RNN(make_cell(H, param_dtype=jnp.float64), return_carry=True)

    return nn.Bidirectional(one(), one(), return_carry=True) if bidirectional else one()


def run_linen(module, weights, xs):
    """Outputs at real steps, and the final carries of all layers, as Flax gives them."""
    carries = []
    for layer in weights:
        carry, xs = module.apply({"params": layer}, xs, seq_lengths=jnp.asarray(LENGTHS))
        xs = at_valid_steps(xs)
        carries.append(carry)
    return carries, xs


def draw_weights(module, num_layers):
    """Weights for every layer, no bias zero."""
    weights, size = [], D
    for layer in range(num_layers):
        xs = jnp.ones((B, T, size))
        shapes = jax.eval_shape(module.init, jax.random.key(0), xs)["params"]
        weights.append(draw_like(shapes, seed=layer, scale=0.5))
        size = jax.eval_shape(module.apply, {"params": shapes}, xs)[1].shape[-1]
    return weights


ONE_LAYER = {"OptimizedLSTMCell", "MGUCell"}  # whose trees are those of LSTMCell and GRUCell


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "bidirectional"])
@pytest.mark.parametrize(
    ("case", "num_layers"), [(c, n) for c in CASES for n in (1, 2) if n == 1 or c not in ONE_LAYER]
)
def test_imported_weights_give_the_values_and_gradients_of_linen(case, num_layers, bidirectional):
    kind, make_cell = CASES[case]
    module = make(make_cell, bidirectional)
    weights, xs = draw_weights(module, num_layers), normal(5, B, T, D)
    params = interop.import_weights(kind, weights if num_layers > 1 else weights[0])
    layer = make_layer(CELLS[kind], num_layers, bidirectional)
    (carry, ys), pullback = run(layer, params, xs, LENGTHS)
    arguments = jax.tree.map(jnp.asarray, (weights, xs))
    theirs = jax.jit(lambda weights, xs: run_linen(module, weights, xs))
    (flax_carry, flax_ys), flax_pullback = jax.vjp(theirs, *arguments)
    assert_close((as_flax(carry), ys), (states(flax_carry), flax_ys))

    cotangents = draw_like((carry, ys), seed=6)
    d_params, d_xs = pullback(cotangents)
    flax_cotangents = jax.tree.unflatten(jax.tree.structure(flax_carry), as_flax(cotangents[0]))
    d_weights, d_flax_xs = flax_pullback((flax_cotangents, cotangents[1]))
    assert_close(d_xs, d_flax_xs, "gradient")
    d_params = d_params if num_layers > 1 else (d_params,)
    assert_close(interop.export_weights(kind, d_params), d_weights, "gradient")


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "bidirectional"])
@pytest.mark.parametrize("case", CASES)
def test_exported_weights_are_the_tree_that_the_module_has(case, bidirectional):
    kind, make_cell = CASES[case]
    module = make(make_cell, bidirectional)
    params = random_params(make_layer(CELLS[kind], 1, bidirectional))
    weights = interop.export_weights(kind, params)
    made = draw_weights(module, 1)[0]
    assert jax.tree.map(jnp.shape, weights) == jax.tree.map(jnp.shape, made)
    assert_equal(interop.import_weights(kind, weights), params)


def test_the_weights_of_a_bare_cell_are_taken_too():
    cell = nn.GRUCell(H, param_dtype=jnp.float64)
    carry, x = jnp.zeros((B, H)), jnp.asarray(normal(0, B, D))
    weights = cell.init(jax.random.key(0), carry, x)
    params = interop.import_weights("gru", weights["params"])
    _, ys = make_layer(CELLS["gru"]).apply(params, x[:, None])
    assert_close(ys[:, 0], cell.apply(weights, carry, x)[1])


def test_the_minimal_gated_unit_without_reset_gate_is_refused():
    cell = nn.MGUCell(H, reset_gate=False)
    weights = cell.init(jax.random.key(0), jnp.zeros((B, H)), jnp.ones((B, D)))["params"]
    with pytest.raises(ValueError, match=r"hn/bias must have shape .*, got nothing"):
        interop.import_weights("minimal_gated", weights)


def test_parameters_with_names_of_their_axes_are_read():
    split = nn.with_partitioning(nn.initializers.lecun_normal(), ("rows", "columns"))
    module = nn.RNN(nn.LSTMCell(H, kernel_init=split, param_dtype=jnp.float64))
    boxed = module.init(jax.random.key(0), jnp.ones((B, T, D)))["params"]
    assert_equal(
        interop.import_weights("lstm", boxed), interop.import_weights("lstm", nn.unbox(boxed))
    )
