"""The loop over time of a cell written as ``project / recurrent / update``, and its derivative.

Forwards the loop is one ``lax.scan`` that holds nothing but the carry. The derivative is a rule
of its own, written once for all cells. At step t let ``r_t = h_t W``, and let ``u`` be ``update``
linearised there. Tangents then obey

    dr_t = dh_t W + h_t dW,        (dcarry', dy_t) = u(dparams, dcarry, dz_t, dr_t).

``h_t dW`` needs no tangent of the carry, so it is one product over all steps before the tangent
loop. Reverse mode is the transpose of this rule: a loop that carries only the cotangent of the
carry, and after it the gradient of W as ONE product, the sum of ``h_t^T dr_t`` over all steps.
Because the rule is made of ordinary operations, forward mode and derivatives of any order work.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from .base import Cell, accumulation_dtype, linear, split_gates
from .masking import select, zero_padding


class Weights(NamedTuple):
    """What the loop reads at every step."""

    w_hh: Array | None  # [P, G*H]
    params: Any
    fresh: Any  # the carry after a reset, [B, ...] a leaf


class Inputs(NamedTuple):
    """What the loop reads step by step, time first."""

    zs: tuple[Array, ...]  # [T, B, ...] a gate
    valid: Array | None  # [T, B]
    resets: Array | None  # [T, B], True: return to the fresh carry before this step


def run(
    cell: Cell, reverse: bool, scan_unroll: int, weights: Weights, carry: Any, inputs: Inputs
) -> tuple[Any, Any]:
    """Run ``cell`` over time, with one batch axis: ``(carry, ys [T, B, O])``."""
    scan = functools.partial(lax.scan, reverse=reverse, unroll=scan_unroll)
    if cell.step is not None:
        return scan(functools.partial(_plain_step, cell, weights), carry, inputs)
    return _differentiable_loop(cell, scan)(weights, carry, inputs)


def _enter(at: Inputs, fresh: Any, carry: Any) -> Any:
    return carry if at.resets is None else select(at.resets, fresh, carry)


def _leave(at: Inputs, held: Any, new: Any, y: Any) -> tuple[Any, Any]:
    return select(at.valid, new, held), zero_padding(at.valid, y)


def _plain_step(cell: Cell, weights: Weights, carry: Any, at: Inputs) -> tuple[Any, Any]:
    assert cell.step is not None
    carry = _enter(at, weights.fresh, carry)
    new, y = jax.vmap(cell.step, in_axes=(None, 0, 0))(weights.params, carry, at.zs)
    return _leave(at, carry, new, y)


def _recur(h: Array, w_hh: Array | None, gates: int) -> tuple[Array, ...]:
    return () if w_hh is None else split_gates(linear(h, w_hh), gates)


class _Linearised(NamedTuple):
    """What the derivative keeps of a step: where W was applied, and the two linear maps."""

    h: Array
    d_hidden: Callable
    d_update: Callable


def _differentiable_loop(cell: Cell, scan: Callable) -> Callable:
    assert cell.hidden is not None
    assert cell.update is not None
    hidden = jax.vmap(cell.hidden)
    update = jax.vmap(cell.update, in_axes=(None, 0, 0, 0))

    @jax.custom_jvp
    def loop(weights: Weights, carry: Any, inputs: Inputs) -> tuple[Any, Any]:
        def step(carry: Any, at: Inputs) -> tuple[Any, Any]:
            carry = _enter(at, weights.fresh, carry)
            r = _recur(hidden(carry), weights.w_hh, len(at.zs))
            new, y = update(weights.params, carry, at.zs, r)
            return _leave(at, carry, new, y)

        return scan(step, carry, inputs)

    def rule(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
        weights, carry, inputs = primals
        reads = _reads_of_update(cell, weights, carry, inputs)

        def step(carry: Any, at: Inputs) -> tuple[Any, Any]:
            carry = _enter(at, weights.fresh, carry)
            h, d_hidden = jax.linearize(hidden, carry)
            r = _recur(h, weights.w_hh, len(at.zs))

            def pointwise(leaves: list, carry: Any, apart: list, r: Any) -> Any:
                params = reads.params.replace(weights.params, leaves)
                return update(params, carry, reads.apart.replace(at.zs, apart), r)

            pointwise = jax.checkpoint(pointwise, prevent_cse=False, policy=_is_kept)
            (new, y), d_update = jax.linearize(
                pointwise, reads.params.of(weights.params), carry, reads.apart.of(at.zs), r
            )
            carry, y = _leave(at, carry, new, y)
            return carry, (y, _Linearised(h, d_hidden, d_update))

        final, (ys, steps) = scan(step, carry, inputs)
        return (final, ys), _tangent_loop(scan, reads, primals, tangents, steps)

    loop.defjvp(rule, symbolic_zeros=True)
    return loop


# What the backward loop computes again rather than reading back from memory: keeping a step's
# derivative costs the results of its other operations (the gates) and no more.
# fmt: off
_CHEAP = frozenset({
    "abs", "add", "add_any", "and", "broadcast_in_dim", "concatenate", "convert_element_type",
    "copy", "div", "eq", "ge", "gt", "integer_pow", "le", "lt", "max", "min", "mul", "ne",
    "neg", "not", "or", "reshape", "select_n", "sign", "slice", "split", "square", "squeeze",
    "sub", "transpose",
})
# fmt: on


def _is_kept(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name not in _CHEAP


def _tangent_loop(
    scan: Callable, reads: "_Reads", primals: tuple, tangents: tuple, steps: _Linearised
) -> tuple[Any, Any]:
    weights, carry, inputs = primals
    d_weights, d_carry, d_inputs = tangents
    d_params = _dense(reads.params.of(d_weights.params), reads.params.of(weights.params))
    d_apart = _dense(reads.apart.of(d_inputs.zs), reads.apart.of(inputs.zs))
    d_fresh = _dense(d_weights.fresh, weights.fresh)
    d_sums = _sum_tangents(reads, d_weights.w_hh, d_inputs.zs, inputs.zs, steps.h)
    # Transposed once, before the loop: the backward loop multiplies by this array as it lies.
    w_t = None if weights.w_hh is None else lax.optimization_barrier(weights.w_hh.T)

    def step(d_carry: Any, at: tuple) -> tuple[Any, Any]:
        linearised, d_apart, d_sum, flags = at
        d_carry = _enter(flags, d_fresh, d_carry)
        d_r = ()
        if w_t is not None:
            product = _times_transposed(linearised.d_hidden(d_carry), w_t)
            d_r = split_gates(product + d_sum, len(inputs.zs))
        d_new, d_y = linearised.d_update(d_params, d_carry, d_apart, d_r)
        return _leave(flags, d_carry, d_new, d_y)

    flags = inputs._replace(zs=())
    return scan(step, _dense(d_carry, carry), (steps, d_apart, d_sums, flags))


def _sum_tangents(
    reads: "_Reads", d_w: Any, d_zs: Sequence, zs: Sequence, hs: Array
) -> Array | None:
    """What is added to ``dh_t W``, for all steps: ``h_t dW``, and dz wherever z only meets r."""
    if d_w is None:
        return None
    width = d_w.shape[1] // len(zs)
    nothing = jnp.broadcast_to(jnp.zeros_like(hs[..., :1]), (*hs.shape[:-1], width))
    pieces = [
        nothing if apart else _dense(d_z, z)
        for d_z, z, apart in zip(d_zs, zs, reads.apart.leaves, strict=True)
    ]
    total = jnp.concatenate(pieces, axis=-1)
    return total if _is_symbolic(d_w) else total + linear(hs, d_w)


def _times_transposed(x: Array, w_t: Array) -> Array:
    out = accumulation_dtype(w_t.dtype)
    axes = (((x.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(x.astype(w_t.dtype), w_t, axes, preferred_element_type=out)


def _is_symbolic(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _dense(tangents: Any, primals: Any) -> Any:
    """``tangents`` with zeros like their primals in place of symbolic ones."""

    def instantiate(t: Any, primal: Any) -> Any:
        return jnp.zeros_like(primal) if _is_symbolic(t) else t

    return jax.tree.map(instantiate, tangents, primals, is_leaf=_is_symbolic)


class _Subset(NamedTuple):
    """Some leaves of a tree, marked True in ``leaves``."""

    leaves: tuple[bool, ...]

    def of(self, tree: Any) -> list:
        flat = jax.tree.leaves(tree, is_leaf=_is_symbolic)
        return [leaf for leaf, marked in zip(flat, self.leaves, strict=True) if marked]

    def replace(self, tree: Any, new: list) -> Any:
        flat, treedef = jax.tree.flatten(tree)
        rest = iter(new)
        marked = zip(flat, self.leaves, strict=True)
        return jax.tree.unflatten(treedef, [next(rest) if m else leaf for leaf, m in marked])


class _Reads(NamedTuple):
    """How ``update`` uses what it is given.

    Attributes:
        params: the leaves of the parameters it reads at all; the others need no tangent.
        apart: the pieces of ``z`` it uses other than in the sum ``z_k + r_k``. Where it uses
            nothing but that sum, the tangents of both are one array, kept once.
    """

    params: _Subset
    apart: _Subset


def _reads_of_update(cell: Cell, weights: Weights, carry: Any, inputs: Inputs) -> _Reads:
    assert cell.update is not None
    at_start = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), carry)
    zs = tuple(jax.ShapeDtypeStruct(z.shape[2:], z.dtype) for z in inputs.zs)
    rs = _recur_shapes(weights.w_hh, len(zs))
    params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), weights.params)
    jaxpr = jax.make_jaxpr(cell.update)(params, at_start, zs, rs).jaxpr
    count = len(jax.tree.leaves(params))
    z_vars = jaxpr.invars[len(jaxpr.invars) - len(rs) - len(zs) : len(jaxpr.invars) - len(rs)]
    r_vars = jaxpr.invars[len(jaxpr.invars) - len(rs) :] if rs else [None] * len(zs)
    return _Reads(
        params=_Subset(tuple(bool(_uses(jaxpr, v)) for v in jaxpr.invars[:count])),
        apart=_Subset(
            tuple(not _meet_only(jaxpr, z, r) for z, r in zip(z_vars, r_vars, strict=True))
        ),
    )


def _recur_shapes(w_hh: Array | None, gates: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    if w_hh is None:
        return ()
    piece = (w_hh.shape[1] // gates,)
    return (jax.ShapeDtypeStruct(piece, accumulation_dtype(w_hh.dtype)),) * gates


def _uses(jaxpr: Any, var: Any) -> list:
    equations = [e for e in jaxpr.eqns if any(v is var for v in e.invars)]
    return equations + [jaxpr for v in jaxpr.outvars if v is var]


def _meet_only(jaxpr: Any, z: Any, r: Any) -> bool:
    """Whether the only use of ``z``, and the only use of ``r``, is the one sum ``z + r``."""
    uses_z, uses_r = _uses(jaxpr, z), _uses(jaxpr, r)
    if len(uses_z) != 1 or len(uses_r) != 1 or uses_z[0] is not uses_r[0]:
        return False
    primitive = getattr(uses_z[0], "primitive", None)
    return primitive is not None and primitive.name in ("add", "add_any")
