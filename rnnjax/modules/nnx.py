"""Recurrent modules for ``flax.nnx``: cells with their parameters held as there, and ``RNN``.

``RNN`` takes the place of ``nnx.RNN``, with Flax's own cells or with those of this file, and
computes by :func:`rnnjax.unroll`. ``nnx.Bidirectional`` takes it as it is.
"""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from rnnjax._checks import check_cell
from rnnjax.base import Carry, Cell, Params
from rnnjax.cells.gru import GRUParams
from rnnjax.cells.lstm import LSTMParams
from rnnjax.cells.vanilla import VanillaParams
from rnnjax.engine.unroll import unroll
from rnnjax.initializers import CellInitializer
from rnnjax.modules import _mapping as mapping
from rnnjax.modules._mapping import Activation, Options, Recurrence

# Flax's own RNN uses this one; versions before 0.12.8 have it under its plain name alone.
_scan: Any = getattr(nnx, "compat", nnx).scan

# How Flax's own cells come to a common dtype; one that was given another function is not read.
_PROMOTE_DTYPE = inspect.signature(nnx.LSTMCell.__init__).parameters["promote_dtype"].default
# The options of a linear layer that change what it computes, as Flax's own cells leave them.
_LINEAR_OPTIONS = {
    name: option.default
    for name, option in inspect.signature(nnx.Linear.__init__).parameters.items()
    if option.default is not inspect.Parameter.empty
    and name not in ("use_bias", "dtype", "param_dtype")
    and not name.endswith(("_init", "_metadata"))
}

Streams = nnx.Rngs | nnx.RngStream | None

_NONE: Mapping[str, Any] = MappingProxyType({})


