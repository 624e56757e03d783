"""Training on pairs, epoch after epoch, with what was written so far kept safe."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.running.checkpoints import Saver, Snapshot
from experiments.running.console import Progress
from experiments.running.fitting import StepRecords
from experiments.running.interrupts import Interrupted, Interrupts
from experiments.running.run_folder import RunFolder
from experiments.translate.corpus import Corpus, Encoded
from experiments.translate.settings import Settings
from rnnjax.data import PairBatch, PairBatches, choose_pair_boundaries
from rnnjax.metrics import Mean, accuracy, compute, cross_entropy, merge
from rnnjax.training import (
    Compilation,
    EarlyStopping,
    NonFiniteError,
    average_parameters,
    averaged,
    check_finite,
    init_train_state,
    make_eval_step,
    make_train_step,
)

# End after so many steps in a row that were not finite.
_MOST_SKIPPED = 20


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


def make_loss(model: rnnjax.SequenceToSequence) -> Callable:
    """Cross entropy and accuracy of every token of the targets after those before it."""

    def loss_fn(params: Any, batch: PairBatch, key: jax.Array | None) -> tuple[jax.Array, dict]:
        logits, _ = model.apply(
            params,
            batch.sources,
            batch.source_lengths,
            batch.targets,
            batch.target_lengths,
            key=key,
        )
        targets = jnp.asarray(batch.targets)
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
        show: gives some translations with some parameters, for the console and the records.

    Raises:
        Interrupted: SIGTERM or Ctrl-C came; what was done so far is saved.
        NonFiniteError: too many updates in a row were not finite.
    """
    optimizer = make_optimizer(settings, settings.epochs * len(batches.train))
    key = jax.random.fold_in(jax.random.key(settings.seed), 1)
    zeros = {name: Mean(jnp.zeros(()), jnp.zeros(())) for name in ("loss", "accuracy")}
    begin = Snapshot(
        init_train_state(key, params, optimizer),
        EarlyStopping("loss", mode="min", patience=settings.patience),
        merge(zeros, zeros),  # in the form of sums, as a checkpoint after some batches has them
    )
    begin, passed_over = saver.restore(begin)
    run.update_config()
    total = settings.epochs * len(batches.train)
    with (
        Interrupts() as interrupts,
        Progress(total, done=begin.step, may_end_early=True) as progress,
    ):
        for reason in passed_over:
            progress.say(f"passed over checkpoint {reason}")
        fitting = _Fitting(model, optimizer, batches, settings, run, saver, interrupts, progress)
        return fitting.go_on(begin, show)


class _Fitting:
    """A run under way."""

    def __init__(
        self,
        model: rnnjax.SequenceToSequence,
        optimizer: optax.GradientTransformation,
        batches: Batches,
        settings: Settings,
        run: RunFolder,
        saver: Saver,
        interrupts: Interrupts,
        progress: Progress,
    ) -> None:
        loss_fn = make_loss(model)
        self._train_step = make_train_step(loss_fn, optimizer, on_compile=self._compiled)
        self._eval_step = make_eval_step(loss_fn, on_compile=self._compiled)
        self._batches = batches
        self._settings = settings
        self._run = run
        self._saver = saver
        self._interrupts = interrupts
        self._progress = progress
        self._records = StepRecords(run, progress)

    def go_on(self, snapshot: Snapshot, show: Callable[[Any], str]) -> Fitted:
        """Does the epochs that are left, and scores the test with the best weights."""
        self._snapshot = snapshot
        try:
            while not self._is_done():
                self._epoch(show)
            best = self._snapshot.stopping
            if best.best_epoch is None or best.best_value is None:
                raise NonFiniteError("no epoch had a finite validation loss")
            test = self._score(best.best_params, self._batches.test)
        except (Interrupted, NonFiniteError):
            self._save()
            self._saver.wait()
            raise
        return Fitted(best.best_params, best.best_epoch, best.best_value, test)

    def _is_done(self) -> bool:
        now = self._snapshot
        return now.epoch > self._settings.epochs or now.stopping.should_stop

    def _epoch(self, show: Callable[[Any], str]) -> None:
        began = time.perf_counter()
        epoch = self._batches.train.epoch(self._snapshot.epoch)
        for batch in self._interrupts.watch(islice(epoch, self._snapshot.batch, None)):
            self._step(batch)
        now = self._snapshot
        check_finite(now.train, _MOST_SKIPPED)
        average = averaged(now.train.opt_state)
        validation = self._score(average, self._batches.validation)
        self._records.write()
        train = jax.device_get(now.totals)
        record = {
            "kind": "epoch",
            "epoch": now.epoch,
            "step": now.step,
            "skipped": int(now.train.skipped),
            **{f"train_{name}": value for name, value in compute(train).items()},
            **{f"validation_{name}": value for name, value in validation.items()},
        }
        stopping = now.stopping.update(now.epoch, validation, average)
        is_best = stopping.best_epoch == now.epoch
        seconds = time.perf_counter() - began
        self._progress.epoch({**record, "seconds": seconds, "best": is_best})
        sample = show(average)
        self._progress.say(sample)
        self._run.write(record)
        self._run.write({"kind": "sample", "epoch": now.epoch, "text": sample})
        self._run.write_timing({"kind": "epoch", "epoch": now.epoch, "seconds": seconds})
        zeros = jax.tree.map(jnp.zeros_like, now.totals)
        self._snapshot = now._replace(stopping=stopping, totals=zeros, epoch=now.epoch + 1, batch=0)
        self._save()

    def _step(self, batch: PairBatch) -> None:
        now = self._snapshot
        train, metrics = self._train_step(now.train, batch)
        totals = merge(now.totals, {name: metrics[name] for name in now.totals})
        now = now._replace(train=train, totals=totals, batch=now.batch + 1, step=now.step + 1)
        self._snapshot = now
        tokens = int(np.sum(batch.source_lengths) + np.sum(batch.target_lengths))
        if self._records.add(now.epoch, now.step, metrics, tokens):
            check_finite(now.train, _MOST_SKIPPED)
        if self._saver.is_due(now.step):
            self._save()

    def _score(self, params: Any, batches: PairBatches) -> dict[str, float]:
        return compute(self._sums(params, self._interrupts.watch(batches.epoch(0))))

    def _sums(self, params: Any, batches: Iterator[PairBatch]) -> Any:
        return functools.reduce(merge, (self._eval_step(params, batch) for batch in batches))

    def _save(self) -> None:
        self._records.write()
        self._saver.save(self._snapshot)

    def _compiled(self, made: Compilation) -> None:
        self._progress.compiled(made)
        self._run.write_timing({"kind": "compile", **made._asdict()})
