"""What all layers share: their signature, their keys, the check of their parts."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import (
    check_floating,
    check_key,
    check_one_array,
    check_params,
    check_rate,
    describe,
)
from rnnjax._devices import with_automatic_axes
from rnnjax._numerics import draw_flags_by_place, keep_scaled
from rnnjax.base import Apply, Carry, Direction, Key, Layer, Params
from rnnjax.engine._arguments import check_xs

# lengths, mask, resets, and context where given, handed on as they came
StepArguments = dict[str, Any]


def elementwise_dropout(key: Key | None, xs: Array, rate: float) -> Array:
    r"""``xs`` [..., D] with each element zeroed at ``rate`` and the rest scaled.

    .. math:: x \odot m / (1 - p), \quad m \in \{0, 1\}, \; P(m = 0) = p

    What is drawn for a vector depends on the key and its place, that is its row and step: neither
    padding nor further rows change it.

    Without a key, or at rate 0, ``xs`` itself. What goes through time is better dropped by
    :func:`rnnjax.models.locked_dropout`, the same at all steps, or by a regulariser of the cell.

    Raises:
        ValueError: a rate outside [0, 1), ``xs`` not floating, or a wrong key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rnnjax.layers import elementwise_dropout
        >>> dropped = elementwise_dropout(jax.random.key(0), jnp.ones((5, 8)), 0.5)
        >>> sorted(set(dropped.ravel().tolist())), bool(jnp.all(dropped == dropped[:1]))
        ([0.0, 2.0], False)

    References:
        Srivastava et al., "Dropout", JMLR 15 (2014).
    """
    rate = check_rate("rate", rate)
    if key is None or rate == 0.0:
        return xs
    key = check_key(key)
    check_floating("xs", xs)
    xs = jnp.asarray(masking.as_array("xs", xs))

    def dropped(given: tuple[Key, Array]) -> Array:
        key, xs = given
        keep = draw_flags_by_place(key, 1.0 - rate, xs.shape[:-1], xs.shape[-1:])
        return keep_scaled(keep, xs, rate)

    return with_automatic_axes(dropped, (key, xs), xs, xs.ndim)


def one_array(xs: Any) -> Array:
    """The inputs of a layer that reads one array a step, [..., T, D] of floats.

    Raises:
        ValueError: they are something else; two arrays would be taken for a batch of them.
    """
    checked = check_xs(xs)
    if not hasattr(checked, "dtype"):
        raise ValueError(f"xs must be one array [..., T, D], got {describe(xs)}")
    return jnp.asarray(checked)


def one_output(ys: Any) -> Array:
    """The outputs of a layer that another part reads, [..., T, O].

    Raises:
        ValueError: they are several arrays, as those of an ``attention_cell`` are.
    """
    check_one_array("the output of the layer", ys)
    return ys


def check_own_outputs(ys: Any, size: int) -> None:
    """Refuse outputs of another size than the layer's, of which parts would be taken for others.

    Raises:
        ValueError: naming what came.
    """
    if ys.shape[-1:] != (size,):
        raise ValueError(
            f"ys must be the outputs of this layer, of size {size} in the last axis, got shape "
            f"{ys.shape}: take last of them first, then sum or project that"
        )


def activated(activation: Callable | None, valid: Array | None, ys: Array) -> Array:
    """``activation(ys)`` at the real steps, zeros at the others, of which no gradient comes.

    Selected before it, too: at 0 its slope may be infinite, as that of a norm, and 0 times that
    would be NaN in the gradient of every weight.
    """
    if activation is not None:
        ys = activation(masking.zero_padding(valid, ys))
    return masking.zero_padding(valid, ys)


def with_signature(apply: Callable, kind: type | None = None) -> Apply:
    """``apply(params, xs, steps, initial_carry, key)`` with the signature all layers share.

    Args:
        apply: of a layer.
        kind: of its parameters, a NamedTuple; None where ``apply`` looks at them itself.
    """

    def layer_apply(
        params: Params,
        xs: Array,
        lengths: Any = None,
        *,
        mask: Any = None,
        resets: Any = None,
        initial_carry: Carry = None,
        key: Key | None = None,
        context: Any = None,
    ) -> tuple[Carry, Any]:
        if hasattr(params, "shape") and isinstance(xs, tuple | dict):
            raise ValueError(
                f"xs must be an array [..., T, D], got {type(xs).__name__}, and params an array: "
                "the order is layer.apply(params, xs, lengths)"
            )
        if kind is not None:
            params = check_params(params, kind)
        key = None if key is None else check_key(key)
        steps: StepArguments = {"lengths": lengths, "mask": mask, "resets": resets}
        if context is not None:
            steps["context"] = context
        return apply(params, xs, steps, initial_carry, key)

    # What Python names where an argument is missing or one too many.
    layer_apply.__name__ = layer_apply.__qualname__ = "layer.apply"
    return layer_apply


def joint_direction(layers: Iterable[Layer]) -> Direction:
    """Which inputs an output depends on that comes of all these layers."""
    directions: set[Direction] = {layer.direction for layer in layers}
    if len(directions) == 1:
        return directions.pop()
    return "unknown" if "unknown" in directions else "both"


def last_of_mixed(layer: Layer) -> Callable[[Array, Array], Array]:
    """``last`` of outputs that are each made of all numbers of the layer's output at that step."""
    return masking.take_first if layer.direction == "backward" else masking.take_last


def split_key(key: Key | None, count: int, stream: int = 0) -> Any:
    if key is None:
        return [None] * count
    return jax.random.split(jax.random.fold_in(check_key(key), stream), count)


def split_context(steps: StepArguments, count: int) -> list[StepArguments]:
    """``steps`` for each of ``count`` parts, with the part's own context.

    Raises:
        ValueError: the context is no tuple of ``count`` entries.
    """
    if "context" not in steps:
        return [steps] * count
    shared = {name: value for name, value in steps.items() if name != "context"}
    check_parts("context", steps["context"], count)
    # A layer made by hand need not take a context.
    own = [{} if part is None else {"context": part} for part in steps["context"]]
    return [shared | part for part in own]


def check_parts(name: str, parts: Any, count: int, kinds: Any = tuple) -> None:
    if isinstance(parts, kinds) and len(parts) == count:
        return
    if hasattr(parts, "_fields"):
        raise ValueError(f"{name} must be a tuple of {count} parts, got {describe(parts)}")
    length = f" of {len(parts)}" if isinstance(parts, tuple | list) else ""
    shown = jax.tree.map(
        lambda leaf: jax.typeof(leaf).str_short() if hasattr(leaf, "shape") else leaf, parts
    )
    raise ValueError(
        f"{name} must be a tuple of {count} parts, got {type(parts).__name__}{length}, {shown!r}"
    )
