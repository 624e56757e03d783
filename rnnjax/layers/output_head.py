"""A linear map on the output of every step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_function, check_key, check_params, check_size
from rnnjax._numerics import affine
from rnnjax._recipe import factory
from rnnjax.base import Carry, Cell, Key, Layer
from rnnjax.initializers import draw_linear
from rnnjax.layers._common import StepArguments, activated, last_of_mixed, with_signature
from rnnjax.layers.recurrent import as_layer
from rnnjax.transforms.precision import Policy, as_operand, as_state, cast_parameters


class HeadParams(NamedTuple):
    """Parameters ``layer`` of what is below, and ``w`` [H, O], ``bias`` [O] of the head."""

    layer: Any
    w: Array
    bias: Array


@factory
def output_head(
    layer: Cell | Layer,
    output_size: int,
    activation: Callable[[Array], Array] | None = None,
    *,
    policy: Policy | None = None,
) -> Layer:
    r"""A layer with a linear map on the output of every step, :math:`Y_t = f(h_t W_o + b_o)`.

    :math:`h_t` is the new state, the one after step t. Masked steps emit exact zeros, as
    everywhere. The weights start Glorot uniform, the bias zero. ``last`` is the output at the last
    real step, of a reversed layer at the first; of a bidirectional one, whose backward half has
    read one step there, a ``classifier`` takes more where it has no head in between.

    Args:
        layer: what is below: a cell or a layer.
        output_size: O.
        activation: f; None for the identity.
        policy: the dtypes of the layer and of the head, as for ``with_policy``. The output is in
            the state's, after f in at least float32.

    Raises:
        ValueError: ``output_size`` is not a positive integer, or ``layer`` neither cell nor layer.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> layer = rnnjax.output_head(rnnjax.vanilla(15), 1, jax.nn.sigmoid)
        >>> params = layer.init(jax.random.key(0), 5)
        >>> layer.apply(params, jnp.ones((10, 5)))[1].shape
        (10, 1)
    """
    below = as_layer(layer, policy=policy)
    size = check_size("output_size", output_size)
    if activation is not None:
        check_function("activation", activation)

    def init(key: Key, input_size: int) -> HeadParams:
        first, second = jax.random.split(check_key(key))
        head = draw_linear(second, below.output_size, size)
        return HeadParams(below.init(first, input_size), *cast_parameters(policy, head))

    def apply(
        params: HeadParams, xs: Array, steps: StepArguments, initial_carry: Carry, key: Key | None
    ) -> tuple[Carry, Array]:
        carry, hs = below.apply(params.layer, xs, **steps, initial_carry=initial_carry, key=key)
        w = as_operand(policy, params.w)
        ys = affine(hs, w, params.bias, name="the output of the layer", size=size)
        valid = masking.valid_steps(steps["lengths"], steps["mask"], hs.shape[:-2], hs.shape[-2])
        return carry, as_state(policy, activated(activation, valid, ys))

    def initial_carry(params: HeadParams, batch_shape: tuple[int, ...] = ()) -> Carry:
        return below.initial_carry(check_params(params, HeadParams).layer, batch_shape)

    return below._replace(
        init=init,
        apply=with_signature(apply, HeadParams),
        output_size=size,
        last=last_of_mixed(below),
        initial_carry=initial_carry,
    )
