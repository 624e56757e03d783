"""Functions that act unit by unit: found as such in their jaxpr, and run on tiles of any shape.

A cell's ``update`` is written for arrays [H] of one example. Where every operation in it acts on
each unit by itself, it means the same on a tile [16 units, 16 sequences], and so does its
derivative. A traced function is kept as a flat list of the operations that its results need.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.extend.core import Literal

from rnnjax._numerics import varying_like


class NotPointwiseError(ValueError):
    """Why a function does not act unit by unit, or is made of what the kernels do not know."""


# Operations that act on each element by itself and that the kernel compiler knows.
# fmt: off
_KNOWN = frozenset({
    "abs", "add", "and", "broadcast_in_dim", "clamp", "convert_element_type", "cos", "div", "eq",
    "erf", "exp", "exp2", "ge", "gt", "integer_pow", "le", "log", "logistic", "lt", "max", "min",
    "mul", "ne", "neg", "not", "or", "rsqrt", "select_n", "sign", "sin", "sqrt", "square", "sub",
    "tanh", "xor",
})
# fmt: on
_CALLS = frozenset(
    {"pjit", "jit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat", "checkpoint"}
)


def _log1p(x: Array) -> Array:
    # With y = fl(1 + x), log(y) x / (y - 1) makes up for the rounding of y (Kahan).
    y = 1 + x
    exact = y == 1
    ratio = x / lax.select(exact, lax.full_like(x, 1), y - 1)
    return lax.select(exact, x, lax.log(y) * ratio)


def _expm1(x: Array) -> Array:
    # 2 tanh(x/2) / (1 - tanh(x/2)) loses nothing near 0; exp(x) - 1 nothing elsewhere.
    t = lax.tanh(0.5 * x)
    return lax.select(lax.abs(x) < 1, 2 * t / (1 - t), lax.exp(x) - 1)


def _quick_logistic(x: Array, **_: Any) -> Array:
    return 0.5 * lax.tanh(0.5 * x) + 0.5


# The same in operations it knows. Derivatives have been taken before these stand in.
_IN_OTHER_WORDS: dict[str, Callable] = {
    "add_any": lax.add,
    "copy": lambda x: x,
    "copy_p": lambda x: x,
    "expm1": _expm1,
    "log1p": _log1p,
    "one_minus_square": lambda x: 1 - x * x,
    "stop_gradient": lambda x: x,
}
_DTYPES = frozenset({"float32", "bfloat16", "float16", "bool", "int32"})


class Flat(NamedTuple):
    """A traced function without calls in it, and without what its results do not need.

    Attributes:
        inputs: variables of the flat leaves of its arguments.
        equations: operations in the order they run.
        outputs: variables or constants.
        constants: what was closed over, by variable.
    """

    inputs: Sequence[Any]
    equations: Sequence[Any]
    outputs: Sequence[Any]
    constants: dict[Any, Any]

    def reads(self, k: int) -> bool:
        """Whether any result depends on input ``k``."""
        return any(v is self.inputs[k] for e in self.equations for v in e.invars) or any(
            v is self.inputs[k] for v in self.outputs
        )

    def __call__(self, *leaves: Any) -> list:
        """Results for leaves of any one shape; those that are not read may be None."""
        values = dict(self.constants) | dict(zip(self.inputs, leaves, strict=True))

        def read(v: Any) -> Any:
            return v.val if isinstance(v, Literal) else values[v]

        for e in self.equations:
            operands = [read(v) for v in e.invars]
            operands = varying_like(operands, operands)  # numbers beside what differs by device
            values[e.outvars[0]] = e.primitive.bind(*operands, **e.params)
        return [read(v) for v in self.outputs]


def flatten_function(function: Callable, *shapes: Any, quick: bool = False) -> Flat:
    """Trace ``function``, which takes and gives flat lists of arrays.

    Args:
        function: what to trace.
        shapes: of its arguments.
        quick: write sigmoids by way of tanh.

    Raises:
        NotPointwiseError: a call in it cannot be looked into.
    """
    closed = _trace(function, shapes)
    words = _IN_OTHER_WORDS | ({"logistic": _quick_logistic} if quick else {})

    def without_calls(*leaves: Any) -> list:
        return _inlined(closed.jaxpr, closed.consts, leaves, words)

    # Traced twice: the first trace has calls in it (``jax.nn`` functions are jitted), the second
    # runs what is inside of them and so has none.
    flat = _trace(without_calls, shapes)
    # Backwards from the results; what they do not need, such as a dropped tangent, is left out.
    needed = {v for v in flat.jaxpr.outvars if not isinstance(v, Literal)}
    equations = []
    for e in reversed(flat.jaxpr.eqns):
        if any(v in needed for v in e.outvars):
            equations.append(e)
            needed |= {v for v in e.invars if not isinstance(v, Literal)}
    constants = dict(zip(flat.jaxpr.constvars, flat.consts, strict=True))
    constants = {v: _as_scalar(c) for v, c in constants.items() if v in needed}
    return Flat(flat.jaxpr.invars, equations[::-1], flat.jaxpr.outvars, constants)


def _trace(function: Callable, shapes: Sequence) -> Any:
    # What one device computes of a tile lies on no mesh. In a shard_map there is one, and the
    # transpose of a product would place its results on it.
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        return jax.make_jaxpr(function)(*shapes)


def _as_scalar(constant: Any) -> Any:
    """A known constant of no axes as a plain number, which a kernel may hold."""
    if isinstance(constant, Tracer) or np.ndim(constant):
        return constant
    return np.asarray(constant)[()]


def _inlined(jaxpr: Any, constants: Sequence, leaves: Sequence, words: dict) -> list:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *leaves], strict=True))

    def read(v: Any) -> Any:
        return v.val if isinstance(v, Literal) else values[v]

    for e in jaxpr.eqns:
        operands, name = [read(v) for v in e.invars], e.primitive.name
        inner = next((e.params[k] for k in _BODIES if k in e.params), None)
        if name in _CALLS and inner is not None:
            body = getattr(inner, "jaxpr", inner)
            results = _inlined(body, getattr(inner, "consts", ()), operands, words)
        elif name in words:
            results = [words[name](*operands)]
        else:
            results = e.primitive.bind(*operands, **e.params)
            results = results if e.primitive.multiple_results else [results]
        values.update(zip(e.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


_BODIES = ("call_jaxpr", "jaxpr", "fun_jaxpr")


def check_pointwise(name: str, flat: Flat, shape: tuple[int, ...]) -> None:
    """Refuse a function that does more than act on each element of arrays of ``shape``.

    Raises:
        NotPointwiseError: an operation, a shape, a dtype or a constant that does not fit.
    """
    for constant in flat.constants.values():
        if not isinstance(constant, np.generic):
            raise NotPointwiseError(f"{name} closes over an array, of shape {np.shape(constant)}")
    for e in flat.equations:
        operation = e.primitive.name
        if operation not in _KNOWN:
            raise NotPointwiseError(f"{name} has the operation {operation}, which is not pointwise")
        for v in (*e.invars, *e.outvars):
            aval: Any = v.aval
            if isinstance(v, Literal) and np.ndim(v.val):
                raise NotPointwiseError(f"{name} closes over an array, of shape {np.shape(v.val)}")
            if aval.shape not in ((), shape):
                raise NotPointwiseError(f"{name} has an array of shape {aval.shape}, not {shape}")
            if aval.dtype.name not in _DTYPES:
                raise NotPointwiseError(f"{name} computes in {aval.dtype}")
