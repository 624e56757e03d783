"""The layers that the tests of ``rnnjax.interop`` compare with those of other libraries."""

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from rnnjax.cells.coupled_lstm import coupled_lstm
from rnnjax.cells.minimal_gated import minimal_gated
from rnnjax.cells.peephole_lstm import peephole_lstm
from rnnjax.cells.projected_lstm import projected_lstm

B, T, D, H, P = 3, 5, 3, 4, 2
LENGTHS = np.array([3, T, 1], np.int32)  # most libraries are wrong at length 0, or refuse it
VALID = np.arange(T) < LENGTHS[:, None]
TOLERANCE = {"value": 1e-12, "gradient": 1e-11}
CELLS = {
    "vanilla": rnnjax.vanilla(H),
    "lstm": rnnjax.lstm(H),
    "optimized_lstm": rnnjax.lstm(H),
    "projected_lstm": projected_lstm(H, P),
    "peephole_lstm": peephole_lstm(H),
    "coupled_lstm": coupled_lstm(H),
    "gru": rnnjax.gru(H),
    "gru_reset_before": rnnjax.gru(H, reset_after=False),
    "minimal_gated": minimal_gated(H),
}


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def draw_like(tree, seed=0, scale=1.0):
    """A tree of the same shapes and dtypes, drawn from a normal distribution."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: (scale * rng.normal(size=a.shape)).astype(a.dtype), tree)


def make_layer(cell, num_layers=1, bidirectional=False):
    one = rnnjax.bidirectional(cell) if bidirectional else rnnjax.recurrent(cell)
    return one if num_layers == 1 else rnnjax.stack(*[one] * num_layers)


def random_params(layer, seed=0, dtype=np.float64):
    """Parameters of NumPy arrays, none of them zero."""
    shapes = jax.eval_shape(lambda key: layer.init(key, D), jax.random.key(0))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), shapes)
    return draw_like(shapes, seed, 0.5)


def run(layer, params, xs, lengths=None):
    """``((carry, ys), pullback)``: what the layer says, and its gradients."""
    apply = jax.jit(lambda params, xs: layer.apply(params, xs, lengths))
    return jax.vjp(apply, jax.tree.map(jnp.asarray, params), jnp.asarray(xs))


def at_valid_steps(ys):
    return jnp.where(VALID[:, :, None], ys, 0)


def states(carry):
    """The states of a carry of any layer in one list: h, or h and c, row by row."""
    return jax.tree.leaves(carry)


def as_flax(carries):
    """Our states h, c of every row as Flax orders them: c, h."""
    rows = jax.tree.leaves(carries, is_leaf=lambda node: hasattr(node, "c"))
    return [state for row in rows for state in ([row.c, row.h] if hasattr(row, "c") else [row])]


def assert_close(got, expected, kind="value"):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=TOLERANCE[kind], atol=TOLERANCE[kind])


def assert_equal(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
