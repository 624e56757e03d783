"""Steps that compile when they are called and report it, and are plain functions inside JAX."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from rnnjax import _values
from rnnjax._checks import given_away
from rnnjax._native import jit

State = TypeVar("State")
Result = TypeVar("Result")

_COMPILED = "/jax/core/compile/backend_compile_duration"  # the event that ends each compilation
_watched = threading.local()  # JAX reports an event in the thread that compiles


class Compilation(NamedTuple):
    """That a step was compiled, and for what.

    Attributes:
        name: "train step", "truncated step" or "eval step".
        shapes: of the batch, such as "int32[64,32]", by path.
        seconds: of tracing, lowering and compiling.
    """

    name: str
    shapes: dict[str, str]
    seconds: float


class CompiledStep(Generic[State, Result]):
    """A pure function of (state, batch): compiled when called, a plain function inside JAX.

    Called with arrays, it behaves as under ``jax.jit``: one program for each kind of arguments,
    and one more where their structure, shapes, dtypes, sharding or devices are others. Each
    compilation is reported, apart from the work. Called with traced values, that is inside
    ``jax.jit``, ``lax.scan``, ``jax.vmap`` or ``jax.grad``, it is the function itself: nothing is
    given away (donation), and a program that surrounds it reports nothing here.

    It cannot be pickled, as compiled programs and most loss functions and optimizers cannot: a
    process that needs one makes it anew. States are pickled as any tree of arrays.

    Args:
        name: for reports.
        function: a pure function of (state, batch), or of more arguments.
        donate_state: whether a call gives the memory of the state to the result: the state's
            arrays are deleted, and the new state costs no memory of its own.
        on_compile: called after each compilation with what was compiled.
        compiler_options: options of XLA by name.

    Attributes:
        function: the function, not compiled.
        compilations: what was compiled so far, in order.

    Raises:
        ValueError: when called, if something in the batch is no array and no number, or an integer
            of NumPy does not fit the 32 bits that JAX would cut it to, or an array of the state was
            given away in a call before, or is in the batch too, or twice in the state; names it.

    Example:
        >>> step = CompiledStep("add", lambda state, batch: state + batch, donate_state=False)
        >>> [int(step(1, jnp.array(n))) for n in range(3)], len(step.compilations)
        ([1, 2, 3], 1)
        >>> jax.vmap(step)(jnp.arange(2), jnp.arange(2)).tolist()
        [0, 2]
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Result],
        *,
        donate_state: bool,
        on_compile: Callable[[Compilation], None] | None = None,
        compiler_options: dict[str, Any] | None = None,
    ) -> None:
        self.compilations: list[Compilation] = []
        self.function = function
        self._name = name
        self._on_compile = on_compile
        self._donates = donate_state

        def program(*args: Any) -> Result:
            return function(*args)

        # The name of the program in profiles, and by which its compilations are recognised.
        self.__name__ = program.__name__ = name.replace(" ", "_")
        self._jitted = jit(
            program,
            donate_argnums=0 if donate_state else (),
            compiler_options=compiler_options,
        )
        # Under vmap a donated state would be deleted though the caller still holds it, and a
        # program within a program takes no compiler options.
        self._nested = jit(program)
        _listen()

    def __call__(self, state: State, *rest: Any) -> Result:
        """Runs the program for these arguments, compiling it first if there is none yet."""
        if _values.is_checking():  # part of the program that is being compiled
            return self.function(state, *rest)
        leaves = jax.tree.leaves(rest)
        if not all(map(_is_taken, leaves)):
            check_batch(rest[0])
        held = jax.tree.leaves(state)
        traced = _values.is_transformed() or any(isinstance(a, Tracer) for a in (*leaves, *held))
        if self._donates and not traced and _is_again(held, leaves):
            _check_shared(state, *rest)
        began = time.perf_counter()
        with _watch(self.__name__) as ends, explaining_deleted(state, *rest):
            result = (self._nested if traced else self._jitted)(state, *rest)
        # Without jit single operations compile, under names that a step may have.
        disabled = jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]
        if ends and not disabled:
            self._report(Compilation(self._name, _shapes(rest[0]), ends[-1] - began))
        return result

    def __reduce__(self) -> Any:
        raise TypeError(
            f"a compiled step ({self._name}) cannot be pickled: make it anew in the process that "
            "needs it, from the loss function and the optimizer"
        )

    def _report(self, made: Compilation) -> None:
        self.compilations.append(made)
        if self._on_compile is not None:
            self._on_compile(made)


