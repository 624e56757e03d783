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

**Which way a cell runs.** Cells of this package and Flax's ``LSTMCell``, ``OptimizedLSTMCell``,
``GRUCell``, ``SimpleCell`` and, in linen, ``MGUCell`` run by :func:`rnnjax.unroll`. Every other
cell (``ConvLSTMCell``, a subclass, one of your own, one with a layer inside it replaced), and every
cell where the scan of Flax is given settings of its own (``state_axes``, ``variable_axes`` ...),
runs by its own ``__call__`` step by step and is differentiated by ordinary autodiff, as in Flax.

**What differs from Flax on purpose**, for every cell:

- outputs at padded steps are zero; Flax's are those of a cell that has run on;
- the final carry of an empty sequence is its initial carry; Flax takes that of the whole row;
- padding is never read: NaN there reaches no output and no gradient;
- there may be any number of batch axes, also with ``seq_lengths`` and ``return_carry``;
- ``seq_lengths`` whose values are known are checked, not clamped;
- for cells that run by :func:`rnnjax.unroll` sums are taken in float32 or wider, and the keys of
  ``nnx`` advance only for a carry that is drawn.

And of the cells of this package, beside those of the same names in Flax:

- parameters are the arrays of rnnjax (``w_ih``, ``w_hh``, ``bias``), all gates in one, where Flax
  has a layer a gate; ``rnnjax.interop.nnx`` and ``.linen`` convert them;
- initial weights are those of rnnjax unless ``initializer="flax"`` or Flax's own arguments say
  otherwise; they are drawn in float32 and then cast to ``param_dtype``;
- ``GRUCell`` has the hidden bias that Flax's linen has and its nnx lacks;
- ``RNNCell`` has the carry of the cell that it is given, ``LSTMCarry(h, c)`` for ``rnnjax.lstm``;
  that of ``LSTMCell`` is ``(c, h)`` as in Flax;
- noise is drawn for a whole sequence, so a cell with dropout trains in ``RNN`` here alone;
- nnx's ``promote_dtype`` and ``keep_rngs`` are not taken, and a zero carry needs no ``rngs``.

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
