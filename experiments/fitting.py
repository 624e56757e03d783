"""The training loop that every experiment shares: epochs, validation, early stopping, records."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.console import Progress, RunFolder
from experiments.text import Splits
from rnnjax.averaging import average_parameters, averaged
from rnnjax.data import UNKNOWN, Batch, BucketedBatches
from rnnjax.early_stopping import EarlyStopping
from rnnjax.metrics import accuracy, compute, cross_entropy, evaluate, merge
from rnnjax.models import Model
from rnnjax.training import (
    Compilation,
    CompiledStep,
    TrainState,
    init_train_state,
    make_eval_step,
    make_train_step,
)


class Recipe(NamedTuple):
    """How to train.

    Attributes:
        optimizer: an Optax transformation.
        average_decay: of the running average of the parameters, which is what is kept.
        word_dropout: the rate at which a token is read as the unknown word in training.
        epochs: at most.
        patience: stop after so many epochs without a better validation accuracy.
    """

    optimizer: optax.GradientTransformation
    average_decay: float
    word_dropout: float
    epochs: int
    patience: int


class Fitted(NamedTuple):
    """The best parameters of a run, when they were reached, and how they do on the test set."""

    params: Any
    epoch: int
    test: dict[str, float]


def classification_loss(model: Model, word_dropout: float) -> Callable:
    """Cross entropy and accuracy of a classifier, as sums and counts over the real rows.

    In training each token is read as the unknown word at the rate of ``word_dropout``.
    """

    def loss_fn(params: Any, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, dict]:
        tokens, labels = jnp.asarray(batch.tokens), jnp.asarray(batch.labels)
        if key is not None:
            key, drop = jax.random.split(key)
            hidden = jax.random.bernoulli(drop, word_dropout, tokens.shape)
            tokens = jnp.where(hidden, UNKNOWN, tokens)
        logits = model.apply(params, tokens, batch.lengths, key=key)
        loss = cross_entropy(logits, labels, batch.weights)
        return loss.value, {"loss": loss, "accuracy": accuracy(logits, labels, batch.weights)}

    return loss_fn


def fit(
    model: Model, params: Any, splits: Splits, recipe: Recipe, key: jax.Array, run: RunFolder
) -> Fitted:
    """Train until validation accuracy has not risen for some epochs, or all are done.

    Each step, compilation and epoch is a record of the run; its progress is shown. The test set
    is looked at once, with the parameters of the best epoch.
    """
    stopping = EarlyStopping("accuracy", mode="max", patience=recipe.patience)
    optimizer = optax.chain(recipe.optimizer, average_parameters(recipe.average_decay))
    loss_fn = classification_loss(model, recipe.word_dropout)
    with Progress(total_steps=recipe.epochs * len(splits.train)) as progress:

        def on_compile(made: Compilation) -> None:
            progress.compiled(made)
            run.write({"kind": "compile", **made._asdict()})

        train_step = make_train_step(loss_fn, optimizer, on_compile=on_compile)
        eval_step = make_eval_step(loss_fn, on_compile=on_compile)
        records = _StepRecords(run, progress)
        state = init_train_state(params, optimizer, key)
        for epoch in range(1, recipe.epochs + 1):
            start = time.perf_counter()
            state, training = _train_epoch(epoch, state, train_step, splits.train, records)
            average = averaged(state.opt_state)
            validation = evaluate(eval_step, average, splits.validation.epoch(epoch))
            record = {
                "kind": "epoch",
                "epoch": epoch,
                "step": int(state.step),
                **{f"train_{name}": value for name, value in training.items()},
                **{f"validation_{name}": value for name, value in validation.items()},
                "seconds": time.perf_counter() - start,
            }
            progress.epoch(record)
            run.write(record)
            stopping = stopping.update(epoch, validation, average)
            if stopping.should_stop:
                break
        assert stopping.best_epoch is not None  # an accuracy is never NaN
        test = evaluate(eval_step, stopping.best_params, splits.test.epoch(0))
    run.write({"kind": "test", **test})
    return Fitted(stopping.best_params, stopping.best_epoch, test)


def _train_epoch(
    epoch: int,
    state: TrainState,
    step: CompiledStep,
    batches: BucketedBatches,
    records: _StepRecords,
) -> tuple[TrainState, dict[str, float]]:
    totals: Any = None
    for batch in batches.epoch(epoch):
        state, metrics = step(state, batch)
        totals = metrics if totals is None else merge(totals, metrics)
        records.add(epoch, metrics, tokens=int(batch.lengths.sum()))
    records.write()
    return state, _figures(totals)


class _StepRecords:
    """Shows each step, and writes the records of steps some at a time.

    Reading each figure from the device as it comes would make the host wait for every step.
    """

    def __init__(self, run: RunFolder, progress: Progress, at_a_time: int = 64) -> None:
        self._run = run
        self._progress = progress
        self._at_a_time = at_a_time
        self._step = 0
        self._pending: list[tuple[dict[str, Any], Any]] = []

    def add(self, epoch: int, metrics: Any, tokens: int) -> None:
        self._step += 1
        self._progress.advance(lambda: _figures(metrics), tokens)
        speed = self._progress.tokens_per_second
        head = {"kind": "step", "step": self._step, "epoch": epoch, "tokens_per_second": speed}
        self._pending.append((head, metrics))
        if len(self._pending) == self._at_a_time:
            self.write()

    def write(self) -> None:
        for head, metrics in self._pending:
            self._run.write({**head, **compute(metrics)})
        self._pending.clear()


def _figures(metrics: Any) -> dict[str, float]:
    """Loss and accuracy; the gradient norm is for the records."""
    return {name: value for name, value in compute(metrics).items() if name != "grad_norm"}
