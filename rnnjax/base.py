"""What a recurrent cell and a layer are, and the letters used for axes.

Axis legend, used in every docstring of the package:

====== ==========================================================
letter axis
====== ==========================================================
B      batch (``...`` in a public shape: any number of batch axes)
T      time
D      input features of one step
H      hidden features (one gate)
G      gates
O      output features of one step
V      vocabulary
E      embedding features
C      classes
====== ==========================================================
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from jax import Array

from rnnjax._recipe import Made

Key = Array
Params = Any
Carry = Any
Direction = Literal["forward", "backward", "both", "unknown"]

# What ``Cell.step`` and ``Layer.step`` run. The engine stands on this file, so the file cannot
# import it: the engine brings its function here when it is loaded, which ``import rnnjax`` does
# before anybody can have a cell.
_step: Callable[..., Any]


def runs_steps(step: Callable) -> Callable:
    """Decorator of the one function behind ``Cell.step`` and ``Layer.step``."""
    global _step
    _step = step
    return step


class NoiseShape(NamedTuple):
    """For how much noise is drawn: all batch axes as one, the steps, and the size of one input.

    Attributes:
        batch: the number of sequences, the product of all batch axes.
        time: T.
        input_size: D, or for a cell of several inputs what was given to ``init``.
    """

    batch: int
    time: int
    input_size: int


class Noise(NamedTuple):
    """Random factors of one call, drawn before the loop; None or () where there are none.

    Attributes:
        inputs: [B, D], what every input of a sequence is multiplied by.
        hidden: [B, P], what ``hidden(carry)`` is multiplied by before the recurrent weights, the
            same at every step of a sequence.
        recurrent: [P, G*H], what the recurrent weights are multiplied by.
        steps: trees of arrays [T, B, ...], given to ``update`` (or ``plain_step``) step by
            step as further pieces of ``x_proj``, behind those of ``project``.
    """

    inputs: Array | None = None
    hidden: Array | None = None
    recurrent: Array | None = None
    steps: tuple[Any, ...] = ()


class _CellFields(NamedTuple):
    output_size: int
    init: Callable[[Key, int], Params]
    initial_carry: Callable[[Params], Carry]
    project: Callable[[Params, Any], tuple[Any, ...]]
    recurrent: Callable[[Params], Array] | None = None
    hidden: Callable[[Carry], Array] | None = None
    update: Callable[..., tuple[Carry, Any]] | None = None
    plain_step: Callable[..., tuple[Carry, Any]] | None = None
    gates: Callable[..., Any] | None = None
    noise: Callable[[Key, Params, NoiseShape], Noise] | None = None
    linear: Callable[[Params, tuple], tuple[Carry, Carry]] | None = None
    context: Callable[[Params, Any], Any] | None = None
    chunk: Callable[..., tuple[Carry, Any]] | None = None


class Cell(Made, _CellFields):
    """A recurrent cell as pure functions of one example and one time step.

    With ``x_proj = project(params, x)`` and ``h_proj = hidden(carry) @ recurrent(params)``, cut
    into pieces as wide as the first pieces of ``x_proj``, one step is
    ``update(params, carry, x_proj, h_proj) -> (carry, y)``.
    The engine does the matrix product itself, so ``project`` leaves the time loop and the
    gradient of the recurrent weights is one product over all steps. ``update`` should be
    pointwise; parameters it reads should be small (biases, peepholes).

    A cell that does not fit gives ``plain_step(params, carry, x_proj) -> (carry, y)`` instead
    of ``recurrent``, ``hidden`` and ``update``, and is differentiated by ordinary autodiff.

    Two cells that one function made from equal arguments, as ``lstm(4)`` and ``lstm(4)``, are
    equal, one static argument of ``jax.jit`` and one compiled program. Cells made by hand, or
    by ``_replace``, are equal where they have the same functions.

    Attributes:
        output_size: O, the size of one step's output.
        init: ``(key, input_size) -> params``, a pytree, usually a NamedTuple.
        initial_carry: ``(params) -> carry``, the carry before the first step and after a reset: a
            tree of floating arrays, real or complex.
        project: ``(params, x [D]) -> x_proj``, a tuple, one [H] array a gate; never sees the carry.
            Pieces behind those that meet the recurrent weights may be any tree of arrays. ``x`` is
            a tree where ``xs`` is one.
        recurrent: ``(params) -> w_hh [P, G*H]``, or None for a cell without recurrent weights. Or
            blocks [heads, P/heads, G*H/heads] of a matrix that is zero outside them: head n reads
            the n-th part of h and gives the n-th part of every gate.
        hidden: ``(carry) -> h [P]``, what the recurrent weights multiply; not needed without them.
        update: ``(params, carry, x_proj, h_proj) -> (carry, y)``; ``h_proj`` is ``()`` without
            ``recurrent``.
        plain_step: ``(params, carry, x_proj) -> (carry, y)``, the alternative to the three above.
        gates: ``(params, carry, x_proj, h_proj) -> gates``, a NamedTuple of gate values, for
            inspection.
        noise: ``(key, params, shape: NoiseShape) -> Noise``, called once a call and only when
            ``unroll`` is given a key; None for a cell without noise.
        linear: ``(params, x_proj) -> (decay, drive)``, trees like the carry, for a cell whose carry
            obeys ``carry' = decay * carry + drive``: such a cell can run in parallel over time.
        context: ``(params, context) -> context``, for a cell that reads constants of a sequence,
            as attention does: called once a call on what ``unroll`` is given as ``context`` for
            one sequence. What it gives is a further argument, the last, of ``update``,
            ``plain_step`` and ``gates``.
        chunk: ``(params, carry, reset_carry, x_projs, valid, resets) -> (carry, ys [K, O])``, what
            ``update`` gives for K steps of one sequence, in the order they are taken, for a cell
            that can compute them at once. ``x_projs`` has leaves [K, ...], all finite: where they
            were not, the engine makes NaN of that step and of the later ones of its segment.
            ``valid`` and ``resets`` are bool [K], or None where all steps are real, or none starts
            a segment: the carry returns to ``reset_carry`` before such a step, and is held where a
            step is not valid. Outputs at steps that are not valid need only be finite. It is given
            no noise of ``hidden`` or ``recurrent`` weights: with such, the cell must have none.
    """

    _hints: ClassVar[Mapping[str, str]] = {
        **Made._hints,
        "apply": "rnnjax.recurrent(cell) makes a layer of it, which has",
        "num_feature_axes": "RNNCell of rnnjax.modules makes a Flax cell of it, which has",
    }

    def step(
        self,
        params: Params,
        carry: Carry,
        x: Any,
        *,
        mask: Any = None,
        resets: Any = None,
        context: Any = None,
    ) -> tuple[Carry, Any]:
        """The cell on one input of each sequence; see :meth:`Layer.step`.

        Example:
            >>> import jax, jax.numpy as jnp, rnnjax
            >>> cell = rnnjax.lstm(4)
            >>> params = cell.init(jax.random.key(0), 3)
            >>> carry, y = cell.step(params, None, jnp.ones((2, 3)))
            >>> carry, y = cell.step(params, carry, y[:, :3])
            >>> carry.c.shape, y.shape
            ((2, 4), (2, 4))
        """
        return _step(self, params, carry, x, mask=mask, resets=resets, context=context)


class Apply(Protocol):
    """How every layer is called; see :class:`Layer`."""

    def __call__(
        self,
        params: Params,
        xs: Any,
        lengths: Any = None,
        *,
        mask: Any = None,
        resets: Any = None,
        initial_carry: Carry = None,
        key: Key | None = None,
        context: Any = None,
    ) -> tuple[Carry, Any]: ...


def _no_initial_carry(params: Params, batch_shape: tuple[int, ...] = ()) -> Carry:
    raise ValueError(
        "the first step needs a layer that was made with initial_carry: give rnnjax.Layer(..., "
        "initial_carry=...), a function (params, batch_shape) -> carry"
    )


class _LayerFields(NamedTuple):
    init: Callable[[Key, int], Params]
    apply: Apply
    output_size: int
    last: Callable[[Array, Any], Array]
    initial_carry: Callable[..., Carry] = _no_initial_carry
    direction: Direction = "unknown"


class Layer(Made, _LayerFields):
    """A whole-sequence layer as a pair of pure functions.

    Two layers that one function made from equal arguments are equal; layers made by hand are
    equal where they have the same functions.

    Attributes:
        init: ``(key, input_size) -> params``.
        apply: ``(params, xs [..., T, D], lengths [...], *, mask, resets, initial_carry, key,
            context) -> (carry, ys [..., T, O])``. A ``key`` means training; without one nothing is
            dropped. ``context`` is that of the cell, as for ``unroll``; a layer of several parts
            takes a tuple with one entry a part, as its carry is, None for parts without. In one
            made by hand, padding must be zeroed before a product and behind it
            (``rnnjax.masking.zero_padding``): a NaN there would come back in a gradient.
        output_size: O.
        last: ``(ys [..., T, O], valid) -> [..., O]``, the output after the layer's own last step:
            for a reversed direction that is the first valid step in time order. ``valid`` is the
            mask [..., T], or the lengths [...]; None for all steps. What is summed or projected of
            the outputs of both directions is made of what this gives.
        initial_carry: ``(params, batch_shape=()) -> carry``, the carry before the first step, its
            leaves [*batch_shape, ...].
        direction: ``"forward"`` where an output depends on its own and on earlier inputs alone,
            ``"backward"`` where it depends on its own and on later ones, ``"both"`` where on all.
            It follows from how a layer is put together. ``"unknown"``, for a layer made by hand
            that does not say, is taken for none of these.
    """

    _hints: ClassVar[Mapping[str, str]] = {
        **Made._hints,
        "forward": "apply(params, xs, lengths) gives (carry, ys)",
        "predict": "apply(params, xs, lengths) gives (carry, ys)",
    }

    @property
    def causal(self) -> bool:
        """Whether it is known that outputs depend on their own and on earlier inputs alone."""
        return self.direction == "forward"

    def step(
        self,
        params: Params,
        carry: Carry,
        x: Any,
        *,
        mask: Any = None,
        resets: Any = None,
        context: Any = None,
    ) -> tuple[Carry, Any]:
        """The layer on one input of each sequence: for generating, acting and serving.

        The carry after n steps is the one ``apply`` has after n steps, to rounding. Called by
        itself a step is compiled once for each shape and gives the bits of a stream
        (:func:`rnnjax.make_stream`). Inside ``jax.jit`` or ``jax.lax.scan`` it becomes part of that
        program, equal to rounding; ``jax.jit(layer.step)`` has the lowest latency. There is no
        dropout.

        Args:
            params: the parameters of the layer.
            carry: the carry before the step; None starts anew.
            x: inputs [..., D], any batch axes in front; a tree of them where ``xs`` is one.
            mask: bool [...], True where there is an input: elsewhere the carry stays as it is and
                the output is zero.
            resets: bool [...], True where a new sequence starts: the carry returns to the initial
                one before the step.
            context: constants of each sequence, as for ``apply``.

        Returns:
            ``(carry, y)``, the carry after the step, and the output [..., O].

        Raises:
            ValueError: the layer runs in reverse or in both directions, or an argument does not
                fit.

        Example:
            >>> import jax, jax.numpy as jnp, rnnjax
            >>> layer = rnnjax.stack(rnnjax.lstm(4), rnnjax.gru(3))
            >>> params = layer.init(jax.random.key(0), 3)
            >>> def write(carry, _):
            ...     state, x = carry
            ...     state, y = layer.step(params, state, x)
            ...     return (state, y), y
            >>> start = layer.initial_carry(params, (2,)), jnp.ones((2, 3))
            >>> jax.lax.scan(write, start, length=6)[1].shape
            (6, 2, 3)
        """
        return _step(self, params, carry, x, mask=mask, resets=resets, context=context)
