"""What blocks of today's recurrent networks are built of: a norm, and a gate around a layer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import (
    check_epsilon,
    check_function,
    check_key,
    check_params,
    check_shape,
    check_size,
)
from rnnjax._numerics import accumulation_dtype, affine
from rnnjax._recipe import factory
from rnnjax.base import Carry, Cell, Key, Layer
from rnnjax.initializers import draw_linear
from rnnjax.layers._common import (
    StepArguments,
    activated,
    last_of_mixed,
    one_array,
    one_output,
    with_signature,
)
from rnnjax.layers.recurrent import as_layer
from rnnjax.transforms.precision import Policy, as_operand, as_state, cast_parameters


class GatedParams(NamedTuple):
    """``w_in`` [D, E], ``w_gate`` [D, E], those of the layer in between, ``w_out`` [E, O]."""

    w_in: Array
    w_gate: Array
    layer: Any
    w_out: Array


@factory
def gated(
    layer: Cell | Layer | None,
    output_size: int,
    *,
    hidden_size: int | None = None,
    activation: Callable[[Array], Array] = jax.nn.silu,
    policy: Policy | None = None,
) -> Layer:
    r"""A layer between two linear maps, with a gate beside it.

    .. math:: Y = \big(f(X W_{in}) \odot g(X W_{gate})\big) W_{out}

    Inside, all are E wide, the layer's output size. The recurrent blocks of today are of this
    form, each in a ``residual(rms_norm(...))``:

    - Mamba: ``gated(stack(causal_convolution(E, 4, silu), s6(E)), D)``
    - xLSTM: ``gated(stack(causal_convolution(E, 4, silu), mlstm(E, num_heads=4)), D)``, nearly:
      there the values do not see the convolution, and a norm of each head stands behind the cell
    - Gated DeltaNet: ``gated(stack(causal_convolution(E, 4), gated_delta(E, num_heads=4)), D)``,
      nearly: there queries, keys and values have a convolution each, and a norm of each head
      stands behind the cell
    - Griffin: ``gated(stack(causal_convolution(E, 4), rg_lru(E)), D, activation=gelu)``, and then
      ``gated(None, D, hidden_size=3 * D, activation=gelu)``

    Without a layer, f is the identity and this is a gated map of every step by itself, the MLP of
    these blocks.

    Args:
        layer: f, a cell or a layer, whose input is as wide as its output; or None.
        output_size: O.
        hidden_size: E where there is no layer.
        activation: g.
        policy: the dtypes of all parts, as for ``with_policy``.

    Raises:
        ValueError: a size is not a positive integer, or ``hidden_size`` is missing, or given beside
            a layer.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> inner = rnnjax.stack(rnnjax.causal_convolution(16, 4, jax.nn.silu), rnnjax.s6(16))
        >>> mamba = rnnjax.residual(rnnjax.rms_norm(rnnjax.gated(inner, 8)))
        >>> params = mamba.init(jax.random.key(0), 8)
        >>> carry, ys = mamba.apply(params, jnp.ones((2, 5, 8)), lengths=[5, 2])
        >>> ys.shape
        (2, 5, 8)

    References:
        Dauphin et al., "Language modeling with gated convolutional networks", ICML 2017; Shazeer,
        "GLU variants improve transformer", 2020, arXiv:2002.05202; Gu and Dao, "Mamba", 2023,
        arXiv:2312.00752, figure 3; De et al., "Griffin", 2024, arXiv:2402.19427, figure 2.
    """
    outputs = check_size("output_size", output_size)
    check_function("activation", activation)
    if layer is not None and hidden_size is not None:
        raise ValueError(f"hidden_size must be None beside a layer, got {hidden_size!r}")
    inner = None if layer is None else as_layer(layer, policy=policy)
    size = check_size("hidden_size", hidden_size) if inner is None else inner.output_size

    def init(key: Key, input_size: int) -> GatedParams:
        first, gate, own, last = jax.random.split(check_key(key), 4)
        input_size = check_size("input_size", input_size)
        w_in, w_gate = (draw_linear(k, input_size, size)[0] for k in (first, gate))
        w_out = draw_linear(last, size, outputs)[0]
        w_in, w_gate, w_out = cast_parameters(policy, (w_in, w_gate, w_out))
        return GatedParams(w_in, w_gate, () if inner is None else inner.init(own, size), w_out)

    def check_shapes(params: GatedParams) -> None:
        into = (params.w_in.shape[0], size)
        for name, shape in {"w_in": into, "w_gate": into, "w_out": (size, outputs)}.items():
            check_shape(f"params.{name}", getattr(params, name), shape)

    def apply(
        params: GatedParams, xs: Array, steps: StepArguments, initial_carry: Carry, key: Key | None
    ) -> tuple[Carry, Array]:
        xs = one_array(xs)
        check_shapes(params)
        valid = masking.valid_steps(steps["lengths"], steps["mask"], xs.shape[:-2], xs.shape[-2])
        xs = masking.zero_padding(valid, xs)
        gate = activated(activation, valid, affine(xs, as_operand(policy, params.w_gate)))
        hs = affine(xs, as_operand(policy, params.w_in))
        carry = ()
        if inner is not None:
            hs = as_state(policy, hs)
            carry, hs = inner.apply(params.layer, hs, **steps, initial_carry=initial_carry, key=key)
        ys = affine(one_output(hs).astype(gate.dtype) * gate, as_operand(policy, params.w_out))
        return carry, masking.zero_padding(valid, as_state(policy, ys))

    def own_carry(params: GatedParams, batch_shape: tuple[int, ...] = ()) -> Carry:
        params = check_params(params, GatedParams)
        return () if inner is None else inner.initial_carry(params.layer, batch_shape)

    return Layer(
        init=init,
        apply=with_signature(apply, GatedParams),
        output_size=outputs,
        last=masking.take_last if inner is None else last_of_mixed(inner),
        initial_carry=own_carry,
        direction="forward" if inner is None else inner.direction,
    )


class RMSNormParams(NamedTuple):
    """``scale`` [D], and the parameters of the layer behind the norm."""

    scale: Array
    layer: Any


@factory
def rms_norm(layer: Cell | Layer, *, epsilon: float = 1e-6, policy: Policy | None = None) -> Layer:
    r"""A layer whose input is brought to a root mean square of 1, :math:`Y = f(g \odot X / r)`.

    .. math:: r_t = \sqrt{\tfrac{1}{D} \textstyle\sum_d x_{t,d}^2 + \epsilon}

    Each step by itself; the square is taken in at least float32. The carry is that of ``layer``.

    Args:
        layer: f, a cell or a layer.
        epsilon: keeps an input of zeros finite, and its gradient; in [1e-25, 1e38].
        policy: the dtypes of all parts, as for ``with_policy``.

    Raises:
        ValueError: ``epsilon`` is out of range, or ``layer`` neither cell nor layer.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> layer = rnnjax.residual(rnnjax.rms_norm(rnnjax.gru(4)))
        >>> params = layer.init(jax.random.key(0), 4)
        >>> layer.apply(params, jnp.ones((2, 5, 4)))[1].shape
        (2, 5, 4)

    References:
        Zhang and Sennrich, "Root mean square layer normalization", NeurIPS 2019, arXiv:1910.07467.
    """
    inner = as_layer(layer, policy=policy)
    least = check_epsilon(epsilon)

    def init(key: Key, input_size: int) -> RMSNormParams:
        scale = jnp.ones((check_size("input_size", input_size),), jnp.float32)
        return RMSNormParams(cast_parameters(policy, scale), inner.init(key, input_size))

    def apply(
        params: RMSNormParams,
        xs: Array,
        steps: StepArguments,
        initial_carry: Carry,
        key: Key | None,
    ) -> tuple[Carry, Array]:
        xs = one_array(xs)
        if xs.shape[-1:] != params.scale.shape:
            size = params.scale.shape[0]
            raise ValueError(f"xs must have shape [..., T, {size}], got shape {xs.shape}")
        valid = masking.valid_steps(steps["lengths"], steps["mask"], xs.shape[:-2], xs.shape[-2])
        wide = masking.zero_padding(valid, xs)
        wide = wide.astype(accumulation_dtype(wide.dtype))
        root = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + least)
        scale = params.scale.astype(wide.dtype).reshape((1,) * (xs.ndim - 1) + params.scale.shape)
        normed = (wide * root * scale).astype(xs.dtype)
        return inner.apply(params.layer, normed, **steps, initial_carry=initial_carry, key=key)

    def own_carry(params: RMSNormParams, batch_shape: tuple[int, ...] = ()) -> Carry:
        return inner.initial_carry(check_params(params, RMSNormParams).layer, batch_shape)

    return inner._replace(
        init=init, apply=with_signature(apply, RMSNormParams), initial_carry=own_carry
    )
