"""From texts to batches as the lessons do it: ids, padding, packing, buckets of like length.

Run:     python -m experiments.lessons.data_handling --take 2000 --seeds 3
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from numpy.typing import NDArray

from experiments.lessons import lesson, torch_lstm
from experiments.lessons.lesson import Measured, Results
from experiments.lessons.news import fit_keras, keras_corpus, load_texts, torch_corpus
from experiments.lessons.ours import Ours
from experiments.lessons.recipes import Corpus, Encoded, Recipe, draw, in_order, steps_of
from experiments.lessons.sequences import Side, pack_padded, pad_sequences, unpack
from experiments.running.packages import require
from rnnjax.data import BucketedBatches, choose_boundaries

# The batch of the text, and its lengths.
PADDED = [[1, 2, 3, 4, 5], [6, 7, 8, 0, 0], [9, 0, 0, 0, 0]]
LENGTHS = [5, 3, 1]
_SIDES: tuple[Side, Side] = ("pre", "post")


@dataclass(frozen=True)
class Settings(torch_lstm.Settings):
    """Encode AG News, pad and pack it, and train on plain batches and on buckets."""

    buckets: int = 8
    """Lengths that bucketed batches are padded to."""
    maxlen: int = 40
    """Rows of pad_sequences: some texts are longer and some shorter."""


def run(settings: Settings, results: Results) -> None:
    """What the ids are, whether padding and packing agree with the originals, what buckets save."""
    news = load_texts(settings.data_dir, settings.take)
    vocabulary = fit_keras(news.train.texts)
    of_keras = keras_corpus(news, vocabulary)
    of_torch = torch_corpus(news)
    for name, corpus, words in (
        ("ids of TextVectorization", of_keras, len(vocabulary)),
        ("ids of basic_english", of_torch, of_torch.vocab_size),
    ):
        row = described(corpus, words)
        results.row(name, "rnnjax", None, lambda row=row: row)
    results.row("pad_sequences", "Keras", None, lambda: padding_agrees(of_keras, settings.maxlen))
    results.row("packing", "PyTorch", None, lambda: packing_agrees(of_torch))
    packed = pack_padded(PADDED, LENGTHS)
    print(f"{PADDED} with lengths {LENGTHS} is packed as {packed.data.tolist()}")
    recipe = torch_lstm.recipe_of(settings, reads_padding=False)
    for seed in range(settings.seeds):
        for name, batches in batchings(of_torch, recipe, settings.buckets, seed).items():
            system = f"packed LSTM on {name}"
            results.row(
                system,
                "rnnjax",
                seed,
                lambda batches=batches, seed=seed: train(recipe, of_torch, batches, seed),
            )


def described(corpus: Corpus, words: int) -> Measured:
    """Size of the vocabulary and lengths of the texts."""
    lengths = corpus.train.lengths
    figures = {
        "vocabulary": words,
        "mean length": float(lengths.mean()),
        "longest": int(lengths.max()),
    }
    return Measured(figures, note=corpus.note)


def padding_agrees(corpus: Corpus, maxlen: int) -> Measured:
    """The share of texts whose row is the same for Keras, on either side."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    require("Keras", "keras")
    from keras.utils import pad_sequences as keras_pad

    texts = sequences_of(corpus.train)
    same = [
        (pad_sequences(texts, maxlen, end, cut) == keras_pad(texts, maxlen, "int32", end, cut)).all(
            1
        )
        for end in _SIDES
        for cut in _SIDES
    ]
    return Measured({"the same": float(np.mean(same))}, note=corpus.note)


def packing_agrees(corpus: Corpus) -> Measured:
    """The share of batches that PyTorch packs alike and that come back whole."""
    require("PyTorch", "torch")
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence

    same = []
    for rows in in_order(np.arange(len(corpus.train)), 16):
        lengths = corpus.train.lengths[rows]
        padded = corpus.train.ragged.padded(rows, int(lengths.max()))
        ours = pack_padded(padded, lengths.tolist())
        theirs = pack_padded_sequence(
            torch.from_numpy(padded),
            torch.from_numpy(lengths.astype(np.int64)),
            batch_first=True,
            enforce_sorted=False,
        )
        same.append(
            np.array_equal(ours.data, theirs.data.numpy())
            and np.array_equal(ours.batch_sizes, theirs.batch_sizes.numpy())
            and np.array_equal(unpack(ours)[0], padded)
        )
    return Measured({"the same": float(np.mean(same))}, note=corpus.note)


def batchings(
    corpus: Corpus, recipe: Recipe, buckets: int, seed: int
) -> dict[str, list[NDArray[np.int64]]]:
    """The texts of an epoch in plain batches, and in batches of like length."""
    boundaries = choose_boundaries(corpus.train.lengths, buckets, recipe.multiple)
    bucketed = BucketedBatches(
        sequences_of(corpus.train),
        corpus.train.labels,
        batch_size=recipe.batch_size,
        boundaries=boundaries,
        seed=seed,
    )
    return {
        "plain batches": steps_of(corpus.train, recipe, seed, 0),
        "length buckets": bucketed.epoch_indices(0),
    }


def train(
    recipe: Recipe, corpus: Corpus, batches: Sequence[NDArray[np.int64]], seed: int
) -> Measured:
    """An epoch on these batches; their padding is that to the longest text of each."""
    ours = Ours(recipe, corpus)
    ours.begin(draw(recipe, corpus.vocab_size, jax.random.key(seed)), len(batches), seed)
    began = time.perf_counter()
    totals = ours.advance(batches)
    seconds = time.perf_counter() - began - ours.compile_seconds
    compiled = {"compile s": ours.compile_seconds} if ours.compile_seconds else {}
    steps = sum(len(rows) * corpus.train.width(rows) for rows in batches)
    test = in_order(np.arange(len(corpus.test)), recipe.batch_size)
    figures = {
        "padding": 1 - int(corpus.train.lengths.sum()) / steps,
        "train accuracy": totals.hits / len(corpus.train),
        "test accuracy": ours.accuracy(test),
    }
    return Measured(figures, seconds, len(batches), compiled, corpus.note)


def sequences_of(encoded: Encoded) -> list[NDArray[np.int32]]:
    """The ids of each text."""
    return np.split(encoded.ragged.values, encoded.ragged.offsets[1:-1])


if __name__ == "__main__":
    sys.exit(lesson.main(__name__))
