"""Arguments that do not fit, as errors that name them, what was expected and what came."""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from rnnjax._native import in_native_order
from rnnjax._recipe import is_hashable as is_hashable  # for all rooms
from rnnjax._recipe import names_of
from rnnjax.base import Cell, Key


def check_one_array(name: str, xs: Any) -> None:
    """Refuse what is no array, such as several of them.

    Raises:
        ValueError: naming ``name`` and what came.
    """
    if not hasattr(xs, "dtype"):
        raise ValueError(f"{name} must be one array, got {describe(xs)}")


def check_shape(name: str, array: Any, shape: tuple[int, ...]) -> None:
    """Refuse an array of another shape.

    Raises:
        ValueError: naming ``name`` and both shapes.
    """
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got shape {array.shape}")


def check_floating(name: str, xs: Any) -> None:
    """Refuse inputs that are not of floating dtype.

    Raises:
        ValueError: naming ``name``, the dtype that came, and the usual remedy.
    """
    check_one_array(name, xs)
    if jnp.issubdtype(xs.dtype, jnp.complexfloating):
        raise ValueError(
            f"{name} must be of floating dtype, got dtype {xs.dtype}: jnp.concatenate puts the "
            "real and imaginary parts side by side"
        )
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        raise ValueError(
            f"{name} must be of floating dtype, got dtype {xs.dtype}: embed or one-hot token ids, "
            f"and make numbers floats with {name}.astype(float)"
        )


def check_size(name: str, value: Any) -> int:
    """``value``, a positive integer of Python, NumPy or JAX, as an ``int``.

    Raises:
        ValueError: naming ``name`` and what came instead.
    """
    number = _number(name, value)
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"{name} must be a positive integer, got {shown(value)}")
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
        holds: whether a number is that, and so is not NaN, of which no comparison holds.

    Raises:
        ValueError: naming ``name``, what was ``expected``, and what came instead.
    """
    number = _number(name, value)
    if not isinstance(number, int | float) or not holds(number):
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    return float(number)


def check_scalar(
    name: str, value: Any, expected: str, holds: Callable[[float], bool]
) -> float | Array:
    """As :func:`check_number`; of a traced number, which has no value yet, only the shape counts.

    Raises:
        ValueError: naming ``name``, what was ``expected``, and what came instead.
    """
    if not isinstance(value, Tracer):
        return check_number(name, value, expected, holds)
    if value.shape:
        raise ValueError(f"{name} must be one number, got shape {value.shape}")
    return value


def check_rate(name: str, rate: Any) -> float:
    """``rate``, a number in [0, 1), as a ``float``.

    Raises:
        ValueError: naming ``name`` and what came instead.
    """
    return check_number(name, rate, "a rate in [0, 1)", lambda p: 0 <= p < 1)


def check_epsilon(epsilon: Any) -> float:
    """``epsilon``, which is added to a mean of squares below a root, as a ``float``.

    Raises:
        ValueError: naming ``epsilon`` and what came instead.
    """
    # The derivative of 1 / sqrt(0 + epsilon) is about epsilon^-1.5. Float32 ends at 3e38, and
    # infinity times the 0 that it belongs to would be NaN.
    expected = "a number in [1e-25, 1e38]"
    return check_number("epsilon", epsilon, expected, lambda e: 1e-25 <= e <= 1e38)


def is_unicode(text: str) -> bool:
    """Whether a file in UTF-8 can hold the text, which half of a surrogate pair cannot be in."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
    # Not by its attributes: the Rngs of Flax have any, each of them a stream of keys.
    if isinstance(key, Array) and _is_key(key.dtype) and key.shape == ():
        return key
    if isinstance(key, Array | np.ndarray):
        raw = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
        if key.dtype == raw.dtype and key.shape == raw.shape:
            return jax.random.wrap_key_data(jnp.asarray(key))
    given, kind = shown(key), type(key).__name__
    if kind in ("Rngs", "RngStream"):
        given = f"{kind} of Flax: a call of it, rngs(), gives one"
    raise ValueError(f"key must be one key, such as jax.random.key(0), got {given}")


def call_error(function: Any, *names: str, keywords: Iterable[str] = ()) -> TypeError | None:
    """What Python would say of a call with arguments of these names, by place and by keyword; None
    if nothing."""
    try:
        inspect.signature(function).bind(*names, **dict.fromkeys(keywords))
    except TypeError as error:
        return error
    except ValueError:  # of a function that is not written in Python
        return None
    return None


def check_takes(name: str, function: Any, *names: str) -> None:
    """Refuse what is no function, or none of so many arguments.

    Raises:
        ValueError: naming the arguments that it is given, and those that it has.
    """
    *first, last = names
    expected = f"{', '.join(first)} and {last}" if first else last
    if not callable(function):
        kind = type(function).__name__
        raise ValueError(f"{name} must be a function of {expected}, got {kind}")
    if call_error(function, *names) is not None:
        names_given = names_of(inspect.signature(function))
        raise ValueError(f"{name} must be a function of {expected}, got {names_given}")


