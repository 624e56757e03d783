"""Means as sums and counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from rnnjax._checks import check_pair, describe
from rnnjax._numerics import mean_dtype
from rnnjax._values import check_width
from rnnjax.metrics._arrays import as_array, as_weights, count_of
from rnnjax.metrics.sums import Sum, add, as_number, is_sum

_OF_ROWS = ": with one weight a row, take the mean over the other axes first, as losses.mean(-1)"


class Mean(NamedTuple):
    """A weighted mean that is not divided yet.

    mean = total / count, with total = Σ wᵢ vᵢ and count = Σ wᵢ

    Two of them are merged by adding both fields, which a mean of means cannot do. Any pair
    (total, count) may stand for one in `merge`, `compute` and `evaluate`. Both fields are scalars,
    or arrays of one shape for several means under one name, as `recall_by_class` gives.

    Example:
        >>> Mean.of(jnp.array([1.0, 2.0, 6.0])).value.item()
        3.0
    """

    total: Array
    # Hides tuple.count, which nobody asks of a pair of sums.
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]

    @classmethod
    def of(cls, values: ArrayLike, weights: ArrayLike | None = None) -> Mean:
        """Sums values, each as often as its weight says.

        total = Σ wᵢ vᵢ, count = Σ wᵢ

        The total is float32, or float64 when jax_enable_x64 is set. The count is an integer, and
        exact, where weights are None, booleans, or integers so narrow that no sum of so many can
        wrap: of 8 bits, 4 million of them. Otherwise it is of the dtype of the total, and rounded
        as that is: in float32 exact to 2^24. A value of weight 0 is never read: NaN or Inf there
        changes neither the sum nor a gradient.

        Args:
            values: numbers of any shape.
            weights: their weights, of the same shape; all 1 when None. A mask will do.

        Raises:
            ValueError: the shapes differ.

        Example:
            >>> Mean.of(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1, 1, 0])).value.item()
            2.0
        """
        dtype = jnp.result_type(float)
        array = as_array("values", values).astype(dtype)
        if weights is None:
            return cls(array.sum(), jnp.array(array.size))
        scale = as_weights(weights, array.shape, _OF_ROWS)
        # Selected before the product: 0 * nan is nan, and so is its gradient.
        array = jnp.where(scale == 0, 0, array)
        return cls((array * scale).sum(), count_of(weights))

    @property
    def value(self) -> Array:
        """total / count, still on the device; the loss inside a loss function."""
        total, count = as_number(self.total), as_number(self.count)
        # In one dtype, for those who forbid JAX to promote integers; in 16 bits a count of 257 is
        # 256, and one of 70,000 infinite.
        dtype = mean_dtype(total.dtype)
        return total.astype(dtype) / count.astype(dtype)


def merge(first: Any, second: Any) -> Any:
    """Adds two trees of sums and counts, leaf by leaf and without waiting for the device.

    Args:
        first: metrics of some batches: a `Mean` or a pair (total, count), or any tree of them.
        second: those of others, in a tree of the same structure.

    Returns:
        The metrics of all of them, each pair as a `Mean`; every leaf is a `Sum`, which forgets
        nothing that is small beside it. Counts are exact to 2^48.

    Raises:
        ValueError: the trees are of different structure, two leaves of different shape, or an
            integer of Python or NumPy does not fit the 32 bits of JAX's.

    Example:
        >>> merge(Mean.of(jnp.array([1.0, 2.0])), Mean.of(jnp.array([6.0]))).value.item()
        3.0
    """
    first, second = _with_means(first), _with_means(second)
    parts = [jax.tree.flatten(tree, is_leaf=is_sum) for tree in (first, second)]
    if parts[0][1] != parts[1][1]:
        raise ValueError(
            f"second must be a tree like first, {parts[0][1]}, got the structure {parts[1][1]}"
        )
    for one, two in zip(parts[0][0], parts[1][0], strict=True):
        _check_fits("first", one)
        _check_fits("second", two)
        shape, other = (a.shape if isinstance(a, Sum) else jnp.shape(a) for a in (one, two))
        if shape != other:
            raise ValueError(
                f"second must have sums of the shapes of first, {shape}, got shape {other}"
            )
    return add(first, second)


def _check_fits(name: str, leaf: Any) -> None:
    """Refuse an integer that JAX would cut, or of which its own error names no argument."""
    check_width(name, leaf)
    if isinstance(leaf, int):
        kept = jnp.iinfo(jnp.result_type(int))
        if not kept.min <= leaf <= kept.max:
            raise ValueError(
                f"{name} must have integers that fit {kept.dtype}, got {leaf}: give it as a float"
            )


def _with_means(tree: Any) -> Any:
    """The tree with a `Mean` for each plain pair, as steps give them: to `merge` they are one."""
    return jax.tree.map(
        lambda node: Mean(*node) if _is_pair(node) else node,
        tree,
        is_leaf=lambda node: is_sum(node) or _is_pair(node),
    )


def _is_pair(node: Any) -> bool:
    if type(node) is not tuple or len(node) != 2:
        return False
    return all(is_sum(part) or jax.tree_util.all_leaves([part]) for part in node)


def compute(metrics: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Divides totals by counts on the host; waits for the device, once.

    Args:
        metrics: names and their `Mean`s.

    Returns:
        Names and plain numbers; NumPy arrays where sums and counts are arrays. A mean whose count
        is 0 is NaN in the metrics of training steps that were all skipped, by their "skipped", and
        in an array of means, where a class without a row says nothing of the others.

    Raises:
        ValueError: a metric is no pair, or any other count is 0, so that there is no mean to speak
            of.

    Example:
        >>> compute({"loss": Mean.of(jnp.array([1.0, 2.0]))})
        {'loss': 1.5}
    """
    if not isinstance(metrics, Mapping):
        kind = type(metrics).__name__
        raise ValueError(f"metrics must be a dict of pairs (total, count), got {kind}")
    for name, pair in metrics.items():
        check_pair(f"metric {name!r}", "a pair (total, count)", pair)
    sums = jax.device_get(dict(metrics))
    empty = "skipped" in sums and _all_skipped(*sums["skipped"])
    return {name: _divide(name, *pair, may_be_empty=empty) for name, pair in sums.items()}


