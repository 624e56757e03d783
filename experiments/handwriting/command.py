"""The command line: train, and write."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import rnnjax
from experiments.handwriting.model import (
    build_model,
    make_parts,
    point_loss,
    window_path,
    write,
)
from experiments.handwriting.pictures import draw_lines, svg
from experiments.handwriting.reading import read, renders, score, train_reader
from experiments.handwriting.settings import Request, Settings
from experiments.handwriting.writing import Writing, read_writing
from experiments.running import curves
from experiments.running.command_line import run_program
from experiments.running.console import command, parameter_table
from experiments.running.devices import find_devices
from experiments.running.figures import picture_beside
from experiments.running.loss_fitting import Fitted, Recipe, fit_by_loss
from experiments.running.opening import open_run
from experiments.running.processes import chosen_folder
from experiments.running.run_settings import read_config, stored_config
from experiments.running.setting_checks import Rule, check_settings, whole
from experiments.running.trained import WEIGHTS, finished_settings, load_trained
from rnnjax.weights import save_weights

PROGRAM = "python -m experiments.handwriting"
CURVES, PICTURE = "curves.png", "written.png"
_NOT_NEGATIVE = Rule("a number from 0 to 20", lambda value: 0 <= value <= 20)
# Words that the network writes are of another stream than those that the reader learns from.
_ASKED, _REAL = 2_000_003, 3_000_017


def train(settings: Settings) -> Fitted:
    """Train, write the run's folder, read back what the network writes, and say how to use it."""
    began = time.perf_counter()
    check_settings(
        settings,
        words=whole(20, 1_000_000),
        letters=whole(3, 100),
        tremor=_NOT_NEGATIVE,
        window=whole(1, 1000),
        mixture=whole(1, 1000),
        read_words=whole(0, 100_000),
        bias=_NOT_NEGATIVE,
    )
    devices = find_devices(settings.devices)
    devices.check_rows("--batch-size", settings.batch_size)
    writing = read_writing(settings)
    folder = chosen_folder(settings.out, f"handwriting-{writing.name}")
    stored = stored_config(settings, folder)
    model, parts = build_model(settings, writing.characters), make_parts(writing, settings)
    identity = {
        "settings": settings.written(),
        "sha256": writing.sha256,
        "characters": writing.characters,
    }
    leaves = (WEIGHTS, CURVES, PICTURE)
    with open_run(settings, folder, stored, identity, leaves, init=model.init) as (run, saver):
        print(f"{writing.name}: {writing.note}")
        params = model.init(jax.random.key(settings.seed))
        parameter_table(params)
        loss = point_loss(model, writing.characters, settings.layers)
        fitted = fit_by_loss(loss, params, parts, Recipe.of(settings), run, saver, devices)
        run.write({"kind": "test", "epoch": fitted.epoch, **fitted.test})
        saver.wait()
        save_weights(run.path / WEIGHTS, fitted.params)
        curves.draw(run.metrics_path, run.path / CURVES, "nats a point")
        print(
            f"validation {fitted.validation['loss']:.3f} nats a point, weights of epoch "
            f"{fitted.epoch}\ntest {fitted.test['loss']:.3f} nats a point"
        )
        _draw_some(writing, model, fitted.params, settings, run.path / PICTURE)
        if settings.read_words and writing.glyphs:
            run.write({"kind": "read", **_read_back(writing, model, fitted.params, settings)})
    print(f"{time.perf_counter() - began:.0f} s, compiling included; {PICTURE} in {folder}")
    print(f"try:\n  {command(*PROGRAM.split(), 'write', folder, writing.test[0].text)}")
    return fitted


def _draw_some(
    writing: Writing,
    model: rnnjax.SeriesModel,
    params: Any,
    settings: Settings,
    path: Path,
) -> None:
    """Texts of the test part as they are there, and as the network writes them."""
    pairs = writing.test[:3]
    texts = [pair.text for pair in pairs]
    drawn = write(model, params, texts, writing.characters, settings.layers, settings.bias, 0)
    real = {f"learnt from: {pair.text}": pair.values for pair in pairs[:1]}
    own = {f"written: {t}": d.values for t, d in zip(texts, drawn, strict=True)}
    path_of_window = window_path(
        model, params, texts[0], drawn[0].values, writing.characters, settings
    )
    draw_lines({**real, **own}, path, (texts[0], path_of_window))


def _read_back(
    writing: Writing, model: rnnjax.SeriesModel, params: Any, settings: Settings
) -> dict[str, float]:
    """The share of the letters that a reader finds in what the network wrote."""
    reader = train_reader(writing.glyphs, settings)
    count = settings.read_words
    real = renders(writing.glyphs, settings, count, _REAL)
    of_real = score([pair.text for pair in real], read(reader, [pair.values for pair in real]))
    texts = [pair.text for pair in renders(writing.glyphs, settings, count, _ASKED)]
    drawn = write(
        model, params, texts, writing.characters, settings.layers, settings.bias, settings.seed
    )
    of_own = score(texts, read(reader, [d.values for d in drawn]))
    ended = float(np.mean([d.ended for d in drawn]))
    print(
        f"read back: {of_own.accuracy:.4f} of {of_own.letters} letters that the network wrote with "
        f"bias {settings.bias:g}, {of_real.accuracy:.4f} of {of_real.letters} letters of the font; "
        f"{ended:.3f} of the words came to their end"
    )
    return {"accuracy": of_own.accuracy, "accuracy_of_font": of_real.accuracy, "ended": ended}


def write_text(request: Request) -> None:
    """Write with the network in a run's folder."""
    check_settings(request, bias=_NOT_NEGATIVE, seed=whole(0, 2**32 - 1))
    path = request.out or request.run / f"written-{request.seed}.svg"
    picture = picture_beside(path)
    settings = finished_settings(PROGRAM, Settings, request.run)
    characters = read_config(request.run)["characters"]
    model = build_model(settings, characters)
    params = load_trained(model.init, request.run)
    (drawn,) = write(
        model, params, [request.text], characters, settings.layers, request.bias, request.seed
    )
    path.write_text(svg(drawn.values, request.text), "utf-8")
    seen = window_path(model, params, request.text, drawn.values, characters, settings)
    draw_lines({request.text: drawn.values}, picture, (request.text, seen))
    print(f"{path} and {picture}: {len(drawn.values)} points")
    if not drawn.ended:
        print("note: it was cut, since it had not come to its end: a higher --bias may help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_program(PROGRAM, Settings, train, {"write": (Request, write_text)}, arguments)
