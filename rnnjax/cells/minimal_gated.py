"""The minimal gated unit, in its two forms."""

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


class MinimalGatedParams(NamedTuple):
    """``w_ih`` [D, 2H], ``w_hh`` [H, 2H], ``bias`` [2H], gates packed f, n; ``hidden_bias`` [H]
    belongs to the recurrent half of n and is None in the reset-before form."""

    w_ih: Array
    w_hh: Array
    bias: Array
    hidden_bias: Array | None


class MinimalGatedGates(NamedTuple):
    """The one gate ``f`` in [0, 1], and the candidate ``n`` in [-1, 1]; each [H]."""

    f: Array
    n: Array


def _gates_after(
    params: MinimalGatedParams, carry: Array, x_proj: tuple, h_proj: tuple
) -> MinimalGatedGates:
    f = sigmoid(x_proj[0] + h_proj[0])
    assert params.hidden_bias is not None
    return MinimalGatedGates(
        f, jnp.tanh(x_proj[1] + f * (h_proj[1] + params.hidden_bias.astype(h_proj[1].dtype)))
    )


def _update_after(
    params: MinimalGatedParams, carry: Array, x_proj: tuple, h_proj: tuple
) -> tuple[Array, Array]:
    f, n = _gates_after(params, carry, x_proj, h_proj)
    h = (1 - f) * n + f * carry
    return h, h


def _gates_before(
    params: MinimalGatedParams, carry: Array, x_proj: tuple, h_proj: tuple
) -> MinimalGatedGates:
    w_f, w_n = split_gates(params.w_hh, 2)
    f = sigmoid(x_proj[0] + affine(carry, w_f))
    return MinimalGatedGates(f, jnp.tanh(x_proj[1] + affine(f * carry, w_n)))


def _step_before(params: MinimalGatedParams, carry: Array, x_proj: tuple) -> tuple[Array, Array]:
    f, n = _gates_before(params, carry, x_proj, ())
    h = (1 - f) * carry + f * n
    return h, h


@factory
def minimal_gated(
    hidden_size: int,
    reset_after: bool = True,
    *,
    initializer: str | CellInitializer = "rnnjax",
) -> Cell:
    r"""The minimal gated unit (MGU): a GRU whose two gates are one.

    With ``reset_after``, the form of Flax's ``MGUCell``, where f is the share of h that is kept,

    .. math::

        f &= \sigma(x_t W_{if} + h_{t-1} W_{hf} + b_f) \\
        n &= \tanh(x_t W_{in} + b_n + f (h_{t-1} W_{hn} + b_{hn})) \\
        h_t &= (1 - f) n + f h_{t-1}

    Without it, the form of the paper, where f is the share of h that is replaced,

    .. math::

        f &= \sigma(x_t W_{if} + h_{t-1} W_{hf} + b_f) \\
        n &= \tanh(x_t W_{in} + (f h_{t-1}) W_{hn} + b_n) \\
        h_t &= (1 - f) h_{t-1} + f n

    The two are different cells: in the paper's, the candidate sees the more of the past the more
    of it is replaced; in the other, the less. The carry is :math:`h_t` itself, an array [H], and
    so is the output.

    The paper's form needs a matrix product after its gate, so it is a ``plain_step``: exact, under
    the same sequence law, but differentiated by ordinary autodiff and slower.

    Args:
        hidden_size: H.
        reset_after: which form.
        initializer: a name in ``rnnjax.initializers.PRESETS``, or one of your own. Its forget bias
            opens f to what keeps h: added to the bias of f in the first form, subtracted in the
            paper's. (``"flax"`` has the bias 0 of Flax's ``LSTMCell``; ``MGUCell`` starts at 1.)

    Raises:
        ValueError: a size is not a positive integer, ``reset_after`` is neither True nor False,
            or the initializer is unknown.

    Example:
        >>> import jax, rnnjax
        >>> cell = rnnjax.minimal_gated(3)
        >>> params = cell.init(jax.random.key(0), 5)
        >>> params.w_ih.shape, params.w_hh.shape, params.hidden_bias.shape
        ((5, 6), (3, 6), (3,))

    References:
        Zhou, Wu, Zhang and Zhou, "Minimal gated unit for recurrent neural networks",
        International Journal of Automation and Computing 13 (2016), arXiv:1603.09420.
    """
    size = check_size("hidden_size", hidden_size)
    reset_after = check_flag("reset_after", reset_after)
    draw = resolve(initializer)
    keep = draw.forget_bias if reset_after else -draw.forget_bias

    def init(key: Array, input_size: int) -> MinimalGatedParams:
        ih, hh, b, hb = jax.random.split(check_key(key), 4)
        # Drawn as for a GRU, without its first gate, where the candidate has a hidden bias, too.
        bias = draw.bias(b, size, 3)[size:] if reset_after else draw.bias(b, size, 2)
        return MinimalGatedParams(
            draw.w_ih(ih, check_size("input_size", input_size), size, 2),
            draw.w_hh(hh, size, 2),
            bias.at[:size].add(keep),
            draw.hidden_bias(hb, size) if reset_after else None,
        )

    if reset_after:
        return packed_cell(2, size, init, _update_after, gate_values=_gates_after)
    return Cell(
        output_size=size,
        init=init,
        initial_carry=zeros_of(size),
        project=project_packed(2),
        plain_step=_step_before,
        gates=_gates_before,
    )
