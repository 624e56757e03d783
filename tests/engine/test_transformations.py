"""The loop under the transformations and modes of JAX, and cells that close over traced values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

B, T, D, H = 2, 5, 3, 4
CELLS = {
    "lstm": rnnjax.lstm(H),
    "gru": rnnjax.gru(H),
    "plain_step": rnnjax.gru(H, reset_after=False),
    "indrnn": rnnjax.indrnn(H),
    "lru": rnnjax.lru(H),
}


def loss_of(cell, xs, **options):
    def loss(params):
        carry, ys = rnnjax.unroll(cell, params, xs, **options)
        leaves = jax.tree.leaves((carry, ys))
        return sum((jnp.abs(leaf) ** 2).sum() for leaf in leaves)

    return loss


def made(cell):
    return cell.init(jax.random.key(0), D), jax.random.normal(jax.random.key(1), (B, T, D))


def assert_same(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.kept
def test_derivatives_are_those_of_the_compiled_program_with_jit_disabled(name):
    params, xs = made(CELLS[name])
    loss = loss_of(CELLS[name], xs, lengths=[5, 2])
    expected = jax.grad(loss)(params), jax.jvp(loss, (params,), (params,))
    with jax.disable_jit():
        found = jax.grad(loss)(params), jax.jvp(loss, (params,), (params,))
    assert_same(found, expected)


@pytest.mark.parametrize("remat", [None, 2])
def test_no_steps_and_chunks_of_steps_run_with_jit_disabled(remat):
    cell = CELLS["lstm"]
    params, xs = made(cell)
    whole = loss_of(cell, xs, remat=remat)
    none = loss_of(cell, xs[:, :0], remat=remat)
    expected = jax.grad(whole)(params), jax.grad(none)(params)
    with jax.disable_jit():
        assert_same((jax.grad(whole)(params), jax.grad(none)(params)), expected)


def leaky(rate):
    """A cell with a rate that is no parameter."""
    inner = rnnjax.vanilla(H)

    def update(params, h, x_proj, h_proj):
        h = (1 - rate) * h + rate * jnp.tanh(x_proj[0] + h_proj[0])
        return h, h

    return inner._replace(update=update)


@pytest.mark.parametrize("remat", [None, 2])
def test_a_cell_may_close_over_a_value_that_is_differentiated(remat):
    params, xs = made(leaky(0.3))

    def loss(rate):
        return loss_of(leaky(rate), xs, remat=remat)(params)

    with jax.enable_x64(True):
        params, xs = jax.tree.map(lambda a: a.astype(jnp.float64), (params, xs))
        rate, step = jnp.float64(0.3), 1e-6
        expected = (loss(rate + step) - loss(rate - step)) / (2 * step)
        np.testing.assert_allclose(jax.grad(loss)(rate), expected, rtol=1e-6)
        np.testing.assert_allclose(jax.jit(jax.grad(loss))(rate), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["int", "bool", "key", "float"])
@pytest.mark.parametrize("take", ["jit", "scan", "vmap"])
def test_a_cell_may_close_over_a_traced_value_that_is_not_differentiated(kind, take):
    """Its gradient is that of the cell with the value known."""
    value = {
        "int": np.int32(2),
        "bool": np.bool_(True),
        "key": jax.random.key(3),
        "float": np.float32(1.5),
    }[kind]

    def gradient(value, params):
        def update(params, h, x_proj, h_proj):
            z = x_proj[0] + h_proj[0]
            extra = jax.random.normal(value, (H,)) if kind == "key" else jnp.where(value, z, 2 * z)
            h = jnp.tanh(z * value + extra) if kind == "float" else jnp.tanh(z + extra)
            return h, h

        return jax.grad(loss_of(rnnjax.vanilla(H)._replace(update=update), xs))(params)

    params, xs = made(rnnjax.vanilla(H))
    values = jnp.stack([value, value])
    found = {
        "jit": lambda: jax.jit(gradient)(value, params),
        "scan": lambda: first(jax.lax.scan(lambda _, v: (_, gradient(v, params)), 0, values)[1]),
        "vmap": lambda: first(jax.vmap(gradient, (0, None))(values, params)),
    }[take]()
    assert_same(found, gradient(value, params))


def first(tree):
    return jax.tree.map(lambda a: a[0], tree)


def test_a_step_by_itself_may_close_over_a_value_that_is_differentiated():
    params, xs = made(leaky(0.3))

    def by_step(rate):
        return jnp.sum(leaky(rate).step(params, None, xs[:, 0])[1] ** 2)

    def whole(rate):
        return jnp.sum(rnnjax.unroll(leaky(rate), params, xs[:, :1])[1] ** 2)

    assert_same(jax.grad(by_step)(0.3), jax.grad(whole)(0.3))


def test_a_hidden_that_closes_over_a_traced_value_is_refused():
    params, xs = made(CELLS["gru"])

    def loss(factor):
        cell = rnnjax.gru(H)._replace(hidden=lambda h: factor * h)
        return loss_of(cell, xs)(params)

    with pytest.raises(
        ValueError, match="hidden must not close over a traced value, got one: put it into"
    ):
        jax.grad(loss)(1.0)


@pytest.mark.parametrize("steps", [T, T + 1, 100])
def test_one_chunk_is_run_again_as_many_chunks_are(steps):
    """What is kept for the backward loop is the first carry, whatever ``remat`` is above T."""
    params, xs = made(CELLS["lstm"])

    def loops(remat):
        grad = jax.jit(jax.grad(loss_of(CELLS["lstm"], xs, remat=remat)))
        return grad.lower(params).compile().as_text().count(" while(")

    assert loops("never") == 2  # forwards and backwards
    assert loops(steps) == 3  # forwards, and again before backwards


def test_an_eager_call_with_lengths_is_one_compiled_program():
    cell = CELLS["lstm"]
    params, xs = made(cell)
    lengths, mask = np.array([5, 2]), np.ones((B, T), bool)
    rnnjax.unroll(cell, params, xs, lengths, mask=mask)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    jax.clear_caches()
    rnnjax.unroll(cell, params, xs, lengths, mask=mask)
    assert len(compiled) == 1


def test_the_gradient_of_a_decay_that_is_zero_is_zero():
    cell = rnnjax.lru(H)
    params, xs = made(cell)
    params = params._replace(nu_log=jnp.array([0.0, 89.0, 100.0, 1e9]))
    grad = jax.grad(loss_of(cell, xs))(params)
    assert all(jnp.isfinite(leaf).all() for leaf in grad)
    np.testing.assert_array_equal(grad.nu_log[1:], 0)
    assert grad.nu_log[0] != 0
