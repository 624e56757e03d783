"""The command line: train, forecast, compare."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.forecast.baselines import (
    coverage,
    last_value,
    linear_autoregression,
    mase,
    seasonal_naive,
)
from experiments.forecast.calibration import band_shift, disjoint_futures, least_futures, shifted
from experiments.forecast.model import build_network, forecast, make_parts, pinball
from experiments.forecast.pictures import Shown, draw_forecasts
from experiments.forecast.series import PACKAGED, Windows, cut, read_ends, read_sets
from experiments.forecast.settings import Request, Settings
from experiments.running.command_line import run_program
from experiments.running.console import command, how_many, print_table, wrapped
from experiments.running.devices import find_devices
from experiments.running.fit_and_save import CURVES, fit_and_save
from experiments.running.opening import open_run
from experiments.running.processes import chosen_folder
from experiments.running.run_settings import stored_config
from experiments.running.setting_checks import check_settings, refuse_unread, whole
from experiments.running.trained import WEIGHTS, finished_settings, load_notes, load_trained
from rnnjax.data import DataError

PROGRAM = "python -m experiments.forecast"
PICTURE, KNOWN = "forecasts.png", "band.json"
BASELINES = ("last value", "seasonal naive", "linear autoregression")

# By set: the error of each forecast, "coverage", "coverage as learnt", "band shift", "futures".
Figures = dict[str, dict[str, float]]


class Known(NamedTuple):
    """What `predict` must know beside the weights.

    Attributes:
        shift: by how many spreads of the past the ends of the band are moved out.
    """

    shift: float


def train(settings: Settings) -> Figures:
    """Train, write the run's folder, and compare on the test part of every set."""
    began = time.perf_counter()
    _check(settings)
    devices = find_devices(settings.devices)
    devices.check_rows("--batch-size", settings.batch_size)
    sets, sha256 = read_sets(settings)
    name = Path(settings.dataset).stem if settings.dataset else "generated"
    folder = chosen_folder(settings.out, f"forecast-{name}")
    stored = stored_config(settings, folder)
    windows = {name: cut(series, settings) for name, series in sets.items()}
    network, parts = build_network(settings), make_parts(list(windows.values()), settings)
    identity = {"settings": settings.written(), "sha256": sha256}
    leaves = (WEIGHTS, CURVES, PICTURE, KNOWN)
    with open_run(settings, folder, stored, identity, leaves, init=network.init) as (run, saver):
        for name, series in sets.items():
            own, count = how_many(len(series), "series"), len(windows[name].train.past)
            print(f"{name}: {own}, {how_many(count, 'window')} to train on")
        fitted = fit_and_save(
            settings, network.init, pinball(network), parts, run, saver, devices,
            loss_in_words="pinball loss",
        )  # fmt: skip
        figures, panels = {}, {}
        for name, parts_of_set in windows.items():
            figures[name], panels[name] = compare(network, fitted.params, parts_of_set, settings)
            run.write({"kind": "set", "name": name, **figures[name]})
        draw_forecasts(panels, run.path / PICTURE)
        if settings.dataset is not None:
            (own,) = figures.values()
            known = Known(own["band shift"])._asdict()
            (run.path / KNOWN).write_text(json.dumps(known), "utf-8")
    _report(figures)
    print(f"{time.perf_counter() - began:.0f} s, compiling included; {PICTURE} in {folder}")
    if settings.dataset is not None:
        file = "new.csv" if settings.dataset in PACKAGED else settings.dataset
        line = command(*PROGRAM.split(), "predict", folder, file)
        print(f"what comes after its last row:\n  {line}")
    return figures


def compare(
    network: Any, params: Any, windows: Windows, settings: Settings
) -> tuple[dict[str, float], Shown]:
    """The error of every forecast in the test part of a set, and one window to look at.

    The band is that of the network, moved as far as it must be to hold in the validation part where
    that is long enough.
    """
    test = windows.test
    chosen = forecast(network, params, windows.validation)
    shift = band_shift(chosen, windows.validation)
    raw = forecast(network, params, test)
    quantiles = shifted(raw, test, shift)
    low, median, high = (quantiles[..., k] for k in range(3))
    naive = seasonal_naive(test, settings.season)
    baselines = (
        last_value(test, settings.season),
        naive,
        linear_autoregression(windows.train, test),
    )
    figures = {"network": mase(median, test)}
    figures |= {name: mase(f, test) for name, f in zip(BASELINES, baselines, strict=True)}
    figures["coverage"] = coverage(low, high, test)
    figures["coverage as learnt"] = coverage(raw[..., 0], raw[..., 2], test)
    figures["band shift"] = shift
    figures["futures"] = disjoint_futures(windows.validation)
    shown = Shown(test.past[0], test.future[0], quantiles[0], naive[0])
    return figures, shown


def _report(figures: Figures) -> None:
    print("mean absolute error in the test part; 1 is the seasonal naive one in training")
    rows = [
        {
            "set": name,
            **{key: f"{own[key]:.3f}" for key in ("network", *BASELINES)},
            "in the 80 % band": f"{own['coverage']:.3f}",
        }
        for name, own in figures.items()
    ]
    print_table(rows)
    for name, own in figures.items():
        if own["futures"] < least_futures():
            print(
                wrapped(
                    f"{name}: the band is as it was learnt: it takes {least_futures()} futures "
                    "that do not overlap to say how wide it must be, and the validation part has "
                    f"{own['futures']}"
                )
            )
        better = [baseline for baseline in BASELINES if own[baseline] <= own["network"]]
        if better:
            *others, last = better
            listed = f"{', '.join(others)} and {last}" if others else last
            print(wrapped(f"{name}: the network is not better than {listed}"))


def _check(settings: Settings) -> None:
    check_settings(
        settings,
        series=whole(1, 100_000),
        length=whole(10, 1_000_000),
        season=whole(1),
        window=whole(2),
        horizon=whole(1),
    )
    refuse_unread(settings, "without --dataset", settings.dataset is None, "series", "length")
    is_file = settings.dataset is not None and settings.dataset not in PACKAGED
    refuse_unread(settings, "with a --dataset that is a file", is_file, "column")
    if settings.window < settings.season:
        raise DataError(
            f"--window must be at least --season, {settings.season}, got {settings.window}"
        )


def predict(request: Request) -> None:
    """Print the median and the band of the values after the end of each series of a file."""
    settings = finished_settings(PROGRAM, Settings, request.run)
    if settings.dataset is None:
        raise DataError(f"{request.run} must be a run with --dataset, got one on generated series")
    known = load_notes(PROGRAM, request.run / KNOWN, Known)
    names, ends = read_ends(request.file, settings)
    network = build_network(settings)
    raw = forecast(network, load_trained(network.init, request.run), ends)
    for name, steps in zip(names, shifted(raw, ends, known.shift), strict=True):
        for step, quantiles in enumerate(steps, 1):
            print(name, step, *(f"{value:.6g}" for value in quantiles), sep="\t")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_program(PROGRAM, Settings, train, {"predict": (Request, predict)}, arguments)
