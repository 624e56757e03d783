"""Training steps for Optax: pure functions of state and batch, compiled when they are called.

Whatever a step trains is a tree of parameters and a loss function:

    loss_fn(params, batch, key) -> (loss, metrics)

with a scalar loss, and metrics a dict of names and means, each a `rnnjax.metrics.Mean` or a pair
(total, count). A step gives a `Mean` for each.
The key means training; in evaluation it is None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from rnnjax._numerics import raised
from rnnjax.metrics.means import Mean
from rnnjax.training.compiled import Compilation, CompiledStep
from rnnjax.training.loss_functions import LossFn, checked_loss, join_metrics
from rnnjax.training.updates import (
    TrainState,
    apply_gradients,
    check_optimizer,
    check_state,
)

if TYPE_CHECKING:
    import optax

StepResult = tuple[TrainState, dict[str, Mean]]


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    on_compile: Callable[[Compilation], None] | None = None,
    donate_state: bool = True,
    compiler_options: dict[str, Any] | None = None,
) -> CompiledStep[TrainState, StepResult]:
    """One step of stochastic gradient descent, or of whatever Optax makes of the gradient.

    g = ∇ loss(params, batch, fold_in(key, step)),  params ← params + optimizer(g)

    Where the loss, the norm of the gradient, or after the update a parameter or a float16 number
    of the optimizer's state is NaN or infinite, the update is left out: parameters and optimizer
    state stay as they are, the state counts it, and the metrics of the loss function are (0, 0), so
    that they are missing from sums rather than spoiling them. A run that meets such steps again and
    again should end: see :func:`check_finite`.

    The random key depends on the state alone, so a step taken twice from equal states gives
    equal results. The step is a pure function: ``jax.jit``, ``lax.scan``, ``jax.vmap`` and
    ``jax.grad`` take it as they take any other. Called directly it is one compiled program a kind
    of batch, and the state is donated: its arrays are dead after the call; go on with the new one.

    Args:
        loss_fn: the loss function, see the top of this file.
        optimizer: an Optax transformation. Clipping and schedules are parts of it. One that looks
            at the loss (``reduce_on_plateau``, ``polyak_sgd``) or searches along a line
            (``lbfgs``) gets what it asks for; ``lookahead`` is refused by ``init_train_state``.
        on_compile: called after each compilation with what was compiled.
        donate_state: False to keep the state alive, at the price of a second one in memory.
        compiler_options: options of XLA by name.

    Returns:
        step(state, batch) -> (state, metrics): those of the loss function, and two of the step,
        which are read and merged like the rest. "grad_norm" is the ``Mean`` of the norm of the
        gradient before the optimizer and 1, and "skipped" that of 1 and 1 where the update was
        left out, of 0 and 1 elsewhere.

    Raises:
        ValueError: ``loss_fn`` is no function or the optimizer none of Optax; when it compiles, if
            the loss function gives anything but (loss, metrics), or has metrics of these names, or
            the optimizer needs what a step cannot give.

    Example:
        >>> import optax
        >>> from rnnjax.training import init_train_state
        >>> def loss_fn(params, batch, key):
        ...     error = ((batch["x"] @ params["w"] - batch["y"]) ** 2).sum()
        ...     return error, {"loss": (error, jnp.array(1.0))}
        >>> schedule = optax.cosine_decay_schedule(init_value=0.1, decay_steps=100)
        >>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
        >>> state = init_train_state(jax.random.key(0), {"w": jnp.zeros(2)}, optimizer)
        >>> step = make_train_step(loss_fn, optimizer)
        >>> batch = {"x": jnp.eye(2), "y": jnp.array([3.0, 4.0])}
        >>> for _ in range(3):
        ...     state, metrics = step(state, batch)
        >>> int(state.step), sorted(metrics), [made.shapes for made in step.compilations]
        (3, ['grad_norm', 'loss', 'skipped'], [{'x': 'float32[2,2]', 'y': 'float32[2]'}])
        >>> batches = jax.tree.map(lambda a: jnp.stack([a] * 5), batch)
        >>> state, metrics = jax.lax.scan(step, state, batches)  # the same step as a loop on device
        >>> int(state.step), metrics["loss"].value.shape
        (8, (5,))
    """
    loss_fn = checked_loss(loss_fn)
    check_optimizer(optimizer)

    def train_step(state: TrainState, batch: Any) -> StepResult:
        check_state(state)
        key = jax.random.fold_in(state.key, state.step)
        with_metrics = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, metrics), grads = with_metrics(state.params, batch, key)
        value_fn = lambda params: raised(loss_fn(params, batch, key)[0])  # noqa: E731
        new, figures = apply_gradients(state, optimizer, loss, grads, value_fn=value_fn)
        return new, join_metrics(metrics, figures)

    return CompiledStep(
        "train step",
        train_step,
        donate_state=donate_state,
        on_compile=on_compile,
        compiler_options=compiler_options,
    )


def make_accumulating_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    metric: str = "loss",
    on_compile: Callable[[Compilation], None] | None = None,
    donate_state: bool = True,
    compiler_options: dict[str, Any] | None = None,
) -> CompiledStep[TrainState, StepResult]:
    r"""One update from several micro-batches, equal to that of all their rows at once.

    .. math:: g = \sum_k n_k \nabla \ell_k \Big/ \sum_k n_k

    with the mean loss :math:`\ell_k` of micro-batch k and its count :math:`n_k`, so a micro-batch
    with fewer rows that count weighs less, and one without any adds nothing. (An average of the
    gradients, as of ``optax.MultiSteps``, is something else where the counts differ.) The
    micro-batches are run one after the other in one program: there is memory for the activations
    of one, and for two gradients. Sums are taken in at least float32.

    Args:
        loss_fn: the loss function, see the top of this file; its loss must be the mean whose
            count is that of ``metric``.
        optimizer: an Optax transformation. It may ask for the loss, but not for ``value_fn``.
        metric: the name of the metric whose count says how much a micro-batch weighs.
        on_compile: called after each compilation with what was compiled.
        donate_state: False to keep the state alive, at the price of a second one in memory.
        compiler_options: options of XLA by name.

    Returns:
        step(state, batches) -> (state, metrics) as of :func:`make_train_step`; every leaf of
        ``batches`` is [K, ...], K micro-batches. Each has a random key of its own. Metrics are
        summed over them, each by its own count; left out are those that are NaN or infinite in a
        micro-batch without a row.

    Raises:
        ValueError: when it compiles, as :func:`make_train_step`; if there is no such metric, or its
            count is no scalar; if the leaves disagree on K; or if ``batches`` is a list of batches.

    Example:
        >>> import optax
        >>> from rnnjax.metrics import Mean
        >>> from rnnjax.training import init_train_state
        >>> def loss_fn(params, batch, key):
        ...     loss = Mean.of((batch["x"] * params - 1.0) ** 2, batch["weights"])
        ...     return loss.value, {"loss": loss}
        >>> state = init_train_state(jax.random.key(0), jnp.array(3.0), optax.sgd(0.1))
        >>> batch = {"x": jnp.ones(4), "weights": jnp.array([1, 1, 1, 0])}
        >>> halves = jax.tree.map(lambda a: a.reshape(2, 2), batch)
        >>> state, metrics = make_accumulating_step(loss_fn, optax.sgd(0.1))(state, halves)
        >>> round(float(state.params), 4), int(metrics["loss"].count)  # 3 - 0.1 * 2 * (3 - 1)
        (2.6, 3)
    """
    loss_fn = checked_loss(loss_fn)
    check_optimizer(optimizer)

    def micro_step(params: Any, batch: Any, key: Array) -> tuple[Array, Any, Any]:
        with_metrics = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, metrics), grads = with_metrics(params, batch, key)
        if metric not in metrics:
            raise ValueError(f"loss_fn must give the metric {metric!r}, got {sorted(metrics)}")
        weight = jnp.asarray(metrics[metric][1]).astype(raised(loss).dtype)
        if weight.shape:
            raise ValueError(
                f"metric must name one whose count is a scalar, got {metric!r} with counts of "
                f"shape {weight.shape}"
            )

        # A mean over no rows is NaN, and counts nothing.
        def weighted(leaf: Array) -> Array:
            leaf = raised(leaf)
            return jnp.where(weight == 0, 0, weight.astype(leaf.dtype) * leaf)

        def counted(pair: Any) -> Any:
            no_rows = (weight == 0) & ~jnp.isfinite(pair[0])
            return jax.tree.map(lambda figure: jnp.where(no_rows, 0, figure), pair)

        sums = jax.tree.map(weighted, (loss, grads))
        return weight, sums, {name: counted(pair) for name, pair in metrics.items()}

    def accumulating_step(state: TrainState, batches: Any) -> StepResult:
        check_state(state)
        size = _check_leading(batches)
        step_key = jax.random.fold_in(state.key, state.step)

        def add(sums: Any, micro: tuple[Array, Any]) -> tuple[Any, None]:
            number, batch = micro
            new = micro_step(state.params, batch, jax.random.fold_in(step_key, number))
            return jax.tree.map(jnp.add, sums, new), None

        first = jax.tree.map(lambda a: a[0], batches)
        shapes = jax.eval_shape(micro_step, state.params, first, step_key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        (weight, (loss, grads), metrics), _ = lax.scan(add, zeros, (jnp.arange(size), batches))
        grads = jax.tree.map(
            lambda g, p: (g / weight.astype(g.dtype)).astype(p.dtype), grads, state.params
        )
        new, figures = apply_gradients(state, optimizer, loss / weight, grads)
        return new, join_metrics(metrics, figures)

    return CompiledStep(
        "train step",
        accumulating_step,
        donate_state=donate_state,
        on_compile=on_compile,
        compiler_options=compiler_options,
    )


def make_eval_step(
    loss_fn: LossFn,
    *,
    on_compile: Callable[[Compilation], None] | None = None,
    compiler_options: dict[str, Any] | None = None,
) -> CompiledStep[Any, dict[str, Mean]]:
    """The metrics of a batch, without gradient and without randomness.

    Args:
        loss_fn: the loss function of training; it gets None for a key.
        on_compile: called after each compilation with what was compiled.
        compiler_options: options of XLA by name.

    Returns:
        step(params, batch) -> metrics, a pure function as that of :func:`make_train_step`. Nothing
        is donated.

    Raises:
        ValueError: when it compiles, if the loss function gives anything but (loss, metrics).

    Example:
        >>> def loss_fn(params, batch, key):
        ...     assert key is None
        ...     total = (params * batch).sum()
        ...     return total / batch.size, {"loss": (total, jnp.array(batch.size))}
        >>> total, count = make_eval_step(loss_fn)(jnp.array(2.0), jnp.arange(3.0))["loss"]
        >>> float(total), int(count)
        (6.0, 3)
    """
    loss_fn = checked_loss(loss_fn)

    def eval_step(params: Any, batch: Any) -> dict[str, Mean]:
        return loss_fn(params, batch, None)[1]

    return CompiledStep(
        "eval step",
        eval_step,
        donate_state=False,
        on_compile=on_compile,
        compiler_options=compiler_options,
    )


def _check_leading(batches: Any) -> int:
    is_tree = not isinstance(batches, list) or jax.tree_util.all_leaves(batches)
    # A list of unlike trees, as of inputs and of targets, may be one batch.
    if not is_tree and len(set(map(jax.tree.structure, batches))) == 1:
        raise ValueError(
            f"batches must be one tree whose leaves are [K, ...], got a list of {len(batches)}: "
            "stack them, jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)"
        )
    sizes: dict[str, tuple[int, ...]] = {
        jax.tree_util.keystr(path): jnp.shape(leaf)[:1]
        for path, leaf in jax.tree.leaves_with_path(batches)
    }
    first: tuple[int, ...] = next(iter(sizes.values()), ())
    for path, size in sizes.items():
        if len(size) != 1 or size != first or size == (0,):
            raise ValueError(
                f"batches{path} must have shape [K, ...], K >= 1 micro-batches as in every leaf, "
                f"got {size[0] if size else 'a scalar'} beside {first[0] if first else 'none'}"
            )
    if len(first) != 1:
        raise ValueError("batches must have leaves of shape [K, ...], got none")
    return first[0]
