"""Epochs of training steps, each validated, shown and saved: what all loops over epochs share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp

from experiments.running.checkpoints import Snapshot
from experiments.running.session import Session, counted
from rnnjax.metrics import compute, merge
from rnnjax.training import NonFiniteError, averaged

Batch = TypeVar("Batch")
Fitted = TypeVar("Fitted")


def no_sums(loss_fn: Callable, params: Any, batch: Any, key: jax.Array) -> dict[str, Any]:
    """The metrics of no batch, in the form of merged sums, as a checkpoint after some has them."""
    _, metrics = jax.eval_shape(loss_fn, params, batch, key)
    zeros = jax.tree.map(lambda figure: jnp.zeros(figure.shape, figure.dtype), metrics)
    return merge(zeros, zeros)


class Fitting(ABC, Generic[Batch, Fitted]):
    """A run under way: `go_on` does the epochs that are left.

    Each loop says what a step, a validation and the end of a run are.

    Args:
        session: what is told of every step and epoch.
        begin: where the run is.
        epochs: the bound on them.
    """

    def __init__(self, session: Session, begin: Snapshot, epochs: int) -> None:
        self._session = session
        self._snapshot = begin
        self._epochs = epochs
        # Made once: zeros that are made in an epoch are copied to the device.
        self._zeros = jax.tree.map(jnp.zeros_like, begin.totals)

    @abstractmethod
    def _left(self) -> Iterator[Batch]:
        """The batches of the epoch in hand that are left."""

    @abstractmethod
    def _step(self, batch: Batch) -> None:
        """A training step: tells the session, and has a snapshot of what is then."""

    @abstractmethod
    def _validate(self, params: Any) -> dict[str, float]:
        """The figures of weights on the validation part."""

    @abstractmethod
    def _finish(self, params: Any, epoch: int) -> Fitted:
        """What the run came to, once its best weights are known, and the epoch that had them."""

    def _weights(self) -> Any:
        """Those that are validated, and may be kept."""
        return averaged(self._snapshot.train.opt_state)

    def _sums(self) -> Mapping[str, Any]:
        """The sums and counts of the metrics of the epoch in hand."""
        return self._snapshot.totals

    def _new_totals(self) -> Any:
        """What a snapshot holds beside the state at the beginning of an epoch."""
        return self._zeros

    def _shown(self, epoch: int, params: Any) -> None:
        """Shows what the weights of an epoch can do, in programs that have something to show."""

    def go_on(self) -> Fitted:
        """Does the epochs that are left, and what follows them.

        Raises:
            Interrupted: SIGTERM or Ctrl-C came; what was done so far is saved.
            NonFiniteError: too many steps in a row, or the weights of all epochs, were not finite;
                the last good state is saved.
        """
        with self._session.saved_when_stopped(lambda: self._snapshot):
            while not self._snapshot.is_last(self._epochs):
                self._epoch()
            best = self._snapshot.stopping
            if best.best_epoch is None:
                raise NonFiniteError(
                    "an epoch must end with finite weights and figures of them, got none such; a "
                    "smaller --learning-rate may help"
                )
            return self._finish(best.best_params, best.best_epoch)

    def _epoch(self) -> None:
        began, session = self._session.clock(), self._session
        for batch in session.watch(self._left()):
            self._step(batch)
        now = self._snapshot
        session.check_finite(now)
        trained = counted(self._sums())
        if not trained:
            raise NonFiniteError(
                f"a step of epoch {now.epoch} must have finite loss, gradient and update, got none "
                "such: a smaller --learning-rate or --clip-norm may help"
            )
        params = self._weights()
        validation = self._validate(params)
        stopping = now.stopping.update(now.epoch, validation, params)
        is_best = stopping.best_epoch == now.epoch
        session.epoch(now, compute(trained), validation, session.clock() - began, is_best)
        self._shown(now.epoch, params)
        self._snapshot = now.after_epoch(stopping, self._new_totals())
        session.save(self._snapshot)
