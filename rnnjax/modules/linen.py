"""Recurrent modules for ``flax.linen``: cells with their parameters held as there, and ``RNN``.

``RNN`` takes the place of ``nn.RNN``, with Flax's own cells or with those of this file, and
computes by :func:`rnnjax.unroll`. ``nn.Bidirectional`` takes it as it is.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta
from flax.core.frozen_dict import FrozenDict
from flax.traverse_util import flatten_dict
from jax import Array
from jax.typing import DTypeLike

from rnnjax._checks import check_cell
from rnnjax.base import Carry, Cell, Params
from rnnjax.cells.gru import GRUParams
from rnnjax.cells.lstm import LSTMParams
from rnnjax.cells.minimal_gated import MinimalGatedParams
from rnnjax.cells.vanilla import VanillaParams
from rnnjax.engine.unroll import unroll
from rnnjax.initializers import CellInitializer
from rnnjax.modules import _mapping as mapping
from rnnjax.modules._mapping import Activation, Options, Recurrence


class _EngineCell(nn.RNNCellBase, kw_only=True):
    """What all cells of this file share; a subclass says which ``rnnjax.Cell`` it is."""

    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    carry_init: Callable[..., Array] | None = None
    partitioning: Mapping[str, tuple] = FrozenDict()
    deterministic: bool = False

    @nn.nowrap
    def _cell(self) -> Cell:
        raise NotImplementedError

    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Any]:
        """One step: the new carry and the output.

        Args:
            carry: leaves [..., H].
            inputs: [..., D].

        Raises:
            ValueError: the cell has noise, which is drawn for a sequence and not for a step.
        """
        cell = self._cell()
        params = mapping.cast(self._parameters(inputs.shape[-1]), self.dtype)
        if cell.noise is not None and not self.deterministic and not self.is_initializing():
            raise ValueError(
                "one step of this cell needs deterministic=True, as noise is drawn for whole "
                "sequences: train it in rnnjax.modules.linen.RNN"
            )
        xs = mapping.as_floats(jnp.asarray(inputs)[..., None, :], self.dtype, params)
        new, ys = unroll(cell, params, xs, initial_carry=carry)
        ys = jax.tree.map(lambda y: y[(slice(None),) * (inputs.ndim - 1) + (0,)], ys)
        wide = jnp.result_type(self.param_dtype, *jax.tree.leaves(carry))
        return mapping.cast((new, ys), wide)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Carry:
        """The cell's own initial carry.

        Args:
            rng: as in Flax; for ``carry_init``, and for a learned carry before there are
                parameters.
            input_shape: (..., D), of the input of one step.

        Raises:
            ValueError: the carry depends on the parameters and the module is not bound to any.
        """
        cell, size = self._cell(), input_shape[-1]
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), size))
        if not mapping.reads_parameters(cell.initial_carry, params):
            params = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), params)
        elif self.scope is None:
            raise ValueError(
                "the initial carry of this cell needs a bound module, as it is learned: "
                "cell.bind(variables).initialize_carry(...)"
            )
        elif all(self.has_variable("params", name) for name in self._names(params)):
            params = self._parameters(size)
        else:
            params = cell.init(rng, size)
        start = mapping.cast(cell.initial_carry(params), self.param_dtype)
        keys = iter(jax.random.split(rng, max(1, len(jax.tree.leaves(start)))))
        return mapping.spread_carry(start, input_shape[:-1], lambda: next(keys), self.carry_init)

    @property
    def num_feature_axes(self) -> int:
        """1: the features of a step are one axis."""
        return 1

    @nn.compact
    def _parameters(self, input_size: int) -> Params:
        """The parameters of the cell, drawn together where there are none yet."""
        cell = self._cell()
        shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size))
        mapping.check_names("partitioning", self.partitioning, shapes)
        names = self._names(shapes)
        values = shapes
        held = all(self.has_variable("params", name) for name in names)
        if not held and self.is_mutable_collection("params"):
            drawn = cell.init(self.make_rng("params"), input_size)
            values = mapping.cast(drawn, self.param_dtype)
        leaves, structure = jax.tree.flatten(values)
        leaves = [self._hold(name, leaf) for name, leaf in zip(names, leaves, strict=True)]
        return jax.tree.unflatten(structure, leaves)

    def _hold(self, name: str, value: Any) -> Any:
        def start(rng: Any) -> Array:
            # linen calls this for the shape alone where the parameter exists.
            del rng
            given = isinstance(value, jax.ShapeDtypeStruct)
            return jnp.zeros(value.shape, value.dtype) if given else value

        if name not in self.partitioning:
            return self.param(name, start)
        return self.param(name, nn.with_partitioning(start, self.partitioning[name]))

    @staticmethod
    def _names(params: Params) -> list[str]:
        return [mapping.parameter_name(path) for path, _ in jax.tree.leaves_with_path(params)]


class RNNCell(_EngineCell):
    """Any cell of rnnjax, or your own, as a cell of ``flax.linen``.

    Its parameters are the arrays of ``cell.init``, each under its name (``cell.w_hh`` where it is
    nested). :class:`RNN` runs it over sequences by the engine; ``nn.RNN`` and
    ``nn.Bidirectional`` take it too, and then step by step.

    The carry is the cell's: ``LSTMCarry(h, c)`` for ``rnnjax.lstm``, where :class:`LSTMCell` has
    Flax's ``(c, h)``. A cell with noise (dropout) draws it for a whole sequence from the stream
    ``dropout``, so only :class:`RNN` trains it.

    Attributes:
        cell: a ``rnnjax.Cell``.
        dtype: of the computation; None for that of the parameters.
        param_dtype: of the parameters, and of carry and outputs.
        carry_init: ``(key, shape, dtype) -> array``, draws the initial carry; None for the cell's
            own.
        partitioning: axis names of the parameters named, as for ``nn.with_partitioning``.
        deterministic: True for no noise.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> from rnnjax import modules
        >>> layer = modules.linen.RNN(modules.linen.RNNCell(rnnjax.lstm(4)), return_carry=True)
        >>> variables = layer.init(jax.random.key(0), jnp.ones((2, 5, 3)))
        >>> variables["params"]["cell"]["w_hh"].shape
        (4, 16)
        >>> carry, ys = layer.apply(variables, jnp.ones((2, 5, 3)), seq_lengths=jnp.array([5, 2]))
        >>> carry.h.shape, ys.shape
        ((2, 4), (2, 5, 4))
    """

    cell: Cell

    @nn.nowrap
    def _cell(self) -> Cell:
        return check_cell(self.cell)


class LSTMCell(_EngineCell):
    """:func:`rnnjax.lstm` as a cell of ``flax.linen``; see :class:`RNNCell`.

    It has the attributes of ``nn.LSTMCell``, in their order, its carry ``(c, h)``, and the initial
    weights of rnnjax (a forget bias of 1) unless told otherwise.

    Attributes:
        features: H.
        gate_fn: of the three gates.
        activation_fn: of the candidate and of the output.
        kernel_init: draws the input weights [D, H] of each gate in place of the initializer.
        recurrent_kernel_init: draws the recurrent weights [H, H] of each gate.
        bias_init: draws the biases [H] of each gate; then none is added to the forget gate's.
        initializer: as for ``rnnjax.lstm``; ``"flax"`` has the initial weights of ``nn.LSTMCell``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rnnjax import modules
        >>> layer = modules.linen.RNN(modules.linen.LSTMCell(4))
        >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))[0].shape
        (2, 5, 4)
    """

    features: int
    gate_fn: Activation = jax.nn.sigmoid
    activation_fn: Activation = jnp.tanh
    kernel_init: Any = None
    recurrent_kernel_init: Any = None
    bias_init: Any = None
    initializer: str | CellInitializer = "rnnjax"

    @nn.nowrap
    def _cell(self) -> Cell:
        rule = _rule(self)
        return mapping.lstm_cell(self.features, self.gate_fn, self.activation_fn, rule)


class GRUCell(_EngineCell):
    """:func:`rnnjax.gru` as a cell of ``flax.linen``; see :class:`RNNCell`, :class:`LSTMCell`.

    Attributes:
        features: H.
        gate_fn: of the two gates.
        activation_fn: of the candidate.
        kernel_init, recurrent_kernel_init, bias_init: as for :class:`LSTMCell`.
        reset_after: as for ``rnnjax.gru``; False has no other ``gate_fn`` and ``activation_fn``
            than the default ones.
        initializer: as for ``rnnjax.gru``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rnnjax import modules
        >>> layer = modules.linen.RNN(modules.linen.GRUCell(4))
        >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))[0].shape
        (2, 5, 4)
    """

    features: int
    gate_fn: Activation = jax.nn.sigmoid
    activation_fn: Activation = jnp.tanh
    kernel_init: Any = None
    recurrent_kernel_init: Any = None
    bias_init: Any = None
    reset_after: bool = True
    initializer: str | CellInitializer = "rnnjax"

    @nn.nowrap
    def _cell(self) -> Cell:
        functions = self.gate_fn, self.activation_fn
        return mapping.our_gru(self.features, self.reset_after, *functions, _rule(self))


class SimpleCell(_EngineCell):
    """:func:`rnnjax.vanilla` as a cell of ``flax.linen``; see :class:`RNNCell`.

    Attributes:
        features: H.
        activation_fn: pointwise.
        kernel_init, recurrent_kernel_init, bias_init: as for :class:`LSTMCell`.
        residual: whether the carry is added to what ``activation_fn`` is given.
        initializer: as for ``rnnjax.vanilla``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rnnjax import modules
        >>> layer = modules.linen.RNN(modules.linen.SimpleCell(4))
        >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))[0].shape
        (2, 5, 4)
    """

    features: int
    activation_fn: Activation = jnp.tanh
    kernel_init: Any = None
    recurrent_kernel_init: Any = None
    bias_init: Any = None
    residual: bool = False
    initializer: str | CellInitializer = "rnnjax"

    @nn.nowrap
    def _cell(self) -> Cell:
        return mapping.simple_cell(self.features, self.activation_fn, self.residual, _rule(self))


def _rule(cell: Any) -> str | CellInitializer:
    given = (cell.kernel_init, cell.recurrent_kernel_init, cell.bias_init)
    return mapping.initializer_of(cell.initializer, *given)


class RNN(nn.RNN):
    """A cell over whole sequences: ``nn.RNN`` with its attributes, computed by the engine.

    ``nn.RNN(cell)`` becomes ``modules.linen.RNN(cell)`` and nothing else changes: the parameters
    and their names are the same, so checkpoints keep loading. At valid steps it gives what Flax
    gives, and the sequence law of :func:`rnnjax.unroll` holds, for every cell. What differs from
    Flax is listed in :mod:`rnnjax.modules`.

    :class:`RNNCell` and its kin run by :func:`rnnjax.unroll`, and so do Flax's ``LSTMCell``,
    ``OptimizedLSTMCell``, ``GRUCell``, ``MGUCell`` and ``SimpleCell`` as they come. Any other cell
    runs by its own ``__call__`` step by step and is differentiated by ordinary autodiff.

    Attributes:
        cell: a Flax cell.
        time_major: inputs are [T, ..., D], not [..., T, D].
        return_carry: give ``(carry, outputs)``.
        reverse: run from the last valid step down to the first.
        keep_order: with ``reverse``, leave outputs in the order of time; else they come in the
            order they were made, padding at the end.
        unroll: steps per iteration of the compiled loop; with Flax's default of 1 the engine
            chooses, as where :func:`rnnjax.unroll` is given no ``scan_unroll``.
        variable_axes, variable_broadcast, variable_carry, split_rngs: as in ``nn.RNN``; with
            others than the default ones a cell runs by its own ``__call__``.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from rnnjax import modules
        >>> layer = modules.linen.RNN(nn.GRUCell(4), return_carry=True)
        >>> variables = layer.init(jax.random.key(0), jnp.ones((2, 5, 3)))
        >>> carry, ys = layer.apply(variables, jnp.ones((2, 5, 3)), seq_lengths=jnp.array([5, 0]))
        >>> ys.shape, carry[1].tolist()
        ((2, 5, 4), [0.0, 0.0, 0.0, 0.0])
    """

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Carry | None = None,
        init_key: Array | None = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """Run the cell over ``inputs``; an option that is None is that of the attribute.

        Args:
            inputs: [..., T, D], or [T, ..., D] with ``time_major``.
            initial_carry: leaves [..., H]; None for the cell's own.
            init_key: for a random ``carry_init`` of a Flax cell.
            seq_lengths: valid steps [...] of each sequence, in [0, T]; None means all. Where
                their values are traced they cannot be checked and are clipped.
            return_carry, time_major, reverse, keep_order: as the attributes.

        Returns:
            The outputs, or ``(carry, outputs)`` with ``return_carry``.

        Raises:
            ValueError: what should be a cell is none, or an argument has a wrong shape or value.
                ``seq_lengths`` are named ``lengths`` there.
        """
        mapping.check_runs(self.cell, nn.Module)
        options = Options(
            self.return_carry, self.time_major, self.reverse, self.keep_order, self.unroll
        ).override(return_carry, time_major, reverse, keep_order)
        cell: Any = self.cell
        input_shape = mapping.step_shape(inputs, options.time_major, cell.num_feature_axes)
        recurrence = _read(cell, inputs, input_shape) if self._scans_as_usual() else None
        if recurrence is None:
            return self._run_by_steps(
                inputs, input_shape, options, seq_lengths, initial_carry, init_key
            )
        if initial_carry is None and not _starts_as_the_engine_does(self.cell):
            key = jax.random.key(0) if init_key is None else init_key
            initial_carry = self.cell.initialize_carry(key, input_shape)
        return mapping.run_by_engine(
            recurrence,
            inputs,
            options,
            seq_lengths=seq_lengths,
            initial_carry=initial_carry,
            key=_noise_key(self.cell),
        )

    def _scans_as_usual(self) -> bool:
        """Whether the parameters are the same at every step and nothing else is carried."""
        given = (self.variable_axes, self.variable_broadcast, self.variable_carry, self.split_rngs)
        return given == ({}, "params", False, {"params": False})

    def _run_by_steps(
        self,
        inputs: Array,
        input_shape: tuple[int, ...],
        options: Options,
        seq_lengths: Any,
        initial_carry: Carry | None,
        init_key: Array | None,
    ) -> Any:
        """As ``nn.RNN`` runs a cell, under the sequence law."""
        cell: Any = self.cell
        if initial_carry is None:
            key = jax.random.key(0) if init_key is None else init_key
            initial_carry = cell.initialize_carry(key, input_shape)
        scan: Any = nn.scan(
            mapping.masked_step,
            in_axes=0,
            out_axes=0,
            unroll=options.unroll,
            variable_axes=self.variable_axes,
            variable_broadcast=self.variable_broadcast,
            variable_carry=self.variable_carry,
            split_rngs=self.split_rngs,
        )
        return mapping.run_by_steps(
            lambda carry, xs, valid: scan(cell, carry, xs, valid),
            inputs,
            options,
            feature_axes=cell.num_feature_axes,
            seq_lengths=seq_lengths,
            carry=initial_carry,
        )


def _starts_as_the_engine_does(cell: Any) -> bool:
    if isinstance(cell, _EngineCell):
        return cell.carry_init is None
    return cell.carry_init is nn.initializers.zeros_init()


def _noise_key(cell: Any) -> Array | None:
    if not isinstance(cell, _EngineCell) or cell._cell().noise is None:
        return None
    if cell.deterministic or cell.is_initializing():
        return None
    return cell.make_rng("dropout")


def _read(cell: Any, inputs: Any, input_shape: tuple[int, ...]) -> Recurrence | None:
    if isinstance(cell, _EngineCell):
        params = cell._parameters(input_shape[-1])
        return Recurrence(cell._cell(), params, cell.dtype, cell.param_dtype)
    read = _READERS.get(type(cell))
    if read is None or not mapping.has_plain_activations(cell, nn.Module):
        return None
    if not cell.variables.get("params"):
        # The cell makes its parameters itself, under its own names, by running one step.
        carry = cell.initialize_carry(jax.random.key(0), input_shape)
        cell(carry, jnp.zeros(input_shape, jnp.result_type(inputs)))
    values: dict = flatten_dict(meta.unbox(cell.variables["params"]), sep=".")
    found = mapping.read_all(read, cell, values)
    if found is None:
        return None
    dtype = mapping.compute_dtype(cell.dtype, inputs, found[1])
    return Recurrence(*found, dtype, cell.param_dtype)


def _join(take: mapping.Take, half: str, gates: str, leaf: str) -> Array:
    return jnp.concatenate([take(f"{half}{gate}.{leaf}") for gate in gates], axis=-1)


def _read_lstm(cell: Any, take: mapping.Take) -> tuple[Cell, LSTMParams]:
    params = LSTMParams(
        _join(take, "i", "ifgo", "kernel"),
        _join(take, "h", "ifgo", "kernel"),
        _join(take, "h", "ifgo", "bias"),
    )
    return mapping.lstm_cell(cell.features, cell.gate_fn, cell.activation_fn), params


def _read_gru(cell: nn.GRUCell, take: mapping.Take) -> tuple[Cell, GRUParams]:
    params = GRUParams(
        _join(take, "i", "rzn", "kernel"),
        _join(take, "h", "rzn", "kernel"),
        _join(take, "i", "rzn", "bias"),
        take("hn.bias"),
    )
    return mapping.gru_cell(cell.features, cell.gate_fn, cell.activation_fn), params


def _read_minimal_gated(cell: nn.MGUCell, take: mapping.Take) -> tuple[Cell, MinimalGatedParams]:
    params = MinimalGatedParams(
        _join(take, "i", "fn", "kernel"),
        _join(take, "h", "fn", "kernel"),
        _join(take, "i", "fn", "bias"),
        take("hn.bias") if cell.reset_gate else None,
    )
    found = mapping.minimal_gated_cell(
        cell.features, cell.gate_fn, cell.activation_fn, cell.reset_gate
    )
    return found, params


def _read_simple(cell: nn.SimpleCell, take: mapping.Take) -> tuple[Cell, VanillaParams]:
    params = VanillaParams(take("i.kernel"), take("h.kernel"), take("i.bias"))
    return mapping.simple_cell(cell.features, cell.activation_fn, cell.residual), params


_READERS: dict[type, Callable[[Any, mapping.Take], tuple[Cell, Params]]] = {
    nn.LSTMCell: _read_lstm,
    nn.OptimizedLSTMCell: _read_lstm,
    nn.GRUCell: _read_gru,
    nn.MGUCell: _read_minimal_gated,
    nn.SimpleCell: _read_simple,
}
