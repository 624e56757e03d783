"""What cells share: gates packed side by side in one matrix, and the two usual carries."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rnnjax._checks import check_floating, check_number, check_size, describe
from rnnjax._numerics import affine, carry_dtype, split_gates
from rnnjax._values import require_at_least_0
from rnnjax.base import Carry, Cell, Key, Params
from rnnjax.initializers import CellInitializer


def draw_packed(
    draw: CellInitializer, keys: Any, input_size: int, size: int, gates: int
) -> tuple[Array, Array, Array]:
    """``w_ih`` [D, G*H], ``w_hh`` [H, G*H] and ``bias`` [G*H], each from its key."""
    ih, hh, b = keys
    return (
        draw.w_ih(ih, input_size, size, gates),
        draw.w_hh(hh, size, gates),
        draw.bias(b, size, gates),
    )


def draw_three_biases(draw: CellInitializer, key: Key, size: int) -> Array:
    """``bias`` [3H] of three gates that are none of a GRU.

    Drawn for the four gates of an LSTM: a rule may take three gates for those of a GRU.
    """
    return draw.bias(key, size, 4)[: 3 * size]


def check_input(x: Array, size: int) -> None:
    """Refuse inputs of one step that are no floats [size], where no product looks at them."""
    check_floating("xs", x)
    if x.shape != (size,):
        raise ValueError(f"xs must have size {size} in the last axis, got {x.shape[-1]}")


def project_packed(gates: int) -> Callable[[Any, Array], tuple[Array, ...]]:
    """``x @ w_ih + bias`` in pieces, one for each gate."""

    def project(params: Any, x: Array) -> tuple[Array, ...]:
        return split_gates(affine(x, params.w_ih, params.bias), gates)

    return project


def input_and_elapsed(x: Any) -> tuple[Array, Array | None]:
    """The input [D] of one step, and the time [1] since the step before, None where none came.

    Raises:
        ValueError: neither an array nor a tuple of the two; under ``rnnjax.checked`` a time below
            0, after which a state would grow instead of decaying.
    """
    if hasattr(x, "shape"):
        return x, None
    if isinstance(x, tuple) and len(x) == 2 and getattr(x[1], "shape", None) == (1,):
        if jnp.iscomplexobj(x[1]):
            raise ValueError(f"elapsed times must be real numbers, got dtype {x[1].dtype}")
        require_at_least_0("elapsed times", x[1])
        return x
    # Of one step the shapes are without T: the message must be right for ``step``, too.
    raise ValueError(
        "xs must be inputs [..., D], or a tuple of them and of elapsed times [..., 1], got "
        f"for one step {_shapes(x)}"
    )


def _shapes(x: Any) -> str:
    """What came, with the shapes of a tuple: they say whether its parts are in the wrong order."""
    if isinstance(x, tuple) and all(hasattr(part, "shape") for part in x):
        return f"arrays of shapes {', '.join(str(tuple(part.shape)) for part in x)}"
    return describe(x)


def zeros_of(*sizes: int, carry: Callable[..., Carry] = lambda h: h) -> Callable[[Params], Carry]:
    """An initial carry of zeros, ``carry(...)`` of arrays of these sizes."""

    def initial_carry(params: Params) -> Carry:
        dtype = carry_dtype(params)
        return carry(*(jnp.zeros((size,), dtype) for size in sizes))

    return initial_carry


def packed_cell(
    gates: int,
    size: int,
    init: Callable,
    update: Callable,
    *,
    initial_carry: Callable[[Params], Carry] | None = None,
    hidden: Callable[[Carry], Array] = lambda carry: carry,
    output_size: int | None = None,
    gate_values: Callable | None = None,
) -> Cell:
    """A cell of parameters ``w_ih``, ``w_hh``, ``bias`` and others: [h] its carry, unless told."""
    return Cell(
        output_size=size if output_size is None else output_size,
        init=init,
        initial_carry=zeros_of(size) if initial_carry is None else initial_carry,
        project=project_packed(gates),
        recurrent=lambda params: params.w_hh,
        hidden=hidden,
        update=update,
        gates=gate_values,
    )


def check_step_range(min_step: Any, max_step: Any) -> tuple[float, float]:
    """The least and the greatest time of a step that parameters are drawn with."""
    low, high = (
        check_number(name, step, "positive and finite", lambda a: 0 < a < math.inf)
        for name, step in (("min_step", min_step), ("max_step", max_step))
    )
    if low > high:
        raise ValueError(f"min_step must be at most max_step, {max_step!r}, got {min_step!r}")
    return low, high


def draw_step_log(key: Array, size: int, low: float, high: float) -> Array:
    """The logarithms [size] of step times, uniform between those of two times."""
    return jax.random.uniform(key, (size,), jnp.float32, np.log(low), np.log(high))


def check_heads(hidden_size: Any, num_heads: Any) -> tuple[int, int]:
    """The two as integers; the units must be as many in every head."""
    size = check_size("hidden_size", hidden_size)
    heads = check_size("num_heads", num_heads)
    if size % heads:
        raise ValueError(f"num_heads must divide hidden_size {size}, got {heads}")
    return size, heads


def inverse_softplus(x: Array) -> Array:
    """What ``softplus`` of is x, for x > 0, in the form that keeps the digits of small ones."""
    return x + jnp.log(-jnp.expm1(-x))
