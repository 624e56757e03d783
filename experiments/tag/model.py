"""The network that the settings describe, its batches and its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from experiments.running.cells import CELLS
from experiments.running.loss_fitting import Parts
from experiments.tag.sentences import Corpus, Sentence
from experiments.tag.settings import Settings
from rnnjax.data import Batch, BucketedBatches, Vocabulary, choose_boundaries, pad
from rnnjax.metrics import accuracy, cross_entropy


def build_model(settings: Settings, vocab_size: int, num_labels: int) -> rnnjax.Model:
    """Word vectors, a layer that reads one way or both, and a linear map to labels."""
    cell = CELLS[settings.cell](settings.hidden_size)
    layer = cell if settings.direction == "forward" else rnnjax.bidirectional(cell)
    embedding = rnnjax.embedding(vocab_size, settings.embedding_size)
    return rnnjax.tagger(embedding, layer, num_labels, dropout=settings.dropout)


def make_parts(
    corpus: Corpus, vocabulary: Vocabulary, labels: Sequence[str], settings: Settings
) -> Parts:
    """Batches of ids with a label a step."""
    number = {label: i for i, label in enumerate(labels)}

    def batches(sentences: Sequence[Sentence], shuffle: bool) -> BucketedBatches:
        ids = [vocabulary.encode([word for word, _ in sentence]) for sentence in sentences]
        return BucketedBatches(
            ids,
            [[number[label] for _, label in sentence] for sentence in sentences],
            batch_size=settings.batch_size,
            boundaries=choose_boundaries([len(row) for row in ids], count=settings.buckets),
            seed=settings.seed,
            shuffle=shuffle,
        )

    return Parts.of(batches, corpus.train, corpus.validation, corpus.test)


def label_loss(model: rnnjax.Model) -> Callable:
    """Cross entropy and accuracy a word, as sums and counts."""

    def loss_fn(params: Any, batch: Batch, key: Any) -> tuple[jax.Array, dict]:
        logits = model.apply(params, batch.tokens, batch.lengths, key=key)
        real = rnnjax.lengths_to_mask(jnp.asarray(batch.lengths), batch.tokens.shape[1])
        real &= jnp.asarray(batch.weights)[:, None] > 0
        labels = jnp.asarray(batch.labels)
        loss = cross_entropy(logits, labels, real)
        return loss.value, {"loss": loss, "accuracy": accuracy(logits, labels, real)}

    return loss_fn


def guess(model: rnnjax.Model, params: Any, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """The likeliest labels of sentences of ids."""
    tokens, lengths = pad(rows)
    logits = jax.jit(model.apply)(params, tokens, lengths)
    found = np.asarray(jnp.argmax(logits, axis=-1))
    return [row[:length] for row, length in zip(found, lengths, strict=True)]
