"""The command line: train, and compose."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from experiments.music.counting import independent_keys, keys_by_themselves
from experiments.music.midi import TEMPO, midi_bytes
from experiments.music.model import build_model, compose, frame_loss, make_parts
from experiments.music.pictures import draw_pieces
from experiments.music.pieces import Music, read_music
from experiments.music.settings import Request, Settings
from experiments.running.command_line import run_program
from experiments.running.console import command, how_many
from experiments.running.devices import find_devices
from experiments.running.figures import picture_beside
from experiments.running.fit_and_save import CURVES, fit_and_save
from experiments.running.loss_fitting import Fitted
from experiments.running.opening import open_run
from experiments.running.overwriting import refuse_overwriting
from experiments.running.processes import chosen_folder
from experiments.running.run_settings import stored_config
from experiments.running.setting_checks import above, check_settings, whole
from experiments.running.trained import WEIGHTS, finished_settings, kept_files, load_trained

PROGRAM = "python -m experiments.music"
MIDI, PICTURE = "piece.mid", "piece.png"
_SHOWN = 64  # frames of the piece that a run leaves


def train(settings: Settings) -> Fitted:
    """Train, write the run's folder, and say how to use it."""
    began = time.perf_counter()
    check_settings(settings, pieces=whole(10, 1_000_000), transpose=whole(0, 24))
    devices = find_devices(settings.devices)
    devices.check_rows("--batch-size", settings.batch_size)
    music = read_music(settings)
    folder = chosen_folder(settings.out, f"music-{music.name}")
    stored = stored_config(settings, folder)
    model, parts = build_model(settings), make_parts(music, settings)
    identity = {"settings": settings.written(), "sha256": music.sha256}
    leaves = (WEIGHTS, CURVES, MIDI, PICTURE)
    with open_run(settings, folder, stored, identity, leaves, init=model.init) as (run, saver):
        _announce(music)
        fitted = fit_and_save(
            settings, model.init, frame_loss(model), parts, run, saver, devices,
            loss_in_words="nats a frame",
        )  # fmt: skip
        piece = compose(model, fitted.params, _SHOWN, 1.0, settings.seed)
        (run.path / MIDI).write_bytes(midi_bytes(piece))
        shown = {"composed": piece, "from the test set": music.test[0][:_SHOWN]}
        draw_pieces(shown, run.path / PICTURE)
    _report(music, fitted, time.perf_counter() - began, folder)
    return fitted


def _announce(music: Music) -> None:
    counts = [len(part) for part in (music.train, music.validation, music.test)]
    print(
        f"{music.name}: {how_many(counts[0], 'piece')} to train, {counts[1]:,} to validate, "
        f"{counts[2]:,} to test"
    )
    print(music.note)


def _report(music: Music, fitted: Fitted, seconds: float, folder: Path) -> None:
    train, test = music.train, music.test
    print(
        f"validation {fitted.validation['loss']:.3f} nats a frame, weights of epoch {fitted.epoch}"
    )
    print(f"test {fitted.test['loss']:.3f} nats a frame")
    print(f"each key by how often it sounds: {independent_keys(train, test):.3f}")
    print(f"each key by whether it sounded before: {keys_by_themselves(train, test):.3f}")
    print(f"{seconds:.0f} s, compiling included; {MIDI} and {PICTURE} in {folder}")
    print(f"try:\n  {command(*PROGRAM.split(), 'compose', folder, '--seed', '1')}")


def write_piece(request: Request) -> None:
    """Compose with the network in a run's folder."""
    check_settings(
        request,
        steps=whole(1, 100_000),
        temperature=above(0),
        tempo=TEMPO,
        seed=whole(0, 2**32 - 1),
    )
    path = request.out or request.run / f"piece-{request.seed}.mid"
    picture = picture_beside(path)
    refuse_overwriting((path, picture), kept_files(request.run), "--out")
    settings = finished_settings(PROGRAM, Settings, request.run)
    model = build_model(settings)
    params = load_trained(model.init, request.run)
    piece = compose(model, params, request.steps, request.temperature, request.seed)
    path.write_bytes(midi_bytes(piece, request.tempo))
    draw_pieces({f"composed, temperature {request.temperature:g}": piece}, picture)
    frames, notes = how_many(len(piece), "frame"), piece.sum() / len(piece)
    print(f"{path} and {picture}: {frames}, {notes:.1f} notes in each")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_program(PROGRAM, Settings, train, {"compose": (Request, write_piece)}, arguments)
