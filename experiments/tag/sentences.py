"""Sentences with a label for every word: made by a grammar, or read from a file."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.running.dividing import divided
from experiments.tag.settings import Settings
from rnnjax.data import DataError, read_text

Sentence = list[tuple[str, str]]  # words with their labels


class Corpus(NamedTuple):
    """Labelled sentences in three parts.

    Attributes:
        name: of the data set.
        sha256: of what was read, or of what was made.
        train: sentences.
        validation: sentences.
        test: sentences.
    """

    name: str
    sha256: str
    train: list[Sentence]
    validation: list[Sentence]
    test: list[Sentence]


def read_corpus(settings: Settings) -> Corpus:
    """The sentences that the settings name, divided 3:1:1 by the seed.

    Raises:
        DataError: a file cannot be read, or a line of it is no word with a label.
    """
    if settings.dataset is None:
        rng = np.random.default_rng((settings.seed, settings.sentences))
        name, sentences = "grammar", [make_sentence(rng) for _ in range(settings.sentences)]
        digest = hashlib.sha256(repr(sentences).encode()).hexdigest()
    else:
        path = Path(settings.dataset)
        name, sentences = path.stem, read_sentences(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if len(sentences) < 5:
        raise DataError(
            f"{settings.dataset} must hold at least 5 sentences, each ended by an empty line, got "
            f"{len(sentences)}"
        )
    return Corpus(name, digest, *divided(sentences, settings.seed, 5))


def read_sentences(path: Path) -> list[Sentence]:
    """A word at the beginning of each line and its label at the end; empty lines between sentences.

    Columns are divided by tabs, or in a line without any by blanks. All lines have as many, so that
    a comment, or a name of two words among blanks, is not taken for a word and its label.

    Raises:
        DataError: the file is no text, or a line has no word, no label or another number of
            columns; names the line.
    """
    sentences: list[Sentence] = [[]]
    first = None
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        columns = line.split("\t") if "\t" in line else line.split()
        if not line.strip():
            sentences.append([])
        elif len(columns) < 2 or not columns[0].strip() or not columns[-1].strip():
            raise DataError(
                f"{path}, line {number}: must be a word and its label, got {line[:60]!r}"
            )
        elif len(columns) != (first := first or len(columns)):
            raise DataError(
                f"{path}, line {number}: must have {first} columns as the lines before, got "
                f"{line[:60]!r}"
            )
        else:
            sentences[-1].append((columns[0].strip(), columns[-1].strip()))
    return [sentence for sentence in sentences if sentence]


# Words of one kind, and words of two: which of them they are, the rest of the sentence says.
_WORDS = {
    "determiner": ("the", "a", "every", "this", "her"),
    "pronoun": ("she", "he", "they", "her", "we"),
    "auxiliary": ("can", "will", "may", "must"),
    "conjunction": ("and", "but", "while"),
    "adjective": ("small", "old", "light", "cold", "green", "plain", "fast", "kind"),
    "noun": ("house", "river", "can", "will", "light", "cold", "green", "plain", "kind", "fish",
             "watch", "duck", "book", "walk", "play"),
    "verb": ("swims", "sees", "takes", "fish", "watch", "duck", "book", "walk", "play", "light"),
}  # fmt: skip


def make_sentence(rng: np.random.Generator) -> Sentence:
    """One to three clauses; every noun has a determiner and every clause a verb."""
    kinds: list[str] = []
    for clause in range(int(rng.choice((1, 2, 3), p=(0.5, 0.35, 0.15)))):
        kinds += ["conjunction"] * (clause > 0) + _noun_phrase(rng)
        kinds += ["auxiliary"] * int(rng.random() < 0.4) + ["verb"]
        kinds += _noun_phrase(rng) if rng.random() < 0.6 else []
    return [(str(rng.choice(_WORDS[kind])), kind) for kind in kinds]


def _noun_phrase(rng: np.random.Generator) -> list[str]:
    if rng.random() < 0.3:
        return ["pronoun"]
    return ["determiner", *["adjective"] * int(rng.integers(0, 3)), "noun"]


def most_frequent(train: Sequence[Sentence], test: Sequence[Sentence]) -> float:
    """The share of the words whose label is the one they have most often in training."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for sentence in train:
        for word, label in sentence:
            counts[word][label] += 1
    usual = sum(counts.values(), Counter()).most_common(1)[0][0]
    guesses = {word: labels.most_common(1)[0][0] for word, labels in counts.items()}
    pairs = [pair for sentence in test for pair in sentence]
    return sum(guesses.get(word, usual) == label for word, label in pairs) / len(pairs)
