"""Keras' LSTM(8) on whole texts, without a mask, in batches of 8.

Run:     python -m experiments.lessons.keras_lstm --take 2000 --seeds 3
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
    """Train the lesson's LSTM for one epoch."""

    embedding_size: int = 64
    """Of the lesson."""
    hidden_size: int = 8
    """Of the lesson."""
    batch_size: int = 8
    """Of the lesson: half of that of its other models."""


def recipe_of(settings: Settings) -> Recipe:
    """Keras' Adam as it is by default, in the order of the data, one epoch."""
    return Recipe(
        form="keras",
        kind="lstm",
        embedding_size=settings.embedding_size,
        layers=(LayerSize(settings.hidden_size, False),),
        num_classes=4,
        batch_size=settings.batch_size,
        reads_padding=True,
    )


def run(settings: Settings, results: Results) -> None:
    """The system with rnnjax and with Keras."""
    titles = load_titles(settings.data_dir, settings.take)
    vocabulary = fit_keras(titles.train.texts[:TITLES_READ])
    corpus = keras_corpus(load_texts(settings.data_dir, settings.take), vocabulary)
    system = f"LSTM({settings.hidden_size}), unmasked, batch {settings.batch_size}"
    compare(results, system, recipe_of(settings), corpus, settings.seeds)


if __name__ == "__main__":
    sys.exit(lesson.main(__name__))
