r"""The log odds of the classes given a word, counted so that no text finds its own label in them.

Of a word (or a pair of words in a row) w and a class c,

.. math:: r_c(w) = \log \frac{P(w \mid c)}{P(w \mid \text{not } c)}

with P the share among the words of the texts of the class, each word once a text, 1 added to every
count (Wang and Manning, "Baselines and Bigrams", ACL 2012). A network that reads in training odds
to which the text itself has been counted trusts them too much. So every text reads there the odds
counted without the fold it belongs to, and in a test those of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from rnnjax.data.ragged import RaggedRows

FOLDS = 5


class Odds(NamedTuple):
    """Log odds, [FOLDS + 1, V, C] each: those of all texts, then those without each fold."""

    words: Array
    pairs: Array  # V: the number of buckets that pairs are hashed to


def fold_of(tokens: Any) -> Any:
    """The fold of each text, from its ids [..., T] alone; padding is 0."""
    return tokens.sum(axis=-1) % FOLDS


def pairs_of(tokens: Any, buckets: int) -> Any:
    """The bucket [..., T] of each word together with the word before it.

    Args:
        tokens: ids, NumPy or JAX.
        buckets: a power of two.
    """
    xp = jnp if isinstance(tokens, jax.Array) else np
    before = xp.concatenate([xp.zeros_like(tokens[..., :1]), tokens[..., :-1]], axis=-1)
    mixed = tokens.astype(np.uint32) * np.uint32(2654435761)
    mixed = mixed ^ (before.astype(np.uint32) * np.uint32(2246822519) + np.uint32(374761393))
    mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(3266489917)
    return ((mixed ^ (mixed >> np.uint32(13))) & np.uint32(buckets - 1)).astype(np.int32)


def count_odds(
    sequences: RaggedRows, labels: Sequence[int], vocab_size: int, buckets: int, num_classes: int
) -> Odds:
    """Counts the odds of words and of pairs in the training texts."""
    texts = [np.asarray(ids, np.int32) for ids in sequences]
    folds = np.array([fold_of(ids) for ids in texts])
    pairs = [pairs_of(ids, buckets) for ids in texts]
    places = np.asarray(labels) * FOLDS + folds

    def tables(ids: list[NDArray[np.int32]], size: int) -> Array:
        counts = np.zeros((num_classes * FOLDS, size))
        for place, row in zip(places, ids, strict=True):
            counts[place, np.unique(row)] += 1
        counts = counts.reshape(num_classes, FOLDS, size)
        total = counts.sum(axis=1)
        seen = [total, *(total - counts[:, fold] for fold in range(FOLDS))]
        return jnp.asarray(np.stack([_odds(c) for c in seen]), jnp.float32)

    return Odds(tables(texts, vocab_size), tables(pairs, buckets))


def read_odds(odds: Odds, tokens: Array, tables: Array) -> tuple[Array, Array]:
    """The odds [B, T, C] of the words and of the pairs; table 0 is that of all texts."""
    rows = tables[:, None]
    return odds.words[rows, tokens], odds.pairs[rows, pairs_of(tokens, odds.pairs.shape[1])]


def _odds(counts: NDArray) -> NDArray:
    """Log odds [V, C] from counts [C, V]."""
    counts = counts + 1
    others = counts.sum(axis=0) - counts
    shares = counts / counts.sum(axis=1, keepdims=True)
    return np.log(shares / (others / others.sum(axis=1, keepdims=True))).T
