"""Weights, data and the loss of a case, and what a right answer is.

The loss is a fixed random weighting of the outputs at valid steps, so that every output takes
part and padding does not. Right is what rnnjax says in float32 with the very same numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from experiments.throughput.cases import GATES, Case

# The largest difference that may be, as a share of the largest number there is. Sums in another
# order differ by 1e-6 in float32. A GPU may take float32 products in TF32 (10 bits); bfloat16 has
# 8 bits, and libraries that keep the state in it round it at every step.
TOLERANCE = {("float32", "cpu"): 1e-3, ("float32", "gpu"): 3e-2, ("bfloat16", "any"): 1e-1}


class Problem(NamedTuple):
    """What a library is given, as NumPy arrays in the dtype of the case.

    Attributes:
        case: what it is asked to run.
        kind: the name of the cell in ``rnnjax.interop``.
        params: of one layer, or a tuple of two ``Directions``.
        xs: [B, T, D], zero at padding.
        lengths: [B], or None where all are T.
        weights: [B, T, O], float32, of the outputs in the loss; zero at padding.
    """

    case: Case
    kind: str
    params: Any
    xs: np.ndarray
    lengths: np.ndarray | None
    weights: np.ndarray

    @property
    def valid_tokens(self) -> int:
        """Steps that are not padding."""
        batch, steps = self.xs.shape[:2]
        return batch * steps if self.lengths is None else int(self.lengths.sum())

    @property
    def bidirectional(self) -> bool:
        return self.case.layers == "bidirectional2"

    @property
    def rows(self) -> list[tuple[int, int]]:
        """The input and hidden size of every cell there is, both directions counted."""
        _, _, size, hidden = self.case.shape
        two = [(size, hidden)] * 2 + [(2 * hidden, hidden)] * 2
        return two if self.bidirectional else [(size, hidden)]

    @property
    def flops(self) -> float:
        """Of the matrix products for valid steps; with gradients three times as many."""
        gates = GATES[self.case.cell]
        products = sum(2 * gates * hidden * (size + hidden) for size, hidden in self.rows)
        return self.valid_tokens * products * (3.0 if self.case.mode == "training" else 1.0)


def rnnjax_cell(case: Case) -> rnnjax.Cell:
    """The cell of a case."""
    size = case.shape.hidden_size
    if case.cell.startswith("gru"):
        return rnnjax.gru(size, reset_after=case.cell == "gru")
    return rnnjax.lstm(size) if case.cell == "lstm" else rnnjax.vanilla(size)


def rnnjax_layer(case: Case, **options: Any) -> rnnjax.Layer:
    """The layer of a case, with options of ``rnnjax.recurrent``."""
    cell = rnnjax_cell(case)
    if case.layers == "one":
        return rnnjax.recurrent(cell, **options)
    ahead, back = (rnnjax.recurrent(cell, reverse=way, **options) for way in (False, True))
    return rnnjax.stack(*[rnnjax.bidirectional(ahead, back)] * 2)


def make_problem(case: Case, seed: int = 0) -> Problem:
    """The same numbers for the same case and seed."""
    rng = np.random.default_rng(seed)
    shape, layer = case.shape, rnnjax_layer(case)
    params = layer.init(jax.random.key(seed), shape.input_size)
    params = jax.tree.map(np.asarray, jax.tree_util.tree_map_with_path(_with_biases(rng), params))
    batch, steps = shape.batch, shape.steps
    lengths = None
    if case.lengths == "ragged":
        lengths = rng.integers(max(1, steps // 4), steps + 1, batch).astype(np.int32)
        lengths[0] = steps
    xs = rng.standard_normal((batch, steps, shape.input_size), np.float32)
    weights = rng.standard_normal((batch, steps, layer.output_size), np.float32)
    if lengths is not None:
        valid = (np.arange(steps) < lengths[:, None])[:, :, None]
        xs, weights = xs * valid, weights * valid
    dtype = jnp.dtype(case.dtype)
    params = jax.tree.map(lambda a: np.asarray(a, dtype), params)
    return Problem(case, case.cell, params, np.asarray(xs, dtype), lengths, weights)


def _with_biases(rng: np.random.Generator) -> Any:
    """Adds to the biases that all libraries have, which start at 0 or 1, eighths up to 1/2.

    Those are exact in bfloat16 too, and so is 1 less: Haiku keeps the forget bias that way.
    """

    def change(path: Any, leaf: Any) -> Any:
        if getattr(path[-1], "name", "") != "bias":
            return leaf
        return leaf + rng.integers(-4, 5, leaf.shape).astype(np.float32) / 8

    return change


def answer(problem: Problem) -> np.ndarray:
    """What a run is held against: the outputs, or in training the gradient of the inputs.

    Returns:
        [B, T, O] with zeros at padding, or [B, T, D], in float32.
    """
    exact = problem.case._replace(dtype="float32")
    params, xs = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (problem.params, problem.xs))
    layer = rnnjax_layer(exact)

    def loss(xs: Any, weights: Any) -> Any:
        return jnp.sum(layer.apply(params, xs, problem.lengths)[1] * weights)

    if problem.case.mode == "training":
        return np.asarray(jax.jit(jax.grad(loss))(xs, problem.weights))
    return np.asarray(jax.jit(lambda xs: layer.apply(params, xs, problem.lengths)[1])(xs))


def difference(problem: Problem, found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference at valid steps, as a share of the largest number expected.

    Raises:
        ValueError: the shapes differ.
    """
    if found.shape != expected.shape:
        raise ValueError(f"the result must have shape {expected.shape}, got {found.shape}")
    if problem.lengths is not None:
        valid = np.arange(found.shape[1]) < problem.lengths[:, None]
        found, expected = found[valid], expected[valid]
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


def tolerance(case: Case) -> float:
    """How large a difference may be on this device."""
    if case.dtype == "bfloat16":
        return TOLERANCE["bfloat16", "any"]
    return TOLERANCE["float32", "cpu" if jax.default_backend() == "cpu" else "gpu"]
