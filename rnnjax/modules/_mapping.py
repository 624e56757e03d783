"""Flax's recurrent cells, and the options of its ``RNN``, in the terms of :func:`rnnjax.unroll`.

What both of Flax's interfaces share; nothing here imports Flax.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from rnnjax import masking
from rnnjax.base import Carry, Cell, Key, Params
from rnnjax.cells.gru import GRUParams, gru
from rnnjax.cells.lstm import LSTMParams, lstm
from rnnjax.cells.minimal_gated import MGUParams, minimal_gated
from rnnjax.cells.vanilla import VanillaParams, vanilla
from rnnjax.engine.unroll import unroll

Activation = Callable[[Array], Array]
Take = Callable[[str], Array]


class Recurrence(NamedTuple):
    """A Flax module read out.

    Attributes:
        cell: what to unroll.
        params: its parameters.
        dtype: in which products are taken; None for that of the parameters.
        carry_dtype: of carry and outputs, unless an initial carry is wider; None for what the
            engine gives.
    """

    cell: Cell
    params: Params
    dtype: DTypeLike | None
    carry_dtype: DTypeLike | None = None


class Options(NamedTuple):
    """How one call of ``RNN`` runs, under Flax's names."""

    return_carry: bool
    time_major: bool
    reverse: bool
    keep_order: bool
    unroll: int

    def override(
        self,
        return_carry: bool | None,
        time_major: bool | None,
        reverse: bool | None,
        keep_order: bool | None,
    ) -> "Options":
        """These options, except where the call says otherwise."""
        given = {
            "return_carry": return_carry,
            "time_major": time_major,
            "reverse": reverse,
            "keep_order": keep_order,
        }
        return self._replace(**{k: value for k, value in given.items() if value is not None})


def run(
    recurrence: Recurrence,
    inputs: Array,
    options: Options,
    *,
    seq_lengths: Any,
    initial_carry: Carry,
    key: Key | None = None,
) -> Any:
    """The result of Flax's ``RNN(cell)(inputs, ...)`` with padded outputs zero.

    Args:
        recurrence: the cell.
        inputs: [..., T, D], or [T, ..., D] where the options say ``time_major``.
        options: of the call.
        seq_lengths: [...], or None.
        initial_carry: the carry before the first step, leaves [..., H]; None for the cell's own.
        key: the source of the cell's noise, in training.

    Returns:
        The outputs, time where it was in the inputs; with ``return_carry`` ``(carry, outputs)``.
    """
    inputs = jnp.asarray(inputs)
    if inputs.ndim < 2:
        raise ValueError(f"inputs must have a time and a feature axis, got shape {inputs.shape}")
    xs = jnp.moveaxis(inputs, 0, -2) if options.time_major else inputs
    batch, time = xs.shape[:-2], xs.shape[-2]
    if seq_lengths is not None:
        checked = jnp.asarray(masking.check_lengths(seq_lengths, batch, time), jnp.int32)
        seq_lengths = jnp.clip(checked, 0, time)
    carry, ys = unroll(
        recurrence.cell,
        cast(recurrence.params, recurrence.dtype),
        xs if recurrence.dtype is None else xs.astype(recurrence.dtype),
        seq_lengths,
        initial_carry=initial_carry,
        reverse=options.reverse,
        key=key,
        scan_unroll=options.unroll,
    )
    if recurrence.carry_dtype is not None:
        given = jax.tree.leaves(initial_carry)
        carry, ys = cast((carry, ys), jnp.result_type(recurrence.carry_dtype, *given))
    if options.reverse and not options.keep_order:
        ys = jax.tree.map(lambda y: _in_order_of_steps(y, seq_lengths, len(batch)), ys)
    if options.time_major:
        ys = jax.tree.map(lambda y: jnp.moveaxis(y, len(batch), 0), ys)
    return (carry, ys) if options.return_carry else ys


