"""The command line: train, and label."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.running.command_line import run_program
from experiments.running.console import as_text, command, how_many
from experiments.running.devices import find_devices
from experiments.running.fit_and_save import CURVES, fit_and_save
from experiments.running.loss_fitting import Fitted
from experiments.running.opening import open_run
from experiments.running.processes import chosen_folder
from experiments.running.run_settings import stored_config
from experiments.running.setting_checks import check_settings, refuse_unread, whole
from experiments.running.trained import WEIGHTS, finished_settings, load_notes, load_trained
from experiments.tag.model import build_model, guess, label_loss, make_parts
from experiments.tag.pictures import confusion, draw_confusion
from experiments.tag.sentences import Corpus, most_frequent, read_corpus
from experiments.tag.settings import Request, Settings
from rnnjax.data import DataError, Vocabulary

PROGRAM = "python -m experiments.tag"
PICTURE, VOCABULARY, LABELS = "tags.png", "vocabulary.json", "labels.json"


def train(settings: Settings) -> Fitted:
    """Train, write the run's folder, and say how to use it."""
    began = time.perf_counter()
    check_settings(settings, sentences=whole(5, 10_000_000))
    refuse_unread(settings, "without --dataset", settings.dataset is None, "sentences")
    devices = find_devices(settings.devices)
    devices.check_rows("--batch-size", settings.batch_size)
    corpus = read_corpus(settings)
    folder = chosen_folder(settings.out, f"tag-{corpus.name}")
    stored = stored_config(settings, folder)
    vocabulary = Vocabulary.fit([[word for word, _ in row] for row in corpus.train])
    labels = sorted({label for part in corpus[2:] for row in part for _, label in row})
    model = build_model(settings, len(vocabulary), len(labels))
    parts = make_parts(corpus, vocabulary, labels, settings)
    identity = {"settings": settings.written(), "sha256": corpus.sha256}
    leaves = (WEIGHTS, CURVES, PICTURE, VOCABULARY, LABELS)
    with open_run(settings, folder, stored, identity, leaves, init=model.init) as (run, saver):
        counts = [len(part) for part in corpus[2:]]
        sentences, kinds = how_many(counts[0], "sentence"), how_many(len(labels), "label")
        print(
            f"{corpus.name}: {sentences} to train, {counts[1]:,} to validate, {counts[2]:,} to "
            f"test; {kinds}"
        )
        vocabulary.save(run.path / VOCABULARY)
        (run.path / LABELS).write_text(json.dumps(labels), "utf-8")
        fitted = fit_and_save(settings, model.init, label_loss(model), parts, run, saver, devices)
        rows = [vocabulary.encode([word for word, _ in row]) for row in corpus.test]
        found = np.concatenate(guess(model, fitted.params, rows))
        given = [labels.index(label) for row in corpus.test for _, label in row]
        draw_confusion(confusion(given, found.tolist(), len(labels)), labels, run.path / PICTURE)
    _report(corpus, fitted, time.perf_counter() - began, folder)
    return fitted


def _report(corpus: Corpus, fitted: Fitted, seconds: float, folder: Path) -> None:
    test = fitted.test
    print(f"test: {test['accuracy']:.4f} of the labels right, {test['loss']:.4f} nats a word")
    usual = most_frequent(corpus.train, corpus.test)
    print(f"with the label that each word has most often: {usual:.4f}")
    print(f"{seconds:.0f} s, compiling included; {PICTURE} in {folder}")
    words = as_text(" ".join(word for word, _ in corpus.test[0]))
    print(f"try:\n  {command(*PROGRAM.split(), 'label', folder, *words)}")


def label(request: Request) -> None:
    """Label a sentence with the network in a run's folder."""
    words = request.sentence.split()
    if not words:
        raise DataError("the sentence must have a word, got none")
    settings = finished_settings(PROGRAM, Settings, request.run)
    vocabulary = Vocabulary.load(request.run / VOCABULARY)
    labels = load_notes(PROGRAM, request.run / LABELS, list[str])
    model = build_model(settings, len(vocabulary), len(labels))
    params = load_trained(model.init, request.run)
    (found,) = guess(model, params, [vocabulary.encode(words)])
    width = max(map(len, words))
    for word, number in zip(words, found, strict=True):
        note = "" if word in vocabulary.tokens else "  (not in the training sentences)"
        print(f"{word.ljust(width)}  {labels[number]}{note}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_program(PROGRAM, Settings, train, {"label": (Request, label)}, arguments)
