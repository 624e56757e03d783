"""Layers with a path around them: residual connections, and skip connections in a stack."""

import itertools

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_key, check_size
from rnnjax._recipe import factory
from rnnjax.base import Carry, Cell, Key, Layer, Params
from rnnjax.layers._common import (
    StepArguments,
    check_own_outputs,
    check_parts,
    joint_direction,
    one_array,
    one_output,
    split_context,
    split_key,
    with_signature,
)
from rnnjax.layers.recurrent import as_layer
from rnnjax.transforms.precision import Policy


@factory
def residual(layer: Cell | Layer, *, policy: Policy | None = None) -> Layer:
    r"""A layer whose input is added to its output, :math:`Y = X + f(X)`.

    Parameters and carry are those of ``layer``. A deep residual stack is
    ``stack(first, residual(second), residual(third))``, where ``first`` brings the input to the
    size that the others keep. Masked steps emit exact zeros, as everywhere: the input is not
    carried through there either.

    Args:
        layer: a cell or a layer f with as many outputs as inputs, D = O; a bidirectional layer of
            two H-unit cells has O = 2H.
        policy: the dtypes of the layer, as for ``with_policy``; the output is in the state's.

    Raises:
        ValueError: the input is not of the size of the output.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> layer = rnnjax.stack(rnnjax.gru(4), rnnjax.residual(rnnjax.gru(4)))
        >>> params = layer.init(jax.random.key(0), 3)
        >>> carry, ys = layer.apply(params, jnp.ones((2, 5, 3)), lengths=[5, 2])
        >>> ys.shape, bool(jnp.all(ys[1, 2:] == 0))
        ((2, 5, 4), True)

    References:
        He et al., "Deep residual learning for image recognition", CVPR 2016, arXiv:1512.03385;
        Wu et al., "Google's neural machine translation system", 2016, arXiv:1609.08144, for
        residual stacks of LSTM layers.
    """
    inner = as_layer(layer, policy=policy)

    def check(input_size: int) -> None:
        if check_size("input_size", input_size) != inner.output_size:
            raise ValueError(
                f"residual needs an input of the size of the layer's output, {inner.output_size}, "
                f"got size {input_size}"
            )

    def init(key: Key, input_size: int) -> Params:
        check(input_size)
        return inner.init(key, input_size)

    def apply(
        params: Params, xs: Array, steps: StepArguments, initial_carry: Carry, key: Key | None
    ) -> tuple[Carry, Array]:
        xs = one_array(xs)
        carry, ys = inner.apply(params, xs, **steps, initial_carry=initial_carry, key=key)
        check(xs.shape[-1])
        valid = masking.valid_steps(steps["lengths"], steps["mask"], xs.shape[:-2], xs.shape[-2])
        ys = one_output(ys)
        wide_xs, wide_ys = _in_one_dtype(masking.zero_padding(valid, xs), ys)
        return carry, (wide_xs + wide_ys).astype(ys.dtype)

    return inner._replace(init=init, apply=with_signature(apply))


@factory
def skip_stack(*layers: Cell | Layer, policy: Policy | None = None) -> Layer:
    r"""Layers on top of one another; all of them read the input, and all outputs are given.

    .. math::

        h^{(1)} &= f_1(X) \\
        h^{(k)} &= f_k([X, h^{(k-1)}]) \\
        Y &= [h^{(1)}, h^{(2)}, \dots, h^{(K)}]

    Both ends are one step away from every layer, which eases the training of deep stacks.
    Parameters and carries are tuples, one entry a layer. The ``last`` output joins what each
    layer says after its own last step.

    Args:
        layers: cells or layers, the lowest first. Layer k > 1 has D inputs and the outputs of the
            layer below, in that order.
        policy: the dtypes of all layers, as for ``with_policy``.

    Raises:
        ValueError: no layer.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> layer = rnnjax.skip_stack(rnnjax.lstm(4), rnnjax.gru(6))
        >>> params = layer.init(jax.random.key(0), 3)
        >>> params[0].w_ih.shape, params[1].w_ih.shape
        ((3, 16), (7, 18))
        >>> carry, ys = layer.apply(params, jnp.ones((2, 5, 3)), lengths=[5, 2])
        >>> ys.shape
        (2, 5, 10)

    References:
        Graves, "Generating sequences with recurrent neural networks", 2013, arXiv:1308.0850,
        section 2.
    """
    if not layers:
        raise ValueError("skip_stack needs at least one layer, got none")
    floors = [as_layer(layer, policy=policy) for layer in layers]
    sizes = [floor.output_size for floor in floors]

    def init(key: Key, input_size: int) -> tuple:
        keys = jax.random.split(check_key(key), len(floors))
        below = [0, *sizes[:-1]]
        return tuple(
            floor.init(k, input_size + size)
            for floor, k, size in zip(floors, keys, below, strict=True)
        )

    def apply(
        params: tuple, xs: Array, steps: StepArguments, initial_carry: Carry, key: Key | None
    ) -> tuple[tuple, Array]:
        start = (None,) * len(floors) if initial_carry is None else initial_carry
        check_parts("initial_carry", start, len(floors))
        check_parts("params", params, len(floors), (tuple, list))
        xs = one_array(xs)
        carries, outputs = [], []
        keys = split_key(key, len(floors))
        steps_of = split_context(steps, len(floors))
        for floor, p, c, k, own in zip(floors, params, start, keys, steps_of, strict=True):
            seen = jnp.concatenate(_in_one_dtype(xs, *outputs[-1:]), axis=-1)
            carry, ys = floor.apply(p, seen, **own, initial_carry=c, key=k)
            carries.append(carry)
            outputs.append(one_output(ys))
        return tuple(carries), jnp.concatenate(_in_one_dtype(*outputs), axis=-1)

    def last(ys: Array, valid: Array) -> Array:
        check_own_outputs(ys, sum(sizes))
        ends = list(itertools.accumulate(sizes))[:-1]
        parts = zip(floors, jnp.split(ys, ends, axis=-1), strict=True)
        return jnp.concatenate([floor.last(part, valid) for floor, part in parts], axis=-1)

    def initial_carry(params: tuple, batch_shape: tuple[int, ...] = ()) -> tuple:
        check_parts("params", params, len(floors), (tuple, list))
        parts = zip(floors, params, strict=True)
        return tuple(floor.initial_carry(p, batch_shape) for floor, p in parts)

    return Layer(
        init=init,
        apply=with_signature(apply),
        output_size=sum(sizes),
        last=last,
        initial_carry=initial_carry,
        direction=joint_direction(floors),
    )


def _in_one_dtype(*arrays: Array) -> list[Array]:
    """All in the dtype to which they promote, also for those who have JAX promote nothing."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*(a.dtype for a in arrays))
    return [a.astype(dtype) for a in arrays]
