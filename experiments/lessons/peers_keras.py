"""The training of a recipe by Keras on its JAX backend, as the lesson does it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from experiments.lessons.recipes import Corpus, Encoded, Recipe, Totals
from experiments.running.packages import require
from rnnjax.interop.classifiers import export_keras
from rnnjax.models import ClassifierParams

os.environ.setdefault("KERAS_BACKEND", "jax")
require("Keras", "keras")
import keras  # noqa: E402 (after it is told its backend)


def make_model(recipe: Recipe, vocab_size: int) -> Any:
    """The lesson's sequential model, compiled.

    The mask is given to each layer by hand: newer versions of Keras do not carry it through one.
    """
    layers, last = keras.layers, len(recipe.layers) - 1
    make = {"vanilla": layers.SimpleRNN, "lstm": layers.LSTM}[recipe.kind]
    tokens = keras.Input((None,), dtype="int32")
    mask = None if recipe.reads_padding else keras.ops.not_equal(tokens, 0)
    ys = layers.Embedding(vocab_size, recipe.embedding_size)(tokens)
    for index, (units, both) in enumerate(recipe.layers):
        layer = make(
            units,
            return_sequences=index < last,
            dropout=recipe.dropout,
            recurrent_dropout=recipe.recurrent_dropout,
        )
        ys = (layers.Bidirectional(layer) if both else layer)(ys, mask=mask)
    binary = recipe.num_classes == 1
    head = layers.Dense(recipe.num_classes, activation="sigmoid" if binary else "softmax")
    model = keras.Model(tokens, head(ys))
    model.compile(
        loss="binary_crossentropy" if binary else "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        optimizer=keras.optimizers.Adam(recipe.learning_rate),
    )
    return model


def values_of(variables: Sequence[Any]) -> list[NDArray]:
    """Copies of the values of Keras variables."""
    return [np.array(variable.value) for variable in variables]


class _Batches(keras.utils.PyDataset):
    """Batches in order, each padded on the right."""

    def __init__(self, encoded: Encoded, batches: Sequence[NDArray[np.int64]], multiple: int):
        super().__init__()
        self._encoded, self._batches, self._multiple = encoded, batches, multiple

    @property
    def num_batches(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[NDArray, NDArray]:
        rows = self._batches[index]
        width = -(-self._encoded.width(rows) // self._multiple) * self._multiple
        return self._encoded.ragged.padded(rows, width), self._encoded.labels[rows]


class Keras:
    """A contestant: see `experiments.lessons.contest.Contestant`.

    Keras compiles its step for every shape. With masks the padding is invisible, so that batches
    are padded to the few lengths that rnnjax has; without, each to its longest text.
    """

    def __init__(self, recipe: Recipe, corpus: Corpus) -> None:
        self._compile_seconds = 0.0
        self._recipe = recipe
        self._corpus = corpus
        self._multiple = 1 if recipe.reads_padding else recipe.multiple
        self._shapes: set[tuple[int, int]] = set()
        keras.utils.set_random_seed(0)
        self.model = make_model(recipe, corpus.vocab_size)
        self.model.build((None, None))
        self.model.optimizer.build(self.model.trainable_variables)
        self._untouched = values_of(self.model.optimizer.variables)

    @property
    def compile_seconds(self) -> float:
        """All that was spent on steps with new shapes so far."""
        return self._compile_seconds

    def begin(self, params: ClassifierParams, steps: int, seed: int) -> None:
        """Starts anew from these parameters."""
        del steps
        keras.utils.set_random_seed(seed)
        weights = export_keras(self._recipe.kind, jax.tree.map(np.asarray, params))
        self._set(list(weights.values()), self._untouched)

    def prepare(self, batches: Sequence[NDArray[np.int64]]) -> None:
        """Takes one step with each shape that is new, and undoes them all."""
        train = self._corpus.train
        shown = {_Batches(train, [rows], self._multiple)[0][0].shape: rows for rows in batches}
        new = [rows for shape, rows in shown.items() if shape not in self._shapes]
        self._shapes.update(shown)
        began = time.perf_counter()
        weights = values_of(self.model.weights)
        moments = values_of(self.model.optimizer.variables)
        for rows in new:
            self._fit([rows])
        self._set(weights, moments)
        self._compile_seconds += time.perf_counter() - began if new else 0.0

    def advance(self, batches: Sequence[NDArray[np.int64]]) -> Totals:
        """Trains on these batches."""
        history = self._fit(batches)
        count = sum(map(len, batches))
        # Keras weighs the loss of a short batch by its texts.
        return Totals(history["loss"][0] * len(batches), history["accuracy"][0] * count)

    def accuracy(self, batches: Sequence[NDArray[np.int64]]) -> float:
        """The share of right answers on these batches of the test texts."""
        data = _Batches(self._corpus.test, batches, self._multiple)
        return float(self.model.evaluate(data, verbose=0, return_dict=True)["accuracy"])

    def _fit(self, batches: Sequence[NDArray[np.int64]]) -> dict[str, list[float]]:
        data = _Batches(self._corpus.train, batches, self._multiple)
        return self.model.fit(data, shuffle=False, verbose=0).history

    def _set(self, weights: Sequence[NDArray], moments: Sequence[NDArray]) -> None:
        self.model.set_weights(weights)
        for variable, value in zip(self.model.optimizer.variables, moments, strict=True):
            variable.assign(value)
