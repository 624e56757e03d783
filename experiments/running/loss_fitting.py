"""The training loop of most programs, by a loss: epochs, validation, early stopping, one test."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax

from experiments.running.checkpoints import Saver, Snapshot
from experiments.running.console import shortened
from experiments.running.devices import Devices
from experiments.running.fitting import Fitting, no_sums
from experiments.running.processes import is_first
from experiments.running.run_folder import RunFolder
from experiments.running.run_settings import RunSettings
from experiments.running.session import Session, go_on
from rnnjax._numerics import key_apart
from rnnjax.metrics import compute, merge
from rnnjax.training import (
    EarlyStopping,
    average_parameters,
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

    @classmethod
    def of(
        cls, make: Callable[[Any, bool], Batches], train: Any, validation: Any, test: Any
    ) -> Parts:
        """What ``make(part, shuffle)`` gives of each part; only what trains is shuffled."""
        return cls(make(train, True), make(validation, False), make(test, False))


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(RunSettings):
    """How to train by `fit_by_loss`. A program gives the defaults that suit its data."""

    epochs: int
    """Times all that is learnt from is read, at most."""
    patience: int
    """Stop after so many epochs without a lower validation loss."""
    learning_rate: float
    """Of Adam at the start; it falls along a cosine to a hundredth at the last step."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    average_decay: float = 0.98
    """Of the running average of the weights, which is what is kept."""
    seed: int = 0
    """Decides all that is drawn: what is generated, the first weights, dropout, the order."""
    devices: int | None = None
    """How many of the devices here, all by default, divide the rows of a batch among them."""


class Fitted(NamedTuple):
    """The best weights of a run, their epoch, and their figures on validation and test."""

    params: Any
    epoch: int
    validation: dict[str, float]
    test: dict[str, float]


def tokens_of(batch: Any) -> int:
    """How many tokens, or steps, a batch has that has ``lengths``."""
    return int(np.sum(batch.lengths))


def fit_by_loss(
    loss_fn: Loss,
    params: Any,
    parts: Parts,
    settings: TrainingSettings,
    run: RunFolder,
    saver: Saver,
    devices: Devices,
    show: Callable[[Any], str] | None = None,
    tokens: Callable[[Any], int] = tokens_of,
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
    optimizer = _optimizer(settings, settings.epochs * len(parts.train))
    key = key_apart(jax.random.key(settings.seed))  # its splits drew the first weights
    totals = no_sums(loss_fn, params, next(parts.train.epoch(0)), key)
    state = init_train_state(key, params, optimizer), totals
    train, totals = devices.place_state(state)
    begin = Snapshot(train, EarlyStopping("loss", mode="min", patience=settings.patience), totals)
    with go_on(run, saver, begin, settings.epochs, len(parts.train)) as (session, begin):
        what = (loss_fn, optimizer, parts, devices, show, tokens)
        fitted = _Fitting(*what, session, begin, settings.epochs).go_on()
    return fitted._replace(params=devices.take_home(fitted.params))


def total(
    step: Callable[[Any, Any], Any], params: Any, batches: Iterator[Any], devices: Devices
) -> dict[str, Any]:
    """The sums and counts of the metrics over all batches, whose rows the devices divide."""
    sums = (step(params, devices.place_batch(batch)) for batch in batches)
    return jax.device_get(dict(functools.reduce(merge, sums)))


def _optimizer(settings: TrainingSettings, steps: int) -> optax.GradientTransformation:
    steps = min(max(1, steps), 2**31 - 1)  # JAX counts them in 32 bits
    rate = optax.cosine_decay_schedule(settings.learning_rate, steps, alpha=0.01)
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adam(rate),
        average_parameters(settings.average_decay),
    )


class _Fitting(Fitting[Any, Fitted]):
    """A run under way, of any loss."""

    def __init__(
        self,
        loss_fn: Loss,
        optimizer: optax.GradientTransformation,
        parts: Parts,
        devices: Devices,
        show: Callable[[Any], str] | None,
        tokens: Callable[[Any], int],
        session: Session,
        begin: Snapshot,
        epochs: int,
    ) -> None:
        super().__init__(session, begin, epochs)
        self._train_step = make_train_step(loss_fn, optimizer, on_compile=session.compiled)
        self._eval_step = make_eval_step(loss_fn, on_compile=session.compiled)
        self._parts = parts
        self._devices = devices
        self._show = show
        self._tokens = tokens

    def _left(self) -> Iterator[Any]:
        return islice(self._parts.train.epoch(self._snapshot.epoch), self._snapshot.batch, None)

    def _step(self, batch: Any) -> None:
        now = self._snapshot
        train, metrics = self._train_step(now.train, self._devices.place_batch(batch))
        totals = merge(now.totals, {name: metrics[name] for name in now.totals})
        self._snapshot = now.after_step(train, totals)
        self._session.step(self._snapshot, metrics, self._tokens(batch))

    def _validate(self, params: Any) -> dict[str, float]:
        return self._evaluate(params, self._parts.validation)

    def _evaluate(self, params: Any, batches: Batches) -> dict[str, float]:
        watched = self._session.watch(batches.epoch(0))
        return compute(total(self._eval_step, params, watched, self._devices))

    def _shown(self, epoch: int, params: Any) -> None:
        if self._show is not None and is_first():
            text = self._show(self._devices.take_home(params))
            self._session.sample(epoch, text, shortened(text))

    def _finish(self, params: Any, epoch: int) -> Fitted:
        validation, test = (self._evaluate(params, part) for part in self._parts[1:])
        return Fitted(params, epoch, validation, test)
