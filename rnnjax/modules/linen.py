"""Recurrent modules for ``flax.linen``: cells with their parameters held as there, and ``RNN``.

``RNN`` takes the place of ``nn.RNN``, with Flax's own cells or with those of this file, and
computes by :func:`rnnjax.unroll`. ``nn.Bidirectional`` takes it as it is.
"""

import functools
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

from rnnjax.base import Carry, Cell, Params
from rnnjax.cells.gru import GRUParams, gru
from rnnjax.cells.lstm import LSTMParams, lstm
from rnnjax.cells.minimal_gated import MGUParams
from rnnjax.cells.vanilla import VanillaParams, vanilla
from rnnjax.engine.unroll import unroll
from rnnjax.initializers import CellInitializer
from rnnjax.modules import _mapping as mapping
from rnnjax.modules._mapping import Options, Recurrence

# Modules of equal settings hold one and the same cell, so that they are compiled for once.
_lstm, _gru, _vanilla = (functools.cache(make) for make in (lstm, gru, vanilla))


class _EngineCell(nn.RNNCellBase, kw_only=True):
    """What all cells of this file share; a subclass says which ``rnnjax.Cell`` it is."""

    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
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
                "this cell draws noise for whole sequences: train it in rnnjax.modules.linen.RNN, "
                "or set deterministic=True to run it step by step"
            )
        carry, ys = unroll(cell, params, inputs[..., None, :], initial_carry=carry)
        return carry, jax.tree.map(lambda y: y[(slice(None),) * (inputs.ndim - 1) + (0,)], ys)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Carry:
        """The cell's own initial carry.

        Args:
            rng: as in Flax; used for nothing but a learned carry before there are parameters.
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
                "the initial carry of this cell is learned: initialize it on a bound module, "
                "cell.bind(variables).initialize_carry(...)"
            )
        elif all(self.has_variable("params", name) for name in self._names(params)):
            params = self._parameters(size)
        else:
            params = cell.init(mapping.typed_key(rng), size)
        return mapping.spread_carry(cell.initial_carry(params), input_shape[:-1], None, None)

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
            drawn = cell.init(mapping.typed_key(self.make_rng("params")), input_size)
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

    The carry is the cell's: ``LSTMCarry(h, c)`` for the LSTM, where Flax's own cell has
    ``(c, h)``. A cell with noise (dropout) draws it for a whole sequence from the stream
    ``dropout``, so only :class:`RNN` trains it.

    Attributes:
        cell: a ``rnnjax.Cell``.
        dtype: of the computation; None for that of the parameters.
        param_dtype: of the parameters.
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
        if not isinstance(self.cell, Cell):
            raise ValueError(f"cell must be a rnnjax.Cell, got {type(self.cell).__name__}")
        return self.cell


class LSTMCell(_EngineCell):
    """:func:`rnnjax.lstm` as a cell of ``flax.linen``; see :class:`RNNCell`.

    Attributes:
        features: H.
        initializer: as for ``rnnjax.lstm``; ``"flax"`` has the initial weights of ``nn.LSTMCell``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rnnjax import modules
        >>> layer = modules.linen.RNN(modules.linen.LSTMCell(4))
        >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))[0].shape
        (2, 5, 4)
    """

    features: int
    initializer: str | CellInitializer = "rnnjax"

    @nn.nowrap
    def _cell(self) -> Cell:
        return _lstm(self.features, initializer=self.initializer)


class GRUCell(_EngineCell):
    """:func:`rnnjax.gru` as a cell of ``flax.linen``; see :class:`RNNCell`.

    Attributes:
        features: H.
        reset_after: as for ``rnnjax.gru``.
        initializer: as for ``rnnjax.gru``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rnnjax import modules
        >>> layer = modules.linen.RNN(modules.linen.GRUCell(4))
        >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))[0].shape
        (2, 5, 4)
    """

    features: int
    reset_after: bool = True
    initializer: str | CellInitializer = "rnnjax"

    @nn.nowrap
    def _cell(self) -> Cell:
        return _gru(self.features, self.reset_after, initializer=self.initializer)


class SimpleCell(_EngineCell):
    """:func:`rnnjax.vanilla` as a cell of ``flax.linen``; see :class:`RNNCell`.

    Attributes:
        features: H.
        activation_fn: pointwise.
        initializer: as for ``rnnjax.vanilla``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rnnjax import modules
        >>> layer = modules.linen.RNN(modules.linen.SimpleCell(4))
        >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))[0].shape
        (2, 5, 4)
    """

    features: int
    activation_fn: Callable[[Array], Array] = jnp.tanh
    initializer: str | CellInitializer = "rnnjax"

    @nn.nowrap
    def _cell(self) -> Cell:
        return _vanilla(self.features, self.activation_fn, initializer=self.initializer)


class RNN(nn.RNN):
    """A cell over whole sequences: ``nn.RNN`` with its attributes, computed by the engine.

    ``nn.RNN(cell)`` becomes ``modules.linen.RNN(cell)`` and nothing else changes: the parameters
    and their names are the same, so checkpoints keep loading. At valid steps it gives what Flax
    gives, and the sequence law of :func:`rnnjax.unroll` holds:

    - outputs at padded steps are zero; Flax's are those of a cell that has run on;
    - the final carry of an empty sequence is its initial carry; Flax takes that of the whole row;
    - padding is never read: NaN there reaches no output and no gradient;
    - any number of batch axes, also with ``seq_lengths`` and ``return_carry``;
    - ``seq_lengths`` whose values are known are checked, not clamped.

    It takes :class:`RNNCell` and its kin, and Flax's ``LSTMCell``, ``OptimizedLSTMCell``,
    ``GRUCell``, ``MGUCell`` and ``SimpleCell``, with their own carry (``(c, h)`` for an LSTM) and
    in the dtypes they give, though sums are taken in float32 or wider.

    Attributes:
        cell: as above.
        time_major: inputs are [T, ..., D], not [..., T, D].
        return_carry: give ``(carry, outputs)``.
        reverse: run from the last valid step down to the first.
        keep_order: with ``reverse``, leave outputs in the order of time; else they come in the
            order they were made, padding at the end.
        unroll: steps per iteration of the compiled loop.
        variable_axes, variable_broadcast, variable_carry, split_rngs: only Flax's defaults, since
            the parameters are the same at every step.

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
            ValueError: the cell, or one of its settings, is not one the engine computes, or an
                argument has a wrong shape or value. ``seq_lengths`` are named ``lengths`` there.
        """
        self._check_scan()
        options = Options(
            self.return_carry, self.time_major, self.reverse, self.keep_order, self.unroll
        ).override(return_carry, time_major, reverse, keep_order)
        input_shape = mapping.step_shape(inputs, options.time_major)
        recurrence = _read(self.cell, inputs, input_shape)
        if initial_carry is None and not _starts_as_the_engine_does(self.cell):
            key = jax.random.key(0) if init_key is None else init_key
            initial_carry = self.cell.initialize_carry(key, input_shape)
        return mapping.run(
            recurrence,
            inputs,
            options,
            seq_lengths=seq_lengths,
            initial_carry=initial_carry,
            key=_noise_key(self.cell),
        )

    def _check_scan(self) -> None:
        given = (self.variable_axes, self.variable_broadcast, self.variable_carry, self.split_rngs)
        if given != ({}, "params", False, {"params": False}):
            raise ValueError(
                "variable_axes, variable_broadcast, variable_carry and split_rngs must be left at "
                "their defaults: the engine reads the parameters once for all steps, got "
                f"{', '.join(map(repr, given))}"
            )


def _starts_as_the_engine_does(cell: Any) -> bool:
    return isinstance(cell, _EngineCell) or cell.carry_init is nn.initializers.zeros_init()


def _noise_key(cell: Any) -> Array | None:
    if not isinstance(cell, _EngineCell) or cell._cell().noise is None:
        return None
    if cell.deterministic or cell.is_initializing():
        return None
    return mapping.typed_key(cell.make_rng("dropout"))


def _read(cell: Any, inputs: Any, input_shape: tuple[int, ...]) -> Recurrence:
    if isinstance(cell, _EngineCell):
        return Recurrence(cell._cell(), cell._parameters(input_shape[-1]), cell.dtype)
    read = _READERS.get(type(cell))
    if read is None:
        raise ValueError(mapping.unknown_cell(cell, _READERS))
    mapping.check_activations(cell, nn.Module)
    if not cell.variables.get("params"):
        # The cell makes its parameters itself, under its own names, by running one step.
        carry = cell.initialize_carry(jax.random.key(0), input_shape)
        cell(carry, jnp.zeros(input_shape, jnp.result_type(inputs)))
    values: dict = flatten_dict(meta.unbox(cell.variables["params"]), sep=".")
    found, params = mapping.read_all(read, cell, values)
    dtype = mapping.compute_dtype(cell.dtype, inputs, params)
    return Recurrence(found, params, dtype, cell.param_dtype)


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


def _read_mgu(cell: nn.MGUCell, take: mapping.Take) -> tuple[Cell, MGUParams]:
    params = MGUParams(
        _join(take, "i", "fn", "kernel"),
        _join(take, "h", "fn", "kernel"),
        _join(take, "i", "fn", "bias"),
        take("hn.bias") if cell.reset_gate else None,
    )
    found = mapping.mgu_cell(cell.features, cell.gate_fn, cell.activation_fn, cell.reset_gate)
    return found, params


def _read_simple(cell: nn.SimpleCell, take: mapping.Take) -> tuple[Cell, VanillaParams]:
    params = VanillaParams(take("i.kernel"), take("h.kernel"), take("i.bias"))
    return mapping.simple_cell(cell.features, cell.activation_fn, cell.residual), params


_READERS: dict[type, Callable[[Any, mapping.Take], tuple[Cell, Params]]] = {
    nn.LSTMCell: _read_lstm,
    nn.OptimizedLSTMCell: _read_lstm,
    nn.GRUCell: _read_gru,
    nn.MGUCell: _read_mgu,
    nn.SimpleCell: _read_simple,
}
