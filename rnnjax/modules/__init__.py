"""Recurrent modules for Flax: ``modules.nnx`` and ``modules.linen``, with the same names in both.

============== ==========================================================================
name           what it is
============== ==========================================================================
``RNN``        a cell over whole sequences, in place of Flax's ``RNN``: takes Flax's own
               cells, with their parameters as they are, and those below
``RNNCell``    any ``rnnjax.Cell`` as Flax's ``RNNCellBase``
``LSTMCell``   the same for ``rnnjax.lstm``
``GRUCell``    for ``rnnjax.gru``
``SimpleCell`` for ``rnnjax.vanilla``
============== ==========================================================================

Flax's ``Bidirectional`` takes two of these ``RNN`` as it takes its own. This file loads Flax;
``import rnnjax`` does not.

Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from rnnjax import modules
    >>> layer = modules.nnx.RNN(nnx.OptimizedLSTMCell(3, 4, rngs=nnx.Rngs(0)))  # was nnx.RNN(...)
    >>> layer(jnp.ones((2, 5, 3)), seq_lengths=jnp.array([5, 2])).shape
    (2, 5, 4)
"""

from rnnjax._checks import missing_package

try:
    import flax  # noqa: F401
except ModuleNotFoundError as error:
    raise missing_package("rnnjax.modules", "flax", "flax") from error

from . import linen as linen
from . import nnx as nnx

__all__ = ["linen", "nnx"]
