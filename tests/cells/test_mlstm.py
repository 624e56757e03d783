"""The mLSTM: its equations in NumPy, many steps at once as one after the other, and its ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import B, D, One, init, ragged, random_carry
from chunks import chunked_and_alone, lowered_gradient
from trees import EXACT, assert_trees_equal, value_and_gradients

import rnnjax

pytestmark = pytest.mark.usefixtures("float64", "quick_compile")

H, HEADS, WIDTH = 6, 2, 3
CELL = rnnjax.mlstm(H, num_heads=HEADS)
LEARNED = rnnjax.learn_initial_carry(CELL)
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["scan", "chunked"])


@pytest.fixture
def float32(float64):
    with jax.enable_x64(False):
        yield


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_loop(p, xs):
    """The equations as they stand, without a stabiliser: what it must cancel from."""
    c, n, ys = np.zeros((HEADS, WIDTH, WIDTH)), np.zeros((HEADS, WIDTH)), []
    for x in xs:
        q, k, v, o = (x @ p.w_ih + p.bias).reshape(4, HEADS, WIDTH)
        i, f = (x @ p.w_gates + p.gate_bias).reshape(2, HEADS, 1)
        k = np.exp(i) * k / np.sqrt(WIDTH)
        c = sigmoid(f)[..., None] * c + k[:, :, None] * v[:, None, :]
        n = sigmoid(f) * n + k
        read = np.einsum("hkv,hk->hv", c, q)
        total = np.abs(np.sum(n * q, axis=-1, keepdims=True))
        ys.append((sigmoid(o) * read / np.maximum(total, 1)).ravel())
    return (c, n), np.stack(ys)


@IMPLEMENTATIONS
def test_values_are_those_of_the_equations(implementation):
    params = jax.tree.map(np.asarray, init(One(CELL)))
    xs = 2 * np.random.default_rng(0).normal(size=(9, D))
    (c, n), expected = numpy_loop(params, xs)
    options = {"remat": 4} if implementation == "chunked" else {}
    carry, ys = rnnjax.unroll(CELL, params, xs, implementation=implementation, **options)
    np.testing.assert_allclose(ys, expected, **EXACT)
    scale = np.exp(carry.m)[:, None]
    np.testing.assert_allclose(carry.n * scale, n, **EXACT)
    np.testing.assert_allclose(carry.c * scale[..., None], c, **EXACT)
    assert np.all(carry.m >= 0)


@pytest.mark.parametrize(
    ("cell", "reverse", "options", "remat"),
    [
        (LEARNED, False, "all", 2),
        (LEARNED, True, "all", 3),
        (LEARNED, True, "all", None),
        (CELL, False, "mask", "never"),
        (CELL, True, "resets", 2),
    ],
)
def test_chunks_of_any_length_are_each_sequence_alone(cell, reverse, options, remat):
    assert_trees_equal(*chunked_and_alone(cell, reverse, options, remat))


@pytest.mark.full
def test_what_stands_in_the_padding_of_a_chunk_is_not_read():
    params, batch = init(One(CELL)), ragged("all")

    @jax.jit
    def differentiated(params, xs):
        def unroll(params, start, xs):
            return rnnjax.unroll(CELL, params, xs, initial_carry=start, remat=3, **batch.options)

        return value_and_gradients(unroll, params, random_carry(One(CELL), params), xs)

    clean = differentiated(params, jnp.where(batch.valid[..., None], batch.xs, 0))
    for dirt in (np.nan, np.inf):
        dirty = differentiated(params, jnp.where(batch.valid[..., None], batch.xs, dirt))
        assert_trees_equal(dirty, clean, rtol=0, atol=0)


@pytest.mark.full
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_reaches_the_later_steps_of_its_segment_alone(bad, reverse):
    params, batch = init(One(CELL)), ragged("all")
    for place in zip(*np.nonzero(batch.valid), strict=True):
        xs = batch.xs.at[place].set(bad)
        options = {**batch.options, "reverse": reverse}
        results = [
            rnnjax.unroll(CELL, params, xs, implementation=name, remat=3, **options)
            for name in ("chunked", "scan")
        ]
        assert_trees_equal(*results)
        assert np.isnan(results[0][1]).any()


@pytest.mark.parametrize("piece", ["all", "values"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_bad_step_ends_with_its_segment_and_is_bad_by_any_piece(reverse, piece):
    """By its values alone, too, which overflow where queries, keys and gates do not."""
    params = init(One(CELL))
    if piece == "values":
        w_ih = params.w_ih.at[0].set(0.0).at[0, 2 * H : 3 * H].set(1e200)
        params = params._replace(w_ih=w_ih, w_gates=params.w_gates.at[0].set(0.0))
    xs = jax.random.normal(jax.random.key(0), (1, 7, D)).at[:, :, 0].set(0.0)
    resets = jnp.arange(7)[None] == 4
    bad, segment = (5, [4, 5]) if reverse else (1, [1, 2, 3])
    xs = xs.at[0, bad, 0].set(np.nan if piece == "all" else 1e200)
    options = {"resets": resets, "reverse": reverse, "implementation": "chunked"}
    _, ys = rnnjax.unroll(CELL, params, xs, **options)
    np.testing.assert_array_equal(np.isnan(ys[0]).any(-1), np.isin(np.arange(7), segment))


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("i", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("f", [-1e4, 1e4])
def test_gates_at_their_ends_stay_finite_and_right(i, f):
    """In float32; what they give is known: the last value alone, the mean of all, or nothing."""
    steps = 5
    params = CELL.init(jax.random.key(0), D)
    gate_bias = jnp.repeat(jnp.array([i, f], jnp.float32), HEADS)
    params = params._replace(gate_bias=gate_bias, w_gates=jnp.full_like(params.w_gates, 0.1))
    xs = jax.random.normal(jax.random.key(1), (2, steps, D))

    def run(implementation):
        def loss(params):
            carry, ys = rnnjax.unroll(CELL, params, xs, implementation=implementation)
            return jnp.sum(ys**2) + jnp.sum(carry.c**2) + jnp.sum(carry.n), (carry, ys)

        return jax.value_and_grad(loss, has_aux=True)(params)

    for (_, (carry, ys)), grads in (run("scan"), run("chunked")):
        assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves((carry, ys, grads)))
        if i == -1e4:
            assert np.all(ys == 0)
        if i >= 0 and f == -1e4:
            q, k, v, o = jnp.moveaxis((xs @ params.w_ih).reshape(2, steps, 4, HEADS, WIDTH), 2, 0)
            score = jnp.sum(q * k, axis=-1, keepdims=True) / np.sqrt(WIDTH)
            least = 0 if i else jnp.exp(-(xs @ params.w_gates)[..., :HEADS, None])
            expected = sigmoid(o) * v * score / jnp.maximum(jnp.abs(score), least)
            np.testing.assert_allclose(ys, expected.reshape(ys.shape), rtol=1e-3, atol=1e-6)


@pytest.mark.usefixtures("float32")
def test_a_chunk_in_float32_keeps_its_digits_behind_gates_that_are_shut():
    """A sum of logarithms from the beginning of the chunk would have lost the small ones."""
    params = CELL.init(jax.random.key(0), D)
    rng = np.random.default_rng(3)
    xs = jnp.asarray(rng.normal(size=(64, D)), jnp.float32).at[:, 0].set(0.0).at[3, 0].set(1.0)
    w_gates = jnp.zeros_like(params.w_gates).at[0, HEADS:].set(-1e6)
    params = params._replace(w_gates=w_gates)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, float), (params, xs))
        _, expected = rnnjax.unroll(CELL, *wide, implementation="scan")
    _, ys = rnnjax.unroll(CELL, params, xs, implementation="chunked")
    np.testing.assert_allclose(ys, expected, rtol=1e-4, atol=2e-6)


@pytest.mark.usefixtures("float32")
@IMPLEMENTATIONS
@pytest.mark.parametrize("gates", ["the same at every step", "large and of all sizes"])
def test_the_normaliser_in_float32_keeps_its_digits_over_many_steps(gates, implementation):
    """The gates are given: in float64 it is their recursion, without a stabiliser."""
    i, f = np.full(400, 0.5), np.full(400, 6.0)
    if gates.startswith("large"):
        i, f = np.random.default_rng(1).integers([[72], [8]], [[88], [28]], (2, 400)) / 4
    cell = rnnjax.mlstm(1)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 2))
    params = params._replace(bias=jnp.ones_like(params.bias), w_gates=jnp.eye(2))
    xs = jnp.asarray(np.stack([i, f], axis=1), jnp.float32)
    carry, _ = rnnjax.unroll(cell, params, xs, implementation=implementation)
    expected = 0.0
    for write, keep in zip(np.exp(i), sigmoid(f), strict=True):
        expected = keep * expected + write
    found = np.float64(carry.n[0, 0]) * np.exp(np.float64(carry.m[0]))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_training_step_keeps_the_memory_between_chunks_alone():
    compiled, memory = lowered_gradient(CELL), f"2x{HEADS}x{WIDTH}x{WIDTH}x"
    assert f"tensor<256x{memory}" not in compiled
    assert f"tensor<8x{memory}" in compiled


def test_it_runs_in_chunks_by_itself_and_says_so():
    params = init(One(CELL))
    assert "32 steps at once" in rnnjax.explain(CELL, params, (B, 500, D))
    assert "scan over time" in rnnjax.explain(CELL, params, (B, 5, D), implementation="scan")
    with pytest.raises(ValueError, match="all_carries must be False"):
        rnnjax.unroll(CELL, params, jnp.ones((5, D)), all_carries=True, implementation="chunked")
    _, (ys, carries) = rnnjax.unroll(CELL, params, jnp.ones((5, D)), all_carries=True)
    assert carries.c.shape == (5, HEADS, WIDTH, WIDTH)
    np.testing.assert_allclose(ys, rnnjax.unroll(CELL, params, jnp.ones((5, D)))[1], **EXACT)
    with pytest.raises(ValueError, match="many steps at once"):
        rnnjax.unroll(rnnjax.gru(H), None, jnp.ones((5, D)), implementation="chunked")


MADE_OF_IT = {
    "layer norm": rnnjax.layer_norm(CELL),
    "dropout": rnnjax.variational_dropout(CELL, inputs=0.4),
    "policy": rnnjax.with_policy(CELL, rnnjax.Policy("float64", "float32", "float64")),
}


@pytest.mark.full
@pytest.mark.parametrize("name", MADE_OF_IT)
def test_what_is_made_of_the_cell_is_the_same_in_chunks(name):
    cell, xs, key = MADE_OF_IT[name], ragged("plain").xs, jax.random.key(4)
    params = init(One(cell))

    def run(implementation):
        def unroll(params, _, xs):
            return rnnjax.unroll(cell, params, xs, key=key, implementation=implementation)

        return value_and_gradients(unroll, params, 0.0, xs)

    assert_trees_equal(run("chunked"), run("scan"))


@pytest.mark.parametrize("size", [30.0, 1000.0])
def test_large_input_gates_cost_chunks_no_digits(size):
    """The stabiliser grows as the gate does, and cancels: against the loop in float64."""
    cell = rnnjax.mlstm(4)
    params = cell.init(jax.random.key(0), 2)._replace(gate_bias=jnp.array([size, 9.0]))
    xs = jax.random.normal(jax.random.key(1), (500, 2))

    def run(params, xs, implementation):
        def total(params, xs):
            ys = rnnjax.unroll(cell, params, xs, implementation=implementation)[1]
            return jnp.sum(ys * jnp.cos(jnp.arange(500.0))[:, None].astype(ys.dtype)), ys

        return jax.grad(total, (0, 1), has_aux=True)(params, xs)

    with jax.enable_x64(True):
        expected = run(*jax.tree.map(lambda a: jnp.asarray(a, float), (params, xs)), "scan")
    for found, true in zip(
        jax.tree.leaves(run(params, xs, "chunked")), jax.tree.leaves(expected), strict=True
    ):
        assert np.linalg.norm(found - true) < 1e-4 * np.linalg.norm(true)


def test_a_memory_that_is_rounded_at_every_step_is_not_computed_in_chunks():
    cell = rnnjax.with_policy(CELL, rnnjax.Policy("float32", "bfloat16", "bfloat16"))
    assert "scan over time" in rnnjax.explain(cell, cell.init(jax.random.key(0), D), (B, 5, D))
    held = rnnjax.zoneout(CELL, {"n": 0.5})
    assert "scan over time" in rnnjax.explain(held, held.init(jax.random.key(0), D), (B, 5, D))


def test_who_has_jax_stop_at_the_first_nan_is_not_stopped_by_the_cell():
    cell = rnnjax.mlstm(2, num_heads=1)
    params = cell.init(jax.random.key(0), 2)
    with jax.disable_jit(), jax.debug_nans(True):
        rnnjax.unroll(cell, params, np.ones((1, 2, 2), np.float32), [1])
        with pytest.raises(FloatingPointError):
            rnnjax.unroll(cell, params, np.full((1, 2, 2), np.nan, np.float32), [1])


@IMPLEMENTATIONS
def test_a_given_stabiliser_far_below_what_a_step_leaves_keeps_gradients_finite(implementation):
    """At masked steps, whose outputs are computed too, and thrown away."""
    params = CELL.init(jax.random.key(0), D)
    start = CELL.initial_carry(params)
    start = start._replace(n=jnp.ones_like(start.n), m=jnp.full_like(start.m, -1e4))

    def total(params, start):
        xs, carry = jnp.ones((4, D)), start
        options = {"initial_carry": carry, "implementation": implementation}
        _, ys = rnnjax.unroll(CELL, params, xs, jnp.array(0), **options)
        return jnp.sum(ys)

    for a in jax.tree.leaves(jax.grad(total, (0, 1))(params, start)):
        np.testing.assert_array_equal(a, 0.0)
