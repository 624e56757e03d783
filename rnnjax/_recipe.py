"""How a cell, layer or model was made: what makes two of them equal, and how they are printed.

A cell is made of functions, and functions made by two calls of ``lstm(4)`` are never equal. So a
function marked with :func:`factory` notes on what it returns who made it, from which arguments:
its recipe. Things with equal recipes are equal, hash alike (they are one static argument of
``jax.jit``, and one program), print as the call that made them, and are pickled as that call.

What is made by hand, or changed by ``_replace``, has no recipe. It is equal to what has the very
same functions.
"""

import functools
import importlib
import inspect
import types
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Function = TypeVar("Function", bound=Callable[..., Any])


def factory(make: Function) -> Function:
    """``make``, a function that returns something :class:`Made`, with its calls noted as recipes.

    What has a recipe already, or is one of the arguments, is returned as it is.
    """
    signature = inspect.signature(make)

    @functools.wraps(make)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise _wrong_call(make.__name__, signature, kwargs, error) from None
        try:
            made = make(*args, **kwargs)
        except ValueError as error:
            if _takes_input_size(signature, args, error):
                raise ValueError(f"{error}: {_INPUT_SIZE}") from None
            raise
        if made._recipe is not None or any(made is a for a in (*args, *kwargs.values())):
            return made
        bound.apply_defaults()
        arguments = {name: _snapshot(value) for name, value in bound.arguments.items()}
        return made._with_recipe(Recipe(call, signature, arguments))

    return call  # pyright: ignore[reportReturnType]


# What has hidden units takes two sizes in other libraries, that of the inputs first.
_INPUT_SIZE = "the size of the inputs is given to init"


def _takes_input_size(signature: inspect.Signature, args: tuple, error: ValueError) -> bool:
    """Whether the second of two sizes was refused, as in ``gru(3, 8)``."""
    first, second, *_ = [*signature.parameters, "", ""]
    are_sizes = len(args) > 1 and all(type(a) is int and a > 0 for a in args[:2])
    return are_sizes and first == "hidden_size" and str(error).startswith(f"{second} must")


# What makes cells, and layers and models of them, has one of these arguments.
_OF_LAYERS = {"hidden_size", "cell", "forward", "layer", "layers", "encoder"}
# What an argument of a layer in PyTorch, Keras or Flax is here.
_COUNTERPARTS = {
    "batch_first": "inputs are [..., T, D], batch first",
    "bidirectional": "rnnjax.bidirectional(cell) is the layer of both directions",
    "dropout": "rnnjax.stack(..., dropout=rate) drops between layers, "
    "rnnjax.variational_dropout(cell, inputs=rate) before one",
    "go_backwards": "rnnjax.recurrent(cell, reverse=True) is the layer",
    "input_size": _INPUT_SIZE,
    "nonlinearity": "rnnjax.vanilla(hidden_size, jax.nn.relu) takes a function",
    "num_layers": "rnnjax.stack(layer, layer) puts layers on top of one another",
    "recurrent_dropout": "rnnjax.variational_dropout(cell, hidden=rate) drops hidden states",
    "return_sequences": "apply gives the outputs of all steps, and "
    "layer.last(ys, lengths) the last of them",
    "return_state": "apply gives the last carry, too",
    "stateful": "apply takes initial_carry and gives the last carry",
    "time_major": "inputs are [..., T, D]: jnp.swapaxes(xs, 0, 1) of those that are time-first",
    "units": "hidden_size is their number",
}


def _wrong_call(
    name: str, signature: inspect.Signature, kwargs: Mapping[str, Any], error: TypeError
) -> TypeError:
    """What Python says of a call, with the arguments that there are."""
    unknown = [given for given in kwargs if given not in signature.parameters]
    hint = _INPUT_SIZE if "hidden_size" in signature.parameters and not unknown else ""
    if unknown and not _OF_LAYERS.isdisjoint(signature.parameters):
        hint = _COUNTERPARTS.get(unknown[0], "")
    hint = f": {hint}" if hint else ""
    return TypeError(
        f"{name} must be called as {name}{names_of(signature)}, got a wrong call ({error}){hint}"
    )


def names_of(signature: inspect.Signature) -> inspect.Signature:
    """The names of arguments alone, for a message: without their types and defaults."""
    parameters = signature.parameters.values()
    names = [p.replace(annotation=p.empty, default=p.empty) for p in parameters]
    return inspect.Signature(names)


