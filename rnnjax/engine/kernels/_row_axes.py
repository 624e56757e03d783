"""Where the rows of the batch lie in what the kernels take and give."""

from typing import Any, NamedTuple

import jax

from rnnjax.engine._step import Inputs, Weights

# An axis; None: all rows share it.
_SHARED: Any = None
_FIRST: Any = 0
_SECOND: Any = 1
ARGUMENTS = (
    Weights(w_hh=_SHARED, params=_SHARED, reset_carry=_FIRST, hidden_noise=_FIRST),
    _FIRST,
    Inputs(x_projs=_SECOND, valid=_SECOND, resets=_SECOND),
)
SAVED = (2, 1)  # h by parts, what is kept


class RowAxes(NamedTuple):
    """The axis of the rows in what a function takes and gives, as prefixes of these trees."""

    given: Any
    results: Any


def axes_of_leaves(prefix: Any, tree: Any) -> list:
    """``prefix`` with one entry for each leaf of ``tree``."""
    spread = jax.tree.map(
        lambda axis, below: [axis] * len(jax.tree.leaves(below)),
        prefix,
        tree,
        is_leaf=lambda a: a is None,
    )
    found: list = []
    jax.tree.map(found.extend, spread, is_leaf=lambda a: isinstance(a, list))
    return found
