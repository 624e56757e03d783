"""One step of a cell or layer, and the loop of such steps that gives the same bits for any count.

Inside a larger program a step becomes part of it. By itself it is run by :func:`run_block`, as a
stream is: there the number of steps is data, so that the compiler sees one step in a loop and
makes the same operations of it, however many are run. A step compiled by itself would be summed and
rounded in other places.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from rnnjax import masking
from rnnjax._checks import check_batch_shape, check_carry, check_floating, check_there
from rnnjax._native import jit
from rnnjax._values import is_transformed
from rnnjax.base import Carry, Cell, Layer, Params, runs_steps
from rnnjax.engine._arguments import is_tree_of_inputs
from rnnjax.engine._products import h_proj_of
from rnnjax.engine.unroll import unroll


class Block(NamedTuple):
    """Up to K >= 2 steps, time first, so that a step is one stretch of memory.

    Attributes:
        xs: [K, ..., D].
        mask: bool [K, ...].
        resets: bool [K, ...].
    """

    xs: Any
    mask: Any
    resets: Any


class Flags(NamedTuple):
    """What a step is given where there are no flags, and how many steps it is.

    Arrays on the device: as constants they would change the compiled step, and from the host they
    would be copied at every step.

    Attributes:
        all_true: bool [2, ...].
        all_false: bool [2, ...].
        one: the number 1.
    """

    all_true: Array
    all_false: Array
    one: Array


@runs_steps
def step(
    part: Cell | Layer,
    params: Params,
    carry: Carry,
    x: Any,
    *,
    mask: Any = None,
    resets: Any = None,
    context: Any = None,
) -> tuple[Carry, Any]:
    """``part`` on one input of each sequence; see ``Layer.step``, which is this."""
    try:
        return _step(part, params, carry, x, mask, resets, context)
    except ValueError as error:
        _say_x(error)
        raise


def _say_x(error: ValueError) -> None:
    """Let an error of ``xs`` be one of ``x``: what a step hands on as ``xs`` came by that name."""
    said = error.args[0] if error.args else None
    if isinstance(said, str) and re.match(r"xs\b", said):
        error.args = (re.sub(r"\bxs\b", "x", said), *error.args[1:])


def _step(
    part: Cell | Layer,
    params: Params,
    carry: Carry,
    x: Any,
    mask: Any,
    resets: Any,
    context: Any,
) -> tuple[Carry, Any]:
    arrays = (x, params, carry, mask, resets, context)
    leaves = jax.tree.leaves(arrays)
    # Arrays need no look here: what is wrong with their shapes or dtypes is found where the step is
    # compiled, once for all steps of such arrays.
    is_alone = not is_transformed()
    if is_alone and isinstance(x, Array) and all(map(_holds_values, set(map(type, leaves)))):
        flags = _flags(x.shape[:-1])
        try:
            return _run_alone(part, "carry", params, carry, x, mask, resets, flags, context)
        except RuntimeError:
            check_there(params=params, carry=carry, x=x)
            raise
    require_causal("step", part)
    x = _check_x(x)
    batch = _batch_of(x)
    mask, resets = _check_step_flags(mask, resets, batch)
    carry = jax.tree.map(functools.partial(masking.as_array, "carry"), carry)
    # Inside another program the step joins it; a loop of one step would stand in the way of fusion.
    if not is_alone or any(isinstance(leaf, Tracer) for leaf in leaves):
        carry = _check_given(part, params, carry, batch, "carry")
        return _inline_step(part, params, carry, x, mask, resets, context)
    return _run_alone(part, "carry", params, carry, x, mask, resets, _flags(batch), context)


def run_only_step(
    part: Cell | Layer,
    params: Params,
    carry: Carry,
    xs: Any,
    valid: Any,
    resets: Any,
    context: Any,
) -> tuple[Carry, Any]:
    """:func:`step` of checked arguments, none of them traced, each with a time axis of one step."""
    batch = jax.tree.leaves(xs)[0].shape[:-2]
    return _run_with_time(part, params, carry, xs, valid, resets, _flags(batch), context)


@functools.partial(jit, static=1)
def run_block(
    part: Cell | Layer, params: Params, carry: Carry, block: Block, count: Array, context: Any
) -> tuple[Carry, Any]:
    """The carry after ``count`` steps of a block, and outputs [K, ..., O], zero beyond them."""
    carry = starting_carry(part, params, carry, block.mask.shape[1:])
    packed, unpacked = _packing(carry)

    def at(i: Any) -> Block:
        return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), block)

    def body(i: Array, held: tuple[Any, Any]) -> tuple[Any, Any]:
        carry, ys = held
        carry, y = _inline_step(part, params, unpacked(carry), *at(i), context)
        put = functools.partial(lax.dynamic_update_index_in_dim, index=i, axis=0)
        return packed(carry), jax.tree.map(put, ys, y)

    _, y = jax.eval_shape(lambda: _inline_step(part, params, carry, *at(0), context))
    # Room for the outputs beforehand: the number of steps is not known when this is compiled.
    room = jax.tree.map(lambda a: jnp.zeros((len(block.mask), *a.shape), a.dtype), y)
    carry, ys = lax.fori_loop(0, count, body, (packed(carry), room))
    return unpacked(carry), ys


def _packing(carry: Carry) -> tuple[Callable[[Carry], Any], Callable[[Any], Carry]]:
    """How a loop holds a carry, and back: of many small arrays, those of one type as one array.

    Before a loop, XLA copies every array of its state in a task of its own. From some ten such
    tasks on, its runtime on a CPU divides them among threads, and to wake one takes longer than
    the step of a few small layers.
    """
    leaves, structure = jax.tree.flatten(carry)
    if len(leaves) <= 6:  # four more tasks are the inputs, room for outputs, and the counter
        return (lambda carry: carry), (lambda carry: carry)
    places: dict[Any, list[int]] = {}
    for place, leaf in enumerate(leaves):
        # Arrays so large that a copy of each, in every step, would cost more are left alone.
        kind = jax.typeof(leaf) if leaf.size <= 4096 else place
        places.setdefault(kind, []).append(place)

    def packed(carry: Carry) -> list[Array]:
        leaves = jax.tree.leaves(carry)
        return [jnp.stack([leaves[place] for place in alike]) for alike in places.values()]

    def unpacked(arrays: list[Array]) -> Carry:
        leaves = list(jax.tree.leaves(carry))
        for alike, array in zip(places.values(), arrays, strict=True):
            for i, place in enumerate(alike):
                leaves[place] = array[i]
        return structure.unflatten(leaves)

    return packed, unpacked


@functools.partial(jit, static=2)
def _run_alone(
    part: Cell | Layer,
    name: str,  # of the carry, to those who gave it
    params: Params,
    carry: Carry,
    x: Any,
    mask: Any,
    resets: Any,
    flags: Flags,
    context: Any,
) -> tuple[Carry, Any]:
    require_causal("step", part)
    x = _check_x(x)
    batch = _batch_of(x)
    mask, resets = _check_step_flags(mask, resets, batch)
    carry = _check_given(part, params, carry, batch, name)
    # The shortest block whose step the compiler still takes out by its index.
    block = Block(
        jax.tree.map(_and_zeros, x),
        flags.all_true if mask is None else _and_zeros(mask),
        flags.all_false if resets is None else _and_zeros(resets),
    )
    carry, ys = run_block(part, params, carry, block, flags.one, context)
    return carry, jax.tree.map(lambda a: a[0], ys)


def _and_zeros(a: Array) -> Array:
    return jnp.stack([a, jnp.zeros_like(a)])


@functools.partial(jit, static=1)
def _run_with_time(
    part: Cell | Layer,
    params: Params,
    carry: Carry,
    xs: Any,
    valid: Any,
    resets: Any,
    flags: Flags,
    context: Any,
) -> tuple[Carry, Any]:
    # Taken out and put back in the compiled program: by itself each would be a call of its own,
    # as long as the step.
    x, mask, resets = jax.tree.map(
        lambda a: jnp.squeeze(a, flags.all_true.ndim - 1), (xs, valid, resets)
    )
    carry, y = _run_alone(part, "initial_carry", params, carry, x, mask, resets, flags, context)
    return carry, jax.tree.map(lambda a: jnp.expand_dims(a, flags.all_true.ndim - 1), y)


@functools.lru_cache(maxsize=64)
def _flags(batch: tuple[int, ...]) -> Flags:
    with jax.ensure_compile_time_eval():
        shape = (2, *batch)
        # Copied by name, for those who forbid copies that nobody asked for (jax_transfer_guard).
        return Flags(*jax.device_put((np.ones(shape, bool), np.zeros(shape, bool), np.int32(1))))


@functools.partial(jit, static=1)
def _inline_step(
    part: Cell | Layer,
    params: Params,
    carry: Carry,
    x: Array,
    mask: Array | None,
    resets: Array | None,
    context: Any,
) -> tuple[Carry, Any]:
    batch = _batch_of(x)
    # The part's own first carry is computed only where somebody asks for it.
    own = (
        None if carry is not None and resets is None else starting_carry(part, params, None, batch)
    )
    carry = own if carry is None else starting_carry(part, params, carry, batch)
    if resets is not None:  # a flag where there is no step is not read
        carry = masking.select(resets if mask is None else resets & mask, own, carry)
    new, y = _apply_one_step(part, params, carry, masking.zero_padding(mask, x), context)
    return masking.select(mask, new, carry), masking.zero_padding(mask, y)


@functools.partial(jit, static=1)
def _apply_one_step(
    part: Cell | Layer, params: Params, carry: Carry, x: Array, context: Any
) -> tuple[Carry, Any]:
    apply = functools.partial(unroll, part) if isinstance(part, Cell) else part.apply
    xs = jax.tree.map(lambda a: jnp.expand_dims(a, -2), x)
    # A layer made by hand need not take a context.
    given = {} if context is None else {"context": context}
    new, ys = apply(params, xs, initial_carry=carry, **given)
    return new, jax.tree.map(lambda a: jnp.squeeze(a, len(_batch_of(x))), ys)


def step_in_program(
    cell: Cell, params: Params, carry: Carry, x: Any, context: Any = None
) -> tuple[Carry, Any]:
    """One step of a cell as plain operations, with the constants of each sequence if it has any.

    For a step that stands in a larger program and is mapped there: what is not mapped, such as a
    memory that all hypotheses of a beam read, is then not copied.

    Args:
        cell: whose step it is.
        params: its parameters.
        carry: leaves [..., ...].
        x: [..., D].
        context: leaves [..., ...].
    """
    constants = () if context is None else (context,)

    def one(carry: Carry, x: Any, *constants: Any) -> tuple[Carry, Any]:
        x_proj = cell.project(params, x)
        if cell.plain_step is not None:
            return cell.plain_step(params, carry, x_proj, *constants)
        assert cell.update is not None
        h_proj = ()
        if cell.recurrent is not None:
            assert cell.hidden is not None
            h_proj = h_proj_of(cell.hidden(carry), cell.recurrent(params), x_proj)
        return cell.update(params, carry, x_proj, h_proj, *constants)

    for _ in _batch_of(x):
        one = jax.vmap(one)
    return one(carry, x, *constants)


def starting_carry(
    part: Cell | Layer, params: Params, carry: Carry, batch: tuple[int, ...]
) -> Carry:
    """The carry to begin with: the part's own where ``carry`` is None, else ``carry``, checked."""
    if carry is not None:
        return _check_given(part, params, carry, batch, "initial_carry")
    return _own_carry(part, params, batch)


