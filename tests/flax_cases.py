"""Shared by the tests of the Flax modules: a ragged batch, options of ``RNN``, a comparison."""

import jax
import jax.numpy as jnp
import numpy as np

B, T, D, H = 3, 4, 3, 5
LENGTHS = np.array([2, T, 1])  # Flax returns a wrong carry at length 0
VALID = np.arange(T) < LENGTHS[:, None]
OPTIONS = {
    "plain": {},
    "lengths": {"seq_lengths": LENGTHS},
    "reverse": {"reverse": True},
    "reverse_lengths": {"reverse": True, "seq_lengths": LENGTHS},
    "keep_order": {"reverse": True, "keep_order": True, "seq_lengths": LENGTHS},
}


def draw(seed, *shape):
    """Normal numbers in the default float dtype."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def close(got, expected, tolerance=1e-12):
    """Two trees of one structure agree leaf by leaf; tolerance 0 means bit by bit."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, expected
    )


def valid_steps(options):
    """The steps [B, T] that are real under a row of ``OPTIONS``."""
    return VALID if "seq_lengths" in options else np.ones((B, T), bool)
