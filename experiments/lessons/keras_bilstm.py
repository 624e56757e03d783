"""Keras' stack of two bidirectional LSTM(64), with a mask.

Run:     python -m experiments.lessons.keras_bilstm --take 2000 --seeds 3
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
    """Train the lesson's two-layer bidirectional LSTM for one epoch, which the lesson broke off."""

    embedding_size: int = 128
    """Of the lesson: twice that of its other models."""
    hidden_size: int = 64
    """Of the lesson, in each direction."""
    batch_size: int = 16
    """Of the lesson."""


def recipe_of(settings: Settings) -> Recipe:
    """Keras' Adam as it is by default, in the order of the data, one epoch."""
    return Recipe(
        form="keras",
        kind="lstm",
        embedding_size=settings.embedding_size,
        layers=(LayerSize(settings.hidden_size, True),) * 2,
        num_classes=4,
        batch_size=settings.batch_size,
        reads_padding=False,
        # The cells are most of the work here, so that padding costs more than compiling.
        multiple=16,
    )


def run(settings: Settings, results: Results) -> None:
    """The system with rnnjax and with Keras."""
    titles = load_titles(settings.data_dir, settings.take)
    vocabulary = fit_keras(titles.train.texts[:TITLES_READ])
    corpus = keras_corpus(load_texts(settings.data_dir, settings.take), vocabulary)
    system = f"2 x bidirectional LSTM({settings.hidden_size}), masked"
    compare(results, system, recipe_of(settings), corpus, settings.seeds)


if __name__ == "__main__":
    sys.exit(lesson.main(__name__))