def check_cell(cell: Any) -> Cell:
    """``cell``, which is one.

    Raises:
        ValueError: it is something else, such as the function that makes one.
    """
    if not isinstance(cell, Cell):
        raise ValueError(f"cell must be a rnnjax.Cell, got {kind_of_part(cell)}")
    return cell


def kind_of_part(part: Any) -> str:
    """What came in place of a cell or a layer, with what was probably meant."""
    kind = type(part).__name__
    if isinstance(part, list | tuple) and not hasattr(part, "_fields"):
        return f"{kind}: rnnjax.stack(*layers) makes one layer of several"
    if inspect.isfunction(part):
        return f"{kind}: call it first, as in rnnjax.lstm(16), if {part.__name__} makes a cell"
    return kind


def check_params(params: Any, kind: Any, name: str = "params") -> Any:
    """Parameters of the NamedTuple ``kind``, in the byte order of this machine.

    Raises:
        ValueError: naming ``name``, the fields that they must have, and what came.
    """
    if not isinstance(params, kind):
        fields = ", ".join(kind._fields)
        raise ValueError(f"{name} must be {kind.__name__}({fields}), got {describe(params)}")
    return in_native_order(params)


def check_pair(name: str, expected: str, pair: Any) -> tuple[Any, Any]:
    """The two parts of ``pair``.

    Raises:
        ValueError: it has not two; naming ``name``, what was ``expected``, and what came.
    """
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f"{name} must be {expected}, got {describe(pair)}")
    return pair[0], pair[1]


def check_batch_shape(batch_shape: Any) -> tuple[int, ...]:
    """``batch_shape`` as a tuple.

    Raises:
        ValueError: it is no tuple, such as a number of rows.
    """
    if not isinstance(batch_shape, tuple | list):
        raise ValueError(f"batch_shape must be a tuple of integers, got {shown(batch_shape)}")
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
        except TypeError:
            raise ValueError(f"{place} must be an array, got {describe(given)}") from None
        check_shape(place, given, leaf.shape)
        if jnp.iscomplexobj(given) and not jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ValueError(f"{place} must be real, got dtype {given.dtype}")
        return given.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(check, carry, expected)


def check_there(**trees: Any) -> None:
    """Refuse an array that was given away (donated), of which JAX would tell the shape alone.

    Raises:
        ValueError: naming the array in that of ``trees``.
    """
    for name, tree in trees.items():
        path = given_away(tree)
        if path is not None:
            raise ValueError(
                f"{name}{path} must still be there, got an array that was given away (donated): go "
                "on with what was returned in its place"
            )


@contextlib.contextmanager
def telling_given_away(**trees: Any) -> Iterator[None]:
    """What JAX says of an array that was given away, as the error of :func:`check_there`."""
    try:
        yield
    except RuntimeError:
        check_there(**trees)
        raise


def given_away(tree: Any) -> str | None:
    """The path of the first array of a tree that was given away (donated); None without one."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        if isinstance(leaf, Array) and not isinstance(leaf, Tracer) and leaf.is_deleted():
            return jax.tree_util.keystr(path)
    return None


def describe(tree: Any) -> str:
    """What a tree is, as its reader would say it: ``LSTMCarry(h, c)``, ``a tuple of 2``."""
    # Not by its class, which stands above this file.
    if {"params", "opt_state"} <= set(getattr(tree, "_fields", ())):
        return "a TrainState: give state.params"
    if hasattr(tree, "_fields"):
        parts = [
            name if hasattr(part, "shape") else f"{name}={describe(part)}"
            for name, part in zip(tree._fields, tree, strict=True)
        ]
        return f"{type(tree).__name__}({', '.join(parts)})"
    if isinstance(tree, dict):
        return f"a dict of {', '.join(map(str, tree)) or 'nothing'}"
    if isinstance(tree, tuple | list):
        kind = f"a {type(tree).__name__} of {len(tree)}"
        if len(tree) > 9 or all(hasattr(part, "shape") for part in tree):
            return kind
        return f"{kind}: ({', '.join(map(describe, tree))})"
    if hasattr(tree, "shape"):
        return f"an array of shape {tuple(tree.shape)}"
    return repr(tree) if tree is None else f"{type(tree).__name__} {tree!r:.40}"


def shown(value: Any) -> str:
    """What came, in one line: of arrays the shapes, as their numbers may fill pages."""
    has_arrays = any(getattr(leaf, "shape", ()) for leaf in jax.tree.leaves(value))
    return describe(value) if has_arrays else repr(value)


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
        f"pip install '.[{extra}]' in a checkout of rnnjax{more}"
    )
