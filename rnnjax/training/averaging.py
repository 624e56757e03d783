"""Averages of the parameters, as the last link of an Optax chain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from rnnjax._checks import check_rate, check_size, describe
from rnnjax._numerics import raised

if TYPE_CHECKING:
    import optax


class ParameterAverage(NamedTuple):
    """State of :func:`average_parameters` and of :func:`averaged_from`."""

    steps: Array  # int32
    average: Any


def average_parameters(decay: float) -> optax.GradientTransformation:
    r"""An exponential average of the parameters, kept beside them; the last link of a chain.

    .. math:: a_t = d_t a_{t-1} + (1 - d_t) \theta_t, \qquad d_t = \min(d, (1 + t) / (10 + t))

    The average is kept in at least float32, whatever the parameters are: in 16 bits a small step
    towards the parameters would be rounded away. Updates pass through unchanged. Read the average
    with :func:`averaged`; it usually generalises better than the last parameters, most of all
    when batches are small.

    Args:
        decay: d in [0, 1); the average looks back about 1 / (1 - d) steps.

    Raises:
        ValueError: the decay is outside [0, 1).

    Example:
        >>> import optax
        >>> optimizer = optax.chain(optax.sgd(1.0), average_parameters(0.5))
        >>> params = jnp.array(1.0)
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(jnp.array(2.0), state, params)
        >>> round(float(averaged(state)), 3)  # d = 2/11: 2/11 * 1 + 9/11 * (1 - 2)
        -0.636

    References:
        Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM
        Journal on Control and Optimization 30 (1992).
    """
    decay = check_rate("decay", decay)
    return _average(lambda t: 1 - jnp.minimum(decay, (1 + t) / (10 + t)))


def averaged_from(start: int | None) -> optax.GradientTransformation:
    r"""The mean of the parameters from one update on, kept beside them; the last link of a chain.

    .. math:: a_t = \theta_t \quad (t < s), \qquad
        a_t = \frac{1}{t - s + 1} \sum_{j = s}^{t} \theta_j \quad (t \ge s)

    with :math:`\theta_t` the parameters after t updates. Read it with :func:`averaged`. Where the
    step to start from is only known during the run, begin with None and make the optimizer and
    the step anew once :func:`no_longer_improves` is true, with the number of updates taken,
    ``state.step - state.skipped``: the state fits both.

    Args:
        start: s, a positive number of updates; None for an average that is the last parameters.

    Raises:
        ValueError: the start is not a positive integer.

    Example:
        >>> link = averaged_from(2)
        >>> state = link.init(jnp.array(0.0))
        >>> for params in (1.0, 4.0, 6.0):  # after updates 1, 2 and 3
        ...     _, state = link.update(jnp.array(0.0), state, jnp.array(params))
        >>> float(averaged(state))
        5.0

    References:
        Merity, Keskar and Socher, "Regularizing and optimizing LSTM language models" (2017), there
        NT-ASGD.
    """
    if start is None:
        return _average(lambda t: jnp.ones(()))
    start = check_size("start", start)
    return _average(lambda t: 1 / jnp.maximum(1, t - start + 1))


def no_longer_improves(losses: Sequence[float], patience: int = 5) -> bool:
    """Whether the last loss is above the least of those at least ``patience`` checks before it.

    The trigger of NT-ASGD: a loss that goes up and down while it falls does not set it off.

    Args:
        losses: of the validations so far, in their order; NaN counts as infinite.
        patience: n, a positive number of checks.

    Raises:
        ValueError: the patience is not a positive integer.

    Example:
        >>> no_longer_improves([5.0, 3.0, 4.0], patience=2), no_longer_improves([3.0, 4.0, 4.5], 2)
        (False, True)

    References:
        As of :func:`averaged_from`.
    """
    # NaN is worse than any loss; compared as it is, it would be neither above nor below one.
    known = [math.inf if math.isnan(loss) else float(loss) for loss in losses]
    earlier = known[: -check_size("patience", patience)]
    return bool(earlier) and known[-1] > min(earlier)


def _average(weight_of: Callable[[Array], Array]) -> optax.GradientTransformation:
    """a ← a + w (θ - a), with the weight w of the step's number, from 1."""
    import optax

    def init(params: Any) -> ParameterAverage:
        # Copied: a step may give the parameters away together with this state.
        average = jax.tree.map(lambda leaf: jnp.array(raised(leaf)), params)
        return ParameterAverage(jnp.zeros((), jnp.int32), average)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("params must be given to the update of an average, got None")
        steps = state.steps + 1
        weight = weight_of(steps)
        # Without the barrier XLA averages narrow parameters as they are before they are rounded.
        new = lax.optimization_barrier(optax.apply_updates(params, updates))

        def move(old: Array, leaf: Array) -> Array:
            leaf = leaf.astype(old.dtype)
            # old + (leaf - old) is rounded: beside a large old one a small leaf would be lost.
            return jnp.where(weight == 1, leaf, old + weight.astype(old.dtype) * (leaf - old))

        return updates, ParameterAverage(steps, jax.tree.map(move, state.average, new))

    return optax.GradientTransformation(init, update)


