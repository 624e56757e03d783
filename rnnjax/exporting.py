"""A trained model as one compiled program that needs JAX alone to run."""

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from rnnjax._checks import check_size, check_takes, missing_package
from rnnjax._native import in_native_order
from rnnjax.base import Cell

PLATFORMS = ("cpu", "cuda", "tpu")


def export_program(
    apply: Callable[..., Any],
    params: Any,
    *,
    input_size: int | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> bytes:
    """A model, or a layer, with its parameters as the bytes of a ``jax.export`` artefact.

    Batch and time are symbolic: one artefact runs for every B >= 1 and T >= 1. It is called with
    plain arrays and gives plain arrays, so the process that loads it imports jax and not this
    package. The parameters are constants of the program.

    ``jax.export.deserialize`` makes a program that is then run: load artefacts from sources you
    trust only. JAX promises that versions up to six months newer than the one that wrote an
    artefact load it, so keep the weights themselves (``rnnjax.weights.save_weights``) as well.
    Both processes need the package ``flatbuffers``.

    Taken are all cells and all layers but those that need T known when they are compiled:
    ``implementation="associative"`` or ``"chunked"``, ``scan_unroll`` above 1, ``remat`` other
    than None and "never", ``segment_ids``, and ``resets`` of a reversed direction. Build the layer
    without these options to export it: its parameters and its values are the same.

    Args:
        apply: ``(params, inputs, lengths) -> outputs``: the ``apply`` of a model or of a layer.
        params: its parameters.
        input_size: None for inputs of token ids int32 [B, T]; D for vectors float32 [B, T, D].
        platforms: what the program is compiled for, of "cpu", "cuda", "rocm" and "tpu".

    Returns:
        The bytes to write to a file. The program takes ``(inputs, lengths)``, lengths int32 [B].
        One array comes out as that array, a tree of them as a dict of names (the path to each,
        joined by dots) and arrays. Neither token ids nor lengths can be checked there: they are
        clamped, to [0, V) and to [0, T].

    Raises:
        ValueError: ``platforms`` is empty or names something else, ``apply`` needs T known when it
            is compiled, or two of the outputs would have the same name.

    Example:
        >>> import jax, jax.export, jax.numpy as jnp, rnnjax
        >>> model = rnnjax.classifier(rnnjax.embedding(9, 4), rnnjax.gru(3), num_classes=2)
        >>> data = export_program(model.apply, model.init(jax.random.key(0)))
        >>> program = jax.export.deserialize(data)
        >>> program.call(jnp.array([[5, 7, 1], [3, 0, 0]]), jnp.array([3, 1])).shape
        (2, 2)

    References:
        "Exporting and serializing staged-out computations", the documentation of JAX.
    """
    _require_flatbuffers("export_program")
    from jax import export

    _check_callable("apply", apply, "params", "inputs", "lengths")
    inputs = _shape_of_inputs(export.symbolic_shape("batch, time"), input_size)
    batch = inputs.shape[0]

    names, constants = _check_platforms(platforms), _constants(params)

    def program(inputs: Array, lengths: Array) -> Any:
        return _plain(apply(constants, inputs, lengths))

    with _steps_unknown("apply"), _telling_of_ids("apply", input_size):
        exported = export.export(jax.jit(program), platforms=names)(inputs, _ids(batch))
    return bytes(exported.serialize())


def export_step(
    step: Callable[..., tuple[Any, Any]],
    initial_carry: Callable[..., Any],
    params: Any,
    *,
    input_size: int | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> bytes:
    """One step of a model or layer, with its parameters, as a ``jax.export`` artefact.

    For what is read or written one by one: a language model that writes, an agent, a sensor. The
    batch is symbolic: one artefact runs for every B >= 1. It is called with plain arrays and gives
    plain arrays, so the process that loads it imports jax and not this package. What
    :func:`export_program` says of trust and of versions holds here, too.

    The program takes ``(carry, inputs, resets)``: token ids int32 [B], or vectors float32 [B, D],
    and bool [B], True in rows that start anew: there the carry is not read. So the first carry may
    be zeros, of the shapes in ``program.in_avals``. It gives ``(carry, outputs)``. A carry of one
    array is that array; one of several is a dict of names (the path to each, joined by dots) and
    arrays.

    Args:
        step: ``(params, carry, inputs) -> (carry, outputs)``: the ``step`` of a language model, a
            layer or a cell.
        initial_carry: the ``initial_carry`` of the same: ``(params, batch_shape) -> carry``, or of
            a cell ``(params) -> carry``.
        params: its parameters.
        input_size: None for token ids, D for vectors.
        platforms: as for ``export_program``.

    Raises:
        ValueError: ``platforms`` is empty or names something else, or another argument does not
            fit.

    Example:
        >>> import jax, jax.export, jax.numpy as jnp, rnnjax
        >>> model = rnnjax.language_model(rnnjax.embedding(9, 4), rnnjax.lstm(3))
        >>> data = export_step(model.step, model.initial_carry, model.init(jax.random.key(0)))
        >>> program = jax.export.deserialize(data)
        >>> carry = {"h": jnp.zeros((2, 3)), "c": jnp.zeros((2, 3))}
        >>> carry, logits = program.call(carry, jnp.array([5, 7]), jnp.array([True, True]))
        >>> logits.shape
        (2, 9)
    """
    _require_flatbuffers("export_step")
    from jax import export

    of_a_cell = isinstance(getattr(step, "__self__", None), Cell)
    _check_callable("step", step, "params", "carry", "inputs")
    arguments = ("params",) if of_a_cell else ("params", "batch_shape")
    _check_callable("initial_carry", initial_carry, *arguments)
    inputs = _shape_of_inputs(export.symbolic_shape("batch"), input_size)
    (batch, *_) = inputs.shape
    names, constants = _check_platforms(platforms), _constants(params)

    def start(rows: Any) -> Any:
        if not of_a_cell:
            return initial_carry(constants, (rows,))
        one = initial_carry(constants)  # a cell knows one sequence alone
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (rows, *a.shape)), one)

    shapes = jax.eval_shape(functools.partial(start, batch))
    plain = _plain(shapes)

    def begin(resets: Array, new: Array, old: Array) -> Array:
        return jnp.where(resets.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    def program(carry: Any, inputs: Array, resets: Array) -> tuple[Any, Any]:
        held = _shaped(carry, plain, shapes)
        begun = jax.tree.map(functools.partial(begin, resets), start(inputs.shape[0]), held)
        new, outputs = step(constants, begun, inputs)
        return _plain(new), _plain(outputs)

    make = export.export(jax.jit(program), platforms=names)
    with _telling_of_ids("step", input_size):
        exported = make(plain, inputs, jax.ShapeDtypeStruct((batch,), bool))
    return bytes(exported.serialize())


def export_writer(
    encode: Callable[..., tuple[Any, Any]],
    step: Callable[..., tuple[Any, Any, Any]],
    params: Any,
    *,
    source: jax.ShapeDtypeStruct | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> tuple[bytes, bytes]:
    """A model that reads and then writes, with its parameters, as two ``jax.export`` artefacts.

    For translators and captioners. The batch is symbolic, and so is the length of a source of
    tokens. Both programs take and give plain arrays, so the process that loads them imports jax and
    not this package. What :func:`export_program` says of trust and of versions holds here, too.

    The first program takes ``(source, lengths)``, token ids int32 [B, S] and int32 [B]; or where
    ``source`` is given ``(source,)``, [B, *shape]. It gives ``(carry, memory)``. The second takes
    ``(carry, memory, token)``, int32 [B], and gives the next carry and a dict of "logits" [B, V]
    and, with attention, "weights" [B, S]. The first token is the model's start token. A carry of
    one array is that array; one of several, and a memory, are dicts of names (the path to each,
    joined by dots) and arrays.

    Args:
        encode: ``(params, source, lengths) -> (carry, memory)``: the ``encode`` of a
            ``sequence_to_sequence``. Where ``source`` is given, ``(params, source)``.
        step: ``(params, carry, token, memory) -> (carry, logits, weights)``, its ``step``.
        params: its parameters.
        source: shape and dtype of one source where sources are no token ids, such as a picture.
        platforms: as for ``export_program``.

    Returns:
        The bytes of both programs.

    Raises:
        ValueError: ``platforms`` is empty or names something else, another argument does not fit,
            or ``encode`` needs the length of a source known when it is compiled.

    Example:
        >>> import jax, jax.export, jax.numpy as jnp, rnnjax
        >>> model = rnnjax.sequence_to_sequence(
        ...     rnnjax.embedding(9, 4), rnnjax.gru(3), rnnjax.embedding(7, 4), rnnjax.lstm(3),
        ...     start=2)
        >>> made = export_writer(model.encode, model.step, model.init(jax.random.key(0)))
        >>> encode, step = (jax.export.deserialize(data) for data in made)
        >>> carry, memory = encode.call(jnp.array([[5, 7, 1], [3, 0, 0]]), jnp.array([3, 1]))
        >>> carry, out = step.call(carry, memory, jnp.array([2, 2]))
        >>> sorted(carry), list(out), out["logits"].shape
        (['c', 'h'], ['logits'], (2, 7))
    """
    _require_flatbuffers("export_writer")
    from jax import export

    read = ("source", "lengths") if source is None else ("source",)
    _check_callable("encode", encode, "params", *read, owner="a model")
    _check_callable("step", step, "params", "carry", "token", "memory", owner="a model")
    names, constants = _check_platforms(platforms), _constants(params)
    batch, length = export.symbolic_shape("batch, length")
    given = (jax.ShapeDtypeStruct((batch, length), jnp.int32), _ids(batch))
    if source is not None:
        given = (_of_batch(batch, source),)

    def reading(*given: Array) -> tuple[Any, Any]:
        carry, memory = encode(constants, *given)
        return _plain(carry), _plain(memory)

    with _steps_unknown("encode"):
        shapes = jax.eval_shape(lambda *a: encode(constants, *a), *given)
        encoded = export.export(jax.jit(reading), platforms=names)(*given)
    plain = tuple(map(_plain, shapes))

    def writing(carry: Any, memory: Any, token: Array) -> tuple[Any, dict[str, Array]]:
        held = [_shaped(*each) for each in zip((carry, memory), plain, shapes, strict=True)]
        new, logits, weights = step(constants, held[0], token, held[1])
        return _plain(new), {"logits": logits} | ({} if weights is None else {"weights": weights})

    stepped = export.export(jax.jit(writing), platforms=names)(*plain, _ids(batch))
    return bytes(encoded.serialize()), bytes(stepped.serialize())


def _require_flatbuffers(user: str) -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise missing_package(user, "flatbuffers", "export")


@contextlib.contextmanager
def _steps_unknown(name: str) -> Iterator[None]:
    """Says what to leave out where ``name`` cannot be compiled for any number of steps."""
    try:
        yield
    except (NotImplementedError, jax.errors.InconclusiveDimensionOperation) as error:
        raise ValueError(
            f"{name} must run for a T that is not known when it is compiled, got "
            f"{str(error).splitlines()[0]}: leave out segment_ids, and resets of a reversed "
            "direction"
        ) from error


def _constants(params: Any) -> Any:
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, Tracer | jax.ShapeDtypeStruct):
            raise ValueError(
                f"params must be arrays whose values are known, got {jax.typeof(leaf)}: export "
                "them outside of jax.jit and other transformations"
            )
    return jax.tree.map(jnp.asarray, in_native_order(params))


def _of_batch(batch: Any, source: Any) -> jax.ShapeDtypeStruct:
    if not hasattr(source, "shape") or not hasattr(source, "dtype"):
        raise ValueError(f"source must be a jax.ShapeDtypeStruct or None, got {source!r:.60}")
    return jax.ShapeDtypeStruct((batch, *source.shape), source.dtype)


def _ids(batch: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch,), jnp.int32)


