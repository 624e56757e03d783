"""The derivative of the loop over time, one rule for all cells with ``update``.

At step t let ``q_t = h_t W`` (what ``update`` calls ``h_proj``) and let ``u`` be ``update``
linearised there. Tangents then obey

    dq_t = dh_t W + h_t dW,        (dcarry', dy_t) = u(dparams, dcarry, dp_t, dq_t)

with ``p_t`` the ``x_proj`` of the step. ``h_t dW`` needs no tangent of the carry, so it is one
product over all steps before the tangent loop. Reverse mode is what JAX makes of this rule by
transposing it: a loop that carries only the cotangent of the carry, and after it the gradient of W
as ONE product, the sum of ``h_t^T dq_t`` over all steps. Ordinary autodiff of the scan would add to
an array of the size of W in every step instead.

The rule is a ``custom_jvp`` made of ordinary operations, so forward mode and derivatives of any
order work. Three parts of it are about memory, since what a step keeps is kept T times:

- A step keeps the results of its costly operations (the gates) and computes again the cheap ones
  (:data:`_CHEAP`) and those that are larger than all it was given (:func:`_policy`).
- An array that the backward loop gets anyway (an input of the loop, the weights) is not kept, and
  none is kept twice (:class:`_Residuals`).
- Where the output of a step is the hidden state, the hidden state before a step is the output of
  the step before: outputs are stored anyway, and h is recovered from them (:class:`_Hidden`).
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from rnnjax._numerics import accumulation_dtype, as_rows
from rnnjax.base import Cell
from rnnjax.engine._products import (
    cut,
    gate_widths,
    h_proj_of,
    join,
    multiply,
    multiply_transposed,
    noisy,
    transpose_weights,
)
from rnnjax.engine._step import (
    Inputs,
    Loop,
    Weights,
    context_of,
    hidden_of,
    hold,
    over_batch,
    reset,
    scan,
)
from rnnjax.engine._usage import Usage, has_tangent, is_symbolic, usage_of_update


def differentiable_loop(forward: Callable, cell: Cell, loop: Loop) -> Callable:
    """``forward(weights, carry, inputs)`` of a cell with the rule above as its derivative."""

    @jax.custom_jvp
    def over_time(weights: Weights, carry: Any, inputs: Inputs) -> tuple[Any, Any]:
        return forward(weights, carry, inputs)

    def rule(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
        # JAX calls this while it traces the derivative, once a compilation, so looking at the jaxpr
        # of ``update`` costs nothing at run time.
        usage = usage_of_update(cell, primals, tangents)
        final, ys, steps, available = _forward_with_residuals(cell, loop, usage, primals, tangents)
        return (final, ys), _tangent_loop(loop, usage, primals, tangents, steps, available)

    # Symbolic zeros tell which arguments have a tangent: for the others nothing is computed.
    over_time.defjvp(rule, symbolic_zeros=True)
    return over_time


class _Linearised(NamedTuple):
    """What the derivative needs of a step: where W was applied, and the two linear maps.

    ``h``, ``clean_h``, which is h before its noise, and ``d_hidden`` are None where there are no
    recurrent weights.
    """

    h: Array | None
    clean_h: Array | None
    d_hidden: Callable | None
    d_update: Callable


class _Hidden(NamedTuple):
    """The hidden state before and after each step, where the outputs of the loop are that state."""

    before: Array
    after: Array


class _Available(NamedTuple):
    """What the derivative has without keeping it, of one step or of all."""

    weights: Weights
    inputs: Inputs
    hidden: _Hidden | None


@jax.tree_util.register_pytree_node_class
class _Residuals:
    """A tree of arrays to keep, without those available anyway and with none kept twice.

    Which arrays are the same is a question of their identity while the step is traced. It is part
    of the structure of this tree: ``sources`` says for each leaf of the whole tree where it is
    found, among what is available or among what is kept.
    """

    def __init__(self, kept: list, sources: tuple, structure: Any) -> None:
        self.kept, self.sources, self.structure = kept, sources, structure

    @classmethod
    def of(cls, tree: Any, available: Any) -> "_Residuals":
        # Two names of one array are one tracer here, so its identity tells. The leaves are all held
        # by the trees given, so no id can be that of another, later array.
        found = {id(leaf): ("available", k) for k, leaf in enumerate(jax.tree.leaves(available))}
        flat, structure = jax.tree.flatten(tree)
        kept: list = []
        for leaf in flat:
            if id(leaf) not in found:
                found[id(leaf)] = ("kept", len(kept))
                kept.append(leaf)
        return cls(kept, tuple(found[id(leaf)] for leaf in flat), structure)

    def tree(self, available: Any) -> Any:
        """The whole tree, from what is kept and what is available."""
        stores = {"available": jax.tree.leaves(available), "kept": self.kept}
        return jax.tree.unflatten(self.structure, [stores[s][k] for s, k in self.sources])

    def uses_more_than(self, available: Any) -> bool:
        """Whether it was made with more arrays available, behind these, and needs one of them."""
        count = len(jax.tree.leaves(available))
        return any(store == "available" and k >= count for store, k in self.sources)

    def tree_flatten(self) -> tuple[list, tuple]:
        return self.kept, (self.sources, self.structure)

    @classmethod
    def tree_unflatten(cls, static: tuple, kept: Any) -> "_Residuals":
        return cls(list(kept), *static)


# Computed again in the backward loop rather than read back from memory: operations that cost less
# than the 4 bytes a number they would have to be kept in. exp, tanh, logistic, dots are not here.
# fmt: off
_CHEAP = frozenset({
    "abs", "add", "add_any", "and", "broadcast_in_dim", "complex", "concatenate", "conj",
    "convert_element_type", "copy", "div", "eq", "ge", "gt", "imag", "integer_pow", "le", "lt",
    "max", "min", "mul", "ne", "neg", "not", "one_minus_square", "or", "real", "reshape",
    "select_n", "sign", "slice", "split", "square", "squeeze", "sub", "transpose",
})
# fmt: on
_SMALLER = frozenset({"dot_general", "reduce_sum", "reduce_max", "reduce_min", "argmax", "argmin"})


def _policy(given: Any) -> Callable[..., bool]:
    """What is kept of a step that is ``given`` these arrays: costly results not larger than those.

    The tanh of a query with every key of a memory is larger by far than all else of a step. Made
    again, it let the training step of a translator (128 pairs of 40 words, 256 units, 2 cores) take
    1181 ms rather than 1264 and set 285 MB aside rather than 479.
    """
    largest = _largest(jax.tree.leaves(given))

    def is_kept(primitive: Any, *operands: Any, **_: Any) -> bool:
        # JAX cannot mark complex results as kept.
        is_complex = any(jnp.issubdtype(a.dtype, jnp.complexfloating) for a in operands)
        if primitive.name in _CHEAP or is_complex:
            return False
        # What a product or a sum makes of large operands may be small.
        return primitive.name in _SMALLER or _largest(operands) <= largest

    return is_kept


def _largest(arrays: Iterable[Any]) -> int:
    """The size of the largest of some arrays, as far as it is known: symbolic ones count as 0."""
    return max((a.size for a in arrays if isinstance(a.size, int)), default=0)


def _forward_with_residuals(
    cell: Cell, loop: Loop, usage: Usage, primals: tuple, tangents: tuple
) -> tuple[Any, Any, _Residuals, _Available]:
    """The forward loop, and what the tangent loop reads of every step."""
    weights, carry, inputs = primals
    # A reset replaces h, and noise makes of it something else than the output before. What a masked
    # step emits, or a step with all_carries, is another array than y, which is seen below.
    y_is_hidden = usage.y_is_hidden and inputs.resets is None and weights.hidden_noise is None

    def step(carry: Any, at: Inputs) -> tuple[Any, Any]:
        carry = reset(at, weights.reset_carry, carry)
        h = clean_h = d_hidden = None
        if weights.w_hh is not None:
            clean_h, d_hidden = jax.linearize(lambda c: hidden_of(cell, weights, c), carry)
            h = noisy(clean_h, weights.hidden_noise)
        (new, y), d_update = _linearised_update(cell, usage, weights, carry, at, h)
        carry, y = hold(loop, at, carry, new, y)
        whole = _Linearised(h, clean_h, d_hidden, d_update)
        # Recovering h from the outputs costs a copy of them, moved by one step. That pays only
        # where y itself is needed too (tanh, whose derivative is made of its result): then neither
        # is kept.
        recovers = y_is_hidden and any(leaf is y for leaf in jax.tree.leaves(whole))
        available = _Available(weights, at, _Hidden(h, y) if recovers else None)  # pyright: ignore[reportArgumentType]
        return carry, (y, _Residuals.of(whole, available))

    final, (ys, steps) = scan(loop, step, carry, inputs)
    available = _Available(weights, inputs, None)
    if steps.uses_more_than(available):
        first = hidden_of(cell, weights, carry)
        available = available._replace(hidden=_Hidden(_one_step_later(loop, first, ys), ys))
    return final, ys, steps, available


def _linearised_update(
    cell: Cell, usage: Usage, weights: Weights, carry: Any, at: Inputs, h: Array | None
) -> tuple[Any, Callable]:
    """What ``update`` gives, and its linear map in those arguments that have a tangent."""
    update = over_batch(cell.update)
    constants = context_of(weights)

    def pointwise(params: list, context: list, carry: Any, read_alone: list, h_proj: Any) -> Any:
        x_proj = usage.read_alone.replace(at.x_projs, read_alone)
        params = usage.params.replace(weights.params, params)
        return update(params, carry, x_proj, h_proj, *usage.context.replace(constants, context))

    h_proj = () if h is None else h_proj_of(h, weights.w_hh, at.x_projs)
    return jax.linearize(
        # No barrier against common subexpressions: inside a scan nothing outside can be shared.
        jax.checkpoint(pointwise, prevent_cse=False, policy=_policy((carry, at.x_projs, h_proj))),
        usage.params.of(weights.params),
        usage.context.of(constants),
        carry,
        usage.read_alone.of(at.x_projs),
        h_proj,
    )


def _one_step_later(loop: Loop, first: Any, ys: Array) -> Array:
    """What each step finds, where ``ys`` is what each leaves behind; for any T, 0 or symbolic."""
    # A pad of -1 on one side and 1 on the other is a move without the slice of T - 1 steps that a
    # concatenation would need, which T = 0 and a symbolic T do not have.
    edge, at = ((-1, 1, 0), ys.shape[0] - 1) if loop.reverse else ((1, -1, 0), 0)
    moved = lax.pad(ys, jnp.zeros((), ys.dtype), (edge, *[(0, 0, 0)] * (ys.ndim - 1)))
    return jnp.where(lax.broadcasted_iota(jnp.int32, ys.shape, 0) == at, first[None], moved)


def _tangent_loop(
    loop: Loop,
    usage: Usage,
    primals: tuple,
    tangents: tuple,
    steps: _Residuals,
    available: _Available,
) -> tuple[Any, Any]:
    """The tangents of the final carry and of the outputs; linear in ``tangents``."""
    weights, carry, inputs = primals
    d_weights, d_carry, d_inputs = tangents

    def marked(subset: Any, tangents: Any, primals: Any) -> Any:
        return _dense(subset.of(tangents), subset.of(primals))

    d_params = marked(usage.params, d_weights.params, weights.params)
    d_context = marked(usage.context, d_weights.context, weights.context)
    d_read_alone = marked(usage.read_alone, d_inputs.x_projs, inputs.x_projs)
    d_reset_carry = _dense(d_weights.reset_carry, weights.reset_carry)
    # All that needs no tangent of the carry, for all steps at once. Transposed by JAX it becomes
    # the gradients of W and of the inputs, each one product after the backward loop.
    d_sums = _tangents_known_before_the_loop(usage, primals, tangents, steps.tree(available))
    w_t = None
    if weights.w_hh is not None:
        # Transposed once, before the loop. Without the barrier XLA moves the transposition into the
        # loop, as part of the product, and reads the weights across their rows in every step.
        w_t = lax.optimization_barrier(transpose_weights(weights.w_hh))

    def step(d_carry: Any, at: tuple) -> tuple[Any, Any]:
        residuals, d_read_alone, d_sum, now, hidden = at
        # The same order of leaves as in the forward step: places found there hold here.
        linearised = residuals.tree(_Available(weights, now, hidden))
        d_carry = reset(now, d_reset_carry, d_carry)
        d_h_proj = ()
        if w_t is not None:
            d_h = noisy(linearised.d_hidden(d_carry), weights.hidden_noise)
            d_packed = multiply_transposed(d_h, w_t) + d_sum
            d_h_proj = cut(d_packed, weights.w_hh, gate_widths(weights.w_hh, now.x_projs))
        d_new, d_y = linearised.d_update(d_params, d_context, d_carry, d_read_alone, d_h_proj)
        return hold(loop, now, d_carry, d_new, d_y)

    xs = (steps, d_read_alone, d_sums, inputs, available.hidden)
    return scan(loop, step, _dense(d_carry, carry), xs)


def _tangents_known_before_the_loop(
    usage: Usage, primals: tuple, tangents: tuple, steps: _Linearised
) -> Array | None:
    """The part of ``dq`` of all steps that needs no tangent of the carry, packed, [T, B, ...].

    ``h_t dW``, the same for the noise of h, and ``dp_t`` wherever p is only added to q.
    """
    weights, _, inputs = primals
    d_weights, _, d_inputs = tangents
    w_hh = weights.w_hh
    if w_hh is None:
        return None
    assert steps.h is not None
    rows = functools.partial(as_rows, beside=primals)
    dtype = accumulation_dtype(w_hh.dtype)
    count = len(gate_widths(w_hh, inputs.x_projs))
    # Where x_proj is only added to h_proj, its tangent joins the sum here and the step is not given
    # it again: one array where there would be two.
    pieces = [
        rows(_dense(d_x, x) if only_added else jnp.zeros_like(x, dtype))
        for d_x, x, only_added in zip(
            d_inputs.x_projs, inputs.x_projs, usage.only_added[:count], strict=False
        )
    ]
    total = join(pieces, w_hh)
    if has_tangent(d_weights.w_hh):
        # Under jax.checkpoint, so that h as rows is not kept too: h itself is kept for update.
        product = jax.checkpoint(lambda h, w: multiply(rows(h), w), prevent_cse=False)
        total = total + product(steps.h, d_weights.w_hh)
    if has_tangent(d_weights.hidden_noise):
        d_h = steps.clean_h * d_weights.hidden_noise[None]
        total = total + multiply(rows(d_h), w_hh)
    return total.reshape(*steps.h.shape[:2], total.shape[-1])


def _dense(tangents: Any, primals: Any) -> Any:
    """``tangents`` with zeros like their primals in place of symbolic ones."""

    def instantiate(t: Any, primal: Any) -> Any:
        return jnp.zeros_like(primal) if is_symbolic(t) else t

    return jax.tree.map(instantiate, tangents, primals, is_leaf=is_symbolic)
