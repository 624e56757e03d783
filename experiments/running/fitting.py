"""The training loop that every experiment shares: epochs, validation, early stopping, records."""

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

from experiments.running import class_report
from experiments.running.checkpoints import Saver, Snapshot
from experiments.running.console import Progress
from experiments.running.devices import Devices
from experiments.running.interrupts import Interrupted, Interrupts
from experiments.running.prefetching import prefetched
from experiments.running.run_folder import RunFolder
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
    check_finite,
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
        ValueError: more epochs were begun than the recipe allows; or, with ``debug_checks``, the
            first wrong value.
    """
    begin = _beginning(model, params, splits, recipe, key)
    train, totals = devices.place_state((begin.train, begin.totals))
    begin, passed_over = saver.restore(begin._replace(train=train, totals=totals))
    begun = begin.epoch - (begin.batch == 0)
    if begun > recipe.epochs:
        raise ValueError(f"epochs: {begun} were begun already, got {recipe.epochs}")
    run.update_config()  # only now, as what was refused must leave no trace
    total = recipe.epochs * len(splits.train)
    with (
        Interrupts() as interrupts,
        Progress(total, done=begin.step, may_end_early=True) as progress,
    ):
        for reason in passed_over:
            progress.say(f"passed over checkpoint {reason}")
        if begin.step:
            progress.say(f"going on after step {begin.step}, in epoch {begin.epoch}")
        session = {"kind": "session", "step": begin.step}
        run.write_timing({**session, "debug_checks": True} if recipe.debug_checks else session)
        fitting = _Fitting(model, splits, recipe, run, saver, devices, interrupts, progress)
        return fitting.go_on(begin)


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
        run: RunFolder,
        saver: Saver,
        devices: Devices,
        interrupts: Interrupts,
        progress: Progress,
    ) -> None:
        loss_fn = classification_loss(model, recipe.word_dropout, classes=True)
        self._train_step = make_train_step(loss_fn, _optimizer(recipe), on_compile=self._on_compile)
        self._eval_step = make_eval_step(loss_fn, on_compile=self._on_compile)
        if recipe.debug_checks:
            self._train_step = checked(self._train_step)
            self._eval_step = checked(self._eval_step)
        self._splits = splits
        self._recipe = recipe
        self._run = run
        self._saver = saver
        self._devices = devices
        self._interrupts = interrupts
        self._progress = progress
        self._records = StepRecords(run, progress)
        self._compile_seconds = 0.0

    def go_on(self, snapshot: Snapshot) -> Fitted:
        """Does the epochs that are left, and the test."""
        self._snapshot = snapshot
        self._zeros = jax.tree.map(jnp.zeros_like, snapshot.totals)
        try:
            while not self._is_done():
                self._epoch()
            best = self._snapshot.stopping
            if best.best_epoch is None:
                raise NonFiniteError("no epoch ended with weights that are finite: none is kept")
            test = self._evaluate(best.best_params, self._splits.test, epoch=0)
        except (Interrupted, NonFiniteError):
            self._save()
            self._saver.wait()
            raise
        classes = test.pop("classes")
        guess = class_report.chance(_labels_of(self._splits.train, classes), classes["texts"])
        self._run.write(
            {
                "kind": "test",
                "epoch": best.best_epoch,
                **test,
                "chance_accuracy": guess.accuracy,
                "chance_loss": guess.loss,
                **{name: classes[name] for name in ("recall", "f1")},
            }
        )
        last, was_cut = self._snapshot.epoch - 1, not best.should_stop
        return Fitted(best.best_params, best.best_epoch, last, was_cut, test, guess, classes)

    def _is_done(self) -> bool:
        return self._snapshot.epoch > self._recipe.epochs or self._snapshot.stopping.should_stop

    def _epoch(self) -> None:
        start, compiled = time.perf_counter(), self._compile_seconds
        for batch, tokens in self._batches(
            self._splits.train, self._snapshot.epoch, self._snapshot.batch
        ):
            self._step(batch, tokens)
        now = self._snapshot
        check_finite(now.train, self._recipe.max_skipped)
        trained = _counted(now.totals)
        if not trained:
            raise NonFiniteError(
                f"loss, gradient or update was NaN or infinite in every step of epoch {now.epoch}: "
                "a smaller learning rate or clipping may help"
            )
        average = averaged(now.train.opt_state)
        validation = self._evaluate(average, self._splits.validation, now.epoch)
        validation.pop("classes")
        stopping = _updated(now.stopping, now.epoch, validation, average)
        self._records.write()
        record = {
            "kind": "epoch",
            "epoch": now.epoch,
            "step": now.step,
            "skipped": int(now.train.skipped),
            **{f"train_{name}": value for name, value in compute(trained).items()},
            **{f"validation_{name}": value for name, value in validation.items()},
        }
        seconds = time.perf_counter() - start - (self._compile_seconds - compiled)
        is_best = stopping.best_epoch == now.epoch
        self._progress.epoch({**record, "seconds": seconds, "best": is_best})
        self._run.write(record)
        self._run.write_timing({"kind": "epoch", "epoch": now.epoch, "seconds": seconds})
        self._snapshot = now._replace(
            stopping=stopping, totals=self._zeros, epoch=now.epoch + 1, batch=0
        )
        self._save()

    def _step(self, batch: AnyBatch, tokens: int) -> None:
        now = self._snapshot
        # Whatever the step reads is on the device already: a hidden copy would be an error.
        with jax.transfer_guard("disallow"):
            train, metrics = self._train_step(now.train, batch)
            totals = merge(now.totals, {name: metrics[name] for name in now.totals})
        now = now._replace(train=train, totals=totals, batch=now.batch + 1, step=now.step + 1)
        self._snapshot = now
        if self._records.add(now.epoch, now.step, metrics, tokens):
            check_finite(now.train, self._recipe.max_skipped)
        if self._saver.is_due(now.step):
            self._save()

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
        return self._interrupts.watch(prefetched(placed, self._recipe.prefetch))

    def _save(self) -> None:
        self._records.write()
        self._saver.save(self._snapshot)

    def _on_compile(self, made: Compilation) -> None:
        self._compile_seconds += made.seconds
        self._progress.compiled(made)
        self._run.write_timing({"kind": "compile", **made._asdict()})


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


class StepRecords:
    """Shows each step, and writes the records of steps some at a time.

    Reading each figure from the device as it comes would make the host wait for every step.
    """

    def __init__(self, run: RunFolder, progress: Progress, at_a_time: int = 64) -> None:
        self._run = run
        self._progress = progress
        self._at_a_time = at_a_time
        self._pending: list[tuple[dict[str, Any], Any]] = []

    def add(self, epoch: int, step: int, metrics: Any, tokens: int) -> bool:
        """Takes in a step; whether it wrote, and so waited for the device."""
        self._progress.advance(lambda: _figures(metrics), tokens)
        self._pending.append(({"kind": "step", "step": step, "epoch": epoch}, metrics))
        if len(self._pending) < self._at_a_time:
            return False
        self.write()
        return True

    def write(self) -> None:
        if not self._pending:
            return
        for head, metrics in self._pending:
            self._run.write({**head, **_step_figures(metrics)})
        speed = self._progress.tokens_per_second
        last = self._pending[-1][0]["step"]
        self._run.write_timing({"kind": "speed", "step": last, "tokens_per_second": speed})
        self._pending.clear()


def _step_figures(metrics: Any) -> dict[str, Any]:
    """What is recorded of a step: of one that was skipped, that it was."""
    figures = compute(_counted(metrics))
    return figures if figures.pop("skipped") == 0 else {**figures, "skipped": True}


def _figures(metrics: Any) -> dict[str, float]:
    """Loss and accuracy; the gradient norm is for the records."""
    figures = compute(_counted(metrics))
    return {name: value for name, value in figures.items() if name not in ("grad_norm", "skipped")}


def _counted(metrics: Any) -> dict[str, Any]:
    """Those metrics that count anything; a skipped step counts nothing."""
    metrics = jax.device_get(dict(metrics))
    return {name: pair for name, pair in metrics.items() if pair[1] != 0}
