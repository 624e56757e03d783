"""Attention inside the recurrence: what a step reads of a memory depends on the steps before it."""

from typing import Any

import jax

from rnnjax import masking
from rnnjax._checks import check_flag, check_number, check_size
from rnnjax._recipe import factory
from rnnjax.base import Cell, Params
from rnnjax.layers._asking_before import asking_before
from rnnjax.layers._input_feeding import feeding
from rnnjax.layers._memory import Memory, check_reading_cell
from rnnjax.layers.attention import Attention
from rnnjax.layers.attention import attention as make_attention

_ADDITIVE = make_attention("additive")


@factory
def attention_cell(
    cell: Cell,
    memory_size: int,
    attention: Attention = _ADDITIVE,
    *,
    input_feeding: bool = False,
    output_size: int | None = None,
    selector: bool = False,
    hard: bool = False,
    mean_rate: float | None = None,
) -> Cell:
    r"""A cell that reads from a memory at every step.

    The state before the step asks, and what is read enters every gate (Bahdanau):

    .. math::

        a_t = \mathrm{attention}(h_{t-1}, m), \qquad c_t = \sum_s a_{ts} m_s, \qquad
        s_t, y_t = \mathrm{cell}(s_{t-1}, x_t; \text{ gates} + c_t W_c)

    For a cell whose gates are linear in their input this is the cell on :math:`[x_t, c_t]`. The
    query is computed in one product with the recurrent weights, and since
    :math:`c_t W_c = \sum_s a_{ts} (m_s W_c)`, keys and :math:`m W_c` are made once before the loop.

    With ``input_feeding`` the state after the step asks, and the answer is an input of the next
    step (Luong):

    .. math::

        s_t, y_t &= \mathrm{cell}(s_{t-1}, x_t; \text{ gates} + \tilde h_{t-1} W_f) \\
        c_t &= \sum_s \mathrm{attention}(y_t, m)_s m_s, \qquad
        \tilde h_t = \tanh([c_t, y_t] W)

    Here products follow one another, so it runs as a plain step, with ordinary autodiff.

    With a ``selector`` the state also decides how much of the answer is read at all, by
    :math:`\beta_t = \sigma(h_{t-1} \cdot w + b)`, and with ``hard`` attention one place is read
    rather than a mean of all (Xu):

    .. math::

        s_t \sim a_t, \qquad c_t = \beta_t m_{s_t}

    Places are drawn where there is a ``key``, that is in training; without one the place with the
    largest weight is read. No gradient reaches the weights through a draw: the loss needs
    :func:`rnnjax.score_function`. So that they learn quickly all the same, whole sequences read the
    mean now and then.

    The memory is the ``context`` of ``unroll``: ``Memory(states, mask)``, or the same from
    :func:`prepare_memory`. Outputs are :class:`Attended`: with the weights, contexts for a head
    are one product over all steps, :math:`a m`.

    Args:
        cell: a cell that gives ``recurrent`` weights as one matrix, ``hidden`` and ``update``.
        memory_size: M, the size of a state of the memory.
        attention: of any kind; by default additive.
        input_feeding: which of the two.
        output_size: A, of the attentional output; None for that of the cell. For input feeding
            alone.
        selector: whether there is a :math:`\beta`; not with input feeding.
        hard: whether one place is read; not with input feeding.
        mean_rate: the share of the sequences that read the mean in training of hard attention;
            None for 0.5. For hard attention alone.

    Raises:
        ValueError: a cell that is written as a plain step or has no recurrent weights, or another
            argument that does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.attention_cell(rnnjax.gru(4), memory_size=6)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> memory = rnnjax.Memory(jnp.ones((2, 5, 6)), rnnjax.lengths_to_mask([5, 2], 5))
        >>> carry, ys = rnnjax.unroll(cell, params, jnp.ones((2, 7, 3)), context=memory)
        >>> ys.output.shape, ys.weights.shape, ys.weights[1, 0].tolist()
        ((2, 7, 4), (2, 7, 5), [0.5, 0.5, 0.0, 0.0, 0.0])

    References:
        Bahdanau, Cho and Bengio, "Neural machine translation by jointly learning to align and
        translate", ICLR 2015; Luong, Pham and Manning, "Effective approaches to attention-based
        neural machine translation", EMNLP 2015 (input feeding); Xu et al., "Show, attend and tell",
        ICML 2015 (selector, hard).
    """
    _check_parts(cell, attention)
    size = check_size("memory_size", memory_size)
    selects, is_hard = check_flag("selector", selector), check_flag("hard", hard)
    rate = 0.5 if mean_rate is None else mean_rate
    rate = check_number("mean_rate", rate, "a rate in [0, 1]", lambda p: 0 <= p <= 1)
    if mean_rate is not None and not is_hard:
        raise ValueError(f"mean_rate must be None without hard, got {rate}")
    if check_flag("input_feeding", input_feeding):
        if selects or is_hard:
            found = f"{selects} and {is_hard}"
            raise ValueError(f"selector and hard must be False with input_feeding, got {found}")
        width = cell.output_size if output_size is None else check_size("output_size", output_size)
        return feeding(cell, attention, size, width)
    if output_size is not None:
        raise ValueError(
            f"output_size must be None without input_feeding, got {output_size!r}: outputs are the "
            "cell's"
        )
    return asking_before(cell, attention, size, selects, rate if is_hard else None)


def prepare_memory(cell: Cell, params: Params, memory: Memory) -> Memory:
    """A memory [...] with its keys and values made once, for many calls that read it.

    Raises:
        ValueError: the cell takes no context, or the memory does not fit it.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.attention_cell(rnnjax.gru(4), memory_size=6)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> memory = rnnjax.Memory(jnp.ones((2, 5, 6)), jnp.ones((2, 5), bool))
        >>> memory = rnnjax.prepare_memory(cell, params, memory)
        >>> memory.values.shape
        (2, 5, 12)
    """
    if not isinstance(cell, Cell) or cell.context is None:
        raise ValueError(f"cell must be one that takes a context, got {cell!r}")
    if isinstance(memory, Memory):
        arrays: list[Any] = [
            None if part is None else masking.as_array(f"memory.{name}", part)
            for name, part in memory._asdict().items()
        ]
        states, mask = arrays[:2]
        if states is None or mask is None or states.ndim < 2 or mask.shape != states.shape[:-1]:
            shapes = [None if a is None else a.shape for a in (states, mask)]
            raise ValueError(
                "memory must have states [..., S, M] and a bool mask [..., S], got shapes "
                f"{shapes[0]} and {shapes[1]}"
            )
        memory = Memory(*arrays)
    make = cell.context
    for _ in memory.states.shape[:-2] if isinstance(memory, Memory) else ():
        make = jax.vmap(make, in_axes=(None, 0))
    return make(params, memory)


def _check_parts(cell: Any, attention: Any) -> None:
    check_reading_cell(cell)
    if not isinstance(attention, Attention):
        raise ValueError(
            f"attention must be a rnnjax.attention(...), got {type(attention).__name__}"
        )