def evaluate(
    step: Callable[[Any, Any], Mapping[str, tuple[Array, Array]]],
    params: Any,
    batches: Iterable[Any],
) -> dict[str, Any]:
    """Metrics of a whole data set: sums over its batches, divided once at the end.

    The sums stay on the device until the last batch, so the host is free to prepare the next
    batch while the device still works.

    Args:
        step: takes (params, batch) and gives the batch's metrics, names and `Mean`s.
        params: whatever the step takes first.
        batches: at least one batch.

    Raises:
        ValueError: there is no batch, ``batches`` is a single one, or a count is 0.

    Example:
        >>> def step(scale, batch):
        ...     return {"size": Mean.of(scale * batch)}
        >>> evaluate(step, 2.0, [jnp.array([1.0, 2.0]), jnp.array([6.0])])
        {'size': 6.0}
    """
    if isinstance(batches, Mapping) or hasattr(batches, "_fields"):
        raise ValueError(
            f"batches must be an iterable of batches, such as a list, got {describe(batches)}"
        )
    total = None
    for batch in batches:
        metrics = step(params, batch)
        total = metrics if total is None else merge(total, metrics)
    if total is None:
        raise ValueError("batches must be one or more, got none: there is nothing to average")
    return compute(total)


def _all_skipped(total: Any, count: Any) -> bool:
    total, count = np.asarray(total, np.float64), np.asarray(count, np.float64)
    return bool(np.all(count > 0) and np.all(total == count))


def _divide(name: str, total: Any, count: Any, *, may_be_empty: bool) -> Any:
    total, count = np.asarray(total, np.float64), np.asarray(count, np.float64)
    if count.shape:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(count == 0, np.nan, total / count)
    if count == 0:
        if may_be_empty:
            return float("nan")
        raise ValueError(
            f"metric {name!r} must have a count above 0, got 0: no row with a weight was seen, or "
            "every training step was left out because of a NaN or infinity, such as the loss of a "
            "label that is no class"
        )
    return float(total) / float(count)
