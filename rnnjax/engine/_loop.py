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
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from rnnjax._numerics import accumulation_dtype, as_rows, linear
from rnnjax.base import Cell
from rnnjax.masking import select, zero_padding


class Weights(NamedTuple):
    """What the loop reads at every step."""

    w_hh: Array | None  # [P, G*H]
    params: Any
    fresh: Any  # the carry after a reset, [B, ...] a leaf
    hidden_noise: Array | None = None  # [B, P], what h is multiplied by before w_hh


class Inputs(NamedTuple):
    """What the loop reads step by step, time first."""

    zs: tuple[Any, ...]  # [T, B, ...] a leaf: the gates, then what only update reads
    valid: Array | None  # [T, B]
    resets: Array | None  # [T, B], True: return to the fresh carry before this step


class Loop(NamedTuple):
    """How to run over time; all of it is fixed when the loop is compiled."""

    reverse: bool = False
    scan_unroll: int = 1
    all_carries: bool = False  # outputs are (y, carry)


def run(cell: Cell, loop: Loop, weights: Weights, carry: Any, inputs: Inputs) -> tuple[Any, Any]:
    """Run ``cell`` over time, with one batch axis: ``(carry, ys [T, B, O])``."""
    if cell.step is not None:
        return _scan(loop, functools.partial(_plain_step, cell, loop, weights), carry, inputs)
    return _differentiable_loop(cell, loop)(weights, carry, inputs)


def _scan(loop: Loop, step: Callable, carry: Any, inputs: Any) -> tuple[Any, Any]:
    return lax.scan(step, carry, inputs, reverse=loop.reverse, unroll=loop.scan_unroll)


def _enter(at: Inputs, fresh: Any, carry: Any) -> Any:
    return carry if at.resets is None else select(at.resets, fresh, carry)


def _leave(loop: Loop, at: Inputs, held: Any, new: Any, y: Any) -> tuple[Any, Any]:
    carry, y = select(at.valid, new, held), zero_padding(at.valid, y)
    return carry, (y, carry) if loop.all_carries else y


def _plain_step(
    cell: Cell, loop: Loop, weights: Weights, carry: Any, at: Inputs
) -> tuple[Any, Any]:
    assert cell.step is not None
    carry = _enter(at, weights.fresh, carry)
    step = jax.vmap(cell.step, in_axes=(None, 0, 0))
    new, y = step(weights.params, carry, at.zs)
    return _leave(loop, at, carry, new, y)


def gate_widths(w_hh: Array | None, zs: tuple[Any, ...]) -> tuple[int, ...]:
    """The widths of the pieces of ``h @ w_hh``: those of the first pieces of ``zs``.

    Raises:
        ValueError: no number of first pieces is as wide as the recurrent weights.
    """
    widths: list[int] = []
    columns = 0 if w_hh is None else w_hh.shape[-1]
    for z in zs:
        if sum(widths) < columns and hasattr(z, "shape"):
            widths.append(z.shape[-1])
    if sum(widths) != columns:
        raise ValueError(
            f"a cell's recurrent weights {w_hh.shape if w_hh is not None else ()} must be as wide "
            f"as the first pieces of project together, got {len(widths)} pieces of widths {widths}"
        )
    return tuple(widths)


def _cut(x: Array, widths: tuple[int, ...]) -> tuple[Array, ...]:
    ends = list(itertools.accumulate(widths))
    return tuple(jnp.split(x, ends[:-1], axis=-1))


def recur(h: Array, w_hh: Array | None, zs: tuple[Any, ...]) -> tuple[Array, ...]:
    """``h @ w_hh`` in pieces, one for each gate of ``zs``; () without recurrent weights."""
    return () if w_hh is None else _cut(linear(h, w_hh), gate_widths(w_hh, zs))


def noisy(h: Array, noise: Array | None) -> Array:
    """``h`` times its noise, if there is any."""
    return h if noise is None else h * noise


class _Linearised(NamedTuple):
    """What the derivative keeps of a step: where W was applied, and the two linear maps."""

    h: Array
    clean: Array | None  # h before its noise, where the noise has a tangent
    d_hidden: Callable
    d_update: Callable


