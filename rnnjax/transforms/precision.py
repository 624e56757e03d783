"""Which dtypes a cell keeps, computes and remembers in."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import jaxprs_in_params
from jax.typing import DTypeLike

from rnnjax._numerics import accumulation_dtype
from rnnjax._recipe import Made, factory
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


Whole = TypeVar("Whole", bound=Made)


@factory
def with_policy(cell: Whole, policy: Policy) -> Whole:
    r"""The same cell, layer or model with the dtypes of a policy: kept, computed, remembered.

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
        cell: any cell; or a layer or model of a function that has the argument ``policy``: it is
            made again, with all its cells, heads and tables of vectors under the policy. A cell of
            your own is given matrices and inputs of the compute dtype (of several inputs those that
            enter a product), and the products that it takes itself are what JAX makes of those.
            Arrays of several axes that it reads in no product stay as they are where the class of
            its parameters names them in ``POINTWISE``.
        policy: the dtypes. float64 needs ``jax.config.update("jax_enable_x64", True)``.

    Raises:
        ValueError: no policy, a dtype that is none of the four, a layer or model that takes none or
            has one already; and once the cell is used, float64 without x64.

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
    if not isinstance(cell, Made):
        raise ValueError(
            f"cell must be a rnnjax.Cell, a layer or a model, got {type(cell).__name__}"
        )
    if not isinstance(policy, Policy):
        raise ValueError(
            'policy must be a rnnjax.Policy, such as rnnjax.Policy(compute="bfloat16"), '
            f"got {type(policy).__name__}"
        )
    named = check_policy(policy)
    if not isinstance(cell, Cell):
        return _made_again(cell, named)
    if not all(
        type(dtype) is str and dtype == name for dtype, name in zip(policy, named, strict=True)
    ):
        return with_policy(cell, named)  # one recipe for one policy, however it was spelled
    return _cell_with_policy(cell, named)  # pyright: ignore[reportReturnType]


def _made_again(whole: Whole, policy: Policy) -> Whole:
    """A layer or model from the same arguments, with a policy."""
    recipe = whole._recipe
    if recipe is None or "policy" not in recipe.arguments:
        raise ValueError(
            "cell must be a cell, or a layer or model made by a function that has the argument "
            f"policy, got {whole!r}: give the policy to its cells"
        )
    if recipe.arguments["policy"] is not None:
        raise ValueError(f"cell must be without a policy, got {whole!r}, which has one already")
    return recipe.again(policy=policy)


def cast_parameters(policy: Policy | None, params: Params) -> Params:
    """First parameters in the dtype that a policy keeps them in."""
    if policy is None:
        return params
    _check_enabled(policy)
    return jax.tree.map(lambda a: _cast(a, jnp.dtype(policy.parameter)), params)


def as_operand(policy: Policy | None, w: Array) -> Array:
    """A matrix in the dtype in which products are to be taken."""
    return w if policy is None else _cast(w, jnp.dtype(policy.compute))


def as_state(policy: Policy | None, y: Array) -> Array:
    """An output in the dtype that outputs are to have."""
    return y if policy is None else _cast(y, jnp.dtype(policy.state))


