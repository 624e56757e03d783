"""A recurrent text classifier, trained and used from the command line.

Train:    python -m experiments.classify
Predict:  python -m experiments.classify predict RUN "a text" ...
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
import tyro
from tyro.conf import Positional

import rnnjax
from experiments import curves
from experiments.console import RunFolder, environment, parameter_table
from experiments.fitting import Recipe, fit
from experiments.text import Encoder, Splits, fit_encoder, hold_out, make_batches, take
from rnnjax.data import (
    BucketedBatches,
    DataError,
    Examples,
    Vocabulary,
    load,
)
from rnnjax.weights import load_weights, save_weights

CELLS = {"vanilla": rnnjax.vanilla, "lstm": rnnjax.lstm, "gru": rnnjax.gru}
WEIGHTS, VOCABULARY = "weights.safetensors", "vocabulary.json"


@dataclass(frozen=True)
class Settings:
    """Train a recurrent classifier of texts."""

    dataset: str = "rotten_tomatoes"
    """rotten_tomatoes needs no network: its sentences come inside a package."""
    data_dir: Path | None = None
    """Folder of local data sets; the environment variable RNNJAX_DATA if not given."""
    take: int | None = None
    """Train on this many examples only."""
    tokenizer: str = "basic_english"
    """basic_english keeps punctuation as tokens of its own, which helps sentiment."""
    vocabulary_size: int = 20_000
    """Most frequent words kept; the rest are read as one unknown word."""
    min_count: int = 2
    """A word seen once teaches nothing that the unknown word does not."""
    max_length: int = 400
    """Longer texts are cut."""
    keep: Literal["head", "tail"] = "head"
    """Which end of a cut text stays."""

    cell: Literal["vanilla", "lstm", "gru"] = "gru"
    """The recurrent cell."""
    hidden_size: int = 64
    """Units in each direction."""
    layers: int = 1
    """Layers, one upon the other."""
    bidirectional: bool = True
    """Read every text in both directions."""
    pooling: Literal["last", "mean", "max"] = "max"
    """How the outputs of all steps become one vector."""
    embedding_size: int = 100
    """Size of a word vector, learned from nothing."""
    dropout: float = 0.6
    """High, since a few thousand sentences are soon learned by heart."""
    word_dropout: float = 0.2
    """Share of words read as the unknown word in training, for the same reason."""

    batch_size: int = 32
    """Rows in a batch."""
    buckets: int = 4
    """Lengths that batches are padded to, which is how many shapes are compiled."""
    epochs: int = 8
    """At most."""
    patience: int = 3
    """Stop after so many epochs without a better validation accuracy."""
    validation: float = 0.1
    """Share of the training examples held out to choose the best epoch."""
    learning_rate: float = 1e-3
    """Of Adam."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    average_decay: float = 0.99
    """Of the running average of the parameters, which is what is kept: small batches are noisy."""
    seed: int = 0
    """Decides the split, the initial weights, the order of examples and dropout."""
    repeat: int = 1
    """Train so many times, each with the next seed, and report the mean and the spread."""
    out: Path | None = None
    """Folder of the run; by default runs/classify-DATASET-TIME."""


@dataclass(frozen=True)
class Request:
    """Label texts with a trained classifier."""

    run: Positional[Path]
    """Folder of the run."""
    texts: Positional[tuple[str, ...]] = ()
    """The texts; without any, one is read from each line of standard input."""


def build_model(settings: Settings, vocab_size: int, num_classes: int) -> rnnjax.Model:
    """The classifier that the settings describe."""
    cell = CELLS[settings.cell](settings.hidden_size)
    layer = rnnjax.bidirectional(cell) if settings.bidirectional else rnnjax.recurrent(cell)
    return rnnjax.classifier(
        rnnjax.embedding(vocab_size, settings.embedding_size),
        rnnjax.stack(*(layer,) * settings.layers, dropout=settings.dropout),
        num_classes,
        pooling=settings.pooling,
        dropout=settings.dropout,
    )


class Outcome(NamedTuple):
    """What a run came to: its test accuracy, and its seconds from loading data to the end."""

    accuracy: float
    seconds: float


def train(settings: Settings, folder: Path) -> Outcome:
    """Train, write the run's folder, and say how to use it."""
    began = time.perf_counter()
    dataset = load(settings.dataset, data_dir=settings.data_dir, seed=settings.seed)
    training, validation = hold_out(dataset, settings.validation, settings.seed)
    parts = (take(training, settings.take), validation, dataset.test)
    encode, splits = prepare(settings, parts, len(dataset.label_names))
    model = build_model(settings, len(encode.vocabulary), len(dataset.label_names))
    init_key, step_key = jax.random.split(jax.random.key(settings.seed))
    params = model.init(init_key)
    counts = [len(part.texts) for part in parts]
    config = {
        "settings": dataclasses.asdict(settings),
        "environment": environment(),
        "data": {"sha256": dataset.sha256, "note": dataset.note, "examples": counts},
        "label_names": dataset.label_names,
    }
    with RunFolder(folder, config) as run:
        encode.vocabulary.save(folder / VOCABULARY)
        print(dataset.name, *filter(None, [dataset.note]), sep=", ")
        print("{} training, {} validation, {} test texts".format(*counts), end=", ")
        print(f"padding {splits.train.padding_fraction:.1%} in shapes {splits.train.shapes}")
        parameter_table(params)
        fitted = fit(model, params, splits, make_recipe(settings), step_key, run)
    save_weights(folder / WEIGHTS, fitted.params)
    curves.draw(run.metrics_path, folder / "curves.png")
    seconds = time.perf_counter() - began
    print(f"test accuracy {fitted.test['accuracy']:.4f}, weights of epoch {fitted.epoch}")
    print(f"{seconds:.0f} s in all, compiling included; files in {folder}")
    print(f'try: python -m experiments.classify predict {folder} "a text of your own"')
    return Outcome(fitted.test["accuracy"], seconds)


