"""Any cell in parallel over time: Newton's method on all its states at once.

The states of T steps are the root of T equations, ``s_t = cell(s_{t-1}, x_t)``. A Newton step
linearises the cell about the present guess of every state and solves the linear recurrence that
this gives with an associative scan. Every step makes at least one more state of each sequence
exact, so the iteration ends at the states of the loop over time whatever the Jacobians are
worth; how soon it ends decides whether it pays, and only the report says so.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax

from . import masking
from .associative import before, history, last, linear_recurrence, over_steps
from .base import Carry, Cell, Key, Params, check_key, check_size
from .engine import Inputs, Weights, gate_widths, noisy, recur
from .unroll import Call, _check_cell, _check_xs, batch_first, prepare, projected, unflatten

Jacobian = Literal["full", "diagonal"]


class NewtonReport(NamedTuple):
    """How a call of :func:`unroll_newton` ended.

    Attributes:
        iterations: int32 [], the Newton steps taken, for the whole batch together.
        residual: [...], for each sequence the largest :math:`|f(s_{t-1}, x_t) - s_t| / (1 +
            |s_t|)` over its steps and units; NaN where a state is not a number.
        converged: bool [...], whether that is within the tolerance.
    """

    iterations: Array
    residual: Array
    converged: Array


class Method(NamedTuple):
    """What is fixed when the iteration is compiled."""

    cell: Cell
    reverse: bool
    jacobian: Jacobian
    max_iterations: int


def unroll_newton(
    cell: Cell,
    params: Params,
    xs: Array,
    lengths: Any = None,
    *,
    mask: Any = None,
    resets: Any = None,
    initial_carry: Carry = None,
    reverse: bool = False,
    key: Key | None = None,
    jacobian: Jacobian = "full",
    tolerance: float | None = None,
    max_iterations: int = 100,
) -> tuple[Carry, Any, NewtonReport]:
    r"""Run any cell in parallel over time, and report how well that went.

    With the states :math:`s^{(k)}` of all steps as the k-th guess, and :math:`J_t` the Jacobian
    of the cell at :math:`s_{t-1}^{(k)}`, the next guess solves

    .. math::

        s_t^{(k+1)} = f(s_{t-1}^{(k)}, x_t) + J_t \, (s_{t-1}^{(k+1)} - s_{t-1}^{(k)})

    by an associative scan over time. The first guess is the initial carry at every step. With
    ``jacobian="full"`` this is DEER, with the diagonal of :math:`J_t` quasi-DEER. The equations
    solved are those of the loop over time, with its masks and resets, so the sequence law of
    :func:`rnnjax.unroll` holds as far as the report says: at a residual r the states differ from
    those of the loop by about r times what the recurrence amplifies.

    **Read the report.** A sequence that has not converged is returned as the last guess, which
    may be far off: no error can be raised from compiled code. Convergence takes few steps where
    the recurrence forgets (a trained GRU or LSTM, small recurrent weights) and many where it is
    chaotic. T iterations always suffice, since each makes at least one more state exact; where a
    guess overflows, one plain step of the cell takes its place.

    Gradients are those of the states at the solution, by the implicit function theorem: one more
    linear recurrence, with the full Jacobians in either method and no memory of the iterations.
    Forward mode and derivatives of any order work.

    Per sequence, an iteration takes T P² memory and about T P³ operations, P being the size of
    the carry; with ``jacobian="diagonal"``, and as long as no gradient is taken, O(T P) beside one
    run of the cell (P runs for a cell with ``step``). It is meant for small P, long T, small
    batches and a device with many cores; ``experiments/parallel_in_time.py`` measures whether it
    pays.

    Args:
        cell: what to run.
        params: its parameters.
        xs: inputs [..., T, D], as for ``unroll``.
        lengths: valid steps [...] of each sequence, as for ``unroll``.
        mask: bool [..., T], True where a step is real.
        resets: bool [..., T], True where a new segment starts.
        initial_carry: the carry before the first step, leaves [..., H].
        reverse: run backwards in time.
        key: the source of the cell's noise, for training.
        jacobian: ``"full"``; or ``"diagonal"``, which costs less a step, takes more steps, and is
            exact about the diagonal where ``update`` is pointwise.
        tolerance: the residual at which a sequence has converged; by default 16 times the
            rounding of the carry's dtype, 2e-6 in float32. All sequences iterate until all have.
        max_iterations: Newton steps at most.

    Returns:
        ``(carry, ys, report)``, the first two as ``unroll`` gives them, and a
        :class:`NewtonReport`.

    Raises:
        ValueError: an argument of wrong shape, dtype or value, named in the message.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> from rnnjax.newton import unroll_newton
        >>> cell = rnnjax.gru(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs = jax.random.normal(jax.random.key(1), (2, 50, 3))
        >>> carry, ys, report = unroll_newton(cell, params, xs, lengths=[50, 20])
        >>> report.converged.tolist(), int(report.iterations) < 15
        ([True, True], True)
        >>> bool(jnp.allclose(ys, rnnjax.unroll(cell, params, xs, [50, 20])[1], atol=1e-5))
        True

    References:
        Lim et al., "Parallelizing non-linear sequential models over the sequence length", ICLR
        2024, arXiv:2309.12252 (DEER); Gonzalez et al., "Towards scalable and stable
        parallelization of nonlinear RNNs", NeurIPS 2024, arXiv:2407.19115 (quasi-DEER).
    """
    _check_cell(cell)
    xs = _check_xs(xs)
    batch, time = xs.shape[:-2], xs.shape[-2]
    valid = masking.valid_steps(lengths, mask, batch, time)
    if resets is not None:
        resets = masking.check_flags("resets", resets, batch, time)
    if jacobian not in get_args(Jacobian):
        names = " or ".join(map(repr, get_args(Jacobian)))
        raise ValueError(f"jacobian must be {names}, got {jacobian!r}")
    if tolerance is not None and not (isinstance(tolerance, int | float) and tolerance > 0):
        raise ValueError(f"tolerance must be a positive number, got {tolerance!r}")
    method = Method(cell, reverse, jacobian, check_size("max_iterations", max_iterations))
    key = None if key is None or cell.noise is None else check_key(key)
    call = Call(params, xs, valid, resets, initial_carry, key)
    return _unroll(method, call, tolerance)


@functools.partial(jax.jit, static_argnums=0)
def _unroll(method: Method, call: Call, tolerance: float | None) -> tuple[Carry, Any, NewtonReport]:
    batch = call.xs.shape[:-2]
    fresh, carry, noise, steps = prepare(method.cell, method.reverse, call)
    weights, inputs = projected(method.cell, call.params, fresh, noise, steps)
    final, ys, report = run(method, tolerance, Problem(weights, carry, inputs))
    residual, converged = (a.reshape(batch) for a in (report.residual, report.converged))
    report = report._replace(residual=residual, converged=converged)
    return unflatten(batch, final), batch_first(batch, ys), report


class Problem(NamedTuple):
    """What ``engine.run`` would be given: the equations for the states of all steps."""

    weights: Weights
    carry: Carry  # [B, ...] a leaf
    inputs: Inputs


def run(
    method: Method, tolerance: float | None, problem: Problem
) -> tuple[Carry, Any, NewtonReport]:
    """Solve for the states of all steps, then take the outputs from them; time first."""
    states, report = _solve(method, tolerance, lax.stop_gradient(problem))
    states = _with_derivative(method, problem, states)
    _, ys = _advance(method, problem, _entered(method, problem, states))
    final = last(history(_flatten_rows(problem.carry), states, method.reverse), method.reverse)
    unflatten = functools.partial(_unflatten, _one_carry(problem.carry))
    return jax.vmap(unflatten)(final), masking.zero_padding(problem.inputs.valid, ys), report


class _Guess(NamedTuple):
    """The states of all steps after so many iterations."""

    iterations: Array
    states: Array  # [T, B, P]
    advanced: Array  # [T, B, P], what the cell makes of the states before
    residual: Array  # [B]


def _solve(method: Method, tolerance: float | None, problem: Problem) -> tuple[Array, NewtonReport]:
    start = _flatten_rows(problem.carry)
    first = jnp.broadcast_to(start, (problem.inputs.zs[0].shape[0], *start.shape))
    limit = 16 * jnp.finfo(start.dtype).eps if tolerance is None else tolerance

    def judge(iterations: Array, states: Array) -> _Guess:
        advanced, _ = _advance(method, problem, _entered(method, problem, states))
        defect = jnp.abs(advanced - states) / (1 + jnp.abs(states))
        return _Guess(iterations, states, advanced, jnp.max(defect, axis=(0, 2), initial=0.0))

    def is_unfinished(guess: _Guess) -> Array:
        # Negated, so that a residual that is not a number never counts as small.
        return (guess.iterations < method.max_iterations) & ~jnp.all(guess.residual <= limit)

    def improve(guess: _Guess) -> _Guess:
        entered = _entered(method, problem, guess.states)
        jacobians = _jacobians(method, method.jacobian, problem, entered)
        defect = guess.advanced - guess.states
        change = _propagate(method, problem, jacobians, defect)
        # Not states + change: a step whose beginning is exact now ends in exactly what the cell
        # makes of it, down to the last bit, and its defect is zero for good.
        states = guess.advanced + (change - defect)
        # One plain step where that overflows, which keeps what is exact and adds a step to it.
        plain = jnp.where(jnp.isfinite(guess.advanced), guess.advanced, first)
        return judge(guess.iterations + 1, jnp.where(jnp.isfinite(states), states, plain))

    guess = lax.while_loop(is_unfinished, improve, judge(jnp.int32(0), first))
    report = NewtonReport(guess.iterations, guess.residual, guess.residual <= limit)
    return guess.states, report


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_derivative(method: Method, problem: Problem, states: Array) -> Array:
    """``states``, with the derivative that they have as the solution of ``problem``."""
    return states


@_with_derivative.defjvp
def _implicit_derivative(method: Method, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    problem, states = primals
    # Through the rule once more, so that derivatives of this derivative know of it too.
    states = _with_derivative(method, problem, states)

    def advance(problem: Problem) -> Array:
        return _advance(method, problem, _entered(method, problem, states))[0]

    _, drive = jax.jvp(advance, (problem,), tangents[:1])
    jacobians = _jacobians(method, "full", problem, _entered(method, problem, states))
    return states, _propagate(method, problem, jacobians, drive)


def _propagate(method: Method, problem: Problem, jacobians: Array, drive: Array) -> Array:
    return linear_recurrence(jacobians, drive, problem.inputs.resets, reverse=method.reverse)


def _entered(method: Method, problem: Problem, states: Array) -> Array:
    """The state [T, B, P] in which each step begins."""
    start = _flatten_rows(problem.carry)
    entered = before(history(start, states, method.reverse), method.reverse)
    if problem.inputs.resets is None:
        return entered
    fresh = jnp.broadcast_to(_flatten_rows(problem.weights.fresh), entered.shape)
    return masking.select(problem.inputs.resets, fresh, entered)


def _advance(method: Method, problem: Problem, entered: Array) -> tuple[Array, Any]:
    """The state [T, B, P] that each step makes of the one it begins in, and its output."""
    advanced, ys = _at_every_step(_OneStep.advance, method.cell, problem, entered)
    return masking.select(problem.inputs.valid, advanced, entered), ys


def _jacobians(method: Method, kind: Jacobian, problem: Problem, entered: Array) -> Array:
    """The derivative of each step by the state it begins in: [T, B, P, P], or its diagonal."""
    ask = {"full": _OneStep.jacobian, "diagonal": _OneStep.diagonal}[kind]
    jacobians = _at_every_step(ask, method.cell, problem, entered)
    identity = (jnp.eye if kind == "full" else jnp.ones)(entered.shape[-1], dtype=entered.dtype)
    held = jnp.broadcast_to(identity, jacobians.shape)
    return masking.select(problem.inputs.valid, jacobians, held)


def _at_every_step(ask: Callable, cell: Cell, problem: Problem, entered: Array) -> Any:
    """``ask(step, state)`` of every step of every sequence."""
    w_hh, params, fresh, noise = problem.weights
    if noise is not None:
        noise = jnp.broadcast_to(noise, (*entered.shape[:1], *noise.shape))

    def one(shared: tuple, z: tuple, noise: Array | None, state: Array) -> Any:
        params, w_hh = shared
        return ask(_OneStep(cell, _one_carry(fresh), params, w_hh, z, noise), state)

    return over_steps(one)((params, w_hh), problem.inputs.zs, noise, entered)


class _OneStep(NamedTuple):
    """One step of one sequence, as a function of its state: the carry as one real array [P]."""

    cell: Cell
    like: Carry  # shapes of the carry
    params: Params
    w_hh: Array | None
    z: tuple
    noise: Array | None

    def advance(self, state: Array) -> tuple[Array, Any]:
        carry = _unflatten(self.like, state)
        if self.cell.step is not None:
            new, y = self.cell.step(self.params, carry, self.z)
        else:
            assert self.cell.update is not None
            new, y = self.cell.update(self.params, carry, self.z, self._products(carry))
        return _flatten(new), y

    def _products(self, carry: Carry) -> tuple[Array, ...]:
        return () if self.w_hh is None else recur(self._hidden(carry), self.w_hh, self.z)

    def _hidden(self, carry: Carry) -> Array:
        assert self.cell.hidden is not None
        return noisy(self.cell.hidden(carry), self.noise)

    def jacobian(self, state: Array) -> Array:
        return jax.jacfwd(lambda state: self.advance(state)[0])(state)

    def diagonal(self, state: Array) -> Array:
        if self.cell.step is None:
            # Each unit of a leaf sees itself alone here: one direction shows them all.
            advance, directions = self._advance_apart, _leaf_indicators(self.like, state.dtype)
        else:
            advance, directions = self._advance_only, jnp.eye(state.size, dtype=state.dtype)

        def part(units: Array) -> Array:
            return units * jax.jvp(advance, (state,), (units,))[1]

        return jnp.sum(lax.map(part, directions), axis=0)

    def _advance_only(self, state: Array) -> Array:
        return self.advance(state)[0]

    def _advance_apart(self, state: Array) -> Array:
        """``advance``, in value; its derivative leaves out what one unit does to another."""
        assert self.cell.update is not None
        carry = _unflatten(self.like, state)
        products = lax.stop_gradient(self._products(carry))
        if self.w_hh is not None:
            h = self._hidden(carry)
            change = h - lax.stop_gradient(h)
            products = tuple(
                r + own * change if own is not None else r
                for r, own in zip(products, self._own_weights(), strict=True)
            )
        return _flatten(self.cell.update(self.params, carry, self.z, products)[0])

    def _own_weights(self) -> list[Array | None]:
        """Gate by gate the weights of each unit to itself; None where units are not in pairs."""
        assert self.w_hh is not None
        ends = itertools.accumulate(gate_widths(self.w_hh, self.z))
        gates = jnp.split(self.w_hh, list(ends)[:-1], axis=-1)
        square = [gate.shape[0] == gate.shape[1] for gate in gates]
        return [jnp.diagonal(g) if s else None for g, s in zip(gates, square, strict=True)]


def _one_carry(carry: Carry) -> Carry:
    """The shapes of one sequence's carry."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), carry)


def _flatten_rows(carry: Carry) -> Array:
    return jax.vmap(_flatten)(carry)


def _flatten(carry: Carry) -> Array:
    """The carry of one sequence as one real array, a complex number as two."""
    return jnp.concatenate([part.reshape(-1) for part in _real_parts(carry)])


def _real_parts(carry: Carry) -> list:
    leaves = jax.tree.leaves(carry)
    return [p for a in leaves for p in ([a.real, a.imag] if jnp.iscomplexobj(a) else [a])]


def _unflatten(like: Carry, state: Array) -> Carry:
    shapes, structure = jax.tree.flatten(like)
    leaves = []
    for shape in shapes:
        parts = 2 if jnp.issubdtype(shape.dtype, jnp.complexfloating) else 1
        used, state = jnp.split(state, [parts * shape.size])
        pieces = [piece.reshape(shape.shape) for piece in jnp.split(used, parts)]
        leaves.append((lax.complex(*pieces) if parts == 2 else pieces[0]).astype(shape.dtype))
    return jax.tree.unflatten(structure, leaves)


def _leaf_indicators(like: Carry, dtype: Any) -> Array:
    """[K, P], 1 where a unit of the flat state belongs to the k-th real leaf of the carry."""
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    sizes = [part.size for part in _real_parts(zeros)]
    leaf = jnp.repeat(jnp.arange(len(sizes)), jnp.array(sizes), total_repeat_length=sum(sizes))
    return jax.nn.one_hot(leaf, len(sizes), dtype=dtype).T
