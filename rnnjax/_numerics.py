"""Products and sums in the right dtype, over axes laid out as the device multiplies them best."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from rnnjax._checks import check_floating
from rnnjax._devices import may_merge_axes, with_automatic_axes
from rnnjax._native import in_native_order
from rnnjax.base import Key


def accumulation_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The dtype of carries, outputs and sums for floating numbers of ``dtype``: at least float32.

    A sum of ones in bfloat16 stays at 256. Integers have none: weights must not be any. Of arrays
    of NumPy that are wider than JAX's may be, that of JAX.
    """
    # Not by JAX's promotion, which refuses where promotion is strict.
    return jax.dtypes.canonicalize_dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


def mean_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The dtype of means of numbers of ``dtype``; those of integers are of the dtype of floats."""
    if jnp.issubdtype(dtype, jnp.inexact):
        return accumulation_dtype(dtype)
    return jnp.dtype(jnp.result_type(float))


def raised(leaf: Any) -> Array:
    """Numbers of sixteen bits as float32, wider ones as they are."""
    array = jnp.asarray(leaf)
    return array.astype(mean_dtype(array.dtype))


def carry_dtype(params: Any) -> jnp.dtype:
    """The dtype of a carry, and of sums of products, for these parameters: the widest of all."""
    leaves = [a.dtype for a in jax.tree.leaves(params) if jnp.issubdtype(a.dtype, jnp.inexact)]
    # The widest, found without JAX's promotion, which refuses where promotion is strict.
    floats = [jnp.dtype("bfloat16"), *(jnp.finfo(dtype).dtype for dtype in leaves)]
    return accumulation_dtype(max(floats, key=lambda dtype: dtype.itemsize))


def affine(
    x: Array, w: Array, bias: Array | None = None, *, name: str = "xs", size: int | None = None
) -> Array:
    """``x @ w + bias``: the product in the dtype of ``w``, accumulated in at least float32.

    Args:
        x: [..., D].
        w: [D, O].
        bias: [O], or None.
        name: what ``x`` is, for the message.
        size: O, for a head, whose weights may be those of another.

    Raises:
        ValueError: ``x`` is not floating, or ``w`` was made for another size of it or of outputs.
    """
    check_floating(name, x)
    # Of NumPy they may be wider than JAX's arrays are.
    w, bias = jax.tree.map(jnp.asarray, in_native_order((w, bias)))
    if x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"{name} must have size {w.shape[0]} in the last axis (weights of shape {w.shape}), "
            f"got size {x.shape[-1]}"
        )
    if size is not None and w.shape[1:] != (size,):
        raise ValueError(
            f"the weights of the head must have shape {(x.shape[-1], size)}, got shape {w.shape}"
        )
    out = with_automatic_axes(_product, (x, w), x, x.ndim - 1, last_like=w)
    if bias is None:
        return out
    return out + bias.astype(out.dtype).reshape((1,) * (out.ndim - 1) + bias.shape)


def _product(pair: tuple[Array, Array]) -> Array:
    x, w = pair
    rows, dtype = x.astype(w.dtype), accumulation_dtype(w.dtype)
    if x.ndim > 2:
        rows = as_rows(rows, beside=w)
    return jnp.matmul(rows, w, preferred_element_type=dtype).reshape(*x.shape[:-1], w.shape[-1])


def as_rows(x: Array, beside: Any) -> Array:
    """``x`` [..., D] as a matrix [N, D] where its axes may be merged, else as it is.

    Args:
        x: the array.
        beside: what it is combined with. An array that was made while tracing, such as a carry that
            begins with zeros, tells nothing of the mesh that the others lie on.
    """
    merged = math.prod(x.shape[:-1]), x.shape[-1]
    return x.reshape(merged) if may_merge_axes((x, beside)) else x


def draw_flags(key: Key, probability: Any, shape: tuple[int, ...]) -> Array:
    """Flags that are True with ``probability``, the same whether or not jax_enable_x64 is set."""
    # Of a number of Python, JAX would draw in float64 where it may: other bits, in twice the time.
    return jax.random.bernoulli(as_mappable(key), jnp.asarray(probability, jnp.float32), shape)


def draw_flags_by_place(
    key: Key, probability: float, counts: tuple[int, ...], shape: tuple[int, ...]
) -> Array:
    """Flags [*counts, *shape] as of :func:`draw_flags`, each a function of the key and of its own
    indices: more rows or steps leave those that were there as they were."""
    if not counts:
        return draw_flags(key, probability, shape)
    key = as_mappable(key)

    def one(index: Array) -> Array:
        inner = jax.random.fold_in(key, index)
        return draw_flags_by_place(inner, probability, counts[1:], shape)

    return jax.vmap(one)(jnp.arange(counts[0]))


def keep_scaled(keep: Array, xs: Array, rate: float) -> Array:
    """What dropout at ``rate`` leaves of ``xs``: 0, or where ``keep``, ``xs / (1 - rate)``.

    Divided in at least float32, so that of 16 bits only the result is rounded: ``1 - rate`` that is
    rounded, too, would be off by the same share in every element.
    """
    kept = xs.astype(accumulation_dtype(xs.dtype)) / (1.0 - rate)
    return jnp.where(keep, kept.astype(xs.dtype), jnp.zeros_like(xs))


def key_apart(key: Key) -> Key:
    """A key for another use of ``key`` than to split it, equal to none that is split off.

    ``split(key, n)[i]`` is ``fold_in(key, i)``, bit for bit: with a small number folded in, both
    uses would draw the same.
    """
    return jax.random.fold_in(key, 2**32 - 1)


def as_mappable(key: Key) -> Key:
    """A key, or one made of it, that draws under ``jax.vmap`` what it draws alone.

    JAX draws from the first key alone for all that are mapped where they are of "rbg" or
    "unsafe_rbg": a row would depend on the key of another one, and on how many rows there are.
    """
    if jax.random.key_impl(key) not in ("rbg", "unsafe_rbg"):
        return key
    words = jax.random.key_data(key)
    mappable = jax.random.wrap_key_data(words[:2], impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(mappable, words[2]), words[3])


def where(condition: Array, yes: Array, no: Array) -> Array:
    """``jnp.where``, of keys as numbers: to jax_debug_key_reuse, to select a key is to use it."""
    if not jnp.issubdtype(yes.dtype, jax.dtypes.prng_key):
        return jnp.where(condition, yes, no)
    numbers = jnp.where(condition[..., None], jax.random.key_data(yes), jax.random.key_data(no))
    return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(yes))


def varying_like(given: Any, tree: Any) -> Any:
    """``tree`` as what may differ from device to device in a ``shard_map`` wherever ``given`` may.

    The carry of a scan must be so from the start; zeros are the same on all devices.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    axes: frozenset = frozenset().union(*(_varying_axes(leaf) for leaf in jax.tree.leaves(given)))

    def cast(leaf: Array) -> Array:
        missing = tuple(axes - _varying_axes(leaf))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, tree)


def _varying_axes(leaf: Array) -> frozenset:
    return frozenset(jax.typeof(leaf).manual_axis_type.varying)


def split_gates(x: Array, count: int) -> tuple[Array, ...]:
    """Cut the last axis of ``x`` into ``count`` equal pieces, one a gate."""
    return tuple(jnp.split(x, count, axis=-1))
