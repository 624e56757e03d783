"""Dtype policies: what has which dtype, and how far from float64 the results are."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CELLS, B, D, H, T, ragged
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import rnnjax
from rnnjax.cells.lru import lru
from rnnjax.cells.min_gru import min_gru
from rnnjax.transforms import (
    Policy,
    layer_norm,
    recurrent_dropout,
    variational_dropout,
    weight_drop,
    with_policy,
    zoneout,
)

pytestmark = pytest.mark.usefixtures("float64", "quick_compile")

KEY = jax.random.key(7)
MIXED, NARROW, HALF, DOUBLE = (
    Policy(compute="bfloat16"),
    Policy("bfloat16", "bfloat16", "bfloat16"),
    Policy("float16", "float16", "float32"),
    Policy("float64", "float64", "float64"),
)
POLICIES = {
    "mixed": MIXED,
    "narrow": NARROW,
    "double": DOUBLE,
    "wide_state": Policy(compute="bfloat16", state="float64"),
}
NOISY = zoneout(
    variational_dropout(
        weight_drop(layer_norm(recurrent_dropout(rnnjax.lstm(H), 0.4)), 0.4), 0.4, 0.4
    ),
    {"c": 0.4},
)


def weigh(tree):
    """A loss in float64 that feels every element differently."""
    flat = jnp.concatenate([a.astype(jnp.float64).ravel() for a in jax.tree.leaves(tree)])
    return flat @ jnp.cos(jnp.arange(flat.size, dtype=flat.dtype))


def to_float64(tree):
    return jax.tree.map(lambda a: a.astype(jnp.float64), tree)


def dtypes(tree):
    return [a.dtype.name for a in jax.tree.leaves(tree)]


@pytest.mark.parametrize("given_dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("name", [*CELLS, "lru", "noisy"])
def test_every_dtype_is_the_one_that_was_asked_for(name, given_dtype):
    names = ("mixed", "double") if given_dtype == "bfloat16" else ("narrow", "wide_state")
    for policy in (POLICIES[name] for name in names):
        cell = with_policy({**CELLS, "lru": lru(H, 3), "noisy": NOISY}[name], policy)

        def run(key, xs, cell=cell):
            def outcome(params, xs):
                carry, (ys, carries) = rnnjax.unroll(cell, params, xs, all_carries=True, key=key)
                return weigh(jax.tree.map(jnp.abs, (carry, ys))), (ys, carry, carries)

            params = cell.init(key, D)
            grads, results = jax.grad(outcome, argnums=(0, 1), has_aux=True)(params, xs)
            return params, grads, *results, cell.initial_carry(params)

        xs = jax.ShapeDtypeStruct((B, T, D), given_dtype)
        params, grads, ys, *carries = jax.eval_shape(run, KEY, xs)
        assert set(dtypes(params)) == {policy.parameter}
        assert dtypes(grads[0]) == dtypes(params)
        assert grads[1].dtype == given_dtype
        assert ys.dtype == policy.state
        state = {"float64": "complex128"}.get(policy.state, "complex64")
        assert set(dtypes(carries)) == {state if name == "lru" else policy.state}


@pytest.mark.parametrize("policy", [MIXED, NARROW, HALF])
def test_the_carry_goes_through_a_scan_over_chunks(policy):
    cell = with_policy(rnnjax.lstm(H), policy)
    params = cell.init(KEY, D)
    chunk = lambda carry, xs: rnnjax.unroll(cell, params, xs, initial_carry=carry)  # noqa: E731
    xs = ragged("plain").xs[0].reshape(2, T // 2, D)
    carry, _ = jax.lax.scan(chunk, cell.initial_carry(params), xs)
    whole, _ = rnnjax.unroll(cell, params, xs.reshape(T, D))
    assert dtypes(carry) == dtypes(whole)
    eps = float(jnp.finfo(policy.compute).eps)
    np.testing.assert_allclose(to_float64(carry.h), to_float64(whole.h), atol=2 * eps)


class Case(NamedTuple):
    make: object
    policy: Policy


CASES = {
    "lstm_mixed": Case(rnnjax.lstm, MIXED),
    "gru_half": Case(rnnjax.gru, HALF),
    "vanilla_narrow": Case(rnnjax.vanilla, NARROW),
    "lstm_single": Case(rnnjax.lstm, Policy()),
}


@functools.cache
def value_and_gradient(cell):
    layer = rnnjax.bidirectional(cell)

    def loss(params, xs, lengths):
        results = layer.apply(params, xs, lengths)
        return weigh(results), results

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients_are_within_rounding_of_float64(case):
    exact = case.make(6)
    cell = with_policy(exact, case.policy)
    eps = max(float(jnp.finfo(dtype).eps) for dtype in case.policy)

    @settings(max_examples=15)
    @given(seed=st.integers(0, 10**6), lengths=st.tuples(*[st.integers(0, 10)] * 2))
    def check(seed, lengths):
        params = rnnjax.bidirectional(cell).init(jax.random.key(seed), D)
        xs = jax.random.normal(jax.random.key(seed + 1), (2, 10, D), jnp.float32)
        arguments = (params, xs), to_float64((params, xs))
        lengths = jnp.array(lengths)
        ours = value_and_gradient(cell)(*arguments[0], lengths)
        true = value_and_gradient(exact)(*arguments[1], lengths)
        values = [ravel_pytree(to_float64(results[0][1]))[0] for results in (ours, true)]
        np.testing.assert_allclose(*values, rtol=0, atol=8 * eps)
        grads = [ravel_pytree(to_float64(results[1]))[0] for results in (ours, true)]
        assert np.linalg.norm(grads[0] - grads[1]) <= 8 * eps * np.linalg.norm(grads[1])

    check()


def test_a_policy_of_float64_is_the_cell_in_float64():
    exact = rnnjax.gru(H)
    with jax.enable_x64(False):  # as in a module that is imported before x64 is turned on
        cell = with_policy(exact, DOUBLE)
    params, xs = cell.init(KEY, D), ragged("plain").xs
    ours, theirs = (rnnjax.unroll(c, params, xs)[1] for c in (cell, exact))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_parameters_are_drawn_in_float32_and_then_cast(dtype):
    plain = rnnjax.lstm(H).init(KEY, D)
    cast = with_policy(rnnjax.lstm(H), Policy(parameter=dtype)).init(KEY, D)
    for a, b in zip(plain, cast, strict=True):
        np.testing.assert_array_equal(a.astype(dtype), b)


def adding_one_percent_a_step():
    """An LSTM whose cell state gains 0.01 a step and forgets nothing."""
    logit = np.log(0.01 / 0.99)
    bias = jnp.array([logit] * 2 + [40.0] * 2 + [40.0] * 2 + [0.0] * 2)
    return (
        rnnjax.lstm(2)
        .init(KEY, 1)
        ._replace(w_ih=jnp.zeros((1, 8)), w_hh=jnp.zeros((2, 8)), bias=bias)
    )


def test_a_state_in_float32_holds_where_one_in_bfloat16_stands_still():
    params, xs = adding_one_percent_a_step(), jnp.zeros((1000, 1))
    sums = {}
    for state in ("float32", "bfloat16"):
        cell = with_policy(rnnjax.lstm(2), Policy(compute="bfloat16", state=state))
        sums[state] = rnnjax.unroll(cell, params, xs)[0].c
    np.testing.assert_allclose(sums["float32"], 10.0, rtol=1e-4)
    np.testing.assert_array_equal(sums["bfloat16"], 4.0)  # where half a unit is more than 0.01


@pytest.mark.parametrize("remat", ["never", "step"])
def test_gradients_of_narrow_parameters_are_summed_in_float32(remat):
    cell = with_policy(rnnjax.gru(2), Policy("bfloat16", "bfloat16"))
    params, xs = cell.init(KEY, 1), jnp.ones((1000, 1))

    def loss(params, cell):
        return jnp.sum(rnnjax.unroll(cell, params, xs, remat=remat)[1])

    grads = jax.grad(loss)(params, cell)
    exact = jax.grad(loss)(to_float64(params), rnnjax.gru(2))
    for ours, true in zip(grads, exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert np.linalg.norm(to_float64(ours) - true) <= 0.02 * np.linalg.norm(true)


def products_of(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield tuple(v.aval.dtype.name for v in (*eqn.invars, *eqn.outvars))
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products_of(inner)


@pytest.mark.parametrize(
    "name", ["vanilla", "lstm", "gru", "gru_reset_before", "projected", "blocks"]
)
def test_products_take_the_compute_dtype_and_are_summed_in_float32(name):
    cell = rnnjax.slstm(H, num_heads=2) if name == "blocks" else CELLS[name]
    cell = with_policy(cell if "before" in name else weight_drop(cell, 0.4), MIXED)
    params = cell.init(KEY, D)
    run = functools.partial(rnnjax.unroll, cell, key=KEY)
    xs = jnp.ones((B, T, D))
    tangents = lambda *given: jax.jvp(run, given, given)  # noqa: E731
    for of_what in (run, tangents):
        products = set(products_of(jax.make_jaxpr(of_what)(params, xs).jaxpr))
        assert products == {("bfloat16", "bfloat16", "float32")}


def test_products_of_layers_and_models_take_the_compute_dtype_too():
    ids = jnp.zeros((B, T), jnp.int32)
    for whole, size, xs in (
        (rnnjax.output_head(rnnjax.gru(H), 2), D, jnp.ones((B, T, D))),
        (rnnjax.gated(rnnjax.gru(D), D), D, jnp.ones((B, T, D))),
        (rnnjax.grid_lstm(H, 2), D, jnp.ones((B, T, D))),
        (rnnjax.tagger(rnnjax.embedding(5, D), rnnjax.gru(H), 2), None, ids),
    ):
        whole = with_policy(whole, MIXED)
        params = whole.init(KEY, size) if size else whole.init(KEY)
        products = set(products_of(jax.make_jaxpr(whole.apply)(params, xs).jaxpr))
        assert products == {("bfloat16", "bfloat16", "float32")}, whole


def test_padding_is_not_read_under_a_policy():
    cell, batch = with_policy(NOISY, MIXED), ragged("all")
    params = cell.init(KEY, D)

    def everything(fill):
        xs = jnp.where(batch.valid[..., None], batch.xs, fill)
        loss = lambda p: weigh(rnnjax.unroll(cell, p, xs, **batch.options, key=KEY))  # noqa: E731
        return jax.value_and_grad(loss)(params)

    clean, dirty = everything(0.0), everything(jnp.nan)
    np.testing.assert_array_equal(ravel_pytree(dirty)[0], ravel_pytree(clean)[0])


def test_zoneout_goes_inside_or_outside_a_policy():
    inside = with_policy(zoneout(rnnjax.lstm(H), 0.4), NARROW)
    outside = zoneout(with_policy(rnnjax.lstm(H), NARROW), 0.4)
    params, xs = inside.init(KEY, D), ragged("plain").xs
    both = (rnnjax.unroll(cell, params, xs, key=KEY)[1] for cell in (inside, outside))
    np.testing.assert_array_equal(*both)


def test_a_linear_cell_is_linear_only_while_its_state_is_not_rounded():
    cell, xs = with_policy(min_gru(H), MIXED), ragged("plain").xs
    params = cell.init(KEY, D)
    both = (
        rnnjax.unroll(cell, params, xs, implementation=name)[1] for name in ("associative", "scan")
    )
    np.testing.assert_allclose(*both, rtol=1e-5, atol=1e-6)
    assert with_policy(min_gru(H), NARROW).linear is None


@pytest.mark.parametrize("name", Policy._fields)
@pytest.mark.parametrize("dtype", ["int32", "float8_e4m3fn", "complex64", "half-float", 3])
def test_other_dtypes_are_refused_by_name(name, dtype):
    with pytest.raises(ValueError, match=f"{name} must be one of bfloat16, float16"):
        with_policy(rnnjax.lstm(H), Policy(**{name: dtype}))


def test_what_is_no_policy_is_refused():
    with pytest.raises(ValueError, match=r"Policy\(compute=.*, got str"):
        with_policy(rnnjax.lstm(H), "bfloat16")


def test_float64_needs_x64():
    cell = with_policy(rnnjax.lstm(H), Policy(state="float64"))
    params = cell.init(KEY, D)
    with jax.enable_x64(False):
        with pytest.raises(
            ValueError, match=r"policy\.state must be of at most 32 bits, got float64"
        ):
            cell.init(KEY, D)
        for use in (
            lambda: rnnjax.unroll(cell, params, jnp.ones((T, D))),
            lambda: cell.initial_carry(params),
            lambda: rnnjax.causal_convolution(D, policy=DOUBLE).init(KEY, D),
        ):
            with pytest.raises(ValueError, match="jax_enable_x64"):
                use()


@pytest.mark.parametrize("cell", [rnnjax.s4d(4, 8), variational_dropout(rnnjax.s4d(4, 8), 0.1)])
def test_what_a_cell_reads_in_no_product_is_not_rounded(cell):
    """All of an S4D: a phase that is rounded is off by more at every step."""
    with jax.enable_x64(False):
        params, xs = cell.init(jax.random.key(0), 4), jax.random.normal(KEY, (2, 300, 4))
        xs = xs.astype(jnp.bfloat16).astype(jnp.float32)
        expected = rnnjax.unroll(cell, params, xs)[1]
        found = rnnjax.unroll(with_policy(cell, MIXED), params, xs)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("order", "theta"), [(32, 3136), (1, 1000), (64, 4096)])
def test_the_memory_of_an_lmu_of_16_bits_forgets(order, theta):
    """By the eigenvalues of what it makes of itself; of A rounded as it is they reach 1."""
    cell = rnnjax.lmu(2, order, theta)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), cell.init(jax.random.key(0), 1))
    change = np.asarray(cell.recurrent(params)[2:, :order], np.float64)
    assert np.abs(np.linalg.eigvals(np.eye(order) + change.T)).max() < 1


@pytest.mark.parametrize("make", [rnnjax.s4d, rnnjax.s5, rnnjax.cfc])
def test_elapsed_times_are_no_operands_of_products_and_are_not_rounded(make):
    """5.02 is 5.03 in bfloat16: a phase would be off by more at every step."""
    cell = make(4)
    params = cell.init(jax.random.key(0), 4)
    xs = jnp.sign(jax.random.normal(jax.random.key(1), (2, 40, 4)))  # exact in bfloat16
    elapsed = jnp.full((2, 40, 1), 5.02)
    rounded = elapsed.astype(jnp.bfloat16).astype(jnp.float32)
    narrow = rnnjax.with_policy(cell, rnnjax.Policy(compute="bfloat16"))
    found = rnnjax.unroll(narrow, params, (xs, elapsed))[1]
    assert np.any(found != rnnjax.unroll(narrow, params, (xs, rounded))[1])
    if make is rnnjax.s4d:  # which has no product at all
        np.testing.assert_allclose(found, rnnjax.unroll(cell, params, (xs, elapsed))[1], rtol=1e-6)


def test_the_memory_of_depth_is_not_rounded_in_a_grid_that_computes_in_16_bits():
    """Gates are open or closed, so that the memory is handed on from layer to layer as it is."""
    layer = rnnjax.grid_lstm(1, 8, priority="time", policy=rnnjax.Policy(compute="bfloat16"))
    params = jax.tree.map(jnp.zeros_like, layer.init(jax.random.key(0), 1))
    plain = rnnjax.grid_lstm(1, 8, priority="time")
    draw = lambda a: jax.random.normal(jax.random.key(a.size), a.shape)  # noqa: E731
    params = jax.tree.map(lambda a: draw(a) if a.ndim == 1 else a, params)
    xs = jnp.ones((1, 3, 1))
    found, expected = layer.apply(params, xs)[1], plain.apply(params, xs)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # no weights: no product is rounded
