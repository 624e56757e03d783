"""Two layers over the same sequences, in opposite directions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax._checks import check_key
from rnnjax._recipe import factory
from rnnjax.base import Carry, Cell, Key, Layer
from rnnjax.engine.kernels._device import side_by_side
from rnnjax.layers._common import (
    StepArguments,
    check_own_outputs,
    check_parts,
    one_output,
    split_context,
    split_key,
    with_signature,
)
from rnnjax.layers.recurrent import as_layer
from rnnjax.transforms.precision import Policy


class Directions(NamedTuple):
    """What belongs to the two directions of a bidirectional layer: parameters, or carries."""

    forward: Any
    backward: Any


@factory
def bidirectional(
    forward: Cell | Layer,
    backward: Cell | Layer | None = None,
    *,
    policy: Policy | None = None,
) -> Layer:
    r"""Two layers over the same sequence in opposite directions, outputs side by side.

    .. math:: y_t = [\overrightarrow{y}_t, \overleftarrow{y}_t]

    Parameters and carries are ``Directions(forward, backward)``. The ``last`` output joins what
    each direction says after its own last step: the forward one at the last real step, the
    backward one at the first.

    Args:
        forward: a cell, run forwards, or a layer, taken as it is.
        backward: a cell, run in reverse, or a layer that runs in reverse, taken as it is;
            None takes the cell given as ``forward`` for both, with parameters of its own.
        policy: the dtypes of both, as for ``with_policy``.

    Raises:
        ValueError: ``backward`` is None and ``forward`` is no cell; or both halves run in the same
            direction, as do two layers made by ``recurrent`` without ``reverse=True``.

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
        if isinstance(forward, Layer):
            raise ValueError(
                "backward must be given where forward is a layer, got None: give it as a cell, or "
                "as recurrent(cell, reverse=True). Several layers in both directions are "
                "stack(bidirectional(cell), bidirectional(cell))"
            )
        backward = forward
    one, two = as_layer(forward, policy=policy), as_layer(backward, reverse=True, policy=policy)
    if one.direction == "backward":
        raise ValueError(f"forward must run forwards, got {one!r}")
    if two.direction == "forward":
        raise ValueError(
            f"backward must run in reverse, got {two!r}: make it with recurrent(cell, reverse=True)"
        )

    size = one.output_size + two.output_size

    def init(key: Key, input_size: int) -> Directions:
        first, second = jax.random.split(check_key(key))
        return Directions(one.init(first, input_size), two.init(second, input_size))

    def apply(
        params: Directions, xs: Array, steps: StepArguments, initial_carry: Carry, key: Key | None
    ) -> tuple[Directions, Array]:
        start = Directions(None, None) if initial_carry is None else initial_carry
        check_parts("initial_carry", start, 2)
        check_parts("params", params, 2, (tuple, list))
        keys = split_key(key, 2)
        with side_by_side(2):
            results = [
                layer.apply(p, xs, **own, initial_carry=c, key=k)
                for layer, p, c, k, own in zip(
                    (one, two), params, start, keys, split_context(steps, 2), strict=True
                )
            ]
        ys = jnp.concatenate([one_output(y) for _, y in results], axis=-1)
        return Directions(*(carry for carry, _ in results)), ys

    def last(ys: Array, valid: Array) -> Array:
        check_own_outputs(ys, size)
        ahead, back = jnp.split(ys, [one.output_size], axis=-1)
        return jnp.concatenate([one.last(ahead, valid), two.last(back, valid)], axis=-1)

    def initial_carry(params: Directions, batch_shape: tuple[int, ...] = ()) -> Directions:
        check_parts("params", params, 2, (tuple, list))
        ahead, back = params
        return Directions(
            one.initial_carry(ahead, batch_shape), two.initial_carry(back, batch_shape)
        )

    return Layer(init, with_signature(apply), size, last, initial_carry, "both")
