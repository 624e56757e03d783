"""Layers over whole sequences; each combinator takes layers and returns one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from . import masking
from .base import Apply, Carry, Cell, Key, Layer, Params, check_key, check_size, linear
from .initializers import draw_linear
from .precision import Policy, with_policy
from .regularizers import check_rate
from .unroll import unroll

Steps = dict[str, Any]  # lengths, mask and resets, handed on as they came


def recurrent(
    cell: Cell,
    *,
    reverse: bool = False,
    policy: Policy | None = None,
    remat: int | str | None = None,
    implementation: str | None = None,
    scan_unroll: int = 1,
) -> Layer:
    """One cell over the whole sequence: :func:`rnnjax.unroll` as a layer.

    Args:
        cell: what to run. Its noise, if it has any, is drawn where ``apply`` is given a key.
        reverse: run from the last real step down to the first.
        policy: the dtypes of parameters, products and state, as for ``with_policy``; None keeps
            those of the parameters.
        remat: what reverse mode keeps, as for ``unroll``.
        implementation: as for ``unroll``.
        scan_unroll: steps per iteration of the compiled loop.

    Raises:
        ValueError: from ``unroll``, when the layer is applied.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> layer = rnnjax.recurrent(rnnjax.gru(4))
        >>> params = layer.init(jax.random.key(0), 3)
        >>> carry, ys = layer.apply(params, jnp.ones((2, 5, 3)), lengths=[5, 2])
        >>> carry.shape, ys.shape
        ((2, 4), (2, 5, 4))
    """
    if not isinstance(cell, Cell):
        raise ValueError(f"cell must be a rnnjax.Cell, got {type(cell).__name__}")
    if policy is not None:
        cell = with_policy(cell, policy)

    def apply(
        params: Params, xs: Array, steps: Steps, initial_carry: Carry, key: Key | None
    ) -> tuple[Carry, Any]:
        return unroll(
            cell,
            params,
            xs,
            **steps,
            initial_carry=initial_carry,
            reverse=reverse,
            key=key,
            remat=remat,
            implementation=implementation,
            scan_unroll=scan_unroll,
        )

    last = masking.take_first if reverse else masking.take_last
    return Layer(cell.init, _public(apply), cell.output_size, last)


class Directions(NamedTuple):
    """What belongs to the two directions of a bidirectional layer: parameters, or carries."""

    forward: Any
    backward: Any


def bidirectional(forward: Cell | Layer, backward: Cell | Layer | None = None) -> Layer:
    r"""Two layers over the same sequence in opposite directions, outputs side by side.

    .. math:: y_t = [\overrightarrow{y}_t, \overleftarrow{y}_t]

    Parameters and carries are ``Directions(forward, backward)``. The ``last`` output joins what
    each direction says after its own last step: the forward one at the last real step, the
    backward one at the first.

    Args:
        forward: a cell, run forwards, or a layer, taken as it is.
        backward: a cell, run in reverse, or a layer that runs in reverse, taken as it is;
            None takes the cell given as ``forward`` for both, with parameters of its own.

    Raises:
        ValueError: ``backward`` is None and ``forward`` is no cell.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> layer = rnnjax.bidirectional(rnnjax.lstm(4))
        >>> params = layer.init(jax.random.key(0), 3)
        >>> carry, ys = layer.apply(params, jnp.ones((2, 5, 3)), lengths=[5, 2])
        >>> ys.shape, carry.backward.h.shape
        ((2, 5, 8), (2, 4))

    References:
        Schuster and Paliwal, "Bidirectional recurrent neural networks", IEEE Transactions on
        Signal Processing 45 (1997).
    """
    if backward is None:
        if not isinstance(forward, Cell):
            raise ValueError("backward may be left out only where forward is a cell, got a layer")
        backward = forward
    one, two = _as_layer(forward), _as_layer(backward, reverse=True)

    def init(key: Key, input_size: int) -> Directions:
        first, second = jax.random.split(check_key(key))
        return Directions(one.init(first, input_size), two.init(second, input_size))

    def apply(
        params: Directions, xs: Array, steps: Steps, initial_carry: Carry, key: Key | None
    ) -> tuple[Directions, Array]:
        start = Directions(None, None) if initial_carry is None else initial_carry
        _check_parts("initial_carry", start, 2)
        _check_parts("params", params, 2, (tuple, list))
        keys = _split_key(key, 2)
        results = [
            layer.apply(p, xs, **steps, initial_carry=c, key=k)
            for layer, p, c, k in zip((one, two), params, start, keys, strict=True)
        ]
        ys = jnp.concatenate([y for _, y in results], axis=-1)
        return Directions(*(carry for carry, _ in results)), ys

    def last(ys: Array, valid: Array) -> Array:
        ahead, back = jnp.split(ys, [one.output_size], axis=-1)
        return jnp.concatenate([one.last(ahead, valid), two.last(back, valid)], axis=-1)

    return Layer(init, _public(apply), one.output_size + two.output_size, last)


def stack(*layers: Cell | Layer, dropout: float = 0.0) -> Layer:
    """Layers one upon the other; parameters and carries are tuples, one entry a layer.

    Args:
        layers: cells or layers, the lowest first.
        dropout: the rate at which outputs of every layer but the last are dropped in training,
            that is when ``apply`` is given a ``key``.

    Raises:
        ValueError: no layer, or a rate outside [0, 1).

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> layer = rnnjax.stack(rnnjax.bidirectional(rnnjax.lstm(4)), rnnjax.gru(6), dropout=0.2)
        >>> params = layer.init(jax.random.key(0), 3)
        >>> params[0].forward.w_hh.shape, params[1].w_ih.shape
        ((4, 16), (8, 18))
        >>> carry, ys = layer.apply(params, jnp.ones((2, 5, 3)), key=jax.random.key(1))
        >>> ys.shape
        (2, 5, 6)
    """
    if not layers:
        raise ValueError("stack needs at least one layer, got none")
    rate = check_rate("dropout", dropout)
    floors = [_as_layer(layer) for layer in layers]

    def init(key: Key, input_size: int) -> tuple:
        keys = jax.random.split(check_key(key), len(floors))
        sizes = [input_size, *(floor.output_size for floor in floors)]
        return tuple(
            floor.init(k, size) for floor, k, size in zip(floors, keys, sizes, strict=False)
        )

    def apply(
        params: tuple, xs: Array, steps: Steps, initial_carry: Carry, key: Key | None
    ) -> tuple[tuple, Array]:
        start = (None,) * len(floors) if initial_carry is None else initial_carry
        _check_parts("initial_carry", start, len(floors))
        _check_parts("params", params, len(floors), (tuple, list))
        carries, ys = [], xs
        keys = zip(_split_key(key, len(floors)), _split_key(key, len(floors), 1), strict=True)
        for i, (floor, (inner, drop)) in enumerate(zip(floors, keys, strict=True)):
            ys = apply_dropout(drop, ys, rate) if i else ys
            carry, ys = floor.apply(params[i], ys, **steps, initial_carry=start[i], key=inner)
            carries.append(carry)
        return tuple(carries), ys

    return Layer(init, _public(apply), floors[-1].output_size, floors[-1].last)


class HeadParams(NamedTuple):
    """Parameters ``layer`` of what is below, and ``w`` [H, O], ``bias`` [O] of the head."""

    layer: Any
    w: Array
    bias: Array


def output_head(
    layer: Cell | Layer,
    output_size: int,
    activation: Callable[[Array], Array] | None = None,
) -> Layer:
    r"""A layer with a linear map on the output of every step, :math:`Y_t = f(h_t W_o + b_o)`.

    :math:`h_t` is the new state, the one after step t. Masked steps emit exact zeros, as
    everywhere. The weights start Glorot uniform, the bias zero.

    Args:
        layer: what is below: a cell or a layer.
        output_size: O.
        activation: f; None for the identity.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> layer = rnnjax.output_head(rnnjax.vanilla(15), 1, jax.nn.sigmoid)
        >>> params = layer.init(jax.random.key(0), 5)
        >>> layer.apply(params, jnp.ones((10, 5)))[1].shape
        (10, 1)
    """
    below = _as_layer(layer)
    size = check_size("output_size", output_size)

    def init(key: Key, input_size: int) -> HeadParams:
        first, second = jax.random.split(check_key(key))
        head = draw_linear(second, below.output_size, size)
        return HeadParams(below.init(first, input_size), *head)

    def apply(
        params: HeadParams, xs: Array, steps: Steps, initial_carry: Carry, key: Key | None
    ) -> tuple[Carry, Array]:
        carry, hs = below.apply(params.layer, xs, **steps, initial_carry=initial_carry, key=key)
        ys = linear(hs, params.w, params.bias)
        ys = ys if activation is None else activation(ys)
        valid = masking.valid_steps(steps["lengths"], steps["mask"], xs.shape[:-2], xs.shape[-2])
        return carry, masking.zero_padding(valid, ys)

    return Layer(init, _public(apply), size, below.last)


def apply_dropout(key: Key | None, xs: Array, rate: float) -> Array:
    """``xs`` with each element zeroed at ``rate`` and the rest scaled by ``1 / (1 - rate)``.

    Without a key, or at rate 0, ``xs`` itself.

    References:
        Srivastava et al., "Dropout", JMLR 15 (2014).
    """
    if key is None or rate == 0.0:
        return xs
    keep = jax.random.bernoulli(key, 1.0 - rate, xs.shape)
    return jnp.where(keep, xs / (1.0 - rate), jnp.zeros_like(xs))


def _public(apply: Callable) -> Apply:
    """``apply`` under the signature all layers share."""

    def public(
        params: Params,
        xs: Array,
        lengths: Any = None,
        *,
        mask: Any = None,
        resets: Any = None,
        initial_carry: Carry = None,
        key: Key | None = None,
    ) -> tuple[Carry, Any]:
        steps: Steps = {"lengths": lengths, "mask": mask, "resets": resets}
        return apply(params, xs, steps, initial_carry, key)

    return public


def _as_layer(part: Cell | Layer, reverse: bool = False) -> Layer:
    if isinstance(part, Cell):
        return recurrent(part, reverse=reverse)
    if isinstance(part, Layer):
        return part
    raise ValueError(f"expected a rnnjax.Cell or a rnnjax.Layer, got {type(part).__name__}")


def _split_key(key: Key | None, count: int, stream: int = 0) -> Any:
    if key is None:
        return [None] * count
    return jax.random.split(jax.random.fold_in(check_key(key), stream), count)


def _check_parts(name: str, parts: Any, count: int, kinds: Any = tuple) -> None:
    if isinstance(parts, kinds) and len(parts) == count:
        return
    length = f" of {len(parts)}" if isinstance(parts, tuple | list) else ""
    shown = jax.tree.map(
        lambda leaf: jax.typeof(leaf).str_short() if hasattr(leaf, "shape") else leaf, parts
    )
    raise ValueError(
        f"{name} must be a tuple of {count} parts, got {type(parts).__name__}{length}, {shown!r}"
    )
