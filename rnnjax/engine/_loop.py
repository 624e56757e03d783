"""The loop over time of a cell written as ``project / recurrent / update``, and its derivative.

Forwards the loop is one ``lax.scan`` that holds nothing but the carry. The derivative is a rule
of its own, written once for all cells. At step t let ``q_t = h_t W``, and let ``u`` be ``update``
linearised there. Tangents then obey

    dq_t = dh_t W + h_t dW,        (dcarry', dy_t) = u(dparams, dcarry, dp_t, dq_t).

``h_t dW`` needs no tangent of the carry, so it is one product over all steps before the tangent
loop. Reverse mode is the transpose of this rule: a loop that carries only the cotangent of the
carry, and after it the gradient of W as ONE product, the sum of ``h_t^T dq_t`` over all steps.
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
    reset_carry: Any  # the carry after a reset, [B, ...] a leaf
    hidden_noise: Array | None = None  # [B, P], what h is multiplied by before w_hh


class Inputs(NamedTuple):
    """What the loop reads step by step, time first."""

    x_projs: tuple[Any, ...]  # [T, B, ...] a leaf: the gates, then what only update reads
    valid: Array | None  # [T, B]
    resets: Array | None  # [T, B], True: return to reset_carry before this step


class Loop(NamedTuple):
    """How to run over time; all of it is fixed when the loop is compiled."""

    reverse: bool = False
    scan_unroll: int = 1
    all_carries: bool = False  # outputs are (y, carry)


def run(cell: Cell, loop: Loop, weights: Weights, carry: Any, inputs: Inputs) -> tuple[Any, Any]:
    """Run ``cell`` over time, with one batch axis: ``(carry, ys [T, B, O])``."""
    if cell.plain_step is not None:
        return _scan(loop, functools.partial(_plain_step, cell, loop, weights), carry, inputs)
    return _differentiable_loop(cell, loop)(weights, carry, inputs)


def _scan(loop: Loop, step: Callable, carry: Any, inputs: Any) -> tuple[Any, Any]:
    return lax.scan(step, carry, inputs, reverse=loop.reverse, unroll=loop.scan_unroll)


def _reset(at: Inputs, reset_carry: Any, carry: Any) -> Any:
    return carry if at.resets is None else select(at.resets, reset_carry, carry)


def _hold(loop: Loop, at: Inputs, held: Any, new: Any, y: Any) -> tuple[Any, Any]:
    carry, y = select(at.valid, new, held), zero_padding(at.valid, y)
    return carry, (y, carry) if loop.all_carries else y


def _plain_step(
    cell: Cell, loop: Loop, weights: Weights, carry: Any, at: Inputs
) -> tuple[Any, Any]:
    assert cell.plain_step is not None
    carry = _reset(at, weights.reset_carry, carry)
    step = jax.vmap(cell.plain_step, in_axes=(None, 0, 0))
    new, y = step(weights.params, carry, at.x_projs)
    return _hold(loop, at, carry, new, y)


def gate_widths(w_hh: Array | None, x_projs: tuple[Any, ...]) -> tuple[int, ...]:
    """The widths of the pieces of ``h @ w_hh``: those of the first pieces of ``x_projs``.

    Raises:
        ValueError: no number of first pieces is as wide as the recurrent weights.
    """
    widths: list[int] = []
    columns = 0 if w_hh is None else w_hh.shape[-1]
    for x_proj in x_projs:
        if sum(widths) < columns and hasattr(x_proj, "shape"):
            widths.append(x_proj.shape[-1])
    if sum(widths) != columns:
        raise ValueError(
            f"a cell's recurrent weights {w_hh.shape if w_hh is not None else ()} must be as wide "
            f"as the first pieces of project together, got {len(widths)} pieces of widths {widths}"
        )
    return tuple(widths)


def _cut(x: Array, widths: tuple[int, ...]) -> tuple[Array, ...]:
    ends = list(itertools.accumulate(widths))
    return tuple(jnp.split(x, ends[:-1], axis=-1))


def recur(h: Array, w_hh: Array | None, x_projs: tuple[Any, ...]) -> tuple[Array, ...]:
    """``h @ w_hh`` in pieces, one for each gate of ``x_projs``; () without recurrent weights."""
    return () if w_hh is None else _cut(linear(h, w_hh), gate_widths(w_hh, x_projs))


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
            carry = _reset(at, weights.reset_carry, carry)
            h_proj = recur(noisy(hidden(carry), weights.hidden_noise), weights.w_hh, at.x_projs)
            new, y = update(weights.params, carry, at.x_projs, h_proj)
            return _hold(loop, at, carry, new, y)

        return _scan(loop, step, carry, inputs)

    def rule(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
        weights, carry, inputs = primals
        reads = _reads_of_update(cell, primals, tangents)
        noise_moves = _moves(tangents[0].hidden_noise)
        held = inputs.valid is not None or inputs.resets is not None
        y_is_hidden = reads.y_is_hidden and not (
            held or loop.all_carries or weights.hidden_noise is not None
        )

        def step(carry: Any, at: Inputs) -> tuple[Any, Any]:
            carry = _reset(at, weights.reset_carry, carry)
            clean, d_hidden = jax.linearize(hidden, carry)
            h = noisy(clean, weights.hidden_noise)
            h_proj = recur(h, weights.w_hh, at.x_projs)

            def pointwise(leaves: list, carry: Any, read_alone: list, h_proj: Any) -> Any:
                params = reads.params.replace(weights.params, leaves)
                return update(
                    params, carry, reads.read_alone.replace(at.x_projs, read_alone), h_proj
                )

            pointwise = jax.checkpoint(pointwise, prevent_cse=False, policy=_is_kept)
            (new, y), d_update = jax.linearize(
                pointwise,
                reads.params.of(weights.params),
                carry,
                reads.read_alone.of(at.x_projs),
                h_proj,
            )
            carry, y = _hold(loop, at, carry, new, y)
            kept = _Linearised(h, clean if noise_moves else None, d_hidden, d_update)
            # Taking h from the outputs is a copy of them, worth it where y is kept, too.
            recovered = y_is_hidden and any(leaf is y for leaf in jax.tree.leaves(kept))
            recoverable = _Recoverable(weights, at, _HiddenHistory(h, y) if recovered else None)
            return carry, (y, _Residuals.of(kept, recoverable))

        final, (ys, steps) = _scan(loop, step, carry, inputs)
        recoverable = _Recoverable(weights, inputs, None)
        if steps.reads_beyond(recoverable):
            recoverable = recoverable._replace(
                hidden_history=_HiddenHistory(_one_later(loop, hidden(carry), ys), ys)
            )
        return (final, ys), _tangent_loop(loop, reads, primals, tangents, steps, recoverable)

    over_time.defjvp(rule, symbolic_zeros=True)
    return over_time


class _HiddenHistory(NamedTuple):
    """Outputs that are the hidden state: it is there anyway, and not to be kept again."""

    before: Array  # h_{t-1}
    now: Array  # h_t


class _Recoverable(NamedTuple):
    """What the derivative has without keeping it, of one step or of all."""

    weights: Weights
    inputs: Inputs
    hidden_history: _HiddenHistory | None


def _one_later(loop: Loop, first: Array, ys: Array) -> Array:
    """What each step finds, where ``ys`` is what each leaves behind; for any T, 0 or symbolic."""
    edge, at = ((-1, 1, 0), ys.shape[0] - 1) if loop.reverse else ((1, -1, 0), 0)
    moved = lax.pad(ys, jnp.zeros((), ys.dtype), (edge, *[(0, 0, 0)] * (ys.ndim - 1)))
    return jnp.where(lax.broadcasted_iota(jnp.int32, ys.shape, 0) == at, first[None], moved)


@jax.tree_util.register_pytree_node_class
class _Residuals:
    """A tree of residuals in which no array is stored twice, nor one the loop was given anyway."""

    def __init__(self, leaves: list, sources: tuple, structure: Any) -> None:
        self.leaves, self.sources, self.structure = leaves, sources, structure

    @classmethod
    def of(cls, tree: Any, recoverable: Any) -> "_Residuals":
        known = {
            id(leaf): ("recoverable", k) for k, leaf in enumerate(jax.tree.leaves(recoverable))
        }
        flat, structure = jax.tree.flatten(tree)
        leaves: list = []
        for leaf in flat:
            if id(leaf) not in known:
                known[id(leaf)] = ("saved", len(leaves))
                leaves.append(leaf)
        return cls(leaves, tuple(known[id(leaf)] for leaf in flat), structure)

    def tree(self, recoverable: Any) -> Any:
        stores = {"recoverable": jax.tree.leaves(recoverable), "saved": self.leaves}
        return jax.tree.unflatten(self.structure, [stores[s][k] for s, k in self.sources])

    def reads_beyond(self, recoverable: Any) -> bool:
        """Whether it was made of more than ``recoverable``, with arrays that came after these."""
        count = len(jax.tree.leaves(recoverable))
        return any(store == "recoverable" and k >= count for store, k in self.sources)

    def tree_flatten(self) -> tuple[list, tuple]:
        return self.leaves, (self.sources, self.structure)

    @classmethod
    def tree_unflatten(cls, static: tuple, leaves: Any) -> "_Residuals":
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
    loop: Loop,
    reads: "_Reads",
    primals: tuple,
    tangents: tuple,
    steps: _Residuals,
    recoverable: _Recoverable,
) -> tuple[Any, Any]:
    weights, carry, inputs = primals
    d_weights, d_carry, d_inputs = tangents
    d_params = _dense(reads.params.of(d_weights.params), reads.params.of(weights.params))
    d_read_alone = _dense(
        reads.read_alone.of(d_inputs.x_projs), reads.read_alone.of(inputs.x_projs)
    )
    d_reset_carry = _dense(d_weights.reset_carry, weights.reset_carry)
    d_sums = _sum_tangents(reads, primals, tangents, steps.tree(recoverable))
    # Transposed once, before the loop: the backward loop multiplies by this array as it lies.
    w_t = None if weights.w_hh is None else lax.optimization_barrier(weights.w_hh.T)

    def step(d_carry: Any, at: tuple) -> tuple[Any, Any]:
        saved, d_read_alone, d_sum, now, hidden_history = at
        linearised = saved.tree(_Recoverable(weights, now, hidden_history))
        d_carry = _reset(now, d_reset_carry, d_carry)
        d_h_proj = ()
        if w_t is not None:
            d_h = noisy(linearised.d_hidden(d_carry), weights.hidden_noise)
            d_h_proj = _cut(
                _times_transposed(d_h, w_t) + d_sum, gate_widths(weights.w_hh, now.x_projs)
            )
        d_new, d_y = linearised.d_update(d_params, d_carry, d_read_alone, d_h_proj)
        return _hold(loop, now, d_carry, d_new, d_y)

    xs = (steps, d_read_alone, d_sums, inputs, recoverable.hidden_history)
    return _scan(loop, step, _dense(d_carry, carry), xs)


def _sum_tangents(
    reads: "_Reads", primals: tuple, tangents: tuple, steps: _Linearised
) -> Array | None:
    """What is added to ``dh_t W``, for all steps: ``h_t dW``, dx_proj where only added."""
    weights, _, inputs = primals
    d_weights, _, d_inputs = tangents
    if weights.w_hh is None:
        return None
    dtype = accumulation_dtype(weights.w_hh.dtype)
    count = len(gate_widths(weights.w_hh, inputs.x_projs))
    pieces = [
        as_rows(
            _dense(d_x_proj, x_proj).astype(dtype) if only_added else jnp.zeros_like(x_proj, dtype)
        )
        for d_x_proj, x_proj, only_added in zip(
            d_inputs.x_projs, inputs.x_projs, reads.only_added[:count], strict=False
        )
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
        only_added: for each leaf of ``x_proj``, whether its one use is a sum with ``h_proj[k]``.
            There the tangents of both are one array, kept once.
        read_alone: the other leaves of ``x_proj`` that have a tangent.
        y_is_hidden: whether its output is the h that the next step multiplies by W.
    """

    params: _Subset
    only_added: tuple[bool, ...]
    read_alone: _Subset
    y_is_hidden: bool


