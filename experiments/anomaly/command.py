"""The command line: learn what is normal, judge, and watch."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.anomaly import judging
from experiments.anomaly.baselines import baselines
from experiments.anomaly.model import (
    build_model,
    make_parts,
    scale_of,
    surprise,
    surprise_loss,
)
from experiments.anomaly.pictures import draw_surprise
from experiments.anomaly.series import Data, Watched, normal_stretches, read_data
from experiments.anomaly.settings import Request, Settings
from experiments.running.command_line import run_program
from experiments.running.console import command, print_table
from experiments.running.devices import find_devices
from experiments.running.fit_and_save import CURVES, fit_and_save
from experiments.running.number_columns import listed, number_column, read_steps
from experiments.running.opening import open_run
from experiments.running.overwriting import refuse_overwriting
from experiments.running.packages import takes_part
from experiments.running.processes import chosen_folder
from experiments.running.run_settings import stored_config
from experiments.running.scaling import Scale
from experiments.running.setting_checks import check_settings, refuse_unread, share, whole
from experiments.running.trained import (
    WEIGHTS,
    finished_settings,
    kept_files,
    load_notes,
    load_trained,
)
from rnnjax.data import DataError

PROGRAM = "python -m experiments.anomaly"
PICTURE, SCORES, KNOWN = "surprise.png", "surprise.csv", "alarm.json"
NETWORK = "network"
# Steps of the causal mean over scores; each method takes what suits it on the chosen series.
WIDTHS = (1, 2, 4, 8, 16)

Figures = dict[str, dict[str, float]]  # by method and by what is measured


class Alarm(NamedTuple):
    """From which score on there is an alarm, and over how many steps scores are averaged."""

    width: int
    level: float


class Known(NamedTuple):
    """What watching needs beside the weights: JSON in the run's folder."""

    channels: list[str]
    scale: Scale
    alarm: Alarm


def train(settings: Settings) -> Figures:
    """Learn from the normal series, write the run's folder, and judge the others."""
    began = time.perf_counter()
    _check(settings)
    devices = find_devices(settings.devices)
    devices.check_rows("--batch-size", settings.batch_size)
    data = read_data(settings)
    _check_lengths(data, settings)
    folder = chosen_folder(settings.out, f"anomaly-{data.name}")
    stored = stored_config(settings, folder)
    scale = scale_of(data)
    model, parts = build_model(settings, len(data.channels)), make_parts(data, scale, settings)
    identity = {"settings": settings.written(), "sha256": data.sha256}
    leaves = (WEIGHTS, CURVES, PICTURE, SCORES, KNOWN)
    with open_run(settings, folder, stored, identity, leaves, init=model.init) as (run, saver):
        counts = [sum(len(part.values) for part in parts) for parts in data[4:]]
        print(f"{data.name}: {counts[0]:,} steps to learn from, {counts[3]:,} to judge")
        fitted = fit_and_save(
            settings, model.init, surprise_loss(model), parts, run, saver, devices,
            loss_in_words="nats a normal step",
        )  # fmt: skip
        figures, alarm, scores = _judged(data, scale, settings, model, fitted.params)
        for name, own in figures.items():
            run.write({"kind": "method", "name": name, **own})
        known = {"channels": data.channels, "scale": scale._asdict(), "alarm": alarm._asdict()}
        (run.path / KNOWN).write_text(json.dumps(known), "utf-8")
        _write_scores(run.path / SCORES, scores, [part.begin for part in data.test])
        draw_surprise(data.test[0], scores[0], alarm.level, data.kinds, run.path / PICTURE)
    _report(figures, data, scores, fitted.validation["loss"])
    print(f"{time.perf_counter() - began:.0f} s, compiling included; {PICTURE} in {folder}")
    print(f"watch a file:\n  {command(*PROGRAM.split(), 'watch', folder, 'new.csv')}")
    return figures


def _check(settings: Settings) -> None:
    check_settings(
        settings,
        normal=share(zero=False),
        series=whole(1, 100_000),
        length=whole(50, 1_000_000),
        season=whole(2),
        components=whole(1, 1000),
        window=whole(4),
    )
    refuse_unread(settings, "without --dataset", settings.dataset is None, "series", "length")
    is_file = settings.dataset not in (None, "bleeding")
    refuse_unread(settings, "with a --dataset that is a file", is_file, "label", "normal")


def _check_lengths(data: Data, settings: Settings) -> None:
    least = max(settings.window, settings.season)
    for name, part in (("validation", data.validation), ("the test", data.test)):
        shortest = min(len(series.values) for series in part)
        if shortest < least:
            raise DataError(
                f"{settings.dataset or 'a series'} must leave {least} steps or more to {name} for "
                f"--window {settings.window} and --season {settings.season}, got {shortest}"
            )


