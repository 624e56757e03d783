"""A linear map of every step by itself, and a function of it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array

from rnnjax import masking
from rnnjax._checks import (
    check_batch_shape,
    check_function,
    check_key,
    check_shape,
    check_size,
    describe,
)
from rnnjax._numerics import affine
from rnnjax._recipe import factory
from rnnjax.base import Carry, Key, Layer
from rnnjax.initializers import draw_linear
from rnnjax.layers._common import StepArguments, activated, one_array, with_signature
from rnnjax.transforms.precision import Policy, as_operand, as_state, cast_parameters


class DenseParams(NamedTuple):
    """``w`` [D, O] and ``bias`` [O]."""

    w: Array
    bias: Array


@factory
def dense(
    output_size: int,
    activation: Callable[[Array], Array] | None = None,
    *,
    policy: Policy | None = None,
) -> Layer:
    r"""A layer that sees one step at a time, :math:`Y_t = f(x_t W + b)`.

    For below a recurrent layer and between two of them; on top of one, :func:`output_head` is the
    same map. It has no carry, and computes all steps at once. Masked steps emit exact zeros and
    are never read. The weights start Glorot uniform, the bias zero.

    Args:
        output_size: O.
        activation: f; None for the identity.
        policy: the dtypes, as for ``with_policy``. The output is in the state's, after f in at
            least float32.

    Raises:
        ValueError: ``output_size`` is not a positive integer, or ``activation`` no function; when
            it runs, an input of another size than that of ``init``, or a carry.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> layer = rnnjax.stack(rnnjax.dense(8, jax.nn.relu), rnnjax.gru(4))
        >>> params = layer.init(jax.random.key(0), 3)
        >>> carry, ys = layer.apply(params, jnp.ones((2, 5, 3)), lengths=[5, 2])
        >>> params[0].w.shape, ys.shape
        ((3, 8), (2, 5, 4))
    """
    size = check_size("output_size", output_size)
    if activation is not None:
        check_function("activation", activation)

    def init(key: Key, input_size: int) -> DenseParams:
        linear = draw_linear(check_key(key), check_size("input_size", input_size), size)
        return DenseParams(*cast_parameters(policy, linear))

    def apply(
        params: DenseParams,
        xs: Array,
        steps: StepArguments,
        initial_carry: Carry,
        key: Key | None,
    ) -> tuple[Carry, Array]:
        for name, given in (("context", steps.get("context")), ("initial_carry", initial_carry)):
            if jax.tree.leaves(given):
                raise ValueError(f"{name} must be None for dense, got {describe(given)}")
        xs = one_array(xs)
        check_shape("params.w", params.w, (len(params.w), size))
        check_shape("params.bias", params.bias, (size,))
        batch, time = xs.shape[:-2], xs.shape[-2]
        valid = masking.valid_steps(steps["lengths"], steps["mask"], batch, time)
        if steps["resets"] is not None:
            masking.check_flags("resets", steps["resets"], batch, time)
        # Zeros before the product: NaN there would come back in the gradient of the weights.
        seen, w = masking.zero_padding(valid, xs), as_operand(policy, params.w)
        ys = affine(seen, w, params.bias)
        return (), as_state(policy, activated(activation, valid, ys))

    def initial_carry(params: DenseParams, batch_shape: tuple[int, ...] = ()) -> Carry:
        check_batch_shape(batch_shape)
        return ()

    return Layer(
        init=init,
        apply=with_signature(apply, DenseParams),
        output_size=size,
        last=masking.take_last,
        initial_carry=initial_carry,
        direction="forward",
    )
