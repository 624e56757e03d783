"""A soft window over a text that only ever moves on, as the pen does."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax._checks import check_key, check_number, check_size
from rnnjax._numerics import accumulation_dtype, affine, raised
from rnnjax._recipe import factory
from rnnjax.base import Cell, Key, Noise, NoiseShape
from rnnjax.initializers import draw_linear
from rnnjax.layers._memory import (
    Memory,
    add_to_gates,
    behind_gates,
    check_reading_cell,
    checked_memory,
    draw_gate_weights,
    draw_noise,
    gate_sizes,
    recurrent_weights,
    take_last,
    with_columns,
)
from rnnjax.layers.attention import weighted_mean

# A window asks for no more than e to this. A bump that is higher, sharper or faster than 5e8 means
# nothing more; but where a part of one is infinite, infinity times 0 makes all gradients NaN.
_MOST = 20.0


class Window(NamedTuple):
    """K bumps over the places of a memory, in the letters of the paper alpha, beta and kappa.

    Attributes:
        height: [..., K], of each bump.
        sharpness: [..., K], the larger, the narrower.
        place: [..., K], where each stands; 0 is the first place of the memory.
    """

    height: Array
    sharpness: Array
    place: Array


class WindowCarry(NamedTuple):
    """``cell``: the carry of the cell; ``window``: what the last step read through."""

    cell: Any
    window: Window


class WindowCellParams(NamedTuple):
    """``cell`` is that of the cell; ``w`` [P, 3K] and ``bias`` [3K] make the window of its state;
    ``context`` [M, G*H] is the matrix from what is read to the gates."""

    cell: Any
    w: Array
    bias: Array
    context: Array


def window_weights(window: Window, places: int) -> Array:
    r"""How much of each place a window reads: [..., S].

    .. math:: \phi(u) = \sum_k \alpha_k \exp(-\beta_k (\kappa_k - u)^2), \qquad u = 0 \dots S - 1

    Args:
        window: [..., K], as of the carries that ``unroll(..., all_carries=True)`` gives.
        places: S.

    Raises:
        ValueError: ``places`` is not a positive integer.

    Example:
        >>> import jax.numpy as jnp, rnnjax
        >>> window = rnnjax.Window(jnp.ones(1), jnp.ones(1), jnp.ones(1))
        >>> [f"{weight:.3f}" for weight in rnnjax.window_weights(window, 4)]
        ['0.368', '1.000', '0.368', '0.018']
    """
    return _weights(window, check_size("places", places))


def _weights(window: Window, places: int) -> Array:
    window = jax.tree.map(raised, window)  # in 16 bits places from 256 on are not told apart
    at = jnp.arange(places, dtype=window.place.dtype)
    height, sharpness, place = (part[..., None] for part in window)
    away = jnp.square(place - at.reshape((1,) * (place.ndim - 1) + at.shape))
    return jnp.sum(height * jnp.exp(-sharpness * away), axis=-2)


@factory
def window_cell(cell: Cell, memory_size: int, components: int = 10, *, speed: float = 0.1) -> Cell:
    r"""A cell that reads a memory through a window, which only ever moves on.

    The state before the step says how far the window moves, and what is read enters every gate:

    .. math::

        (\hat\alpha_t, \hat\beta_t, \hat\kappa_t) &= h_{t-1} W + b, \qquad
        \alpha_t = e^{\hat\alpha_t}, \quad \beta_t = e^{\hat\beta_t}, \quad
        \kappa_t = \kappa_{t-1} + e^{\hat\kappa_t} \\
        \phi_t(u) &= \sum_k \alpha_{tk} \exp(-\beta_{tk} (\kappa_{tk} - u)^2), \qquad
        w_t = \sum_u \phi_t(u) \, m_u \\
        s_t, h_t &= \mathrm{cell}(s_{t-1}, x_t; \text{ gates} + w_t W_c)

    An output is :math:`[h_t, w_t]`, so that layers above see what was read, too. The weights
    :math:`\phi` are positive and need not add up to 1. For handwriting the memory is the text, one
    state a character: ``Memory(jax.nn.one_hot(characters, M), mask)``, given as ``context``.

    The three exponents are at most 20, so that no gradient is NaN.

    The window is part of the carry: :func:`window_weights` makes of it how much of each place was
    read. In the paper places count from 1, and layers above the first read :math:`w_{t+1}`, what
    the new state asks for; here all layers read the same at a step, and so the query is one product
    with the recurrent weights.

    Args:
        cell: a cell that gives ``recurrent`` weights as one matrix, ``hidden`` and ``update``.
        memory_size: M, the size of a state of the memory.
        components: K.
        speed: how many places the window moves in a step at first, above 0; a text is learnt
            sooner where this is about right.

    Raises:
        ValueError: a cell that is written as a plain step or has no recurrent weights, or another
            argument that does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.window_cell(rnnjax.lstm(4), memory_size=6, components=2)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> text = rnnjax.Memory(jnp.ones((2, 5, 6)), rnnjax.lengths_to_mask([5, 2], 5))
        >>> carry, ys = rnnjax.unroll(cell, params, jnp.ones((2, 7, 3)), context=text)
        >>> ys.shape, rnnjax.window_weights(carry.window, 5).shape
        ((2, 7, 10), (2, 5))

    References:
        Graves, "Generating sequences with recurrent neural networks", 2013, arXiv:1308.0850,
        equations 46 to 51.
    """
    check_reading_cell(cell)
    size, count = check_size("memory_size", memory_size), check_size("components", components)
    pace = check_number("speed", speed, "positive and finite", lambda a: 0 < a < math.inf)

    def init(key: Key, input_size: int) -> WindowCellParams:
        inner, asking, context = jax.random.split(check_key(key), 3)
        params = cell.init(inner, input_size)
        widths, state_size = gate_sizes(cell, params, input_size)
        w, bias = draw_linear(asking, state_size, 3 * count)
        # All bumps together are 1 high, and one place away they are e^-1 of that.
        start = jnp.array([-math.log(count), 0.0, math.log(pace)], bias.dtype)
        bias = bias + jnp.repeat(start, count)
        return WindowCellParams(params, w, bias, draw_gate_weights(context, size, widths))

    def initial_carry(params: WindowCellParams) -> WindowCarry:
        dtype = accumulation_dtype(params.w.dtype)
        window = Window(*(jnp.zeros((count,), dtype) for _ in Window._fields))
        return WindowCarry(cell.initial_carry(params.cell), window)

    def recurrent(params: WindowCellParams) -> Array:
        return with_columns(recurrent_weights(cell, params.cell), [params.w])

    def project(params: WindowCellParams, x: Any) -> tuple:
        bias = params.bias.astype(accumulation_dtype(params.bias.dtype))
        return behind_gates(cell, params.cell, x, [bias])

    def context(params: WindowCellParams, given: Any) -> Memory:
        memory = checked_memory(given, size)
        if memory.values is not None:
            return memory
        return memory._replace(values=affine(memory.states, params.context, name="memory.states"))

    def read(
        carry: WindowCarry, x_proj: tuple, h_proj: tuple, memory: Memory
    ) -> tuple[tuple, tuple, Window, Array]:
        """The pieces that the cell gets, with what was read; the window, and what was read."""
        assert memory.values is not None
        x_proj, h_proj, asked = take_last(x_proj, h_proj)
        height, sharpness, step = jnp.split(jnp.exp(jnp.minimum(asked, _MOST)), 3)
        window = Window(height, sharpness, carry.window.place + step)
        weights = jnp.where(memory.mask, _weights(window, len(memory.mask)), 0.0)[None]
        x_proj = add_to_gates(x_proj, h_proj, weighted_mean(weights, memory.values)[0])
        return x_proj, h_proj, window, weighted_mean(weights, memory.states)[0]

    def update(
        params: WindowCellParams, carry: WindowCarry, x_proj: tuple, h_proj: tuple, memory: Memory
    ) -> tuple[WindowCarry, Array]:
        assert cell.update is not None
        x_proj, h_proj, window, seen = read(carry, x_proj, h_proj, memory)
        new, y = cell.update(params.cell, carry.cell, x_proj, h_proj)
        return WindowCarry(new, window), jnp.concatenate([y, seen.astype(y.dtype)])

    def gates(
        params: WindowCellParams, carry: WindowCarry, x_proj: tuple, h_proj: tuple, memory: Memory
    ) -> Any:
        assert cell.gates is not None
        x_proj, h_proj, _, _ = read(carry, x_proj, h_proj, memory)
        return cell.gates(params.cell, carry.cell, x_proj, h_proj)

    def noise(key: Key, params: WindowCellParams, shape: NoiseShape) -> Noise:
        return draw_noise(cell, key, params.cell, shape, [params.w])

    def hidden(carry: WindowCarry) -> Array:
        assert cell.hidden is not None
        return cell.hidden(carry.cell)

    return Cell(
        output_size=cell.output_size + size,
        init=init,
        initial_carry=initial_carry,
        project=project,
        recurrent=recurrent,
        hidden=hidden,
        update=update,
        gates=cell.gates and gates,
        noise=cell.noise and noise,
        context=context,
    )