class Recipe:
    """A call of a factory: the function, and all its arguments by name, defaults included."""

    def __init__(
        self, make: Callable, signature: inspect.Signature, arguments: dict[str, Any]
    ) -> None:
        self.make = make
        self.signature = signature
        self.arguments = arguments
        self._key = (make, _comparable(arguments))
        self._hash = hash(self._key)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Recipe) and self._key == other._key)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        args, kwargs = self._given()
        names = [p.name for p in self._parameters(positional=True)]
        named = [*zip(names, args, strict=False), *kwargs.items()]
        rest = args[len(names) :]
        # Parts stand by position, as people write them: stack(lstm(...), gru(...), dropout=...).
        shown = [_shown(a) if isinstance(a, Made) else f"{n}={_shown(a)}" for n, a in named]
        return f"rnnjax.{self.make.__name__}({', '.join([*map(_shown, rest), *shown])})"

    def again(self, **changes: Any) -> Any:
        """What the factory makes with some arguments changed.

        Raises:
            TypeError: the factory has no argument of such a name.
        """
        unknown = sorted(set(changes) - set(self.arguments))
        if unknown:
            name, known = self.make.__name__, ", ".join(self.arguments)
            raise TypeError(f"arguments of {name} must be some of {known}, got {unknown[0]!r}")
        return _call(self.make, self.signature, self.arguments | changes)

    def reduced(self) -> tuple[Callable, tuple]:
        """The call, for pickle: arguments that are defaults are left out."""
        args, kwargs = self._given()
        return _made_again, (self.make, *jax.tree.map(_by_name, (args, kwargs), is_leaf=_is_leaf))

    def _parameters(self, positional: bool) -> list[inspect.Parameter]:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return [p for p in self.signature.parameters.values() if (p.kind in kinds) == positional]

    def _given(self) -> tuple[tuple, dict[str, Any]]:
        """The arguments that differ from their defaults, each by name where it can be."""
        bound = inspect.BoundArguments(self.signature, dict(self.arguments))  # pyright: ignore
        for p in self.signature.parameters.values():
            default = p.default is not p.empty and _comparable(p.default)
            if p.default is not p.empty and _comparable(self.arguments[p.name]) == default:
                del bound.arguments[p.name]
        return bound.args, bound.kwargs


# The recipe of what a function is the field ``step`` of; it is forgotten with the function.
_made_by: weakref.WeakKeyDictionary[Callable, Recipe] = weakref.WeakKeyDictionary()


def compared(function: Callable) -> Callable:
    """A function as a static argument of ``jax.jit``, equal to those that do the same.

    That are the steps of equal models, the same function again, partials of it with equal
    arguments, and objects that are compared by value, if they can be hashed. A method, or another
    object that is called, is equal to nothing: what it holds may have changed since.
    """
    key = _key_of(function)
    return function if key is function else _Compared(function, key)


class _Compared:
    """A function with the key that it is compared by."""

    def __init__(self, function: Callable, key: Any) -> None:
        self.__wrapped__ = function  # whose signature ``inspect`` finds there
        self._key = key

    def __call__(self, *args: Any) -> Any:
        return self.__wrapped__(*args)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Compared) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return repr(self.__wrapped__)


def _key_of(function: Any) -> Any:
    if isinstance(function, types.FunctionType):
        return _made_by.get(function, function)
    if isinstance(function, functools.partial):
        given = [(None, argument) for argument in function.args] + [*function.keywords.items()]
        keys = [(name, _key_of(a) if callable(a) else _comparable(a)) for name, a in given]
        return (functools.partial, _key_of(function.func), *keys)
    # ``__func__``: Equinox has methods of its own.
    if hasattr(function, "__self__") or hasattr(function, "__func__"):
        return object()
    kind = type(function)
    # A class, and what jax.jit makes of a function: none of them changes.
    if isinstance(function, type) or hasattr(function, "__wrapped__"):
        return function
    by_value = kind.__eq__ is not object.__eq__ and is_hashable(function)
    return function if by_value else object()


