"""Attention inside the recurrence: what a step reads of a memory depends on the steps before it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.nn import sigmoid

from rnnjax import masking
from rnnjax._checks import check_flag, check_key, check_number, check_size
from rnnjax._numerics import accumulation_dtype, affine
from rnnjax._recipe import factory
from rnnjax.base import Carry, Cell, Key, Noise, NoiseShape, Params
from rnnjax.engine._products import gate_widths
from rnnjax.initializers import draw_linear
from rnnjax.layers._memory import (
    Memory,
    add_to_gates,
    check_reading_cell,
    checked_memory,
    cut_gates,
    draw_gate_weights,
    gate_sizes,
    recurrent_weights,
)
from rnnjax.layers.attention import Attention, weighted_mean
from rnnjax.layers.attention import attention as make_attention

_ADDITIVE = make_attention("additive")


class Attended(NamedTuple):
    """What a cell with attention gives at every step.

    Attributes:
        output: [..., T, O].
        weights: [..., T, S], the attention to each place of the memory.
        read: [..., T, S], how much of each place was read, where that is something else than the
            weights: with a selector and with hard attention. None otherwise.
        drawn: [..., T, S], with hard attention 1 at the place that was taken, and 0 everywhere at
            steps where the mean was read. None otherwise.
    """

    output: Array
    weights: Array
    read: Array | None = None
    drawn: Array | None = None

    @property
    def shares(self) -> Array:
        """How much of each place was read: contexts are these times the memory."""
        return self.weights if self.read is None else self.read


class SelectorParams(NamedTuple):
    """``w`` [P] and ``bias`` [], from the state to how much of what is attended to is read."""

    w: Array
    bias: Array


class AttentionCellParams(NamedTuple):
    """``cell`` and ``attention`` are those of the two parts; ``context`` [M, G*H] is the matrix
    from what is read of the memory to the gates; ``selector`` is None without one."""

    cell: Any
    attention: Any
    context: Array
    selector: SelectorParams | None = None


class InputFeedingParams(NamedTuple):
    """``cell`` and ``attention`` are those of the two parts; ``feed`` [A, G*H] is the matrix from
    the last attentional output to the gates, ``output`` [M + O, A] makes that output."""

    cell: Any
    attention: Any
    feed: Array
    output: Array


class FeedingCarry(NamedTuple):
    """``cell``: the carry of the cell; ``fed`` [A]: the attentional output of the step before."""

    cell: Any
    fed: Array


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
    mean_rate: float = 0.5,
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
        mean_rate: the share of the sequences that read the mean in training of hard attention.

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
    rate = check_number("mean_rate", mean_rate, "a rate in [0, 1]", lambda p: 0 <= p <= 1)
    if check_flag("input_feeding", input_feeding):
        if selects or is_hard:
            found = f"{selects} and {is_hard}"
            raise ValueError(f"selector and hard must be False with input_feeding, got {found}")
        width = cell.output_size if output_size is None else check_size("output_size", output_size)
        return _feeding(cell, attention, size, width)
    if output_size is not None:
        raise ValueError(
            f"output_size must be None without input_feeding, got {output_size!r}: outputs are the "
            "cell's"
        )
    return _asking_before(cell, attention, size, selects, rate if is_hard else None)


def prepare_memory(cell: Cell, params: Params, memory: Memory) -> Memory:
    """A memory [...] with what the cell makes of it once, for many calls that read it.

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


class _Draw(NamedTuple):
    """The noise of one step of hard attention: a number in [0, 1) that decides on the place, or
    -1 in a sequence that reads the mean."""

    number: Array