def prepare(
    settings: Settings, parts: Sequence[Examples], num_classes: int
) -> tuple[Encoder, Splits]:
    """The encoder fitted on the first part, the training examples, and batches of all three."""
    encode = fit_encoder(
        parts[0].texts,
        tokenizer=settings.tokenizer,
        vocabulary_size=settings.vocabulary_size,
        min_count=settings.min_count,
        max_length=settings.max_length,
        keep=settings.keep,
    )
    splits = make_batches(
        encode,
        parts,
        num_classes=num_classes,
        batch_size=settings.batch_size,
        buckets=settings.buckets,
        seed=settings.seed,
    )
    return encode, splits


def make_recipe(settings: Settings) -> Recipe:
    """How the settings say to train."""
    clip = optax.clip_by_global_norm(settings.clip_norm)
    return Recipe(
        optimizer=optax.chain(clip, optax.adam(settings.learning_rate)),
        average_decay=settings.average_decay,
        word_dropout=settings.word_dropout,
        epochs=settings.epochs,
        patience=settings.patience,
    )


def train_all(settings: Settings) -> None:
    """Train with one seed, or with several and report how far they lie apart."""
    if settings.repeat < 1:
        raise DataError(f"repeat: expected 1 or more, got {settings.repeat}")
    name = f"classify-{settings.dataset}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = settings.out or Path("runs", name)
    if settings.repeat == 1:
        train(settings, folder)
        return
    outcomes = []
    for seed in range(settings.seed, settings.seed + settings.repeat):
        chosen = dataclasses.replace(settings, seed=seed)
        outcomes.append(train(chosen, folder / f"seed-{seed}"))
    accuracies, seconds = zip(*outcomes, strict=True)
    print(
        f"{settings.repeat} seeds: test accuracy {np.mean(accuracies):.4f} "
        f"(standard deviation {np.std(accuracies, ddof=1):.4f}, "
        f"{min(accuracies):.4f} to {max(accuracies):.4f}), {np.mean(seconds):.0f} s each"
    )


class Predictor:
    """A trained classifier, read from the folder of its run."""

    def __init__(self, folder: Path) -> None:
        config = _read_config(folder)
        fields = {field.name for field in dataclasses.fields(Settings)}
        settings = Settings(**{k: v for k, v in config["settings"].items() if k in fields})
        vocabulary = Vocabulary.load(folder / VOCABULARY)
        self.label_names: list[str] = config["label_names"]
        self._encode = Encoder(settings.tokenizer, vocabulary, settings.max_length, settings.keep)
        # The same few lengths for every chunk of texts, so that a long stream compiles no more.
        longest = settings.max_length
        doubled = [8 << i for i in range(longest.bit_length()) if 8 << i < longest]
        self._boundaries = (*doubled, longest)
        self._model = build_model(settings, len(vocabulary), len(self.label_names))
        shapes = jax.eval_shape(self._model.init, jax.random.key(0))
        self._params = load_weights(folder / WEIGHTS, shapes)
        self._probabilities = jax.jit(
            lambda params, tokens, lengths: jax.nn.softmax(
                self._model.apply(params, tokens, lengths), axis=-1
            )
        )

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The probability [N, C] of every label for each text."""
        ids = self._encode(texts)
        batches = BucketedBatches(
            ids,
            [0] * len(ids),
            batch_size=min(64, len(ids)),
            boundaries=self._boundaries,
            seed=0,
            shuffle=False,
        )
        result = np.zeros((len(texts), len(self.label_names)))
        for rows, batch in zip(batches.epoch_indices(0), batches.epoch(0), strict=True):
            probabilities = self._probabilities(self._params, batch.tokens, batch.lengths)
            result[rows] = np.asarray(probabilities)[: len(rows)]
        return result


def predict(request: Request) -> None:
    """Print label, probability and text, one text a line."""
    texts = iter(request.texts) if request.texts else (line.rstrip("\n") for line in sys.stdin)
    predictor, count = Predictor(request.run), 0
    for chunk in _chunks(texts, 1024):
        count += len(chunk)
        for text, probabilities in zip(chunk, predictor(chunk), strict=True):
            best = int(probabilities.argmax())
            print(f"{predictor.label_names[best]}\t{probabilities[best]:.3f}\t{text}")
    if not count:
        raise DataError("expected texts as arguments or on standard input, got none")


def _chunks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    items = iter(items)
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise DataError(f"{folder}: expected the folder of a run, found no config.json in it")
    return json.loads(path.read_text("utf-8"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = "python -m experiments.classify"
    try:
        if given[:1] == ["predict"]:
            predict(tyro.cli(Request, prog=f"{name} predict", args=given[1:]))
        else:
            train_all(tyro.cli(Settings, prog=name, args=given))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