class RNNCell(nnx.RNNCellBase):
    r"""Any cell of rnnjax, or your own, as a cell of ``flax.nnx``.

    Its parameters are the tree of ``cell.init`` with an ``nnx.Param`` for every array, under
    ``params``. :class:`RNN` runs it over sequences by the engine; ``nnx.RNN`` and
    ``nnx.Bidirectional`` take it too, and then step by step.

    The carry is the cell's: ``LSTMCarry(h, c)`` for ``rnnjax.lstm``, where :class:`LSTMCell` has
    Flax's ``(c, h)``. A cell with noise (dropout) draws it for a whole sequence, so only
    :class:`RNN` trains it; ``deterministic``, which ``train()``, ``eval()`` and ``nnx.view`` set,
    turns the noise off.

    Args:
        cell: a ``rnnjax.Cell``.
        in_features: D.
        dtype: of the computation; None for that of the parameters.
        param_dtype: of the parameters.
        metadata: metadata of the ``nnx.Param`` of each name, such as
            ``{"w_hh": {"out_sharding": (None, "model")}}``.
        carry_init: ``(key, shape, dtype) -> array``, draws the initial carry; None for the cell's
            own.
        deterministic: True for no noise.
        rngs: the stream ``params`` draws the parameters; a cell with noise also takes ``dropout``.

    Raises:
        ValueError: ``cell`` is no ``rnnjax.Cell``, or ``metadata`` names no parameter.

    Example:
        >>> import jax.numpy as jnp, rnnjax
        >>> from flax import nnx
        >>> from rnnjax import modules
        >>> cell = modules.nnx.RNNCell(rnnjax.lstm(4), in_features=3, rngs=nnx.Rngs(0))
        >>> cell.params.w_hh.shape
        (4, 16)
        >>> layer = modules.nnx.RNN(cell, return_carry=True)
        >>> carry, ys = layer(jnp.ones((2, 5, 3)), seq_lengths=jnp.array([5, 2]))
        >>> carry.h.shape, ys.shape
        ((2, 4), (2, 5, 4))
    """

    def __init__(
        self,
        cell: Cell,
        in_features: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        metadata: Mapping[str, Mapping[str, Any]] | None = None,
        carry_init: Callable[..., Array] | None = None,
        deterministic: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.cell = nnx.static(check_cell(cell))
        if not isinstance(rngs, nnx.Rngs):
            raise ValueError(
                f"rngs must be nnx.Rngs, such as nnx.Rngs(0), got {type(rngs).__name__}"
            )
        self.in_features = in_features
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.carry_init = carry_init
        drawn = mapping.cast(cell.init(rngs.params(), in_features), param_dtype)
        self.params = nnx.data(_as_variables(drawn, metadata or {}))
        self.deterministic = deterministic
        self.rngs: nnx.RngStream | None = nnx.data(
            None if cell.noise is None else rngs["dropout"].fork()
        )

    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Any]:
        """One step: the new carry and the output.

        Args:
            carry: leaves [..., H].
            inputs: [..., D].

        Raises:
            ValueError: the cell has noise, which is drawn for a sequence and not for a step.
        """
        if self.cell.noise is not None and not self.deterministic:
            raise ValueError(
                "one step of this cell needs eval() before it, as noise is drawn for whole "
                "sequences: train it in rnnjax.modules.nnx.RNN"
            )
        params = mapping.cast(_values(self.params), self.dtype)
        xs = mapping.as_floats(jnp.asarray(inputs)[..., None, :], self.dtype, params)
        new, ys = unroll(self.cell, params, xs, initial_carry=carry)
        ys = jax.tree.map(lambda y: y[(slice(None),) * (inputs.ndim - 1) + (0,)], ys)
        wide = jnp.result_type(self.param_dtype, *jax.tree.leaves(carry))
        return mapping.cast((new, ys), wide)

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: Streams = None,
        carry_init: Callable[..., Array] | None = None,
    ) -> Carry:
        """The cell's own initial carry, or one drawn by ``carry_init``.

        Args:
            input_shape: (..., D), of the input of one step.
            rngs: where ``carry_init`` takes its keys, one a leaf; else unused.
            carry_init: ``(key, shape, dtype) -> array``, for every leaf.

        Raises:
            ValueError: ``carry_init`` without ``rngs``.
        """
        start = mapping.cast(self.cell.initial_carry(_values(self.params)), self.param_dtype)
        draw = self.carry_init if carry_init is None else carry_init
        return mapping.spread_carry(start, input_shape[:-1], _keys(rngs), draw)

    def set_view(self, deterministic: bool | None = None) -> None:
        """What ``nnx.view(model, deterministic=True)`` calls on its copy of the cell.

        Args:
            deterministic: True for no noise, None to leave it as it is.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    @property
    def num_feature_axes(self) -> int:
        """1: the features of a step are one axis."""
        return 1


class LSTMCell(RNNCell):
    """:func:`rnnjax.lstm` as a cell of ``flax.nnx``; see :class:`RNNCell`.

    Called as ``nnx.LSTMCell`` is, with its arguments and its carry ``(c, h)``, and with the
    initial weights of rnnjax (a forget bias of 1) unless told otherwise: ``initializer="flax"``
    has Flax's.

    Args:
        in_features: D.
        hidden_features: H.
        gate_fn: of the three gates.
        activation_fn: of the candidate and of the output.
        initializer: as for ``rnnjax.lstm``.
        kernel_init: draws the input weights [D, H] of each gate in place of the initializer.
        recurrent_kernel_init: draws the recurrent weights [H, H] of each gate.
        bias_init: draws the biases [H] of each gate; then none is added to the forget gate's.
        kernel_metadata: metadata of the input weights, ``w_ih``.
        recurrent_kernel_metadata: metadata of ``w_hh``.
        bias_metadata: metadata of ``bias``.
        options: ``rngs``, and the other keyword arguments of :class:`RNNCell`.

    Example:
        >>> from flax import nnx
        >>> from rnnjax import modules
        >>> cell = modules.nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0))
        >>> cell.params.bias.shape, len(cell.initialize_carry((2, 3)))
        ((16,), 2)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        gate_fn: Activation = jax.nn.sigmoid,
        activation_fn: Activation = jnp.tanh,
        initializer: str | CellInitializer = "rnnjax",
        kernel_init: Any = None,
        recurrent_kernel_init: Any = None,
        bias_init: Any = None,
        kernel_metadata: Mapping[str, Any] = _NONE,
        recurrent_kernel_metadata: Mapping[str, Any] = _NONE,
        bias_metadata: Mapping[str, Any] = _NONE,
        **options: Any,
    ) -> None:
        rule = mapping.initializer_of(initializer, kernel_init, recurrent_kernel_init, bias_init)
        cell = mapping.lstm_cell(hidden_features, gate_fn, activation_fn, rule)
        given = (kernel_metadata, recurrent_kernel_metadata, bias_metadata)
        super().__init__(cell, in_features, **_with_metadata(options, *given))


