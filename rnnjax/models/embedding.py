"""From token ids to vectors: learned, given, frozen, or one-hot."""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from numpy.typing import ArrayLike

from rnnjax import masking
from rnnjax._checks import (
    check_flag,
    check_key,
    check_number,
    check_shape,
    check_size,
    describe,
    telling_given_away,
)
from rnnjax._devices import with_automatic_axes
from rnnjax._native import in_native_order
from rnnjax._numerics import accumulation_dtype
from rnnjax._recipe import Made, factory
from rnnjax._values import check_range
from rnnjax.base import Cell, Key, Layer


class _EmbeddingFields(NamedTuple):
    init: Callable[[Key], Any]
    apply: Callable[[Any, Array], Array]
    output_size: int
    vocab_size: int


class Embedding(Made, _EmbeddingFields):
    """A map from token ids to vectors, as a pair of pure functions.

    Two that one function made from equal arguments are equal.

    Attributes:
        init: ``(key) -> params``.
        apply: ``(params, tokens [...]) -> xs [..., E]``.
        output_size: E.
        vocab_size: V; ids lie in [0, V).
    """


class EmbeddingParams(NamedTuple):
    """``vectors`` [V, E]."""

    vectors: Array


class FrozenEmbeddingParams(NamedTuple):
    """``vectors`` [V, E] that training leaves as they are; see :func:`trainable`."""

    vectors: Array


@factory
def embedding(
    vocab_size: int,
    embedding_size: int | None = None,
    *,
    vectors: ArrayLike | None = None,
    frozen: bool = False,
    scale: float | None = None,
) -> Embedding:
    """A table of vectors, one a token id.

    Concrete ids are checked. In a compiled function their values are not known, and ids outside
    [0, V) are clamped to it: check them on the host (``rnnjax.data.BucketedBatches`` does) before
    they get there, or look for one with :func:`rnnjax.checked`.

    Args:
        vocab_size: V.
        embedding_size: E; may be left out where ``vectors`` are given.
        vectors: [V, E], where the table starts; None to draw it from a normal distribution of
            standard deviation ``scale``.
        frozen: keep the vectors as they are. Their gradient is zero, also where a head is tied to
            them; an optimizer that moves parameters without a gradient (weight decay) must be kept
            off them, by ``optax.masked(optimizer, rnnjax.trainable)``.
        scale: standard deviation of vectors that are drawn; None for 0.1.

    Raises:
        ValueError: a size is not a positive integer, ``vectors`` have another shape, a frozen
            table is given no vectors, or a ``scale`` is given beside vectors.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> table = rnnjax.embedding(3, vectors=[[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]])
        >>> params = table.init(jax.random.key(0))
        >>> table.apply(params, jnp.array([2, 1])).tolist()
        [[3.0, 4.0], [1.0, 2.0]]
    """
    size, frozen = check_size("vocab_size", vocab_size), check_flag("frozen", frozen)
    if vectors is not None and scale is not None:
        raise ValueError(f"scale must be None for a table that is given, got {scale!r}")
    spread = 0.1 if scale is None else scale
    spread = check_number("scale", spread, "finite and at least 0", lambda s: 0 <= s < math.inf)
    if vectors is None:
        if frozen:
            raise ValueError("frozen needs vectors: an untrained random table is of no use")
        width = check_size("embedding_size", embedding_size)
        start = None
    else:
        start = _check_vectors(vectors, size, embedding_size)
        width = start.shape[1]
    make = FrozenEmbeddingParams if frozen else EmbeddingParams

    def init(key: Key) -> EmbeddingParams | FrozenEmbeddingParams:
        if start is not None:
            return make(jnp.asarray(start))
        return make(spread * jax.random.normal(check_key(key), (size, width), jnp.float32))

    def apply(params: Any, tokens: Array) -> Array:
        tokens = check_tokens(tokens, size)
        with telling_given_away(params=params):
            given = _check_table(table_of(params), (size, width)), tokens
            return with_automatic_axes(lambda pair: _rows(*pair), given, tokens, tokens.ndim)

    return Embedding(init, apply, width, size)


