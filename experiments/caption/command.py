"""The command line: train, caption and export."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.caption.corpus import Captioned, Corpus, read_corpus, read_picture
from experiments.caption.decoding import caption, figures, looked
from experiments.caption.model import Network, build_network
from experiments.caption.pictures import Look, draw_looks
from experiments.caption.scenes import PIXELS
from experiments.caption.settings import Export, Request, Settings
from experiments.caption.training import make_batches, make_loss
from experiments.running.command_line import run_program
from experiments.running.console import command, wrapped
from experiments.running.devices import find_devices
from experiments.running.exported import write_programs
from experiments.running.figures import show_picture
from experiments.running.fit_and_save import CURVES, fit_and_save
from experiments.running.loss_fitting import Fitted
from experiments.running.opening import open_run
from experiments.running.overwriting import refuse_overwriting
from experiments.running.processes import chosen_folder
from experiments.running.run_settings import stored_config
from experiments.running.setting_checks import at_least, check_settings, refuse_unread, whole
from experiments.running.trained import WEIGHTS, finished_settings, load_trained
from experiments.running.words import joined_words, learned_words
from rnnjax.data import DataError, Vocabulary

PROGRAM = "python -m experiments.caption"
VOCABULARY, SAMPLES = "vocabulary.json", "samples.txt"
LOOKED, PICTURES = "where-it-looked.png", "pictures"
_LOOKED_AT = "where-it-looked-at-a-picture.png"
_SHOWN = 4  # captions after each epoch, and pictures that are drawn
_KEPT = 10  # pictures of the test that are left as files


def train(settings: Settings, folder: Path) -> Fitted:
    """Train, write the run's folder, and say how to use it."""
    began = time.perf_counter()
    _check(settings)
    devices = find_devices(settings.devices)
    devices.check_rows("--batch-size", settings.batch_size)
    stored = stored_config(settings, folder)
    corpus = read_corpus(settings)
    network = build_network(settings, len(corpus.vocabulary))
    identity = {"settings": settings.written(), "sha256": corpus.sha256}
    leaves = (WEIGHTS, VOCABULARY, CURVES, SAMPLES, LOOKED, PICTURES)
    with open_run(settings, folder, stored, identity, leaves, init=network.init) as (run, saver):
        _announce(corpus)

        def show(params: Any) -> str:
            pictures = corpus.validation.pictures[:_SHOWN]
            found = caption(network, params, pictures, beam=1, max_length=settings.max_length)
            lines = _lines(corpus.vocabulary, corpus.validation, found)
            return "\n".join(lines)

        corpus.vocabulary.save(run.path / VOCABULARY)
        parts, loss_fn = make_batches(corpus, settings), make_loss(network, settings)
        fitted = fit_and_save(
            settings, network.init, loss_fn, parts, run, saver, devices, show=show
        )
        found = _test(network, fitted.params, corpus, settings, run.path)
        run.write({"kind": "captions", "epoch": fitted.epoch, **found})
    _report(found, fitted, time.perf_counter() - began, folder)
    return fitted


def _announce(corpus: Corpus) -> None:
    counts = [f"{len(part.words):,}" for part in (corpus.train, corpus.validation, corpus.test)]
    print(
        f"{corpus.name}: {counts[0]} captions to train, {counts[1]} to validate, "
        f"{counts[2]} to test"
    )
    print(wrapped(f"{corpus.note}; {learned_words(corpus.vocabulary):,} words"))


def _lines(vocabulary: Vocabulary, part: Captioned, found: Sequence[Any]) -> list[str]:
    """What was written, and under it what is right where that is something else."""
    lines = []
    for texts, right in zip(found, part.words, strict=False):
        wrote = vocabulary.decode(texts[0] if texts else [])
        lines.append(f"  {joined_words(wrote) or '(empty)'}")
        if wrote != list(right):
            lines.append(f"  not {joined_words(right)}")
    return lines


def _test(
    network: Network, params: Any, corpus: Corpus, settings: Settings, folder: Path
) -> dict[str, float]:
    """Figures of the test; captions, pictures and where it looked go to the folder."""
    options = {"beam": settings.beam, "max_length": settings.max_length}
    found = caption(network, params, corpus.test.pictures, **options)
    named = figures(network, params, corpus.test, corpus.vocabulary, found)
    if corpus.composed is not None:
        new = caption(network, params, corpus.composed.pictures, **options)
        named["composed"] = figures(network, params, corpus.composed, corpus.vocabulary, new)[
            "exact"
        ]
    lines = _lines(corpus.vocabulary, corpus.test, found[:100])
    (folder / SAMPLES).write_text("\n".join(lines) + "\n", "utf-8")
    _leave_pictures(corpus.test, folder / PICTURES)
    if network.attends:
        some = corpus.test.pictures[:_SHOWN]
        best = [texts[0] if texts else [] for texts in found[:_SHOWN]]
        _draw(network, params, corpus.vocabulary, some, best, folder / LOOKED)
    return named


