"""The independently recurrent cell."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax._checks import check_function, check_key, check_size
from rnnjax._recipe import factory
from rnnjax.base import Cell
from rnnjax.cells._common import project_packed, zeros_of
from rnnjax.initializers import CellInitializer, resolve


class IndRNNParams(NamedTuple):
    """``w_ih`` [D, H], ``w_hh`` [H], one recurrent weight a unit, ``bias`` [H]."""

    w_ih: Array
    w_hh: Array
    bias: Array


@factory
def indrnn(
    hidden_size: int,
    activation: Callable[[Array], Array] = jax.nn.relu,
    *,
    recurrent_range: tuple[float, float] = (0.0, 1.0),
    initializer: str | CellInitializer = "rnnjax",
) -> Cell:
    r"""The independently recurrent cell (IndRNN): every unit sees only its own past.

    .. math:: h_t = f(x_t W_{ih} + w_{hh} \odot h_{t-1} + b)

    There is no recurrent matrix and no product inside the loop over time; units meet in the next
    layer. The carry is the new state :math:`h_t` itself, an array [H], and so is the output.

    Over T steps a unit multiplies its past by :math:`w^T`, so the range of the recurrent weights
    sets how far it remembers. The paper draws them from :math:`[0, \gamma^{1/T}]` with a small
    :math:`\gamma \ge 1`, such as 2, as the largest growth allowed, and those of a last layer that
    must remember to the end from :math:`[\epsilon^{1/T}, \gamma^{1/T}]`. It also clips them to
    that largest value while training, which is a matter of the optimizer.

    Args:
        hidden_size: H.
        activation: f, pointwise; relu by default.
        recurrent_range: ``(low, high)`` of the uniform distribution of the first ``w_hh``.
        initializer: a name in ``rnnjax.initializers.PRESETS``, or one of your own, for ``w_ih``
            and ``bias``.

    Raises:
        ValueError: the size is not a positive integer, the activation no function, the range no
            pair of finite numbers in order, or the initializer unknown.

    Example:
        >>> import jax, rnnjax
        >>> steps = 100
        >>> cell = rnnjax.indrnn(3, recurrent_range=(0.5 ** (1 / steps), 2.0 ** (1 / steps)))
        >>> params = cell.init(jax.random.key(0), 5)
        >>> params.w_ih.shape, params.w_hh.shape
        ((5, 3), (3,))
        >>> bool(((params.w_hh**steps > 0.5) & (params.w_hh**steps < 2)).all())
        True

    References:
        Li, Li, Cook, Zhu and Gao, "Independently recurrent neural network (IndRNN): building a
        longer and deeper RNN", CVPR 2018, arXiv:1803.04831.
    """
    size = check_size("hidden_size", hidden_size)
    check_function("activation", activation)
    low, high = _check_interval(recurrent_range)
    draw = resolve(initializer)

    def init(key: Array, input_size: int) -> IndRNNParams:
        ih, hh, b = jax.random.split(check_key(key), 3)
        return IndRNNParams(
            draw.w_ih(ih, check_size("input_size", input_size), size, 1),
            jax.random.uniform(hh, (size,), jnp.float32, low, high),
            draw.bias(b, size, 1),
        )

    def update(
        params: IndRNNParams, carry: Array, x_proj: tuple, h_proj: tuple
    ) -> tuple[Array, Array]:
        h = activation(x_proj[0] + params.w_hh.astype(carry.dtype) * carry)
        return h, h

    return Cell(
        output_size=size,
        init=init,
        initial_carry=zeros_of(size),
        project=project_packed(1),
        update=update,
    )


def _check_interval(interval: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (float(bound) for bound in interval)
        if isinstance(interval, str):  # whose letters may be digits
            raise TypeError
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(
            f"recurrent_range must be two finite numbers (low, high) in order, got {interval!r}"
        )
    return low, high