def _reads_of_update(cell: Cell, primals: tuple, tangents: tuple) -> _Reads:
    assert cell.hidden is not None
    assert cell.update is not None
    weights, carry, inputs = primals
    x_projs = _shapes(inputs.x_projs, axes=2)
    h_projs = _recur_shapes(weights.w_hh, inputs.x_projs)
    params = _shapes(weights.params, axes=0)
    hidden, update = cell.hidden, cell.update

    def both(*operands: Any) -> tuple[Any, Any, Any]:
        new, y = update(*operands)
        return hidden(new), y, new

    jaxpr = jax.make_jaxpr(both)(params, _shapes(carry, axes=1), x_projs, h_projs).jaxpr
    h, *outputs = jaxpr.outvars
    y_is_an_array = len(outputs) == 1 + len(jax.tree.leaves(carry))
    before_h = len(jaxpr.invars) - len(h_projs)
    x_vars = jaxpr.invars[before_h - len(jax.tree.leaves(x_projs)) : before_h]
    h_vars = jaxpr.invars[before_h:]
    d_x_projs, d_params = _tangent_leaves(tangents[2].x_projs), _tangent_leaves(tangents[0].params)
    # The gates come first among the pieces of x_proj, and each is one leaf.
    only_added = [
        k < len(h_projs) and _are_only_added(jaxpr, x_proj, h_vars[k])
        for k, x_proj in enumerate(x_vars)
    ]
    used = [_is_read(jaxpr, v) for v in jaxpr.invars[: len(d_params)]]
    return _Reads(
        params=_Subset(tuple(u and _moves(t) for u, t in zip(used, d_params, strict=True))),
        only_added=tuple(only_added),
        read_alone=_Subset(
            tuple(not met and _moves(t) for met, t in zip(only_added, d_x_projs, strict=True))
        ),
        y_is_hidden=y_is_an_array and outputs[0] is h,
    )


def _tangent_leaves(tangents: Any) -> list:
    return jax.tree.leaves(tangents, is_leaf=_is_symbolic)


def _shapes(tree: Any, axes: int) -> Any:
    """The shapes of ``tree`` for one example, without its first ``axes`` axes."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[axes:], a.dtype), tree)


def _recur_shapes(w_hh: Array | None, x_projs: tuple[Any, ...]) -> tuple[jax.ShapeDtypeStruct, ...]:
    if w_hh is None:
        return ()
    dtype = accumulation_dtype(w_hh.dtype)
    return tuple(jax.ShapeDtypeStruct((width,), dtype) for width in gate_widths(w_hh, x_projs))


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


def _are_only_added(jaxpr: Any, x_proj: Any, h_proj: Any) -> bool:
    """Whether ``x_proj`` and ``h_proj`` are used in their one sum and nowhere else."""
    uses_x, uses_h = _uses(jaxpr, x_proj), _uses(jaxpr, h_proj)
    if len(uses_x) != 1 or len(uses_h) != 1 or uses_x[0] is not uses_h[0]:
        return False
    primitive = getattr(uses_x[0], "primitive", None)
    return primitive is not None and primitive.name in ("add", "add_any")
