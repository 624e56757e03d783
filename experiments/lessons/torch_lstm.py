"""PyTorch's LSTM classifiers: on padded batches, whose last state has read the padding; packed.

The lesson prints the accuracy of training as it goes on, and never that on the test texts.

Run:     python -m experiments.lessons.torch_lstm --take 2000 --seeds 3
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from experiments.lessons import lesson
from experiments.lessons.contest import compare, draw_logs
from experiments.lessons.lesson import LessonSettings, Measured, Results
from experiments.lessons.news import load_texts, torch_corpus
from experiments.lessons.recipes import Recipe
from rnnjax.interop.classifiers import LayerSize

PADDED, PACKED = "LSTMClassifier, padded", "LSTMPackClassifier, packed"


@dataclass(frozen=True)
class Settings(LessonSettings):
    """Train the lesson's two LSTM classifiers for one epoch."""

    embedding_size: int = 64
    """Of the lesson."""
    hidden_size: int = 32
    """Of the lesson."""
    batch_size: int = 16
    """Of the lesson."""


def recipe_of(settings: Settings, *, reads_padding: bool) -> Recipe:
    """Adam at 1e-3, shuffled, one epoch; vectors that are normal less 0.5."""
    return Recipe(
        form="pytorch",
        kind="lstm",
        embedding_size=settings.embedding_size,
        layers=(LayerSize(settings.hidden_size, False),),
        num_classes=4,
        batch_size=settings.batch_size,
        reads_padding=reads_padding,
        vectors="shifted",
        shuffle=True,
    )


def run(settings: Settings, results: Results) -> None:
    """Both classifiers, each with rnnjax and with PyTorch; then what packing gains."""
    corpus = torch_corpus(load_texts(settings.data_dir, settings.take))
    for system, reads_padding in ((PADDED, True), (PACKED, False)):
        recipe = recipe_of(settings, reads_padding=reads_padding)
        compare(results, system, recipe, corpus, settings.seeds)
    for library in ("rnnjax", "PyTorch"):
        for seed in range(settings.seeds):
            both = [results.find(system, library, seed) for system in (PADDED, PACKED)]
            if all(both):
                padded, packed = (row.figures for row in both if row is not None)
                gains = {name: packed[name] - padded[name] for name in padded}
                results.row("packed less padded", library, seed, lambda g=gains: Measured(g))
    draw_logs(results, (PADDED, PACKED), results.folder / "running_accuracy.png")


if __name__ == "__main__":
    sys.exit(lesson.main(__name__))