class GRUCell(RNNCell):
    """:func:`rnnjax.gru` as a cell of ``flax.nnx``; see :class:`RNNCell` and :class:`LSTMCell`.

    Args:
        in_features: D.
        hidden_features: H.
        gate_fn: of the two gates.
        activation_fn: of the candidate.
        reset_after: as for ``rnnjax.gru``; False has no other ``gate_fn`` and ``activation_fn``
            than the default ones.
        initializer: as for ``rnnjax.gru``.
        kernel_init, recurrent_kernel_init, bias_init: as for :class:`LSTMCell`.
        kernel_metadata, recurrent_kernel_metadata, bias_metadata: likewise.
        options: ``rngs``, and the other keyword arguments of :class:`RNNCell`.

    Raises:
        ValueError: other activations with ``reset_after=False``.

    Example:
        >>> from flax import nnx
        >>> from rnnjax import modules
        >>> modules.nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)).params.hidden_bias.shape
        (4,)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        gate_fn: Activation = jax.nn.sigmoid,
        activation_fn: Activation = jnp.tanh,
        reset_after: bool = True,
        initializer: str | CellInitializer = "rnnjax",
        kernel_init: Any = None,
        recurrent_kernel_init: Any = None,
        bias_init: Any = None,
        kernel_metadata: Mapping[str, Any] = _NONE,
        recurrent_kernel_metadata: Mapping[str, Any] = _NONE,
        bias_metadata: Mapping[str, Any] = _NONE,
        **options: Any,
    ) -> None:
        rule = mapping.initializer_of(initializer, kernel_init, recurrent_kernel_init, bias_init)
        cell = mapping.our_gru(hidden_features, reset_after, gate_fn, activation_fn, rule)
        given = (kernel_metadata, recurrent_kernel_metadata, bias_metadata)
        super().__init__(cell, in_features, **_with_metadata(options, *given))


class SimpleCell(RNNCell):
    """:func:`rnnjax.vanilla` as a cell of ``flax.nnx``; see :class:`RNNCell`, :class:`LSTMCell`.

    Args:
        in_features: D.
        hidden_features: H.
        activation_fn: pointwise; tanh by default.
        residual: whether the carry is added to what ``activation_fn`` is given.
        initializer: as for ``rnnjax.vanilla``.
        kernel_init, recurrent_kernel_init, bias_init: as for :class:`LSTMCell`.
        kernel_metadata, recurrent_kernel_metadata, bias_metadata: likewise.
        options: ``rngs``, and the other keyword arguments of :class:`RNNCell`.

    Example:
        >>> from flax import nnx
        >>> from rnnjax import modules
        >>> modules.nnx.SimpleCell(3, 4, rngs=nnx.Rngs(0)).params.w_ih.shape
        (3, 4)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        activation_fn: Activation = jnp.tanh,
        residual: bool = False,
        initializer: str | CellInitializer = "rnnjax",
        kernel_init: Any = None,
        recurrent_kernel_init: Any = None,
        bias_init: Any = None,
        kernel_metadata: Mapping[str, Any] = _NONE,
        recurrent_kernel_metadata: Mapping[str, Any] = _NONE,
        bias_metadata: Mapping[str, Any] = _NONE,
        **options: Any,
    ) -> None:
        rule = mapping.initializer_of(initializer, kernel_init, recurrent_kernel_init, bias_init)
        cell = mapping.simple_cell(hidden_features, activation_fn, residual, rule)
        given = (kernel_metadata, recurrent_kernel_metadata, bias_metadata)
        super().__init__(cell, in_features, **_with_metadata(options, *given))


def _with_metadata(
    options: dict[str, Any],
    kernel: Mapping[str, Any],
    recurrent_kernel: Mapping[str, Any],
    bias: Mapping[str, Any],
) -> dict[str, Any]:
    """The options of ``RNNCell``, with Flax's three kinds of metadata under our names."""
    named = {"w_ih": kernel, "w_hh": recurrent_kernel, "bias": bias}
    given = {name: metadata for name, metadata in named.items() if metadata}
    return options | {"metadata": {**given, **(options.get("metadata") or {})}}


