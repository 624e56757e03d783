"""The sequence law, over every cell, direction, stack and option."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    CELLS,
    LAYERS,
    OPTIONS,
    B,
    D,
    H,
    T,
    batch_alone,
    build,
    init,
    ragged,
    random_carry,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from trees import EXACT, assert_trees_equal

import rnnjax

pytestmark = [pytest.mark.usefixtures("float64", "quick_compile"), pytest.mark.every_value]

USERS = ("users_own", "no_recurrent_matrix")
OF_THE_LIBRARY = [*(r for r in LAYERS if not r.startswith(USERS) and r != "bidirectional_stack")]
LAW = pytest.mark.parametrize("row", LAYERS)


def weigh(carry, ys):
    """A loss that feels every element of the carry and of the outputs differently."""
    leaves = [ys, *jax.tree.leaves(carry)]
    leaves = [part for leaf in leaves for part in _real_parts(leaf)]
    return sum(
        jnp.sum(leaf * jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype) + i).reshape(leaf.shape))
        for i, leaf in enumerate(leaves)
    )


def _real_parts(leaf):
    return (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,)


# The rows that differ in how the engine or a layer runs them. What depends on that alone, and not
# on the equations of a cell, is tested for these.
APART = ("vanilla", "lstm", "gru", "gru_reset_before", "users_own", "bidirectional", "stack")
KINDS = pytest.mark.parametrize("row", [*APART, "reversed_steps", "linear", "transformed"])


@pytest.mark.parametrize(
    ("row", "options"),
    [(row, name) for row in LAYERS for name in OPTIONS if row in APART or name == "all"],
)
def test_a_batch_is_each_sequence_alone(row, options):
    spec = LAYERS[row]
    params, batch = init(spec), ragged(options)
    start = random_carry(spec, params)

    def engine(params, start, xs):
        return build(spec).apply(params, xs, **batch.options, initial_carry=start)

    def oracle(params, start, xs):
        return batch_alone(spec, params, batch, start, xs)

    ours = jax.jit(functools.partial(_everything, engine))(params, start, batch.xs)
    assert_trees_equal(ours, _everything(oracle, params, start, batch.xs))


def _everything(run, *args):
    """The carry and outputs of a run, and the gradients to all it was given."""

    def loss(*args):
        carry, ys = run(*args)
        return weigh(carry, ys), (carry, ys)

    (_, results), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*args)
    return results, grads


@LAW
def test_padding_is_never_read(row):
    spec = LAYERS[row]
    params, batch = init(spec), ragged("all")

    @jax.jit
    def value_and_grads(xs):
        def loss(params, xs):
            carry, ys = build(spec).apply(params, xs, **batch.options)
            return weigh(carry, ys), (carry, ys)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, xs)

    clean = value_and_grads(jnp.where(batch.valid[..., None], batch.xs, 0))
    dirt = np.resize([np.nan, np.inf, -1e300, -np.inf], batch.xs.shape)
    dirty = value_and_grads(jnp.where(batch.valid[..., None], batch.xs, dirt))
    assert_trees_equal(dirty, clean, rtol=0, atol=0)
    (_, (_, ys)), (_, d_xs) = dirty
    assert np.all(ys[~batch.valid] == 0)
    assert np.all(d_xs[~batch.valid] == 0)


@LAW
def test_an_empty_row_returns_its_initial_carry(row):
    spec = LAYERS[row]
    params, batch = init(spec), ragged("plain")
    start = random_carry(spec, params)
    carry, ys = build(spec).apply(params, batch.xs, np.zeros(B, int), initial_carry=start)
    assert_trees_equal(carry, start, rtol=0, atol=0)
    assert np.all(ys == 0)


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        *((row, (B, 0)) for row in LAYERS),
        *((row, shape) for row in APART for shape in ((0, T), (2, 0, 3))),
    ],
)
def test_no_steps_and_no_rows_are_allowed(row, shape):
    layer, params = build(LAYERS[row]), init(LAYERS[row])

    def loss(params, xs):
        carry, ys = layer.apply(params, xs, lengths=np.zeros(shape[:-1], int))
        assert ys.shape == (*shape, layer.output_size)
        return weigh(carry, ys)

    grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, jnp.zeros((*shape, D)))
    assert grads[1].shape == (*shape, D)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


@KINDS
def test_batch_axes_jit_and_vmap_agree(row):
    spec = LAYERS[row]
    params, batch = init(spec), ragged("all")
    layer = build(spec)

    def apply(xs, lengths, mask, resets):
        return layer.apply(params, xs, lengths, mask=mask, resets=resets)

    args = (batch.xs, *(jnp.asarray(batch.options[k]) for k in ("lengths", "mask", "resets")))
    whole = apply(*args)
    assert_trees_equal(jax.jit(apply)(*args), whole)
    assert_trees_equal(jax.vmap(apply)(*args), whole)
    grid = apply(*(a.reshape(B, 1, 1, *a.shape[1:]) for a in args))
    assert_trees_equal(jax.tree.map(lambda a: a.reshape(B, *a.shape[3:]), grid), whole)
    single = apply(*(a[1] for a in args))
    assert_trees_equal(single, jax.tree.map(lambda a: a[1], whole))


@KINDS
def test_vmap_over_parameters_trains_each_alone(row):
    layer, batch = build(LAYERS[row]), ragged("lengths")

    def grad(params):
        return jax.grad(lambda p: weigh(*layer.apply(p, batch.xs, **batch.options)))(params)

    models = [init(LAYERS[row], seed) for seed in (3, 4)]
    together = jax.vmap(grad)(jax.tree.map(lambda *a: jnp.stack(a), *models))
    for i, params in enumerate(models):
        assert_trees_equal(jax.tree.map(lambda a, i=i: a[i], together), grad(params))


@pytest.mark.parametrize(
    ("row", "scan_unroll"),
    [("bidirectional", 2), ("bidirectional", T + 2), ("reversed_steps", 2), ("linear", 2)],
)
def test_the_loop_factor_changes_nothing(row, scan_unroll):
    spec = LAYERS[row]
    params, batch = init(spec), ragged("all")

    def grad(factor):
        layer = build(spec, factor)
        loss = lambda p: weigh(*layer.apply(p, batch.xs, **batch.options))  # noqa: E731
        return jax.value_and_grad(loss)(params)

    assert_trees_equal(grad(scan_unroll), grad(1))


@LAW
def test_a_mask_of_true_is_no_mask(row):
    layer, params, batch = build(LAYERS[row]), init(LAYERS[row]), ragged("plain")
    plain = layer.apply(params, batch.xs)
    for options in ({"lengths": np.full(B, T)}, {"mask": np.ones((B, T), bool)}):
        assert_trees_equal(layer.apply(params, batch.xs, **options), plain)


@pytest.mark.parametrize(
    "row",
    [*(r for r in APART if r in CELLS), "no_recurrent_matrix", "projected", "peephole", "conv"],
)
@pytest.mark.kept
def test_forward_mode_and_second_derivatives_are_exact(row):
    layer, params, batch = build(LAYERS[row]), init(LAYERS[row]), ragged("all")
    point, unravel = ravel_pytree((params, batch.xs * batch.valid[..., None]))
    direction = jnp.cos(jnp.arange(point.size, dtype=point.dtype))

    def loss(point):
        params, xs = unravel(point)
        return weigh(*layer.apply(params, xs, **batch.options))

    grad = jax.jit(jax.grad(loss))
    slope = jax.jvp(jax.jit(loss), (point,), (direction,))[1]
    np.testing.assert_allclose(slope, grad(point) @ direction, **EXACT)
    by_forward = jax.jvp(grad, (point,), (direction,))[1]
    by_reverse = jax.grad(lambda p: grad(p) @ direction)(point)
    np.testing.assert_allclose(by_forward, by_reverse, **EXACT)
    step = 1e-5
    difference = (grad(point + step * direction) - grad(point - step * direction)) / (2 * step)
    if row != "no_recurrent_matrix":  # its relu has kinks, where a difference says nothing
        np.testing.assert_allclose(by_forward, difference, rtol=1e-6, atol=1e-6)


@settings(max_examples=40)
@given(
    mask=st.lists(st.booleans(), min_size=T, max_size=T),
    resets=st.lists(st.booleans(), min_size=T, max_size=T),
    row=st.sampled_from(["lstm", "users_own_reverse", "bidirectional"]),
)
def test_any_mask_with_any_resets_is_the_compact_sequence(mask, resets, row):
    layer, params = build(LAYERS[row]), init(LAYERS[row])
    xs = ragged("plain").xs[0]
    mask, resets = np.array(mask), np.array(resets)
    carry, ys = layer.apply(params, xs, mask=mask, resets=resets)
    compact_carry, compact = layer.apply(params, xs[mask], resets=resets[mask])
    np.testing.assert_allclose(ys[mask], compact, **EXACT)
    assert_trees_equal(carry, compact_carry)


@pytest.mark.parametrize("name", CELLS)
def test_both_directions_see_the_same_segments(name):
    cell, params = CELLS[name], init(LAYERS[name])
    xs = ragged("plain").xs[0]
    pieces = [xs[:1], xs[1:2], xs[2:]]
    resets = np.array([False, True, True, False])
    for reverse in (False, True):
        _, packed = rnnjax.unroll(cell, params, xs, resets=resets, reverse=reverse)
        apart = [rnnjax.unroll(cell, params, p, reverse=reverse)[1] for p in pieces]
        np.testing.assert_allclose(packed, np.concatenate(apart), **EXACT)


@LAW
def test_traced_lengths_are_clipped(row):
    layer, params, batch = build(LAYERS[row]), init(LAYERS[row]), ragged("plain")
    apply = jax.jit(lambda lengths: layer.apply(params, batch.xs, lengths))
    assert_trees_equal(
        apply(jnp.array([T + 3, 2, -4])), apply(jnp.array([T, 2, 0])), rtol=0, atol=0
    )


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint32", "int64"])
def test_lengths_of_any_integer_dtype_mean_the_same(dtype):
    cell, params = CELLS["vanilla"], init(LAYERS["vanilla"])
    xs, lengths = jnp.ones((2, 300, D)), np.array([100, 0])
    expected = rnnjax.unroll(cell, params, xs, lengths)
    given = lengths.astype(dtype)
    unroll = functools.partial(rnnjax.unroll, cell, params, xs)
    assert_trees_equal(unroll(given), expected, rtol=0, atol=0)
    assert_trees_equal(jax.jit(unroll)(given), expected)
    np.testing.assert_array_equal(
        rnnjax.lengths_to_mask(given, 300), np.arange(300) < lengths[:, None]
    )


@pytest.mark.parametrize(
    ("row", "dtype"),
    [
        *((row, "bfloat16") for row in OF_THE_LIBRARY),
        *((row, dtype) for row in ("lstm", "gru", "linear") for dtype in ("float16", "float32")),
    ],
)
def test_carries_and_outputs_stay_float32(row, dtype):
    layer = build(LAYERS[row])
    params = jax.tree.map(lambda a: a.astype(dtype), init(LAYERS[row]))
    with jax.numpy_dtype_promotion("strict"):  # what is of two widths is cast by name
        carry, ys = layer.apply(params, ragged("plain").xs.astype(dtype), np.array([T, 2, 0]))
    assert {a.real.dtype for a in [ys, *jax.tree.leaves(carry)]} == {jnp.dtype("float32")}
    exact = layer.apply(jax.tree.map(lambda a: a.astype("float64"), params), ragged("plain").xs)[1]
    error = {"bfloat16": 4e-2, "float16": 4e-3, "float32": 1e-6}[dtype]
    np.testing.assert_allclose(ys[0], exact[0], atol=error, rtol=0)


def _loops(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", None)
            if inner is not None:
                yield from _loops(getattr(inner, "jaxpr", inner))


def _outputs_of_loops(function, *args):
    """The shapes of what each loop carries or stacks, loop by loop."""
    return [
        sorted(v.aval.shape for v in loop.outvars)
        for loop in _loops(jax.make_jaxpr(function)(*args).jaxpr)
    ]


# What the backward loop stacks: the cotangents of r for all gates in one array, and of those
# pieces of z that the cell uses other than added to r.
STACKED = {
    "vanilla": [(7, 2, H)],
    "lstm": [(7, 2, 4 * H)],
    "gru": [(7, 2, H), (7, 2, 3 * H)],
    "users_own": [(7, 2, 1), (7, 2, H), (7, 2, H + 1)],
    "no_recurrent_matrix": [(7, 2, H)],
    "peephole": [(7, 2, 4 * H)],
    "coupled": [(7, 2, 3 * H)],
    "minimal_gated": [(7, 2, H), (7, 2, 2 * H)],
    "indrnn": [(7, 2, H)],
    "learned_carry": [(7, 2, 4 * H)],
}


@pytest.mark.parametrize("name", STACKED)
def test_the_backward_loop_carries_no_gradient_of_a_matrix(name):
    cell, params = CELLS[name], init(LAYERS[name])
    xs = jnp.ones((2, 7, D))
    grad = jax.grad(lambda p: weigh(*rnnjax.unroll(cell, p, xs)))
    _, backward = _outputs_of_loops(grad, params)
    assert [shape for shape in backward if len(shape) == 3] == STACKED[name]
    assert {shape for shape in backward if len(shape) < 3} <= {(2, H), (H,)}


@pytest.mark.parametrize("name", CELLS)
def test_the_final_carry_keeps_no_history(name):
    cell, params = CELLS[name], init(LAYERS[name])
    forward = functools.partial(rnnjax.unroll, cell, implementation="scan")
    (shapes,) = _outputs_of_loops(forward, params, jnp.ones((2, 7, D)), jnp.array([7, 0]))
    carry = jax.tree.leaves(cell.initial_carry(params))
    assert shapes == sorted([*((2, *a.shape) for a in carry), (7, 2, cell.output_size)])
