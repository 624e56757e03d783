"""The training loop that every experiment shares: epochs, validation, early stopping, records."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from experiments.console import Progress, RunFolder
from experiments.text import Splits
from rnnjax.data import Batch
from rnnjax.metrics import accuracy, compute, cross_entropy, evaluate, merge
from rnnjax.models import Model
from rnnjax.training import (
    Compilation,
    EarlyStopping,
    init_train_state,
    make_eval_step,
    make_train_step,
)


class Fitted(NamedTuple):
    """The best parameters of a run, when they were reached, and how they do on the test set."""

    params: Any
    epoch: int
    test: dict[str, float]
    seconds: float


def classification_loss(model: Model) -> Callable:
    """Cross entropy and accuracy of a classifier, as sums and counts over the real rows."""

    def loss_fn(params: Any, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, dict]:
        logits = model.apply(params, batch.tokens, batch.lengths, key=key)
        loss = cross_entropy(logits, batch.labels, batch.weights)
        return loss.value, {
            "loss": loss,
            "accuracy": accuracy(logits, batch.labels, batch.weights),
        }

    return loss_fn


def fit(
    model: Model,
    params: Any,
    splits: Splits,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int,
    patience: int,
    key: jax.Array,
    run: RunFolder,
) -> Fitted:
    """Train until validation accuracy has not risen for ``patience`` epochs, or all are done.

    Each step, compilation and epoch is a record of the run; its progress is shown. The test set
    is looked at once, with the parameters of the best epoch.
    """
    began = time.perf_counter()
    stopping = EarlyStopping("accuracy", mode="max", patience=patience)
    with Progress(total_steps=epochs * len(splits.train)) as progress:

        def on_compile(made: Compilation) -> None:
            progress.compiled(made)
            run.write({"kind": "compile", **made._asdict()})

        loss_fn = classification_loss(model)
        train_step = make_train_step(loss_fn, optimizer, on_compile=on_compile)
        eval_step = make_eval_step(loss_fn, on_compile=on_compile)
        state = init_train_state(params, optimizer, key)
        records = _StepRecords(run)
        for epoch in range(1, epochs + 1):
            start, totals = time.perf_counter(), None
            for batch in splits.train.epoch(epoch):
                state, metrics = train_step(state, batch)
                totals = metrics if totals is None else merge(totals, metrics)
                tokens = int(batch.lengths.sum())
                progress.advance(lambda metrics=metrics: _figures(metrics), tokens)
                records.add(epoch, metrics, progress.tokens_per_second)
            assert totals is not None
            records.write()
            validation = evaluate(eval_step, state.params, splits.validation.epoch(epoch))
            record = _epoch_record(epoch, int(state.step), compute(totals), validation)
            record["seconds"] = time.perf_counter() - start
            progress.epoch(record)
            run.write(record)
            stopping = stopping.update(epoch, validation, state.params)
            if stopping.should_stop:
                break
        assert stopping.best_epoch is not None
        test = evaluate(eval_step, stopping.best_params, splits.test.epoch(0))
    run.write({"kind": "test", **test})
    seconds = time.perf_counter() - began
    return Fitted(stopping.best_params, stopping.best_epoch, test, seconds)


class _StepRecords:
    """The records of single steps, read from the device some at a time.

    Reading each figure as it comes would make the host wait for every step.
    """

    def __init__(self, run: RunFolder, at_a_time: int = 64) -> None:
        self._run = run
        self._at_a_time = at_a_time
        self._step = 0
        self._pending: list[tuple[dict[str, Any], Any]] = []

    def add(self, epoch: int, metrics: Any, tokens_per_second: float | None) -> None:
        self._step += 1
        head = {"kind": "step", "step": self._step, "epoch": epoch}
        self._pending.append(({**head, "tokens_per_second": tokens_per_second}, metrics))
        if len(self._pending) == self._at_a_time:
            self.write()

    def write(self) -> None:
        for head, metrics in self._pending:
            self._run.write({**head, **compute(metrics)})
        self._pending.clear()


def _figures(metrics: dict) -> dict[str, float]:
    return {name: value for name, value in compute(metrics).items() if name != "grad_norm"}


def _epoch_record(epoch: int, step: int, train: dict, validation: dict) -> dict[str, Any]:
    return {
        "kind": "epoch",
        "epoch": epoch,
        "step": step,
        **{f"train_{name}": value for name, value in train.items() if name != "grad_norm"},
        **{f"validation_{name}": value for name, value in validation.items()},
    }