@factory
def one_hot(vocab_size: int) -> Embedding:
    """Token ids as unit vectors, without parameters: E = V.

    Ids are checked, or clamped, as those of :func:`embedding`.

    Args:
        vocab_size: V.

    Raises:
        ValueError: ``vocab_size`` is not a positive integer.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> rnnjax.one_hot(3).apply((), jnp.array([2, 0])).tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    size = check_size("vocab_size", vocab_size)

    def apply(params: Any, tokens: Array) -> Array:
        del params
        return jax.nn.one_hot(check_tokens(tokens, size), size, dtype=jnp.float32)

    return Embedding(lambda key: (), apply, size, size)


def trainable(params: Any) -> Any:
    """The tree of ``params`` with True for what is trained and False for frozen vectors.

    Example:
        >>> import jax, optax, rnnjax
        >>> table = rnnjax.embedding(2, vectors=[[0.0], [1.0]], frozen=True)
        >>> rnnjax.trainable(table.init(jax.random.key(0)))
        FrozenEmbeddingParams(vectors=False)
        >>> optimizer = optax.masked(optax.adamw(1e-3), rnnjax.trainable)
    """

    def mark(node: Any) -> Any:
        return jax.tree.map(lambda _: not isinstance(node, FrozenEmbeddingParams), node)

    return jax.tree.map(mark, params, is_leaf=lambda n: isinstance(n, FrozenEmbeddingParams))


def table_of(params: Any) -> Array:
    """The vectors [V, E]; no gradient comes to those that are frozen, whoever reads them.

    Raises:
        ValueError: the parameters are not those of an embedding with a table.
    """
    if not hasattr(params, "vectors"):
        raise ValueError(
            f"params of an embedding must be EmbeddingParams(vectors), got {describe(params)}"
        )
    is_frozen = isinstance(params, FrozenEmbeddingParams)
    return jax.lax.stop_gradient(params.vectors) if is_frozen else params.vectors


def _rows(table: Array, tokens: Array) -> Array:
    is_narrow = jnp.issubdtype(table.dtype, jnp.floating) and jnp.finfo(table.dtype).bits < 32
    return _narrow_rows(table, tokens) if is_narrow else table[tokens]


@jax.custom_jvp
def _narrow_rows(table: Array, tokens: Array) -> Array:
    """``table[tokens]`` of a table of 16 bits, whose gradient is summed in 32.

    JAX would add up the gradients of equal tokens in the dtype of the table, where a sum of ones
    stays at 256. The table itself is read as it is: a wide copy of it is made by derivatives alone.
    """
    return table[tokens]


@_narrow_rows.defjvp
def _narrow_rows_jvp(given: tuple, tangents: tuple) -> tuple[Array, Array]:
    (table, tokens), (change, _) = given, tangents
    rows = change.astype(accumulation_dtype(change.dtype))[tokens]
    return _narrow_rows(table, tokens), rows.astype(change.dtype)


def check_tokens(
    tokens: Any, vocab_size: int, name: str = "tokens", valid: Array | None = None
) -> Array:
    """Token ids as an array of integers; traced ones are clamped to [0, vocab_size).

    Args:
        tokens: ids [...].
        vocab_size: their number.
        name: what they are, for the message.
        valid: bool [...], True where one is real; the others are not read, and become 0.

    Raises:
        ValueError: they are not integers, or (where the values are concrete) one lies outside
            [0, vocab_size).
    """
    tokens = masking.as_integers(name, tokens)
    tokens = masking.zero_padding_now(valid, tokens)
    check_range(name, tokens, vocab_size, f"[0, {vocab_size})")
    # An index of JAX that is negative counts from the end.
    return jnp.clip(tokens, 0, vocab_size - 1) if isinstance(tokens, Tracer) else tokens


def not_an_embedding(name: str, given: Any, expected: str = "a rnnjax.Embedding") -> ValueError:
    """The error for what is no embedding, with what was probably meant."""
    meant = ""
    if isinstance(given, Cell | Layer):
        meant = ": it comes before the layer that reads it"
    elif inspect.isfunction(given):
        meant = ": call it first, as in rnnjax.embedding(100, 8)"
    return ValueError(f"{name} must be {expected}, got {type(given).__name__}{meant}")


def check_tied(embedding: Embedding, name: str, size: int | None, whose: str) -> None:
    """Refuse a head that is tied to an embedding without a table, or reads another size than its.

    ``size`` is what the head reads, and ``whose`` says in the message whose size that is.

    Raises:
        ValueError: naming ``name``, the argument that the embedding is.
    """
    shapes = jax.eval_shape(lambda: embedding.init(jax.random.key(0)))
    if not hasattr(shapes, "vectors"):
        raise ValueError(f"tie=True needs {name} to have a table, as that of rnnjax.embedding(...)")
    if size != embedding.output_size:
        raise ValueError(
            f"tie=True needs {whose} to be {embedding.output_size}, the size of the vectors of "
            f"{name}, got {size}"
        )


def _check_table(vectors: Any, shape: tuple[int, int]) -> Array:
    table = jnp.asarray(in_native_order(vectors))
    check_shape("params.vectors", table, shape)
    return table


def _check_vectors(vectors: ArrayLike, vocab_size: int, embedding_size: int | None) -> np.ndarray:
    given = masking.as_array("vectors", vectors)
    if isinstance(given, Tracer):
        raise ValueError(f"vectors must be known when the table is made, got {given}: it is traced")
    if jnp.issubdtype(given.dtype, jnp.complexfloating):
        raise ValueError(f"vectors must be real, got dtype {given.dtype}")
    table = np.array(given, np.float32)  # a copy: the caller may change theirs
    if table.ndim != 2 or table.shape[0] != vocab_size or table.shape[1] == 0:
        raise ValueError(f"vectors must have shape ({vocab_size}, E), got shape {table.shape}")
    if (
        embedding_size is not None
        and check_size("embedding_size", embedding_size) != table.shape[1]
    ):
        raise ValueError(
            f"vectors must have size {embedding_size}, embedding_size, got size {table.shape[1]}"
        )
    return table
