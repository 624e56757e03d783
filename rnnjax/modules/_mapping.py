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
from rnnjax._recipe import factory
from rnnjax.base import Carry, Cell, Key, Layer, Params
from rnnjax.cells.gru import GRUParams, gru
from rnnjax.cells.lstm import LSTMParams, lstm
from rnnjax.cells.minimal_gated import MinimalGatedParams, minimal_gated
from rnnjax.cells.vanilla import VanillaParams, vanilla
from rnnjax.engine.unroll import unroll
from rnnjax.initializers import CellInitializer, resolve

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


def run_by_engine(
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
        seq_lengths = _clipped_lengths(seq_lengths, batch, time)
    carry, ys = unroll(
        recurrence.cell,
        cast(recurrence.params, recurrence.dtype),
        as_floats(xs, recurrence.dtype, recurrence.params),
        seq_lengths,
        initial_carry=initial_carry,
        reverse=options.reverse,
        key=key,
        # 1 is what Flax has where nothing was asked for.
        scan_unroll=None if options.unroll == 1 else options.unroll,
    )
    if recurrence.carry_dtype is not None:
        given = jax.tree.leaves(initial_carry)
        carry, ys = cast((carry, ys), jnp.result_type(recurrence.carry_dtype, *given))
    if options.reverse and not options.keep_order:
        ys = jax.tree.map(lambda y: _in_order_of_steps(y, seq_lengths, len(batch)), ys)
    if options.time_major:
        ys = jax.tree.map(lambda y: jnp.moveaxis(y, len(batch), 0), ys)
    return (carry, ys) if options.return_carry else ys


def as_floats(xs: Array, dtype: DTypeLike | None, params: Params) -> Array:
    """``xs`` in ``dtype``; where that is None integers become floats, as they do in Flax."""
    if dtype is None and not jnp.issubdtype(xs.dtype, jnp.inexact):
        dtype = compute_dtype(None, xs, params)
    return xs if dtype is None else xs.astype(dtype)


def run_by_steps(
    scan: Callable[[Carry, Array, Array | None], tuple[Carry, Any]],
    inputs: Array,
    options: Options,
    *,
    feature_axes: int,
    seq_lengths: Any,
    carry: Carry,
) -> Any:
    """What :func:`run_by_engine` gives, of a cell that is known by its ``__call__`` alone.

    Args:
        scan: ``(carry, xs [T, ..., features], valid [T, ...]) -> (carry, ys [T, ...])``, a loop
            over :func:`masked_step`; ``valid`` is None where all steps are real.
        inputs: [..., T, features], or [T, ..., features] where the options say ``time_major``.
        options: of the call.
        feature_axes: how many axes the features of one step have.
        seq_lengths: [...], or None.
        carry: before the first step, leaves [..., anything].
    """
    inputs = jnp.asarray(inputs)
    axis = inputs.ndim - feature_axes - 1
    if axis < 0:
        expected = f"a time axis and {feature_axes} feature axes"
        raise ValueError(f"inputs must have {expected}, got shape {inputs.shape}")
    xs = jnp.moveaxis(inputs, 0, axis) if options.time_major else inputs
    batch, time = xs.shape[:axis], xs.shape[axis]
    lengths = valid = None
    if seq_lengths is not None:
        lengths = _clipped_lengths(seq_lengths, batch, time)
        valid = jnp.moveaxis(masking.lengths_to_mask(lengths, time), -1, 0)
        _check_rows(carry, batch)
    if options.reverse:
        xs = _in_order_of_steps(xs, lengths, axis)
    carry, ys = scan(carry, jnp.moveaxis(xs, axis, 0), valid)
    ys = jax.tree.map(lambda y: jnp.moveaxis(y, 0, axis), ys)
    if options.reverse and options.keep_order:
        ys = jax.tree.map(lambda y: _in_order_of_steps(y, lengths, axis), ys)
    if options.time_major:
        ys = jax.tree.map(lambda y: jnp.moveaxis(y, axis, 0), ys)
    return (carry, ys) if options.return_carry else ys


def masked_step(
    cell: Callable[[Carry, Array], tuple[Carry, Any]], carry: Carry, x: Array, valid: Array | None
) -> tuple[Carry, Any]:
    """One step of ``cell`` that at padding reads zeros, holds the carry and gives zeros."""
    if valid is None:
        return cell(carry, x)
    new, y = cell(carry, _zero_padding(x, valid))
    held = jax.tree.map(lambda a, b: jnp.where(_like(valid, a), a, b), new, carry)
    return held, jax.tree.map(lambda a: _zero_padding(a, valid), y)


def _zero_padding(values: Array, valid: Array) -> Array:
    return jnp.where(_like(valid, values), values, jnp.zeros((), values.dtype))


def _like(valid: Array, values: Array) -> Array:
    """``valid`` with axes behind its own, for values that have them."""
    return valid.reshape(valid.shape + (1,) * (values.ndim - valid.ndim))


def _check_rows(carry: Carry, batch: tuple[int, ...]) -> None:
    """Held at padding, a carry must have a part for each sequence."""
    for path, leaf in jax.tree.leaves_with_path(carry):
        if jnp.shape(leaf)[: len(batch)] != batch:
            place = f"carry{jax.tree_util.keystr(path)}"
            raise ValueError(
                f"{place} must have the batch axes {batch} in front where seq_lengths are given, "
                f"got shape {jnp.shape(leaf)}"
            )


def _clipped_lengths(seq_lengths: Any, batch: tuple[int, ...], time: int) -> Array:
    """Lengths in [0, time]; those that are traced could not be refused."""
    checked = jnp.asarray(masking.check_lengths(seq_lengths, batch, time), jnp.int32)
    return jnp.clip(checked, 0, time)


def _in_order_of_steps(ys: Array, lengths: Array | None, axis: int) -> Array:
    """Outputs of a reversed run as they were made: the last real step first, padding at the end."""
    if lengths is None:
        return jnp.flip(ys, axis)
    time = ys.shape[axis]
    steps = jax.lax.broadcasted_iota(jnp.int32, (*lengths.shape, time), axis)
    # Past the length this wraps around to padded steps, which are zero.
    index = (jnp.expand_dims(lengths, -1) - 1 - steps) % time
    return jnp.take_along_axis(ys, index.reshape(index.shape + (1,) * (ys.ndim - axis - 1)), axis)


def cast(tree: Any, dtype: DTypeLike | None) -> Any:
    """``tree`` with every real leaf in ``dtype``; as it is where that is None."""

    def convert(leaf: Array) -> Array:
        real = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if real else leaf

    return tree if dtype is None else jax.tree.map(convert, tree)


def compute_dtype(dtype: DTypeLike | None, inputs: Any, params: Params) -> DTypeLike:
    """The dtype Flax computes in: ``dtype``, or else what inputs and parameters promote to."""
    return jnp.result_type(inputs, *jax.tree.leaves(params)) if dtype is None else dtype


def step_shape(inputs: Any, time_major: bool, feature_axes: int = 1) -> tuple[int, ...]:
    """The shape of the inputs without time: what Flax's ``initialize_carry`` is given."""
    shape = jnp.shape(inputs)
    axis = 0 if time_major else len(shape) - feature_axes - 1
    return (*shape[:axis], *shape[axis + 1 :])


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


def check_runs(cell: Any, module: type) -> None:
    """Refuse what is no Flax cell, and say what to do with a cell or a layer of rnnjax.

    Args:
        cell: what was given for one.
        module: what a cell must be: ``Module`` of the one of Flax's interfaces that runs it.
    """
    if isinstance(cell, Cell):
        raise ValueError(
            "cell must be a Flax cell, got a rnnjax.Cell: wrap it, RNN(RNNCell(cell, ...)), or "
            "call rnnjax.unroll"
        )
    if isinstance(cell, Layer):
        raise ValueError(
            "cell must be a Flax cell, got a rnnjax.Layer, which runs over sequences by itself: "
            "layer.apply(params, xs, lengths)"
        )
    missing = [
        name
        for name in ("__call__", "initialize_carry", "num_feature_axes")
        if not hasattr(type(cell), name)
    ]
    if missing:
        raise ValueError(
            f"cell must be a Flax cell, with __call__, initialize_carry and num_feature_axes, got "
            f"{type(cell).__name__} without {', '.join(missing)}"
        )
    if not isinstance(cell, module):
        raise ValueError(
            f"cell must be a {module.__module__.removesuffix('.module')}.{module.__name__}, got "
            f"{type(cell).__module__}.{type(cell).__name__}"
        )


def has_plain_activations(cell: Any, module: type) -> bool:
    """Whether gates are plain functions: the parameters of modules are not those of the cell."""
    names = ("gate_fn", "activation_fn")
    return not any(isinstance(getattr(cell, name, None), module) for name in names)


def read_all(
    read: Callable[[Any, Take], tuple[Cell, Params]], cell: Any, values: Mapping[str, Array]
) -> tuple[Cell, Params] | None:
    """What ``read`` makes of a Flax cell; None if the cell has other parameters than it takes.

    So it is where a layer inside the cell was replaced.

    Args:
        read: ``(cell, take) -> (rnnjax.Cell, parameters)``; ``take`` gives a parameter by name.
        cell: the Flax cell.
        values: its parameters by path.
    """
    left = dict(values)
    try:
        result = read(cell, left.pop)
    except KeyError:
        return None
    return None if left else result


def reads_parameters(function: Callable[[Params], Any], params: Params) -> bool:
    """Whether what ``function`` gives depends on the values of ``params``, not on shapes alone."""
    jaxpr = jax.make_jaxpr(function)(params).jaxpr
    read = [*jaxpr.outvars, *(v for equation in jaxpr.eqns for v in equation.invars)]
    return any(v is given for given in jaxpr.invars for v in read)


# A Flax module is read at every call: as factories these make equal cells of equal settings, which
# are compiled for once.


@factory
def lstm_cell(
    features: int,
    gate_fn: Activation,
    activation_fn: Activation,
    initializer: str | CellInitializer = "rnnjax",
) -> Cell:
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

    base = lstm(features, initializer=initializer)
    return base._replace(
        initial_carry=initial_carry, hidden=lambda carry: carry[1], update=update, gates=None
    )


@factory
def gru_cell(
    features: int,
    gate_fn: Activation,
    activation_fn: Activation,
    initializer: str | CellInitializer = "rnnjax",
    *,
    hidden_bias: bool = True,
) -> Cell:
    """Flax's GRU on ``GRUParams``, any activations, with or without the hidden bias."""

    def update(params: GRUParams, h: Array, x_proj: tuple, h_proj: tuple) -> tuple[Array, Array]:
        reset, keep = gate_fn(x_proj[0] + h_proj[0]), gate_fn(x_proj[1] + h_proj[1])
        candidate = activation_fn(x_proj[2] + reset * _with_bias(h_proj[2], params.hidden_bias))
        h = (1 - keep) * candidate + keep * h
        return h, h

    cell = gru(features, initializer=initializer)._replace(update=update, gates=None)
    return cell if hidden_bias else _without_hidden_bias(cell)


def our_gru(
    features: int,
    reset_after: bool,
    gate_fn: Activation,
    activation_fn: Activation,
    initializer: str | CellInitializer,
) -> Cell:
    """The GRU of the modules here, of either form.

    Raises:
        ValueError: the reset-before form with other activations than its own.
    """
    if reset_after:
        return gru_cell(features, gate_fn, activation_fn, initializer)
    if gate_fn is not jax.nn.sigmoid or activation_fn is not jnp.tanh:
        raise ValueError(
            "gate_fn and activation_fn must be sigmoid and tanh for reset_after=False, got others"
        )
    return gru(features, reset_after=False, initializer=initializer)


@factory
def minimal_gated_cell(
    features: int, gate_fn: Activation, activation_fn: Activation, reset_gate: bool
) -> Cell:
    """Flax's minimal gated unit on ``MinimalGatedParams``."""

    def update(
        params: MinimalGatedParams, h: Array, x_proj: tuple, h_proj: tuple
    ) -> tuple[Array, Array]:
        forget = gate_fn(x_proj[0] + h_proj[0])
        recalled = _with_bias(h_proj[1], params.hidden_bias)
        candidate = activation_fn(x_proj[1] + (forget * recalled if reset_gate else recalled))
        h = (1 - forget) * candidate + forget * h
        return h, h

    cell = minimal_gated(features)._replace(update=update, gates=None)
    return cell if reset_gate else _without_hidden_bias(cell)


def _without_hidden_bias(cell: Cell) -> Cell:
    """With the parameters that there are, as wrong inputs are told by those of ``init``."""
    init = cell.init
    return cell._replace(init=lambda key, size: init(key, size)._replace(hidden_bias=None))


@factory
def simple_cell(
    features: int,
    activation_fn: Activation,
    residual: bool,
    initializer: str | CellInitializer = "rnnjax",
) -> Cell:
    """Flax's simple cell on ``VanillaParams``, with or without its residual connection."""

    def update(
        params: VanillaParams, h: Array, x_proj: tuple, h_proj: tuple
    ) -> tuple[Array, Array]:
        total = x_proj[0] + h_proj[0]
        h = activation_fn(total + h if residual else total)
        return h, h

    return vanilla(features, initializer=initializer)._replace(update=update)


def initializer_of(
    initializer: str | CellInitializer,
    kernel_init: Any,
    recurrent_kernel_init: Any,
    bias_init: Any,
) -> str | CellInitializer:
    """``initializer``, with Flax's functions in place of its own where they are given.

    As in Flax each gate has a matrix [D, H] or [H, H] and a bias [H] of its own. With a
    ``bias_init`` nothing is added to the bias of the forget gate.
    """
    given = (kernel_init, recurrent_kernel_init, bias_init)
    if all(one is None for one in given):
        return initializer
    return _flax_initializer(initializer, *given)


# Cached by its functions, so that cells of equal settings are equal.
@functools.lru_cache(maxsize=256)
def _flax_initializer(
    initializer: str | CellInitializer,
    kernel_init: Any,
    recurrent_kernel_init: Any,
    bias_init: Any,
) -> CellInitializer:
    rule = resolve(initializer)
    if kernel_init is not None:
        rule = rule._replace(
            w_ih=lambda key, d, h, gates: _each_gate(kernel_init, key, (d, h), gates)
        )
    if recurrent_kernel_init is not None:
        rule = rule._replace(
            w_hh=lambda key, h, gates: _each_gate(recurrent_kernel_init, key, (h, h), gates)
        )
    if bias_init is not None:
        rule = rule._replace(
            bias=lambda key, h, gates: _each_gate(bias_init, key, (h,), gates),
            hidden_bias=lambda key, h: bias_init(key, (h,), jnp.float32),
            forget_bias=0.0,
        )
    return rule


def _each_gate(init: Any, key: Key, shape: tuple[int, ...], gates: int) -> Array:
    keys = jax.random.split(key, gates)
    return jnp.concatenate([init(k, shape, jnp.float32) for k in keys], axis=-1)


def _with_bias(h_proj: Array, bias: Array | None) -> Array:
    return h_proj if bias is None else h_proj + bias.astype(h_proj.dtype)
