"""The gated recurrent unit, in its two forms."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import sigmoid

from rnnjax._checks import check_flag, check_key, check_size
from rnnjax._numerics import affine, split_gates
from rnnjax._recipe import factory
from rnnjax.base import Cell
from rnnjax.cells._common import packed_cell, project_packed, zeros_of
from rnnjax.initializers import CellInitializer, resolve


class GRUParams(NamedTuple):
    """``w_ih`` [D, 3H], ``w_hh`` [H, 3H], ``bias`` [3H], gates packed r, z, n; ``hidden_bias``
    [H] belongs to the recurrent half of n and is None in the reset-before form."""

    w_ih: Array
    w_hh: Array
    bias: Array
    hidden_bias: Array | None


class GRUGates(NamedTuple):
    """Reset and update gate in [0, 1], and the candidate ``n`` in [-1, 1]; each [H]."""

    r: Array
    z: Array
    n: Array


def _gates_after(params: GRUParams, carry: Array, x_proj: tuple, h_proj: tuple) -> GRUGates:
    reset = sigmoid(x_proj[0] + h_proj[0])
    keep = sigmoid(x_proj[1] + h_proj[1])
    assert params.hidden_bias is not None
    candidate = jnp.tanh(
        x_proj[2] + reset * (h_proj[2] + params.hidden_bias.astype(h_proj[2].dtype))
    )
    return GRUGates(reset, keep, candidate)


def _mix(gates: GRUGates, carry: Array) -> tuple[Array, Array]:
    h = (1 - gates.z) * gates.n + gates.z * carry
    return h, h


def _update_after(
    params: GRUParams, carry: Array, x_proj: tuple, h_proj: tuple
) -> tuple[Array, Array]:
    return _mix(_gates_after(params, carry, x_proj, h_proj), carry)


def _gates_before(params: GRUParams, carry: Array, x_proj: tuple, h_proj: tuple) -> GRUGates:
    w_r, w_z, w_n = split_gates(params.w_hh, 3)
    reset = sigmoid(x_proj[0] + affine(carry, w_r))
    keep = sigmoid(x_proj[1] + affine(carry, w_z))
    return GRUGates(reset, keep, jnp.tanh(x_proj[2] + affine(reset * carry, w_n)))


def _step_before(params: GRUParams, carry: Array, x_proj: tuple) -> tuple[Array, Array]:
    return _mix(_gates_before(params, carry, x_proj, ()), carry)


@factory
def gru(
    hidden_size: int,
    reset_after: bool = True,
    *,
    initializer: str | CellInitializer = "rnnjax",
) -> Cell:
    r"""The gated recurrent unit.

    .. math::

        r &= \sigma(x_t W_{ir} + h_{t-1} W_{hr} + b_r) \\
        z &= \sigma(x_t W_{iz} + h_{t-1} W_{hz} + b_z) \\
        n &= \tanh(x_t W_{in} + b_n + r (h_{t-1} W_{hn} + b_{hn})) \\
        h_t &= (1 - z) n + z h_{t-1}

    with ``reset_after`` (the form of PyTorch, cuDNN and today's Keras). Without it, the form of
    the published paper, :math:`n = \tanh(x_t W_{in} + b_n + (r h_{t-1}) W_{hn})`. The carry is
    :math:`h_t` itself, an array [H], and so is the output.

    The reset-before form needs a matrix product after its gate, so it is a ``plain_step``: exact,
    under the same sequence law, but differentiated by ordinary autodiff and slower.

    Args:
        hidden_size: H.
        reset_after: which form.
        initializer: a name in ``rnnjax.initializers.PRESETS``, or one of your own.

    Raises:
        ValueError: a size is not a positive integer, ``reset_after`` is neither True nor False,
            or the initializer is unknown.

    Example:
        >>> import jax, rnnjax
        >>> cell = rnnjax.gru(3)
        >>> params = cell.init(jax.random.key(0), 5)
        >>> params.w_ih.shape, params.w_hh.shape, params.hidden_bias.shape
        ((5, 9), (3, 9), (3,))

    References:
        Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP 2014,
        arXiv:1406.1078 (revised from the reset-after to the reset-before form).
    """
    size = check_size("hidden_size", hidden_size)
    reset_after = check_flag("reset_after", reset_after)
    draw = resolve(initializer)

    def init(key: Array, input_size: int) -> GRUParams:
        ih, hh, b, hb = jax.random.split(check_key(key), 4)
        return GRUParams(
            draw.w_ih(ih, check_size("input_size", input_size), size, 3),
            draw.w_hh(hh, size, 3),
            draw.bias(b, size, 3),
            draw.hidden_bias(hb, size) if reset_after else None,
        )

    if reset_after:
        return packed_cell(3, size, init, _update_after, gate_values=_gates_after)
    return Cell(
        output_size=size,
        init=init,
        initial_carry=zeros_of(size),
        project=project_packed(3),
        plain_step=_step_before,
        gates=_gates_before,
    )
