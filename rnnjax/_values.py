"""Values in arrays that are wrong, as Python errors: known ones at once, traced ones on demand.

Inside a compiled function nobody can look at a value, so lengths are clipped, ids clamped and NaN
handed on. Where the ranges are known the package calls :func:`check_range`, :func:`require_range`
and :func:`require_finite`. Of traced values they say nothing, and leave nothing in a compiled
program, unless a function made by :func:`checked` is being traced.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer, eval_context
from jax.experimental import checkify
from jax.extend.core import get_opaque_trace_state

from rnnjax._checks import check_there

Function = TypeVar("Function", bound=Callable[..., Any])

# How JAX stands where no transformation is around.
with eval_context():
    _NO_TRANSFORMATION = get_opaque_trace_state()

# Part of the key of every cache of jax.jit: what was traced without checks is traced again.
_checking = jax.make_user_context(False)


def is_transformed() -> bool:
    """Whether a ``jax.jit``, ``jax.grad`` or other transformation is around: a function may close
    over a value that it traces, even if none of the arguments is traced."""
    return get_opaque_trace_state() != _NO_TRANSFORMATION


def checked(fn: Function) -> Function:
    """``fn`` with its values looked at while it runs, compiled: a wrong one is a Python error.

    What is looked at, wherever ``fn`` or a function it calls goes through this library:

    - lengths outside [0, T], token ids outside [0, V), segment ids outside [0, N], and labels
      outside [0, C) in rows that count;
    - parameters, inputs at real steps, initial carries, outputs and final carries of ``unroll``
      and of all layers that are not finite; a cross entropy that is not finite in a row that
      counts; in a step of ``make_train_step`` the loss, the gradient and its norm;
    - elapsed times below 0 of ``cfc``, ``s4d`` and ``s5`` at real steps;
    - 64-bit integers among the arguments that JAX would cut to 32 bits.

    The first fault is told: the argument, what was expected, the value and its index. Nothing of
    ``fn`` itself changes, and what was compiled without checks stays as it was.

    Wrap the outermost function: ``checked(jax.jit(f))``, ``checked(jax.grad(f))``,
    ``checked(jax.vmap(f))``, or a step of ``make_train_step``. Inside, ``jax.jit``, ``grad``,
    ``vmap``, ``jax.checkpoint`` and the loops of ``jax.lax`` may stand in any order; a ``checked``
    function inside another is simply called. What it cannot do:

    - It waits for the device after every call, is compiled anew, and gives no argument away
      (donation): time nothing through it, and expect more memory.
    - ``jax.jit(checked(f))``, and ``jax.grad`` or ``jax.vmap`` in its place, are refused: what is
      traced cannot raise.
    - ``fn`` must be one that ``jax.jit`` takes, with arrays alone in its result; arrays among its
      arguments are traced, everything else, Python's own numbers included, stays what it is.
    - Under ``vmap`` an index is that of one example, without the mapped axis, and both branches of
      a ``lax.cond`` are looked at.
    - What does not go through the library is not looked at: see ``jax_debug_nans`` and
      ``jax.experimental.checkify`` for that.

    Args:
        fn: any function of arrays and trees of arrays.

    Returns:
        A function of the same arguments and results.

    Raises:
        ValueError: when it is called; with the first value that is wrong, or where it is called
            inside another transformation.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.lstm(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> run = jax.jit(lambda lengths: rnnjax.unroll(cell, params, jnp.ones((2, 5, 3)), lengths))
        >>> carry, ys = run(jnp.array([5, 9]))  # 9 is clipped to 5
        >>> carry, ys = rnnjax.checked(run)(jnp.array([5, 9]))
        Traceback (most recent call last):
            ...
        ValueError: lengths must lie in [0, 5] (a row has 5 steps), got 9 at index (1,)
    """

    def run(static: tuple, arrays: list) -> Any:
        args, kwargs = _joined(static, arrays)
        return fn(*args, **kwargs)

    compiled = jax.jit(checkify.checkify(run), static_argnums=0)

    @functools.wraps(fn)
    def with_checks(*args: Any, **kwargs: Any) -> Any:
        if is_checking():
            return fn(*args, **kwargs)
        static, arrays = _divided(args, kwargs)
        with _checking(True):
            error, result = compiled(static, arrays)
        _raise(error)
        return result

    return with_checks  # pyright: ignore[reportReturnType]


def is_checking() -> bool:
    """Whether a function made by :func:`checked` is being traced."""
    return _checking.value


def check_range(name: str, values: Array | np.ndarray, end: int, interval: str) -> None:
    """Refuse integers outside [0, end); traced ones are only looked at under ``rnnjax.checked``.

    Raises:
        ValueError: naming ``name``, the ``interval`` as its reader knows it, and the first value
            outside with its place.
    """
    if isinstance(values, Tracer):
        require_range(name, values, end, interval)
        return
    try:
        values = np.asarray(values)
    except RuntimeError:  # jax_transfer_guard wants it said, which takes ten times as long
        check_there(**{name: values})
        values = np.asarray(jax.device_get(values))
    bad = (values < 0) | (values >= end)
    if bad.any():
        found = _first(values, np.argwhere(bad))
        raise ValueError(f"{name} must lie in {interval}, got {found}")


def check_width(name: str, value: Any) -> Any:
    """Return ``value`` if JAX would not cut integers in it to 32 bits; looks at NumPy's alone.

    Raises:
        ValueError: naming ``name``, the first number that does not fit, and its index.
    """
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind not in "iu":
        return value
    array: Any = np.asarray(value)
    kept = np.iinfo(jax.dtypes.canonicalize_dtype(array.dtype))
    bad = np.argwhere((array < kept.min) | (array > kept.max))
    if len(bad):
        raise ValueError(
            f"{name} must fit {kept.dtype} where jax_enable_x64 is off, got {_first(array, bad)}"
        )
    return value


def require_range(
    name: str, values: Any, end: int, interval: str, where: Array | None = None
) -> None:
    """Under :func:`checked`, refuse integers outside [0, end).

    Args:
        name: what they are, for the message.
        values: integers.
        end: the first one that is too large.
        interval: the range as its reader knows it.
        where: of the shape of ``values``, True where one is read; None for all.
    """
    if not is_checking():
        return
    values = jnp.asarray(values)
    bad = values < 0
    if end <= jnp.iinfo(values.dtype).max:
        bad |= values >= end
    _check(f"{name} must lie in {interval}", values, bad if where is None else bad & where)


def require_finite(name: str, tree: Any, where: Array | None = None) -> None:
    """Under :func:`checked`, refuse NaN and infinity in any leaf of ``tree``.

    Args:
        name: what it is, for the message; the path of the leaf is added.
        tree: arrays; those that are not of floating or complex dtype are passed over.
        where: flags with the leading axes of every leaf, True where one is read; None for all.
    """
    if not is_checking():
        return
    for path, leaf in jax.tree.leaves_with_path(tree):
        leaf = jnp.asarray(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        bad = ~jnp.isfinite(leaf)
        if where is not None:
            bad &= where.reshape(where.shape + (1,) * (bad.ndim - where.ndim))
        _check(f"{name}{jax.tree_util.keystr(path)} must be finite", leaf, bad)


def require_at_least_0(name: str, value: Array) -> None:
    """Under :func:`checked`, refuse a number below 0: a scalar, or an array of one element."""
    if is_checking():
        value = value.reshape(())
        _check(f"{name} must be at least 0", value, value < 0)


def require_distinct(name: str, values: Array, where: Array) -> None:
    """Refuse integers [U] that are there twice; traced ones under :func:`checked` alone.

    Args:
        name: what they are, for the message.
        values: the integers.
        where: bool [U], True where one is read.

    Raises:
        ValueError: naming one of them.
    """
    if isinstance(values, Tracer) and not is_checking():
        return
    # Those that are not read stand at the end, where they may be equal.
    order = jnp.lexsort((values, ~where))
    values, where = values[order], where[order]
    again = (values[1:] == values[:-1]) & where[1:]
    if isinstance(values, Tracer):
        _check(f"{name} must be distinct", values[1:], again)
    elif again.any():
        raise ValueError(f"{name} must be distinct, got {values[1:][again][0]} more than once")


def _check(expected: str, values: Array, bad: Array) -> None:
    """Fail with the first value that is ``bad`` and its index."""
    if not values.size:
        return
    flat, size = bad.reshape(-1), values.size
    first = lax.argmax(flat, 0, np.int32)
    rest, index = first, []
    for length in values.shape:  # plain operations: each of NumPy's would be a function to compile
        size //= length
        index.append(lax.div(rest, np.int32(size)))
        rest = lax.rem(rest, np.int32(size))
    place = ", ".join("{}" for _ in index) + ("," if len(index) == 1 else "")
    where = f" at index ({place})" if index else ""
    message = expected.replace("{", "{{").replace("}", "}}") + ", got {}" + where
    value = lax.dynamic_index_in_dim(values.reshape(-1), first, keepdims=False)
    wrong = lax.dynamic_index_in_dim(flat, first, keepdims=False)
    checkify.check(~wrong, message, value, *index)


def _first(values: np.ndarray, bad: np.ndarray) -> str:
    """The first of the ``bad`` places and what stands there; a scalar has no place to name.

    Ask for the ``len`` of what ``argwhere`` gives: for a bad scalar that is 1, and its size is 0.
    """
    place = tuple(int(i) for i in bad[0])
    return f"{int(values[place])}" + (f" at index {place}" if place else "")


def _raise(error: checkify.Error) -> None:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(error)):
        raise ValueError(
            "a checked function must be the outermost one, got a call inside jax.jit, jax.grad or "
            "jax.vmap: wrap the outermost function, as in checked(jax.jit(f))"
        )
    # Copies asked for: a step may run where hidden ones are forbidden.
    message = jax.device_get(error).get()
    if message is not None:
        raise ValueError(message.removesuffix(" (`check` failed)"))


def _divided(args: tuple, kwargs: dict) -> tuple[tuple, list]:
    """What is fixed when the function is compiled, and the arrays; None stands for an array."""
    leaves, structure = jax.tree.flatten((args, kwargs))
    for leaf in leaves:
        check_width("an argument", leaf)
    # With its type, as 1 and True are equal.
    fixed = tuple(None if _is_array(leaf) else (type(leaf), leaf) for leaf in leaves)
    return (structure, fixed), [leaf for leaf in leaves if _is_array(leaf)]


def _joined(static: tuple, arrays: list) -> tuple[tuple, dict]:
    structure, fixed = static
    traced = iter(arrays)
    leaves = [next(traced) if entry is None else entry[1] for entry in fixed]
    return jax.tree.unflatten(structure, leaves)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, Array | np.ndarray | np.generic)
