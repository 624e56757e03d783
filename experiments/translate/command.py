"""The command line: train, and translate."""

from __future__ import annotations

import functools
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import rnnjax
from experiments.running.command_line import run_program
from experiments.running.console import command, complain, how_many, shortened, wrapped
from experiments.running.devices import find_devices
from experiments.running.exported import write_programs
from experiments.running.figures import show_picture
from experiments.running.fit_and_save import CURVES, fit_and_save
from experiments.running.loss_fitting import Fitted
from experiments.running.opening import open_run
from experiments.running.packages import takes_part
from experiments.running.predicting import given_or_read
from experiments.running.processes import chosen_folder
from experiments.running.run_settings import stored_config
from experiments.running.setting_checks import (
    at_least,
    check_settings,
    probability,
    refuse_unread,
    whole,
)
from experiments.running.trained import WEIGHTS
from experiments.running.words import learned_words
from experiments.translate.corpus import Corpus, joined, languages, read_corpus, tokenizer
from experiments.translate.decoding import alignments, translate
from experiments.translate.model import build_model
from experiments.translate.pictures import Alignment, draw_alignments
from experiments.translate.scoring import bleu, exact, on_diagonal, sacrebleu
from experiments.translate.settings import Export, Request, Settings
from experiments.translate.training import count_tokens, make_batches, make_loss
from experiments.translate.translator import PROGRAM, STOP_SHOWN, VOCABULARIES, Translator
from rnnjax.data import UNKNOWN, DataError, data_folder

SAMPLES, ALIGNMENT = "samples.txt", "alignment.png"
LOOKED = "alignment-of-a-sentence.png"
_SHOWN = 3  # translations after each epoch, and panels of a picture
_ALIGNED = 200  # test sequences of which the attention is looked at
_AT_ONCE = 1_024  # lines that are read before they are translated, those of like length together
_EXAMPLE = 60  # characters at most of what a finished run proposes to translate


def train(settings: Settings, folder: Path) -> Fitted:
    """Train, write the run's folder, and say how to use it."""
    began = time.perf_counter()
    _check(settings)
    devices = find_devices(settings.devices)
    devices.check_rows("--batch-size", settings.batch_size)
    stored = stored_config(settings, folder)
    corpus = read_corpus(settings)
    model = build_model(settings, len(corpus.source), len(corpus.target))
    identity = {"settings": settings.written(), "sha256": corpus.sha256}
    leaves = (WEIGHTS, *VOCABULARIES, CURVES, SAMPLES, ALIGNMENT)
    with open_run(settings, folder, stored, identity, leaves, init=model.init) as (run, saver):
        _announce(corpus, settings)
        for name, vocabulary in zip(VOCABULARIES, (corpus.source, corpus.target), strict=True):
            vocabulary.save(run.path / name)

        def show(params: Any) -> str:
            sources = corpus.validation.sources[:_SHOWN]
            found = translate(model, params, sources, beam=1, max_length=settings.max_length)
            return "\n".join(_lines(corpus, settings, sources, found))

        parts, loss_fn = make_batches(corpus, settings), make_loss(model, settings.own_tokens)
        fitted = fit_and_save(
            settings, model.init, loss_fn, parts, run, saver, devices,
            show=show, tokens=count_tokens,
        )  # fmt: skip
        figures = _test(model, fitted.params, corpus, settings, run.path)
        run.write({"kind": "translations", "epoch": fitted.epoch, **figures})
    _report(figures, fitted, time.perf_counter() - began, folder, corpus)
    return fitted


def _announce(corpus: Corpus, settings: Settings) -> None:
    counts = [len(part.sources) for part in corpus[5:8]]
    print(
        f"{corpus.name}: {how_many(counts[0], 'pair')} to train, {counts[1]:,} to validate, "
        f"{counts[2]:,} to test"
    )
    print(wrapped(corpus.note))
    source, target = corpus.train.sources[0], corpus.train.targets[0][:-1]
    print(
        shortened(f"such as {_line(corpus, settings, source, target)}".replace(" -> ", "\n  -> "))
    )
    unknown = [np.mean([i == UNKNOWN for ids in side for i in ids]) for side in corpus.test]
    known = [learned_words(vocabulary) for vocabulary in (corpus.source, corpus.target)]
    print(
        f"{known[0]:,} tokens of sources, {known[1]:,} of targets; unknown of the test: "
        f"{unknown[0]:.1%} and {unknown[1]:.1%}"
    )


