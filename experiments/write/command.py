"""The command line: train, and write."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import rnnjax
from experiments.running import curves
from experiments.running.command_line import run_program
from experiments.running.console import command, how_many, parameter_table
from experiments.running.data_folder import check_folder
from experiments.running.devices import find_devices
from experiments.running.opening import open_run
from experiments.running.processes import chosen_folder, is_first
from experiments.running.run_settings import stored_config
from experiments.running.setting_checks import (
    Rule,
    at_least,
    check_settings,
    refuse_unread,
    whole,
)
from experiments.running.trained import WEIGHTS, finished_settings, load_trained
from experiments.write.corpus import (
    NEVER_WRITTEN,
    Corpus,
    decode,
    encode_prompt,
    read_corpus,
    tokenize,
)
from experiments.write.layout import side_by_side
from experiments.write.model import build_model
from experiments.write.ngram import ngram_nats
from experiments.write.settings import Request, Settings
from experiments.write.training import Fitted, Texts, cut, fit, piece_steps
from rnnjax.data import UNKNOWN, DataError, Vocabulary
from rnnjax.weights import save_weights

PROGRAM = "python -m experiments.write"
VOCABULARY, CURVES, SAMPLES = "vocabulary.json", "curves.png", "samples.txt"
_TEMPERATURES = (0.3, 0.8, 1.3)


def train(settings: Settings, folder: Path) -> Fitted:
    """Train, write the run's folder, and say how to use it."""
    began = time.perf_counter()
    _check(settings)
    devices = find_devices(settings.devices)
    devices.check_rows("--rows", settings.rows)
    stored = stored_config(settings, folder)
    corpus = read_corpus(settings)
    model = build_model(settings, len(corpus.vocabulary))
    prompt = encode_prompt(corpus.vocabulary, settings.sample_prompt, settings.level)
    _check_length(corpus, settings)
    texts = Texts(
        cut(corpus.train, settings.rows, piece_steps(settings)), corpus.validation, corpus.test
    )
    identity = {"settings": settings.written(), "sha256": corpus.sha256}
    leaves = (WEIGHTS, VOCABULARY, CURVES, SAMPLES)
    with open_run(settings, folder, stored, identity, leaves, init=model.init) as (run, saver):
        _announce(corpus, settings)
        params = model.init(jax.random.key(settings.seed))
        parameter_table(params)

        def show(params: Any) -> str:
            params = devices.take_home(params)
            return _write(model, params, corpus.vocabulary, settings.level, prompt, 0.8, 160)

        fitted = fit(model, params, texts, settings, run, saver, devices, show)
        saver.wait()
        params = devices.take_home(fitted.params)
        corpus.vocabulary.save(run.path / VOCABULARY)
        save_weights(run.path / WEIGHTS, params)
        curves.draw(run.metrics_path, run.path / CURVES)
        (run.path / SAMPLES).write_text(
            _samples(model, params, corpus.vocabulary, settings.level, prompt), "utf-8"
        )
    if is_first():
        _report(corpus, fitted, time.perf_counter() - began, folder, settings)
    return fitted


def _announce(corpus: Corpus, settings: Settings) -> None:
    unit = "characters" if settings.level == "chars" else "words"
    counts = f"{len(corpus.train):,} {unit} to train, {len(corpus.validation):,} to validate"
    print(f"{corpus.name}: {counts}, {len(corpus.vocabulary) - 2:,} different")
    if corpus.note:
        print(corpus.note)


def _report(
    corpus: Corpus, fitted: Fitted, seconds: float, folder: Path, settings: Settings
) -> None:
    print(f"validation {fitted.validation:.4f} nats a token, weights of epoch {fitted.epoch}")
    if settings.level == "chars":
        print(f"that is {fitted.validation / np.log(2):.3f} bits a character")
    else:
        print(f"that is a perplexity of {np.exp(fitted.validation):.1f}")
    if fitted.test is not None:
        shown = "" if settings.level == "chars" else f", perplexity {np.exp(fitted.test):.1f}"
        print(f"test {fitted.test:.4f} nats a token{shown}")
    order, floor = best_ngram(corpus)
    print(f"counting alone, the best of n-gram models ({order}-grams): {floor:.4f} nats")
    print(f"{seconds:.0f} s, compiling included; samples and curves in {folder}")
    print(f"try:\n  {command(*PROGRAM.split(), 'generate', folder, '--stream')}")


def best_ngram(corpus: Corpus) -> tuple[int, float]:
    """The order of the best smoothed n-gram model on the validation part, and its nats a token."""
    size = len(corpus.vocabulary)
    longest = min(len(corpus.train), len(corpus.validation) - 1)
    orders = [n for n in range(1, 8) if n * np.log2(size) < 60 and n <= longest]
    scored = [(ngram_nats(corpus.train, corpus.validation, size, n), n) for n in orders]
    nats, order = min(scored)
    return order, nats


