"""The command line: train, and label."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.recognize.files import in_order, read_file
from experiments.recognize.model import (
    Known,
    build_network,
    label_loss,
    make_parts,
    probabilities,
)
from experiments.recognize.pictures import draw_kinds
from experiments.recognize.series import PACKAGES, Series, read_series
from experiments.recognize.settings import Request, Settings
from experiments.running.command_line import run_program
from experiments.running.console import command, how_many, wrapped
from experiments.running.devices import find_devices
from experiments.running.fit_and_save import CURVES, fit_and_save
from experiments.running.loss_fitting import Fitted
from experiments.running.number_columns import listed
from experiments.running.opening import open_run
from experiments.running.predicting import one_line
from experiments.running.processes import chosen_folder
from experiments.running.run_settings import stored_config
from experiments.running.setting_checks import at_least, check_settings, refuse_unread, share, whole
from experiments.running.trained import WEIGHTS, finished_settings, load_notes, load_trained
from rnnjax.data import DataError

PROGRAM = "python -m experiments.recognize"
PICTURE, KNOWN = "kinds.png", "series.json"


def train(settings: Settings, series: Series | None = None) -> Fitted:
    """Train, write the run's folder, and say how to use it.

    Args:
        settings: of the run.
        series: what is learnt from and judged by; if None, what the settings name.
    """
    began = time.perf_counter()
    check_settings(
        settings, series=whole(10, 1_000_000), noise=at_least(0), validation=share(zero=False)
    )
    is_file = settings.dataset is not None and settings.dataset not in PACKAGES
    refuse_unread(settings, "without --dataset", settings.dataset is None, "series")
    refuse_unread(settings, "with a --dataset that is a file", is_file, "test")
    devices = find_devices(settings.devices)
    devices.check_rows("--batch-size", settings.batch_size)
    series = read_series(settings) if series is None else series
    folder = chosen_folder(settings.out, f"recognize-{series.name}")
    stored = stored_config(settings, folder)
    known = Known.of(series)
    network = build_network(settings, known)
    parts = make_parts(series, known, settings)
    identity = {"settings": settings.written(), "sha256": series.sha256}
    leaves = (WEIGHTS, CURVES, PICTURE, KNOWN)
    with open_run(settings, folder, stored, identity, leaves, init=network.init) as (run, saver):
        _describe(series, known)
        (run.path / KNOWN).write_text(json.dumps(known._asdict()), "utf-8")
        loss_fn = label_loss(network, settings.noise)
        fitted = fit_and_save(settings, network.init, loss_fn, parts, run, saver, devices)
        guessed = probabilities(network, fitted.params, known, series.test.rows).argmax(-1)
        draw_kinds(series.test, guessed, known.labels, known.channels, run.path / PICTURE)
    _report(series, fitted, time.perf_counter() - began, folder)
    return fitted


def _describe(series: Series, known: Known) -> None:
    counts = [len(part.rows) for part in series.parts]
    print(
        wrapped(
            f"{series.name}: {counts[0]:,} series to train, {counts[1]:,} to validate, "
            f"{counts[2]:,} to test; {how_many(len(known.labels), 'label')}, "
            f"{how_many(len(known.mean), 'channel')}, up to {how_many(known.longest, 'step')}"
        )
    )
    learnt = set(series.train.classes)
    unseen = [label for number, label in enumerate(known.labels) if number not in learnt]
    if unseen:
        print(
            wrapped(f"warning: of these labels no series is among those to train: {listed(unseen)}")
        )


def _report(series: Series, fitted: Fitted, seconds: float, folder: Path) -> None:
    print(f"validation: {fitted.validation['accuracy']:.4f} of the labels right")
    print(
        f"test: {fitted.test['accuracy']:.4f} of the labels right, {fitted.test['loss']:.4f} nats"
    )
    usual = Counter(series.train.classes).most_common(1)[0][0]
    chance = series.test.classes.count(usual) / len(series.test.classes)
    print(f"with the most frequent label: {chance:.4f}")
    print(f"{seconds:.0f} s, compiling included; {PICTURE} in {folder}")
    print(f"label a file:\n  {command(*PROGRAM.split(), 'predict', folder, 'new.csv')}")


def predict(request: Request) -> None:
    """Label the series of a file with the network in a run's folder."""
    settings = finished_settings(PROGRAM, Settings, request.run)
    known = load_notes(PROGRAM, request.run / KNOWN, Known)
    file = read_file(request.file)
    table = in_order(file, known.channels, len(known.mean), str(request.file))
    longest = max(map(len, table.rows))
    if settings.pooling == "places" and longest > known.longest:
        raise DataError(
            f"{request.file} must have series of {how_many(known.longest, 'step')} at most, since "
            f"each place has weights of its own, got one of {longest}"
        )
    network = build_network(settings, known)
    params = load_trained(network.init, request.run)
    found = probabilities(network, params, known, table.rows)
    for name, row in zip(table.names, found, strict=True):
        best = int(row.argmax())
        print(f"{one_line(name)}\t{one_line(known.labels[best])}\t{row[best]:.3f}")
    if table.labels is not None:
        right = np.array([known.labels[i] for i in found.argmax(-1)]) == np.array(table.labels)
        print(f"{int(right.sum()):,} of {len(right):,} as the file says")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_program(PROGRAM, Settings, train, {"predict": (Request, predict)}, arguments)
