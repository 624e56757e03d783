"""A lesson's model and training, as both libraries must agree on them, and its initial weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

import rnnjax
from experiments.running.cells import CELLS
from experiments.running.text import take
from rnnjax.data import Examples, flatten
from rnnjax.data.ragged import Ragged, RaggedRows
from rnnjax.interop.classifiers import LayerSize
from rnnjax.models import ClassifierParams, EmbeddingParams, LinearParams, Model
from rnnjax.training.lazy_adam import Form


@dataclass(frozen=True)
class Recipe:
    """A classifier of texts and how it is trained.

    Attributes:
        form: the library of the lesson: its initial weights and its Adam.
        kind: of cell.
        embedding_size: E.
        layers: the recurrent layers.
        num_classes: C; 1 for one sigmoid unit that tells two classes apart.
        batch_size: texts in a batch.
        reads_padding: whether the network is shown the padding to the longest text of the batch.
        pooling: "last", or "mean" over the steps it is shown.
        vectors: of the embedding at the start: uniform on ±0.05, normal, or normal less 0.5.
        shuffle: whether the order of the texts is drawn anew for each seed and epoch.
        dropout: of the inputs of the cells, one mask a sequence.
        recurrent_dropout: of their hidden states, one mask a sequence.
        epochs: over all texts.
        learning_rate: of Adam.
        multiple: batches are padded to multiples of this length, behind what the network is
            shown, so that few shapes are compiled.
    """

    form: Form
    kind: Literal["vanilla", "lstm"]
    embedding_size: int
    layers: tuple[LayerSize, ...]
    num_classes: int
    batch_size: int
    reads_padding: bool
    pooling: Literal["last", "mean"] = "last"
    vectors: Literal["uniform", "normal", "shifted"] = "uniform"
    shuffle: bool = False
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    epochs: int = 1
    learning_rate: float = 1e-3
    multiple: int = 32


class Encoded:
    """Texts as token ids, with their classes.

    Args:
        sequences: the ids of each text; empty ones are allowed.
        labels: the class of each text.
    """

    def __init__(self, sequences: RaggedRows, labels: Sequence[int]) -> None:
        self.ragged: Ragged = flatten(sequences)
        self.lengths = self.ragged.lengths
        self.labels = np.asarray(labels, np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def width(self, rows: NDArray[np.integer]) -> int:
        """The length to which a batch of these texts is padded: that of the longest."""
        return max(int(self.lengths[rows].max()), 1)


class Totals(NamedTuple):
    """Sums over the training steps of an epoch so far: of the mean loss of each, and of hits."""

    losses: float
    hits: float


@dataclass(frozen=True)
class Corpus:
    """What a system is trained and tested on."""

    train: Encoded
    test: Encoded
    vocab_size: int
    note: str


def take_both(train: Examples, test: Examples, count: int | None) -> tuple[Examples, Examples]:
    """The first ``count`` examples of both parts; all of them where it is None."""
    return take(train, count), take(test, count)


def steps_of(encoded: Encoded, recipe: Recipe, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Which texts each step of an epoch reads, the same for every library."""
    count = len(encoded)
    order = np.arange(count)
    if recipe.shuffle:
        order = np.random.default_rng([seed, epoch]).permutation(count)
    return in_order(order, recipe.batch_size)


def in_order(order: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """The texts in batches; the last one may be short."""
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def build(recipe: Recipe, vocab_size: int) -> Model:
    """The classifier of a recipe."""
    layers = []
    for size in recipe.layers:
        cell = CELLS[recipe.kind](size.hidden_size, initializer=recipe.form)
        cell = rnnjax.variational_dropout(cell, recipe.dropout, recipe.recurrent_dropout)
        layers.append(rnnjax.bidirectional(cell) if size.bidirectional else rnnjax.recurrent(cell))
    return rnnjax.classifier(
        rnnjax.embedding(vocab_size, recipe.embedding_size),
        layers[0] if len(layers) == 1 else rnnjax.stack(*layers),
        recipe.num_classes,
        pooling=recipe.pooling,
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def draw(recipe: Recipe, vocab_size: int, key: Array) -> ClassifierParams:
    """Initial parameters by the rules of the recipe's library."""
    inner, table, head = jax.random.split(key, 3)
    params = build(recipe, vocab_size).init(inner)
    shape = params.embedding.vectors.shape
    if recipe.vectors == "uniform":
        vectors = jax.random.uniform(table, shape, minval=-0.05, maxval=0.05)
    else:
        vectors = jax.random.normal(table, shape) - (0.5 if recipe.vectors == "shifted" else 0.0)
    if recipe.form == "pytorch":
        params = params._replace(head=_torch_linear(head, *params.head.w.shape))
    return params._replace(embedding=EmbeddingParams(vectors))


def _torch_linear(key: Array, inputs: int, outputs: int) -> LinearParams:
    first, second, bound = *jax.random.split(key), inputs**-0.5
    draw_one = jax.random.uniform
    return LinearParams(
        draw_one(first, (inputs, outputs), jnp.float32, -bound, bound),
        draw_one(second, (outputs,), jnp.float32, -bound, bound),
    )