class RNN(nnx.RNN):
    """A cell over whole sequences: ``nnx.RNN`` with its arguments, computed by the engine.

    ``nnx.RNN(cell)`` becomes ``modules.nnx.RNN(cell)`` and nothing else changes: the cell and its
    state are the same, so checkpoints keep loading. At valid steps it gives what Flax gives, and
    the sequence law of :func:`rnnjax.unroll` holds, for every cell. What differs from Flax is
    listed in :mod:`rnnjax.modules`.

    :class:`RNNCell` and its kin run by :func:`rnnjax.unroll`, and so do Flax's ``LSTMCell``,
    ``OptimizedLSTMCell``, ``GRUCell`` and ``SimpleCell`` as they come. Any other cell runs by its
    own ``__call__`` step by step and is differentiated by ordinary autodiff.

    Args:
        cell: a Flax cell.
        time_major: inputs are [T, ..., D], not [..., T, D].
        return_carry: give ``(carry, outputs)``.
        reverse: run from the last valid step down to the first.
        keep_order: with ``reverse``, leave outputs in the order of time; else they come in the
            order they were made, padding at the end.
        unroll: steps per iteration of the compiled loop; with Flax's default of 1 the engine
            chooses, as where :func:`rnnjax.unroll` is given no ``scan_unroll``.
        state_axes: as in ``nnx.RNN``; with others than the default ones a cell runs by its own
            ``__call__``.
        broadcast_rngs: as in ``nnx.RNN``; the noise of an :class:`RNNCell` is drawn once a call.
        rngs: as in ``nnx.RNN``.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from rnnjax import modules
        >>> layer = modules.nnx.RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)), return_carry=True)
        >>> carry, ys = layer(jnp.ones((2, 5, 3)), seq_lengths=jnp.array([5, 0]))
        >>> ys.shape, carry[1].tolist()
        ((2, 5, 4), [0.0, 0.0, 0.0, 0.0])
    """

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Carry | None = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Streams = None,
    ) -> Any:
        """Run the cell over ``inputs``; an option that is None is that of the constructor.

        Args:
            inputs: [..., T, D], or [T, ..., D] with ``time_major``.
            initial_carry: leaves [..., H]; None for the cell's own.
            seq_lengths: valid steps [...] of each sequence, in [0, T]; None means all. Where
                their values are traced they cannot be checked and are clipped.
            return_carry, time_major, reverse, keep_order: as in the constructor.
            rngs: for a random ``carry_init`` of a Flax cell.

        Returns:
            The outputs, or ``(carry, outputs)`` with ``return_carry``.

        Raises:
            ValueError: what should be a cell is none, or an argument has a wrong shape or value.
                ``seq_lengths`` are named ``lengths`` there.
        """
        mapping.check_runs(self.cell, nnx.Module)
        options = Options(
            self.return_carry, self.time_major, self.reverse, self.keep_order, self.unroll
        ).override(return_carry, time_major, reverse, keep_order)
        recurrence = self._recurrence(inputs)
        if recurrence is None:
            return self._run_by_steps(inputs, options, seq_lengths, initial_carry, rngs)
        if initial_carry is None:
            initial_carry = self._drawn_carry(mapping.step_shape(inputs, options.time_major), rngs)
        return mapping.run_by_engine(
            recurrence,
            inputs,
            options,
            seq_lengths=seq_lengths,
            initial_carry=initial_carry,
            key=_noise_key(self.cell),
        )

    def _recurrence(self, inputs: Any) -> Recurrence | None:
        """The cell for the engine; None where it is known by its ``__call__`` alone."""
        if self.state_axes != nnx.StateAxes({...: nnx.Carry}):
            return None
        return _read(self.cell, inputs)

    def _run_by_steps(
        self,
        inputs: Array,
        options: Options,
        seq_lengths: Any,
        initial_carry: Carry | None,
        rngs: Streams,
    ) -> Any:
        """As ``nnx.RNN`` runs a cell, under the sequence law."""
        cell: Any = self.cell
        if initial_carry is None:
            shape = mapping.step_shape(inputs, options.time_major, cell.num_feature_axes)
            rngs = self.rngs if rngs is None else rngs
            stream = rngs.carry.fork() if isinstance(rngs, nnx.Rngs) else rngs
            initial_carry = cell.initialize_carry(shape, stream)
        broadcast = nnx.All(nnx.RngState, self.broadcast_rngs)
        state_axes = nnx.StateAxes({broadcast: None, **self.state_axes})

        # Keys of the broadcast streams are the same at every step and others in every call.
        @nnx.split_rngs(splits=1, only=self.broadcast_rngs, squeeze=True)
        @_scan(
            in_axes=(state_axes, nnx.Carry, 0, 0), out_axes=(nnx.Carry, 0), unroll=options.unroll
        )
        def scan(cell: Any, carry: Carry, x: Array, valid: Array | None) -> tuple[Carry, Any]:
            return mapping.masked_step(cell, carry, x, valid)

        return mapping.run_by_steps(
            lambda carry, xs, valid: scan(cell, carry, xs, valid),
            inputs,
            options,
            feature_axes=cell.num_feature_axes,
            seq_lengths=seq_lengths,
            carry=initial_carry,
        )

    def _drawn_carry(self, input_shape: tuple[int, ...], rngs: Streams) -> Carry | None:
        cell: Any = self.cell
        if cell.carry_init is None:
            return None
        rngs = self.rngs if rngs is None else rngs
        stream = rngs.carry.fork() if isinstance(rngs, nnx.Rngs) else rngs
        return cell.initialize_carry(input_shape, stream)


