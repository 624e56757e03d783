"""The training loop of the text classifier: epochs, validation accuracy, early stopping, test."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.running import class_report
from experiments.running.checkpoints import Saver, Snapshot
from experiments.running.devices import Devices
from experiments.running.prefetching import prefetched
from experiments.running.run_folder import RunFolder
from experiments.running.session import Session, counted, go_on
from experiments.running.text import Splits
from rnnjax import checked
from rnnjax.data import UNKNOWN, Batch, BucketedBatches, PackedBatch, PackedBatches
from rnnjax.metrics import accuracy, compute, cross_entropy, merge
from rnnjax.models import Model
from rnnjax.training import (
    Compilation,
    CompiledStep,
    EarlyStopping,
    NonFiniteError,
    average_parameters,
    averaged,
    init_train_state,
    make_train_step,
)

AnyBatch = Batch | PackedBatch
AnyBatches = BucketedBatches | PackedBatches


class Recipe(NamedTuple):
    """How to train.

    Attributes:
        optimizer: an Optax transformation.
        average_decay: of the running average of the parameters, which is what is kept.
        word_dropout: the rate at which a token is read as the unknown word in training.
        epochs: the bound on them.
        patience: stop after so many epochs without a better validation accuracy.
        prefetch: batches made ahead of the step that reads them.
        max_skipped: end after so many steps in a row that were left out as not finite.
        debug_checks: run every step through ``rnnjax.checked``; its times mean nothing.
    """

    optimizer: optax.GradientTransformation
    average_decay: float
    word_dropout: float
    epochs: int
    patience: int
    prefetch: int = 0
    max_skipped: int = 20
    debug_checks: bool = False


class Fitted(NamedTuple):
    """What a run came to.

    Attributes:
        params: the best parameters, by their validation accuracy.
        epoch: the one that reached them.
        last_epoch: the last one that was taken.
        was_cut: whether the bound on the epochs ended the run, and not patience.
        test: loss, accuracy and macro_f1 of the best parameters on the test set.
        chance: what can be had there without reading.
        classes: their recall, F1 and number of texts by class, see `class_report.summary`.
    """

    params: Any
    epoch: int
    last_epoch: int
    was_cut: bool
    test: dict[str, float]
    chance: class_report.Chance
    classes: dict[str, Any]


def hide_words(key: jax.Array, tokens: jax.Array, rate: float) -> jax.Array:
    """The tokens, each read as the unknown word at that rate."""
    return jnp.where(jax.random.bernoulli(key, rate, tokens.shape), UNKNOWN, tokens)


def classification_loss(model: Model, word_dropout: float, classes: bool = False) -> Callable:
    """Cross entropy and accuracy of a classifier, as sums and counts over the real examples.

    In training each token is read as the unknown word at the rate of ``word_dropout``. With
    ``classes`` evaluation also counts by class, for `evaluate`.
    """

    def loss_fn(params: Any, batch: AnyBatch, key: jax.Array | None) -> tuple[jax.Array, dict]:
        tokens, labels = jnp.asarray(batch.tokens), jnp.asarray(batch.labels)
        if key is not None:
            key, drop = jax.random.split(key)
            tokens = hide_words(drop, tokens, word_dropout)
        if isinstance(batch, PackedBatch):
            steps = {"segment_ids": batch.segment_ids, "num_segments": len(labels)}
        else:
            steps = {"lengths": batch.lengths}
        logits = model.apply(params, tokens, **steps, key=key)
        loss = cross_entropy(logits, labels, batch.weights)
        metrics = {"loss": loss, "accuracy": accuracy(logits, labels, batch.weights)}
        if classes and key is None:
            metrics |= _counts_by_class(logits, labels, batch.weights)
        return loss.value, metrics

    return loss_fn


def _counts_by_class(logits: jax.Array, labels: jax.Array, weights: Any) -> dict[str, Any]:
    """Of each class, how many were found, were there, and were named, as whole numbers [C]."""
    classes = jnp.arange(logits.shape[-1])[None]
    is_real = jnp.asarray(weights)[:, None] > 0
    there = (labels[:, None] == classes) & is_real
    named = (jnp.argmax(logits, axis=-1)[:, None] == classes) & is_real
    hits, texts, said = (jnp.sum(flags, axis=0) for flags in (there & named, there, named))
    return {"recall": (hits, texts), "precision": (hits, said)}


def make_eval_step(
    loss_fn: Callable, *, on_compile: Callable[[Compilation], None] | None = None
) -> CompiledStep:
    """The metrics of a batch for `evaluate`, with counts by class, which are no pairs of scalars
    as those of ``rnnjax.make_eval_step``."""

    def eval_step(params: Any, batch: AnyBatch) -> dict[str, Any]:
        return loss_fn(params, batch, None)[1]

    return CompiledStep("eval step", eval_step, donate_state=False, on_compile=on_compile)


def evaluate(step: Callable, params: Any, batches: Iterator[AnyBatch]) -> dict[str, Any]:
    """Loss, accuracy and macro_f1 of a whole set, and under "classes" what is known of each class.

    The sums stay on the device until the last batch.
    """
    total = functools.reduce(merge, (step(params, batch) for batch in batches))
    sums = jax.device_get(dict(total))
    (hits, texts), (_, named) = sums.pop("recall"), sums.pop("precision")
    classes = class_report.summary(*(np.asarray(a).astype(int) for a in (hits, texts, named)))
    return {**compute(sums), "macro_f1": classes.pop("macro_f1"), "classes": classes}


def fit(
    model: Model,
    params: Any,
    splits: Splits,
    recipe: Recipe,
    key: jax.Array,
    run: RunFolder,
    saver: Saver,
    devices: Devices,
) -> Fitted:
    """Train until validation accuracy has not risen for some epochs, or all are done.

    Goes on from the newest good checkpoint of the run, if it has one, and comes to the same
    parameters and the same metrics.jsonl, bit for bit, as if it had never stopped. The test set
    is looked at once, with the parameters of the best epoch.

    Raises:
        Interrupted: SIGTERM or Ctrl-C came; what was done so far is saved.
        NonFiniteError: too many steps in a row were not finite; the last good state is saved.
        DataError: more epochs were begun than the recipe allows.
        ValueError: with ``debug_checks``, the first wrong value.
    """
    begin = _beginning(model, params, splits, recipe, key)
    train, totals = devices.place_state((begin.train, begin.totals))
    with go_on(
        run,
        saver,
        begin._replace(train=train, totals=totals),
        recipe.epochs,
        len(splits.train),
        max_skipped=recipe.max_skipped,
        note={"debug_checks": True} if recipe.debug_checks else None,
    ) as (session, begin):
        fitted = _Fitting(model, splits, recipe, devices, session).go_on(begin)
    _record_test(run, fitted)
    return fitted


def _beginning(
    model: Model, params: Any, splits: Splits, recipe: Recipe, key: jax.Array
) -> Snapshot:
    """Where a new run starts; the metrics of no batch are zeros."""
    batch = next(iter(splits.validation.epoch(0)))
    loss_fn = classification_loss(model, recipe.word_dropout)
    _, metrics = jax.eval_shape(loss_fn, params, batch, key)
    zeros = jax.tree.map(lambda figure: jnp.zeros(figure.shape, figure.dtype), metrics)
    return Snapshot(
        init_train_state(key, params, _optimizer(recipe)),
        EarlyStopping("accuracy", mode="max", patience=recipe.patience),
        merge(zeros, zeros),  # in the form of sums, as a checkpoint after some batches has them
    )


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
    return optax.chain(recipe.optimizer, average_parameters(recipe.average_decay))


class _Fitting:
    """A run under way: what it works with, and how far it is."""

    def __init__(
        self,
        model: Model,
        splits: Splits,
        recipe: Recipe,
        devices: Devices,
        session: Session,
    ) -> None:
        loss_fn = classification_loss(model, recipe.word_dropout, classes=True)
        self._train_step = make_train_step(loss_fn, _optimizer(recipe), on_compile=session.compiled)
        self._eval_step = make_eval_step(loss_fn, on_compile=session.compiled)
        if recipe.debug_checks:
            self._train_step = checked(self._train_step)
            self._eval_step = checked(self._eval_step)
        self._splits = splits
        self._recipe = recipe
        self._devices = devices
        self._session = session

    def go_on(self, snapshot: Snapshot) -> Fitted:
        """Does the epochs that are left, and the test."""
        self._snapshot = snapshot
        self._zeros = jax.tree.map(jnp.zeros_like, snapshot.totals)
        with self._session.saved_when_stopped(lambda: self._snapshot):
            while not self._snapshot.is_last(self._recipe.epochs):
                self._epoch()
            best = self._snapshot.stopping
            if best.best_epoch is None:
                raise NonFiniteError(
                    "the weights must be finite after an epoch, got none such: none are kept"
                )
            test = self._evaluate(best.best_params, self._splits.test, epoch=0)
        classes = test.pop("classes")
        guess = class_report.chance(_labels_of(self._splits.train, classes), classes["texts"])
        last, was_cut = self._snapshot.epoch - 1, not best.should_stop
        return Fitted(best.best_params, best.best_epoch, last, was_cut, test, guess, classes)

    def _epoch(self) -> None:
        began, session = self._session.clock(), self._session
        for batch, tokens in self._batches(
            self._splits.train, self._snapshot.epoch, self._snapshot.batch
        ):
            self._step(batch, tokens)
        now = self._snapshot
        session.check_finite(now)
        trained = counted(now.totals)
        if not trained:
            raise NonFiniteError(
                f"a step of epoch {now.epoch} must have finite loss, gradient and update, got none "
                "such: a smaller learning rate or clipping may help"
            )
        average = averaged(now.train.opt_state)
        validation = self._evaluate(average, self._splits.validation, now.epoch)
        validation.pop("classes")
        stopping = _updated(now.stopping, now.epoch, validation, average)
        is_best = stopping.best_epoch == now.epoch
        session.epoch(now, compute(trained), validation, session.clock() - began, is_best)
        self._snapshot = now.after_epoch(stopping, self._zeros)
        session.save(self._snapshot)

    def _step(self, batch: AnyBatch, tokens: int) -> None:
        now = self._snapshot
        # Whatever the step reads is on the device already: a hidden copy would be an error.
        with jax.transfer_guard("disallow"):
            train, metrics = self._train_step(now.train, batch)
            totals = merge(now.totals, {name: metrics[name] for name in now.totals})
        self._snapshot = now.after_step(train, totals)
        self._session.step(self._snapshot, metrics, tokens)

    def _evaluate(self, params: Any, batches: AnyBatches, epoch: int) -> dict[str, Any]:
        on_device = (batch for batch, _ in self._batches(batches, epoch))
        with jax.transfer_guard("disallow"):
            return evaluate(self._eval_step, params, on_device)

    def _batches(
        self, batches: AnyBatches, epoch: int, done: int = 0
    ) -> Iterator[tuple[AnyBatch, int]]:
        """The batches of an epoch that are left, on the device, and how many tokens are in each."""
        left = islice(batches.epoch(epoch), done, None)
        place = self._devices.place_batch
        placed = ((place(batch), int(batch.lengths.sum())) for batch in left)
        return self._session.watch(prefetched(placed, self._recipe.prefetch))


def _record_test(run: RunFolder, fitted: Fitted) -> None:
    run.write(
        {
            "kind": "test",
            "epoch": fitted.epoch,
            **fitted.test,
            "chance_accuracy": fitted.chance.accuracy,
            "chance_loss": fitted.chance.loss,
            **{name: fitted.classes[name] for name in ("recall", "f1")},
        }
    )


def _labels_of(batches: AnyBatches, classes: dict[str, Any]) -> list[int]:
    """How many texts of the batches each class has, [C]."""
    counts = np.zeros(len(classes["texts"]))
    for batch in batches.epoch(0):
        counts += np.bincount(batch.labels, batch.weights, len(counts))
    return counts.astype(int).tolist()


def _updated(
    stopping: EarlyStopping, epoch: int, validation: dict[str, float], params: Any
) -> EarlyStopping:
    """What is known after an epoch; parameters that are not all finite are never the best."""
    finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(params)))
    known = validation if finite else {**validation, "accuracy": float("nan")}
    return stopping.update(epoch, known, params)