def _asking_before(
    cell: Cell, attention: Attention, memory_size: int, selects: bool, mean_rate: float | None
) -> Cell:
    """The state before the step asks: one product, of the recurrent weights and the query's.

    ``mean_rate`` is None where attention is not hard.
    """

    def init(key: Key, input_size: int) -> AttentionCellParams:
        inner, asking, context = jax.random.split(check_key(key), 3)
        params = cell.init(inner, input_size)
        widths, state_size = gate_sizes(cell, params, input_size)
        return AttentionCellParams(
            params,
            attention.init(asking, state_size, memory_size),
            draw_gate_weights(context, memory_size, widths),
            _draw_selector(jax.random.fold_in(asking, 1), state_size) if selects else None,
        )

    def more_columns(params: AttentionCellParams) -> list[Array]:
        """What the state is multiplied by besides the recurrent weights."""
        w_q, selector = attention.query_weights(params.attention), params.selector
        columns = [] if w_q is None else [w_q]
        return columns if selector is None else [*columns, selector.w[:, None]]

    def recurrent(params: AttentionCellParams) -> Array:
        w_hh = recurrent_weights(cell, params.cell)
        columns = [w.astype(w_hh.dtype) for w in more_columns(params)]
        return jnp.concatenate([w_hh, *columns], axis=-1) if columns else w_hh

    def project(params: AttentionCellParams, x: Any) -> tuple:
        pieces = cell.project(params.cell, x)
        gates = len(gate_widths(recurrent_weights(cell, params.cell), pieces))
        w_q, selector = attention.query_weights(params.attention), params.selector
        # The engine's product is divided as these pieces are: query and selector come last.
        more = []
        if w_q is not None:
            more.append(jnp.zeros((w_q.shape[-1],), accumulation_dtype(w_q.dtype)))
        if selector is not None:
            more.append(selector.bias[None].astype(accumulation_dtype(selector.bias.dtype)))
        return (*pieces[:gates], *more, *pieces[gates:])

    def context(params: AttentionCellParams, given: Any) -> Memory:
        memory = checked_memory(given, memory_size)
        if memory.values is not None:
            return memory
        states = memory.states
        values = affine(states, params.context, name="memory.states")
        return memory._replace(keys=attention.keys(params.attention, states), values=values)

    def read(
        params: AttentionCellParams, carry: Carry, x_proj: tuple, h_proj: tuple, memory: Memory
    ) -> tuple[tuple, tuple, Attended]:
        """The pieces that the cell gets, with what was read of the memory, and how it was read."""
        assert memory.keys is not None
        assert memory.values is not None
        assert cell.hidden is not None
        draw = None
        if x_proj and isinstance(x_proj[-1], _Draw):
            *pieces, draw = x_proj
            x_proj = tuple(pieces)
        query, share = cell.hidden(carry), None
        if params.selector is not None:
            x_proj, h_proj, beta = _take_last(x_proj, h_proj)
            share = sigmoid(beta)
        if attention.query_weights(params.attention) is not None:
            x_proj, h_proj, query = _take_last(x_proj, h_proj)
        weights = attention.weigh(params.attention, query[None], memory.keys, memory.mask)[0]
        shares = weights
        drawn = None if mean_rate is None else _drawn(weights, draw)
        if drawn is not None:
            shares = drawn if draw is None else jnp.where(draw.number < 0, weights, drawn)
        shares = shares if share is None else share * shares
        answer = weighted_mean(shares[None], memory.values)[0]
        how = Attended(answer, weights, None if shares is weights else shares, drawn)
        return add_to_gates(x_proj, h_proj, answer), h_proj, how

    def update(
        params: AttentionCellParams, carry: Carry, x_proj: tuple, h_proj: tuple, memory: Memory
    ) -> tuple[Carry, Attended]:
        assert cell.update is not None
        x_proj, h_proj, how = read(params, carry, x_proj, h_proj, memory)
        new, y = cell.update(params.cell, carry, x_proj, h_proj)
        return new, how._replace(output=y)

    def gates(
        params: AttentionCellParams, carry: Carry, x_proj: tuple, h_proj: tuple, memory: Memory
    ) -> Any:
        assert cell.gates is not None
        x_proj, h_proj, _ = read(params, carry, x_proj, h_proj, memory)
        return cell.gates(params.cell, carry, x_proj, h_proj)

    def noise(key: Key, params: AttentionCellParams, shape: NoiseShape) -> Noise:
        drawn = Noise()
        if cell.noise is not None:
            drawn = cell.noise(key, params.cell, shape)
        if drawn.recurrent is not None:
            # The weights of the cell are noisy, those of the query and the selector are not.
            drawn = drawn._replace(
                recurrent=jnp.concatenate(
                    [drawn.recurrent, *map(jnp.ones_like, more_columns(params))], axis=-1
                )
            )
        if mean_rate is None:
            return drawn
        # Folded in, so that the cell's own noise is what it is without attention.
        numbers = _draw_numbers(jax.random.fold_in(key, 1), shape, mean_rate)
        return drawn._replace(steps=(*drawn.steps, _Draw(numbers)))

    return Cell(
        output_size=cell.output_size,
        init=init,
        initial_carry=lambda params: cell.initial_carry(params.cell),
        project=project,
        recurrent=recurrent,
        hidden=cell.hidden,
        update=update,
        gates=cell.gates and gates,
        noise=noise if cell.noise is not None or mean_rate is not None else None,
        context=context,
    )


def _draw_selector(key: Key, state_size: int) -> SelectorParams:
    w, bias = draw_linear(key, state_size, 1)
    return SelectorParams(w[:, 0], bias[0])


