"""The real-gated linear recurrent unit of Griffin."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import sigmoid, softplus

from rnnjax._checks import check_key, check_number, check_size
from rnnjax._numerics import affine
from rnnjax._recipe import factory
from rnnjax.base import Cell
from rnnjax.cells._common import zeros_of
from rnnjax.initializers import CellInitializer, resolve

SHARPNESS = 8.0  # c of the paper: how much the recurrence gate can change the decay


class RGLRUParams(NamedTuple):
    """``w_ih`` [D, H] into the unit; ``w_gates`` [H, 2H] and ``bias`` [2H] of the recurrence
    gate and the input gate, packed r, i; ``decay`` [H], from which the decay is made."""

    w_ih: Array
    w_gates: Array
    bias: Array
    decay: Array


def _project(params: RGLRUParams, x: Array) -> tuple[Array, Array]:
    u = affine(x, params.w_ih)
    r, i = jnp.split(sigmoid(affine(u, params.w_gates, params.bias)), 2)
    log_decay = -SHARPNESS * softplus(params.decay.astype(u.dtype)) * r
    # 1 - a^2 without the loss of digits where a is near 1.
    room = -jnp.expm1(2 * log_decay)
    # The root has no derivative at 0, where a gate is closed for good and the derivative is 0.
    scale = jnp.where(room > 0, jnp.sqrt(jnp.where(room > 0, room, 1.0)), 0.0)
    return jnp.exp(log_decay), scale * i * u


def _linear(params: RGLRUParams, x_proj: tuple) -> tuple[Array, Array]:
    decay, drive = x_proj
    return decay, drive


def _update(params: RGLRUParams, carry: Array, x_proj: tuple, h_proj: tuple) -> tuple[Array, Array]:
    decay, drive = x_proj
    h = decay * carry + drive
    return h, h


@factory
def rg_lru(
    hidden_size: int,
    *,
    min_decay: float = 0.9,
    max_decay: float = 0.999,
    initializer: str | CellInitializer = "rnnjax",
) -> Cell:
    r"""The real-gated linear recurrent unit (RG-LRU): a decay that the input opens and closes.

    .. math::

        u_t &= x_t W_{ih} \\
        (r, i) &= \sigma(u_t W + b) \\
        a_t &= \exp(-8\, \mathrm{softplus}(\Lambda)\, r) \\
        h_t &= a_t h_{t-1} + \sqrt{1 - a_t^2}\, (i \odot u_t)

    No gate sees the state, so the cell is linear in it and can run in parallel over time. The
    carry is :math:`h_t` itself, an array [H], and so is the output. In the paper's block a linear
    layer (and a convolution) stands before the unit, which keeps its size; here that layer is
    :math:`W_{ih}`. The gates' matrix is whole, where the paper's is block-diagonal, and the first
    step of a sequence is scaled as the others are, where the authors' code leaves it unscaled.

    Args:
        hidden_size: H.
        min_decay: with an open gate r the decays start between this ...
        max_decay: ... and this, uniformly.
        initializer: a name in ``rnnjax.initializers.PRESETS``, or one of your own.

    Raises:
        ValueError: a size is not a positive integer, the decays are not in order within (0, 1),
            or the initializer is unknown.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.rg_lru(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> layer = rnnjax.recurrent(cell, implementation="associative")
        >>> layer.apply(params, jnp.ones((2, 5, 3)), lengths=[5, 2])[1].shape
        (2, 5, 4)

    References:
        De et al., "Griffin: mixing gated linear recurrences with local attention for efficient
        language models", 2024, arXiv:2402.19427, section 2.4.
    """
    size = check_size("hidden_size", hidden_size)
    low, high = (
        check_number(
            name, decay, "a number in (0, 1) of float32", lambda a: 0 < float(np.float32(a)) < 1
        )
        for name, decay in (("min_decay", min_decay), ("max_decay", max_decay))
    )
    if low > high:
        raise ValueError(f"min_decay must be at most max_decay, got {low} and {high}")
    draw = resolve(initializer)

    def init(key: Array, input_size: int) -> RGLRUParams:
        ih, gates, b, d = jax.random.split(check_key(key), 4)
        radius = jax.random.uniform(d, (size,), jnp.float32, low, high)
        rate = -jnp.log(radius) / SHARPNESS
        return RGLRUParams(
            draw.w_ih(ih, check_size("input_size", input_size), size, 1),
            draw.w_ih(gates, size, size, 2),
            draw.bias(b, size, 2),
            jnp.log(jnp.expm1(rate)),  # softplus of it is the rate
        )

    return Cell(
        output_size=size,
        init=init,
        initial_carry=zeros_of(size),
        project=_project,
        update=_update,
        linear=_linear,
    )
