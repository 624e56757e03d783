"""What is to be low for pictures with captions: nats, and what attention adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import rnnjax
from experiments.caption.corpus import CaptionBatch, CaptionBatches, Captioned, Corpus
from experiments.caption.model import Network
from experiments.caption.settings import Settings
from experiments.running.loss_fitting import Parts
from rnnjax.metrics import accuracy, cross_entropy

_LEAST = 1e-8  # of a weight in a logarithm


def make_batches(corpus: Corpus, settings: Settings) -> Parts:
    """Batches of the parts that training reads."""

    def batches(part: Captioned, shuffle: bool) -> CaptionBatches:
        return CaptionBatches(part, corpus.vocabulary, settings, shuffle=shuffle)

    return Parts.of(batches, corpus.train, corpus.validation, corpus.test)


def make_loss(network: Network, settings: Settings) -> Callable:
    """Cross entropy of every word after those before it, and in training what attention adds.

    Added are, for a mean word, the doubly stochastic penalty, and for hard attention the score
    function of its draws and a reward for weights that are spread.
    """

    def loss_fn(params: Any, batch: CaptionBatch, key: jax.Array | None) -> tuple[Any, dict]:
        captions = jnp.asarray(batch.captions)
        mask = rnnjax.lengths_to_mask(batch.lengths, captions.shape[-1])
        logits, attended = network.teach(
            params, jnp.asarray(batch.pictures), captions, batch.lengths, key
        )
        loss = cross_entropy(logits, captions, mask)
        metrics = {"loss": loss, "accuracy": accuracy(logits, captions, mask)}
        if key is None or attended is None:
            return loss.value, metrics
        real = jnp.asarray(batch.lengths) > 0
        penalty = rnnjax.doubly_stochastic_penalty(attended.weights)
        more = settings.once * jnp.sum(jnp.where(real, penalty, 0.0))
        if attended.drawn is not None:
            more += _of_draws(logits, captions, mask, attended, settings.entropy)
        return loss.value + more / jnp.maximum(jnp.sum(mask), 1), metrics

    return loss_fn


def _of_draws(
    logits: jax.Array,
    captions: jax.Array,
    mask: jax.Array,
    attended: rnnjax.Attended,
    entropy: float,
) -> jax.Array:
    """What hard attention adds, over all words: 0 in value but for the entropy."""
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, captions)
    assert attended.drawn is not None
    costs = jnp.where(mask, nats, 0.0)
    score = rnnjax.score_function(costs, attended.weights, attended.drawn)
    weights = attended.weights
    spread = -jnp.sum(weights * jnp.log(jnp.maximum(weights, _LEAST)))
    return jnp.sum(score) - entropy * spread
