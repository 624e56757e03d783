"""Training steps for Optax: a pure function of state and batch, compiled once a shape.

Whatever it trains is a tree of parameters and a loss function:

    loss_fn(params, batch, key) -> (loss, metrics)

with a scalar loss, and metrics a dict of names and pairs (total, count), as `rnnjax.metrics.Mean`.
The key means training; in evaluation it is None.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rnnjax import _checks

if TYPE_CHECKING:
    import optax

Metrics = Mapping[str, tuple[Array, Array]]
LossFn = Callable[[Any, Any, Array | None], tuple[Array, Metrics]]
State = TypeVar("State")
Result = TypeVar("Result")


class TrainState(NamedTuple):
    """All that a training step reads and writes; a checkpoint of it is a checkpoint of the run."""

    step: Array  # int32, steps taken, skipped ones counted in
    params: Any
    opt_state: Any
    key: Array  # typed; never changes, each step folds its number in
    skipped: Array  # int32, steps whose update was left out because a number was not finite
    skipped_in_a_row: Array  # int32, up to the last step


class Compilation(NamedTuple):
    """That a step was compiled, and for what."""

    name: str  # "train step" or "eval step"
    shapes: dict[str, str]  # path in the batch -> "int32[64,32]"
    seconds: float  # tracing, lowering and compiling


def init_train_state(
    params: Any, optimizer: optax.GradientTransformation, key: Array
) -> TrainState:
    """The state before the first step.

    It owns its arrays: `make_train_step` gives them away to the next state, while the params and
    the key passed here stay alive.

    Args:
        params: a tree of floating-point arrays.
        optimizer: an Optax transformation.
        key: a typed key, the source of all randomness in the steps.

    Raises:
        TypeError: the key is not one typed key, or a parameter is not floating-point.

    Example:
        >>> import optax
        >>> state = init_train_state({"w": jnp.ones(3)}, optax.adam(1e-3), jax.random.key(0))
        >>> state.step.item()
        0
    """
    _check_key(key)
    _check_floating(params)
    params = jax.tree.map(_owned, params)
    opt_state = jax.tree.map(_owned, optimizer.init(params))
    # One array each: a step gives its state away, and no array can be given away twice.
    counts = [jnp.zeros((), jnp.int32) for _ in range(3)]
    return TrainState(counts[0], params, opt_state, _owned(key), *counts[1:])


class CompiledStep(Generic[State, Result]):
    """A pure function of (state, batch), compiled once for each kind of batch.

    Two batches are of one kind when their tree structure, shapes and dtypes agree. Compiling is
    done ahead of the call, so that it can be timed and reported apart from the work; the state
    must keep its own structure, shapes and dtypes from call to call.

    Attributes:
        compilations: what was compiled so far, in order.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[State, Any], Result],
        *,
        donate_state: bool,
        on_compile: Callable[[Compilation], None] | None,
        compiler_options: dict[str, Any] | None = None,
    ) -> None:
        self.compilations: list[Compilation] = []
        self._name = name
        self._function = function
        self._jitted = jax.jit(
            function,
            donate_argnums=0 if donate_state else (),
            compiler_options=compiler_options,
        )
        self._on_compile = on_compile
        self._programs: dict[Any, Callable[[State, Any], Result]] = {}

    def __call__(self, state: State, batch: Any) -> Result:
        """Runs the program for this kind of batch, compiling it first if it is new."""
        if _checks.is_checking():  # part of the program that is being compiled
            return self._function(state, batch)
        leaves, structure = jax.tree.flatten(batch)
        kind = (structure, *map(jax.typeof, leaves))
        program = self._programs.get(kind)
        if program is None:
            program = self._programs[kind] = self._compile(state, batch)
        return program(state, batch)

    def _compile(self, state: State, batch: Any) -> Callable[[State, Any], Result]:
        start = time.perf_counter()
        program = self._jitted.lower(state, batch).compile()
        seconds = time.perf_counter() - start
        self.compilations.append(Compilation(self._name, _shapes(batch), seconds))
        if self._on_compile is not None:
            self._on_compile(self.compilations[-1])
        return program


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    on_compile: Callable[[Compilation], None] | None = None,
    compiler_options: dict[str, Any] | None = None,
) -> CompiledStep[TrainState, tuple[TrainState, dict[str, tuple[Array, Array]]]]:
    """One step of stochastic gradient descent, or of whatever Optax makes of the gradient.

    g = ∇ loss(params, batch, fold_in(key, step)),  params ← params + optimizer(g)

    Where the loss or the norm of the gradient is NaN or infinite, the update is left out:
    parameters and optimizer state stay as they are, the state counts it, and the metrics of the
    loss function are (0, 0), so that they are missing from sums rather than spoiling them. A run
    that meets such steps again and again should end: see :func:`check_finite`.

    The random key depends on the state alone, so a step taken twice from equal states gives
    equal results. The state is donated: its arrays are dead after the call; go on with the new
    one.

    Args:
        loss_fn: the loss function, see the top of this file.
        optimizer: an Optax transformation. Clipping and schedules are parts of it.
        on_compile: called after each compilation with what was compiled.
        compiler_options: options of XLA by name, such as :func:`rnnjax.cuda_graph_options`.

    Returns:
        step(state, batch) -> (state, metrics): those of the loss function, "grad_norm" as the
        pair (norm of the gradient before the optimizer, 1), so that it merges like the rest, and
        "skipped" as (1, 1) where the update was left out and (0, 1) elsewhere.

    Raises:
        ValueError: when it compiles, if the loss function has metrics of these names.

    Example:
        >>> import optax
        >>> def loss_fn(params, batch, key):
        ...     error = ((batch["x"] @ params["w"] - batch["y"]) ** 2).sum()
        ...     return error, {"loss": (error, jnp.array(1.0))}
        >>> schedule = optax.cosine_decay_schedule(init_value=0.1, decay_steps=100)
        >>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
        >>> state = init_train_state({"w": jnp.zeros(2)}, optimizer, jax.random.key(0))
        >>> step = make_train_step(loss_fn, optimizer)
        >>> batch = {"x": jnp.eye(2), "y": jnp.array([3.0, 4.0])}
        >>> for _ in range(3):
        ...     state, metrics = step(state, batch)
        >>> int(state.step), sorted(metrics), [made.shapes for made in step.compilations]
        (3, ['grad_norm', 'loss', 'skipped'], [{'x': 'float32[2,2]', 'y': 'float32[2]'}])
    """

    def train_step(
        state: TrainState, batch: Any
    ) -> tuple[TrainState, dict[str, tuple[Array, Array]]]:
        key = jax.random.fold_in(state.key, state.step)
        with_metrics = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, metrics), grads = with_metrics(state.params, batch, key)
        _check_names(metrics)
        if _checks.is_checking():
            _checks.require_finite("the loss", loss)
            _checks.require_finite("the gradient of params", grads)
            _checks.require_finite("the norm of the gradient", _norm(grads))
        new, figures = apply_gradients(state, optimizer, loss, grads)
        kept = figures["skipped"][0] == 0
        metrics = jax.tree.map(lambda figure: jnp.where(kept, figure, 0), dict(metrics))
        return new, {**metrics, **figures}

    return CompiledStep(
        "train step",
        train_step,
        donate_state=True,
        on_compile=on_compile,
        compiler_options=compiler_options,
    )