def _lines(
    corpus: Corpus, settings: Settings, sources: Sequence[list[int]], found: list
) -> list[str]:
    return [
        f"  {_line(corpus, settings, source, texts[0] if texts else [])}"
        for source, texts in zip(sources, found, strict=True)
    ]


def _line(corpus: Corpus, settings: Settings, source: Sequence[int], text: Sequence[int]) -> str:
    read, written = corpus.source.decode(source), corpus.target.decode(text)
    return f"{joined(read, settings)} -> {joined(written, settings) or '(empty)'}"


def _test(
    model: rnnjax.SequenceToSequence,
    params: Any,
    corpus: Corpus,
    settings: Settings,
    folder: Path,
) -> dict[str, Any]:
    """Figures of the test set; its translations and a picture go to the folder."""
    sources = corpus.test.sources
    found = translate(model, params, sources, beam=settings.beam, max_length=settings.max_length)
    ids = [texts[0] if texts else [] for texts in found]
    written = [corpus.target.decode(text) for text in ids]
    tokenize = tokenizer(settings)
    references = [tokenize(text) for text in corpus.test_pairs.targets]
    (folder / SAMPLES).write_text(
        "\n".join(_lines(corpus, settings, sources[:100], found[:100])) + "\n", "utf-8"
    )
    figures: dict[str, Any] = {"exact": exact(written, references)}
    if settings.pair:
        figures |= {"bleu": bleu(written, references), **_with_signature(written, corpus, settings)}
    if settings.attention == "none":
        return figures
    weights = alignments(model, params, sources[:_ALIGNED], ids[:_ALIGNED])
    if not settings.pair and settings.task != "add":
        figures["on_diagonal"] = on_diagonal(weights, settings.name)
    panels = [
        Alignment(corpus.source.decode(source), [*text, STOP_SHOWN], rows)
        for source, text, rows in zip(sources[:_SHOWN], written, weights, strict=False)
    ]
    draw_alignments(panels, folder / ALIGNMENT)
    return figures


def _with_signature(written: list[list[str]], corpus: Corpus, settings: Settings) -> dict[str, Any]:
    """BLEU of whole texts by sacrebleu, where it is installed."""
    more = "; pip install sacrebleu, or '.[translate]' in a checkout"
    if not takes_part("the sacrebleu score", "sacrebleu", more):
        return {}
    texts = [joined(tokens, settings) for tokens in written]
    score, signature = sacrebleu(texts, corpus.test_pairs.targets, keep_case=settings.keep_case)
    return {"sacrebleu": score, "signature": signature}


def _report(
    figures: dict[str, Any], fitted: Fitted, seconds: float, folder: Path, corpus: Corpus
) -> None:
    print(
        f"validation {fitted.validation['loss']:.4f} nats a token, weights of epoch {fitted.epoch}"
    )
    print(f"test: {figures['exact']:.3f} exactly right, {fitted.test['loss']:.4f} nats a token")
    if "on_diagonal" in figures:
        print(f"attention on the symbol that is written: {figures['on_diagonal']:.3f}")
    if "bleu" in figures:
        print(f"BLEU on tokens {figures['bleu']:.2f}")
    if "sacrebleu" in figures:
        print(f"sacrebleu {figures['sacrebleu']:.2f}, {figures['signature']}")
    print(f"{seconds:.0f} s, compiling included; files in {folder}")
    print(f"try:\n  {command(*PROGRAM.split(), 'translate', folder, _example(corpus))}")


def _example(corpus: Corpus) -> str:
    """A sentence of the test, or how one begins, that fits into a line and is not taken for an
    option."""
    sources = [text for text in corpus.test_pairs.sources if not text.startswith("-")]
    short = [text for text in sources if len(text) <= _EXAMPLE]
    return (short or textwrap.wrap(min(sources, key=len, default="..."), _EXAMPLE))[0]


def translate_texts(request: Request) -> None:
    """Translate with the network in a run's folder."""
    check_settings(request, beam=whole(1, 1_000), length_penalty=at_least(0))
    refuse_unread(request, "with --beam above 1", request.beam > 1, "length_penalty")
    if request.picture is not None and len(request.sentences) != 1:
        raise DataError(
            f"--picture must be of one sentence, got it with {len(request.sentences) or 'none'}"
        )
    translator = Translator(request.run)
    if len(request.sentences) == 1:
        _translate_one(translator, request)
    else:
        _translate_many(translator, request)