def averaged(opt_state: Any) -> Any:
    """The average that :func:`average_parameters` or :func:`averaged_from` keeps.

    Args:
        opt_state: the state of the optimizer, ``state.opt_state`` of a train state.

    Returns:
        A tree like the parameters, of at least float32.

    Raises:
        ValueError: there is none in it, or more than one; or it is that of some parameters alone,
            or not the last link of its chain, or inside of what changes the update again.

    Example:
        >>> import optax
        >>> optimizer = optax.chain(optax.sgd(0.1), averaged_from(None))
        >>> averaged(optimizer.init({"w": jnp.array([1.0, 2.0])}))
        {'w': Array([1., 2.], dtype=float32)}
    """
    import optax

    found = _averages(opt_state)
    if len(found) != 1:
        raise ValueError(
            f"the optimizer must have one average_parameters, got {len(found)} in its state"
        )
    is_masked = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731
    for path, leaf in jax.tree.leaves_with_path(found[0], is_leaf=is_masked):
        if is_masked(leaf):
            raise ValueError(
                f"the average must be of all parameters, got none of params"
                f"{jax.tree_util.keystr(path)}: put average_parameters into a chain behind "
                "optax.masked or optax.partition, not inside"
            )
    check_last(opt_state)
    return found[0]


def check_average(opt_state: Any, params: Any) -> None:
    """Refuse an average that would not be of the parameters, by the first state of an optimizer.

    Raises:
        ValueError: as of :func:`averaged`, or it is that of a tree of another form.
    """
    import optax

    check_last(opt_state, in_order=True)
    is_masked = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731
    for average in _averages(opt_state):
        if any(map(is_masked, jax.tree.leaves(average, is_leaf=is_masked))):
            continue  # of some parameters: averaged says so
        if jax.tree.structure(average) != jax.tree.structure(params):
            raise ValueError(
                f"the average must be of a tree like params, {describe(params)}, got "
                f"{describe(average)}: put average_parameters outside of optax.flatten"
            )


def check_last(opt_state: Any, *, in_order: bool = False) -> None:
    """Refuse an average that is not the last link: it would be of parameters that are not kept.

    Args:
        opt_state: the state of an optimizer.
        in_order: whether dicts are in the order in which they were made, as they no longer are
            where JAX made them again.
    """
    for node, part in _around_averages(opt_state):
        links = list(node.values()) if isinstance(node, dict) else node
        if _is_chain(node, in_order) and links[-1] is not part:
            raise ValueError(
                "optimizer must have average_parameters or averaged_from as the last link of a "
                "chain, got one with links behind it: put it last in optax.chain"
            )
        if not _keeps_updates(node):
            raise ValueError(
                "optimizer must have average_parameters or averaged_from outside of what changes "
                f"the update again, got one inside of {type(node).__name__}: put it last in an "
                "optax.chain around that"
            )


def _is_chain(node: Any, in_order: bool) -> bool:
    import optax

    if type(node) is tuple:
        return True
    if not isinstance(node, dict) or not in_order:
        return False
    # Beside those of optax.named_chain there are the labels of optax.partition.
    return not all(isinstance(one, optax.MaskedState) for one in node.values())


def _keeps_updates(node: Any) -> bool:
    """Whether the update of what is inside is that of the whole, or there is none."""
    import optax

    wrappers = (
        optax.MultiStepsState,
        optax.ApplyIfFiniteState,
        optax.ConditionallyTransformState,
        optax.InjectHyperparamsState,
        optax.InjectStatefulHyperparamsState,
        optax.MaskedState,
        optax.PartitionState,
    )
    return type(node) is tuple or isinstance(node, (dict, *wrappers))


def _around_averages(node: Any) -> Iterator[tuple[Any, Any]]:
    """Each node of a state with an average inside it, and the part of the node that has it."""
    if isinstance(node, ParameterAverage):
        return
    for part in jax.tree.leaves(node, is_leaf=lambda one: one is not node):
        if part is not node and _averages(part):
            yield node, part
            yield from _around_averages(part)


def _averages(opt_state: Any) -> list[Any]:
    is_average = lambda node: isinstance(node, ParameterAverage)  # noqa: E731
    nodes = jax.tree.leaves(opt_state, is_leaf=is_average)
    return [node.average for node in nodes if is_average(node)]
