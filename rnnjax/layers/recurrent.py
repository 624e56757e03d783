"""One cell over whole sequences."""

from typing import Any

import jax
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_cell, check_flag, kind_of_part
from rnnjax._native import in_native_order
from rnnjax._recipe import factory
from rnnjax.base import Carry, Cell, Key, Layer, Params
from rnnjax.engine._plan import check_request
from rnnjax.engine.one_step import carry_of_batch
from rnnjax.engine.unroll import unroll
from rnnjax.layers._common import StepArguments, with_signature
from rnnjax.transforms.precision import Policy, with_policy


@factory
def recurrent(
    cell: Cell,
    *,
    reverse: bool = False,
    policy: Policy | None = None,
    remat: int | str | None = None,
    implementation: str | None = None,
    scan_unroll: int | None = None,
) -> Layer:
    """One cell over the whole sequence: :func:`rnnjax.unroll` as a layer.

    Args:
        cell: what to run. Its noise, if it has any, is drawn where ``apply`` is given a key.
        reverse: run from the last real step down to the first.
        policy: the dtypes of parameters, products and state, as for ``with_policy``; None keeps
            those of the parameters.
        remat: what reverse mode keeps, as for ``unroll``.
        implementation: as for ``unroll``.
        scan_unroll: steps per iteration of the scan, as for ``unroll``.

    Raises:
        ValueError: ``cell`` is no ``rnnjax.Cell``, or cannot be run as asked; when the layer is
            applied, from ``unroll``.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> layer = rnnjax.recurrent(rnnjax.gru(4))
        >>> params = layer.init(jax.random.key(0), 3)
        >>> carry, ys = layer.apply(params, jnp.ones((2, 5, 3)), lengths=[5, 2])
        >>> carry.shape, ys.shape
        ((2, 4), (2, 5, 4))
    """
    cell = check_cell(cell)
    reverse = check_flag("reverse", reverse)
    check_request(cell, implementation, remat, scan_unroll)
    if policy is not None:
        cell = with_policy(cell, policy)

    def apply(
        params: Params, xs: Array, steps: StepArguments, initial_carry: Carry, key: Key | None
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

    def initial_carry(params: Params, batch_shape: tuple[int, ...] = ()) -> Carry:
        leaves = jax.tree.leaves(params)
        if leaves and all(isinstance(leaf, int) for leaf in leaves):
            # Other libraries take a number of rows here, and the number of units.
            raise ValueError(
                f"params must be parameters, as init gives, got {params!r}: the order is "
                "initial_carry(params, batch_shape)"
            )
        return carry_of_batch(cell.initial_carry(in_native_order(params)), batch_shape)

    return Layer(
        init=cell.init,
        apply=with_signature(apply),
        output_size=cell.output_size,
        last=masking.take_first if reverse else masking.take_last,
        initial_carry=initial_carry,
        direction="backward" if reverse else "forward",
    )


def as_layer(part: Cell | Layer, *, reverse: bool = False, policy: Policy | None = None) -> Layer:
    """A cell as a layer, and a layer as it is, with a policy where one is given.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(part, Cell):
        return recurrent(part, reverse=reverse, policy=policy)
    if isinstance(part, Layer):
        return part if policy is None else with_policy(part, policy)
    raise not_a_layer("a layer", part)


def not_a_layer(name: str, part: Any) -> ValueError:
    """The error for what is neither a cell nor a layer, with what was probably meant."""
    return ValueError(f"{name} must be a rnnjax.Cell or a rnnjax.Layer, got {kind_of_part(part)}")


def as_causal_layer(part: Cell | Layer) -> Layer:
    """A cell as a layer, or a layer, for a model whose step sees the past alone.

    Raises:
        ValueError: it is neither, or it reads ahead.
    """
    if not isinstance(part, Cell | Layer):
        raise not_a_layer("layer", part)
    layer = as_layer(part)
    if not layer.causal:
        raise ValueError("layer must not read ahead, got one with a part that runs in reverse")
    return layer