def apply_gradients(
    state: TrainState, optimizer: optax.GradientTransformation, loss: Array, grads: Any
) -> tuple[TrainState, dict[str, tuple[Array, Array]]]:
    """The state after one update, or the same parameters where a number is not finite.

    What :func:`make_train_step` does with a gradient, for a step of one's own.

    Args:
        state: the state before.
        optimizer: an Optax transformation.
        loss: a scalar.
        grads: its gradient, a tree like ``state.params``.

    Returns:
        The state and the metrics "grad_norm" and "skipped".

    Example:
        >>> import optax
        >>> optimizer = optax.sgd(0.5)
        >>> state = init_train_state({"w": jnp.ones(2)}, optimizer, jax.random.key(0))
        >>> grads = {"w": jnp.array([1.0, jnp.nan])}
        >>> state, metrics = apply_gradients(state, optimizer, jnp.array(0.3), grads)
        >>> state.params["w"].tolist(), int(state.skipped)
        ([1.0, 1.0], 1)
    """
    import optax

    norm = _norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    held = (state.params, state.opt_state)

    def update(params: Any, opt_state: Any) -> tuple[Any, Any]:
        updates, new_opt_state = optimizer.update(grads, opt_state, params)
        new = (optax.apply_updates(params, updates), new_opt_state)
        # A state that drifts to another dtype would not fit the compiled program again.
        return jax.tree.map(lambda leaf, old: jnp.asarray(leaf, old.dtype), new, held)

    def keep(params: Any, opt_state: Any) -> tuple[Any, Any]:
        return params, opt_state

    # A branch and not a choice between two states, which would have to exist side by side.
    params, opt_state = jax.lax.cond(finite, update, keep, *held)
    skipped = jnp.where(finite, 0, 1).astype(jnp.int32)
    one = jnp.ones((), norm.dtype)
    figures = {
        "grad_norm": (jnp.where(finite, norm, 0), jnp.where(finite, one, 0)),
        "skipped": (skipped.astype(norm.dtype), one),
    }
    in_a_row = (state.skipped_in_a_row + 1) * skipped
    counts = (state.skipped + skipped, in_a_row)
    return TrainState(state.step + 1, params, opt_state, state.key, *counts), figures


