"""A recurrent text classifier, trained and used from the command line.

Run:      python -m experiments.classify
Expect:   test accuracy 0.7571 ± 0.0090 over seeds 0, 1 and 2 (--repeat 3), each ended by patience
          (after epochs 14, 13 and 16); on 2 cores of an AMD EPYC, 29 November 2026
Go on:    python -m experiments.classify --out RUN --resume
Own data: python -m experiments.classify --dataset own.csv --text-column review --label-column mood
Predict:  python -m experiments.classify predict RUN "a text" ...
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.running import class_report, curves
from experiments.running.checkpoints import Saver
from experiments.running.classifier import PROGRAM, VOCABULARY, WEIGHTS, Settings, build_model
from experiments.running.classifier import Predictor as Predictor
from experiments.running.classifier_fitting import Fitted, Recipe, fit
from experiments.running.command_line import run_program
from experiments.running.console import command, how_many, parameter_table, wrapped
from experiments.running.data_folder import check_folder, lies_elsewhere
from experiments.running.devices import Devices, find_devices
from experiments.running.interrupts import resumable
from experiments.running.opening import open_run
from experiments.running.predicting import Request, predict
from experiments.running.processes import chosen_folder, own_folder
from experiments.running.run_folder import RunFolder, environment, plain
from experiments.running.run_settings import stored_config
from experiments.running.setting_checks import check_seeds, check_settings, refuse_unread
from experiments.running.text import Encoder, Splits, fit_encoder, hold_out, make_batches, take
from rnnjax.data import NAMES, DataError, Dataset, Examples, data_folder, load
from rnnjax.data.tables import SUFFIXES
from rnnjax.weights import save_weights

CURVES = "curves.png"


class Outcome(NamedTuple):
    """What a run came to: its test accuracy, and the seconds of this process, loading included."""

    accuracy: float
    seconds: float


def train(settings: Settings, folder: Path) -> Outcome:
    """Train, write the run's folder, and say how to use it."""
    began = time.perf_counter()
    stored = stored_config(settings, folder)
    devices = find_devices(settings.devices)
    dataset, parts = read_parts(settings)
    encode, splits = prepare(settings, parts, len(dataset.label_names), devices.number)
    devices.check_rows("--batch-size", splits.train.shapes[0][0])
    model = build_model(settings, len(encode.vocabulary), len(dataset.label_names))
    identity = describe(settings, dataset, parts)
    vocabulary = {"vocabulary": list(encode.vocabulary.tokens)}
    leaves = (WEIGHTS, VOCABULARY, CURVES)
    opened = open_run(settings, folder, stored, identity, leaves, vocabulary, init=model.init)
    with opened as (run, saver):
        announce(dataset, parts, splits, len(encode.vocabulary))
        fitted = fit_model(settings, len(dataset.label_names), encode, splits, run, saver, devices)
        saver.wait()
        encode.vocabulary.save(run.path / VOCABULARY)
        save_weights(run.path / WEIGHTS, fitted.params)
        curves.draw(run.metrics_path, run.path / CURVES)
    seconds = time.perf_counter() - began
    since = "in all" if stored is None else "since it was resumed"
    report(settings, fitted, dataset.label_names, folder)
    print(f"{seconds:.0f} s {since}, compiling included; files in")
    print(f"  {folder}")
    print(f"try:\n  {command(*PROGRAM.split(), 'predict', folder, 'a text of your own')}")
    return Outcome(fitted.test["accuracy"], seconds)


def read_parts(settings: Settings) -> tuple[Dataset, tuple[Examples, Examples, Examples]]:
    """The data of the settings, and what trains, validates and tests.

    Raises:
        DataError: whatever is wrong with them.
    """
    if settings.resume and is_path(settings.dataset) and not Path(settings.dataset).is_file():
        raise DataError(
            f"--dataset must be where the data of this run are now, got {settings.dataset}, which "
            "is not there any more"
        )
    if settings.text_column == settings.label_column:
        raise DataError(
            f"--text-column and --label-column must be two columns, got {settings.text_column!r}"
        )
    if Path(settings.dataset).is_file() and not settings.dataset.lower().endswith(SUFFIXES):
        endings = ", ".join(SUFFIXES)
        raise DataError(f"--dataset must end in one of {endings}, got {settings.dataset}")
    dataset = load(
        settings.dataset,
        data_dir=settings.data_dir,
        seed=settings.seed,
        text=settings.text_column,
        label=settings.label_column,
        separator=settings.separator,
        quoting=settings.quoting,
    )
    training, validation = hold_out(dataset, settings.validation, settings.seed)
    return dataset, (take(training, settings.take), validation, dataset.test)


def is_path(dataset: str) -> bool:
    """Whether the data set is a file of the user's own, and no name."""
    return dataset not in NAMES


