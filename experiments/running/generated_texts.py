"""Texts without end and without meaning, from a seed: for what only their number matters."""

from __future__ import annotations

from collections.abc import Iterator
from string import ascii_lowercase

import numpy as np


def generated_texts(
    count: int, seed: int, *, words: int = 50_000, shortest: int = 3, longest: int = 30
) -> Iterator[str]:
    """Texts of words whose frequency falls as 1 / rank, the law of Zipf, as it does in language.

    Only some thousand texts are in memory at a time.

    Args:
        count: how many.
        seed: a whole number, at least 0; it alone decides the texts.
        words: how many different ones there are.
        shortest: words in the shortest text.
        longest: words in the longest; every length between them is as likely.

    Example:
        >>> for text in generated_texts(3, seed=0, longest=5):
        ...     print(text)
        a a yth miaa su
        cjc oj ngia uai
        a pnn a gjc
    """
    rng = np.random.default_rng(seed)
    names = np.array([_name(rank) for rank in range(words)], object)
    chances = np.cumsum(1 / np.arange(1, words + 1))
    for begin in range(0, count, 4096):
        lengths = rng.integers(shortest, longest + 1, min(4096, count - begin))
        drawn = names[np.searchsorted(chances, rng.random(lengths.sum()) * chances[-1])]
        for row in np.split(drawn, np.cumsum(lengths)[:-1]):
            yield " ".join(row)


def _name(rank: int) -> str:
    """A word of its own for every rank, short for the frequent ones: a, b, ... z, aa, ba, ..."""
    letters = ""
    rank += 1
    while rank:
        rank, letter = divmod(rank - 1, 26)
        letters += ascii_lowercase[letter]
    return letters