def _draw_numbers(key: Key, shape: NoiseShape, mean_rate: float) -> Array:
    """[T, B]: what is drawn for a sequence depends on its place in the batch and on the step."""
    tossing, drawing = jax.random.split(key)

    def row(b: Array) -> Array:
        steps = jnp.arange(shape.time)
        numbers = jax.vmap(lambda t: jax.random.uniform(jax.random.fold_in(of_row(b), t)))(steps)
        means = jax.random.uniform(jax.random.fold_in(tossing, b)) < mean_rate
        return jnp.where(means, -1.0, numbers)

    def of_row(b: Array) -> Key:
        return jax.random.fold_in(drawing, b)

    return jax.vmap(row, out_axes=1)(jnp.arange(shape.batch))


def _drawn(weights: Array, draw: _Draw | None) -> Array:
    """1 at the place that is taken, 0 elsewhere, and everywhere where no place is real."""
    weights = lax.stop_gradient(weights)
    if draw is None:
        largest = jnp.arange(len(weights)) == jnp.argmax(weights)
        return (largest & (weights > 0)).astype(weights.dtype)
    # The place in whose part of [0, 1] the number lies. Parts are half open, so that one of
    # weight 0 holds no number, and a number of -1 lies in none.
    ends = jnp.cumsum(weights)
    begins = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])
    at = draw.number.astype(weights.dtype) * ends[-1]
    return ((begins <= at) & (at < ends)).astype(weights.dtype)


def _take_last(x_proj: tuple, h_proj: tuple) -> tuple[tuple, tuple, Array]:
    """Both without the last piece that is in the engine's product, and the sum of these."""
    last = len(h_proj) - 1
    return (*x_proj[:last], *x_proj[last + 1 :]), h_proj[:last], x_proj[last] + h_proj[last]


def _feeding(cell: Cell, attention: Attention, memory_size: int, output_size: int) -> Cell:
    """The state after the step asks, and the answer is an input of the next step."""

    def init(key: Key, input_size: int) -> InputFeedingParams:
        inner, asking, feed, output = jax.random.split(check_key(key), 4)
        params = cell.init(inner, input_size)
        widths, _ = gate_sizes(cell, params, input_size)
        return InputFeedingParams(
            params,
            attention.init(asking, cell.output_size, memory_size),
            draw_gate_weights(feed, output_size, widths),
            draw_linear(output, memory_size + cell.output_size, output_size)[0],
        )

    def initial_carry(params: InputFeedingParams) -> FeedingCarry:
        zeros = jnp.zeros((output_size,), accumulation_dtype(params.output.dtype))
        return FeedingCarry(cell.initial_carry(params.cell), zeros)

    def context(params: InputFeedingParams, given: Any) -> Memory:
        memory = checked_memory(given, memory_size)
        if memory.keys is not None:
            return memory
        return memory._replace(keys=attention.keys(params.attention, memory.states))

    def plain_step(
        params: InputFeedingParams, carry: FeedingCarry, x_proj: tuple, memory: Memory
    ) -> tuple[FeedingCarry, Attended]:
        assert cell.update is not None
        assert cell.hidden is not None
        assert memory.keys is not None
        w_hh = recurrent_weights(cell, params.cell)
        widths = gate_widths(w_hh, x_proj)
        h_proj = cut_gates(affine(cell.hidden(carry.cell), w_hh), widths)
        x_proj = add_to_gates(x_proj, h_proj, affine(carry.fed, params.feed))
        new, y = cell.update(params.cell, carry.cell, x_proj, h_proj)
        w_q = attention.query_weights(params.attention)
        query = y if w_q is None else affine(y, w_q)
        weights = attention.weigh(params.attention, query[None], memory.keys, memory.mask)
        answer = weighted_mean(weights, memory.states)[0]
        joined = jnp.concatenate([answer.astype(y.dtype), y])
        fed = jnp.tanh(affine(joined, params.output))
        return FeedingCarry(new, fed), Attended(fed, weights[0])

    def noise(key: Key, params: InputFeedingParams, shape: NoiseShape) -> Noise:
        assert cell.noise is not None
        return cell.noise(key, params.cell, shape)

    return Cell(
        output_size=output_size,
        init=init,
        initial_carry=initial_carry,
        project=lambda params, x: cell.project(params.cell, x),
        plain_step=plain_step,
        noise=cell.noise and noise,
        context=context,
    )


def _check_parts(cell: Any, attention: Any) -> None:
    check_reading_cell(cell)
    if not isinstance(attention, Attention):
        raise ValueError(
            f"attention must be a rnnjax.attention(...), got {type(attention).__name__}"
        )
