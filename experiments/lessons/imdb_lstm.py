"""Keras' IMDB example: LSTM(128) with dropout on the last 80 words, and what is as good without it.

Run:     python -m experiments.lessons.imdb_lstm --take 2000 --seeds 3
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.lessons import lesson
from experiments.lessons.contest import compare
from experiments.lessons.lesson import FilesSettings, Results
from experiments.lessons.linear_models import linear_model
from experiments.lessons.recipes import Corpus, Encoded, Recipe, take_both
from experiments.lessons.sequences import pad_sequences, word_sequence
from rnnjax.data import Examples, load
from rnnjax.interop.classifiers import LayerSize

START, UNKNOWN, INDEX_FROM = 1, 2, 3  # Keras' first ids: 0 is the padding, 3 stands for nothing


@dataclass(frozen=True)
class Settings(FilesSettings):
    """Train the example's LSTM for 15 epochs; fit Naive Bayes and logistic regression."""

    num_words: int = 20_000
    """Of the example: rarer words are read as one unknown word."""
    max_length: int = 80
    """Of the example: the last words of a review, where its verdict often is."""
    embedding_size: int = 128
    """Of the example."""
    hidden_size: int = 128
    """Of the example."""
    dropout: float = 0.2
    """Of the example, for inputs and hidden states alike; one mask a sequence."""
    batch_size: int = 32
    """Of the example."""
    epochs: int = 15
    """Of the example, long after the test accuracy was at its best."""


def recipe_of(settings: Settings) -> Recipe:
    """Adam as it is by default, one sigmoid unit, the order drawn anew in each epoch."""
    return Recipe(
        form="keras",
        kind="lstm",
        embedding_size=settings.embedding_size,
        layers=(LayerSize(settings.hidden_size, False),),
        num_classes=1,
        batch_size=settings.batch_size,
        reads_padding=True,
        shuffle=True,
        dropout=settings.dropout,
        recurrent_dropout=settings.dropout,
        epochs=settings.epochs,
        multiple=16,
    )


def word_ranks(texts: Iterable[str]) -> dict[str, int]:
    """The rank of every word, 1 for the most frequent; equal counts in the order they came in."""
    counts = Counter(word for text in texts for word in word_sequence(text))
    return {word: rank for rank, (word, _) in enumerate(counts.most_common(), start=1)}


def encode(ranks: dict[str, int], texts: Sequence[str], num_words: int) -> list[list[int]]:
    """The ids of ``keras.datasets.imdb.load_data(num_words)``: 1, then 3 more than each rank."""

    def id_of(word: str) -> int:
        found = ranks.get(word, num_words) + INDEX_FROM
        return found if found < num_words else UNKNOWN

    return [[START, *map(id_of, word_sequence(text))] for text in texts]


def corpus_of(settings: Settings, train: Examples, test: Examples, note: str) -> Corpus:
    """Both parts as rows of equal length, padded and cut in front."""
    ranks = word_ranks(train.texts)

    def rows(part: Examples) -> Encoded:
        ids = encode(ranks, part.texts, settings.num_words)
        return Encoded(list(pad_sequences(ids, settings.max_length)), part.labels)

    return Corpus(rows(train), rows(test), settings.num_words, note)


def shuffled(examples: Examples) -> Examples:
    """The examples in random order: the files have one class after the other."""
    order = np.random.default_rng(113).permutation(len(examples.texts)).tolist()
    return examples._replace(
        texts=[examples.texts[i] for i in order], labels=[examples.labels[i] for i in order]
    )


def run(settings: Settings, results: Results) -> None:
    """The LSTM with rnnjax and with Keras, then the two linear models on the whole reviews."""
    data = load("imdb", data_dir=settings.data_dir)
    train, test = take_both(shuffled(data.train), shuffled(data.test), settings.take)
    for name in ("Naive Bayes", "TF-IDF + logistic regression"):
        results.row(name, "scikit-learn", None, linear_model(name, train, test))
    taken = "" if settings.take is None else f"{len(train.texts):,} of 25,000"
    corpus = corpus_of(settings, train, test, taken)
    system = f"LSTM({settings.hidden_size}), {settings.epochs} epochs"
    compare(results, system, recipe_of(settings), corpus, settings.seeds)


if __name__ == "__main__":
    sys.exit(lesson.main(__name__))
