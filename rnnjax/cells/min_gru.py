"""The minimal gated recurrent unit, whose gate sees the input alone."""

from typing import NamedTuple

import jax
from jax import Array
from jax.nn import sigmoid

from rnnjax._checks import check_key, check_size
from rnnjax._recipe import factory
from rnnjax.base import Cell
from rnnjax.cells._common import project_packed, zeros_of
from rnnjax.initializers import CellInitializer, resolve


class MinGRUParams(NamedTuple):
    """``w_ih`` [D, 2H], ``bias`` [2H]; packed z, n."""

    w_ih: Array
    bias: Array


class MinGRUGates(NamedTuple):
    """The gate ``z`` in [0, 1], the share that is new, and the candidate ``n``; each [H]."""

    z: Array
    n: Array


def _gates(params: MinGRUParams, carry: Array, x_proj: tuple, h_proj: tuple) -> MinGRUGates:
    gate, candidate = x_proj
    return MinGRUGates(sigmoid(gate), candidate)


def _linear(params: MinGRUParams, x_proj: tuple) -> tuple[Array, Array]:
    gate, candidate = x_proj
    # The decay is not 1 - sigmoid(gate), which rounds a small one to zero.
    return sigmoid(-gate), sigmoid(gate) * candidate


def _update(
    params: MinGRUParams, carry: Array, x_proj: tuple, h_proj: tuple
) -> tuple[Array, Array]:
    decay, drive = _linear(params, x_proj)
    h = decay * carry + drive
    return h, h


@factory
def min_gru(hidden_size: int, *, initializer: str | CellInitializer = "rnnjax") -> Cell:
    r"""The minGRU: a GRU without recurrent weights, and so linear in its state.

    .. math::

        z &= \sigma(x_t W_z + b_z) \\
        n &= x_t W_n + b_n \\
        h_t &= (1 - z) h_{t-1} + z n

    Here, as in the paper, ``z`` is the share that is new; in :func:`rnnjax.gru` it is the share
    that is kept. The candidate is the plain one, without the positive map of the paper's form in
    logarithms. The carry is :math:`h_t` itself, an array [H], and so is the output.

    Args:
        hidden_size: H.
        initializer: a name in ``rnnjax.initializers.PRESETS``, or one of your own.

    Raises:
        ValueError: a size is not a positive integer, or the initializer is unknown.

    Example:
        >>> import jax, rnnjax
        >>> cell = rnnjax.min_gru(3)
        >>> params = cell.init(jax.random.key(0), 5)
        >>> params.w_ih.shape, params.bias.shape
        ((5, 6), (6,))

    References:
        Feng et al., "Were RNNs all we needed?", 2024, arXiv:2410.01201.
    """
    size = check_size("hidden_size", hidden_size)
    draw = resolve(initializer)

    def init(key: Array, input_size: int) -> MinGRUParams:
        ih, b = jax.random.split(check_key(key))
        return MinGRUParams(
            draw.w_ih(ih, check_size("input_size", input_size), size, 2),
            draw.bias(b, size, 2),
        )

    return Cell(
        output_size=size,
        init=init,
        initial_carry=zeros_of(size),
        project=project_packed(2),
        update=_update,
        gates=_gates,
        linear=_linear,
    )