def _own_carry(part: Cell | Layer, params: Params, batch: tuple[int, ...]) -> Carry:
    if isinstance(part, Cell):
        return carry_of_batch(part.initial_carry(params), batch)
    return part.initial_carry(params, batch)


def _check_given(
    part: Cell | Layer, params: Params, carry: Carry, batch: tuple[int, ...], name: str
) -> Carry:
    """A carry as the part would make it, or None as it came; errors call it by ``name``."""
    if carry is None:
        return None
    return check_carry(name, carry, jax.eval_shape(lambda: _own_carry(part, params, batch)))


def carry_of_batch(carry: Carry, batch: tuple[int, ...]) -> Carry:
    """The carry of one sequence for all of a batch: leaves [...] as [*batch, ...]."""
    batch = check_batch_shape(batch)
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (*batch, *a.shape)), carry)


def _check_x(x: Any) -> Any:
    """One array [..., D], or a tree of arrays with equal leading axes.

    Raises:
        ValueError: naming the leaf, what was expected and what came.
    """
    is_tree = is_tree_of_inputs(x)
    named = jax.tree.leaves_with_path(x) if is_tree else [((), x)]
    if not named:
        raise ValueError("x must have at least one array, got none")
    arrays = []
    for path, leaf in named:
        name = f"x{jax.tree_util.keystr(path)}"
        array = masking.as_array(name, leaf)
        if not array.ndim:
            raise ValueError(f"{name} must have shape [..., D], got shape ()")
        if array.shape[:-1] != (arrays or [array])[0].shape[:-1]:
            raise ValueError(
                f"{name} must have the batch axes {arrays[0].shape[:-1]} of the first input and an "
                f"axis of features, got shape {array.shape}"
            )
        arrays.append(array)
    if is_tree:
        return jax.tree.unflatten(jax.tree.structure(x), arrays)
    check_floating("x", arrays[0])
    return arrays[0]