def _in_order_of_steps(ys: Array, lengths: Array | None, axis: int) -> Array:
    """Outputs of a reversed run as they were made: the last real step first, padding at the end."""
    if lengths is None:
        return jnp.flip(ys, axis)
    time = ys.shape[axis]
    steps = jax.lax.broadcasted_iota(jnp.int32, (*lengths.shape, time), axis)
    # Past the length this wraps around to padded steps, which are zero.
    index = (jnp.expand_dims(lengths, -1) - 1 - steps) % max(time, 1)
    return jnp.take_along_axis(ys, index.reshape(index.shape + (1,) * (ys.ndim - axis - 1)), axis)


def cast(tree: Any, dtype: DTypeLike | None) -> Any:
    """``tree`` with every real leaf in ``dtype``; as it is where that is None."""

    def convert(leaf: Array) -> Array:
        real = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if real else leaf

    return tree if dtype is None else jax.tree.map(convert, tree)


def compute_dtype(dtype: DTypeLike | None, inputs: Any, params: Params) -> DTypeLike:
    """The dtype Flax computes in: ``dtype``, or else what inputs and parameters promote to."""
    if dtype is not None:
        return dtype
    found = jnp.result_type(inputs, *jax.tree.leaves(params))
    return found if jnp.issubdtype(found, jnp.inexact) else jnp.promote_types(found, jnp.float32)


def typed_key(key: Array) -> Key:
    """``key`` as a typed key; Flax hands on a legacy ``uint32`` key as it was given."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def step_shape(inputs: Any, time_major: bool) -> tuple[int, ...]:
    """The shape of the inputs without time: what Flax's ``initialize_carry`` is given."""
    shape = jnp.shape(inputs)
    return shape[1:] if time_major else (*shape[:-2], *shape[-1:])


def spread_carry(
    start: Carry,
    batch: tuple[int, ...],
    next_key: Callable[[], Key] | None,
    carry_init: Callable[..., Array] | None,
) -> Carry:
    """``start``, the carry of one sequence, for a batch; drawn leaf by leaf with ``carry_init``."""
    if carry_init is None:
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (*batch, *a.shape)), start)
    if next_key is None:
        raise ValueError("carry_init needs rngs to draw from, got rngs=None")
    return jax.tree.map(lambda a: carry_init(next_key(), (*batch, *a.shape), a.dtype), start)


