"""rnnjax: bucketed batches, or all padded to the longest text, made ahead in a thread."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

import rnnjax
from experiments.epochs.task import Task
from experiments.running.advancing import take_steps
from experiments.running.classifier_fitting import classification_loss
from rnnjax.data import BucketedBatches, choose_boundaries
from rnnjax.data.batching import Batch
from rnnjax.interop.classifiers import build
from rnnjax.metrics import compute, merge

AHEAD = 2


def make_batches(task: Task, buckets: int) -> BucketedBatches:
    """Shuffled batches of all texts, padded to so many lengths."""
    return BucketedBatches(
        task.ids,
        task.labels,
        batch_size=task.settings.batch_size,
        boundaries=choose_boundaries([len(row) for row in task.ids], buckets),
        seed=task.settings.seed,
        vocab_size=task.architecture.vocab_size,
        num_classes=task.architecture.num_classes,
    )


class Ours:
    """A contestant: see `experiments.epochs.task.Contestant`."""

    def __init__(self, task: Task, name: str, batches: BucketedBatches) -> None:
        self.name = name
        self._model = build(task.architecture)
        self._batches = batches
        optimizer = optax.adam(task.settings.learning_rate)
        self._step = rnnjax.make_train_step(
            classification_loss(self._model, word_dropout=0.0), optimizer
        )
        params = jax.tree.map(jnp.array, task.params)
        self._state = rnnjax.init_train_state(jax.random.key(0), params, optimizer)

    @property
    def compile_seconds(self) -> float:
        """Of the training step, for each shape."""
        return sum(made.seconds for made in self._step.compilations)

    def batches(self, n: int) -> Iterator[Batch]:
        """The batches of an epoch, on the device."""
        return map(jax.device_put, self._batches.epoch(n))

    def epoch(self, n: int) -> float:
        """Train on every text once."""
        self._state, found = take_steps(self._step, self._state, self.batches(n), AHEAD)
        jax.block_until_ready(self._state.params)
        return compute(functools.reduce(merge, jax.device_get(found)))["accuracy"]

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """What the classifier says of a batch."""
        return np.asarray(
            self._model.apply(self._state.params, jnp.asarray(batch.tokens), lengths=batch.lengths)
        )
