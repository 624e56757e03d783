"""What a cell that computes many steps at once gives, and what its derivative keeps."""

import jax
import jax.numpy as jnp
from cases import D, One, batch_alone, init, ragged, random_carry
from trees import value_and_gradients

import rnnjax


def chunked_and_alone(cell, reverse, options, remat):
    """Values and gradients of a ragged batch in chunks, and of each of its sequences alone."""
    spec = One(cell, reverse)
    params, batch = init(spec), ragged(options)
    start = random_carry(spec, params)

    @jax.jit
    def ours(params, start, xs):
        def run(params, start, xs):
            how = {"implementation": "chunked", "remat": remat, "reverse": reverse}
            return rnnjax.unroll(cell, params, xs, initial_carry=start, **how, **batch.options)

        return value_and_gradients(run, params, start, xs)

    def oracle(params, start, xs):
        return batch_alone(spec, params, batch, start, xs)

    args = params, start, batch.xs
    return ours(*args), value_and_gradients(oracle, *args)


def lowered_gradient(cell):
    """The program of the gradient of a sum over 256 steps of two sequences, as text."""
    params, xs = init(One(cell)), jnp.ones((2, 256, D))
    loss = lambda p: jnp.sum(rnnjax.unroll(cell, p, xs)[1])  # noqa: E731
    return jax.jit(jax.grad(loss)).lower(params).as_text()
