"""The command line: train, and write."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.handwriting.model import (
    Writer,
    build_model,
    joined_text,
    make_parts,
    point_loss,
    window_path,
    write,
)
from experiments.handwriting.pictures import draw_lines, svg
from experiments.handwriting.reading import read, renders, score, train_reader
from experiments.handwriting.settings import Request, Settings
from experiments.handwriting.writing import (
    Writing,
    Written,
    as_line,
    points_of,
    read_sample,
    read_writing,
)
from experiments.running.command_line import run_program
from experiments.running.console import as_text, command, how_many
from experiments.running.devices import find_devices
from experiments.running.figures import picture_beside
from experiments.running.fit_and_save import CURVES, fit_and_save
from experiments.running.loss_fitting import Fitted
from experiments.running.opening import open_run
from experiments.running.overwriting import refuse_overwriting
from experiments.running.processes import chosen_folder
from experiments.running.run_settings import config_value, stored_config
from experiments.running.setting_checks import Rule, check_settings, refuse_unread, whole
from experiments.running.trained import WEIGHTS, finished_settings, kept_files, load_trained
from rnnjax.data import DataError

PROGRAM = "python -m experiments.handwriting"
PICTURE = "written.png"
_UP_TO_20 = Rule("a number from 0 to 20", lambda value: 0 <= value <= 20)
# Which words are read back, beside the seed: others than the network or the reader learnt from.
_ASKED, _REAL = 2_000_003, 3_000_017


def train(settings: Settings) -> Fitted:
    """Train, write the run's folder, read back what the network writes, and say how to use it."""
    began = time.perf_counter()
    _check(settings)
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
        loss_fn = point_loss(model, writing.characters, settings.layers)
        fitted = fit_and_save(
            settings, model.init, loss_fn, parts, run, saver, devices, loss_in_words="nats a point"
        )
        print(
            f"validation {fitted.validation['loss']:.3f} nats a point, weights of epoch "
            f"{fitted.epoch}\ntest {fitted.test['loss']:.3f} nats a point"
        )
        writer = Writer(model, fitted.params, writing.characters, settings)
        _draw_some(writing, writer, run.path / PICTURE)
        if settings.read_words and writing.glyphs:
            run.write({"kind": "read", **_read_back(writing, writer)})
    print(f"{time.perf_counter() - began:.0f} s, compiling included; {PICTURE} in {folder}")
    text = as_text(writing.test[0].text)
    print(f"try:\n  {command(*PROGRAM.split(), 'write', folder, *text)}")
    return fitted


def _check(settings: Settings) -> None:
    check_settings(
        settings,
        words=whole(20, 1_000_000),
        letters=whole(3, 100),
        tremor=_UP_TO_20,
        window=whole(1, 1000),
        mixture=whole(1, 1000),
        read_words=whole(0, 100_000),
        bias=_UP_TO_20,
    )
    of_a_font = ("font", "characters", "words", "letters", "tremor", "read_words", "bias")
    refuse_unread(settings, "without --pairs", settings.pairs is None, *of_a_font)


def _draw_some(writing: Writing, writer: Writer, path: Path) -> None:
    """Texts of the test part as they are there, and as the network writes them."""
    pairs = writing.test[:3]
    texts = [pair.text for pair in pairs]
    drawn = write(writer, texts, bias=writer.settings.bias, seed=0)
    real = {f"learnt from: {pair.text}": pair.values for pair in pairs[:1]}
    own = {f"written: {t}": d.values for t, d in zip(texts, drawn, strict=True)}
    draw_lines({**real, **own}, path, (texts[0], window_path(writer, texts[0], drawn[0].values)))


def _read_back(writing: Writing, writer: Writer) -> dict[str, float]:
    """The share of the letters that a reader finds in what the network wrote."""
    settings = writer.settings
    reader = train_reader(writing.glyphs, settings)
    count = settings.read_words
    real = renders(writing.glyphs, settings, count, _REAL)
    of_real = score([pair.text for pair in real], read(reader, [pair.values for pair in real]))
    texts = [pair.text for pair in renders(writing.glyphs, settings, count, _ASKED)]
    drawn = write(writer, texts, bias=settings.bias, seed=settings.seed)
    of_own = score(texts, read(reader, [d.values for d in drawn]))
    ended = float(np.mean([d.ended for d in drawn]))
    print(
        f"read right: {of_own.accuracy:.4f} of {of_own.letters:,} letters that the network wrote\n"
        f"  with bias {settings.bias:g}, {of_real.accuracy:.4f} of {of_real.letters:,} of the font"
    )
    print(f"{ended:.3f} of the words that the network wrote came to their end")
    return {"accuracy": of_own.accuracy, "accuracy_of_font": of_real.accuracy, "ended": ended}


def write_text(request: Request) -> None:
    """Write with the network in a run's folder."""
    check_settings(request, bias=_UP_TO_20, seed=whole(0, 2**32 - 1), like_line=whole(1, 10**9))
    refuse_unread(request, "with --like", request.like is not None, "like_line")
    path = request.out or request.run / f"written-{request.seed}.svg"
    strokes, picture = _beside(path)
    read = (request.like, *kept_files(request.run))
    refuse_overwriting((path, strokes, picture), read, "--out")
    settings = finished_settings(PROGRAM, Settings, request.run)
    characters = config_value(request.run, "characters", str)
    model = build_model(settings, characters)
    writer = Writer(model, load_trained(model.init, request.run), characters, settings)
    like = None if request.like is None else read_sample(request.like, request.like_line)
    (drawn,) = write(writer, [request.text], bias=request.bias, seed=request.seed, like=like)
    path.write_text(svg(drawn.values, request.text), "utf-8")
    strokes.write_text(as_line(request.text, drawn.values), "utf-8")
    _draw_one(writer, request.text, drawn.values, like, picture)
    print(f"{path}, {picture} and {strokes}: {how_many(len(drawn.values), 'point')}")
    if not drawn.ended:
        print("note: it was cut, since it had not come to its end: a higher --bias may help")


def _beside(path: Path) -> tuple[Path, Path]:
    """Where the strokes and the picture of an SVG file go.

    Raises:
        DataError: the SVG itself would lie there, and be lost.
    """
    if path.suffix.lower() == ".jsonl":
        raise DataError(f"--out must not end in .jsonl, where the strokes go, got {path}")
    return path.with_suffix(".jsonl"), picture_beside(path)


def _draw_one(
    writer: Writer, text: str, values: np.ndarray, like: Written | None, picture: Path
) -> None:
    """A text as it was written, below its sample if it has one, and what the window read."""
    if like is None:
        draw_lines({text: values}, picture, (text, window_path(writer, text, values)))
        return
    said, sample = joined_text(like, text), points_of(like.values)
    path = window_path(writer, said, np.concatenate([sample, values]))
    draw_lines({f"like: {like.text}": sample, text: values}, picture, (said, path))
    behind = path[len(sample)]
    place = behind @ np.arange(len(behind)) / behind.sum()
    if abs(place - len(like.text)) > 1:
        print(
            f"note: at the end of the sample the window stood at character {place:.1f} of its "
            f"{len(like.text)}: do its strokes write its text?"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_program(PROGRAM, Settings, train, {"write": (Request, write_text)}, arguments)
