"""When two trees of float64 results are the same."""

import jax
import jax.numpy as jnp
import numpy as np

EXACT = {"rtol": 1e-10, "atol": 1e-12}  # float64, sums in another order


def assert_trees_equal(actual, expected, **tolerance):
    """Of one structure and one dtype, leaf by leaf, and equal to ``EXACT`` or the tolerance."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_allclose(a, e, **(tolerance or EXACT))


def value_and_gradients(run, *args):
    """The carry and outputs of a run of three arguments, and the gradients of a weighted sum."""

    def loss(*args):
        results = run(*args)
        leaves = jax.tree.leaves(results)
        weights = [jnp.cos(jnp.arange(a.size) + k).reshape(a.shape) for k, a in enumerate(leaves)]
        return sum(jnp.sum(a * w) for a, w in zip(leaves, weights, strict=True)), results

    (_, results), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*args)
    return results, grads
