"""Transforms of a cell hand the constants of a sequence on to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

H, D = 4, 3
PLAIN = rnnjax.gru(H)


def shifted(x_proj, shift):
    return tuple(piece + shift for piece in x_proj)


def cell_with_context():
    """A GRU whose gates are all shifted by a constant: what a shift of its biases does, too."""

    def update(params, carry, x_proj, h_proj, shift):
        return PLAIN.update(params, carry, shifted(x_proj, shift), h_proj)

    def gates(params, carry, x_proj, h_proj, shift):
        return PLAIN.gates(params, carry, shifted(x_proj, shift), h_proj)

    return PLAIN._replace(
        update=update, gates=gates, context=lambda params, given: given.astype(params.bias.dtype)
    )


def step_with_context():
    plain = rnnjax.gru(H, reset_after=False)

    def plain_step(params, carry, x_proj, shift):
        return plain.plain_step(params, carry, shifted(x_proj, shift))

    return plain, plain._replace(
        plain_step=plain_step,
        gates=None,
        context=lambda params, given: given.astype(params.bias.dtype),
    )


TRANSFORMS = {
    "layer_norm": rnnjax.layer_norm,
    "zoneout": lambda cell: rnnjax.zoneout(cell, 0.2),
    "learned": rnnjax.learn_initial_carry,
    "policy": lambda cell: rnnjax.with_policy(cell, rnnjax.Policy()),
    "dropout": lambda cell: rnnjax.variational_dropout(cell, 0.1, 0.2),
    "gates": rnnjax.trace_gates,
}


def shift_biases(params, shift):
    if isinstance(params, rnnjax.GRUParams):
        return params._replace(bias=params.bias + jnp.tile(shift, 3))
    return params._replace(cell=shift_biases(params.cell, shift))


def close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transformed_cell_reads_the_context(name):
    xs = jax.random.normal(jax.random.key(1), (2, 5, D))
    shift = jnp.arange(4.0) / 4
    cell, plain = TRANSFORMS[name](cell_with_context()), TRANSFORMS[name](PLAIN)
    params = cell.init(jax.random.key(0), D)
    context = jnp.broadcast_to(shift, (2, H))
    key = jax.random.key(2) if name == "dropout" else None
    found = rnnjax.unroll(cell, params, xs, context=context, key=key)
    close(found, rnnjax.unroll(plain, shift_biases(params, shift), xs, key=key))


@pytest.mark.parametrize("name", ["zoneout", "learned", "policy"])
def test_so_does_a_plain_step(name):
    xs, shift = jax.random.normal(jax.random.key(1), (2, 5, D)), jnp.arange(4.0) / 4
    plain, cell = map(TRANSFORMS[name], step_with_context())
    params = cell.init(jax.random.key(0), D)
    found = rnnjax.unroll(cell, params, xs, context=jnp.broadcast_to(shift, (2, H)))
    close(found, rnnjax.unroll(plain, shift_biases(params, shift), xs))
