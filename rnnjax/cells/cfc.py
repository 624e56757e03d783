"""The closed-form continuous-time cell, for steps between which different times pass."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import sigmoid

from rnnjax._checks import check_key, check_size
from rnnjax._numerics import affine, split_gates
from rnnjax._recipe import factory
from rnnjax.base import Cell
from rnnjax.cells._common import draw_packed, input_and_elapsed, packed_cell
from rnnjax.initializers import CellInitializer, resolve


class CfCParams(NamedTuple):
    """``w_ih`` [D, 4H], ``w_hh`` [H, 4H], ``bias`` [4H]; packed f, g, a, b."""

    w_ih: Array
    w_hh: Array
    bias: Array


def _project(params: CfCParams, x: Any) -> tuple:
    inputs, elapsed = input_and_elapsed(x)
    sums = split_gates(affine(inputs, params.w_ih, params.bias), 4)
    dtype = sums[0].dtype
    return *sums, jnp.ones((1,), dtype) if elapsed is None else elapsed.astype(dtype)


def _update(params: CfCParams, carry: Array, x_proj: tuple, h_proj: tuple) -> tuple[Array, Array]:
    *sums, elapsed = x_proj
    f, g, a, b = (x + h for x, h in zip(sums, h_proj, strict=True))
    late = sigmoid(a * elapsed + b)
    h = (1 - late) * jnp.tanh(f) + late * jnp.tanh(g)
    return h, h


@factory
def cfc(hidden_size: int, *, initializer: str | CellInitializer = "rnnjax") -> Cell:
    r"""The closed-form continuous-time cell (CfC): it is told how much time a step takes.

    .. math::

        (f, g, a, b) &= x_t W_{ih} + h_{t-1} W_{hh} + \mathrm{bias} \\
        h_t &= \sigma(-a \Delta_t - b) \tanh(f) + \sigma(a \Delta_t + b) \tanh(g)

    For series whose samples are not evenly spaced: :math:`\Delta_t` is the time since the step
    before, in any unit that makes it about 1. Inputs are a tuple ``(xs [..., T, D], elapsed
    [..., T, 1])``; inputs alone are steps of :math:`\Delta_t = 1`. There is no backbone: the four
    parts are linear in the input and the carry, which are [H] and equal to the output.

    Args:
        hidden_size: H.
        initializer: a name in ``rnnjax.initializers.PRESETS``, or one of your own.

    Raises:
        ValueError: a size is not a positive integer, or the initializer is unknown; when it runs,
            elapsed times of another shape.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.cfc(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs, elapsed = jnp.ones((2, 5, 3)), jnp.full((2, 5, 1), 0.5)
        >>> carry, ys = rnnjax.unroll(cell, params, (xs, elapsed), lengths=[5, 2])
        >>> ys.shape, carry.shape
        ((2, 5, 4), (2, 4))

    References:
        Hasani et al., "Closed-form continuous-time neural networks", Nature Machine Intelligence 4
        (2022), arXiv:2106.13898.
    """
    size = check_size("hidden_size", hidden_size)
    draw = resolve(initializer)

    def init(key: Array, input_size: int) -> CfCParams:
        keys = jax.random.split(check_key(key), 3)
        return CfCParams(*draw_packed(draw, keys, check_size("input_size", input_size), size, 4))

    return packed_cell(4, size, init, _update)._replace(project=_project)
