"""Word vectors from elsewhere: frozen, fine-tuned, and learned from nothing, on AG News.

Run:     python -m experiments.lessons.pretrained_vectors --take 2000 --seeds 3
Expect:  with the first 2,000 texts (22 November 2026, jax 0.10.2, a CPU), test accuracy, mean of
         3 seeds, and the share of the tokens that the file has:

             glove.6B.50d.top5k             untrained 0.578   fine-tuned 0.809   frozen 0.791   0.80
             glove.twitter.27B.25d.top12k   untrained 0.476   fine-tuned 0.740   frozen 0.720   0.72
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import jax
import numpy as np
import optax

import rnnjax
from experiments.lessons import lesson
from experiments.lessons.figures import panels, save, tidy
from experiments.lessons.lesson import FilesSettings, Measured, Results
from experiments.lessons.news import News, load_texts
from experiments.lessons.tables import Row
from experiments.running.advancing import take_steps
from experiments.running.classifier_fitting import classification_loss
from experiments.running.text import Encoder, Splits, fit_encoder, make_batches
from rnnjax.data import DataError, Examples, data_folder
from rnnjax.data.vectors import WordVectors, read_vectors
from rnnjax.metrics import evaluate
from rnnjax.training import CompiledStep, init_train_state, make_eval_step, make_train_step

Start = Literal["untrained", "fine-tuned", "frozen"]


@dataclass(frozen=True)
class Settings(FilesSettings):
    """Train the same LSTM three times for each file of word vectors."""

    vectors: tuple[Path, ...] = ()
    """Text files of GloVe or word2vec; by default all in the folder glove of the data."""
    hidden_size: int = 64
    """Units of the LSTM."""
    vocabulary_size: int = 20_000
    """Most frequent words kept, of those that come twice."""
    batch_size: int = 32
    """Texts in a batch, of like lengths."""
    epochs: int = 3
    """The weights after the last are tested: nothing is chosen, so nothing need validate."""
    learning_rate: float = 1e-3
    """Of Adam."""


class Corpus(NamedTuple):
    """AG News as ids, and the share of the training tokens that each word makes up, [V]."""

    encode: Encoder
    train: Examples
    test: Examples
    shares: np.ndarray
    note: str


def prepare(settings: Settings, news: News) -> Corpus:
    """The vocabulary of the training texts, and how often each word comes in them."""
    encode = fit_encoder(
        news.train.texts,
        vocabulary_size=settings.vocabulary_size,
        max_length=200,
    )
    ids = np.concatenate([np.asarray(row) for row in encode(news.train.texts)])
    counts = np.bincount(ids, minlength=len(encode.vocabulary))
    return Corpus(encode, news.train, news.test, counts / counts.sum(), news.note)


def vector_files(settings: Settings) -> list[Path]:
    """The files to try.

    Raises:
        DataError: none is given, and none is in the folder of the data.
    """
    if settings.vectors:
        return list(settings.vectors)
    folder = Path(data_folder(settings.data_dir) or "", "glove")
    found = sorted([*folder.glob("*.txt"), *folder.glob("*.txt.gz")])
    if not found:
        raise DataError(
            f"{folder} must have word vectors, *.txt or *.txt.gz, got none: give their files as "
            "--vectors, or the folder above glove as --data-dir"
        )
    return found


def build_model(
    settings: Settings, corpus: Corpus, vectors: WordVectors, start: Start, seed: int
) -> rnnjax.Model:
    """The classifier; untrained vectors have the spread of the others, so that what they know is
    all that differs."""
    size, width = vectors.table.shape
    if start == "untrained":
        table = rnnjax.embedding(size, width, scale=float(vectors.table[vectors.found].std()))
    else:
        table = rnnjax.embedding(size, vectors=vectors.filled(seed), frozen=start == "frozen")
    return rnnjax.classifier(table, rnnjax.lstm(settings.hidden_size), 1 + max(corpus.train.labels))


class Programs(NamedTuple):
    """The compiled steps of one start, which all seeds share: they differ in ``init`` alone."""

    optimizer: optax.GradientTransformation
    train: CompiledStep
    test: CompiledStep


def make_programs(settings: Settings, model: rnnjax.Model) -> Programs:
    """Adam on everything but frozen vectors, which need no moments."""
    loss_fn = classification_loss(model, word_dropout=0.0)
    optimizer = optax.masked(optax.adam(settings.learning_rate), rnnjax.trainable)
    return Programs(optimizer, make_train_step(loss_fn, optimizer), make_eval_step(loss_fn))


def batches(settings: Settings, corpus: Corpus, seed: int) -> Splits:
    """The batches of a seed; there is no validation."""
    return make_batches(
        corpus.encode,
        (corpus.train, corpus.test, corpus.test),
        num_classes=1 + max(corpus.train.labels),
        batch_size=settings.batch_size,
        buckets=4,
        seed=seed,
    )


def fitted(
    settings: Settings, programs: Programs, model: rnnjax.Model, splits: Splits, seed: int
) -> tuple[float, int]:
    """Train for the epochs of the settings: the test accuracy, and the number of steps."""
    init_key, step_key = jax.random.split(jax.random.key(seed))
    state = init_train_state(step_key, model.init(init_key), programs.optimizer)
    for epoch in range(settings.epochs):
        state, _ = take_steps(programs.train, state, splits.train.epoch(epoch))
    test = evaluate(programs.test, state.params, splits.test.epoch(0))
    return test["accuracy"], int(state.step)


def run(settings: Settings, results: Results) -> None:
    """Every file with every start, and one figure of them all."""
    files = vector_files(settings)
    corpus = prepare(settings, load_texts(settings.data_dir, settings.take))
    found = {path: read_vectors(path, corpus.encode.vocabulary) for path in files}
    for path, vectors in found.items():
        for note in vectors.notes:
            print(f"{path}: {note}")
    programs: dict[tuple[Path, str], Programs] = {}
    for seed in range(settings.seeds):
        splits = batches(settings, corpus, seed)
        for path, start in itertools.product(files, get_args(Start)):
            model = build_model(settings, corpus, found[path], start, seed)
            made = programs.setdefault((path, start), make_programs(settings, model))
            results.row(
                f"{path.name.removesuffix('.gz').removesuffix('.txt')}, {start}",
                "rnnjax",
                seed,
                lambda: measured(  # called at once
                    corpus,
                    found[path],  # noqa: B023
                    *fitted(settings, made, model, splits, seed),  # noqa: B023
                ),
            )
    draw(results.rows, results.folder / "pretrained_vectors.png")


def measured(corpus: Corpus, vectors: WordVectors, accuracy: float, steps: int) -> Measured:
    """The test accuracy, and how much of the vocabulary and of the training texts is covered."""
    figures = {
        "test accuracy": accuracy,
        "words found": vectors.coverage,
        "tokens found": float(corpus.shares[vectors.found].sum()),
    }
    return Measured(figures, steps=steps, note=corpus.note)


def draw(rows: tuple[Row, ...], path: Path) -> None:
    """The test accuracies, one point a seed, one line of them a start."""
    systems = list(dict.fromkeys(row.system for row in rows))
    figure, grid = panels(1, 1, width=7.0, height=0.6 + 0.4 * len(systems))
    axes = grid[0][0]
    colours = {"untrained": "#777777", "fine-tuned": "#1f5fa8", "frozen": "#2a9d6f"}
    for place, system in enumerate(reversed(systems)):
        right = [row.figures["test accuracy"] for row in rows if row.system == system]
        colour = colours[system.rpartition(", ")[2]]
        axes.plot(right, [place] * len(right), "o", color=colour, alpha=0.7)
        axes.plot([np.mean(right)], [place], "|", color=colour, markersize=18)
    axes.set_yticks(range(len(systems)), list(reversed(systems)))
    axes.set_ylim(-0.6, len(systems) - 0.4)
    tidy(axes, "AG News, one point a seed, and their mean", "test accuracy", "", legend=False)
    save(figure, path)


if __name__ == "__main__":
    sys.exit(lesson.main(__name__))