def is_hashable(value: Any) -> bool:
    """Whether a value may be a key; a list may not, nor a tuple with one in it."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


class Made:
    """Equality, hash, text and pickling by the recipe, for a tuple of functions."""

    _recipe: Recipe | None = None
    # Names of other libraries, which are asked for first, and what to do here.
    _hints: ClassVar[Mapping[str, str]] = {
        "fit": "rnnjax.make_train_step makes a training step",
        "parameters": "init gives the parameters, and they are kept outside",
        "params": "init gives the parameters, and they are kept outside",
    }

    def __init_subclass__(cls) -> None:
        # What Python names where a field is missing or unknown, in place of the class of fields.
        cls.__new__.__qualname__ = cls.__name__

    def _with_recipe(self, recipe: Recipe) -> Self:
        """The same functions with a recipe."""
        made = type(self)(*self)  # pyright: ignore
        made.__dict__["_recipe"] = recipe
        if "step" in self._fields:  # pyright: ignore[reportAttributeAccessIssue]
            _made_by[made.step] = recipe  # pyright: ignore[reportAttributeAccessIssue]
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a {type(self).__name__} cannot be changed; use _replace({name}=...)")

    if not TYPE_CHECKING:  # a type checker would take every name for one that is there

        def __getattr__(self, name: str) -> Any:
            """Called for names that are not there: always an error, which says what is."""
            hint = f" ({self._hints[name]})" if name in self._hints else ""
            known = ", ".join(n for n, value in self._asdict().items() if value is not None)
            text = f"{type(self).__name__} has no {name!r}{hint}, only {known}"
            raise AttributeError(text, name=name, obj=self)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(other) is not type(self) or (self._recipe is None) != (other._recipe is None):
            return False
        if self._recipe is None:
            return tuple.__eq__(self, other)  # pyright: ignore
        return self._recipe == other._recipe

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return tuple.__hash__(self) if self._recipe is None else hash(self._recipe)  # pyright: ignore

    def __repr__(self) -> str:
        if self._recipe is not None:
            return repr(self._recipe)
        fields = self._asdict().items()  # pyright: ignore
        shown = ", ".join(f"{n}={_shown(v)}" for n, v in fields if v is not None)
        return f"rnnjax.{type(self).__name__}({shown})"

    def __reduce__(self) -> tuple:
        return (type(self), tuple(self)) if self._recipe is None else self._recipe.reduced()  # pyright: ignore

    # Nothing in it can change, so that a copy may be the thing itself.
    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict) -> Self:
        return self


class _ArrayKey:
    """An array that is compared by its values; they are looked at only where shapes agree."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _ArrayKey):
            return False
        one, two = self.array, other.array
        same_kind = (one.shape, one.dtype) == (two.shape, two.dtype)
        return one is two or (same_kind and np.array_equal(np.asarray(one), np.asarray(two)))

    def __hash__(self) -> int:
        return hash((self.array.shape, str(self.array.dtype)))


class _ById:
    """What cannot be hashed: equal to itself alone."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _snapshot(value: Any) -> Any:
    """``value`` as it is now: a copy of what its owner may change later, and of a scalar of NumPy
    or JAX the number it is."""
    if isinstance(value, Made):
        return value
    if isinstance(value, np.ndarray | np.generic | jax.Array) and _is_number(value):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return {key: _snapshot(part) for key, part in value.items()}
    return list(map(_snapshot, value)) if type(value) is list else value


def _is_number(array: Any) -> bool:
    is_number = jnp.issubdtype(array.dtype, np.number) or array.dtype == np.bool_
    return array.shape == () and not isinstance(array, Tracer) and bool(is_number)


def _comparable(value: Any) -> Any:
    """Something that can be hashed, and is equal for arguments that mean the same."""
    if isinstance(value, Mapping):
        return frozenset((key, _comparable(part)) for key, part in value.items())
    if isinstance(value, tuple | list) and not isinstance(value, Made):
        return tuple(map(_comparable, value))
    if isinstance(value, np.ndarray | jax.Array) and not isinstance(value, Tracer) and value.ndim:
        return _ArrayKey(value)
    if isinstance(value, np.ndarray | jax.Array) and not isinstance(value, Tracer):
        return value.item()
    return value if is_hashable(value) else _ById(value)


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray | jax.Array):
        return f"{value.dtype}{list(value.shape)}"
    if callable(value) and not isinstance(value, Made) and hasattr(value, "__name__"):
        return value.__name__
    text = repr(value)
    is_long = isinstance(value, list | tuple | dict) and len(text) > 60
    return f"{text[:57]}..." if is_long and not isinstance(value, Made) else text


class _Reference:
    """A function that pickle does not find by itself, as the place where it stands."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def found(self) -> Any:
        return getattr(importlib.import_module(self.module), self.name, None)


def _by_name(value: Any) -> Any:
    """``value``, or its place: jax.numpy.tanh and its like cannot be pickled as they are."""
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if not callable(value) or not module or not name:
        return value
    for place in (module, "jax.nn", "jax.numpy"):
        reference = _Reference(place, name)
        if reference.found() is value:
            return reference
    return value


def _is_leaf(value: Any) -> bool:
    return isinstance(value, Made)


def _made_again(make: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    def resolve(value: Any) -> Any:
        return value.found() if isinstance(value, _Reference) else value

    args, kwargs = jax.tree.map(resolve, (args, kwargs), is_leaf=_is_leaf)
    return make(*args, **kwargs)


def _call(make: Callable, signature: inspect.Signature, arguments: dict[str, Any]) -> Any:
    bound = inspect.BoundArguments(signature, dict(arguments))  # pyright: ignore
    return make(*bound.args, **bound.kwargs)