def _as_variables(params: Params, metadata: Mapping[str, Mapping[str, Any]]) -> Params:
    mapping.check_names("metadata", metadata, params)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: nnx.Param(leaf, **metadata.get(mapping.parameter_name(path), {})), params
    )


def _values(variables: Params) -> Params:
    return jax.tree.map(
        lambda variable: variable[...],
        variables,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )


def _keys(rngs: Streams) -> Callable[[], Array] | None:
    return rngs.carry if isinstance(rngs, nnx.Rngs) else rngs


def _noise_key(cell: Any) -> Array | None:
    if not isinstance(cell, RNNCell) or cell.cell.noise is None or cell.deterministic:
        return None
    assert cell.rngs is not None
    return cell.rngs()


def _read(cell: Any, inputs: Any) -> Recurrence | None:
    if isinstance(cell, RNNCell):
        return Recurrence(cell.cell, _values(cell.params), cell.dtype, cell.param_dtype)
    read = _READERS.get(type(cell))
    if (
        read is None
        or cell.promote_dtype is not _PROMOTE_DTYPE
        or not mapping.has_plain_activations(cell, nnx.Module)
        or not _has_plain_layers(cell)
    ):
        return None
    state = nnx.to_flat_state(nnx.state(cell, nnx.Param))
    values = {".".join(map(str, path)): variable[...] for path, variable in state}
    found = mapping.read_all(read, cell, values)
    if found is None:
        return None
    dtype = mapping.compute_dtype(cell.dtype, inputs, found[1])
    return Recurrence(*found, dtype, cell.param_dtype)


def _has_plain_layers(cell: Any) -> bool:
    """Whether the layers inside a Flax cell compute what Flax puts there: they can be replaced."""
    layers = [part for part in vars(cell).values() if isinstance(part, nnx.Module)]
    return all(
        type(layer) is nnx.Linear
        and layer.dtype == cell.dtype
        and all(getattr(layer, name) is usual for name, usual in _LINEAR_OPTIONS.items())
        for layer in layers
    )


def _read_lstm(cell: nnx.LSTMCell, take: mapping.Take) -> tuple[Cell, LSTMParams]:
    def join(names: tuple[str, ...], leaf: str) -> Array:
        return jnp.concatenate([take(f"{name}.{leaf}") for name in names], axis=-1)

    hidden = ("hi", "hf", "hg", "ho")
    params = LSTMParams(
        join(("ii", "if_", "ig", "io"), "kernel"), join(hidden, "kernel"), join(hidden, "bias")
    )
    return mapping.lstm_cell(cell.hidden_features, cell.gate_fn, cell.activation_fn), params


def _read_fused_lstm(cell: nnx.OptimizedLSTMCell, take: mapping.Take) -> tuple[Cell, LSTMParams]:
    params = LSTMParams(take("dense_i.kernel"), take("dense_h.kernel"), take("dense_h.bias"))
    return mapping.lstm_cell(cell.hidden_features, cell.gate_fn, cell.activation_fn), params


def _read_gru(cell: nnx.GRUCell, take: mapping.Take) -> tuple[Cell, GRUParams]:
    # This cell has no bias in the recurrent half of its candidate.
    params = GRUParams(take("dense_i.kernel"), take("dense_h.kernel"), take("dense_i.bias"), None)
    found = mapping.gru_cell(
        cell.hidden_features, cell.gate_fn, cell.activation_fn, hidden_bias=False
    )
    return found, params


def _read_simple(cell: nnx.SimpleCell, take: mapping.Take) -> tuple[Cell, VanillaParams]:
    params = VanillaParams(take("dense_i.kernel"), take("dense_h.kernel"), take("dense_i.bias"))
    return mapping.simple_cell(cell.hidden_features, cell.activation_fn, cell.residual), params


_READERS: dict[type, Callable[[Any, mapping.Take], tuple[Cell, Params]]] = {
    nnx.LSTMCell: _read_lstm,
    nnx.OptimizedLSTMCell: _read_fused_lstm,
    nnx.GRUCell: _read_gru,
    nnx.SimpleCell: _read_simple,
}
