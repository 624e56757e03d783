"""Errors of values that are traced, as Python errors: for finding a fault, not for every day.

Inside a compiled function nobody can look at a value, so lengths are clipped, ids clamped and NaN
handed on. Where the ranges are known the package calls :func:`require_range` and
:func:`require_finite`. They do nothing, and leave nothing in a compiled program, unless a function
made by :func:`checked` is being traced.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.experimental import checkify

from rnnjax._native import in_native_order
from rnnjax.base import Key

Function = TypeVar("Function", bound=Callable[..., Any])

# Part of the key of every cache of jax.jit: what was traced without checks is traced again.
_checking = jax.make_user_context(False)


def checked(fn: Function) -> Function:
    """``fn`` with its values looked at while it runs, compiled: a wrong one is a Python error.

    What is looked at, wherever ``fn`` or a function it calls goes through this library:

    - lengths outside [0, T], token ids outside [0, V), segment ids outside [0, N], and labels
      outside [0, C) in rows that count;
    - parameters, inputs at real steps, initial carries, outputs and final carries of ``unroll``
      and of all layers that are not finite; a cross entropy that is not finite in a row that
      counts; in a step of ``make_train_step`` the loss, the gradient and its norm;
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
        ValueError: lengths must lie in [0, 5] (xs has 5 steps), got 9 at index (1,)
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


def check_floating(name: str, xs: Array) -> None:
    """Refuse inputs that are not of floating dtype.

    Raises:
        ValueError: naming ``name``, the dtype that came, and the usual remedy.
    """
    if not hasattr(xs, "dtype"):
        raise ValueError(f"{name} must be one array, got {describe(xs)}")
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        raise ValueError(
            f"{name} must be of floating dtype, got dtype {xs.dtype}: embed or one-hot token ids, "
            f"and make numbers floats with {name}.astype(float)"
        )


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
        values = np.asarray(jax.device_get(values))
    bad = (values < 0) | (values >= end)
    if bad.any():
        found = _first(values, np.argwhere(bad))
        raise ValueError(f"{name} must lie in {interval}, got {found}")


def _first(values: np.ndarray, bad: np.ndarray) -> str:
    """The first of the ``bad`` places and what stands there; a scalar has no place to name.

    Ask for the ``len`` of what ``argwhere`` gives: for a bad scalar that is 1, and its size is 0.
    """
    place = tuple(int(i) for i in bad[0])
    return f"{int(values[place])}" + (f" at index {place}" if place else "")


def check_size(name: str, value: Any) -> int:
    """``value``, a positive integer of Python, NumPy or JAX, as an ``int``.

    Raises:
        ValueError: naming ``name`` and what came instead.
    """
    number = _number(name, value)
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return number


def check_id(name: str, value: Any, vocab_size: int | None = None) -> int:
    """``value``, a token id of Python, NumPy or JAX, as an ``int``.

    Raises:
        ValueError: naming ``name``, the ids there are (where that is known), and what came.
    """
    number = _number(name, value)
    end = math.inf if vocab_size is None else vocab_size
    if not isinstance(number, int) or not 0 <= number < end:
        within = "from 0 on" if vocab_size is None else f"in [0, {vocab_size})"
        raise ValueError(f"{name} must be a token id, an integer {within}, got {value!r}")
    return number


def check_ids(name: str, ids: Any, vocab_size: int | None = None) -> tuple[int, ...]:
    """One token id, or several, as a tuple of Python integers.

    Raises:
        ValueError: none, or one that :func:`check_id` refuses.
    """
    given = python_scalar(name, ids)
    several = isinstance(given, Iterable) and not isinstance(given, str | bytes)
    found = tuple(check_id(name, i, vocab_size) for i in (given if several else (given,)))
    if not found:
        raise ValueError(f"{name} must have at least one token id, got none")
    return found


def check_number(name: str, value: Any, expected: str, holds: Callable[[float], bool]) -> float:
    """``value``, an integer or float of Python, NumPy or JAX, as a ``float``.

    Args:
        name: what it is.
        value: what came.
        expected: what it must be, in words.
        holds: whether a number is that; never asked of NaN.

    Raises:
        ValueError: naming ``name``, what was ``expected``, and what came instead.
    """
    number = _number(name, value)
    if not isinstance(number, int | float) or number != number or not holds(number):
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    return float(number)


def check_rate(name: str, rate: Any) -> float:
    """``rate``, a number in [0, 1), as a ``float``.

    Raises:
        ValueError: naming ``name`` and what came instead.
    """
    return check_number(name, rate, "a rate in [0, 1)", lambda p: 0 <= p < 1)