def _cell_with_policy(cell: Cell, policy: Policy) -> Cell:
    parameter, compute, state = (jnp.dtype(dtype) for dtype in policy)
    # float64 also where x64 is off as yet: it may be turned on before the cell is used.
    work = np.promote_types(np.promote_types(compute, np.float32), state)
    inner = cell

    def operands(params: Params) -> Params:
        _check_enabled(policy)
        return jax.tree.map(cast_node, params, is_leaf=lambda node: hasattr(node, "POINTWISE"))

    def cast_node(node: Any) -> Any:
        # A phase that is rounded is off by more at every step.
        if hasattr(node, "POINTWISE"):
            kept = {name: lift(getattr(node, name)) for name in node.POINTWISE}
            return node._replace(**{k: cast_node(a) for k, a in node._asdict().items()} | kept)
        return _cast(node, compute if jnp.ndim(node) > 1 else work)

    def lift(tree: Any) -> Any:
        return jax.tree.map(lambda a: _cast(a, work), tree)

    def init(key: Key, input_size: int) -> Params:
        _check_enabled(policy)
        return jax.tree.map(lambda a: _cast(a, parameter), inner.init(key, input_size))

    def initial_carry(params: Params) -> Carry:
        _check_enabled(policy)
        return _cast_each(inner.initial_carry(lift(params)), state)

    def project(params: Params, x: Any) -> tuple:
        params, narrow = operands(params), jax.tree.map(lambda a: _cast(a, compute), x)
        if len(jax.tree.leaves(x)) > 1:
            # Of several inputs some, as elapsed times, are no operands of a product.
            read = _read_by_products(inner.project, params, narrow)
            narrow = jax.tree.map(lambda a, n, r: n if r else _cast(a, work), x, narrow, read)
        return lift(inner.project(params, narrow))

    def recurrent(params: Params) -> Array:
        assert inner.recurrent is not None
        return _cast(inner.recurrent(lift(params)), compute)

    def update(
        params: Params, carry: Carry, x_proj: tuple, h_proj: tuple, *context: Any
    ) -> tuple[Carry, Any]:
        assert inner.update is not None
        new = inner.update(operands(params), lift(carry), x_proj, lift(h_proj), *context)
        return _cast_each(new, state)

    def step(params: Params, carry: Carry, x_proj: tuple, *context: Any) -> tuple[Carry, Any]:
        assert inner.plain_step is not None
        new = inner.plain_step(operands(params), lift(carry), x_proj, *context)
        return _cast_each(new, state)

    def gates(params: Params, carry: Carry, x_proj: tuple, h_proj: tuple, *context: Any) -> Any:
        assert inner.gates is not None
        values = inner.gates(operands(params), lift(carry), x_proj, lift(h_proj), *context)
        return _cast_each(values, state)

    def context(params: Params, given: Any) -> Any:
        assert inner.context is not None
        narrow = jax.tree.map(lambda a: _cast(a, compute), given)
        return lift(inner.context(operands(params), narrow))

    def noise(key: Key, params: Params, shape: NoiseShape) -> Noise:
        assert inner.noise is not None
        return inner.noise(key, lift(params), shape)

    def linear(params: Params, x_proj: tuple) -> tuple[Carry, Carry]:
        assert inner.linear is not None
        return inner.linear(operands(params), x_proj)

    def chunk(
        params: Params, carry: Carry, reset_carry: Carry, x_projs: tuple, *steps: Any
    ) -> tuple[Carry, Any]:
        assert inner.chunk is not None
        new = inner.chunk(operands(params), lift(carry), lift(reset_carry), x_projs, *steps)
        return _cast_each(new, state)

    return cell._replace(
        init=init,
        initial_carry=initial_carry,
        project=project,
        recurrent=inner.recurrent and recurrent,
        update=inner.update and update,
        plain_step=inner.plain_step and step,
        gates=inner.gates and gates,
        context=inner.context and context,
        noise=inner.noise and noise,
        # A carry rounded at every step does not obey a linear recurrence.
        linear=linear if inner.linear and work == state else None,
        chunk=chunk if inner.chunk and work == state else None,
    )


def check_policy(policy: Any) -> Policy:
    """The policy with its dtypes by name.

    Raises:
        ValueError: it is none, or a dtype is none of the four.
    """
    if not isinstance(policy, Policy):
        raise ValueError(f"policy must be a rnnjax.Policy, got {type(policy).__name__}")
    return Policy(*(_check_dtype(*field).name for field in policy._asdict().items()))


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
                f"policy.{name} must be of at most 32 bits, got {dtype}, which JAX has only after "
                'jax.config.update("jax_enable_x64", True)'
            )


def _cast(a: Any, dtype: jnp.dtype) -> Any:
    """A real array in ``dtype``, a complex one in its complex dtype, and others as they are."""
    if jnp.issubdtype(a.dtype, jnp.complexfloating):
        wide = accumulation_dtype(dtype) == jnp.float64  # no promotion: it may be strict
        dtype = jnp.dtype("complex128" if wide else "complex64")
    elif not jnp.issubdtype(a.dtype, jnp.floating):
        return a
    return a if a.dtype == dtype else a.astype(dtype)


def _cast_each(tree: Any, dtype: jnp.dtype) -> Any:
    """A tree of arrays in ``dtype``; what is one array in two places of it stays one."""
    made: dict[int, Any] = {}
    for leaf in jax.tree.leaves(tree):
        made.setdefault(id(leaf), _cast(leaf, dtype))
    return jax.tree.map(lambda leaf: made[id(leaf)], tree)


def _read_by_products(project: Callable[..., Any], params: Params, x: Any) -> Any:
    """For each leaf of ``x`` whether it, or what is computed of it, enters a matrix product."""
    jaxpr = jax.make_jaxpr(project)(params, x).jaxpr
    leaves, tree = jax.tree.flatten(x)
    return tree.unflatten(_enters_product(jaxpr, v) for v in jaxpr.invars[-len(leaves) :])


def _enters_product(jaxpr: Any, variable: Any) -> bool:
    reached = {id(variable)}
    for equation in jaxpr.eqns:
        if not reached.isdisjoint(map(id, equation.invars)):
            if _has_product(equation):
                return True
            reached.update(map(id, equation.outvars))
    return False


def _has_product(equation: Any) -> bool:
    return equation.primitive.name in ("dot_general", "conv_general_dilated") or any(
        _has_product(inner) for jaxpr in jaxprs_in_params(equation.params) for inner in jaxpr.eqns
    )
