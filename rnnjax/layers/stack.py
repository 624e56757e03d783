"""Layers on top of one another."""

import jax
from jax import Array

from rnnjax._checks import check_key, check_rate
from rnnjax._recipe import factory
from rnnjax.base import Carry, Cell, Key, Layer
from rnnjax.layers._common import (
    StepArguments,
    check_parts,
    elementwise_dropout,
    joint_direction,
    split_context,
    split_key,
    with_signature,
)
from rnnjax.layers.recurrent import as_layer
from rnnjax.transforms.precision import Policy


@factory
def stack(*layers: Cell | Layer, dropout: float = 0.0, policy: Policy | None = None) -> Layer:
    """Layers on top of one another: each reads the outputs of the one below it.

    Parameters and carries are tuples, one entry a layer.

    Args:
        layers: cells or layers, the lowest first.
        dropout: the rate at which outputs of every layer but the last are dropped in training,
            that is when ``apply`` is given a ``key``; every step has its own mask. Of one layer
            nothing is dropped.
        policy: the dtypes of all layers, as for ``with_policy``.

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
    floors = [as_layer(layer, policy=policy) for layer in layers]

    def init(key: Key, input_size: int) -> tuple:
        keys = jax.random.split(check_key(key), len(floors))
        sizes = [input_size, *(floor.output_size for floor in floors)]
        return tuple(
            floor.init(k, size) for floor, k, size in zip(floors, keys, sizes, strict=False)
        )

    def apply(
        params: tuple, xs: Array, steps: StepArguments, initial_carry: Carry, key: Key | None
    ) -> tuple[tuple, Array]:
        start = (None,) * len(floors) if initial_carry is None else initial_carry
        check_parts("initial_carry", start, len(floors))
        check_parts("params", params, len(floors), (tuple, list))
        carries, ys = [], xs
        keys = zip(split_key(key, len(floors)), split_key(key, len(floors), 1), strict=True)
        steps_of = split_context(steps, len(floors))
        for i, (floor, (inner, drop)) in enumerate(zip(floors, keys, strict=True)):
            ys = elementwise_dropout(drop, ys, rate) if i else ys
            carry, ys = floor.apply(params[i], ys, **steps_of[i], initial_carry=start[i], key=inner)
            carries.append(carry)
        return tuple(carries), ys

    def initial_carry(params: tuple, batch_shape: tuple[int, ...] = ()) -> tuple:
        check_parts("params", params, len(floors), (tuple, list))
        parts = zip(floors, params, strict=True)
        return tuple(floor.initial_carry(p, batch_shape) for floor, p in parts)

    return Layer(
        init=init,
        apply=with_signature(apply),
        output_size=floors[-1].output_size,
        last=floors[-1].last,
        initial_carry=initial_carry,
        direction=joint_direction(floors),
    )
