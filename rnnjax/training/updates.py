"""The state of a training run, and the update that is made of a gradient or left out."""

from __future__ import annotations

import functools
import inspect
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rnnjax import _checks, _values
from rnnjax._numerics import raised
from rnnjax.metrics import Mean
from rnnjax.training.averaging import check_average
from rnnjax.training.loss_functions import check_loss

if TYPE_CHECKING:
    import optax


class TrainState(NamedTuple):
    """All that a training step reads and writes; a checkpoint of it is a checkpoint of the run.

    Attributes:
        step: int32, steps taken, skipped ones counted in.
        params: the parameters.
        opt_state: the state of the optimizer.
        key: typed; never changes, each step folds its number in.
        skipped: int32, steps whose update was left out because a number was not finite.
        skipped_in_a_row: int32, those up to the last step.
    """

    step: Array
    params: Any
    opt_state: Any
    key: Array
    skipped: Array
    skipped_in_a_row: Array


def init_train_state(
    key: Array, params: Any, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step.

    It owns its arrays: `make_train_step` gives them away to the next state, while the params and
    the key passed here stay alive.

    The order was (params, optimizer, key) once; it is still taken, with a DeprecationWarning.

    Args:
        key: the source of all randomness in the steps.
        params: a tree of floating-point arrays.
        optimizer: an Optax transformation.

    Raises:
        ValueError: the key is not one key, a parameter is not floating-point, or the optimizer is
            not of Optax, or ``optax.lookahead``, which trains pairs of parameters, or keeps an
            average of the parameters that is not the last link of its chain.

    Example:
        >>> import optax
        >>> state = init_train_state(jax.random.key(0), {"w": jnp.ones(3)}, optax.adam(1e-3))
        >>> state.step.item()
        0
    """
    if hasattr(optimizer, "dtype") and not hasattr(optimizer, "update"):
        warnings.warn(
            "init_train_state takes the key first: init_train_state(key, params, optimizer)",
            DeprecationWarning,
            stacklevel=2,
        )
        key, params, optimizer = optimizer, key, params  # pyright: ignore[reportAssignmentType]
    key = _checks.check_key(key)
    check_optimizer(optimizer)
    _check_floating(params)
    _checks.check_there(params=params)
    params = jax.tree.map(_owned, params)
    opt_state = jax.tree.map(_owned, _init_optimizer(optimizer, params))
    # One array each: a step gives its state away, and no array can be given away twice.
    counts = [jnp.zeros((), jnp.int32) for _ in range(3)]
    state = TrainState(counts[0], params, opt_state, _owned(key), *counts[1:])
    return _beside(params, state)


def check_optimizer(optimizer: Any) -> None:
    """Refuse what is no Optax transformation."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        kind = type(optimizer).__name__
        raise ValueError(f"optimizer must be one of Optax, such as optax.adam(1e-3), got {kind}")


def check_state(state: Any) -> None:
    """Refuse what is no state of a run."""
    if not isinstance(state, TrainState):
        raise ValueError(
            f"state must be a TrainState, as init_train_state gives, got {_checks.describe(state)}"
        )


def apply_gradients(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    loss: Array,
    grads: Any,
    *,
    value_fn: Callable[[Any], Array] | None = None,
) -> tuple[TrainState, dict[str, Mean]]:
    """The state after one update, or the same parameters where a number is not finite.

    What :func:`make_train_step` does with a gradient, for a step of one's own. Looked at are the
    loss, the norm of the gradient, and the parameters after the update; of the optimizer's state
    what is float16.

    Args:
        state: the state before.
        optimizer: an Optax transformation. One that takes further arguments, as Optax's protocol
            has it, gets ``value`` (the loss), ``grad`` and ``value_fn``; ``optax.contrib.sam``
            gets the ``grad_fn`` that it asks for, ``optax.contrib.sophia`` its ``obj_fn``.
        loss: a floating scalar.
        grads: its gradient, a tree like ``state.params``, of the same shapes.
        value_fn: the loss as a function of the parameters, which line searches call.

    Returns:
        The state and the metrics "grad_norm" and "skipped", each a :class:`rnnjax.metrics.Mean`.

    Raises:
        ValueError: the loss is no floating scalar, or the gradient of another structure or shape
            than the parameters; or the optimizer needs an argument that it cannot get here, or
            does not keep the structure of its state; names it.

    Example:
        >>> import optax
        >>> optimizer = optax.sgd(0.5)
        >>> state = init_train_state(jax.random.key(0), {"w": jnp.ones(2)}, optimizer)
        >>> grads = {"w": jnp.array([1.0, jnp.nan])}
        >>> state, metrics = apply_gradients(state, optimizer, jnp.array(0.3), grads)
        >>> state.params["w"].tolist(), int(state.skipped)
        ([1.0, 1.0], 1)
    """
    import optax

    _check_made_by(optimizer, state)
    _check_gradient(state.params, grads)
    norm = _norm(grads)
    loss = raised(check_loss("loss", loss))
    held = (state.params, state.opt_state)
    extra: dict[str, Any] = {"value": loss, "grad": grads}
    if value_fn is not None:
        extra["value_fn"] = value_fn

    def update(params: Any, opt_state: Any) -> tuple[Any, Any]:
        updates, new_opt_state = _update(optimizer, grads, opt_state, params, extra)
        _check_kept(new_opt_state, opt_state)
        new = (optax.apply_updates(params, updates), new_opt_state)
        # A state that drifts to another dtype would not fit the compiled program again.
        return jax.tree.map(lambda leaf, old: jnp.asarray(leaf, old.dtype), new, held)

    def stays_finite(params: Any, opt_state: Any) -> Array:
        params, opt_state = update(params, opt_state)
        # A square in float16 is infinite from 256 on: Adam would never move that number again.
        narrow = [leaf for leaf in jax.tree.leaves(opt_state) if leaf.dtype == jnp.float16]
        return all_finite((params, narrow))

    def keep(params: Any, opt_state: Any) -> tuple[Any, Any]:
        return params, opt_state

    if _values.is_checking():
        _values.require_finite("the loss", loss)
        _values.require_finite("the gradient of params", grads)
        _values.require_finite("the norm of the gradient", norm)
        _values.require_finite("params after the update", update(*held)[0])
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    # Branches and not a choice between two states, which would have to exist side by side: the
    # update is computed once to look at it, and once to make it in place.
    finite = jax.lax.cond(finite, stays_finite, lambda *_: jnp.zeros((), bool), *held)
    params, opt_state = jax.lax.cond(finite, update, keep, *held)
    skipped = jnp.where(finite, 0, 1).astype(jnp.int32)
    one = jnp.ones((), norm.dtype)
    figures = {
        "grad_norm": Mean(jnp.where(finite, norm, 0), jnp.where(finite, one, 0)),
        "skipped": Mean(skipped.astype(norm.dtype), one),
    }
    in_a_row = (state.skipped_in_a_row + 1) * skipped
    counts = (state.skipped + skipped, in_a_row)
    return TrainState(state.step + 1, params, opt_state, state.key, *counts), figures


class NonFiniteError(ArithmeticError):
    """Too many steps in a row had a loss, gradient or update that was NaN or infinite."""


def check_finite(state: TrainState, limit: int) -> None:
    """End a run whose numbers are lost. Waits for the device.

    The parameters of the state are still good: they are those of the last step that was finite.

    Of states that are stacked, as for a step under ``jax.vmap``, the one with the most is looked
    at.

    Args:
        state: the present state.
        limit: so many skipped steps in a row, up to the last one, are too many.

    Raises:
        NonFiniteError: there were ``limit`` or more.

    Example:
        >>> import optax
        >>> state = init_train_state(jax.random.key(0), {"w": jnp.ones(2)}, optax.sgd(0.5))
        >>> check_finite(state, limit=10)
        >>> lost = state._replace(skipped_in_a_row=jnp.array(10))
        >>> check_finite(lost, limit=10)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        rnnjax.training.updates.NonFiniteError: loss, gradient or update was NaN or infinite in ...
    """
    check_state(state)
    counts, steps = map(np.ravel, jax.device_get((state.skipped_in_a_row, state.step)))
    worst = counts.argmax()
    in_a_row, step = int(counts[worst]), int(steps[worst])
    if in_a_row >= _checks.check_size("limit", limit):
        which = f" of state {worst} of {len(counts)}" if jnp.ndim(state.step) else ""
        raise NonFiniteError(
            f"loss, gradient or update{which} was NaN or infinite in the last {in_a_row} steps "
            f"(limit {limit}): the parameters are those after step {step - in_a_row}; "
            "a smaller learning rate or clipping may help"
        )


def all_finite(tree: Any) -> Array:
    """Whether every number in the floating arrays of a tree is finite: a boolean on the device."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if _is_floating(leaf)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves], bool))


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _norm(grads: Any) -> Array:
    leaves = [raised(leaf) for leaf in jax.tree.leaves(grads)]
    dtype = functools.reduce(np.promote_types, (a.dtype for a in leaves), np.dtype(np.float32))
    total = sum((jnp.sum(a * a).astype(dtype) for a in leaves), jnp.zeros((), dtype))
    # The derivative of a root at 0 is infinite, and would be NaN in that of a step.
    positive = total > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, total, 1)), total)


def _init_optimizer(optimizer: Any, params: Any) -> Any:
    import optax

    refusal = ValueError(
        "optimizer must train one tree of parameters, got optax.lookahead, which needs pairs of "
        "fast and slow ones: a step takes the gradient at all parameters"
    )
    is_pair = lambda node: isinstance(node, optax.LookaheadParams | optax.LookaheadState)  # noqa: E731
    if any(map(is_pair, jax.tree.leaves(params, is_leaf=is_pair))):
        raise refusal
    opt_state = optimizer.init(params)
    if any(map(is_pair, jax.tree.leaves(opt_state, is_leaf=is_pair))):
        raise refusal
    check_average(opt_state, params)
    return opt_state


def _check_made_by(optimizer: Any, state: TrainState) -> None:
    """Refuse the state of another optimizer, which some of Optax would take without a word."""
    expected, given = jax.eval_shape(optimizer.init, state.params), state.opt_state
    if jax.tree.structure(given) != jax.tree.structure(expected):
        raise ValueError(
            f"state.opt_state must be of the optimizer of the step, {_checks.describe(expected)}, "
            f"got {_checks.describe(given)}: give init_train_state the same optimizer"
        )


def _check_gradient(params: Any, grads: Any) -> None:
    if jax.tree.structure(grads) != jax.tree.structure(params):
        raise ValueError(
            f"grads must be a tree like state.params, {_checks.describe(params)}, got "
            f"{_checks.describe(grads)}"
        )
    for (path, leaf), grad in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(grads), strict=True
    ):
        if jnp.shape(grad) != leaf.shape:
            raise ValueError(
                f"grads{jax.tree_util.keystr(path)} must have shape {leaf.shape}, that of the "
                f"parameter, got shape {jnp.shape(grad)}"
            )


def _check_kept(new: Any, held: Any) -> None:
    if jax.tree.structure(new) != jax.tree.structure(held):
        raise ValueError(
            f"optimizer must keep the structure of its state, {_checks.describe(held)}, got "
            f"{_checks.describe(new)} after an update: a compiled step takes back what it gave"
        )


def _update(
    optimizer: Any, grads: Any, opt_state: Any, params: Any, extra: dict[str, Any]
) -> tuple[Any, Any]:
    """What the optimizer makes of a gradient, given all that Optax's protocol lets it ask for."""
    import optax

    update, offered = optimizer.update, ", ".join(extra)
    if not _takes_any(update):  # optax.MultiSteps does, and is none of Optax's types that do
        update = optax.with_extra_args_support(optimizer).update
    known = inspect.signature(update).parameters
    if not _takes_any(update):
        # ``optax.contrib.sam`` is outside of the protocol: it takes one argument, of its own.
        if "value_fn" in extra:
            gradient = jax.grad(extra["value_fn"])
            extra = {**extra, "grad_fn": lambda params, step: gradient(params)}
        extra = {name: value for name, value in extra.items() if name in known}
    try:
        return update(grads, opt_state, params, **extra)
    except TypeError as error:
        missing = re.search(r"missing \d+ required keyword-only arguments?: (.*)", str(error))
        if missing is None:
            raise
        raise ValueError(
            f"optimizer must need none but {offered} beside the gradient, got one that "
            f"needs {missing[1]}"
        ) from error
    except ValueError as error:
        # ``optax.contrib.sophia`` has another name for it, which line searches would not take.
        if "obj_fn must be" in str(error) and "value_fn" in extra and "obj_fn" not in extra:
            again = {**extra, "obj_fn": extra["value_fn"]}
            return _update(optimizer, grads, opt_state, params, again)
        if "grad_fn" not in str(error) or "grad_fn" in extra:
            raise
        raise ValueError(
            f"optimizer must need none but {offered} beside the gradient, got one that "
            "needs grad_fn, as optax.contrib.sam does: make_train_step gives it"
        ) from error


def _takes_any(update: Callable) -> bool:
    arguments = inspect.signature(update).parameters.values()
    return any(argument.kind == argument.VAR_KEYWORD for argument in arguments)


def _check_floating(params: Any) -> None:
    arrays = jax.Array | np.ndarray | np.generic | bool | int | float | complex
    for path, leaf in jax.tree.leaves_with_path(params):
        if not isinstance(leaf, arrays):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} must be an array, got {type(leaf).__name__}"
            )
        if not _is_floating(leaf):
            hint = "what has no gradient belongs in the batch or in the loss function"
            if jnp.iscomplexobj(leaf):  # JAX's gradient leads uphill in the imaginary part
                hint = "keep the real and the imaginary part as two arrays"
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} must be floating, got "
                f"{jax.typeof(leaf).str_short()}: {hint}"
            )


def _beside(params: Any, state: TrainState) -> TrainState:
    """``state`` where the parameters are committed, if they are: on their one device, or on the
    devices of their mesh, whole on each what does not lie there.

    A step would bring it there in any case, and then be compiled again for what lies elsewhere.
    """
    leaves = jax.tree.leaves(params)
    if any(isinstance(leaf, Tracer) or not leaf.committed for leaf in leaves):
        return state
    devices = set().union(*(leaf.devices() for leaf in leaves))
    if len(devices) == 1:
        return jax.device_put(state, devices.pop())
    places = [leaf.sharding for leaf in leaves]
    meshes = {place.mesh if isinstance(place, NamedSharding) else None for place in places}
    mesh = meshes.pop() if len(meshes) == 1 else None
    if not isinstance(mesh, Mesh) or any(not place.is_fully_addressable for place in places):
        return state
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda leaf: leaf if leaf.devices() == devices else jax.device_put(leaf, whole), state
    )


def _owned(leaf: Any) -> Array:
    """A copy that nobody else holds, of the leaf's dtype and not weakly typed."""
    array = jnp.asarray(leaf)
    return jnp.array(array, array.dtype)
