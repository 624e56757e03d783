"""The training loop of most programs, by a loss: epochs, validation, early stopping, one test."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.running.checkpoints import Saver, Snapshot
from experiments.running.console import shortened
from experiments.running.devices import Devices
from experiments.running.processes import is_first
from experiments.running.run_folder import RunFolder
from experiments.running.session import Session, counted, go_on
from rnnjax.metrics import compute, merge
from rnnjax.training import (
    EarlyStopping,
    NonFiniteError,
    average_parameters,
    averaged,
    init_train_state,
    make_eval_step,
    make_train_step,
)

# (params, batch, key) -> (loss, metrics as sums and counts, "loss" among them); a key is training.
Loss = Callable[[Any, Any, Any], tuple[jax.Array, dict[str, Any]]]


class Batches(Protocol):
    """Batches of one part; of an epoch n the order depends on n alone."""

    def __len__(self) -> int: ...

    def epoch(self, n: int) -> Iterator[Any]: ...


class Parts(NamedTuple):
    """Batches to train on, to choose the weights by, and to judge them by."""

    train: Batches
    validation: Batches
    test: Batches


class Recipe(NamedTuple):
    """How to train.

    Attributes:
        learning_rate: of Adam at the start; it falls along a cosine to a hundredth.
        clip_norm: gradients are scaled down to this norm.
        average_decay: of the running average of the weights, which is what is kept.
        epochs: the bound on them.
        patience: stop after so many epochs without a lower validation loss.
        seed: decides the noise of training.
    """

    learning_rate: float
    clip_norm: float
    average_decay: float
    epochs: int
    patience: int
    seed: int

    @classmethod
    def of(cls, settings: Any) -> Recipe:
        """That of a program's settings, which have these names."""
        return cls(*(getattr(settings, name) for name in cls._fields))


class Fitted(NamedTuple):
    """The best weights of a run, their epoch, and their figures on validation and test."""

    params: Any
    epoch: int
    validation: dict[str, float]
    test: dict[str, float]


def fit_by_loss(
    loss_fn: Loss,
    params: Any,
    parts: Parts,
    recipe: Recipe,
    run: RunFolder,
    saver: Saver,
    devices: Devices,
    show: Callable[[Any], str] | None = None,
    tokens: Callable[[Any], int] = lambda batch: int(np.sum(batch.lengths)),
) -> Fitted:
    """Train until the validation loss has not fallen for some epochs, or all are done.

    Goes on from the newest good checkpoint of the run, with the bits it would have had. The test
    part is looked at once, with the weights of the best epoch; its figures are the caller's to
    record. ``show`` makes of weights a text for the console and the records, after each epoch, and
    ``tokens`` says how many a batch has.

    Raises:
        Interrupted: SIGTERM or Ctrl-C came; what was done so far is saved.
        NonFiniteError: too many steps in a row were not finite.
    """
    optimizer = _optimizer(recipe, recipe.epochs * len(parts.train))
    key = jax.random.fold_in(jax.random.key(recipe.seed), 1)
    _, metrics = jax.eval_shape(loss_fn, params, next(parts.train.epoch(0)), key)
    zeros = jax.tree.map(lambda figure: jnp.zeros(figure.shape, figure.dtype), metrics)
    # In the form of merged sums, as a checkpoint after some batches has them.
    state = init_train_state(key, params, optimizer), merge(zeros, zeros)
    train, totals = devices.place_state(state)
    begin = Snapshot(train, EarlyStopping("loss", mode="min", patience=recipe.patience), totals)
    with go_on(run, saver, begin, recipe.epochs, len(parts.train)) as (session, begin):
        fitting = _Fitting(loss_fn, optimizer, parts, recipe, devices, session, show, tokens)
        fitted = fitting.go_on(begin)
    return fitted._replace(params=devices.take_home(fitted.params))


def total(
    step: Callable[[Any, Any], Any], params: Any, batches: Iterator[Any], devices: Devices
) -> dict[str, Any]:
    """The sums and counts of the metrics over all batches, whose rows the devices divide."""
    sums = (step(params, devices.place_batch(batch)) for batch in batches)
    return jax.device_get(dict(functools.reduce(merge, sums)))


def _optimizer(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    steps = min(max(1, steps), 2**31 - 1)  # JAX counts them in 32 bits
    rate = optax.cosine_decay_schedule(recipe.learning_rate, steps, alpha=0.01)
    return optax.chain(
        optax.clip_by_global_norm(recipe.clip_norm),
        optax.adam(rate),
        average_parameters(recipe.average_decay),
    )


class _Fitting:
    """A run under way."""

    def __init__(
        self,
        loss_fn: Loss,
        optimizer: optax.GradientTransformation,
        parts: Parts,
        recipe: Recipe,
        devices: Devices,
        session: Session,
        show: Callable[[Any], str] | None,
        tokens: Callable[[Any], int],
    ) -> None:
        self._train_step = make_train_step(loss_fn, optimizer, on_compile=session.compiled)
        self._eval_step = make_eval_step(loss_fn, on_compile=session.compiled)
        self._parts = parts
        self._recipe = recipe
        self._devices = devices
        self._session = session
        self._show = show
        self._tokens = tokens

    def go_on(self, snapshot: Snapshot) -> Fitted:
        self._snapshot = snapshot
        self._zeros = jax.tree.map(jnp.zeros_like, snapshot.totals)
        with self._session.saved_when_stopped(lambda: self._snapshot):
            while not self._snapshot.is_last(self._recipe.epochs):
                self._epoch()
            best = self._snapshot.stopping
            if best.best_epoch is None:
                raise NonFiniteError(
                    "the validation loss must be finite after an epoch, got none such: a smaller "
                    "--learning-rate may help"
                )
            validation = self._evaluate(best.best_params, self._parts.validation)
            test = self._evaluate(best.best_params, self._parts.test)
        return Fitted(best.best_params, best.best_epoch, validation, test)

    def _epoch(self) -> None:
        began, session = self._session.clock(), self._session
        for batch in self._left(self._parts.train, self._snapshot.epoch, self._snapshot.batch):
            self._step(batch)
        now = self._snapshot
        session.check_finite(now)
        trained = counted(now.totals)
        if not trained:
            raise NonFiniteError(
                f"a step of epoch {now.epoch} must have finite loss, gradient and update, got none "
                "such: a smaller learning rate may help"
            )
        average = averaged(now.train.opt_state)
        validation = self._evaluate(average, self._parts.validation)
        stopping = now.stopping.update(now.epoch, validation, average)
        is_best = stopping.best_epoch == now.epoch
        session.epoch(now, compute(trained), validation, session.clock() - began, is_best)
        if self._show is not None and is_first():
            text = self._show(self._devices.take_home(average))
            session.sample(now.epoch, text, shortened(text))
        self._snapshot = now.after_epoch(stopping, self._zeros)
        session.save(self._snapshot)

    def _step(self, batch: Any) -> None:
        now = self._snapshot
        train, metrics = self._train_step(now.train, self._devices.place_batch(batch))
        totals = merge(now.totals, {name: metrics[name] for name in now.totals})
        self._snapshot = now.after_step(train, totals)
        self._session.step(self._snapshot, metrics, self._tokens(batch))

    def _evaluate(self, params: Any, batches: Batches) -> dict[str, float]:
        return compute(total(self._eval_step, params, self._left(batches, 0), self._devices))

    def _left(self, batches: Batches, epoch: int, done: int = 0) -> Iterator[Any]:
        return self._session.watch(islice(batches.epoch(epoch), done, None))
