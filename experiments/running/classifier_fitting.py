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
from experiments.running.fitting import Fitting, no_sums
from experiments.running.prefetching import prefetched
from experiments.running.run_folder import RunFolder
from experiments.running.session import Session, go_on
from experiments.running.text import Splits
from rnnjax import checked
from rnnjax.data import UNKNOWN, Batch, BucketedBatches, PackedBatch, PackedBatches
from rnnjax.metrics import accuracy, compute, cross_entropy, merge
from rnnjax.models import Model
from rnnjax.training import (
    Compilation,
    CompiledStep,
    EarlyStopping,
    average_parameters,
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
        fitted = _Fitting(model, splits, recipe, devices, session, begin).go_on()
    _record_test(run, fitted)
    return fitted


def _beginning(
    model: Model, params: Any, splits: Splits, recipe: Recipe, key: jax.Array
) -> Snapshot:
    """Where a new run starts."""
    loss_fn = classification_loss(model, recipe.word_dropout)
    return Snapshot(
        init_train_state(key, params, _optimizer(recipe)),
        EarlyStopping("accuracy", mode="max", patience=recipe.patience),
        no_sums(loss_fn, params, next(splits.validation.epoch(0)), key),
    )


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
    return optax.chain(recipe.optimizer, average_parameters(recipe.average_decay))


class _Fitting(Fitting[tuple[AnyBatch, int], Fitted]):
    """A run under way, of a classifier; beside each batch is how many tokens it has."""

    def __init__(
        self,
        model: Model,
        splits: Splits,
        recipe: Recipe,
        devices: Devices,
        session: Session,
        begin: Snapshot,
    ) -> None:
        super().__init__(session, begin, recipe.epochs)
        loss_fn = classification_loss(model, recipe.word_dropout, classes=True)
        self._train_step = make_train_step(loss_fn, _optimizer(recipe), on_compile=session.compiled)
        self._eval_step = make_eval_step(loss_fn, on_compile=session.compiled)
        if recipe.debug_checks:
            self._train_step = checked(self._train_step)
            self._eval_step = checked(self._eval_step)
        self._splits = splits
        self._prefetch = recipe.prefetch
        self._devices = devices

    def _left(self) -> Iterator[tuple[AnyBatch, int]]:
        return self._batches(self._splits.train, self._snapshot.epoch, self._snapshot.batch)

    def _step(self, batch: tuple[AnyBatch, int]) -> None:
        now = self._snapshot
        on_device, tokens = batch
        # Whatever the step reads is on the device already: a hidden copy would be an error.
        with jax.transfer_guard("disallow"):
            train, metrics = self._train_step(now.train, on_device)
            totals = merge(now.totals, {name: metrics[name] for name in now.totals})
        self._snapshot = now.after_step(train, totals)
        self._session.step(self._snapshot, metrics, tokens)

    def _validate(self, params: Any) -> dict[str, float]:
        figures = self._evaluate(params, self._splits.validation, self._snapshot.epoch)
        figures.pop("classes")
        return figures

    def _evaluate(self, params: Any, batches: AnyBatches, epoch: int) -> dict[str, Any]:
        watched = self._session.watch(self._batches(batches, epoch))
        with jax.transfer_guard("disallow"):
            return evaluate(self._eval_step, params, (batch for batch, _ in watched))

    def _batches(
        self, batches: AnyBatches, epoch: int, done: int = 0
    ) -> Iterator[tuple[AnyBatch, int]]:
        """The batches of an epoch that are left, on the device, and how many tokens are in each."""
        left = islice(batches.epoch(epoch), done, None)
        place = self._devices.place_batch
        placed = ((place(batch), int(batch.lengths.sum())) for batch in left)
        return prefetched(placed, self._prefetch)

    def _finish(self, params: Any, epoch: int) -> Fitted:
        test = self._evaluate(params, self._splits.test, epoch=0)
        classes = test.pop("classes")
        guess = class_report.chance(_labels_of(self._splits.train, classes), classes["texts"])
        last, was_cut = self._snapshot.epoch - 1, not self._snapshot.stopping.should_stop
        return Fitted(params, epoch, last, was_cut, test, guess, classes)


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
