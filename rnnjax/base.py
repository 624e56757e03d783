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

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jax import Array

Key = Array
Params = Any
Carry = Any


class NoiseShape(NamedTuple):
    """For how much noise is drawn: all batch axes as one, the steps, and the size of one input."""

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


class Cell(NamedTuple):
    """A recurrent cell as pure functions of one example and one time step.

    With ``x_proj = project(params, x)`` and ``h_proj = hidden(carry) @ recurrent(params)``, cut
    into pieces as wide as the first pieces of ``x_proj``, one step is
    ``update(params, carry, x_proj, h_proj) -> (carry, y)``.
    The engine does the matrix product itself, so ``project`` leaves the time loop and the
    gradient of the recurrent weights is one product over all steps. ``update`` should be
    pointwise; parameters it reads should be small (biases, peepholes).

    A cell that does not fit gives ``plain_step(params, carry, x_proj) -> (carry, y)`` instead
    of ``recurrent``, ``hidden`` and ``update``, and is differentiated by ordinary autodiff.

    Attributes:
        output_size: O, the size of one step's output.
        init: ``(key, input_size) -> params``, a pytree, usually a NamedTuple.
        initial_carry: ``(params) -> carry``, the carry before the first step and after a reset: a
            tree of floating arrays, real or complex.
        project: ``(params, x [D]) -> x_proj``, a tuple, one [H] array a gate; never sees the carry.
            Pieces behind those that meet the recurrent weights may be any tree of arrays.
        recurrent: ``(params) -> w_hh [P, G*H]``, or None for a cell without recurrent weights.
        hidden: ``(carry) -> h [P]``, what the recurrent weights multiply.
        update: ``(params, carry, x_proj, h_proj) -> (carry, y)``; ``h_proj`` is ``()`` without
            ``recurrent``.
        plain_step: ``(params, carry, x_proj) -> (carry, y)``, the alternative to the three above.
        gates: ``(params, carry, x_proj, h_proj) -> gates``, a NamedTuple of gate values, for
            inspection.
        noise: ``(key, params, shape: NoiseShape) -> Noise``, called once a call and only when
            ``unroll`` is given a key; None for a cell without noise.
        linear: ``(params, x_proj) -> (decay, drive)``, trees like the carry, for a cell whose carry
            obeys ``carry' = decay * carry + drive``: such a cell can run in parallel over time.
    """

    output_size: int
    init: Callable[[Key, int], Params]
    initial_carry: Callable[[Params], Carry]
    project: Callable[[Params, Array], tuple[Array, ...]]
    recurrent: Callable[[Params], Array] | None = None
    hidden: Callable[[Carry], Array] | None = None
    update: Callable[[Params, Carry, tuple, tuple], tuple[Carry, Any]] | None = None
    plain_step: Callable[[Params, Carry, tuple], tuple[Carry, Any]] | None = None
    gates: Callable[[Params, Carry, tuple, tuple], Any] | None = None
    noise: Callable[[Key, Params, NoiseShape], Noise] | None = None
    linear: Callable[[Params, tuple], tuple[Carry, Carry]] | None = None


class Apply(Protocol):
    """How every layer is called; see :class:`Layer`."""

    def __call__(
        self,
        params: Params,
        xs: Array,
        lengths: Any = None,
        *,
        mask: Any = None,
        resets: Any = None,
        initial_carry: Carry = None,
        key: Key | None = None,
    ) -> tuple[Carry, Any]: ...


class Layer(NamedTuple):
    """A whole-sequence layer as a pair of pure functions.

    Attributes:
        init: ``(key, input_size) -> params``.
        apply: ``(params, xs [..., T, D], lengths [...], *, mask, resets, initial_carry, key)
            -> (carry, ys [..., T, O])``. A ``key`` means training; without one nothing is dropped.
        output_size: O.
        last: ``(ys [..., T, O], valid [..., T]) -> [..., O]``, the output after the layer's own
            last step: for a reversed direction that is the first valid step in time order.
    """

    init: Callable[[Key, int], Params]
    apply: Apply
    output_size: int
    last: Callable[[Array, Array], Array]
