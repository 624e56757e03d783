"""A smoothed n-gram model: what a network must beat to have learned more than counting."""

from __future__ import annotations

import numpy as np

# Contexts are written as one number in base V, which must fit in 63 bits.
_BITS = 62


def ngram_nats(train: np.ndarray, test: np.ndarray, vocab_size: int, order: int) -> float:
    r"""The mean negative log likelihood of ``test``, in nats a token, under counts of ``train``.

    With :math:`c` counts and :math:`n(h)` the number of different tokens seen after :math:`h`,

    .. math:: P(w | h) = \frac{c(h, w) + n(h) P(w | h')}{c(h) + n(h)}

    where :math:`h'` is :math:`h` without its oldest token, and the law of no context mixes with
    the uniform one (Witten and Bell).

    Args:
        train: ids [N].
        test: ids [M], of which all but the first ``order - 1`` are predicted.
        vocab_size: V.
        order: the longest context is ``order - 1`` tokens.

    Raises:
        ValueError: ``vocab_size ** order`` does not fit in an integer, or ``train`` or ``test`` is
            shorter than ``order``.

    Example:
        >>> ids = np.array([0, 1, 0, 1, 0, 1, 0, 1])
        >>> round(ngram_nats(ids, ids, vocab_size=2, order=2), 3)
        0.117

    References:
        Witten and Bell, "The zero-frequency problem", IEEE Transactions on Information Theory 37
        (1991).
    """
    if order * np.log2(vocab_size) > _BITS:
        raise ValueError(
            f"order must let n-grams of {vocab_size} tokens fit in {_BITS} bits, got {order}"
        )
    for name, ids in (("train", train), ("test", test)):
        if len(ids) < order:
            raise ValueError(f"{name} must have at least {order} tokens, got {len(ids)}")
    count = len(test) - order + 1
    probability = np.full(count, 1 / vocab_size)
    for n in range(1, order + 1):
        grams, totals = np.unique(_grams(train, n, vocab_size), return_counts=True)
        contexts, first = np.unique(grams // vocab_size, return_index=True)
        kinds = np.diff(np.append(first, len(grams)))  # different tokens after each context
        sums = np.add.reduceat(totals, first)
        wanted = _grams(test, n, vocab_size)[-count:]
        seen = _look_up(grams, totals, wanted)
        total = _look_up(contexts, sums, wanted // vocab_size)
        different = _look_up(contexts, kinds, wanted // vocab_size)
        mixed = (seen + different * probability) / np.maximum(total + different, 1)
        probability = np.where(total > 0, mixed, probability)
    return float(-np.mean(np.log(probability)))


def _grams(ids: np.ndarray, n: int, base: int) -> np.ndarray:
    """Every run of ``n`` ids as one number."""
    numbers = np.zeros(len(ids) - n + 1, np.int64)
    for k in range(n):
        numbers = numbers * base + ids[k : len(ids) - n + 1 + k]
    return numbers


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
