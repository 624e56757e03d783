"""What is to be low for pairs, and the batches of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from experiments.running.loss_fitting import Parts
from experiments.translate.corpus import Corpus, Encoded
from experiments.translate.settings import Settings
from rnnjax.data import PairBatch, PairBatches, choose_pair_boundaries
from rnnjax.metrics import accuracy, cross_entropy, linear_cross_entropy


def make_batches(corpus: Corpus, settings: Settings) -> Parts:
    """Batches of all three parts."""

    def batches(part: Encoded, shuffle: bool) -> PairBatches:
        lengths = [[len(ids) for ids in side] for side in part]
        return PairBatches(
            *part,
            batch_size=settings.batch_size,
            boundaries=choose_pair_boundaries(*lengths, count=settings.buckets),
            seed=settings.seed,
            shuffle=shuffle,
        )

    return Parts.of(batches, corpus.train, corpus.validation, corpus.test)


def make_loss(model: rnnjax.SequenceToSequence, own_tokens: float = 0.0) -> Callable:
    """Cross entropy and accuracy of every token of the targets after those before it.

    In training the model reads its own token in place of one before it at the rate ``own_tokens``.
    """

    def loss_fn(params: Any, batch: PairBatch, key: jax.Array | None) -> tuple[jax.Array, dict]:
        targets = jnp.asarray(batch.targets)
        pairs = jnp.asarray(batch.sources), batch.source_lengths, targets, batch.target_lengths
        mask = rnnjax.lengths_to_mask(batch.target_lengths, targets.shape[-1])
        if key is None or own_tokens == 0:
            features, _ = model.features(params, *pairs, key=key)
            head = model.head_weights(params)
            loss, right = linear_cross_entropy(features, *head, targets, mask)
        else:
            logits, _ = rnnjax.scheduled_sampling(model, params, *pairs, rate=own_tokens, key=key)
            loss, right = (f(logits, targets, mask) for f in (cross_entropy, accuracy))
        return loss.value, {"loss": loss, "accuracy": right}

    return loss_fn


def count_tokens(batch: PairBatch) -> int:
    """Of both sides."""
    return int(np.sum(batch.source_lengths) + np.sum(batch.target_lengths))