def _judged(
    data: Data, scale: Scale, settings: Settings, model: Any, params: Any
) -> tuple[Figures, Alarm, list[np.ndarray]]:
    """The figures of each method, and of the network the alarm and the scores of the test part."""
    takes_part("the isolation forest", "sklearn")

    def by_network(parts: Sequence[Watched]) -> list[np.ndarray]:
        return surprise(model, params, scale, [part.values for part in parts])

    alarm, scores = _scored(by_network, data)
    figures = {NETWORK: _figures(data, alarm, scores)}
    normal = [scale(own.values) for part in data.train for own in normal_stretches(part)]
    for name, scorer in baselines(normal, settings.season, settings.seed).items():

        def by_rule(parts: Sequence[Watched], scorer: Callable = scorer) -> list[np.ndarray]:
            return [scorer(scale(part.values)) for part in parts]

        figures[name] = _figures(data, *_scored(by_rule, data))
    return figures, alarm, scores


def _scored(
    method: Callable[[Sequence[Watched]], list[np.ndarray]], data: Data
) -> tuple[Alarm, list[np.ndarray]]:
    """The alarm that is best on the chosen series, and the scores of the test part.

    Where there are no chosen series, scores are as they are, and no normal step of validation gives
    an alarm.
    """
    if data.chosen:
        raw = method(data.chosen)
        is_fault = np.concatenate([part.fault > 0 for part in data.chosen])
        by_width = {
            width: np.concatenate([judging.smoothed(scores, width) for scores in raw])
            for width in WIDTHS
        }
        width = max(WIDTHS, key=lambda w: judging.average_precision(by_width[w], is_fault))
        alarm = Alarm(width, judging.best_alarm(by_width[width], is_fault))
    else:
        normal = [own for part in data.validation for own in normal_stretches(part)]
        alarm = Alarm(1, float(np.nextafter(max(s.max() for s in method(normal)), np.inf)))
    return alarm, [judging.smoothed(scores, alarm.width) for scores in method(data.test)]


def _figures(data: Data, alarm: Alarm, scores: list[np.ndarray]) -> dict[str, float]:
    """What is measured of one method; nothing where no fault, or nothing else, is known."""
    faults = [part.fault for part in data.test]
    is_fault, every = np.concatenate(faults) > 0, np.concatenate(scores)
    if not is_fault.any() or is_fault.all():
        return {}
    alarms = [own >= alarm.level for own in scores]
    figures = {
        "area under ROC": judging.area_under_roc(every, is_fault),
        "average precision": judging.average_precision(every, is_fault),
        "F1": judging.f1_of(np.concatenate(alarms), is_fault),
    }
    for number, kind in enumerate(data.kinds, start=1):
        figures[f"{kind} found"] = judging.faults_found(alarms, faults, number)
    return figures


def _write_scores(path: Path, scores: Sequence[np.ndarray], begins: Sequence[int]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("series", "step", "surprise"))
        for number, (own, begin) in enumerate(zip(scores, begins, strict=True)):
            rows.writerows((number, step, f"{nats:.6g}") for step, nats in enumerate(own, begin))


def _report(figures: Figures, data: Data, scores: list[np.ndarray], nats: float) -> None:
    print(f"validation: {nats:.4f} nats a normal step")
    if figures[NETWORK]:
        rows = [
            {"method": name, **{key: f"{value:.3f}" for key, value in own.items()}}
            for name, own in figures.items()
        ]
        print_table(rows)
        for name, own in figures.items():
            if (
                name != NETWORK
                and own["average precision"] >= figures[NETWORK]["average precision"]
            ):
                print(f"the network is not better than {name}")
    series = int(np.argmax([own.max() for own in scores]))
    step = int(scores[series].argmax())
    kind = data.test[series].fault[step]
    note = f", {data.kinds[kind - 1]}" if kind else ", where no fault is known"
    where = f"step {data.test[series].begin + step}"
    if len(scores) > 1:
        where = f"series {series}, {where}"
    print(f"the greatest surprise of the test: {where}{note if data.kinds else ''}")


def watch(request: Request) -> None:
    """Print the steps of a file at which the network in a run's folder gives the alarm."""
    if request.out is not None:
        own = kept_files(request.run, KNOWN)
        refuse_overwriting((request.out,), (request.file, *own), "--out")
    settings = finished_settings(PROGRAM, Settings, request.run)
    known = load_notes(PROGRAM, request.run / KNOWN, Known)
    table = read_steps(request.file, known.channels)
    missing = [name for name in known.channels if name not in table.header]
    if missing:
        raise DataError(
            f"{request.file} must have the columns {listed(known.channels)}, got none "
            f"named {missing[0]}"
        )
    values = np.stack([number_column(table, name) for name in known.channels], axis=1)
    if len(values) < 2:
        raise DataError(f"{request.file} must have 2 steps or more, got {len(values)}")
    model, alarm = build_model(settings, len(known.channels)), known.alarm
    params = load_trained(model.init, request.run)
    (raw,) = surprise(model, params, known.scale, [values])
    scores = judging.smoothed(raw, alarm.width)
    if request.out is not None:
        _write_scores(request.out, [scores], [0])
    found = np.flatnonzero(scores >= alarm.level)
    for step in found:
        print(f"{step}\t{scores[step]:.3f}")
    print(f"alarm at {len(found):,} of {len(scores):,} steps")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_program(PROGRAM, Settings, train, {"watch": (Request, watch)}, arguments)
