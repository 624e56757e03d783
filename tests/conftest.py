"""Settings every test runs under."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
from hypothesis import settings

# A silent broadcast between arrays of different rank is how batch axes get mixed up.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Examples are the same in every run; the first call of a test compiles, so none is timed.
settings.register_profile("rnnjax", deadline=None, derandomize=True)
settings.load_profile("rnnjax")
