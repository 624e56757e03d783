"""Products with Jacobians and Hessians, and models trained side by side, against plain loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import rnnjax
from rnnjax.transforms import variational_dropout, zoneout

pytestmark = pytest.mark.usefixtures("float64", "quick_compile")

H, D, T = 2, 2, 3
LENGTHS = np.array([3, 1])
KEY = jax.random.key(11)
EXACT = {"rtol": 1e-10, "atol": 1e-11}  # float64, sums in another order
NOISY = zoneout(variational_dropout(rnnjax.lstm(H), inputs=0.3, hidden=0.3), 0.3)
CELLS = {
    "vanilla": rnnjax.vanilla(H),
    "lstm": rnnjax.lstm(H),
    "gru": rnnjax.gru(H),
    "noisy": NOISY,
}
EVERY_CELL = pytest.mark.parametrize("name", CELLS)


@functools.cache
def problem(name):
    """Losses of a flat vector of parameters, by the engine and by a loop, and where to look."""
    cell = CELLS[name]
    xs = jax.random.normal(jax.random.key(1), (2, T, D), jnp.float64)
    params = jax.tree.map(jnp.float64, cell.init(jax.random.key(0), D))
    noise = rnnjax.Noise()
    if cell.noise is not None:
        noise = jax.jit(lambda: cell.noise(KEY, params, rnnjax.NoiseShape(2, T, D)))()
        cell = cell._replace(noise=lambda *_: noise)  # drawn once for all: compiles sooner
    point, unravel = ravel_pytree(params)

    def engine(point):
        _, ys = rnnjax.unroll(cell, unravel(point), xs, LENGTHS, key=KEY)
        return ys

    def loop(point):
        return plain_loop(cell, unravel(point), xs, noise)

    def loss(run):
        weights = jnp.cos(jnp.arange(2 * T * H, dtype=jnp.float64))
        return lambda point: jnp.sum(weights * jnp.square(run(point)).ravel())

    return point, engine, loop, jax.jit(loss(engine)), jax.jit(loss(loop))


@functools.cache
def jacobian_of_the_loop(name):
    point, _, loop, _, _ = problem(name)
    return jax.jit(jax.jacrev(loop))(point)


def plain_loop(cell, params, xs, noise):
    """A Python loop over real steps, with the noise where the base module says it acts."""
    ys = jnp.zeros((2, T, H))
    for b, length in enumerate(LENGTHS):
        carry = cell.initial_carry(params)
        for t in range(length):
            x = xs[b, t] if noise.inputs is None else xs[b, t] * noise.inputs[b]
            h = cell.hidden(carry)
            h = h if noise.hidden is None else h * noise.hidden[b]
            own = jax.tree.map(lambda a, t=t, b=b: a[t, b], noise.steps)
            z = cell.project(params, x)
            r = tuple(jnp.split(h @ cell.recurrent(params), len(z)))
            carry, y = cell.update(params, carry, (*z, *own), r)
            ys = ys.at[b, t].set(y)
    return ys


def directions(size, count=2):
    return jax.random.normal(jax.random.key(5), (count, size), jnp.float64)


@EVERY_CELL
@pytest.mark.kept
def test_jacobian_products_are_those_of_a_plain_loop(name):
    point, engine, *_ = problem(name)
    jacobian = jacobian_of_the_loop(name)
    (v, _), u = directions(point.size), jnp.cos(jnp.arange(2 * T * H, dtype=jnp.float64))
    u = u.reshape(2, T, H)
    np.testing.assert_allclose(jax.jvp(engine, (point,), (v,))[1], jacobian @ v, **EXACT)
    np.testing.assert_allclose(
        jax.vjp(engine, point)[1](u)[0], jnp.einsum("bth,bthp->p", u, jacobian), **EXACT
    )


@functools.cache
def hessian_of_the_loop(name):
    point, *_, plain = problem(name)
    return jax.jit(jax.hessian(plain))(point)


@EVERY_CELL
def test_the_hessian_is_that_of_a_plain_loop(name):
    point, *_, loss, _ = problem(name)
    hessian = hessian_of_the_loop(name)
    assert np.abs(hessian).max() > 0.1
    np.testing.assert_allclose(jax.jit(jax.hessian(loss))(point), hessian, **EXACT)


def forward_over_reverse(loss, point, v):
    return jax.jvp(jax.grad(loss), (point,), (v,))[1]


def reverse_over_forward(loss, point, v):
    return jax.grad(lambda p: jax.jvp(loss, (p,), (v,))[1])(point)


def reverse_over_reverse(loss, point, v):
    return jax.grad(lambda p: jax.grad(loss)(p) @ v)(point)


ORDERS = {
    "vanilla": [reverse_over_reverse],
    "lstm": [forward_over_reverse, reverse_over_forward, reverse_over_reverse],
    "gru": [reverse_over_forward],
    "noisy": [forward_over_reverse],
}


@pytest.mark.parametrize(("name", "product"), [(n, p) for n in ORDERS for p in ORDERS[n]])
def test_hessian_products_are_right_in_either_order(name, product):
    point, *_, loss, _ = problem(name)
    run = jax.jit(functools.partial(product, loss))
    for v in directions(point.size):
        np.testing.assert_allclose(run(point, v), hessian_of_the_loop(name) @ v, **EXACT)


def test_hessian_products_are_differences_of_gradients():
    point, *_, loss, _ = problem("noisy")
    grad = jax.jit(jax.grad(loss))
    v, _ = directions(point.size)
    difference = (grad(point + 1e-5 * v) - grad(point - 1e-5 * v)) / 2e-5
    product = jax.jit(functools.partial(forward_over_reverse, loss))(point, v)
    np.testing.assert_allclose(product, difference, rtol=1e-6, atol=1e-7)


@EVERY_CELL
def test_gauss_newton_products_join_both_modes(name):
    point, engine, *_ = problem(name)
    jacobian = jacobian_of_the_loop(name).reshape(-1, point.size)
    v, _ = directions(point.size)
    _, tangent = jax.jvp(engine, (point,), (v,))
    product = jax.vjp(engine, point)[1](tangent)[0]
    np.testing.assert_allclose(product, jacobian.T @ (jacobian @ v), **EXACT)


@EVERY_CELL
def test_models_side_by_side_are_each_model_alone(name):
    point, _, _, loss, plain = problem(name)
    points = point[None] + 0.3 * directions(point.size, 3)
    step = jax.jit(jax.vmap(lambda p: p - 0.1 * jax.grad(loss)(p)))
    alone = jax.jit(lambda p: p - 0.1 * jax.grad(plain)(p))
    np.testing.assert_allclose(step(step(points)), [alone(alone(p)) for p in points], **EXACT)
