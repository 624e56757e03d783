"""Training on pairs, epoch after epoch, with what was written so far kept safe."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.running.checkpoints import Saver, Snapshot
from experiments.running.devices import Devices
from experiments.running.run_folder import RunFolder
from experiments.running.session import Session, go_on
from experiments.translate.corpus import Corpus, Encoded
from experiments.translate.settings import Settings
from rnnjax.data import PairBatch, PairBatches, choose_pair_boundaries
from rnnjax.metrics import Mean, accuracy, compute, cross_entropy, merge
from rnnjax.training import (
    EarlyStopping,
    NonFiniteError,
    average_parameters,
    averaged,
    init_train_state,
    make_eval_step,
    make_train_step,
)


class Batches(NamedTuple):
    """The pairs of a corpus as batches."""

    train: PairBatches
    validation: PairBatches
    test: PairBatches


class Fitted(NamedTuple):
    """The best parameters of a run, their epoch, and figures of that epoch and of the test."""

    params: Any
    epoch: int
    validation: float
    test: dict[str, float]


def make_batches(corpus: Corpus, settings: Settings) -> Batches:
    """Batches of all three parts."""

    def batches(part: Encoded, shuffle: bool) -> PairBatches:
        lengths = [[len(ids) for ids in side] for side in part]
        return PairBatches(
            *part,
            batch_size=settings.batch_size,
            boundaries=choose_pair_boundaries(*lengths, count=settings.buckets),
            seed=settings.seed,
            shuffle=shuffle,
        )

    return Batches(
        batches(corpus.train, True), batches(corpus.validation, False), batches(corpus.test, False)
    )


def make_loss(model: rnnjax.SequenceToSequence, own_tokens: float = 0.0) -> Callable:
    """Cross entropy and accuracy of every token of the targets after those before it.

    In training the model reads its own token in place of one before it at the rate ``own_tokens``.
    """

    def loss_fn(params: Any, batch: PairBatch, key: jax.Array | None) -> tuple[jax.Array, dict]:
        targets = jnp.asarray(batch.targets)
        pairs = jnp.asarray(batch.sources), batch.source_lengths, targets, batch.target_lengths
        if key is None or own_tokens == 0:
            logits, _ = model.apply(params, *pairs, key=key)
        else:
            logits, _ = rnnjax.scheduled_sampling(model, params, *pairs, rate=own_tokens, key=key)
        mask = rnnjax.lengths_to_mask(batch.target_lengths, targets.shape[-1])
        loss = cross_entropy(logits, targets, mask)
        return loss.value, {"loss": loss, "accuracy": accuracy(logits, targets, mask)}

    return loss_fn


def make_optimizer(settings: Settings, steps: int) -> optax.GradientTransformation:
    """Adam with a rate that falls along a cosine, clipped gradients, and averaged weights."""
    rate = optax.cosine_decay_schedule(settings.learning_rate, max(1, steps), alpha=0.01)
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adam(rate),
        average_parameters(settings.average_decay),
    )


def fit(
    model: rnnjax.SequenceToSequence,
    params: Any,
    batches: Batches,
    settings: Settings,
    run: RunFolder,
    saver: Saver,
    devices: Devices,
    show: Callable[[Any], str],
) -> Fitted:
    """Train until the validation loss has not fallen for some epochs, or all are done.

    Goes on from the newest good checkpoint of the run, with the bits it would have had.

    Args:
        model: what to train.
        params: where it starts.
        batches: what it reads.
        settings: how.
        run: the folder of records.
        saver: keeps checkpoints.
        devices: which of them divide the pairs of a batch among them.
        show: gives some translations with some parameters, for the console and the records.

    Raises:
        Interrupted: SIGTERM or Ctrl-C came; what was done so far is saved.
        NonFiniteError: too many updates in a row were not finite.
    """
    optimizer = make_optimizer(settings, settings.epochs * len(batches.train))
    key = jax.random.fold_in(jax.random.key(settings.seed), 1)
    zeros = {name: Mean(jnp.zeros(()), jnp.zeros(())) for name in ("loss", "accuracy")}
    # In the form of merged sums, as a checkpoint after some batches has them.
    train, totals = devices.place_state(
        (init_train_state(key, params, optimizer), merge(zeros, zeros))
    )
    stopping = EarlyStopping("loss", mode="min", patience=settings.patience)
    begin = Snapshot(train, stopping, totals)
    epochs, steps = settings.epochs, len(batches.train)
    with go_on(run, saver, begin, epochs, steps) as (session, begin):
        fitting = _Fitting(model, optimizer, batches, settings, devices, session)
        return fitting.go_on(begin, show)


class _Fitting:
    """A run under way."""

    def __init__(
        self,
        model: rnnjax.SequenceToSequence,
        optimizer: optax.GradientTransformation,
        batches: Batches,
        settings: Settings,
        devices: Devices,
        session: Session,
    ) -> None:
        loss_fn = make_loss(model, settings.own_tokens)
        self._train_step = make_train_step(loss_fn, optimizer, on_compile=session.compiled)
        self._eval_step = make_eval_step(loss_fn, on_compile=session.compiled)
        self._batches = batches
        self._settings = settings
        self._devices = devices
        self._session = session

    def go_on(self, snapshot: Snapshot, show: Callable[[Any], str]) -> Fitted:
        """Does the epochs that are left, and scores the test with the best weights."""
        self._snapshot = snapshot
        with self._session.saved_when_stopped(lambda: self._snapshot):
            while not self._snapshot.is_last(self._settings.epochs):
                self._epoch(show)
            best = self._snapshot.stopping
            if best.best_epoch is None or best.best_value is None:
                raise NonFiniteError(
                    "the validation loss must be finite after an epoch, got none such"
                )
            test = self._score(best.best_params, self._batches.test)
        return Fitted(best.best_params, best.best_epoch, best.best_value, test)

    def _epoch(self, show: Callable[[Any], str]) -> None:
        began, session = self._session.clock(), self._session
        epoch = self._batches.train.epoch(self._snapshot.epoch)
        for batch in session.watch(islice(epoch, self._snapshot.batch, None)):
            self._step(batch)
        now = self._snapshot
        session.check_finite(now)
        average = averaged(now.train.opt_state)
        validation = self._score(average, self._batches.validation)
        train = compute(jax.device_get(now.totals))
        stopping = now.stopping.update(now.epoch, validation, average)
        is_best = stopping.best_epoch == now.epoch
        session.epoch(now, train, validation, session.clock() - began, is_best)
        session.sample(now.epoch, show(average))
        zeros = jax.tree.map(jnp.zeros_like, now.totals)
        self._snapshot = now.after_epoch(stopping, zeros)
        session.save(self._snapshot)

    def _step(self, batch: PairBatch) -> None:
        now = self._snapshot
        train, metrics = self._train_step(now.train, self._devices.place_batch(batch))
        totals = merge(now.totals, {name: metrics[name] for name in now.totals})
        self._snapshot = now.after_step(train, totals)
        tokens = int(np.sum(batch.source_lengths) + np.sum(batch.target_lengths))
        self._session.step(self._snapshot, metrics, tokens)

    def _score(self, params: Any, batches: PairBatches) -> dict[str, float]:
        return compute(self._sums(params, self._session.watch(batches.epoch(0))))

    def _sums(self, params: Any, batches: Iterator[PairBatch]) -> Any:
        placed = map(self._devices.place_batch, batches)
        return functools.reduce(merge, (self._eval_step(params, batch) for batch in placed))