def _leave_pictures(part: Captioned, folder: Path) -> None:
    """Some pictures as files, with a list of all their captions as ``--captions`` takes it."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    names: dict[bytes, str] = {}
    lines = []
    for picture, right in zip(part.pictures, part.words, strict=True):
        pixels = picture.tobytes()
        if pixels not in names:
            if len(names) == _KEPT:
                continue
            names[pixels] = f"{len(names)}.png"
            Image.fromarray(picture).save(folder / names[pixels])
        lines.append(f"{names[pixels]}\t{joined_words(right)}\n")
    (folder / "captions.tsv").write_text("".join(lines), "utf-8")


def _draw(
    network: Network,
    params: Any,
    vocabulary: Vocabulary,
    pictures: np.ndarray,
    captions: Sequence[Sequence[int]],
    path: Path,
) -> None:
    weights = looked(network, params, pictures, captions)
    rows = zip(pictures, captions, weights, strict=True)
    draw_looks([Look(p, vocabulary.decode(ids), w) for p, ids, w in rows], path)


def _report(found: dict[str, float], fitted: Fitted, seconds: float, folder: Path) -> None:
    loss = fitted.validation["loss"]
    print(f"validation {loss:.4f} nats a word, weights of epoch {fitted.epoch}")
    print(f"test: {found['exact']:.3f} of the captions exactly right")
    if "on_thing" in found:
        print(f"looked at the thing that a word names: {found['on_thing']:.3f}")
        print(f"penalty of attention other than once: {found['once']:.2f}")
    if "composed" in found:
        print(f"exactly right with a colour and shape never seen together: {found['composed']:.3f}")
    print(f"{seconds:.0f} s, compiling included; curves, samples and {LOOKED} in {folder}")
    print(f"try:\n  {command(*PROGRAM.split(), 'caption', folder, folder / PICTURES / '0.png')}")


def caption_pictures(request: Request) -> None:
    """Say what is in pictures, with the network in a run's folder."""
    check_settings(request, beam=whole(1, 1_000), length_penalty=at_least(0))
    refuse_unread(request, "with --beam above 1", request.beam > 1, "length_penalty")
    one = len(request.pictures) == 1
    if not request.pictures:
        raise DataError("pictures must be named, got none")
    if request.figure is not None and not one:
        raise DataError(f"--figure must be of one picture, got it with {len(request.pictures)}")
    beside_run = request.run / _LOOKED_AT
    if one:
        refuse_overwriting((request.figure or beside_run,), request.pictures, "--figure")
    network, params, vocabulary, settings = _load(request.run)
    pictures = np.stack([read_picture(path) for path in request.pictures])
    found = caption(
        network,
        params,
        pictures,
        beam=request.beam,
        max_length=settings.max_length,
        length_penalty=request.length_penalty,
    )
    for path, texts in zip(request.pictures, found, strict=True):
        for text in texts if one else texts[:1]:
            words = joined_words(vocabulary.decode(text)) or "(empty)"
            print(words if one else f"{path}\t{words}")
    best = found[0][:1]
    if one and network.attends and best and best[0]:
        draw = functools.partial(_draw, network, params, vocabulary, pictures, best)
        show_picture(draw, "where it looked", request.figure, beside_run)


def export_run(request: Export) -> None:
    """Write the network of a run as programs that need JAX alone to run."""
    network, params, _, _ = _load(request.run)
    picture = jax.ShapeDtypeStruct((PIXELS, PIXELS, 3), jnp.uint8)

    def step(params: Any, *given: Any) -> Any:
        return network.writer.step(params.writer, *given)

    write_programs(
        request.out or request.run / "exported",
        (network.encode, step, params),
        {"vocabulary": request.run / VOCABULARY},
        source=picture,
    )


def _load(folder: Path) -> tuple[Network, Any, Vocabulary, Settings]:
    settings = finished_settings(PROGRAM, Settings, folder)
    vocabulary = Vocabulary.load(folder / VOCABULARY)
    network = build_network(settings, len(vocabulary))
    return network, load_trained(network.init, folder), vocabulary, settings


def _check(settings: Settings) -> None:
    """Refuse what no part of the library would, before anything is made."""
    check_settings(
        settings,
        scenes=whole(1, 10_000_000),
        max_length=whole(2, 10_000),
        picture_size=whole(2, 10_000),
        beam=whole(1, 1_000),
        once=at_least(0),
        entropy=at_least(0),
    )
    refuse_unread(settings, "without --captions", settings.captions is None, "scenes")
    refuse_unread(settings, "with attention", settings.attention != "none", "once")
    refuse_unread(settings, "with --attention hard", settings.attention == "hard", "entropy")
    if settings.selector and settings.attention not in ("inside", "hard"):
        raise DataError(
            f"--selector must be with --attention inside or hard, got it with {settings.attention}"
        )


def _train(settings: Settings) -> None:
    name = "scenes" if settings.captions is None else settings.captions.stem
    train(settings, chosen_folder(settings.out, f"caption-{name}"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    requests = {"caption": (Request, caption_pictures), "export": (Export, export_run)}
    return run_program(PROGRAM, Settings, _train, requests, arguments)
