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
from typing import Annotated, Any, Literal

import jax
import numpy as np
import optax

import rnnjax
from experiments import curves
from experiments.console import RunFolder, environment, parameter_table
from experiments.fitting import fit
from experiments.text import Encoder, fit_encoder, hold_out, make_batches, take
from rnnjax.data import NAMES, BucketedBatches, DataError, Vocabulary, choose_boundaries, load
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

    cell: Literal["vanilla", "lstm", "gru"] = "lstm"
    """The recurrent cell."""
    hidden_size: int = 64
    """Units in each direction."""
    layers: int = 1
    """Layers, one upon the other."""
    bidirectional: bool = True
    """Read every text in both directions."""
    pooling: Literal["last", "mean", "max"] = "mean"
    """How the outputs of all steps become one vector."""
    embedding_size: int = 100
    """Size of a word vector, learned from nothing."""
    dropout: float = 0.6
    """High, since a few thousand sentences are soon learned by heart."""

    batch_size: int = 32
    """Rows in a batch."""
    buckets: int = 4
    """Lengths that batches are padded to, which is how many shapes are compiled."""
    epochs: int = 10
    """At most."""
    patience: int = 3
    """Stop after so many epochs without a better validation accuracy."""
    validation: float = 0.1
    """Share of the training examples held out to choose the best epoch."""
    learning_rate: float = 1e-3
    """Of Adam."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    seed: int = 0
    """Decides the split, the initial weights, the order of examples and dropout."""
    out: Path | None = None
    """Folder of the run; by default runs/classify-DATASET-TIME."""


@dataclass(frozen=True)
class Request:
    """Label texts with a trained classifier."""

    run: Annotated[Path, "positional"]
    """Folder of the run."""
    texts: Annotated[tuple[str, ...], "positional"] = ()
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


def train(settings: Settings) -> Path:
    """Train, write the run's folder, and say how to use it."""
    dataset = load(settings.dataset, data_dir=settings.data_dir, seed=settings.seed)
    examples = hold_out(dataset, settings.validation, settings.seed)
    training, validation = take(examples[0], settings.take), examples[1]
    encode = fit_encoder(
        training.texts,
        tokenizer=settings.tokenizer,
        vocabulary_size=settings.vocabulary_size,
        min_count=settings.min_count,
        max_length=settings.max_length,
        keep=settings.keep,
    )
    splits = make_batches(
        encode,
        (training, validation, dataset.test),
        num_classes=len(dataset.label_names),
        batch_size=settings.batch_size,
        buckets=settings.buckets,
        seed=settings.seed,
    )
    model = build_model(settings, len(encode.vocabulary), len(dataset.label_names))
    init_key, step_key = jax.random.split(jax.random.key(settings.seed))
    params = model.init(init_key)
    optimizer = optax.chain(
        optax.clip_by_global_norm(settings.clip_norm), optax.adam(settings.learning_rate)
    )
    counts = [len(part.texts) for part in (training, validation, dataset.test)]
    print(f"{dataset.name}: {counts[0]} training, {counts[1]} validation, {counts[2]} test texts")
    print(dataset.note, f"vocabulary {len(encode.vocabulary)}", sep="; " if dataset.note else "")
    print(f"padding {splits.train.padding_fraction:.1%} in shapes {splits.train.shapes}")
    parameter_table(params)
    config = {
        "settings": dataclasses.asdict(settings),
        "environment": environment(),
        "data": {"sha256": dataset.sha256, "note": dataset.note, "examples": counts},
        "label_names": dataset.label_names,
    }
    folder = settings.out or Path("runs", f"classify-{dataset.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    with RunFolder(folder, config) as run:
        encode.vocabulary.save(folder / VOCABULARY)
        fitted = fit(
            model,
            params,
            splits,
            optimizer,
            epochs=settings.epochs,
            patience=settings.patience,
            key=step_key,
            run=run,
        )
    save_weights(folder / WEIGHTS, fitted.params)
    curves.draw(run.metrics_path, folder / "curves.png")
    print(f"test accuracy {fitted.test['accuracy']:.4f} (weights of epoch {fitted.epoch}, ", end="")
    print(f"{fitted.seconds:.0f} s of training)")
    print(f"files in {folder}")
    print(f'try: python -m experiments.classify predict {folder} "a text of your own"')
    return folder


class Predictor:
    """A trained classifier, read from the folder of its run."""

    def __init__(self, folder: Path) -> None:
        config = _read_config(folder)
        fields = {field.name for field in dataclasses.fields(Settings)}
        settings = Settings(**{k: v for k, v in config["settings"].items() if k in fields})
        vocabulary = Vocabulary.load(folder / VOCABULARY)
        self.label_names: list[str] = config["label_names"]
        self._encode = Encoder(
            settings.tokenizer, vocabulary, settings.max_length, settings.keep
        )
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
            boundaries=choose_boundaries([len(row) for row in ids], count=4),
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
    import tyro

    given = list(sys.argv[1:] if arguments is None else arguments)
    name = "python -m experiments.classify"
    try:
        if given[:1] == ["predict"]:
            predict(tyro.cli(Request, prog=f"{name} predict", args=given[1:]))
        else:
            train(tyro.cli(Settings, prog=name, args=given))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