def _write(
    model: rnnjax.LanguageModel,
    params: Any,
    vocabulary: Vocabulary,
    level: Any,
    prompt: np.ndarray,
    temperature: float,
    length: int,
    seed: int = 0,
) -> str:
    sampling = rnnjax.sample(rnnjax.forbid(NEVER_WRITTEN), rnnjax.temperature(temperature))
    out = rnnjax.generate(
        model,
        params,
        prompt,
        max_new_tokens=length,
        key=jax.random.key(seed),
        sampling=sampling,
    )
    return decode(vocabulary, np.asarray(out.tokens), level)


def _samples(
    model: rnnjax.LanguageModel, params: Any, vocabulary: Vocabulary, level: Any, prompt: np.ndarray
) -> str:
    """Texts at three temperatures, side by side."""
    return side_by_side(
        {
            f"temperature {t}": _write(model, params, vocabulary, level, prompt, t, 600)
            for t in _TEMPERATURES
        }
    )


def generate(request: Request) -> None:
    """Write with the network in a run's folder."""
    share = Rule("a number above 0 and at most 1", lambda value: 0 < value <= 1)
    check_settings(
        request,
        length=whole(1, 1_000_000),
        samples=whole(1, 1_000_000),
        temperature=at_least(0),
        top_k=whole(1),
        top_p=share,
        min_p=share,
        repetition_penalty=at_least(1),
    )
    is_drawn = request.temperature > 0
    drawing = ("top_k", "top_p", "min_p", "seed")
    refuse_unread(request, "with --temperature above 0", is_drawn, *drawing)
    settings = finished_settings(PROGRAM, Settings, request.run)
    vocabulary = Vocabulary.load(request.run / VOCABULARY)
    model = build_model(settings, len(vocabulary))
    params = load_trained(model.init, request.run)
    prompt = encode_prompt(vocabulary, request.prompt, settings.level)
    begin = _begin(request.prompt, prompt, vocabulary, settings.level)
    options: dict[str, Any] = {
        "max_new_tokens": request.length,
        "sampling": make_sampling(request),
        "stop": find_stop(request.stop, vocabulary, settings.level),
    }
    for sample in range(request.samples):
        key = jax.random.fold_in(jax.random.key(request.seed), sample)
        block_size = 16 if request.stream else request.length
        blocks = rnnjax.stream_text(
            model, params, prompt, key=key, block_size=block_size, **options
        )
        print(begin, end="", flush=True)
        for block in blocks:
            print(decode(vocabulary, block, settings.level), end="", flush=True)
        print()


def _begin(prompt: str | None, ids: np.ndarray, vocabulary: Vocabulary, level: Any) -> str:
    """What is printed before the text that goes on from a prompt; a note on what is unknown."""
    if prompt is None:
        return decode(vocabulary, ids, level)
    unknown = [token for token in tokenize(prompt, level) if token not in vocabulary.tokens]
    if unknown:
        print(f"note: not in the training text: {', '.join(map(repr, unknown))}", file=sys.stderr)
    return prompt if level == "chars" or prompt[-1:].isspace() else f"{prompt} "


def make_sampling(request: Request) -> rnnjax.Sampling:
    """The sampler that a request describes; temperature 0 is the most likely token."""
    transforms = [rnnjax.forbid(NEVER_WRITTEN)]
    if request.repetition_penalty is not None:
        transforms.append(rnnjax.repetition_penalty(request.repetition_penalty, window=64))
    if request.temperature == 0:
        return rnnjax.greedy(*transforms)
    transforms.append(rnnjax.temperature(request.temperature))
    if request.top_k is not None:
        transforms.append(rnnjax.top_k(request.top_k))
    if request.top_p is not None:
        transforms.append(rnnjax.top_p(request.top_p))
    if request.min_p is not None:
        transforms.append(rnnjax.min_p(request.min_p))
    return rnnjax.sample(*transforms)


def find_stop(stop: str | None, vocabulary: Vocabulary, level: Any) -> int | None:
    """The id of the token that ends a text.

    Raises:
        DataError: it is none, or several, or never written.
    """
    if stop is None:
        return None
    tokens = tokenize(stop, level)
    ids = [UNKNOWN] if len(tokens) != 1 else vocabulary.encode(tokens)
    if ids[0] in NEVER_WRITTEN:
        raise DataError(f"--stop must be one token of the training text, got {stop!r}")
    return ids[0]


def _check(settings: Settings) -> None:
    check_settings(settings, rows=whole(1), window=whole(1, 1_000_000))
    check_folder(settings)
    if settings.tie and settings.hidden_size != settings.embedding_size:
        raise DataError(
            f"--hidden-size must be --embedding-size, {settings.embedding_size}, with --tie, got "
            f"{settings.hidden_size}"
        )


def _check_length(corpus: Corpus, settings: Settings) -> None:
    if len(corpus.train) <= settings.rows:
        raise DataError(
            f"{corpus.name} must have more than {how_many(settings.rows, 'token')} to train on, "
            f"one for each of --rows, got {len(corpus.train)}"
        )
    if len(corpus.validation) < 2:
        raise DataError(
            f"{corpus.name} must have at least 2 tokens to validate on, got "
            f"{len(corpus.validation)}: give a longer text"
        )


def _train(settings: Settings) -> None:
    train(settings, chosen_folder(settings.out, f"write-{Path(settings.dataset).stem}"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_program(PROGRAM, Settings, _train, {"generate": (Request, generate)}, arguments)