def _differentiable_loop(cell: Cell, loop: Loop) -> Callable:
    assert cell.hidden is not None
    assert cell.update is not None
    hidden = jax.vmap(cell.hidden)
    update = jax.vmap(cell.update, in_axes=(None, 0, 0, 0))

    @jax.custom_jvp
    def over_time(weights: Weights, carry: Any, inputs: Inputs) -> tuple[Any, Any]:
        def step(carry: Any, at: Inputs) -> tuple[Any, Any]:
            carry = _enter(at, weights.fresh, carry)
            r = recur(noisy(hidden(carry), weights.hidden_noise), weights.w_hh, at.zs)
            new, y = update(weights.params, carry, at.zs, r)
            return _leave(loop, at, carry, new, y)

        return _scan(loop, step, carry, inputs)

    def rule(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
        weights, carry, inputs = primals
        reads = _reads_of_update(cell, primals, tangents)
        noise_moves = _moves(tangents[0].hidden_noise)
        held = inputs.valid is not None or inputs.resets is not None
        says_hidden = reads.says_hidden and not (
            held or loop.all_carries or weights.hidden_noise is not None
        )

        def step(carry: Any, at: Inputs) -> tuple[Any, Any]:
            carry = _enter(at, weights.fresh, carry)
            clean, d_hidden = jax.linearize(hidden, carry)
            h = noisy(clean, weights.hidden_noise)
            r = recur(h, weights.w_hh, at.zs)

            def pointwise(leaves: list, carry: Any, apart: list, r: Any) -> Any:
                params = reads.params.replace(weights.params, leaves)
                return update(params, carry, reads.apart.replace(at.zs, apart), r)

            pointwise = jax.checkpoint(pointwise, prevent_cse=False, policy=_is_kept)
            (new, y), d_update = jax.linearize(
                pointwise, reads.params.of(weights.params), carry, reads.apart.of(at.zs), r
            )
            carry, y = _leave(loop, at, carry, new, y)
            kept = _Linearised(h, clean if noise_moves else None, d_hidden, d_update)
            # Taking h from the outputs is a copy of them, worth it where y is kept, too.
            spared = says_hidden and any(leaf is y for leaf in jax.tree.leaves(kept))
            given = _Given(weights, at, _Said(h, y) if spared else None)
            return carry, (y, _Saved.of(kept, given))

        final, (ys, steps) = _scan(loop, step, carry, inputs)
        given = _Given(weights, inputs, None)
        if steps.reads_beyond(given):
            given = given._replace(said=_Said(_one_later(loop, hidden(carry), ys), ys))
        return (final, ys), _tangent_loop(loop, reads, primals, tangents, steps, given)

    over_time.defjvp(rule, symbolic_zeros=True)
    return over_time


class _Said(NamedTuple):
    """Outputs that are the hidden state: it is there anyway, and not to be kept again."""

    before: Array  # h_{t-1}
    now: Array  # h_t


class _Given(NamedTuple):
    """What the derivative has without keeping it, of one step or of all."""

    weights: Weights
    inputs: Inputs
    said: _Said | None


def _one_later(loop: Loop, first: Array, ys: Array) -> Array:
    """What each step finds, where ``ys`` is what each leaves behind; for any T, 0 or symbolic."""
    edge, at = ((-1, 1, 0), ys.shape[0] - 1) if loop.reverse else ((1, -1, 0), 0)
    moved = lax.pad(ys, jnp.zeros((), ys.dtype), (edge, *[(0, 0, 0)] * (ys.ndim - 1)))
    return jnp.where(lax.broadcasted_iota(jnp.int32, ys.shape, 0) == at, first[None], moved)


@jax.tree_util.register_pytree_node_class
class _Saved:
    """A tree of residuals in which no array is stored twice, nor one the loop was given anyway."""

    def __init__(self, leaves: list, sources: tuple, structure: Any) -> None:
        self.leaves, self.sources, self.structure = leaves, sources, structure

    @classmethod
    def of(cls, tree: Any, given: Any) -> "_Saved":
        known = {id(leaf): ("given", k) for k, leaf in enumerate(jax.tree.leaves(given))}
        flat, structure = jax.tree.flatten(tree)
        leaves: list = []
        for leaf in flat:
            if id(leaf) not in known:
                known[id(leaf)] = ("saved", len(leaves))
                leaves.append(leaf)
        return cls(leaves, tuple(known[id(leaf)] for leaf in flat), structure)

    def tree(self, given: Any) -> Any:
        stores = {"given": jax.tree.leaves(given), "saved": self.leaves}
        return jax.tree.unflatten(self.structure, [stores[s][k] for s, k in self.sources])

    def reads_beyond(self, given: Any) -> bool:
        """Whether it was made of more than ``given``, with arrays that came after these."""
        count = len(jax.tree.leaves(given))
        return any(store == "given" and k >= count for store, k in self.sources)

    def tree_flatten(self) -> tuple[list, tuple]:
        return self.leaves, (self.sources, self.structure)

    @classmethod
    def tree_unflatten(cls, static: tuple, leaves: Any) -> "_Saved":
        return cls(list(leaves), *static)


# What the backward loop computes again rather than reading back from memory: keeping a step's
# derivative costs the results of its other operations (the gates) and no more.
# fmt: off
_CHEAP = frozenset({
    "abs", "add", "add_any", "and", "broadcast_in_dim", "complex", "concatenate", "conj",
    "convert_element_type", "copy", "div", "eq", "ge", "gt", "imag", "integer_pow", "le", "lt",
    "max", "min", "mul", "ne", "neg", "not", "or", "real", "reshape", "select_n", "sign", "slice",
    "split", "square", "squeeze", "sub", "transpose",
})
# fmt: on


def _is_kept(primitive: Any, *operands: Any, **_: Any) -> bool:
    # JAX cannot mark complex results as kept.
    is_complex = any(jnp.issubdtype(a.dtype, jnp.complexfloating) for a in operands)
    return primitive.name not in _CHEAP and not is_complex


def _tangent_loop(
    loop: Loop, reads: "_Reads", primals: tuple, tangents: tuple, steps: _Saved, given: _Given
) -> tuple[Any, Any]:
    weights, carry, inputs = primals
    d_weights, d_carry, d_inputs = tangents
    d_params = _dense(reads.params.of(d_weights.params), reads.params.of(weights.params))
    d_apart = _dense(reads.apart.of(d_inputs.zs), reads.apart.of(inputs.zs))
    d_fresh = _dense(d_weights.fresh, weights.fresh)
    d_sums = _sum_tangents(reads, primals, tangents, steps.tree(given))
    # Transposed once, before the loop: the backward loop multiplies by this array as it lies.
    w_t = None if weights.w_hh is None else lax.optimization_barrier(weights.w_hh.T)

    def step(d_carry: Any, at: tuple) -> tuple[Any, Any]:
        saved, d_apart, d_sum, now, said = at
        linearised = saved.tree(_Given(weights, now, said))
        d_carry = _enter(now, d_fresh, d_carry)
        d_r = ()
        if w_t is not None:
            d_h = noisy(linearised.d_hidden(d_carry), weights.hidden_noise)
            d_r = _cut(_times_transposed(d_h, w_t) + d_sum, gate_widths(weights.w_hh, now.zs))
        d_new, d_y = linearised.d_update(d_params, d_carry, d_apart, d_r)
        return _leave(loop, now, d_carry, d_new, d_y)

    xs = (steps, d_apart, d_sums, inputs, given.said)
    return _scan(loop, step, _dense(d_carry, carry), xs)


def _sum_tangents(
    reads: "_Reads", primals: tuple, tangents: tuple, steps: _Linearised
) -> Array | None:
    """What is added to ``dh_t W``, for all steps: ``h_t dW``, and dz wherever z only meets r."""
    weights, _, inputs = primals
    d_weights, _, d_inputs = tangents
    if weights.w_hh is None:
        return None
    dtype = accumulation_dtype(weights.w_hh.dtype)
    count = len(gate_widths(weights.w_hh, inputs.zs))
    pieces = [
        as_rows(_dense(d_z, z).astype(dtype) if meets else jnp.zeros_like(z, dtype))
        for d_z, z, meets in zip(d_inputs.zs, inputs.zs, reads.meets[:count], strict=False)
    ]
    total = jnp.concatenate(pieces, axis=-1)
    if _moves(d_weights.w_hh):
        # Not to be kept as rows, too: h is kept for update anyway.
        times = jax.checkpoint(lambda h, w: linear(as_rows(h), w), prevent_cse=False)
        total = total + times(steps.h, d_weights.w_hh)
    if _moves(d_weights.hidden_noise):
        d_h = steps.clean * d_weights.hidden_noise[None]
        total = total + linear(as_rows(d_h), weights.w_hh)
    return total.reshape(*steps.h.shape[:2], total.shape[-1])


def _times_transposed(x: Array, w_t: Array) -> Array:
    out = accumulation_dtype(w_t.dtype)
    axes = (((x.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(x.astype(w_t.dtype), w_t, axes, preferred_element_type=out)


def _is_symbolic(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _moves(tangent: Any) -> bool:
    return tangent is not None and not _is_symbolic(tangent)


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
        params: the leaves of the parameters it reads and that have a tangent.
        meets: for each leaf of ``z``, whether it is used in nothing but the sum ``z_k + r_k``.
            There the tangents of both are one array, kept once.
        apart: the other leaves of ``z`` that have a tangent.
        says_hidden: whether its output is the h that the next step multiplies by W.
    """

    params: _Subset
    meets: tuple[bool, ...]
    apart: _Subset
    says_hidden: bool


def _reads_of_update(cell: Cell, primals: tuple, tangents: tuple) -> _Reads:
    assert cell.hidden is not None
    assert cell.update is not None
    weights, carry, inputs = primals
    zs = _shapes(inputs.zs, axes=2)
    rs = _recur_shapes(weights.w_hh, inputs.zs)
    params = _shapes(weights.params, axes=0)
    hidden, update = cell.hidden, cell.update

    def both(*operands: Any) -> tuple[Any, Any, Any]:
        new, y = update(*operands)
        return hidden(new), y, new

    jaxpr = jax.make_jaxpr(both)(params, _shapes(carry, axes=1), zs, rs).jaxpr
    h, *outputs = jaxpr.outvars
    y_is_an_array = len(outputs) == 1 + len(jax.tree.leaves(carry))
    before_r = len(jaxpr.invars) - len(rs)
    z_vars = jaxpr.invars[before_r - len(jax.tree.leaves(zs)) : before_r]
    r_vars = jaxpr.invars[before_r:]
    d_zs, d_params = _tangent_leaves(tangents[2].zs), _tangent_leaves(tangents[0].params)
    # The gates come first among the pieces of z, and each is one leaf.
    meets = [k < len(rs) and _meet_only(jaxpr, z, r_vars[k]) for k, z in enumerate(z_vars)]
    used = [_is_read(jaxpr, v) for v in jaxpr.invars[: len(d_params)]]
    return _Reads(
        params=_Subset(tuple(u and _moves(t) for u, t in zip(used, d_params, strict=True))),
        meets=tuple(meets),
        apart=_Subset(tuple(not met and _moves(t) for met, t in zip(meets, d_zs, strict=True))),
        says_hidden=y_is_an_array and outputs[0] is h,
    )


def _tangent_leaves(tangents: Any) -> list:
    return jax.tree.leaves(tangents, is_leaf=_is_symbolic)


def _shapes(tree: Any, axes: int) -> Any:
    """The shapes of ``tree`` for one example, without its first ``axes`` axes."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[axes:], a.dtype), tree)


def _recur_shapes(w_hh: Array | None, zs: tuple[Any, ...]) -> tuple[jax.ShapeDtypeStruct, ...]:
    if w_hh is None:
        return ()
    dtype = accumulation_dtype(w_hh.dtype)
    return tuple(jax.ShapeDtypeStruct((width,), dtype) for width in gate_widths(w_hh, zs))


def _uses(jaxpr: Any, var: Any) -> list:
    equations = [e for e in jaxpr.eqns if any(v is var for v in e.invars)]
    return equations + [jaxpr for v in jaxpr.outvars if v is var]


def _is_read(jaxpr: Any, var: Any) -> bool:
    """Whether anything comes of ``var``; its copy in another dtype that nothing reads does not."""

    def matters(use: Any) -> bool:
        primitive = getattr(use, "primitive", None)
        is_cast = primitive is not None and primitive.name == "convert_element_type"
        return not is_cast or _is_read(jaxpr, use.outvars[0])

    return any(matters(use) for use in _uses(jaxpr, var))


def _meet_only(jaxpr: Any, z: Any, r: Any) -> bool:
    """Whether the only use of ``z``, and the only use of ``r``, is the one sum ``z + r``."""
    uses_z, uses_r = _uses(jaxpr, z), _uses(jaxpr, r)
    if len(uses_z) != 1 or len(uses_r) != 1 or uses_z[0] is not uses_r[0]:
        return False
    primitive = getattr(uses_z[0], "primitive", None)
    return primitive is not None and primitive.name in ("add", "add_any")
