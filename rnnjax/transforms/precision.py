"""Which dtypes a cell keeps, computes and remembers in."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from rnnjax._numerics import accumulation_dtype
from rnnjax.base import Carry, Cell, Key, Noise, NoiseShape, Params

DTYPES = ("bfloat16", "float16", "float32", "float64")


class Policy(NamedTuple):
    """Three dtypes, each of bfloat16, float16, float32 and float64.

    Attributes:
        parameter: of the parameters ``init`` gives, and of their gradients.
        compute: of the operands of matrix products. Products are summed, and all that is
            pointwise is computed, in at least float32.
        state: of the carry and of the outputs. In bfloat16 or float16 the carry is rounded after
            every step, and a sum over many steps soon stands still.
    """

    parameter: DTypeLike = "float32"
    compute: DTypeLike = "float32"
    state: DTypeLike = "float32"


def with_policy(cell: Cell, policy: Policy) -> Cell:
    r"""A cell that keeps its parameters, computes and remembers in the dtypes of a policy.

    .. math::

        r_t &= \mathrm{compute}(h_{t-1}) \, \mathrm{compute}(W_{hh}) \quad
            \text{summed in float32 or wider} \\
        s_t &= \mathrm{state}(\mathrm{update}(s_{t-1}, z_t, r_t))

    ``Policy(compute="bfloat16")`` is mixed precision as usual: master weights, carry and sums in
    float32, products in bfloat16. Parameters are drawn in float32 and then cast, so a narrow one
    is the rounding of the draw in float32. Parameters of another dtype than the policy's, as from
    a file, are taken too and cast when used. Vectors such as biases are not operands of a product
    and are never rounded to the compute dtype.

    Whatever the parameters and inputs are, carry and outputs have the state dtype, before the
    first step as after the last. A complex carry has the complex dtype of the state, complex64 at
    least.

    Args:
        cell: any cell. Of a cell written as a plain ``step``, or one whose own functions do not
            use ``rnnjax.base.linear``, the matrices and inputs are cast, and its products are what
            JAX makes of those.
        policy: the dtypes. float64 needs ``jax.config.update("jax_enable_x64", True)``.

    Raises:
        ValueError: no cell, no policy, or a dtype that is none of the four; and once the cell is
            used, float64 without x64.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.with_policy(rnnjax.lstm(4), rnnjax.Policy(compute="bfloat16"))
        >>> params = cell.init(jax.random.key(0), 3)
        >>> carry, ys = rnnjax.unroll(cell, params, jnp.ones((2, 5, 3), jnp.bfloat16))
        >>> [str(a.dtype) for a in (params.w_hh, carry.c, ys)]
        ['float32', 'float32', 'float32']

    References:
        Micikevicius et al., "Mixed precision training", ICLR 2018, arXiv:1710.03740.
    """
    if not isinstance(cell, Cell) or not isinstance(policy, Policy):
        raise ValueError(
            "with_policy takes a rnnjax.Cell and a Policy, "
            f"got {type(cell).__name__} and {type(policy).__name__}"
        )
    parameter, compute, state = (_check_dtype(*field) for field in policy._asdict().items())
    work = jnp.promote_types(accumulation_dtype(compute), accumulation_dtype(state))
    inner = cell

    def operands(params: Params) -> Params:
        _check_enabled(policy)
        return jax.tree.map(lambda a: _cast(a, compute if jnp.ndim(a) > 1 else work), params)

    def lift(tree: Any) -> Any:
        return jax.tree.map(lambda a: _cast(a, work), tree)

    def init(key: Key, input_size: int) -> Params:
        _check_enabled(policy)
        return jax.tree.map(lambda a: _cast(a, parameter), inner.init(key, input_size))

    def initial_carry(params: Params) -> Carry:
        _check_enabled(policy)
        return _cast_each(inner.initial_carry(lift(params)), state)

    def project(params: Params, x: Array) -> tuple:
        return lift(inner.project(operands(params), _cast(x, compute)))

    def recurrent(params: Params) -> Array:
        assert inner.recurrent is not None
        return _cast(inner.recurrent(lift(params)), compute)

    def update(params: Params, carry: Carry, x_proj: tuple, h_proj: tuple) -> tuple[Carry, Any]:
        assert inner.update is not None
        return _cast_each(inner.update(operands(params), lift(carry), x_proj, lift(h_proj)), state)

    def step(params: Params, carry: Carry, x_proj: tuple) -> tuple[Carry, Any]:
        assert inner.plain_step is not None
        return _cast_each(inner.plain_step(operands(params), lift(carry), x_proj), state)

    def gates(params: Params, carry: Carry, x_proj: tuple, h_proj: tuple) -> Any:
        assert inner.gates is not None
        return _cast_each(inner.gates(operands(params), lift(carry), x_proj, lift(h_proj)), state)

    def noise(key: Key, params: Params, shape: NoiseShape) -> Noise:
        assert inner.noise is not None
        drawn = inner.noise(key, lift(params), shape)
        return drawn._replace(recurrent=jax.tree.map(lambda a: _cast(a, compute), drawn.recurrent))

    def linear(params: Params, x_proj: tuple) -> tuple[Carry, Carry]:
        assert inner.linear is not None
        return inner.linear(operands(params), x_proj)

    return cell._replace(
        init=init,
        initial_carry=initial_carry,
        project=project,
        recurrent=inner.recurrent and recurrent,
        update=inner.update and update,
        plain_step=inner.plain_step and step,
        gates=inner.gates and gates,
        noise=inner.noise and noise,
        # A carry rounded at every step does not obey a linear recurrence.
        linear=linear if inner.linear and work == state else None,
    )


def _check_dtype(name: str, dtype: Any) -> jnp.dtype:
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in DTYPES:
        raise ValueError(f"{name} must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return found


def _check_enabled(policy: Policy) -> None:
    for name, dtype in policy._asdict().items():
        if jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
            raise ValueError(
                f"the policy's {name} is float64, which JAX has only after "
                'jax.config.update("jax_enable_x64", True)'
            )


def _cast(a: Any, dtype: jnp.dtype) -> Any:
    """A real array in ``dtype``, a complex one in its complex dtype, and others as they are."""
    if jnp.issubdtype(a.dtype, jnp.complexfloating):
        dtype = jnp.promote_types(accumulation_dtype(dtype), jnp.complex64)
    elif not jnp.issubdtype(a.dtype, jnp.floating):
        return a
    return a if a.dtype == dtype else a.astype(dtype)


def _cast_each(tree: Any, dtype: jnp.dtype) -> Any:
    """A tree of arrays in ``dtype``; what is one array in two places of it stays one."""
    made: dict[int, Any] = {}
    for leaf in jax.tree.leaves(tree):
        made.setdefault(id(leaf), _cast(leaf, dtype))
    return jax.tree.map(lambda leaf: made[id(leaf)], tree)