def parameter_name(path: Any) -> str:
    """The path of a leaf as one name, such as ``w_hh`` or ``cell.w_hh``."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def check_names(argument: str, given: Iterable[str], params: Params) -> None:
    """Refuse names that are not those of parameters."""
    names = {parameter_name(path) for path, _ in jax.tree.leaves_with_path(params)}
    if unknown := set(given) - names:
        raise ValueError(f"{argument} must name parameters, {sorted(names)}, got {sorted(unknown)}")


def unknown_cell(cell: Any, known: Iterable[type]) -> str:
    """Why ``RNN`` cannot run ``cell``, and what can be done."""
    names = ", ".join(kind.__name__ for kind in known)
    return (
        f"RNN runs cells of rnnjax and exactly Flax's {names}, got {type(cell).__name__}: its "
        "step is unknown to the engine. Write it as a rnnjax.Cell and wrap it in RNNCell, or keep "
        "Flax's RNN for it"
    )


def check_activations(cell: Any, module: type) -> None:
    """Refuse activations that are Flax modules: their parameters are not those of the cell."""
    for name in ("gate_fn", "activation_fn"):
        if isinstance(getattr(cell, name, None), module):
            raise ValueError(
                f"{type(cell).__name__}: {name} must be a plain function, got a module, whose "
                "parameters and state the engine does not know"
            )


def read_all(
    read: Callable[[Any, Take], tuple[Cell, Params]], cell: Any, values: Mapping[str, Array]
) -> tuple[Cell, Params]:
    """What ``read`` makes of a Flax cell, if the cell has just the parameters that it takes.

    Args:
        read: ``(cell, take) -> (rnnjax.Cell, parameters)``; ``take`` gives a parameter by name.
        cell: the Flax cell.
        values: its parameters by path.

    Raises:
        ValueError: a parameter is missing or left over.
    """
    left, missing, result = dict(values), set(), None
    try:
        result = read(cell, left.pop)
    except KeyError as error:
        missing = set(error.args)
    if result is None or left:
        raise ValueError(
            f"{type(cell).__name__} has the parameters {sorted(values)}, "
            + (f"without {sorted(missing)}" if missing else f"{sorted(left)} too many")
            + ": a layer inside it was replaced, and the engine does not know what it computes"
        )
    return result


def reads_parameters(function: Callable[[Params], Any], params: Params) -> bool:
    """Whether what ``function`` gives depends on the values of ``params``, not on shapes alone."""
    jaxpr = jax.make_jaxpr(function)(params).jaxpr
    read = [*jaxpr.outvars, *(v for equation in jaxpr.eqns for v in equation.invars)]
    return any(v is given for given in jaxpr.invars for v in read)


# Cells are cached: each is compiled for by its identity, and a Flax module is read at every call.


@functools.lru_cache(maxsize=256)
def lstm_cell(features: int, gate_fn: Activation, activation_fn: Activation) -> Cell:
    """Flax's LSTM on ``LSTMParams``, any activations; the carry is Flax's ``(c, h)``."""

    def initial_carry(params: LSTMParams) -> tuple[Array, Array]:
        start = base.initial_carry(params)
        return start.c, start.h

    def update(
        params: LSTMParams, carry: tuple, x_proj: tuple, h_proj: tuple
    ) -> tuple[tuple, Array]:
        i, f, g, o = (a + b for a, b in zip(x_proj, h_proj, strict=True))
        c = gate_fn(f) * carry[0] + gate_fn(i) * activation_fn(g)
        h = gate_fn(o) * activation_fn(c)
        return (c, h), h

    base = lstm(features)
    return base._replace(
        initial_carry=initial_carry, hidden=lambda carry: carry[1], update=update, gates=None
    )


@functools.lru_cache(maxsize=256)
def gru_cell(features: int, gate_fn: Activation, activation_fn: Activation) -> Cell:
    """Flax's GRU on ``GRUParams``, any activations, with or without the hidden bias."""

    def update(params: GRUParams, h: Array, x_proj: tuple, h_proj: tuple) -> tuple[Array, Array]:
        reset, keep = gate_fn(x_proj[0] + h_proj[0]), gate_fn(x_proj[1] + h_proj[1])
        candidate = activation_fn(x_proj[2] + reset * _with_bias(h_proj[2], params.hidden_bias))
        h = (1 - keep) * candidate + keep * h
        return h, h

    return gru(features)._replace(update=update, gates=None)


@functools.lru_cache(maxsize=256)
def mgu_cell(
    features: int, gate_fn: Activation, activation_fn: Activation, reset_gate: bool
) -> Cell:
    """Flax's minimal gated unit on ``MGUParams``."""

    def update(params: MGUParams, h: Array, x_proj: tuple, h_proj: tuple) -> tuple[Array, Array]:
        forget = gate_fn(x_proj[0] + h_proj[0])
        recalled = _with_bias(h_proj[1], params.hidden_bias)
        candidate = activation_fn(x_proj[1] + (forget * recalled if reset_gate else recalled))
        h = (1 - forget) * candidate + forget * h
        return h, h

    return minimal_gated(features)._replace(update=update, gates=None)


@functools.lru_cache(maxsize=256)
def simple_cell(features: int, activation_fn: Activation, residual: bool) -> Cell:
    """Flax's simple cell on ``VanillaParams``, with or without its residual connection."""

    def update(
        params: VanillaParams, h: Array, x_proj: tuple, h_proj: tuple
    ) -> tuple[Array, Array]:
        total = x_proj[0] + h_proj[0]
        h = activation_fn(total + h if residual else total)
        return h, h

    return vanilla(features)._replace(update=update)


def _with_bias(h_proj: Array, bias: Array | None) -> Array:
    return h_proj if bias is None else h_proj + bias.astype(h_proj.dtype)
