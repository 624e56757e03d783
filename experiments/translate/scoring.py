"""How good translations are: exactly right, and BLEU."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

Tokens = Sequence[str]


def exact(written: Sequence[Tokens], references: Sequence[Tokens]) -> float:
    """The share of texts that are their references, token for token."""
    pairs = zip(written, references, strict=True)
    return float(np.mean([list(one) == list(other) for one, other in pairs]))


def bleu(written: Sequence[Tokens], references: Sequence[Tokens]) -> float:
    r"""BLEU of a whole set on its tokens, one reference a text, from 0 to 100.

    .. math:: 100 \min(1, e^{1 - r/c}) \left(\prod_{n=1}^4 p_n\right)^{1/4}

    with the share :math:`p_n` of n-grams that the reference has too, and all tokens written c and
    of the references r. Not smoothed: 0 where no four tokens in a row are right.

    Example:
        >>> round(bleu(["a b c d e".split()], ["a b c d f".split()]), 2)
        66.87

    References:
        Papineni et al., "BLEU: a method for automatic evaluation of machine translation", ACL 2002.
    """
    hits, totals = np.zeros(4), np.zeros(4)
    for one, other in zip(written, references, strict=True):
        for n in range(1, 5):
            mine, theirs = _ngrams(one, n), _ngrams(other, n)
            hits[n - 1] += sum((mine & theirs).values())
            totals[n - 1] += sum(mine.values())
    if not hits.all():
        return 0.0
    ours, theirs = sum(map(len, written)), sum(map(len, references))
    brevity = min(0.0, 1 - theirs / ours)
    return 100 * math.exp(brevity + float(np.mean(np.log(hits / totals))))


def _ngrams(tokens: Tokens, n: int) -> Counter:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def sacrebleu(
    written: Sequence[str], references: Sequence[str], *, keep_case: bool = False
) -> tuple[float, str]:
    """BLEU of texts as sacrebleu counts it, without regard to case unless told, and its signature.

    The package ``sacrebleu`` must be installed.

    References:
        Post, "A call for clarity in reporting BLEU scores", WMT 2018.
    """
    from sacrebleu.metrics.bleu import BLEU  # pyright: ignore[reportMissingImports]

    metric: Any = BLEU(lowercase=not keep_case)
    score = metric.corpus_score(list(written), [list(references)]).score
    return float(score), str(metric.get_signature())


def on_diagonal(weights: Sequence[np.ndarray], task: str) -> float:
    """How often the place looked at most is the one that is written: the symbol from the end in
    the task reverse, the symbol of the same place in the task copy. [T, S] each, T = S + 1."""
    right = []
    for rows in weights:
        places = np.arange(rows.shape[1])
        expected = places[::-1] if task == "reverse" else places
        right.extend(np.argmax(rows[: len(places)], axis=-1) == expected[: len(rows)])
    return float(np.mean(right))
