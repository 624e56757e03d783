"""A trained network that translates sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rnnjax
from experiments.running.trained import finished_settings, load_trained
from experiments.translate.corpus import joined, tokenizer
from experiments.translate.decoding import alignments, translate
from experiments.translate.model import build_model
from experiments.translate.pictures import Alignment
from experiments.translate.settings import Settings
from rnnjax.data import UNKNOWN, Vocabulary

PROGRAM = "python -m experiments.translate"
VOCABULARIES = ("source_vocabulary.json", "target_vocabulary.json")
STOP_SHOWN = "(end)"


class Translator:
    """The network in a run's folder.

    Args:
        folder: that of a finished run.

    Raises:
        DataError: it holds none, or files of different runs.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.settings = finished_settings(PROGRAM, Settings, folder)
        self._source, self._target = (Vocabulary.load(folder / name) for name in VOCABULARIES)
        self.model: rnnjax.SequenceToSequence = build_model(
            self.settings, len(self._source), len(self._target)
        )
        self.params: Any = load_trained(self.model.init, folder)
        self._tokenize = tokenizer(self.settings)

    def __call__(
        self, sentences: Sequence[str], *, beam: int = 5, length_penalty: float = 0.6
    ) -> list[list[str]]:
        """For each sentence its translations, the best first; none for one without words.

        Args:
            sentences: in any number: 64 are translated at a time.
            beam: hypotheses side by side; at most so many are returned.
            length_penalty: from 0, where short texts win, to 1, where the mean over tokens counts.
        """
        found = self.ids(sentences, beam=beam, length_penalty=length_penalty)
        return [[self.text(ids) for ids in texts] for texts in found]

    def ids(
        self, sentences: Sequence[str], *, beam: int = 5, length_penalty: float = 0.6
    ) -> list[list[list[int]]]:
        """The same as ids of the target's vocabulary, without the stop."""
        read = [self.tokens(sentence) for sentence in sentences]
        places = [i for i, tokens in enumerate(read) if tokens]
        found = translate(
            self.model,
            self.params,
            [self._source.encode(read[i]) for i in places],
            beam=beam,
            max_length=self.settings.max_length,
            length_penalty=length_penalty,
        )
        texts: list[list[list[int]]] = [[] for _ in read]
        for i, hypotheses in zip(places, found, strict=True):
            texts[i] = hypotheses
        return texts

    def text(self, ids: Sequence[int]) -> str:
        """A translation from its ids."""
        return joined(self._target.decode(ids), self.settings)

    def tokens(self, sentence: str) -> list[str]:
        """How a sentence is cut before it is read."""
        return self._tokenize(sentence)

    def unknown(self, sentence: str) -> list[str]:
        """The tokens of a sentence that are not in the vocabulary, each once."""
        tokens = dict.fromkeys(self.tokens(sentence))
        return [token for token in tokens if self._source.encode([token]) == [UNKNOWN]]

    def was_cut(self, ids: Sequence[int]) -> bool:
        """Whether a translation had not come to its end at the greatest length."""
        return len(ids) >= self.settings.max_length

    def looked(self, sentence: str, ids: Sequence[int]) -> Alignment:
        """Where the network looked while it wrote a translation."""
        tokens = self.tokens(sentence)
        (weights,) = alignments(self.model, self.params, [self._source.encode(tokens)], [ids])
        return Alignment(tokens, [*self._target.decode(ids), STOP_SHOWN], weights)