def fit_model(
    settings: Settings,
    num_classes: int,
    encode: Encoder,
    splits: Splits,
    run: RunFolder,
    saver: Saver,
    devices: Devices,
) -> Fitted:
    """Make the model that the settings describe, and train it as they say."""
    model = build_model(settings, len(encode.vocabulary), num_classes)
    init_key, step_key = jax.random.split(jax.random.key(settings.seed))
    params = model.init(init_key)
    parameter_table(params)
    return fit(model, params, splits, make_recipe(settings), step_key, run, saver, devices)


def announce(dataset: Dataset, parts: Sequence[Examples], splits: Splits, vocabulary: int) -> None:
    """Say what is trained on, and what to beware of."""
    print(dataset.name, *filter(None, [dataset.note]), sep=", ")
    names = ("training", "validation", "test")
    named: dict[str, Examples] = dict(zip(names, parts, strict=True))
    class_report.print_counts(named, dataset.label_names)
    batches = splits.train
    rows, lengths = batches.shapes[0][0], ", ".join(str(shape[1]) for shape in batches.shapes)
    texts, words = how_many(rows, "text"), vocabulary - 2  # but for padding and unknown words
    print(f"batches of {texts} padded to {lengths} words; {words:,} different ones")
    print(f"{batches.padding_fraction:.1%} of the steps of an epoch are padding")
    for warning in class_report.warnings(named, dataset.label_names, words):
        print(wrapped(f"warning: {warning}"))


def report(settings: Settings, fitted: Fitted, label_names: Sequence[str], folder: Path) -> None:
    """Say what the run came to, and why it ended."""
    if not fitted.was_cut:
        passed = fitted.last_epoch - fitted.epoch
        epochs = how_many(passed, "epoch")
        print(f"ended after epoch {fitted.last_epoch}: validation did not rise for {epochs}")
    else:
        print(f"ended at the bound of {how_many(settings.epochs, 'epoch')} (--epochs)")
        print("validation may still be rising; for more epochs:")
        more = ("--out", folder, "--resume", "--epochs", str(2 * settings.epochs))
        print(f"  {command(*PROGRAM.split(), *more)}")
    class_report.print_recalls(fitted.classes, label_names)
    figures = fitted.test
    print(f"test accuracy {figures['accuracy']:.4f}, macro F1 {figures['macro_f1']:.4f}", end="")
    print(f", weights of epoch {fitted.epoch}")
    largest = class_report.shown(label_names[fitted.chance.label])
    print(f"always saying {largest} would have accuracy {fitted.chance.accuracy:.4f}")


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
    settings: Settings, parts: Sequence[Examples], num_classes: int, devices: int = 1
) -> tuple[Encoder, Splits]:
    """The encoder fitted on the first part, the training examples, and batches of all three, which
    so many devices divide."""
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
        multiple_of=devices,
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
    check_settings(settings)
    of_own_files = settings.dataset == "local" or is_path(settings.dataset)
    columns = ("text_column", "label_column", "separator", "quoting")
    refuse_unread(settings, "with a --dataset of your own files", of_own_files, *columns)
    bucketed = settings.batching == "bucketed"
    refuse_unread(settings, "with --batching bucketed", bucketed, "buckets")
    check_folder(settings)
    check_seeds(settings, "repeat")
    settings = located(settings)
    folder = settings.out
    assert folder is not None  # it was just given
    if settings.repeat == 1:
        train(settings, folder)
    else:
        with resumable(folder):
            train_seeds(settings, folder)


def located(settings: Settings) -> Settings:
    """The settings with a folder for the run, and with places that hold in every folder.

    A run that is resumed from elsewhere must find its data again.
    """
    dataset = settings.dataset
    data_dir = None if lies_elsewhere(dataset) else data_folder(settings.data_dir)
    return dataclasses.replace(
        settings,
        out=chosen_folder(settings.out, f"classify-{Path(settings.dataset).name}"),
        data_dir=data_dir.absolute() if data_dir else None,
        dataset=str(Path(dataset).absolute()) if Path(dataset).is_file() else dataset,
    )


def train_seeds(settings: Settings, folder: Path) -> None:
    """Train with several seeds, each in a folder of its own within that of them all."""
    stored_config(settings, folder)
    read_parts(settings)  # what is wrong with the data is said before there is a folder
    config = {"settings": settings.written(), "environment": environment()}
    with own_folder(folder) as place, RunFolder(place, config, settings.existing) as runs:
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
        wrapped(
            f"{settings.repeat} seeds: test accuracy {np.mean(accuracies):.4f} "
            f"(standard deviation {np.std(accuracies, ddof=1):.4f}, "
            f"{min(accuracies):.4f} to {max(accuracies):.4f}){each}"
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_program(PROGRAM, Settings, train_all, {"predict": (Request, predict)}, arguments)


if __name__ == "__main__":
    sys.exit(main())
