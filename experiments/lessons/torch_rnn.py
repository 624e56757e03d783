"""PyTorch's first classifier: a simple RNN and the mean of its outputs, padding and all.

The lesson pads with 0, which is the unknown word, and pools over the padding; done right, the
network neither reads nor pools it.

Run:     python -m experiments.lessons.torch_rnn --take 2000 --seeds 3
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from experiments.lessons import lesson
from experiments.lessons.contest import compare
from experiments.lessons.lesson import FilesSettings, Results
from experiments.lessons.news import load_texts, torch_corpus
from experiments.lessons.recipes import Recipe
from rnnjax.interop.classifiers import LayerSize


@dataclass(frozen=True)
class Settings(FilesSettings):
    """Train the lesson's RNNClassifier for one epoch, as it is and done right."""

    embedding_size: int = 64
    """Of the lesson."""
    hidden_size: int = 32
    """Of the lesson."""
    batch_size: int = 16
    """Of the lesson."""


def recipe_of(settings: Settings, *, reads_padding: bool) -> Recipe:
    """Adam at 1e-3, shuffled, one epoch, nothing else: as the lesson calls its loop."""
    return Recipe(
        form="pytorch",
        kind="vanilla",
        embedding_size=settings.embedding_size,
        layers=(LayerSize(settings.hidden_size, False),),
        num_classes=4,
        batch_size=settings.batch_size,
        reads_padding=reads_padding,
        pooling="mean",
        vectors="normal",
        shuffle=True,
    )


def run(settings: Settings, results: Results) -> None:
    """Both ways to pool, each with rnnjax and with PyTorch."""
    corpus = torch_corpus(load_texts(settings.data_dir, settings.take))
    for system, reads_padding in (("padded, as in the lesson", True), ("masked mean", False)):
        recipe = recipe_of(settings, reads_padding=reads_padding)
        compare(results, f"RNNClassifier, {system}", recipe, corpus, settings.seeds)


if __name__ == "__main__":
    sys.exit(lesson.main(__name__))
