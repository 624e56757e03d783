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

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import DTypeLike

from . import checking

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
        steps: trees of arrays [T, B, ...], given to ``update`` (or ``step``) step by step as
            further pieces of ``z``, behind those of ``project``.
    """

    inputs: Array | None = None
    hidden: Array | None = None
    recurrent: Array | None = None
    steps: tuple[Any, ...] = ()


class Cell(NamedTuple):
    """A recurrent cell as pure functions of one example and one time step.

    With ``z = project(params, x)`` and ``r = hidden(carry) @ recurrent(params)``, cut into pieces
    as wide as the first pieces of ``z``, one step is ``update(params, carry, z, r) -> (carry, y)``.
    The engine does the matrix product itself, so ``project`` leaves the time loop and the
    gradient of the recurrent weights is one product over all steps. ``update`` should be
    pointwise; parameters it reads should be small (biases, peepholes).

    A cell that does not fit gives ``step(params, carry, z) -> (carry, y)`` instead of
    ``recurrent``, ``hidden`` and ``update``, and is differentiated by ordinary autodiff.

    Attributes:
        output_size: O, the size of one step's output.
        init: ``(key, input_size) -> params``, a pytree, usually a NamedTuple.
        initial_carry: ``(params) -> carry``, the carry before the first step and after a reset: a
            tree of floating arrays, real or complex.
        project: ``(params, x [D]) -> z``, a tuple, one [H] array a gate; never sees the carry.
            Pieces behind those that meet the recurrent weights may be any tree of arrays.
        recurrent: ``(params) -> w_hh [P, G*H]``, or None for a cell without recurrent weights.
        hidden: ``(carry) -> h [P]``, what the recurrent weights multiply.
        update: ``(params, carry, z, r) -> (carry, y)``; ``r`` is ``()`` without ``recurrent``.
        step: ``(params, carry, z) -> (carry, y)``, the alternative to the three above.
        gates: ``(params, carry, z, r) -> gates``, a NamedTuple of gate values, for inspection.
        noise: ``(key, params, shape: NoiseShape) -> Noise``, called once a call and only when
            ``unroll`` is given a key; None for a cell without noise.
        linear: ``(params, z) -> (decay, drive)``, trees like the carry, for a cell whose carry
            obeys ``carry' = decay * carry + drive``: such a cell can run in parallel over time.
    """

    output_size: int
    init: Callable[[Key, int], Params]
    initial_carry: Callable[[Params], Carry]
    project: Callable[[Params, Array], tuple[Array, ...]]
    recurrent: Callable[[Params], Array] | None = None
    hidden: Callable[[Carry], Array] | None = None
    update: Callable[[Params, Carry, tuple, tuple], tuple[Carry, Any]] | None = None
    step: Callable[[Params, Carry, tuple], tuple[Carry, Any]] | None = None
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


def accumulation_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The dtype of carries, outputs and sums for parameters of ``dtype``: at least float32."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


def linear(x: Array, w: Array, bias: Array | None = None) -> Array:
    """``x @ w + bias``: the product in the dtype of ``w``, accumulated in at least float32.

    Args:
        x: [..., D].
        w: [D, O].
        bias: [O], or None.

    Raises:
        ValueError: ``x`` is not floating, or its size is not the one ``w`` was made for.
    """
    check_floating("the input", x)
    if x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"expected an input of size {w.shape[0]} (weights of shape {w.shape}), "
            f"got size {x.shape[-1]}"
        )
    rows, dtype = x.astype(w.dtype), accumulation_dtype(w.dtype)
    if x.ndim > 2:
        rows = as_rows(rows)
    out = jnp.matmul(rows, w, preferred_element_type=dtype).reshape(*x.shape[:-1], w.shape[-1])
    if bias is None:
        return out
    return out + bias.astype(out.dtype).reshape((1,) * (out.ndim - 1) + bias.shape)


def as_rows(x: Array) -> Array:
    """``x`` [..., D] as a matrix [N, D] where its axes may be merged, else as it is."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) if may_merge_axes() else x


def may_merge_axes() -> bool:
    """Whether the axes before the features are better one: where one device has all of them.

    Two matrices XLA multiplies as they lie. Arrays of more axes it copies into another order first,
    and the gradient of a weight matrix multiplies the largest arrays there are. Where there are
    more devices an axis may be divided among them, and one that is merged cannot stay so; but in
    a ``shard_map`` over all of them every device runs a program of its own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    manual = bool(mesh.manual_axes) and set(mesh.manual_axes) == set(mesh.axis_names)
    return manual or jax.device_count() == 1


def vary_with(given: Any, tree: Any) -> Any:
    """``tree`` as what may differ from device to device in a ``shard_map`` wherever ``given`` may.

    The carry of a scan must be so from the start; zeros are the same on all devices.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    leaves = jax.tree.leaves(given)
    arrays = [leaf for leaf in leaves if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    zero = sum(jnp.sum(jnp.zeros_like(leaf, jnp.float32)) for leaf in arrays)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(zero, leaf.dtype), tree)


def split_gates(x: Array, count: int) -> tuple[Array, ...]:
    """Cut the last axis of ``x`` into ``count`` equal pieces, one a gate."""
    return tuple(jnp.split(x, count, axis=-1))


def check_floating(name: str, xs: Array) -> None:
    """Refuse inputs that are not of floating dtype.

    Raises:
        ValueError: naming ``name``, the dtype that came, and the usual remedy.
    """
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        raise ValueError(
            f"{name} must be of floating dtype, got {xs.dtype}: embed or one-hot token ids first"
        )


def check_range(name: str, values: Array | np.ndarray, end: int, interval: str) -> None:
    """Refuse integers outside [0, end); traced ones are only looked at under ``rnnjax.checked``.

    Raises:
        ValueError: naming ``name``, the ``interval`` as its reader knows it, and the first value
            outside with its place.
    """
    if isinstance(values, Tracer):
        checking.require_range(name, values, end, interval)
        return
    values = np.asarray(values)
    bad = np.argwhere((values < 0) | (values >= end))
    if bad.size:
        place = tuple(int(i) for i in bad[0])
        raise ValueError(
            f"{name} must lie in {interval}, got {int(values[place])} at index {place}"
        )


def check_size(name: str, value: Any) -> int:
    """Return ``value`` if it is a positive integer.

    Raises:
        ValueError: naming ``name`` and what came instead.
    """
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return int(value)


def check_key(key: Any) -> Key:
    """Return ``key`` if it is one typed key.

    Raises:
        ValueError: it is an old-style ``uint32`` key, or no key at all.
    """
    is_typed = isinstance(key, Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not is_typed or key.shape != ():
        raise ValueError(f"key must be a typed key such as jax.random.key(0), got {key!r}")
    return key
