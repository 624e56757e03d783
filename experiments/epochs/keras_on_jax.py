"""Keras on JAX: ``fit`` on the very batches of rnnjax, padding masked."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.epochs.task import Task
from rnnjax.data import DataError
from rnnjax.data.batching import Batch, BucketedBatches
from rnnjax.interop.classifiers import export_keras

os.environ.setdefault("KERAS_BACKEND", "jax")
import keras  # after it is told its backend


def require_jax() -> None:
    """Refuse another backend: the row says JAX.

    Raises:
        DataError: naming it.
    """
    if (found := keras.backend.backend()) != "jax":
        raise DataError(f"KERAS_BACKEND must be jax, got {found}")


def make_model(task: Task) -> Any:
    """Embedding, bidirectional LSTM, dense head, compiled for training."""
    sizes = task.architecture
    (layer,) = sizes.layers
    model = keras.Sequential(
        [
            keras.layers.Embedding(sizes.vocab_size, sizes.embedding_size, mask_zero=True),
            keras.layers.Bidirectional(keras.layers.LSTM(layer.hidden_size)),
            keras.layers.Dense(sizes.num_classes),
        ]
    )
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer=keras.optimizers.Adam(task.settings.learning_rate),
        weighted_metrics=["accuracy"],
    )
    model.build((None, None))
    model.set_weights(list(export_keras(sizes.kind, task.params).values()))
    return model


class Keras:
    """A contestant: see `experiments.epochs.task.Contestant`."""

    name = "Keras (JAX), bucketed"

    def __init__(self, task: Task, batches: BucketedBatches) -> None:
        self._made = batches
        self.model = make_model(task)
        self.compile_seconds = self._compile()

    def batches(self, n: int) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
        """Tokens, labels and weights of the batches of an epoch."""
        for batch in self._made.epoch(n):
            yield batch.tokens, batch.labels, batch.weights

    def epoch(self, n: int) -> float:
        """Train on every text once."""
        return self._fit(self.batches(n), len(self._made))

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """What the classifier says of a batch."""
        return np.asarray(self.model(batch.tokens))

    def _fit(self, batches: Iterator[tuple], steps: int) -> float:
        fitted = self.model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)
        return float(fitted.history["accuracy"][0])

    def _compile(self) -> float:
        """Take a step with every shape, and undo them; the seconds of that."""
        began = time.perf_counter()
        self.model.optimizer.build(self.model.trainable_variables)
        variables = [*self.model.weights, *self.model.optimizer.variables]
        before = [np.array(variable.value) for variable in variables]
        shapes = {batch[0].shape: batch for batch in self.batches(0)}
        self._fit((batch for batch in shapes.values()), len(shapes))
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
        return time.perf_counter() - began
