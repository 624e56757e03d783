"""Outputs that carry the gate values of every step beside them."""

from typing import Any

from rnnjax._checks import check_cell
from rnnjax._recipe import factory
from rnnjax.base import Carry, Cell, Params


@factory
def trace_gates(cell: Cell) -> Cell:
    """The same cell, whose outputs are ``(y, gates)``: the gate values of every step beside it.

    Gates of masked steps are zero, like every output.

    Args:
        cell: a cell with gates, such as ``lstm`` or ``gru``.

    Raises:
        ValueError: ``cell`` is no ``rnnjax.Cell``, or one without gates to show.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.lstm(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> _, (ys, gates) = rnnjax.unroll(rnnjax.trace_gates(cell), params, jnp.ones((5, 3)))
        >>> gates.f.shape, bool(jnp.all((gates.f > 0) & (gates.f < 1)))
        ((5, 4), True)
    """
    check_cell(cell)
    if cell.gates is None:
        raise ValueError("trace_gates needs a cell with gates: the field gates of this one is None")
    gates, update, step = cell.gates, cell.update, cell.plain_step

    def traced_update(
        params: Params, carry: Carry, x_proj: tuple, h_proj: tuple, *context: Any
    ) -> tuple[Carry, Any]:
        assert update is not None
        new, y = update(params, carry, x_proj, h_proj, *context)
        return new, (y, gates(params, carry, x_proj, h_proj, *context))

    def traced_step(
        params: Params, carry: Carry, x_proj: tuple, *context: Any
    ) -> tuple[Carry, Any]:
        assert step is not None
        new, y = step(params, carry, x_proj, *context)
        return new, (y, gates(params, carry, x_proj, (), *context))

    if step is not None:
        return cell._replace(plain_step=traced_step)
    return cell._replace(update=traced_update, chunk=None)
