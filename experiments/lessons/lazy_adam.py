r"""Adam over a table of vectors, at the cost of the rows that a step reads.

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

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

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
    """One step of Adam, the ``step``-th from 1; the learning rate may be a tree like the params."""
    s = step.astype(jnp.float32)
    correct_mean, correct_square = 1 - B1**s, jnp.sqrt(1 - B2**s)
    mean = jax.tree.map(lambda m, g: B1 * m + (1 - B1) * g, moments.mean, grads)
    square = jax.tree.map(lambda v, g: B2 * v + (1 - B2) * g * g, moments.square, grads)

    def move(p: Array, m: Array, v: Array, rate: Any) -> Array:
        if form == "keras":
            return p - rate * correct_square / correct_mean * m / (jnp.sqrt(v) + EPSILON[form])
        return p - rate / correct_mean * m / (jnp.sqrt(v) / correct_square + EPSILON[form])

    return jax.tree.map(move, params, mean, square, learning_rate), Moments(mean, square)
