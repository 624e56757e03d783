"""A recurrent text classifier, trained and used from the command line.

Train:    python -m experiments.classify
Go on:    python -m experiments.classify --out RUN --resume
Predict:  python -m experiments.classify predict RUN "a text" ...
"""

from __future__ import annotations

import dataclasses
import itertools
import shlex
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
from experiments.running import curves
from experiments.running.checkpoints import Saver, parse_every
from experiments.running.console import parameter_table
from experiments.running.fitting import Fitted, Recipe, fit
from experiments.running.interrupts import Interrupted
from experiments.running.run_folder import CONFIG, RunFolder, check_usable, environment, plain
from experiments.running.run_settings import read_config, require_same, settings_from
from experiments.running.text import Encoder, Splits, fit_encoder, hold_out, make_batches, take
from rnnjax import checked
from rnnjax.checkpoint import CheckpointError, Checkpoints
from rnnjax.data import BucketedBatches, DataError, Dataset, Examples, Vocabulary, load
from rnnjax.training import NonFiniteError
from rnnjax.weights import load_weights, save_weights

CELLS = {"vanilla": rnnjax.vanilla, "lstm": rnnjax.lstm, "gru": rnnjax.gru}
WEIGHTS, VOCABULARY, CURVES = "weights.safetensors", "vocabulary.json", "curves.png"
_MOST_LAYERS = 100
PROGRAM = "python -m experiments.classify"
# A run that goes on with others of these comes to what it would have come to with them all along.
MAY_CHANGE = ("data_dir", "out", "epochs", "prefetch", "checkpoint_every", "keep")


@dataclass(frozen=True)
class Settings:
    """Train a recurrent classifier of texts."""

    dataset: str = "rotten_tomatoes"
    """rotten_tomatoes needs no network: its sentences come inside a package. A path, own.csv, is
    your own file with the columns text and label."""
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
    keep_end: Literal["head", "tail"] = "head"
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
    """Texts in a batch."""
    batching: Literal["bucketed", "packed", "padded"] = "bucketed"
    """Texts of like length together; several in a row; or all padded to the longest."""
    buckets: int = 4
    """Lengths that bucketed batches are padded to, which is how many shapes are compiled."""
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
    max_skipped: int = 20
    """End after so many steps in a row whose loss or gradient is NaN or infinite."""
    average_decay: float = 0.99
    """Of the running average of the parameters, which is what is kept: small batches are noisy."""
    seed: int = 0
    """Decides the split, the initial weights, the order of examples and dropout."""
    repeat: int = 1
    """Train so many times, each with the next seed, and report the mean and the spread."""
    prefetch: int = 2
    """Batches made ahead in a thread; 0 for none. It changes the time, never the result."""

    out: Path | None = None
    """Folder of the run; by default runs/classify-DATASET-TIME."""
    checkpoint_every: str = "60s"
    """Save after so many steps (500) or seconds (60s), besides at the end of every epoch."""
    keep: int = 3
    """Checkpoints that stay on disk."""
    resume: bool = False
    """Go on with the run in --out from its newest good checkpoint, with the settings it has."""
    replace: bool = False
    """Delete the run in --out, and begin anew."""
    debug_checks: bool = False
    """Look at every value while it runs, and end at the first wrong one: slow."""

    @property
    def existing(self) -> Literal["refuse", "resume", "replace"]:
        """What to do with a folder that is not empty."""
        return "resume" if self.resume else "replace" if self.replace else "refuse"

    def written(self) -> dict[str, Any]:
        """What config.json keeps: all but what is of the day, such as what to do with a folder."""
        values = plain(dataclasses.asdict(self))
        return {name: value for name, value in values.items() if name not in OF_THE_DAY}


OF_THE_DAY = ("resume", "replace", "debug_checks")


@dataclass(frozen=True)
class Request:
    """Label texts with a trained classifier."""

    run: Positional[Path]
    """Folder of the run."""
    texts: Positional[tuple[str, ...]] = ()
    """The texts; without any, one is read from each line of standard input."""
    debug_checks: bool = False
    """Look at every value while it runs, and end at the first wrong one."""


def build_model(settings: Settings, vocab_size: int, num_classes: int) -> rnnjax.Model:
    """The classifier that the settings describe."""
    if not 1 <= settings.layers <= _MOST_LAYERS:
        raise DataError(f"layers: expected 1 to {_MOST_LAYERS}, got {settings.layers}")
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
    """What a run came to: its test accuracy, and the seconds of this process, loading included."""

    accuracy: float
    seconds: float


