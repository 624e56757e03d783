"""Noise for cells: each function takes a cell and returns one that is regularised in training.

The noise of a call is drawn before the loop over time, and only where ``unroll`` or a layer is
given a ``key``; a key means training. The transformed cell keeps the whole sequence law and the
derivative of the engine. What is drawn for a sequence depends on the key, its index in the batch
and the time step alone, so that neither padding nor further sequences behind it change it. With
several batch axes the index is that among all sequences, counted along the last axis first.

The functions compose in any order, except that :func:`recurrent_dropout` must know its cell and
comes first, and that :func:`zoneout` must see the carry, before ``rnnjax.trace_gates``.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from rnnjax._checks import check_cell, check_rate
from rnnjax._numerics import accumulation_dtype, carry_dtype, draw_flags_by_place
from rnnjax._recipe import factory
from rnnjax.base import Carry, Cell, Key, Noise, NoiseShape, Params
from rnnjax.cells.gru import GRUGates
from rnnjax.cells.gru import _step_before as _gru_step_before
from rnnjax.cells.gru import _update_after as _gru_update_after
from rnnjax.cells.lstm import LSTMCarry, LSTMGates, finish_lstm
from rnnjax.cells.lstm import _update as _lstm_update
from rnnjax.cells.slstm import SLSTMCarry

Draw = Callable[[Key, Params, NoiseShape], Noise]


@factory
def variational_dropout(cell: Cell, inputs: float = 0.0, hidden: float = 0.0) -> Cell:
    r"""Dropout with one mask a sequence: the same units are missing at every step.

    .. math::

        \tilde x_t &= m_x \odot x_t, & \quad (m_x)_j &\in \{0, 1/(1 - p_x)\} \\
        \tilde h_{t-1} &= m_h \odot h_{t-1}, & \quad (m_h)_j &\in \{0, 1/(1 - p_h)\}

    where :math:`\tilde h` is what the recurrent weights multiply; the carry itself, and what else
    the cell makes of it, are not dropped. Kept units are scaled up in training, so nothing is to
    be done without a key. All gates share one mask, the tied form of the paper. Keras calls the
    two rates ``dropout`` and ``recurrent_dropout``, and with the latter draws masks gate by gate.

    Args:
        cell: any cell; for ``hidden``, one with recurrent weights.
        inputs: the rate :math:`p_x` in [0, 1) at which input features are dropped.
        hidden: the rate :math:`p_h` in [0, 1) at which hidden units are dropped.

    Raises:
        ValueError: a rate outside [0, 1), or ``hidden`` for a cell without recurrent weights.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.variational_dropout(rnnjax.lstm(4), inputs=0.2, hidden=0.3)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> _, ys = rnnjax.unroll(cell, params, jnp.ones((2, 5, 3)), key=jax.random.key(1))
        >>> ys.shape
        (2, 5, 4)

    References:
        Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural
        networks", NeurIPS 2016, arXiv:1512.05287.
    """
    check_cell(cell)
    inputs, hidden = check_rate("inputs", inputs), check_rate("hidden", hidden)
    if hidden:
        _check_recurrent("variational_dropout(hidden=...)", cell)

    def draw(key: Key, params: Params, shape: NoiseShape) -> Noise:
        dtype, batch = carry_dtype(params), (shape.batch,)
        x_key, h_key = jax.random.split(key)
        x = h = None
        if inputs:
            if not isinstance(shape.input_size, int):  # not all of them are features to drop
                raise ValueError(
                    "variational_dropout(inputs=...) needs inputs of one array, got several"
                )
            x = _factor(x_key, inputs, batch, (shape.input_size,), dtype)
        if hidden:
            *heads, rows, _ = _recurrent(cell, params).shape
            h = _factor(h_key, hidden, batch, (math.prod(heads) * rows,), dtype)
        return Noise(inputs=x, hidden=h)

    if not inputs and not hidden:
        return cell
    # A chunk does not see what the product of a step is given.
    return cell._replace(noise=_both(cell.noise, draw), chunk=None if hidden else cell.chunk)


class CandidateMask(NamedTuple):
    """``keep``: bool, False where :func:`recurrent_dropout` drops the candidate."""

    keep: Array


@factory
def recurrent_dropout(cell: Cell, rate: float) -> Cell:
    r"""Dropout of what is written to memory, never of memory itself: another mask at every step.

    .. math::

        \text{LSTM:}\quad c_t &= \sigma(f) c_{t-1} + \sigma(i) \, (m_t \odot \tanh(g)) \\
        \text{GRU:}\quad h_t &= (1 - z) \, (m_t \odot n) + z \, h_{t-1}

    with :math:`(m_t)_j \in \{0, 1/(1 - p)\}`; without a key the cell is as it was. For Keras'
    argument of this name see :func:`variational_dropout`.

    Args:
        cell: ``lstm(...)`` or ``gru(...)``, in either form, before any other transformer that
            changes its update: the place of the mask is inside it.
        rate: p in [0, 1).

    Raises:
        ValueError: a rate outside [0, 1), or any other cell.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.recurrent_dropout(rnnjax.lstm(4), 0.25)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> _, ys = rnnjax.unroll(cell, params, jnp.ones((2, 5, 3)), key=jax.random.key(1))
        >>> ys.shape
        (2, 5, 4)

    References:
        Semeniuta, Severyn and Barth, "Recurrent dropout without memory loss", COLING 2016,
        arXiv:1603.05118.
    """
    check_cell(cell)
    rate = check_rate("rate", rate)
    finish = _FINISH.get(cell.update or cell.plain_step)
    if finish is None:
        raise ValueError(
            "recurrent_dropout needs lstm(...) or gru(...), before other transformers, as it drops "
            "the candidate inside them; for any cell with recurrent weights see "
            "variational_dropout"
        )
    gates, update = cell.gates, cell.update
    assert gates is not None

    def draw(key: Key, params: Params, shape: NoiseShape) -> Noise:
        keep = draw_flags_by_place(key, 1 - rate, (shape.time, shape.batch), (cell.output_size,))
        return Noise(steps=(CandidateMask(keep),))

    def dropped(params: Params, carry: Carry, x_proj: tuple, h_proj: tuple) -> tuple[Carry, Any]:
        x_proj, mask = _split_noise(x_proj, CandidateMask)

        def drop(a: Array) -> Array:
            return a if mask is None else jnp.where(mask.keep, a / (1 - rate), jnp.zeros_like(a))

        return finish(gates(params, carry, x_proj, h_proj), carry, drop)

    def shown(params: Params, carry: Carry, x_proj: tuple, h_proj: tuple) -> Any:
        return gates(params, carry, _split_noise(x_proj, CandidateMask)[0], h_proj)

    if not rate:
        return cell
    noisy = cell._replace(noise=_both(cell.noise, draw), gates=shown)
    if update is None:
        return noisy._replace(
            plain_step=lambda params, carry, x_proj: dropped(params, carry, x_proj, ())
        )
    return noisy._replace(update=dropped)


def _finish_lstm(gates: LSTMGates, carry: LSTMCarry, drop: Callable) -> tuple[LSTMCarry, Array]:
    return finish_lstm(gates, carry, drop(gates.g))


def _finish_gru(gates: GRUGates, carry: Array, drop: Callable) -> tuple[Array, Array]:
    h = (1 - gates.z) * drop(gates.n) + gates.z * carry
    return h, h


# The updates whose candidate is known, and what remains of them once their gates are there.
_FINISH = {
    _lstm_update: _finish_lstm,
    _gru_update_after: _finish_gru,
    _gru_step_before: _finish_gru,
}


@factory
def weight_drop(cell: Cell, rate: float) -> Cell:
    r"""Dropout of the recurrent weights: one mask for all sequences and steps of a call.

    .. math:: \tilde W_{hh} = M \odot W_{hh}, \quad M_{jk} \in \{0, 1/(1 - p)\}

    Without a key the weights are as they are.

    Args:
        cell: a cell with recurrent weights.
        rate: p in [0, 1).

    Raises:
        ValueError: a rate outside [0, 1), or a cell without recurrent weights.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.weight_drop(rnnjax.lstm(4), 0.5)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> _, ys = rnnjax.unroll(cell, params, jnp.ones((2, 5, 3)), key=jax.random.key(1))
        >>> ys.shape
        (2, 5, 4)

    References:
        Merity, Keskar and Socher, "Regularizing and optimizing LSTM language models", ICLR 2018,
        arXiv:1708.02182; Wan et al., "Regularization of neural networks using DropConnect", ICML
        2013.
    """
    check_cell(cell)
    rate = check_rate("rate", rate)
    _check_recurrent("weight_drop", cell)

    def draw(key: Key, params: Params, shape: NoiseShape) -> Noise:
        w_hh = _recurrent(cell, params)
        dtype = accumulation_dtype(w_hh.dtype)
        return Noise(recurrent=_factor(key, rate, (), w_hh.shape, dtype))

    # A chunk does not see the weights that the product of a step is given.
    return cell._replace(noise=_both(cell.noise, draw), chunk=None) if rate else cell


class ZoneoutMask(NamedTuple):
    """``hold``: for each leaf of the carry a bool array, True where the unit keeps its old value,
    or None at rate 0."""

    hold: tuple[Array | None, ...]


@factory
def zoneout(cell: Cell, rate: float | Mapping[str, float]) -> Cell:
    r"""Some units of the carry keep their last value, others at every step.

    .. math::

        s_t = \begin{cases}
            m_t \odot s_{t-1} + (1 - m_t) \odot \hat s_t, \quad (m_t)_j \in \{0, 1\}
                & \text{in training (with a key)} \\
            p \, s_{t-1} + (1 - p) \, \hat s_t & \text{without a key}
        \end{cases}

    where :math:`\hat s_t` is the carry the cell would go to; without a key it is the expectation
    over masks, so this transformer acts there too. Each part of the carry has its own masks and
    may have its own rate: :math:`\hat h_t` is made from :math:`\hat c_t`. The output is the part
    of the new carry that was the cell's output, as h is for ``vanilla``, ``lstm`` and ``gru``.

    Args:
        cell: a cell whose output is an array of its new carry.
        rate: p in [0, 1), or one for each part of the carry by name, as ``{"h": 0.05, "c": 0.5}``
            for an LSTM; parts not named are left alone.

    Raises:
        ValueError: a rate outside [0, 1); a name that is no part of the carry, once the cell is
            run, or at once where all rates are 0; once it is run, an output that is no such part,
            or a rate for ``c``, ``n`` or ``m`` of ``slstm``: the first two are kept divided by
            exp(m), so that one that is held without the others is another memory.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.zoneout(rnnjax.lstm(4), {"h": 0.05, "c": 0.5})
        >>> params = cell.init(jax.random.key(0), 3)
        >>> _, ys = rnnjax.unroll(cell, params, jnp.ones((2, 5, 3)), key=jax.random.key(1))
        >>> ys.shape
        (2, 5, 4)

    References:
        Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations",
        ICLR 2017, arXiv:1606.01305.
    """
    check_cell(cell)
    if isinstance(rate, Mapping):
        rate = {name: check_rate(f"rate[{name!r}]", p) for name, p in rate.items()}
        if not any(rate.values()):
            _check_names(rate, cell)
            return cell
    elif not check_rate("rate", rate):
        return cell

    def draw(key: Key, params: Params, shape: NoiseShape) -> Noise:
        carry = jax.eval_shape(cell.initial_carry, params)
        leaves, rates = jax.tree.leaves(carry), _rates_by_leaf(rate, carry)
        counts = (shape.time, shape.batch)
        hold = tuple(
            draw_flags_by_place(k, p, counts, leaf.shape) if p else None
            for k, p, leaf in zip(jax.random.split(key, len(leaves)), rates, leaves, strict=True)
        )
        return Noise(steps=(ZoneoutMask(hold),))

    def update(
        params: Params, carry: Carry, x_proj: tuple, h_proj: tuple, *context: Any
    ) -> tuple[Carry, Any]:
        assert cell.update is not None
        x_proj, mask = _split_noise(x_proj, ZoneoutMask)
        new, y = cell.update(params, carry, x_proj, h_proj, *context)
        return _zone_out(rate, mask, carry, new, y)

    def step(params: Params, carry: Carry, x_proj: tuple, *context: Any) -> tuple[Carry, Any]:
        assert cell.plain_step is not None
        x_proj, mask = _split_noise(x_proj, ZoneoutMask)
        new, y = cell.plain_step(params, carry, x_proj, *context)
        return _zone_out(rate, mask, carry, new, y)

    def gates(params: Params, carry: Carry, x_proj: tuple, h_proj: tuple, *context: Any) -> Any:
        assert cell.gates is not None
        x_proj, _ = _split_noise(x_proj, ZoneoutMask)
        return cell.gates(params, carry, x_proj, h_proj, *context)

    def linear(params: Params, x_proj: tuple) -> tuple[Carry, Carry]:
        assert cell.linear is not None
        x_proj, mask = _split_noise(x_proj, ZoneoutMask)
        decay, drive = cell.linear(params, x_proj)
        ones, zeros = jax.tree.map(jnp.ones_like, decay), jax.tree.map(jnp.zeros_like, drive)
        return _blend(rate, mask, ones, decay), _blend(rate, mask, zeros, drive)

    return cell._replace(
        noise=_both(cell.noise, draw),
        update=cell.update and update,
        plain_step=cell.plain_step and step,
        gates=cell.gates and gates,
        linear=cell.linear and linear,
        chunk=None,  # it knows nothing of what is held
    )


def _zone_out(
    rate: float | Mapping[str, float], mask: ZoneoutMask | None, old: Carry, new: Carry, y: Any
) -> tuple[Carry, Array]:
    place = [k for k, leaf in enumerate(jax.tree.leaves(new)) if leaf is y]
    if not place:
        raise ValueError(
            "zoneout needs a cell whose output is an array of its new carry, as h is for lstm; "
            "what this cell would give for the carry it holds back is not defined"
        )
    carry = _blend(rate, mask, old, new)
    return carry, jax.tree.leaves(carry)[place[0]]


def _blend(
    rate: float | Mapping[str, float], mask: ZoneoutMask | None, old: Carry, new: Carry
) -> Carry:
    leaves, structure = jax.tree.flatten(new)
    rates = _rates_by_leaf(rate, new)
    hold = [None] * len(rates) if mask is None else mask.hold
    return structure.unflatten(map(_blend_leaf, rates, hold, jax.tree.leaves(old), leaves))


def _blend_leaf(rate: float, hold: Array | None, old: Array, new: Array) -> Array:
    if not rate:
        return new
    return rate * old + (1 - rate) * new if hold is None else jnp.where(hold, old, new)


def _check_names(rates: Mapping[str, float], cell: Cell) -> None:
    """Refuse names that the carry does not have, of a cell that is not there yet when it is run."""
    try:
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), cell.output_size))
    except (TypeError, ValueError):  # inputs of this size are none of the cell's
        return
    _rates_by_leaf(rates, jax.eval_shape(cell.initial_carry, params))


def _rates_by_leaf(rate: float | Mapping[str, float], carry: Carry) -> list[float]:
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(carry)]
    if not isinstance(rate, Mapping):
        return _check_held(rate, [rate] * len(paths), carry)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]
    unknown = sorted(set(rate) - set(names))
    if unknown:
        parts = f"the parts {names}" if all(names) else "one part without a name: give one rate"
        raise ValueError(f"rate must have names of the carry, got {unknown}, and it has {parts}")
    return _check_held(rate, [rate.get(name, 0.0) for name in names], carry)


def _check_held(rate: float | Mapping[str, float], rates: list[float], carry: Carry) -> list[float]:
    """Refuse to hold one of several parts that mean something together alone."""

    def is_slstm(node: Any) -> bool:
        return isinstance(node, SLSTMCarry)

    def scaled(node: Any) -> Any:
        return [name != "h" for name in node._fields] if is_slstm(node) else False

    together = jax.tree.leaves(jax.tree.map(scaled, carry, is_leaf=is_slstm))
    if any(p and part for p, part in zip(rates, together, strict=True)):
        raise ValueError(
            f"rate of an slstm must be one of h alone, as {{'h': 0.1}}, got {rate!r}: c and n are "
            "kept divided by exp(m), and one of the three without the others is another memory"
        )
    return rates


def _check_recurrent(name: str, cell: Cell) -> None:
    if cell.recurrent is None:
        raise ValueError(
            f"{name} needs a cell with recurrent weights that the engine multiplies; this one has "
            "none"
            + (", since it is written as a plain step" if cell.plain_step is not None else "")
        )


def _both(first: Draw | None, second: Draw) -> Draw:
    """The noise of a cell and, above it, that of a transformer."""
    if first is None:
        return second

    def draw(key: Key, params: Params, shape: NoiseShape) -> Noise:
        keys = jax.random.split(key)
        below, above = first(keys[0], params, shape), second(keys[1], params, shape)
        return Noise(*map(_product, below[:3], above[:3]), steps=below.steps + above.steps)

    return draw


def _product(a: Array | None, b: Array | None) -> Array | None:
    return a * b if a is not None and b is not None else b if a is None else a


def _split_noise(x_proj: tuple, kind: type) -> tuple[tuple, Any]:
    """The pieces of the cell below, and the transformer's own noise: the last piece, or None."""
    return (x_proj[:-1], x_proj[-1]) if x_proj and isinstance(x_proj[-1], kind) else (x_proj, None)


def _factor(
    key: Key, rate: float, counts: tuple[int, ...], shape: tuple[int, ...], dtype: DTypeLike
) -> Array:
    keep = draw_flags_by_place(key, 1 - rate, counts, shape)
    return jnp.where(keep, jnp.asarray(1 / (1 - rate), dtype), jnp.zeros((), dtype))


def _recurrent(cell: Cell, params: Params) -> jax.ShapeDtypeStruct:
    assert cell.recurrent is not None
    return jax.eval_shape(cell.recurrent, params)
