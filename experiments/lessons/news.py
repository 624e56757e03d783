"""AG News as the lessons read it: titles, or titles and descriptions, as ids of either library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.lessons.recipes import Corpus, Encoded, take_both
from rnnjax.data import (
    UNKNOWN,
    Examples,
    Vocabulary,
    basic_english,
    load,
    strip_punctuation,
)
from rnnjax.data.sources import read_ag_news_titles

VOCABULARY_SIZE = 20_000
TITLES_READ = 2_000
WHOLE = 120_000


class News(NamedTuple):
    """Both parts of AG News, and what a reader of results must know of them."""

    train: Examples
    test: Examples
    note: str


def load_texts(data_dir: Path | None, take: int | None) -> News:
    """Title and description of every piece of news, joined by a space."""
    data = load("ag_news", data_dir=data_dir)
    return _news(data.train, data.test, take)


def load_titles(data_dir: Path | None, take: int | None) -> News:
    """The title of every piece of news.

    Raises:
        DataError: there are no local files; elsewhere titles are not told apart.
    """
    (train, test), _ = read_ag_news_titles(data_dir)
    return _news(train, test, take)


def share_note(count: int) -> str:
    """Tells a reader of results that so many training texts are not all there are."""
    return "" if count >= WHOLE else f"{count / 1000:.0f}k of {WHOLE // 1000}k"


def _news(train: Examples, test: Examples, take: int | None) -> News:
    count = len(train.texts)
    note = share_note(count)
    train, test = take_both(train, test, take)
    taken = "" if len(train.texts) == count else f"first {len(train.texts):,}"
    return News(train, test, ", ".join(filter(None, [taken, note])))


def fit_keras(texts: Iterable[str]) -> Vocabulary:
    """The vocabulary of ``TextVectorization(max_tokens=20000)`` adapted to the texts."""
    return Vocabulary.fit(map(strip_punctuation, texts), max_size=VOCABULARY_SIZE)


def encode_keras(vocabulary: Vocabulary, texts: Sequence[str]) -> list[list[int]]:
    """The ids of ``TextVectorization``: an empty text has none."""
    tokens = map(strip_punctuation, texts)
    return [vocabulary.encode(row) if row else [] for row in tokens]


def unknown_share(encoded: Encoded) -> float:
    """The share of the tokens that are read as the unknown one."""
    return float(np.mean(encoded.ragged.values == UNKNOWN))


def keras_corpus(news: News, vocabulary: Vocabulary) -> Corpus:
    """The ids of the lesson's vectorizer; the table has 20,000 rows, whatever is in use."""

    def encode(part: Examples) -> Encoded:
        return Encoded(encode_keras(vocabulary, part.texts), part.labels)

    return Corpus(encode(news.train), encode(news.test), VOCABULARY_SIZE, news.note)


def torchtext_tokens(token_lists: Iterable[Sequence[str]]) -> list[str]:
    """The vocabulary of torchtext: <unk>, <pad>, then by count, equal counts by the alphabet."""
    counts = Counter(token for row in token_lists for token in row)
    return ["<unk>", "<pad>", *sorted(counts, key=lambda token: (-counts[token], token))]


def torch_corpus(news: News) -> Corpus:
    """The ids of the lesson's ``basic_english`` encoder; unknown words are 0, as padding is."""
    rows = [basic_english(text) for text in news.train.texts]
    tokens = torchtext_tokens(rows)
    find: Callable[[str, int], int] = {token: i for i, token in enumerate(tokens)}.get

    def encode(rows: Iterable[Sequence[str]], part: Examples) -> Encoded:
        return Encoded([[find(token, 0) for token in row] for row in rows], part.labels)

    test = encode(map(basic_english, news.test.texts), news.test)
    return Corpus(encode(rows, news.train), test, len(tokens), news.note)
