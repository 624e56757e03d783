"""From a text to token ids and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from experiments.write.settings import Settings
from rnnjax.data import PADDING, UNKNOWN, DataError, Vocabulary, load_text

Level = Literal["chars", "words"]
LINE_END = "<eos>"
NEVER_WRITTEN = (PADDING, UNKNOWN)


class Corpus(NamedTuple):
    """A text as ids, in three parts; ``test`` is empty where the text has none.

    Attributes:
        name: of the data set.
        note: where it came from and how it was divided.
        sha256: of its files.
        vocabulary: its tokens, learned from the training part.
        train: ids [N].
        validation: ids [M].
        test: ids [K].
    """

    name: str
    note: str
    sha256: str
    vocabulary: Vocabulary
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def read_corpus(settings: Settings) -> Corpus:
    """The text that the settings name."""
    text = load_text(settings.dataset, data_dir=settings.data_dir, seed=settings.seed)
    train = tokenize(text.train[: settings.take], settings.level)
    vocabulary = Vocabulary.fit([train], max_size=settings.vocabulary_size + 2)
    others = (tokenize(part, settings.level) for part in (text.validation, text.test))
    parts = [encode(vocabulary, tokens) for tokens in (train, *others)]
    return Corpus(text.name, text.note, text.sha256, vocabulary, *parts)


def tokenize(text: str, level: Level) -> Sequence[str]:
    """Characters; or words as they stand between blanks, and a token where a line ends."""
    if level == "chars":
        return list(text)
    return [word for line in text.split("\n") for word in (*line.split(), LINE_END)][:-1]


def encode(vocabulary: Vocabulary, tokens: Sequence[str]) -> np.ndarray:
    """Ids of tokens, int32."""
    return np.asarray(vocabulary.encode(tokens), np.int32)


def decode(vocabulary: Vocabulary, ids: Iterable[int], level: Level) -> str:
    """The text of some ids; a word is followed by a blank, so that pieces can be joined."""
    tokens = vocabulary.decode(ids)
    if level == "chars":
        return "".join(tokens)
    return "".join("\n" if token == LINE_END else f"{token} " for token in tokens)


def encode_prompt(vocabulary: Vocabulary, prompt: str | None, level: Level) -> np.ndarray:
    """A prompt as ids; None is the end of a line, or in a text of one line its most frequent token.

    Raises:
        DataError: it is empty, or holds nothing that the vocabulary knows.
    """
    if prompt is None:
        line_end = "\n" if level == "chars" else LINE_END
        known = line_end in vocabulary.tokens
        return np.array([vocabulary.tokens.index(line_end) if known else len(NEVER_WRITTEN)])
    tokens = tokenize(prompt, level)
    if not tokens:
        raise DataError("the prompt must have at least one token, got none")
    ids = encode(vocabulary, tokens)
    if np.all(ids == UNKNOWN):
        raise DataError(f"the prompt must have a token of the training text, got {prompt!r}")
    return ids
