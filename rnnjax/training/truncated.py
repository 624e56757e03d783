"""Truncated backpropagation through time: many updates along one batch of long sequences."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from rnnjax._checks import call_error, check_carry, check_size, check_takes
from rnnjax._native import in_native_order, jit
from rnnjax._numerics import where
from rnnjax.metrics.means import Mean
from rnnjax.training.compiled import Compilation, CompiledStep, check_batch, explaining_deleted
from rnnjax.training.loss_functions import Metrics, check_result, join_metrics
from rnnjax.training.updates import TrainState, apply_gradients, check_optimizer, check_state

if TYPE_CHECKING:
    import optax


class Sequences(NamedTuple):
    """A batch of sequences and what is wanted at each of their steps.

    Attributes:
        xs: inputs, leaves [B, T, ...].
        targets: leaves [B, T, ...].
        mask: bool [B, T], True where a step is real; None means all.
        resets: bool [B, T], True where a new segment starts; None means nowhere.
    """

    xs: Any
    targets: Any
    mask: Any = None
    resets: Any = None


class TruncatedStep:
    """``step(state, batch, carry=None) -> (state, carry, metrics)``; see `make_truncated_step`.

    As a ``CompiledStep``, a plain function inside ``jax.jit``, ``lax.scan`` or ``jax.vmap``.

    Attributes:
        compilations: what was compiled so far, in order.
    """

    __name__ = "truncated_step"

    def __init__(
        self, first_carry: Callable[[Any, Any], Any], step: CompiledStep[TrainState, Any]
    ) -> None:
        self._first_carry = first_carry
        self._step = step
        self.compilations = step.compilations

    def __call__(
        self, state: TrainState, batch: Sequences, carry: Any = None
    ) -> tuple[TrainState, Any, dict[str, Mean]]:
        check_state(state)
        batch = _filled(_check_sequences(batch), carry is None)
        if carry is None:
            with explaining_deleted(state):
                carry = self._first_carry(state.params, batch.xs)
        else:
            carry = jax.tree_util.tree_map_with_path(_as_carry, carry)
        return self._step(state, batch, carry)


def make_truncated_step(
    apply: Callable[..., tuple[Any, Any]],
    loss_fn: Callable[[Any, Any, Array], tuple[Array, Metrics]],
    optimizer: optax.GradientTransformation,
    *,
    k1: int,
    k2: int | None = None,
    head: Callable[[Any, Any], Any] | None = None,
    on_compile: Callable[[Compilation], None] | None = None,
    donate_state: bool = True,
) -> TruncatedStep:
    r"""Training on long sequences by an update every k1 steps, from gradients over k2 steps.

    .. math::

        g_j = \nabla_\theta \sum_{t = j k_1}^{(j + 1) k_1 - 1} \ell(y_t), \qquad
        y_t \text{ run from step } (j + 1) k_1 - k_2 \text{ with its carry held constant}

    Update j runs a window of the last k2 steps under the present parameters, takes the loss of
    its last k1, and hands on the carry k1 steps into the window, where the next window starts.
    At the start of a call the window is shorter: gradients do not go back into the call before.
    A last chunk of fewer than k1 steps is one more update. A chunk without a real step in any
    row moves nothing: no parameter, no statistic of the optimizer, no step count. An update
    whose numbers are not finite is left out and counted as in ``make_train_step``; a row whose
    carry is not finite behind it starts anew, so that a NaN in the inputs costs no later update.

    All windows of a call are one loop over one compiled program. Each row has its own mask and
    its own resets; no gradient crosses a reset. Where k2 is more than k1, the first k1 steps of
    a window run once more, forwards, for the carry that is handed on.

    Args:
        apply: ``(params, xs, *, mask, resets, initial_carry, key) -> (carry, ys)``, such as the
            ``apply`` of a layer. Its outputs must depend on past inputs alone (``layer.causal``):
            a window is cut where the next one starts. It must take zero steps too: so the first
            carry is made.
        loss_fn: ``(ys, targets, mask) -> (loss, metrics)`` of one chunk, leaves [B, k1, ...], with
            metrics as ``make_train_step`` wants them: names and pairs (total, count).
        optimizer: an Optax transformation.
        k1: steps from one update to the next.
        k2: steps that gradients go back, at least k1, which is what None means.
        head: ``(params, ys) -> ys``, what becomes of the outputs of the last k1 steps before the
            loss: the logits of a language model, or with many words, where ``apply`` is
            ``model.features``, ``lambda params, ys: (ys.dropped, *model.head_weights(params))``
            for a loss by ``linear_cross_entropy``. None leaves them as they are.
        on_compile: called after each compilation with what was compiled.
        donate_state: False to keep the state alive, at the price of a second one in memory.

    Returns:
        ``step(state, batch, carry=None) -> (state, carry, metrics)``, pure as that of
        ``make_train_step``. ``state`` is a ``TrainState``, donated like there; each update takes
        its random key from it and counts as one of its steps. ``batch`` is a ``Sequences``.
        ``carry`` is the one that the call before returned, to go on with the same rows, or None
        to start them anew, with any number of rows. ``metrics`` are those of ``make_train_step``,
        summed over the updates: "grad_norm" is the pair (sum of the norms, number of updates).

    Raises:
        ValueError: k1 or k2 is not a positive integer, or k2 below k1; ``apply`` or ``loss_fn`` is
            no function of such arguments; or from the step, a batch that is no ``Sequences`` or of
            unequal shapes, a loss function that gives something else, or a metric by a name that
            the step adds itself.

    Example:
        >>> import jax, jax.numpy as jnp, optax, rnnjax
        >>> from rnnjax.metrics import Mean
        >>> from rnnjax import Sequences, make_truncated_step
        >>> def loss_fn(ys, targets, mask):
        ...     loss = Mean.of((ys[..., 0] - targets) ** 2, mask)
        ...     return loss.value, {"loss": loss}
        >>> layer, optimizer = rnnjax.recurrent(rnnjax.gru(1)), optax.adam(1e-2)
        >>> params = layer.init(jax.random.key(0), 3)
        >>> state = rnnjax.init_train_state(jax.random.key(1), params, optimizer)
        >>> step = make_truncated_step(layer.apply, loss_fn, optimizer, k1=4, k2=8)
        >>> batch = Sequences(jnp.ones((2, 10, 3)), jnp.zeros((2, 10)))
        >>> state, carry, metrics = step(state, batch)
        >>> state, carry, metrics = step(state, batch, carry)
        >>> int(state.step), int(metrics["loss"][1]), int(metrics["grad_norm"][1])
        (6, 20, 3)

    References:
        Williams and Peng, "An efficient gradient-based algorithm for on-line training of
        recurrent network trajectories", Neural Computation 2 (1990), there BPTT(k2; k1).
    """
    k1, k2 = _check_sizes(k1, k2)
    check_optimizer(optimizer)
    check_takes("loss_fn", loss_fn, "ys", "targets", "mask")
    if not callable(apply):
        kind = type(apply).__name__
        raise ValueError(f"apply must be a function, such as layer.apply, got {kind}")
    options = ("mask", "resets", "initial_carry", "key")
    error = call_error(apply, "params", "xs", keywords=options)
    if error is not None:
        raise ValueError(
            f"apply must take (params, xs, *, {', '.join(options)}), as that of a layer, a "
            f"language_model or a series_model does, got one that does not ({error}): head makes "
            "logits of the outputs of a layer"
        )

    def window_loss(params: Any, carry: Any, window: Sequences, key: Array) -> tuple[Array, tuple]:
        end, ys = _run(apply, params, carry, window, key)
        ahead = end
        if k2 > k1:
            # Where the next window starts, by itself and forward alone: in two parts, the noise of
            # the second would be that of the first again, as it is drawn by the step in a call.
            held, again = lax.stop_gradient(params), jax.random.clone(key)
            ahead, _ = _run(apply, held, carry, _in_time(window, 0, k1), again)
        new = _in_time(window, k2 - k1, k2)
        ys = jax.tree.map(lambda a: a[:, k2 - k1 :], ys)
        if head is not None:
            ys = head(params, ys)
        result = loss_fn(ys, new.targets, new.mask)
        loss, metrics = check_result(result)
        return loss, (metrics, ahead, end, jnp.any(new.mask))

    def update(held: tuple, window: Sequences) -> tuple[tuple, Metrics]:
        state, carry, last = held
        key = jax.random.fold_in(state.key, state.step)
        with_parts = jax.value_and_grad(window_loss, has_aux=True)
        (loss, parts), grads = with_parts(state.params, carry, window, key)
        metrics, ahead, end, real = parts
        new, figures = apply_gradients(state, optimizer, loss, grads)
        metrics = join_metrics(metrics, figures)
        # A NaN would never leave a carry, and with it all that comes later would be left out.
        first, count = first_carry(state.params, window.xs), window.mask.shape[0]
        ahead, end = (_finite_rows(held, first, count) for held in (ahead, end))
        state, end = _where(real, (new, end), (state, last))
        return (state, ahead, end), _where(real, metrics, jax.tree.map(jnp.zeros_like, metrics))

    @jit
    def first_carry(params: Any, xs: Any) -> Any:
        none = jax.tree.map(lambda a: a[:, :0], xs)
        flags = jnp.zeros((jax.tree.leaves(xs)[0].shape[0], 0), bool)
        return _run(apply, params, None, Sequences(none, (), flags, flags), None)[0]

    def train(state: TrainState, batch: Sequences, carry: Any) -> tuple[TrainState, Any, Any]:
        check_state(state)
        # In the dtypes that ``apply`` gives: what a loop begins with must be as it ends.
        carry = check_carry("carry", carry, jax.eval_shape(first_carry, state.params, batch.xs))
        time = batch.mask.shape[1]
        # Of no steps one chunk too, all of it masked, which moves nothing.
        chunks = max(1, -(-time // k1))
        padded = _pad_time(batch, k2 - k1, chunks * k1 - time)

        def body(held: tuple, chunk: Array) -> tuple[tuple, Metrics]:
            return update(held, _window(padded, chunk * k1, k2))

        held, metrics = lax.scan(body, (state, carry, carry), jnp.arange(chunks))
        state, _, end = held
        return state, end, jax.tree.map(lambda a: jnp.sum(a, axis=0), metrics)

    step = CompiledStep("truncated step", train, donate_state=donate_state, on_compile=on_compile)
    return TruncatedStep(first_carry, step)


def _run(
    apply: Callable, params: Any, carry: Any, part: Sequences, key: Array | None
) -> tuple[Any, Any]:
    steps = {"mask": part.mask, "resets": part.resets}
    return apply(params, part.xs, **steps, initial_carry=carry, key=key)


def _in_time(batch: Sequences, begin: int, end: int) -> Sequences:
    return jax.tree.map(lambda a: a[:, begin:end], batch)


def _window(batch: Sequences, begin: Array, size: int) -> Sequences:
    return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, begin, size, axis=1), batch)


def _pad_time(batch: Sequences, before: int, after: int) -> Sequences:
    """Masked steps at both ends, so that every window is whole."""

    def pad(a: Array) -> Array:
        return jnp.pad(a, ((0, 0), (before, after), *((0, 0),) * (a.ndim - 2)))

    return jax.tree.map(pad, batch)


def _finite_rows(carry: Any, first: Any, count: int) -> Any:
    """The carry, in rows of the ``count`` with a number that is not finite the first one."""
    finite = jnp.ones(count, bool)
    for leaf in jax.tree.leaves(carry):
        if leaf.shape[:1] == (count,) and jnp.issubdtype(leaf.dtype, jnp.floating):
            finite &= jnp.all(jnp.isfinite(leaf.reshape(count, -1)), axis=1)

    def chosen(leaf: Array, anew: Array) -> Array:
        if leaf.shape[:1] != (count,):
            return leaf  # of a function of one's own: no state of rows
        return where(finite.reshape(count, *(1,) * (leaf.ndim - 1)), leaf, anew)

    return jax.tree.map(chosen, carry, first)


def _where(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: where(condition, a, b), new, old)


def _check_sequences(batch: Any) -> Sequences:
    """``batch`` as arrays, if all of it has the same axes B and T."""
    if not isinstance(batch, Sequences):
        raise ValueError(
            f"batch must be Sequences(xs, targets, mask, resets), got {type(batch).__name__}"
        )
    check_batch(batch)
    xs, targets = jax.tree.map(jnp.asarray, in_native_order((batch.xs, batch.targets)))
    shape = next((a.shape[:2] for a in jax.tree.leaves(xs)), ())
    for name, part in (("xs", xs), ("targets", targets)):
        for leaf in jax.tree.leaves(part):
            if leaf.ndim < 2 or leaf.shape[:2] != shape:
                raise ValueError(
                    f"{name} must have shape [B, T, ...], B and T those of xs, got shape "
                    f"{leaf.shape} beside {shape}"
                )
    flags = {"mask": batch.mask, "resets": batch.resets}
    given = {k: None if a is None else _check_flags(k, a, shape) for k, a in flags.items()}
    return Sequences(xs, targets, **given)


@functools.partial(jax.jit, static_argnums=1)
def _filled(batch: Sequences, is_start: bool) -> Sequences:
    """``batch`` with mask and resets, one more at the first real step of rows that start here.

    A reset, so that a carry that is learned gets its gradient.
    """
    shape = jax.tree.leaves(batch.xs)[0].shape[:2]
    mask = jnp.ones(shape, bool) if batch.mask is None else batch.mask
    resets = jnp.zeros(shape, bool) if batch.resets is None else batch.resets
    if is_start:
        resets |= mask & (jnp.cumsum(mask, axis=1) == 1)
    return batch._replace(mask=mask, resets=resets)


def _as_carry(path: Any, leaf: Any) -> Any:
    if not hasattr(leaf, "dtype") and not isinstance(leaf, float):
        name = f"carry{jax.tree_util.keystr(path)}"
        raise ValueError(f"{name} must be an array, got {type(leaf).__name__}")
    return leaf


def _check_flags(name: str, flags: Any, shape: tuple[int, ...]) -> Array:
    array = jnp.asarray(flags)
    if array.shape != shape or array.dtype != jnp.bool_:
        raise ValueError(f"{name} must be bool of shape {shape}, got {jax.typeof(array)}")
    return array


def _check_sizes(k1: Any, k2: Any) -> tuple[int, int]:
    k1 = check_size("k1", k1)
    if k2 is None:
        return k1, k1
    k2 = check_size("k2", k2)
    if k2 < k1:
        raise ValueError(f"k2 must be at least k1 ({k1}), got {k2}")
    return k1, k2
