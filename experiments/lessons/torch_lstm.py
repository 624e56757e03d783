"""PyTorch's LSTM classifiers: on padded batches, whose last state has read the padding; packed.

The lesson prints the accuracy of training as it goes on, and never that on the test texts.

Run:     python -m experiments.lessons.torch_lstm --take 2000 --seeds 3
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass

from experiments.lessons import lesson, torch_rnn
from experiments.lessons.contest import compare, draw_logs
from experiments.lessons.lesson import Measured, Results
from experiments.lessons.news import load_texts, torch_corpus
from experiments.lessons.recipes import Recipe

PADDED, PACKED = "LSTMClassifier, padded", "LSTMPackClassifier, packed"


@dataclass(frozen=True)
class Settings(torch_rnn.Settings):
    """Train the lesson's two LSTM classifiers for one epoch."""


def recipe_of(settings: Settings, *, reads_padding: bool) -> Recipe:
    """That of the first classifier, but the last state, and vectors that are normal less 0.5."""
    first = torch_rnn.recipe_of(settings, reads_padding=reads_padding)
    return dataclasses.replace(first, kind="lstm", pooling="last", vectors="shifted")


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
