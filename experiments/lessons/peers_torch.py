"""The training of a recipe by PyTorch, as the lesson does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from experiments.lessons.recipes import Corpus, Encoded, Recipe, Totals
from experiments.running.packages import require
from rnnjax.interop.classifiers import export_torch
from rnnjax.models import ClassifierParams

require("PyTorch", "torch")
import torch  # noqa: E402


class Classifier(torch.nn.Module):
    """The three classifiers of the lesson in one: padded or packed, last output or mean."""

    def __init__(self, recipe: Recipe, vocab_size: int) -> None:
        super().__init__()
        (size,) = recipe.layers
        make = {"vanilla": torch.nn.RNN, "lstm": torch.nn.LSTM}[recipe.kind]
        self.embedding = torch.nn.Embedding(vocab_size, recipe.embedding_size)
        self.rnn = make(recipe.embedding_size, size.hidden_size, batch_first=True)
        self.fc = torch.nn.Linear(size.hidden_size, recipe.num_classes)
        self._packed = not recipe.reads_padding
        self._mean = recipe.pooling == "mean"

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        xs = self.embedding(tokens)
        if not self._packed:
            ys, state = self.rnn(xs)
            return self.fc(ys.mean(dim=1) if self._mean else _hidden(state))
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            xs, lengths, batch_first=True, enforce_sorted=False
        )
        ys, state = self.rnn(packed)
        # The lesson unpacks the outputs, and does not use them, so that it can be changed easily.
        ys, _ = torch.nn.utils.rnn.pad_packed_sequence(ys, batch_first=True)
        return self.fc(ys.sum(dim=1) / lengths[:, None] if self._mean else _hidden(state))


def _hidden(state: Any) -> torch.Tensor:
    return (state[0] if isinstance(state, tuple) else state)[-1]


class Torch:
    """A contestant: see `experiments.lessons.contest.Contestant`."""

    def __init__(self, recipe: Recipe, corpus: Corpus) -> None:
        self._recipe = recipe
        self._corpus = corpus

    @property
    def compile_seconds(self) -> float:
        """Nothing: PyTorch compiles nothing here."""
        return 0.0

    def begin(self, params: ClassifierParams, steps: int, seed: int) -> None:
        """Starts anew from these parameters."""
        del steps
        torch.manual_seed(seed)
        self.net = Classifier(self._recipe, self._corpus.vocab_size)
        weights = export_torch(self._recipe.kind, jax.tree.map(np.asarray, params))
        self.net.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
        self._optimizer = torch.optim.Adam(self.net.parameters(), lr=self._recipe.learning_rate)
        self._loss = torch.nn.CrossEntropyLoss()

    def prepare(self, batches: Sequence[NDArray[np.int64]]) -> None:
        """Nothing: PyTorch compiles nothing here."""

    def advance(self, batches: Sequence[NDArray[np.int64]]) -> Totals:
        """Trains on these batches."""
        self.net.train()
        losses, hits = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        for rows in batches:
            tokens, lengths, labels = batch_of(self._corpus.train, rows)
            self._optimizer.zero_grad()
            logits = self.net(tokens, lengths)
            loss = self._loss(logits, labels)
            loss.backward()
            self._optimizer.step()
            losses += loss.detach()
            hits += (logits.argmax(dim=1) == labels).sum()
        return Totals(float(losses), float(hits))

    @torch.no_grad()
    def accuracy(self, batches: Sequence[NDArray[np.int64]]) -> float:
        """The share of right answers on these batches of the test texts."""
        self.net.eval()
        hits = 0
        for rows in batches:
            tokens, lengths, labels = batch_of(self._corpus.test, rows)
            hits += int((self.net(tokens, lengths).argmax(dim=1) == labels).sum())
        return hits / sum(map(len, batches))


def batch_of(
    encoded: Encoded, rows: NDArray[np.int64]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens padded to the longest text, lengths, labels."""
    tokens = encoded.ragged.padded(rows, encoded.width(rows)).astype(np.int64)
    return torch.from_numpy(tokens), _longs(encoded.lengths[rows]), _longs(encoded.labels[rows])


def _longs(values: NDArray[np.int32]) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64))
