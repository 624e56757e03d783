"""Pairs of sequences as token ids: generated tasks, and sentences from files."""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.running.console import how_many
from experiments.running.words import STOP, fit_words, joined_words, with_marks, words
from experiments.translate.settings import Settings
from rnnjax.data import DataError, PairParts, Pairs, Vocabulary, load_pairs

_SYMBOLS = "abcdefghijklmnopqrstuvwxyz"
_HELD_OUT = 1000


class _Tokens(NamedTuple):
    """Pairs as tokens and as text, and how many others were left out."""

    sources: list[list[str]]
    targets: list[list[str]]
    texts: Pairs
    left_out: int


class Encoded(NamedTuple):
    """Pairs as ids; every target ends with the stop token."""

    sources: list[list[int]]
    targets: list[list[int]]


class Corpus(NamedTuple):
    """Pairs in three parts, with the vocabularies of both sides.

    Attributes:
        name: of the task or the data set.
        note: how it was made or divided, and what was left out.
        sha256: of its text.
        source: the tokens of sources.
        target: the tokens of targets, the start and the stop among them.
        train: ids.
        validation: ids.
        test: ids.
        test_pairs: the test part as text.
    """

    name: str
    note: str
    sha256: str
    source: Vocabulary
    target: Vocabulary
    train: Encoded
    validation: Encoded
    test: Encoded
    test_pairs: Pairs


def read_corpus(settings: Settings) -> Corpus:
    """The pairs that the settings name, from files or made by the seed."""
    loaded = _generated(settings) if settings.pair is None else _load(settings)
    parts = (loaded.train, loaded.validation, loaded.test)
    train, validation, test = (_tokens(part, settings) for part in parts)
    note, counts = loaded.note, [part.left_out for part in (train, validation, test)]
    if any(counts):
        note += (
            f"; left out, as empty or of more than {settings.max_length} tokens: "
            f"{how_many(counts[0], 'pair')} to train, {counts[1]:,} to validate, "
            f"{counts[2]:,} to test"
        )
    least = settings.min_count if settings.pair else 1
    source = fit_words(train.sources, least)
    target = with_marks(fit_words(train.targets, least))
    return Corpus(
        name=loaded.name,
        note=note,
        sha256=loaded.sha256,
        source=source,
        target=target,
        train=_encode(source, target, train),
        validation=_encode(source, target, validation),
        test=_encode(source, target, test),
        test_pairs=test.texts,
    )


def languages(pair: str) -> tuple[str, str] | None:
    """The two languages that a pair names; None where it names a file.

    Example:
        >>> languages("de-en"), languages("own.tsv")
        (('de', 'en'), None)
    """
    found = re.fullmatch(r"([a-z]{2})-([a-z]{2})", pair)
    return None if found is None else (found[1], found[2])


def _load(settings: Settings) -> PairParts:
    assert settings.pair is not None
    pair = languages(settings.pair)
    if pair is None:
        if not Path(settings.pair).suffix and not Path(settings.pair).exists():
            raise DataError(
                "--pair must be two languages, as de-en, or the path of a file, got "
                f"{settings.pair!r}"
            )
        return load_pairs(settings.pair, target_path=settings.targets, seed=settings.seed)
    if settings.targets is not None:
        raise DataError(
            f"--targets must be given with a file as --pair, got {settings.pair} as --pair"
        )
    source, target = pair
    return load_pairs("multi30k", source=source, target=target, data_dir=settings.data_dir)


def _generated(settings: Settings) -> PairParts:
    """Training, validation and test pairs, no source twice."""
    if settings.shortest > settings.longest:
        raise DataError(
            f"--shortest must be at most --longest, {settings.longest}, got {settings.shortest}"
        )
    rng = np.random.default_rng(settings.seed)
    make = _sum if settings.task == "add" else _symbols
    count = settings.examples + 2 * _HELD_OUT
    found: dict[str, str] = {}
    for _ in range(20 * count):
        source, target = make(rng, settings)
        found[source] = target
        if len(found) == count:
            break
    else:
        raise DataError(
            f"--examples, and {2 * _HELD_OUT:,} to validate and test, must be different sequences, "
            f"got {settings.examples:,} where only {len(found):,} were found: longer sequences or "
            "more digits allow more"
        )
    sources, targets = list(found), list(found.values())
    ends = (0, settings.examples, settings.examples + _HELD_OUT, count)
    train, validation, test = (
        Pairs(sources[a:b], targets[a:b]) for a, b in itertools.pairwise(ends)
    )
    sha256 = hashlib.sha256(repr(found).encode()).hexdigest()
    note = f"made by seed {settings.seed}"
    return PairParts(settings.name, train, validation, test, sha256, note)


def _symbols(rng: np.random.Generator, settings: Settings) -> tuple[str, str]:
    length = rng.integers(settings.shortest, settings.longest + 1)
    symbols = [_SYMBOLS[i] for i in rng.integers(len(_SYMBOLS), size=length)]
    made = symbols if settings.task == "copy" else symbols[::-1]
    return " ".join(symbols), " ".join(made)


def _sum(rng: np.random.Generator, settings: Settings) -> tuple[str, str]:
    # As many of one digit as of each other number of digits, of which there are ten times more.
    a, b = (int(rng.integers(10 ** int(rng.integers(1, settings.digits + 1)))) for _ in "ab")
    return f"{a}+{b}", str(a + b)


def tokenizer(settings: Settings) -> Callable[[str], list[str]]:
    """From a text to its tokens, on both sides."""
    if settings.pair is not None:
        return functools.partial(words, keep_case=settings.keep_case)
    return list if settings.task == "add" else str.split


def joined(tokens: Sequence[str], settings: Settings) -> str:
    """Tokens as a text: signs stand by the word before them."""
    if settings.pair is None:
        return ("" if settings.task == "add" else " ").join(tokens)
    return joined_words(tokens)


def _tokens(pairs: Pairs, settings: Settings) -> _Tokens:
    """The pairs with tokens on both sides, at most --max-length with the stop of the target."""
    tokenize, most = tokenizer(settings), settings.max_length
    sources, targets = ([tokenize(text) for text in side] for side in pairs)
    lengths = [(len(s), len(t) + 1) for s, t in zip(sources, targets, strict=True)]
    kept = [i for i, (s, t) in enumerate(lengths) if 0 < s <= most and 1 < t <= most]
    if not kept:
        raise DataError(f"--max-length must leave pairs to train on and to test, got {most}")
    sources, targets = ([side[i] for i in kept] for side in (sources, targets))
    texts = Pairs(*([side[i] for i in kept] for side in pairs))
    return _Tokens(sources, targets, texts, len(lengths) - len(kept))


def _encode(source: Vocabulary, target: Vocabulary, pairs: _Tokens) -> Encoded:
    return Encoded(
        [source.encode(tokens) for tokens in pairs.sources],
        [[*target.encode(tokens), STOP] for tokens in pairs.targets],
    )