@contextmanager
def explaining_deleted(state: Any, batch: Any = (), carry: Any = ()) -> Iterator[None]:
    """Says what JAX says of a buffer: of a state that an earlier step has used up, and of an array
    that a step cannot give away, as it is in the call a second time."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        path = given_away(state)
        if path is not None:
            raise ValueError(
                f"state must be the one that the step before returned, got one whose array {path} "
                "was given to a step already: go on with the new state, or keep this one alive "
                "with donate_state=False"
            ) from error
        if "donate" in str(error):
            _check_shared(state, batch, carry)
        raise


def _is_again(held: list[Any], given: list[Any]) -> bool:
    """Whether something of the state is in the call a second time.

    To be known before the call: with several devices, JAX 0.10.2 ends the process there. The same
    memory as another object, as ``jax.device_put`` may give it, is left to JAX to find.
    """
    ids = set(map(id, held))
    return len(ids) < len(held) or not ids.isdisjoint(map(id, given))


def _check_shared(state: Any, batch: Any = (), carry: Any = ()) -> None:
    """Refuse an array of the state that stands in two places: it cannot be given away.

    Raises:
        ValueError: naming both.
    """
    places: dict[int, str] = {}
    for name, tree in {"state": state, "batch": batch, "carry": carry}.items():
        for path, leaf in jax.tree.leaves_with_path(tree):
            place = name + jax.tree_util.keystr(path)
            for memory in _memory_of(leaf):
                first = places.get(memory, place)
                if first != place:
                    raise ValueError(
                        f"{place} must be an array of its own, got that of {first}, which the step "
                        "gives away: jnp.copy makes one, and donate_state=False keeps the state"
                    )
                if name == "state":
                    places[memory] = place


def _memory_of(leaf: Any) -> list[int]:
    if not isinstance(leaf, Array) or not leaf.size or leaf.is_deleted():
        return []
    return [shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards]


@functools.cache
def _listen() -> None:
    """Hear of compilations from JAX, which knows best when a call needs one: once a process."""
    jax.monitoring.register_event_duration_secs_listener(_on_event)


def _on_event(event: str, duration_secs: float, **details: Any) -> None:
    del duration_secs  # of the last stage alone
    for name, ends in getattr(_watched, "calls", ())[-1:]:
        if event == _COMPILED and details.get("fun_name") == f"jit({name})":
            ends.append(time.perf_counter())


@contextmanager
def _watch(name: str) -> Iterator[list[float]]:
    """The times at which the program of this name was compiled in the block."""
    if not hasattr(_watched, "calls"):
        _watched.calls = []
    ends: list[float] = []
    _watched.calls.append((name, ends))
    try:
        yield ends
    finally:
        _watched.calls.pop()


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind in "biufcV"  # V: bfloat16 and its like
    return isinstance(leaf, Array)


def _is_taken(leaf: Any) -> bool:
    """Whether JAX takes a leaf as it is, whatever its numbers are."""
    is_wide = isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.itemsize > 4
    return _is_array(leaf) and not (is_wide and leaf.dtype.kind in "iu")


def check_batch(batch: Any) -> None:
    """Refuse what JAX would refuse without a name, lists of numbers, which are no arrays, and
    integers that it would cut to 32 bits.

    Raises:
        ValueError: naming the path.
    """
    for path, leaf in jax.tree.leaves_with_path(batch, is_leaf=_is_list_of_numbers):
        name = f"batch{jax.tree_util.keystr(path)}"
        if isinstance(leaf, list):
            raise ValueError(f"{name} must be an array, got a list: jnp.asarray makes one of it")
        if not _is_array(leaf) and not isinstance(leaf, bool | int | float | complex):
            given = repr(leaf) if isinstance(leaf, str | bytes) else _described(leaf)
            raise ValueError(f"{name} must be an array of numbers, got {given}")
        _values.check_width(name, leaf)


def _is_list_of_numbers(node: Any) -> bool:
    plain = bool | int | float | complex | str | bytes
    return isinstance(node, list) and any(isinstance(leaf, plain) for leaf in jax.tree.leaves(node))


def _described(leaf: Any) -> str:
    if isinstance(leaf, Array | np.ndarray | np.generic):
        return f"an array of dtype {leaf.dtype}"
    kind = type(leaf)
    if hasattr(leaf, "dtype"):  # of another library
        return f"{kind.__module__}.{kind.__name__}: numpy.asarray makes one of it"
    return kind.__name__


def _shapes(batch: Any) -> dict[str, str]:
    shapes = {}
    for path, leaf in jax.tree.leaves_with_path(batch):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "batch"
        shapes[name] = jax.typeof(jnp.asarray(leaf) if np.isscalar(leaf) else leaf).str_short()
    return shapes
