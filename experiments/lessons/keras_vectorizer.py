"""What it costs to fit the vectorizer on 2,000 titles, which the lesson holds for a small matter.

Run:     python -m experiments.lessons.keras_vectorizer --take 2000 --seeds 3
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from experiments.lessons import keras_simple_rnn, lesson
from experiments.lessons.contest import compare
from experiments.lessons.lesson import Measured, Results
from experiments.lessons.news import (
    TITLES_READ,
    fit_keras,
    keras_corpus,
    load_texts,
    load_titles,
    unknown_share,
)
from experiments.lessons.recipes import Corpus
from experiments.running.console import how_many


@dataclass(frozen=True)
class Settings(keras_simple_rnn.Settings):
    """Train the lesson's masked SimpleRNN on ids of two vectorizers, with rnnjax alone."""

    titles_read: int = TITLES_READ
    """Of the lesson."""


def run(settings: Settings, results: Results) -> None:
    """A row on each vocabulary, and one on each training with it."""
    titles = load_titles(settings.data_dir, settings.take)
    texts = load_texts(settings.data_dir, settings.take)
    titles_read = titles.train.texts[: settings.titles_read]
    fitted_on: Mapping[str, list[str]] = {
        f"fitted on {how_many(len(titles_read), 'title')}": titles_read,
        "fitted on all texts": texts.train.texts,
    }
    recipe = keras_simple_rnn.recipe_of(settings, reads_padding=False)
    for fit, read in fitted_on.items():
        vocabulary = fit_keras(read)
        corpus = keras_corpus(texts, vocabulary)
        found = _described(corpus, len(vocabulary))
        results.row(f"vectorizer {fit}", "rnnjax", None, lambda found=found: found)
        system = f"masked SimpleRNN({settings.hidden_size}), vectorizer {fit}"
        compare(results, system, recipe, corpus, settings.seeds, peers=False)


def _described(corpus: Corpus, words: int) -> Measured:
    shares = {
        f"{name} tokens unknown": unknown_share(part)
        for name, part in (("train", corpus.train), ("test", corpus.test))
    }
    return Measured({"vocabulary": words, **shares}, note=corpus.note)


if __name__ == "__main__":
    sys.exit(lesson.main(__name__))
