"""An older JAX, which other packages may have brought since, is refused in words of its own."""

import jax

OLDEST_JAX = (0, 10, 2)  # as in pyproject.toml

if jax.__version_info__ < OLDEST_JAX:
    _needed = ".".join(map(str, OLDEST_JAX))
    raise ImportError(f"rnnjax needs JAX {_needed} or later, got {jax.__version__}")