def _shaped(given: Any, plain: Any, shapes: Any) -> Any:
    """The tree like ``shapes`` of which ``given`` has the arrays, as :func:`_plain` made them."""
    # ``jax.tree`` sorts a dict by name; ``plain`` has the order of the tree's own leaves.
    leaves = [given[name] for name in plain] if isinstance(plain, dict) else [given]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _check_callable(name: str, value: Any, *arguments: str, owner: str = "a layer") -> None:
    if not callable(value):
        raise ValueError(
            f"{name} must be a function, such as the {name} of {owner}, got {type(value).__name__}"
        )
    check_takes(name, value, *arguments)


def _shape_of_inputs(shape: Sequence[Any], input_size: Any) -> jax.ShapeDtypeStruct:
    if input_size is None:
        return jax.ShapeDtypeStruct(tuple(shape), jnp.int32)
    return jax.ShapeDtypeStruct((*shape, check_size("input_size", input_size)), jnp.float32)


@contextlib.contextmanager
def _telling_of_ids(name: str, input_size: Any) -> Iterator[None]:
    """Where token ids met a model of vectors, or vectors one of ids, say that this argument did."""
    try:
        yield
    except ValueError as error:
        if input_size is None and "must be of floating dtype" in str(error):
            raise ValueError(
                f"input_size must be the number of features where {name} takes vectors, got None, "
                "which stands for token ids"
            ) from error
        if input_size is not None and "must be integers" in str(error):
            raise ValueError(
                f"input_size must be None where {name} takes token ids, got {input_size}"
            ) from error
        raise


def _plain(outputs: Any) -> Any:
    """Arrays by name: a process without this package does not know its NamedTuples.

    Raises:
        ValueError: two would have the same name, as "a.b" and "b" in "a" do.
    """
    leaves = jax.tree_util.tree_leaves_with_path(outputs)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    if names == [""]:
        return outputs
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"exported arrays must have a name each, got several at {doubled}")
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True))


def _check_platforms(platforms: Sequence[str]) -> tuple[str, ...]:
    known = (*PLATFORMS, "rocm")
    is_list = isinstance(platforms, Iterable) and bool(platforms)
    if not is_list or any(name not in known for name in platforms):
        raise ValueError(f"platforms must be a list with names of {known}, got {platforms!r}")
    return tuple(platforms)
