"""Settings every test runs under."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import pytest
from hypothesis import settings

# A silent broadcast between arrays of different rank is how batch axes get mixed up.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Examples are the same in every run; the first call of a test compiles, so none is timed.
settings.register_profile("rnnjax", deadline=None, derandomize=True)
settings.load_profile("rnnjax")

_since_cleared = 0


@pytest.fixture
def float64():
    """JAX computes in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def quick_compile():
    """XLA optimises little, for suites of small programs by the hundred.

    Compiling is most of their time, and what they hold the library to is mathematics. That the
    optimised programs keep to it, too, is seen by ``tests/reference`` and by all that runs scripts.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def pytest_runtest_logfinish(nodeid, location):
    """Drop compiled programs now and then: kept, thousands of them use up a process's memory maps.

    Linux gives a process 65,530 of these; XLA takes several for each program and dies without one.
    A test is over here, its fixtures too: nothing is dropped in the middle of an ``enable_x64``.
    """
    global _since_cleared
    _since_cleared += 1
    if _since_cleared >= 300:
        jax.clear_caches()
        _since_cleared = 0
