"""A cell that starts from a carry it learns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from rnnjax._checks import check_carry, check_cell
from rnnjax._recipe import factory
from rnnjax.base import Carry, Cell, Key, Noise, NoiseShape
from rnnjax.engine._arguments import check_carry_dtypes


class LearnedCarryParams(NamedTuple):
    """``cell``, the parameters of the cell below, and ``initial_carry``, a tree like its carry, in
    which a complex array [...] is a real one [..., 2] of real and imaginary parts."""

    cell: Any
    initial_carry: Carry


@factory
def learn_initial_carry(cell: Cell) -> Cell:
    r"""The same cell with its initial carry as a parameter, :math:`s_0 = \theta`.

    Every sequence starts from the learned carry, and so does every segment after a reset, in both
    directions; its gradient is the sum over all of them. A sequence given an ``initial_carry``
    of its own uses the learned one only after resets. Everything else is the cell's own.

    Args:
        cell: any cell. The learned carry starts at the cell's own initial carry: zeros, for the
            cells of this package. All of it is learned, a count that is kept as a float, too.

    Raises:
        ValueError: ``cell`` is no ``rnnjax.Cell``; from ``init``, its carry has integers or flags;
            where it is run, the learned carry is not that of the cell.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.learn_initial_carry(rnnjax.gru(4))
        >>> params = cell.init(jax.random.key(0), 3)
        >>> params = params._replace(initial_carry=jnp.arange(4.0))
        >>> carry, ys = rnnjax.unroll(cell, params, jnp.ones((2, 5, 3)), lengths=[5, 0])
        >>> carry[1].tolist()
        [0.0, 1.0, 2.0, 3.0]

    References:
        Forcada and Carrasco, "Learning the initial state of a second-order recurrent neural
        network during regular-language inference", Neural Computation 7 (1995).
    """
    check_cell(cell)
    inner_noise = cell.noise

    def init(key: Key, input_size: int) -> LearnedCarryParams:
        params = cell.init(key, input_size)
        carry = cell.initial_carry(params)
        check_carry_dtypes(carry)
        return LearnedCarryParams(params, jax.tree.map(_as_real, carry))

    def initial_carry(params: LearnedCarryParams) -> Carry:
        # Parameters may be narrow; a carry has the dtype in which the cell computes.
        own = jax.eval_shape(cell.initial_carry, params.cell)
        expected = jax.eval_shape(lambda carry: jax.tree.map(_as_real, carry), own)
        learned = check_carry("params.initial_carry", params.initial_carry, expected)
        return jax.tree.map(_in_dtype_of, own, learned)

    def noise(key: Key, params: LearnedCarryParams, shape: NoiseShape) -> Noise:
        assert inner_noise is not None
        return inner_noise(key, params.cell, shape)

    return cell._replace(
        init=init,
        initial_carry=initial_carry,
        project=_below(cell.project),
        recurrent=_below(cell.recurrent),
        update=_below(cell.update),
        plain_step=_below(cell.plain_step),
        gates=_below(cell.gates),
        linear=_below(cell.linear),
        chunk=_below(cell.chunk),
        context=_below(cell.context),
        noise=noise if inner_noise else None,
    )


def _below(function: Any) -> Any:
    """``function`` on the parameters of the cell below; None stays None."""
    if function is None:
        return None

    def on_inner_params(params: LearnedCarryParams, *rest: Any) -> Any:
        return function(params.cell, *rest)

    return on_inner_params


def _as_real(a: Array) -> Array:
    """What an optimizer can train: JAX's gradient of a complex array is not the way downhill."""
    return jnp.stack([a.real, a.imag], -1) if jnp.iscomplexobj(a) else a


def _in_dtype_of(own: Any, a: Array) -> Array:
    return lax.complex(a[..., 0], a[..., 1]) if jnp.iscomplexobj(own) else a
