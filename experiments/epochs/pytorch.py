"""PyTorch: a DataLoader that pads each batch to its longest text, packed for the LSTM."""

from __future__ import annotations

import jax
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader

from experiments.epochs.task import Task
from rnnjax.data.batching import Batch
from rnnjax.interop.classifiers import export_torch

Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Classifier(torch.nn.Module):
    """Embedding, packed bidirectional LSTM, linear head on the last outputs."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        sizes = task.architecture
        (layer,) = sizes.layers
        self.embedding = torch.nn.Embedding(sizes.vocab_size, sizes.embedding_size)
        self.rnn = torch.nn.LSTM(
            sizes.embedding_size, layer.hidden_size, batch_first=True, bidirectional=True
        )
        self.fc = torch.nn.Linear(2 * layer.hidden_size, sizes.num_classes)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        _, (h, _) = self.rnn(packed)
        return self.fc(torch.cat([h[0], h[1]], dim=1))


def collate(rows: list[tuple[torch.Tensor, int]]) -> Rows:
    """Tokens [B, T], lengths [B] and labels [B] of a batch."""
    tokens = pad_sequence([ids for ids, _ in rows], batch_first=True)
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    return tokens, lengths, torch.tensor([label for _, label in rows])


class Torch:
    """A contestant: see `experiments.epochs.task.Contestant`."""

    name = "PyTorch, packed"
    compile_seconds = 0.0

    def __init__(self, task: Task) -> None:
        # Where JAX computes, with products of the same precision there.
        self._device = torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")
        torch.backends.cuda.matmul.allow_tf32 = True
        self.net = Classifier(task).to(self._device)
        weights = export_torch(task.architecture.kind, task.params)
        self.net.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
        self._optimizer = torch.optim.Adam(self.net.parameters(), lr=task.settings.learning_rate)
        self._loss = torch.nn.CrossEntropyLoss()
        texts = [torch.tensor(np.asarray(row, np.int64)) for row in task.ids]
        self._batch_size, self._seed = task.settings.batch_size, task.settings.seed
        self._rows = list(zip(texts, task.labels, strict=True))

    def batches(self, n: int) -> DataLoader:
        """The batches of an epoch; worker processes would take the cores from the training."""
        chance = torch.Generator().manual_seed(self._seed + n)
        return DataLoader(
            self._rows,  # pyright: ignore[reportArgumentType]
            batch_size=self._batch_size,
            shuffle=True,
            generator=chance,
            collate_fn=collate,
        )

    def epoch(self, n: int) -> float:
        """Train on every text once."""
        self.net.train()
        hits = torch.zeros((), dtype=torch.int64, device=self._device)
        for tokens, lengths, labels in self.batches(n):
            # Lengths stay on the host, where packing reads them.
            tokens, labels = tokens.to(self._device), labels.to(self._device)
            self._optimizer.zero_grad()
            logits = self.net(tokens, lengths)
            self._loss(logits, labels).backward()
            self._optimizer.step()
            hits += (logits.argmax(dim=1) == labels).sum()
        return int(hits) / len(self._rows)

    @torch.no_grad()
    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """What the classifier says of a batch."""
        tokens, lengths = (
            torch.from_numpy(np.asarray(a, np.int64)) for a in (batch.tokens, batch.lengths)
        )
        return self.net(tokens.to(self._device), lengths).cpu().numpy()