def _batch_of(x: Any) -> tuple[int, ...]:
    return jax.tree.leaves(x)[0].shape[:-1]


def require_causal(name: str, part: Cell | Layer) -> None:
    """Refuse what is no cell, and no layer that is known to look at past inputs alone.

    Raises:
        ValueError: saying which of these it is.
    """
    if isinstance(part, Cell):
        return
    if not isinstance(part, Layer):
        raise ValueError(f"layer must be a rnnjax.Cell or rnnjax.Layer, got {type(part).__name__}")
    if part.causal:
        return
    why = {
        "backward": "runs in reverse",
        "both": "is bidirectional, or has a part that runs in reverse",
    }.get(part.direction, "does not say so: give rnnjax.Layer(..., direction='forward')")
    raise ValueError(
        f"{name} needs a layer whose outputs depend on past inputs alone; {part!r} {why}"
    )


def _check_step_flags(mask: Any, resets: Any, batch: tuple[int, ...]) -> tuple[Any, Any]:
    """``mask`` and ``resets`` as arrays, or None as they came.

    Raises:
        ValueError: naming the one that does not fit.
    """
    given = {"mask": mask, "resets": resets}
    for name, flags in given.items():
        if flags is None:
            continue
        given[name] = flags = masking.as_array(name, flags)
        if flags.shape != batch:
            raise ValueError(
                f"{name} must have the batch shape of x, {batch}, got shape {flags.shape}"
            )
        if flags.dtype != bool:
            raise ValueError(f"{name} must be of dtype bool, got dtype {flags.dtype}")
    return given["mask"], given["resets"]


def _holds_values(kind: type) -> bool:
    """Whether it is an array of JAX, and none that is traced."""
    return issubclass(kind, Array) and not issubclass(kind, Tracer)