def _translate_one(translator: Translator, request: Request) -> None:
    (sentence,) = request.sentences
    if not translator.tokens(sentence):
        raise DataError("the sentence must have at least one token, got none")
    _note_unknown(translator.unknown(sentence))
    options = {"beam": request.beam, "length_penalty": request.length_penalty}
    (found,) = translator.ids([sentence], **options)
    for ids in found:
        print(translator.text(ids) or "(empty)")
    _note_cut(translator, sum(map(translator.was_cut, found[:1])), 1)
    if translator.settings.attention != "none" and found:
        alignment = translator.looked(sentence, found[0])
        draw = functools.partial(draw_alignments, [alignment])
        show_picture(draw, "where it looked", request.picture, request.run / LOOKED)


def _translate_many(translator: Translator, request: Request) -> None:
    """A line for each sentence, as it comes; an empty one for one without words."""
    unknown: Counter[str] = Counter()
    count = cut = 0
    options = {"beam": request.beam, "length_penalty": request.length_penalty}
    for sentences in given_or_read(request.sentences, _AT_ONCE):
        for sentence, found in zip(sentences, translator.ids(sentences, **options), strict=True):
            print(translator.text(found[0]) if found else "")
            unknown.update(translator.unknown(sentence))
            cut += bool(found) and translator.was_cut(found[0])
        count += len(sentences)
    if not count:
        raise DataError("sentences must come as arguments or on standard input, got none")
    _note_unknown([token for token, _ in unknown.most_common()])
    _note_cut(translator, cut, count)


def _note_unknown(tokens: Sequence[str]) -> None:
    if tokens:
        shown = ", ".join(tokens[:10]) + (f" and {len(tokens) - 10:,} more" * (len(tokens) > 10))
        complain(f"note: not in the training sentences: {shown}")


def _note_cut(translator: Translator, cut: int, count: int) -> None:
    if cut:
        were = "was" if cut == 1 else "were"
        complain(
            f"note: {cut:,} of {how_many(count, 'translation')} had no end after "
            f"{translator.settings.max_length} tokens, the --max-length of the run, and {were} cut"
        )


def export_run(request: Export) -> None:
    """Write the network of a run as programs that need JAX alone to run."""
    translator = Translator(request.run)
    model, names = translator.model, dict(zip(("source", "target"), VOCABULARIES, strict=True))
    write_programs(
        request.out or request.run / "exported",
        (model.encode, model.step, translator.params),
        {f"{side}_vocabulary": request.run / name for side, name in names.items()},
    )


def _check(settings: Settings) -> None:
    """Refuse what no part of the library would, before anything is made."""
    if settings.pair is not None and settings.task is not None:
        raise DataError("--task and --pair must be given one at a time, got both")
    if settings.targets is not None and settings.pair is None:
        raise DataError("--targets must be given with a file as --pair, got no --pair")
    generated, adds = settings.pair is None, settings.task == "add"
    refuse_unread(settings, "with a generated task", generated, "examples")
    symbols = generated and not adds
    refuse_unread(settings, "with --task reverse or copy", symbols, "shortest", "longest")
    refuse_unread(settings, "with --task add", adds, "digits")
    refuse_unread(settings, "with --pair", not generated, "min_count", "keep_case")
    in_folder = settings.pair is not None and languages(settings.pair) is not None
    refuse_unread(settings, "with two languages as --pair", in_folder, "data_dir")
    if in_folder:
        data_folder(settings.data_dir)
    refuse_unread(settings, "with attention", settings.attention != "none", "score")
    check_settings(
        settings,
        examples=whole(1, 10_000_000),
        shortest=whole(1, 10_000),
        longest=whole(1, 10_000),
        digits=whole(1, 9),
        max_length=whole(2, 10_000),
        head_size=whole(1, 1_000_000),
        own_tokens=probability(),
        beam=whole(1, 1_000),
    )
    if settings.tie and settings.head_size != settings.embedding_size:
        raise DataError(
            f"--head-size must be --embedding-size, {settings.embedding_size}, with --tie, got "
            f"{settings.head_size}"
        )


def _train(settings: Settings) -> None:
    train(settings, chosen_folder(settings.out, f"translate-{settings.name}"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_program(
        PROGRAM,
        Settings,
        _train,
        {"translate": (Request, translate_texts), "export": (Export, export_run)},
        arguments,
    )
