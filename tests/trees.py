"""When two trees of float64 results are the same."""

import jax
import numpy as np

EXACT = {"rtol": 1e-10, "atol": 1e-12}  # float64, sums in another order


def assert_trees_equal(actual, expected, **tolerance):
    """Of one structure and one dtype, leaf by leaf, and equal to ``EXACT`` or the tolerance."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_allclose(a, e, **(tolerance or EXACT))
