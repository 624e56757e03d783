"""Keras' first classifier: SimpleRNN(16) on titles; on whole texts, with a mask and without one.

Run:     python -m experiments.lessons.keras_simple_rnn --take 2000 --seeds 3
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from experiments.lessons import lesson
from experiments.lessons.contest import compare
from experiments.lessons.lesson import FilesSettings, Results
from experiments.lessons.news import TITLES_READ, fit_keras, keras_corpus, load_texts, load_titles
from experiments.lessons.recipes import Recipe
from rnnjax.interop.classifiers import LayerSize


@dataclass(frozen=True)
class Settings(FilesSettings):
    """Train the lesson's SimpleRNN for one epoch on titles, and on whole texts."""

    embedding_size: int = 64
    """Of the lesson."""
    hidden_size: int = 16
    """Of the lesson."""
    batch_size: int = 16
    """Of the lesson."""


def recipe_of(settings: Settings, *, reads_padding: bool, multiple: int = 32) -> Recipe:
    """Keras' Adam as it is by default, in the order of the data, one epoch."""
    return Recipe(
        form="keras",
        kind="vanilla",
        embedding_size=settings.embedding_size,
        layers=(LayerSize(settings.hidden_size, False),),
        num_classes=4,
        batch_size=settings.batch_size,
        reads_padding=reads_padding,
        multiple=multiple,
    )


def run(settings: Settings, results: Results) -> None:
    """The three systems, each with rnnjax and with Keras."""
    titles = load_titles(settings.data_dir, settings.take)
    texts = load_texts(settings.data_dir, settings.take)
    vocabulary = fit_keras(titles.train.texts[:TITLES_READ])
    name = f"SimpleRNN({settings.hidden_size})"
    # A title has some seven words: 32 steps would be padding for the most part.
    short = recipe_of(settings, reads_padding=True, multiple=8)
    corpus = keras_corpus(titles, vocabulary)
    compare(results, f"{name}, titles", short, corpus, settings.seeds)
    corpus = keras_corpus(texts, vocabulary)
    for system, reads_padding in (("masked", False), ("unmasked", True)):
        recipe = recipe_of(settings, reads_padding=reads_padding)
        compare(results, f"{name}, title + description, {system}", recipe, corpus, settings.seeds)


if __name__ == "__main__":
    sys.exit(lesson.main(__name__))
