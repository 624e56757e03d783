"""An axis that ``jax.vmap`` maps is a batch axis: the same results, the same plan and cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

N, T, D, H = 16, 32, 8, 64


def made(cell):
    params = cell.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (N, T, D))
    return params, xs, jnp.arange(N) * 2


def batched(cell):
    def loss(params, xs, lengths):
        carry, ys = rnnjax.unroll(cell, params, xs, lengths)
        return (ys**2).sum() + sum((leaf**3).sum() for leaf in jax.tree.leaves(carry))

    return loss


def mapped(cell):
    one = batched(cell)
    return lambda params, xs, lengths: jax.vmap(one, (None, 0, 0))(params, xs, lengths).sum()


@pytest.mark.parametrize("make", [rnnjax.lstm, lambda size: rnnjax.gru(size, reset_after=False)])
def test_a_mapped_call_costs_what_a_batch_costs(make):
    cell = make(H)
    args = made(cell)
    costs = []
    for loss in (batched(cell), mapped(cell)):
        program = jax.jit(jax.grad(loss)).lower(*args).compile()
        flops = program.cost_analysis()["flops"]
        costs.append((flops, program.memory_analysis().temp_size_in_bytes))
    for whole, one in zip(*costs, strict=True):
        assert one == pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize("take", ["grad of vmap", "vmap of grad", "vmap of vmap"])
@pytest.mark.kept
def test_a_mapped_call_gives_what_a_batch_gives(take):
    cell = rnnjax.lstm(3)
    params, xs, lengths = made(cell)
    expected = jax.grad(batched(cell))(params, xs, lengths)
    if take == "grad of vmap":
        found = jax.grad(mapped(cell))(params, xs, lengths)
    elif take == "vmap of grad":
        each = jax.vmap(jax.grad(batched(cell)), (None, 0, 0))(params, xs, lengths)
        found = jax.tree.map(lambda a: a.sum(0), each)
    else:
        twice = jax.vmap(jax.vmap(batched(cell), (None, 0, 0)), (None, 0, 0))
        rows, counts = xs.reshape(4, 4, T, D), lengths.reshape(4, 4)
        found = jax.grad(lambda p: twice(p, rows, counts).sum())(params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_an_ensemble_maps_over_parameters():
    cell = rnnjax.gru(3)
    _, xs, lengths = made(cell)
    params = jax.vmap(lambda key: cell.init(key, D))(jax.random.split(jax.random.key(2), 5))
    _, found = jax.vmap(lambda p: rnnjax.unroll(cell, p, xs, lengths))(params)
    for k in range(5):
        one = jax.tree.map(lambda a, k=k: a[k], params)
        np.testing.assert_allclose(found[k], rnnjax.unroll(cell, one, xs, lengths)[1], atol=1e-6)


def test_each_mapped_example_draws_the_noise_of_its_own_call():
    cell = rnnjax.variational_dropout(rnnjax.lstm(3), 0.5)
    params, xs, _ = made(cell)
    key = jax.random.key(3)
    _, found = jax.vmap(lambda x: rnnjax.unroll(cell, params, x, key=key))(xs)
    alone = [rnnjax.unroll(cell, params, x, key=key)[1] for x in xs[:3]]
    np.testing.assert_allclose(found[:3], jnp.stack(alone), atol=1e-6)


def test_a_mapped_call_uses_its_key_once():
    cell = rnnjax.variational_dropout(rnnjax.lstm(3), 0.5)
    params, xs, _ = made(cell)
    keys = jax.random.split(jax.random.key(3), len(xs))
    with jax.debug_key_reuse(True):
        jax.jit(jax.vmap(lambda x, key: rnnjax.unroll(cell, params, x, key=key)))(xs, keys)


def test_the_plan_counts_the_mapped_axis(monkeypatch):
    """Above the bytes that are hoisted the gates are computed in chunks, mapped or not."""
    from rnnjax.engine import _plan, _run

    seen = []
    plan = _plan.make_plan
    monkeypatch.setattr(_run, "make_plan", lambda *a: seen.append(plan(*a)) or seen[-1])
    cell = rnnjax.lstm(65)
    params, xs, lengths = made(cell)
    xs = jnp.tile(xs, (1, 16, 1))
    jax.jit(jax.grad(mapped(cell))).lower(params, xs, lengths)
    jax.jit(jax.vmap(jax.grad(batched(cell)), (None, 0, 0))).lower(params, xs, lengths)
    assert {seen[-1].chunk, seen[-2].chunk} == {128}


@pytest.mark.parametrize("take", ["value", "gradient"])
def test_a_compiled_function_that_is_mapped_gives_what_a_batch_gives(take):
    """Its plan is that of one sequence: it is compiled before anything maps it."""
    cell = rnnjax.gru(3)
    params, xs, lengths = made(cell)
    one = jax.jit(batched(cell))
    if take == "value":
        found = jax.vmap(one, (None, 0, 0))(params, xs, lengths).sum()
        expected = batched(cell)(params, xs, lengths)
    else:
        found = jax.grad(lambda p: jax.vmap(one, (None, 0, 0))(p, xs, lengths).sum())(params)
        expected = jax.grad(batched(cell))(params, xs, lengths)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_cell_that_reads_no_float_is_mapped_too():
    cell = rnnjax.Cell(
        1,
        init=lambda key, size: (),
        initial_carry=lambda params: jnp.zeros((1,)),
        project=lambda params, x: (x["i"],),
        plain_step=lambda params, carry, x_proj: (carry + x_proj[0], carry + x_proj[0]),
    )
    xs = jnp.arange(24).reshape(2, 3, 4, 1)
    ys = jax.vmap(lambda xs: rnnjax.unroll(cell, (), {"i": xs})[1])(xs)
    np.testing.assert_array_equal(ys, np.cumsum(xs, axis=2))


@pytest.mark.parametrize("nesting", ["together", "x inside", "x outside", "gradient"])
@pytest.mark.parametrize("where", ["update", "project", "plain_step"])
def test_what_a_cell_closes_over_may_be_mapped_with_its_inputs(where, nesting):
    """Each example is what it is alone."""
    inner = rnnjax.vanilla(3)
    params, xs, _ = made(inner)
    xs, rates = xs[:4], jnp.array([0.1, 0.3, 0.5, 0.9])

    def one(rate, x):
        def update(params, h, x_proj, h_proj):
            new = (1 - rate) * h + rate * jnp.tanh(x_proj[0] + h_proj[0])
            return new, new

        def plain_step(params, h, x_proj):
            return update(params, h, x_proj, (h @ params.w_hh,))

        changes = {
            "update": {"update": update},
            "project": {"project": lambda p, x: inner.project(p, rate * x)},
            "plain_step": {"plain_step": plain_step, "update": None, "recurrent": None},
        }
        return rnnjax.unroll(inner._replace(**changes[where]), params, x)[1]

    together = jnp.stack([one(rate, x) for rate, x in zip(rates, xs, strict=True)])
    each = jnp.stack([jnp.stack([one(rate, x) for x in xs]) for rate in rates])
    if nesting == "together":
        found, expected = jax.vmap(one)(rates, xs), together
    elif nesting == "x inside":
        found, expected = jax.vmap(lambda r: jax.vmap(lambda x: one(r, x))(xs))(rates), each
    elif nesting == "x outside":
        found = jax.vmap(lambda x: jax.vmap(lambda r: one(r, x))(rates))(xs)
        expected = each.swapaxes(0, 1)
    else:
        found = jax.grad(lambda rates: (jax.vmap(one)(rates, xs) ** 2).sum())(rates)
        alone = jax.grad(lambda rate, x: (one(rate, x) ** 2).sum())
        expected = jnp.stack([alone(rate, x) for rate, x in zip(rates, xs, strict=True)])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_cell_may_take_a_mean_over_the_axis_that_is_mapped():
    inner = rnnjax.vanilla(3)
    params, xs, _ = made(inner)

    def project(params, x):
        return (inner.project(params, x)[0] - jax.lax.pmean(inner.project(params, x)[0], "rows"),)

    cell = inner._replace(project=project)
    found = jax.vmap(lambda x: rnnjax.unroll(cell, params, x)[1], axis_name="rows")(xs)
    # The same of inputs whose mean over the rows is taken before; the bias cancels.
    centred = xs - xs.mean(0, keepdims=True)
    expected = rnnjax.unroll(inner, params._replace(bias=0 * params.bias), centred)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