def train(settings: Settings, folder: Path) -> Outcome:
    """Train, write the run's folder, and say how to use it."""
    began = time.perf_counter()
    stored = stored_config(settings, folder)
    every = parse_every(settings.checkpoint_every)
    dataset = load(settings.dataset, data_dir=settings.data_dir, seed=settings.seed)
    training, validation = hold_out(dataset, settings.validation, settings.seed)
    parts = (take(training, settings.take), validation, dataset.test)
    encode, splits = prepare(settings, parts, len(dataset.label_names))
    identity = describe(settings, dataset, parts)
    config = {"environment": environment(), **(stored or {}), **identity}
    if stored is not None:
        require_same(stored, config, MAY_CHANGE, str(folder))
        note_environment(config["environment"])
    leaves = (WEIGHTS, VOCABULARY, CURVES)
    with (
        RunFolder(folder, config, settings.existing, leaves) as run,
        Checkpoints(run.checkpoints_path, keep=settings.keep) as checkpoints,
    ):
        announce(dataset, parts, splits)
        identity["vocabulary"] = list(encode.vocabulary.tokens)
        saver = Saver(checkpoints, run, identity, may_change=MAY_CHANGE, every=every)
        fitted = fit_model(settings, len(dataset.label_names), encode, splits, run, saver)
        checkpoints.wait()
        encode.vocabulary.save(folder / VOCABULARY)
        save_weights(folder / WEIGHTS, fitted.params)
        curves.draw(run.metrics_path, folder / CURVES)
    seconds = time.perf_counter() - began
    print(f"test accuracy {fitted.test['accuracy']:.4f}, weights of epoch {fitted.epoch}")
    since = "in all" if stored is None else "since it was resumed"
    print(f"{seconds:.0f} s {since}, compiling included; files in {folder}")
    print(f'try: {PROGRAM} predict {folder} "a text of your own"')
    return Outcome(fitted.test["accuracy"], seconds)


def fit_model(
    settings: Settings,
    num_classes: int,
    encode: Encoder,
    splits: Splits,
    run: RunFolder,
    saver: Saver,
) -> Fitted:
    """Make the model that the settings describe, and train it as they say."""
    model = build_model(settings, len(encode.vocabulary), num_classes)
    init_key, step_key = jax.random.split(jax.random.key(settings.seed))
    params = model.init(init_key)
    parameter_table(params)
    return fit(model, params, splits, make_recipe(settings), step_key, run, saver)


def announce(dataset: Dataset, parts: Sequence[Examples], splits: Splits) -> None:
    """Say what is trained on."""
    print(dataset.name, *filter(None, [dataset.note]), sep=", ")
    counts = (len(part.texts) for part in parts)
    print("{} training, {} validation, {} test texts".format(*counts), end=", ")
    print(f"padding {splits.train.padding_fraction:.1%} in shapes {splits.train.shapes}")


def stored_config(settings: Settings, folder: Path) -> dict[str, Any] | None:
    """The config.json of the run to go on with, if there is one and its settings are the same."""
    check_usable(folder, settings.existing)
    if not settings.resume or not (folder / CONFIG).is_file():
        return None
    stored = read_config(folder)
    require_same(stored["settings"], settings.written(), MAY_CHANGE, str(folder))
    return stored


def note_environment(stored: dict[str, Any]) -> None:
    """Say what is not as it was when the run began, since equal bits are then not to be had."""
    now = environment()
    changed = [f"{n} {stored.get(n)} then, {now[n]} now" for n in now if now[n] != stored.get(n)]
    if changed:
        print(f"note: {'; '.join(changed)}: the last bits of the numbers may differ")


def describe(settings: Settings, dataset: Dataset, parts: Sequence[Examples]) -> dict[str, Any]:
    """What makes a run the one that it is, as JSON holds it."""
    counts = [len(part.texts) for part in parts]
    return plain(
        {
            "settings": settings.written(),
            "data": {"sha256": dataset.sha256, "note": dataset.note, "examples": counts},
            "label_names": dataset.label_names,
        }
    )


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
        keep=settings.keep_end,
    )
    splits = make_batches(
        encode,
        parts,
        num_classes=num_classes,
        batch_size=settings.batch_size,
        buckets=settings.buckets,
        seed=settings.seed,
        batching=settings.batching,
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
        prefetch=settings.prefetch,
        max_skipped=settings.max_skipped,
        debug_checks=settings.debug_checks,
    )


