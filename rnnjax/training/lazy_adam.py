r"""Adam over a large table of vectors, at the cost of the rows that a step reads.

Adam moves every row of an embedding at every step, also those that the batch does not hold: their
gradient is zero, but their averages go on. Nobody looks at such a row until it is read again, so
that it may be brought up to date then, all steps at once. With m and v the averages of the row
after step s, and no gradient in the L steps that follow,

.. math::

    \Delta p = -\eta\, m \sum_{j=1}^{L} \frac{a_j}{c_j \sqrt{v} + \epsilon}
    \approx -\eta\, m\, \frac{A}{C \sqrt{v} + \epsilon}

where a and c hold powers of the decay rates and the corrections of the bias. A and C make the two
sides equal in the limit of a small epsilon, with its first order; in the opposite limit they
differ by the relative variance of c, 1e-5 after the first thousand steps. The sums over j come
from two tables, since they are differences of sums to infinity.

PyTorch corrects the bias of v before it adds epsilon, Keras after; otherwise they agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rnnjax._checks import check_number, check_size
from rnnjax._numerics import raised
from rnnjax._values import check_range, require_distinct

# The decay rates that Kingma and Ba recommend, and the defaults of PyTorch and Keras.
B1, B2 = 0.9, 0.999
EPSILON = {"pytorch": 1e-8, "keras": 1e-7}
Form = Literal["pytorch", "keras"]


class Tails(NamedTuple):
    """Sums over all steps after each step: of a/c, and of a/c²; [N + 1] each."""

    first: Array
    second: Array


class Table(NamedTuple):
    """A table of vectors under training.

    Attributes:
        values: [V, 3, E], of each row the vector, the mean gradient and the mean square.
        last: [V] int32, the step up to which a row is up to date.
    """

    values: Array
    last: Array


class Moments(NamedTuple):
    """The averages of Adam for other parameters: trees like them."""

    mean: Any
    square: Any


class LazyAdamState(NamedTuple):
    """All that a step of :func:`make_lazy_adam_step` reads and writes.

    Attributes:
        step: int32, steps taken.
        table: the vectors, with their averages.
        rest: all other parameters.
        moments: the averages of these.
        tails: tables for the steps that were left out.
    """

    step: Array
    table: Table
    rest: Any
    moments: Moments
    tails: Tails


def init_lazy_adam(
    vectors: Array, rest: Any, *, max_steps: int, form: Form = "pytorch"
) -> LazyAdamState:
    """The state before the first step.

    Args:
        vectors: the table [V, E]; of 16 bits it is raised to float32.
        rest: all other parameters, a tree. Their averages are float32 or wider, too: what decays
            as slowly stands still in 16 bits.
        max_steps: the most steps that are ever taken: two tables are as long.
        form: whose Adam, see the top of this file.

    Raises:
        ValueError: ``max_steps`` is not a positive integer, or the form is unknown.
    """
    _check_form(form)
    return LazyAdamState(
        jnp.zeros((), jnp.int32),
        init_table(jnp.asarray(vectors)),
        jax.tree.map(jnp.copy, rest),  # who donates the state to a step keeps the parameters
        Moments(*(jax.tree.map(_zeros_for, rest) for _ in range(2))),
        make_tails(check_size("max_steps", max_steps), form),
    )


def make_lazy_adam_step(
    loss_fn: Callable[..., tuple[Array, Any]],
    learning_rate: float,
    *,
    form: Form = "pytorch",
    rates: Callable[[Any], Any] | None = None,
) -> Callable[..., tuple[LazyAdamState, Any]]:
    """A training step by Adam that costs as much as the rows of the table it reads.

    What it computes is Adam over all parameters, but for the approximation at the top of this
    file. It is a pure function, to be compiled by ``jax.jit`` with the state donated.

    Args:
        loss_fn: ``(vectors [U, E], rest, batch, key) -> (loss, aux)``: the loss from the vectors of
            the rows that the batch reads, so that its tokens are places among these rows.
        learning_rate: of Adam.
        form: as for :func:`init_lazy_adam`.
        rates: ``(rest) -> tree`` of learning rates, one for each parameter outside the table; None
            for ``learning_rate`` everywhere.

    Returns:
        ``step(state, rows, batch, key=None) -> (state, (loss, aux))``, with ``rows`` int32 [U] the
        distinct ids that the batch reads. Ids outside the table, negative ones included, fill
        ``rows`` up to one shape.

    Raises:
        ValueError: a learning rate that is not finite or below 0, or an unknown form; from the
            step, rows that are no integers. Where it is not compiled, or under
            :func:`rnnjax.checked`, also a row that is there twice, and more than ``max_steps``.

    Example:
        >>> import numpy as np
        >>> def loss_fn(vectors, rest, places, key):
        ...     return jnp.sum((vectors[places] @ rest - 1.0) ** 2), ()
        >>> state = init_lazy_adam(jnp.full((100, 2), 0.5), jnp.full(2, 0.5), max_steps=50)
        >>> step = jax.jit(make_lazy_adam_step(loss_fn, 0.05), donate_argnums=0)
        >>> rows = np.array([3, 7, 100], np.int32)  # 100 is outside: it only fills the shape
        >>> for _ in range(50):
        ...     state, (loss, _) = step(state, rows, np.array([0, 1, 1]))
        >>> vectors, rest = lazy_adam_params(state, 0.05)
        >>> round(float(vectors[3] @ rest), 1), float(vectors[5, 0])
        (1.0, 0.5)

    References:
        Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015.
    """

    learning_rate = _check_learning_rate(learning_rate)
    _check_form(form)

    def step(
        state: LazyAdamState, rows: Array, batch: Any, key: Any = None
    ) -> tuple[LazyAdamState, Any]:
        rows = jnp.asarray(rows)
        if not jnp.issubdtype(rows.dtype, jnp.integer):
            raise ValueError(f"rows must be integers, got dtype {rows.dtype}")
        if rows.dtype.itemsize < 4:  # which would not hold the number of rows
            rows = rows.astype(jnp.int32)
        most = len(state.tails.first) - 1
        check_range("state.step", state.step, most, f"[0, {most}), as max_steps is {most}")
        require_distinct("rows", rows, (rows >= 0) & (rows < len(state.table.last)))
        # A negative index would count from the end.
        rows = jnp.where(rows < 0, len(state.table.last), rows)
        values = read(state.table, rows, state.step, state.tails, learning_rate, form)
        with_aux = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)
        result, (of_vectors, of_rest) = with_aux(values[:, 0], state.rest, batch, key)
        now = state.step + 1
        of_rows = Moments(values[:, 1], values[:, 2])
        vectors, of_rows = adam(values[:, 0], of_rows, of_vectors, now, learning_rate, form)
        written = jnp.stack([vectors, of_rows.mean, of_rows.square], axis=1)
        each = learning_rate if rates is None else rates(state.rest)
        rest, moments = adam(state.rest, state.moments, of_rest, now, each, form)
        table = write(state.table, rows, written, now)
        return LazyAdamState(now, table, rest, moments, state.tails), result

    return step


def lazy_adam_params(
    state: LazyAdamState, learning_rate: float, *, form: Form = "pytorch"
) -> tuple[Array, Any]:
    """The whole table [V, E], every row up to date, and all other parameters.

    Args:
        state: after any step.
        learning_rate: that of the steps, and so is the form.
        form: as for :func:`init_lazy_adam`.

    Raises:
        ValueError: a learning rate that is not finite or below 0, or an unknown form.
    """
    _check_form(form)
    rate = _check_learning_rate(learning_rate)
    return settle(state.table, state.step, state.tails, rate, form), state.rest


def _check_form(form: Any) -> None:
    if form not in EPSILON:
        raise ValueError(f"form must be 'pytorch' or 'keras', got {form!r}")


def _check_learning_rate(rate: Any) -> float:
    expected = "finite and at least 0"
    return check_number("learning_rate", rate, expected, lambda a: 0 <= a < float("inf"))


def _zeros_for(parameter: Any) -> Array:
    """An average of its gradients, before the first step."""
    return jnp.zeros_like(raised(parameter))


def make_tails(steps: int, form: Form) -> Tails:
    """The tables for a run of so many steps, summed in double precision."""
    s = np.arange(1, steps + 2, dtype=np.float64)
    first = np.sqrt(1 - B2**s) / (1 - B1**s)
    second = first if form == "keras" else (1 - B2**s) / (1 - B1**s)
    return Tails(_tails(first, B1 / B2**0.5), _tails(second, B1 / B2))


def _tails(terms: np.ndarray, rate: float) -> Array:
    """Of terms h(1), h(2), ...: sum over j >= 1 of rate^j h(s + j), for s = 0, 1, ..."""
    # Behind the last step nothing is ever read, so that 1, the limit of the terms, will do there.
    sums = np.empty_like(terms)
    tail = rate / (1 - rate)
    for s in range(len(terms) - 1, -1, -1):
        tail = sums[s] = rate * (terms[s] + tail)
    return jnp.asarray(sums.astype(np.float32))


def init_table(vectors: Array) -> Table:
    """A table before the first step."""
    vectors = raised(vectors)
    zeros = jnp.zeros_like(vectors)
    return Table(jnp.stack([vectors, zeros, zeros], axis=1), jnp.zeros(len(vectors), jnp.int32))


def read(
    table: Table, rows: Array, step: Array, tails: Tails, learning_rate: float, form: Form
) -> Array:
    """The values [U, 3, E] of rows, brought up to date after ``step`` steps.

    Args:
        table: the table.
        rows: [U] int32; what lies outside the table gives zeros.
        step: steps taken so far.
        tails: of :func:`make_tails`.
        learning_rate: of Adam.
        form: whose Adam.
    """
    values = table.values.at[rows].get(mode="fill", fill_value=0, unique_indices=True)
    last = table.last.at[rows].get(mode="fill", fill_value=0, unique_indices=True)
    return _advance(values, last, step, tails, learning_rate, form)


def write(table: Table, rows: Array, values: Array, step: Array) -> Table:
    """The table with rows as they are after ``step`` steps; rows outside it are left out."""
    kept = {"mode": "drop", "unique_indices": True}
    return Table(table.values.at[rows].set(values, **kept), table.last.at[rows].set(step, **kept))


def settle(table: Table, step: Array, tails: Tails, learning_rate: float, form: Form) -> Array:
    """All vectors [V, E] as they are after ``step`` steps."""
    return _advance(table.values, table.last, step, tails, learning_rate, form)[:, 0]


def _advance(
    values: Array, last: Array, step: Array, tails: Tails, learning_rate: float, form: Form
) -> Array:
    """Takes the steps from ``last`` to ``step``, in which the gradient was zero."""
    lag = (step - last).astype(jnp.float32)
    first = tails.first[last] - (B1 / B2**0.5) ** lag * tails.first[step]
    second = tails.second[last] - (B1 / B2) ** lag * tails.second[step]
    # Both are zero where there is nothing to catch up with.
    c = jnp.where(lag > 0, first / jnp.where(lag > 0, second, 1), 1)
    vectors, mean, square = values[:, 0], values[:, 1], values[:, 2]
    a, c = (first * c)[:, None], c[:, None]
    moved = vectors - learning_rate * mean * a / (c * jnp.sqrt(square) + EPSILON[form])
    fade_mean, fade_square = (B1**lag)[:, None], (B2**lag)[:, None]
    return jnp.stack([moved, mean * fade_mean, square * fade_square], axis=1)


def adam(
    params: Any,
    moments: Moments,
    grads: Any,
    step: Array,
    learning_rate: Any,
    form: Form,
) -> tuple[Any, Moments]:
    """One step of Adam, the ``step``-th from 1; the learning rate is one for all, or a tree."""
    s = step.astype(jnp.float32)
    grads = jax.tree.map(raised, grads)
    correct_mean, correct_square = 1 - B1**s, jnp.sqrt(1 - B2**s)
    mean = jax.tree.map(lambda m, g: B1 * m + (1 - B1) * g, moments.mean, grads)
    square = jax.tree.map(lambda v, g: B2 * v + (1 - B2) * g * g, moments.square, grads)

    def move(p: Array, m: Array, v: Array, rate: Any) -> Array:
        if form == "keras":
            moved = rate * correct_square / correct_mean * m / (jnp.sqrt(v) + EPSILON[form])
        else:
            moved = rate / correct_mean * m / (jnp.sqrt(v) / correct_square + EPSILON[form])
        return (raised(p) - moved).astype(p.dtype)

    if not isinstance(learning_rate, float):
        return jax.tree.map(move, params, mean, square, learning_rate), Moments(mean, square)
    moved = jax.tree.map(lambda p, m, v: move(p, m, v, learning_rate), params, mean, square)
    return moved, Moments(mean, square)
