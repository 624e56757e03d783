"""The grid LSTM beside its blocks one by one; the sequence law has it too, as the row ``grids``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import B, D, Grid, H, T, build, grid_alone, init, initial_carry
from trees import EXACT, assert_trees_equal

import rnnjax

pytestmark = pytest.mark.usefixtures("float64", "quick_compile")

KEY = jax.random.key(0)
XS = np.random.default_rng(0).normal(size=(B, T, D))
GRIDS = {
    "tied": Grid(3),
    "untied": Grid(3, tied=False, output="outside"),
    "no_priority": Grid(3, priority=None),
    "time": Grid(3, priority="time", tied=False),
    "reverse": Grid(3, priority=None, output="outside", reverse=True),
    "depth_alone": Grid(5, dimensions=1),
    "depth_alone_untied": Grid(5, dimensions=1, tied=False, output="outside"),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.kept
def test_a_grid_is_its_blocks_one_by_one_in_numpy(name):
    spec = GRIDS[name]
    params = init(spec)
    start = jax.tree.map(np.asarray, initial_carry(spec, params))
    carry, ys = build(spec).apply(params, XS)
    for b in range(B):
        arrays = jax.tree.map(np.asarray, params)
        final, expected = grid_alone(spec, arrays, list(XS[b]), [False] * T, start, np)
        np.testing.assert_allclose(ys[b], np.stack(expected), rtol=1e-12, atol=1e-15)
        jax.tree.map(
            lambda a, e, b=b: np.testing.assert_allclose(a[b], e, rtol=1e-12, atol=1e-15),
            carry,
            final,
        )


@pytest.mark.parametrize("name", ["depth_alone", "untied"])
def test_gradients_are_those_of_the_blocks_one_by_one(name):
    """The rest is in the sequence law."""
    spec = GRIDS[name]
    params = init(spec)

    def weigh(ys):
        return jnp.sum(ys * jnp.cos(jnp.arange(float(T * H))).reshape(T, H))

    def by_blocks(params, xs):
        start = initial_carry(spec, params)
        return weigh(jnp.stack(grid_alone(spec, params, list(xs), [False] * T, start)[1]))

    def engine(params, xs):
        return weigh(build(spec).apply(params, xs)[1])

    expected = jax.grad(by_blocks, argnums=(0, 1))(params, XS[0])
    assert_trees_equal(jax.grad(engine, argnums=(0, 1))(params, XS[0]), expected)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_tied_layers_are_untied_ones_of_equal_weights(dimensions):
    tied = rnnjax.grid_lstm(H, 3, dimensions=dimensions)
    params = tied.init(KEY, D)
    copied = jax.tree.map(lambda a: jnp.stack([a] * 3), (params.time, params.depth))
    untied = rnnjax.grid_lstm(H, 3, dimensions=dimensions, tied=False)
    found = untied.apply(rnnjax.GridLSTMParams(params.w, params.bias, *copied), XS)
    assert_trees_equal(found, tied.apply(params, XS))


def test_without_memory_along_depth_it_is_a_stack_of_lstms():
    """Depth gates i and o held at 1, f at 0, the candidate the output of time."""
    spec = Grid(2, tied=False, output="outside")
    params = init(spec)
    wide = 1e3
    closed = jnp.concatenate(
        [jnp.full(H, wide), jnp.full(H, -wide), jnp.zeros(H), jnp.full(H, wide)]
    )
    candidate = jnp.zeros((2 * H, 4 * H)).at[:H, 2 * H : 3 * H].set(jnp.eye(H))
    depth = rnnjax.GridSide(jnp.stack([candidate] * 2), jnp.stack([closed] * 2))
    _, ys = build(spec).apply(params._replace(depth=depth), XS)

    h = XS @ np.asarray(params.w[:, :H]) + np.asarray(params.bias[:H])
    for n in range(2):
        w, bias = params.time.w[n], params.time.bias[n]
        lstm = rnnjax.LSTMParams(w[H:], w[:H], bias)
        _, h = rnnjax.unroll(rnnjax.lstm(H), lstm, h)
        h = jnp.tanh(jnp.tanh(h))
    np.testing.assert_allclose(ys, h, **EXACT)


@pytest.mark.parametrize(("tied", "count"), [(True, 1), (False, 6)])
def test_parameters_of_tied_layers_do_not_grow_with_depth(tied, count):
    params = rnnjax.grid_lstm(H, 6, tied=tied).init(KEY, D)
    sides = sum(a.size for a in jax.tree.leaves((params.time, params.depth)))
    assert sides == count * 2 * (2 * H * 4 * H + 4 * H)
    assert params.w.size + params.bias.size == (D + 1) * 2 * H


def test_the_first_weights_are_of_the_initializer():
    params = rnnjax.grid_lstm(H, 2, tied=False, initializer="keras").init(KEY, D)
    for own, side in ((slice(H), params.time), (slice(H, None), params.depth)):
        for w, bias in zip(side.w, side.bias, strict=True):
            np.testing.assert_allclose(w[own] @ w[own].T, np.eye(H), atol=1e-6)
            np.testing.assert_array_equal(bias, np.repeat([0, 1, 0, 0], H))
    leaves = [a[n] for a in (params.time.w, params.depth.w) for n in range(2)]
    assert len({float(a[0, 0]) for a in leaves}) == 4  # each drawn by itself


def test_two_directions_make_one_bidirectional_layer():
    one, two = Grid(2), Grid(2, reverse=True)
    layer = rnnjax.bidirectional(build(one), build(two))
    params, lengths = layer.init(KEY, D), np.array([4, 2, 0])
    carry, ys = layer.apply(params, XS, lengths)
    expected = np.concatenate([carry.forward.h[:, -1], carry.backward.h[:, -1]], -1)
    assert ys.shape == (B, T, 2 * H)
    assert expected.shape == layer.last(ys, lengths).shape
    back = build(two).apply(params.backward, XS[1, :2])[1]
    np.testing.assert_allclose(layer.last(ys, lengths)[1, H:], back[0], **EXACT)


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"priority": "time"}, marks=pytest.mark.full), {"dimensions": 1}],
)
def test_a_policy_reaches_weights_products_and_state(options):
    layer = rnnjax.grid_lstm(H, 2, **options)
    narrow = rnnjax.with_policy(layer, rnnjax.Policy(*["bfloat16"] * 3))
    params = narrow.init(KEY, D)
    with jax.numpy_dtype_promotion("strict"):
        carry, ys = narrow.apply(params, XS, [T, 2, 0])
        grads = jax.grad(lambda p: jnp.sum(narrow.apply(p, XS)[1].astype("float32")))(params)
    assert {a.dtype.name for a in jax.tree.leaves((params, carry, ys, grads))} == {"bfloat16"}
    wide = jax.tree.map(lambda a: a.astype("float64"), params)
    expected = layer.apply(wide, XS, [T, 2, 0])[1]
    np.testing.assert_allclose(ys.astype("float64"), expected, atol=1e-2)


def test_what_does_not_fit_is_named():
    layer = rnnjax.grid_lstm(H, 2)
    params = layer.init(KEY, D)
    untied = rnnjax.grid_lstm(H, 2, tied=False).init(KEY, D)
    wrong_carry = rnnjax.LSTMCarry(jnp.zeros((B, H)), jnp.zeros((B, H)))
    for message, call in {
        "hidden_size must be a positive integer": lambda: rnnjax.grid_lstm(0, 2),
        "num_layers must be a positive integer": lambda: rnnjax.grid_lstm(H, 1.5),
        "dimensions must be 1 or 2, got 3": lambda: rnnjax.grid_lstm(H, 2, dimensions=3),
        "dimensions must be 1 or 2, got True": lambda: rnnjax.grid_lstm(H, 2, dimensions=True),
        "tied must be True or False": lambda: rnnjax.grid_lstm(H, 2, tied=None),
        "reverse must be True or False": lambda: rnnjax.grid_lstm(H, 2, reverse=0.5),
        "priority must be one of 'depth', 'time', None, got 'width'": (
            lambda: rnnjax.grid_lstm(H, 2, priority="width")
        ),
        "output must be one of 'inside', 'outside', got None": (
            lambda: rnnjax.grid_lstm(H, 2, output=None)
        ),
        "initializer must be one of": lambda: rnnjax.grid_lstm(H, 2, initializer="none"),
        "key must be one key": lambda: layer.init(0, D),
        "input_size must be a positive integer": lambda: layer.init(KEY, 0),
        r"depth.w of shape \(8, 16\), got .*, \(2, 8, 16\)": lambda: layer.apply(untied, XS),
        "params must be GridLSTMParams": lambda: layer.apply(params.depth, XS),
        "xs must have size 3": lambda: layer.apply(params, XS[..., :2]),
        "xs must have shape": lambda: layer.apply(params, XS[0, 0]),
        "xs must be of floating dtype": lambda: layer.apply(params, XS.astype(int)),
        "xs must be an array": lambda: layer.apply(params, (XS, XS)),
        "lengths must lie in": lambda: layer.apply(params, XS, [9, 0, 0]),
        "context must be None": lambda: layer.apply(params, XS, context=XS),
        "resets must": lambda: layer.apply(params, XS, resets=np.zeros((B, T))),
        r"initial_carry.h must have shape \(3, 2, 4\)": (
            lambda: layer.apply(params, XS, initial_carry=wrong_carry)
        ),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_a_first_carry_can_be_given_away():
    """One array that stood in it twice could not: JAX refuses to take a buffer twice."""
    layer = rnnjax.grid_lstm(3, num_layers=2)
    carry = layer.initial_carry(layer.init(jax.random.key(0), 3), (2,))
    assert carry.h is not carry.c
    moved = jax.jit(lambda c: jax.tree.map(lambda a: a + 1, c), donate_argnums=0)(carry)
    assert float(moved.c[0, 0, 0]) == 1
