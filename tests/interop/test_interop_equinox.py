"""Weights of live Equinox cells, in float64 on ragged batches: values, gradients, both ways."""

import jax
import jax.numpy as jnp
import pytest
from interop_cases import (
    CELLS,
    LENGTHS,
    VALID,
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
)

import rnnjax
from rnnjax.interop import equinox as interop

pytestmark = pytest.mark.usefixtures("float64", "quick_compile")

eqx = pytest.importorskip("equinox", reason="equinox is not installed: its weights are untested")

CASES = {"lstm": eqx.nn.LSTMCell, "gru": eqx.nn.GRUCell}


def make(kind, num_layers, bidirectional, **options):
    """A tree of Equinox cells in the form of our parameters."""
    keys = iter(jax.random.split(jax.random.key(0), 4))
    sizes = [D, *[2 * H if bidirectional else H] * (num_layers - 1)]

    def cell(size):
        return CASES[kind](size, H, dtype=jnp.float64, key=next(keys), **options)

    layers = [rnnjax.Directions(cell(d), cell(d)) if bidirectional else cell(d) for d in sizes]
    return tuple(layers) if num_layers > 1 else layers[0]


def run_cell(cell, xs, length, reverse):
    """One sequence with an Equinox cell: its final state and its outputs, zero where padded."""
    zeros = jnp.zeros(H)

    def step(state, inputs):
        x, real = inputs
        new = cell(x, state)
        state = jax.tree.map(lambda a, b: jnp.where(real, a, b), new, state)
        y = state[0] if isinstance(state, tuple) else state
        return state, jnp.where(real, y, 0)

    start = (zeros, zeros) if isinstance(cell, eqx.nn.LSTMCell) else zeros
    return jax.lax.scan(step, start, (xs, jnp.arange(T) < length), reverse=reverse)


def run_equinox(cells, xs):
    """``(carry, ys)`` of the tree of cells, in the form of ours."""
    if type(cells) is tuple:
        carries = []
        for layer in cells:
            carry, xs = run_equinox(layer, xs)
            carries.append(carry)
        return tuple(carries), xs
    batched = jax.vmap(run_cell, in_axes=(None, 0, 0, None))
    if not isinstance(cells, rnnjax.Directions):
        state, ys = batched(cells, xs, LENGTHS, False)
        return (rnnjax.LSTMCarry(*state) if isinstance(state, tuple) else state), ys
    (ahead, forward), (back, backward) = (
        batched(cell, xs, LENGTHS, reverse)
        for cell, reverse in zip(cells, (False, True), strict=True)
    )
    carry = rnnjax.Directions(ahead, back)
    if isinstance(ahead, tuple):
        carry = rnnjax.Directions(rnnjax.LSTMCarry(*ahead), rnnjax.LSTMCarry(*back))
    return carry, jnp.concatenate([forward, backward], axis=-1)


def weights_of(cells):
    """The arrays of a tree of Equinox cells by name, as `export_weights` gives them."""
    is_cell = {"is_leaf": lambda node: isinstance(node, eqx.Module)}
    names = ("weight_ih", "weight_hh", "bias", "bias_n")
    return jax.tree.map(
        lambda cell: {n: a for n in names if (a := getattr(cell, n, None)) is not None},
        cells,
        **is_cell,
    )


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "bidirectional"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("kind", CASES)
def test_imported_weights_give_the_values_and_gradients_of_equinox(kind, num_layers, bidirectional):
    cells = make(kind, num_layers, bidirectional)
    layer = make_layer(CELLS[kind], num_layers, bidirectional)
    xs = normal(0, B, T, D)
    got, pullback = run(layer, interop.import_weights(kind, cells), xs, LENGTHS)
    expected, equinox_pullback = jax.vjp(jax.jit(run_equinox), cells, jnp.asarray(xs))
    assert_close(got, expected)
    cotangents = draw_like(got, seed=1)
    d_params, d_xs = pullback(cotangents)
    d_cells, d_equinox_xs = equinox_pullback(cotangents)
    assert_close(d_xs, d_equinox_xs, "gradient")
    assert_close(interop.export_weights(kind, d_params), weights_of(d_cells), "gradient")


@pytest.mark.parametrize("kind", CASES)
def test_exported_weights_are_set_as_the_docstring_says(kind):
    cell = make(kind, 1, False)
    layer = make_layer(CELLS[kind])
    params = random_params(layer)
    weights = interop.export_weights(kind, params)
    names = list(weights)
    cell = eqx.tree_at(
        lambda cell: [getattr(cell, name) for name in names],
        cell,
        [jnp.asarray(weights[name]) for name in names],
    )
    assert_equal(interop.import_weights(kind, cell), params)
    xs = jnp.asarray(normal(0, B, T, D))
    assert_close(layer.apply(params, xs, LENGTHS), run_equinox(cell, xs))


@pytest.mark.parametrize("kind", CASES)
def test_cells_without_biases_come_and_go_exactly(kind):
    cell = make(kind, 1, False, use_bias=False)
    params = interop.import_weights(kind, cell)
    assert_equal(
        interop.export_weights(kind, params, bias=False),
        {name: jax.device_get(a) for name, a in weights_of(cell).items()},
    )
    xs = jnp.asarray(normal(0, B, T, D))
    _, ys = make_layer(CELLS[kind]).apply(params, xs)
    _, expected = run_equinox(cell, xs)
    assert_close(ys[VALID], expected[VALID])