def train_all(settings: Settings) -> None:
    """Train with one seed, or with several and report how far they lie apart."""
    if settings.repeat < 1:
        raise DataError(f"repeat: expected 1 or more, got {settings.repeat}")
    name = f"classify-{Path(settings.dataset).name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = settings.out or Path("runs", name)
    settings = dataclasses.replace(settings, out=folder)
    if settings.resume and not (folder / CONFIG).exists():
        print(f"{folder}: nothing to resume yet, beginning at the first step")
    try:
        if settings.repeat == 1:
            train(settings, folder)
        else:
            train_seeds(settings, folder)
    except (Interrupted, KeyboardInterrupt) as stop:
        saved = stop if isinstance(stop, Interrupted) else "stopped at once"
        print(f"{saved}; go on with:\n  {PROGRAM} --out {shlex.quote(str(folder))} --resume")
        raise


def train_seeds(settings: Settings, folder: Path) -> None:
    """Train with several seeds, each in a folder of its own within that of them all."""
    stored_config(settings, folder)
    config = {"settings": settings.written(), "environment": environment()}
    with RunFolder(folder, config, settings.existing) as runs:
        runs.rewind(None)
        outcomes = []
        for seed in range(settings.seed, settings.seed + settings.repeat):
            inner = folder / f"seed-{seed}"
            outcomes.append(
                train(dataclasses.replace(settings, seed=seed, repeat=1, out=inner), inner)
            )
            runs.update_config()
            runs.write({"kind": "seed", "seed": seed, "accuracy": outcomes[-1].accuracy})
    accuracies, seconds = zip(*outcomes, strict=True)
    # A run that was resumed knows the seconds of its last part alone.
    each = "" if settings.resume else f", {np.mean(seconds):.0f} s each"
    print(
        f"{settings.repeat} seeds: test accuracy {np.mean(accuracies):.4f} "
        f"(standard deviation {np.std(accuracies, ddof=1):.4f}, "
        f"{min(accuracies):.4f} to {max(accuracies):.4f}){each}"
    )


class Predictor:
    """A trained classifier, read from the folder of its run."""

    def __init__(self, folder: Path, debug_checks: bool = False) -> None:
        config = read_config(folder)
        settings = read_settings(config, folder)
        if settings.repeat > 1:
            raise DataError(f"{folder}: expected one run, found several; choose a seed-... in it")
        vocabulary = Vocabulary.load(folder / VOCABULARY)
        self.label_names: list[str] = config["label_names"]
        self._encode = Encoder(
            settings.tokenizer, vocabulary, settings.max_length, settings.keep_end
        )
        # The same few lengths for every chunk of texts, so that a long stream compiles no more.
        longest = settings.max_length
        doubled = [8 << i for i in range(longest.bit_length()) if 8 << i < longest]
        self._boundaries = (*doubled, longest)
        # And the same few numbers of rows, so that calls of 1, 2, 3 ... texts do not either.
        self._batch_sizes = (1, 8, 64)
        self._model = build_model(settings, len(vocabulary), len(self.label_names))
        shapes = jax.eval_shape(self._model.init, jax.random.key(0))
        self._params = load_weights(folder / WEIGHTS, shapes)
        self._probabilities = jax.jit(
            lambda params, tokens, lengths: jax.nn.softmax(
                self._model.apply(params, tokens, lengths), axis=-1
            )
        )
        if debug_checks:
            self._probabilities = checked(self._probabilities)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The probability [N, C] of every label for each text."""
        ids = self._encode(texts)
        batches = BucketedBatches(
            ids,
            [0] * len(ids),
            batch_size=next(size for size in self._batch_sizes if size >= min(64, len(ids))),
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
    predictor, count = Predictor(request.run, request.debug_checks), 0
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


def read_settings(config: dict[str, Any], folder: Path) -> Settings:
    """The settings in config.json; those of the day are as by default."""
    of_the_day = dict.fromkeys(OF_THE_DAY, False)
    return settings_from(Settings, {**config["settings"], **of_the_day}, folder / CONFIG)


def parse_settings(given: Sequence[str]) -> Settings:
    """The settings on the command line; when resuming, the rest are those of the run."""
    settings = tyro.cli(Settings, prog=PROGRAM, args=given)
    if not settings.resume:
        return settings
    if settings.replace:
        raise DataError("expected one of --resume and --replace, got both")
    if settings.out is None:
        raise DataError("resume: expected the folder of the run in --out, got none")
    if not (settings.out / CONFIG).is_file():
        return settings
    stored = read_settings(read_config(settings.out), settings.out)
    return tyro.cli(Settings, prog=PROGRAM, args=given, default=stored)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["predict"]:
            predict(tyro.cli(Request, prog=f"{PROGRAM} predict", args=given[1:]))
        else:
            train_all(parse_settings(given))
    except (ValueError, OSError, CheckpointError, NonFiniteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        return stop.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
