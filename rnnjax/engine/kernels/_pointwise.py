"""Functions that act unit by unit: found as such in their jaxpr, and run on tiles of any shape.

A cell's ``update`` is written for arrays [H] of one example, and is traced on such, never on tiles:
what it reads of their shapes is what it meant. Where every operation in it acts on each unit by
itself, these operations mean the same on a tile [16 units, 16 sequences], and so do those of its
derivative. A traced function is kept as a flat list of the operations that its results need.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.extend.core import Literal

from rnnjax._numerics import varying_like


class NotPointwiseError(ValueError):
    """Why a function does not act unit by unit, or is made of what the kernels do not know."""


# Operations that act on each element by itself and that the kernel compiler knows: arithmetic of
# float32, logic of flags, and of all dtypes what compares and moves.
# fmt: off
_ARITHMETIC = frozenset({
    "abs", "add", "clamp", "cos", "div", "exp", "exp2", "integer_pow", "log", "logistic", "max",
    "min", "mul", "neg", "rsqrt", "sign", "sin", "sqrt", "square", "sub", "tanh",
})
_COMPARISONS = frozenset({"eq", "ge", "gt", "le", "lt", "ne"})
# fmt: on
_MOVES = frozenset({"broadcast_in_dim", "convert_element_type", "select_n"})
_LOGIC = frozenset({"and", "or", "xor"})
_KNOWN = _ARITHMETIC | _COMPARISONS | _MOVES | _LOGIC
_DTYPES = frozenset({"float32", "bfloat16", "float16", "int32", "bool"})
_CALLS = frozenset(
    {"pjit", "jit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat", "checkpoint"}
)


def _log1p(x: Array, **_: Any) -> Array:
    # With y = fl(1 + x), log(y) x / (y - 1) makes up for the rounding of y (Kahan).
    y = 1 + x
    exact = y == 1
    ratio = x / lax.select(exact, lax.full_like(x, 1), y - 1)
    return lax.select(exact, x, lax.log(y) * ratio)


def _expm1(x: Array, **_: Any) -> Array:
    # 2 tanh(x/2) / (1 - tanh(x/2)) loses nothing near 0; exp(x) - 1 nothing elsewhere.
    t = lax.tanh(0.5 * x)
    return lax.select(lax.abs(x) < 1, 2 * t / (1 - t), lax.exp(x) - 1)


def _integer_pow(x: Array, *, y: int) -> Array:
    if y >= 2:
        return lax.integer_pow(x, y)
    if y < 0:
        return 1 / _integer_pow(x, y=-y)
    return x if y else lax.full_like(x, 1)


def _convert(x: Array, *, new_dtype: Any, **_: Any) -> Array:
    return x != 0 if new_dtype == jnp.bool_ else lax.convert_element_type(x, new_dtype)


def _not(x: Array) -> Array:
    return lax.bitwise_xor(x, lax.full_like(x, True))  # of integers refused, as is their xor


# The same in operations that the compiler knows. Derivatives have been taken before these stand in.
_REWRITTEN: dict[str, Callable] = {
    "add_any": lax.add,
    "convert_element_type": _convert,
    "copy": lambda x: x,
    "copy_p": lambda x: x,
    "expm1": _expm1,
    "integer_pow": _integer_pow,
    "log1p": _log1p,
    "not": _not,
    "one_minus_square": lambda x: 1 - x * x,
    "stop_gradient": lambda x: x,
}


def _logistic_by_tanh(x: Array, **_: Any) -> Array:
    return 0.5 * lax.tanh(0.5 * x) + 0.5


class Flat(NamedTuple):
    """A traced function without calls in it, and without what its results do not need.

    Attributes:
        inputs: variables of the flat leaves of its arguments.
        equations: operations in the order they run.
        outputs: variables or constants.
        constants: what was closed over, by variable.
        shape: of the arrays that it is run on.
    """

    inputs: Sequence[Any]
    equations: Sequence[Any]
    outputs: Sequence[Any]
    constants: dict[Any, Any]
    shape: tuple[int, ...]

    def reads(self, k: int) -> bool:
        """Whether any result depends on input ``k``."""
        return any(v is self.inputs[k] for e in self.equations for v in e.invars) or any(
            v is self.inputs[k] for v in self.outputs
        )

    def __call__(self, *leaves: Any) -> list:
        """Results for leaves of ``shape``; those that are not read may be None."""
        values = dict(self.constants) | dict(zip(self.inputs, leaves, strict=True))

        def read(v: Any) -> Any:
            return v.val if isinstance(v, Literal) else values[v]

        for e in self.equations:
            operands = [read(v) for v in e.invars]
            operands = varying_like(operands, operands)  # numbers beside what differs by device
            values[e.outvars[0]] = self._result(e, operands)
        return [read(v) for v in self.outputs]

    def _result(self, e: Any, operands: list) -> Array:
        if e.primitive.name != "broadcast_in_dim":
            return e.primitive.bind(*operands, **e.params)
        # The one operation that names a shape: [H], which stands for that of the arrays.
        (a,) = operands
        is_full = np.ndim(a) > 0 or not e.outvars[0].aval.shape
        return a if is_full else lax.broadcast_in_dim(a, self.shape, ())


def flatten_function(
    function: Callable, *arguments: Any, shape: tuple[int, ...], approximate: bool = False
) -> Flat:
    """Trace ``function``, which takes and gives flat lists of arrays.

    Args:
        function: what to trace.
        arguments: their shapes and dtypes.
        shape: of the arrays that the result will be run on.
        approximate: write sigmoids by way of tanh, one instruction where it is approximate.

    Raises:
        NotPointwiseError: it has side effects, or an operation whose accuracy it asks for.
    """
    closed = _trace(function, arguments)
    if closed.effects:
        raise NotPointwiseError("it has side effects, such as jax.debug.print")
    rewritten = _REWRITTEN | ({"logistic": _logistic_by_tanh} if approximate else {})

    def without_calls(*leaves: Any) -> list:
        return _inlined(closed.jaxpr, closed.consts, leaves, rewritten)

    # Traced twice: the first trace has calls in it (``jax.nn`` functions are jitted), the second
    # runs what is inside of them and so has none.
    flat = _trace(without_calls, arguments)
    # Backwards from the results; what they do not need, such as a dropped tangent, is left out.
    needed = {v for v in flat.jaxpr.outvars if not isinstance(v, Literal)}
    equations = []
    for e in reversed(flat.jaxpr.eqns):
        if any(v in needed for v in e.outvars):
            equations.append(e)
            needed |= {v for v in e.invars if not isinstance(v, Literal)}
    constants = dict(zip(flat.jaxpr.constvars, flat.consts, strict=True))
    constants = {v: _as_scalar(c) for v, c in constants.items() if v in needed}
    return Flat(flat.jaxpr.invars, equations[::-1], flat.jaxpr.outvars, constants, shape)


def _trace(function: Callable, arguments: Sequence) -> Any:
    # What one device computes of a tile lies on no mesh. In a shard_map there is one, and the
    # transpose of a product would place its results on it.
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        return jax.make_jaxpr(function)(*arguments)


def _as_scalar(constant: Any) -> Any:
    """A known constant of no axes as a plain number, which a kernel may hold."""
    if isinstance(constant, Tracer) or np.ndim(constant):
        return constant
    return np.asarray(constant)[()]


def _inlined(jaxpr: Any, constants: Sequence, leaves: Sequence, rewritten: dict) -> list:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *leaves], strict=True))

    def read(v: Any) -> Any:
        return v.val if isinstance(v, Literal) else values[v]

    for e in jaxpr.eqns:
        operands, name = [read(v) for v in e.invars], e.primitive.name
        inner = next((e.params[k] for k in _BODIES if k in e.params), None)
        if name in _CALLS and inner is not None:
            body = getattr(inner, "jaxpr", inner)
            results = _inlined(body, getattr(inner, "consts", ()), operands, rewritten)
        elif e.primitive.multiple_results:
            results = e.primitive.bind(*operands, **e.params)
        else:
            results = [_computed(e, operands, rewritten.get(name, e.primitive.bind))]
        values.update(zip(e.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _computed(e: Any, operands: list, operation: Callable) -> Array:
    """The result of an operation; of 16-bit numbers in float32, then rounded to theirs.

    That is what XLA does with them, and the kernel compiler cannot compute all in 16 bits.
    """
    if e.params.get("accuracy") is not None:
        raise NotPointwiseError(f"it asks for an accuracy of {e.primitive.name}")
    if e.primitive.name in _MOVES:
        return operation(*operands, **e.params)
    wide = [lax.convert_element_type(a, jnp.float32) if _is_narrow(a) else a for a in operands]
    result = operation(*wide, **e.params)
    return lax.convert_element_type(result, e.outvars[0].aval.dtype)


def _is_narrow(a: Any) -> bool:
    return jnp.dtype(a.dtype) in (jnp.bfloat16, jnp.float16)


_BODIES = ("call_jaxpr", "jaxpr", "fun_jaxpr")


def check_pointwise(name: str, flat: Flat, size: int) -> None:
    """Refuse a function that does more than act on each element of arrays [``size``].

    Raises:
        NotPointwiseError: an operation, a shape, a dtype or a constant that does not fit.
    """
    for constant in flat.constants.values():
        if not isinstance(constant, np.generic):
            kind = f"an array, of shape {np.shape(constant)}" if np.ndim(constant) else "a number"
            raise NotPointwiseError(f"{name} closes over {kind} that is traced or on a device")
    for e in flat.equations:
        _check_operation(name, e)
        for v in (*e.invars, *e.outvars):
            aval: Any = v.aval
            if isinstance(v, Literal) and np.ndim(v.val):
                raise NotPointwiseError(f"{name} closes over an array, of shape {np.shape(v.val)}")
            if aval.shape not in ((), (size,)):
                raise NotPointwiseError(f"{name} has an array of shape {aval.shape}, not {(size,)}")
            if aval.dtype.name not in _DTYPES:
                raise NotPointwiseError(f"{name} computes in {aval.dtype}")


def _check_operation(name: str, e: Any) -> None:
    operation, operand = e.primitive.name, e.invars[0].aval
    if operation not in _KNOWN:
        raise NotPointwiseError(
            f"{name} has the operation {operation}, which is none of those that the kernels "
            "compute unit by unit"
        )
    expected = "float32" if operation in _ARITHMETIC else "bool" if operation in _LOGIC else None
    if expected is not None and operand.dtype.name != expected:
        raise NotPointwiseError(f"{name} has the operation {operation} of {operand.dtype}")
    if operation == "select_n" and operand.shape != e.outvars[0].aval.shape:
        raise NotPointwiseError(f"{name} selects all units by one number")