class NonFiniteError(ArithmeticError):
    """Too many steps in a row had a loss or gradient that was NaN or infinite."""


def check_finite(state: TrainState, limit: int) -> None:
    """End a run whose numbers are lost. Waits for the device.

    The parameters of the state are still good: they are those of the last step that was finite.

    Args:
        state: the present state.
        limit: so many skipped steps in a row, up to the last one, are too many.

    Raises:
        NonFiniteError: there were ``limit`` or more.

    Example:
        >>> import optax
        >>> state = init_train_state({"w": jnp.ones(2)}, optax.sgd(0.5), jax.random.key(0))
        >>> check_finite(state, limit=10)
        >>> lost = state._replace(skipped_in_a_row=jnp.array(10))
        >>> check_finite(lost, limit=10)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        rnnjax.training.NonFiniteError: loss or gradient was NaN or infinite in the last 10 ...
    """
    in_a_row = int(state.skipped_in_a_row)
    if in_a_row >= limit:
        raise NonFiniteError(
            f"loss or gradient was NaN or infinite in the last {in_a_row} steps (limit {limit}): "
            f"the parameters are those after step {int(state.step) - in_a_row}; a smaller "
            "learning rate or clipping may help"
        )


def make_eval_step(
    loss_fn: LossFn, *, on_compile: Callable[[Compilation], None] | None = None
) -> CompiledStep[Any, Metrics]:
    """The metrics of a batch, without gradient and without randomness.

    Args:
        loss_fn: the loss function of training; it gets None for a key.
        on_compile: called after each compilation with what was compiled.

    Returns:
        step(params, batch) -> metrics. Nothing is donated.

    Example:
        >>> def loss_fn(params, batch, key):
        ...     assert key is None
        ...     total = (params * batch).sum()
        ...     return total / batch.size, {"loss": (total, jnp.array(batch.size))}
        >>> total, count = make_eval_step(loss_fn)(jnp.array(2.0), jnp.arange(3.0))["loss"]
        >>> float(total), int(count)
        (6.0, 3)
    """

    def eval_step(params: Any, batch: Any) -> Metrics:
        return loss_fn(params, batch, None)[1]

    return CompiledStep("eval step", eval_step, donate_state=False, on_compile=on_compile)


def _check_names(metrics: Mapping[str, Any]) -> None:
    for name in ("grad_norm", "skipped"):
        if name in metrics:
            raise ValueError(f'the train step adds the metric "{name}": name yours otherwise')


def _check_key(key: Any) -> None:
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed or key.shape:
        given = f"{key.dtype}{list(key.shape)}" if hasattr(key, "dtype") else repr(key)
        raise TypeError(
            f"key: expected one typed key, jax.random.key(seed), got {given}; "
            "jax.random.wrap_key_data turns a legacy uint32 key into a typed one"
        )


def _check_floating(params: Any) -> None:
    for path, leaf in jax.tree.leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)}: expected a floating-point array, got "
                f"{jax.typeof(leaf).str_short()}; what has no gradient belongs in the batch "
                "or in the loss function"
            )


def _owned(leaf: Any) -> Array:
    """A copy that nobody else holds, of the leaf's dtype and not weakly typed."""
    array = jnp.asarray(leaf)
    return jnp.array(array, array.dtype)


def _norm(grads: Any) -> Array:
    import optax

    return optax.tree.norm(jax.tree.map(_raised, grads))


def _raised(leaf: Array) -> Array:
    # NumPy's rule, as JAX's own refuses to promote where promotion is strict.
    return leaf.astype(np.promote_types(leaf.dtype, np.float32))


def _shapes(batch: Any) -> dict[str, str]:
    shapes = {}
    for path, leaf in jax.tree.leaves_with_path(batch):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "batch"
        shapes[name] = jax.typeof(leaf).str_short()
    return shapes