def check_flag(name: str, value: Any) -> bool:
    """``value``, True or False of Python, NumPy or JAX, as a ``bool``.

    Raises:
        ValueError: naming ``name`` and what came instead.
    """
    scalar = python_scalar(name, value)
    if not isinstance(scalar, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return scalar


def _number(name: str, value: Any) -> int | float | None:
    """A Python number; None for what is none, and for flags, which Python takes for integers."""
    scalar = python_scalar(name, value)
    return scalar if isinstance(scalar, int | float) and not isinstance(scalar, bool) else None


def python_scalar(name: str, value: Any) -> Any:
    """What a scalar of NumPy or JAX, of any width, is in Python; everything else as it came.

    Raises:
        ValueError: a traced one: settings must be known when a function is compiled.
    """
    if isinstance(value, Tracer):
        raise ValueError(f"{name} must be known when compiled, got {value}")
    is_array = isinstance(value, Array | np.ndarray | np.generic)
    is_scalar = is_array and value.shape == () and not _is_key(value.dtype)
    return value.item() if is_scalar else value


def _is_key(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def check_function(name: str, value: Any) -> Any:
    """``value``, which can be called; of other libraries many take the name of one.

    Raises:
        ValueError: naming ``name`` and what came instead.
    """
    if not callable(value):
        raise ValueError(f"{name} must be a function, such as jax.nn.relu, got {value!r}")
    return value


def check_key(key: Any) -> Key:
    """``key``, as :func:`jax.random.key` or :func:`jax.random.PRNGKey` makes it, as a typed key.

    Raises:
        ValueError: it is no key, or several.
    """
    dtype = getattr(key, "dtype", None)
    if dtype is not None and _is_key(dtype) and key.shape == ():
        return key
    raw = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    if dtype == raw.dtype and key.shape == raw.shape:
        return jax.random.wrap_key_data(jnp.asarray(key))
    raise ValueError(f"key must be one key, such as jax.random.key(0), got {key!r}")


def check_params(params: Any, kind: Any, name: str = "params") -> Any:
    """Parameters of the NamedTuple ``kind``, in the byte order of this machine.

    Raises:
        ValueError: naming ``name``, the fields that they must have, and what came.
    """
    if not isinstance(params, kind):
        fields = ", ".join(kind._fields)
        raise ValueError(f"{name} must be {kind.__name__}({fields}), got {describe(params)}")
    return in_native_order(params)


def check_batch_shape(batch_shape: Any) -> tuple[int, ...]:
    """``batch_shape`` as a tuple.

    Raises:
        ValueError: it is no tuple, such as a number of rows.
    """
    if not isinstance(batch_shape, tuple | list):
        raise ValueError(f"batch_shape must be a tuple of integers, got {batch_shape!r}")
    return tuple(batch_shape)


def check_carry(name: str, carry: Any, expected: Any) -> Any:
    """``carry`` in the dtypes of ``expected``, a tree of shapes.

    Raises:
        ValueError: it has another structure, or a leaf another shape, or is complex where the
            carry is real.
    """
    if jax.tree.structure(carry) != jax.tree.structure(expected):
        raise ValueError(f"{name} must be {describe(expected)}, got {describe(carry)}")

    def check(path: Any, given: Any, leaf: jax.ShapeDtypeStruct) -> Array:
        place = name + jax.tree_util.keystr(path)
        try:
            given = jnp.asarray(given)
        except (TypeError, ValueError):
            raise ValueError(f"{place} must be an array, got {describe(given)}") from None
        if given.shape != leaf.shape:
            raise ValueError(f"{place} must have shape {leaf.shape}, got shape {given.shape}")
        if jnp.iscomplexobj(given) and not jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ValueError(f"{place} must be real, got dtype {given.dtype}")
        return given.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(check, carry, expected)


def describe(tree: Any) -> str:
    """What a tree is, as its reader would say it: ``LSTMCarry(h, c)``, ``a tuple of 2``."""
    if hasattr(tree, "_fields"):
        parts = [
            name if hasattr(part, "shape") else f"{name}={describe(part)}"
            for name, part in zip(tree._fields, tree, strict=True)
        ]
        return f"{type(tree).__name__}({', '.join(parts)})"
    if isinstance(tree, tuple | list):
        kind = f"a {type(tree).__name__} of {len(tree)}"
        if all(hasattr(part, "shape") for part in tree):
            return kind
        return f"{kind}: ({', '.join(map(describe, tree))})"
    if hasattr(tree, "shape"):
        return f"an array of shape {tuple(tree.shape)}"
    return repr(tree) if tree is None else f"{type(tree).__name__} {tree!r:.40}"


def missing_package(user: str, package: str, extra: str, more: str = "") -> ModuleNotFoundError:
    """The error for a package that is not installed, with what brings it.

    Args:
        user: what needs the package.
        package: its name on the index of packages.
        extra: the extra of ``pyproject.toml`` that has it.
        more: what else can be done.
    """
    return ModuleNotFoundError(
        f"{user} needs the package {package}: pip install {package}, or "
        f"pip install -e '.[{extra}]' in a checkout of rnnjax{more}"
    )
