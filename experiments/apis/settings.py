"""The settings, and what a model under training is for every interface."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from rnnjax.data import Batch

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Train a recurrent classifier through one interface, or all three, and compare."""

    api: Literal["all", "functional", "nnx", "linen"] = "all"
    """The interface; all trains through each, from the same weights on the same batches."""
    dataset: str = "rotten_tomatoes"
    """rotten_tomatoes needs no network, as its sentences come inside a package; a path such as
    own.csv is your own file, with the columns text and label."""
    data_dir: Path | None = None
    """Folder of local data sets; the environment variable RNNJAX_DATA if not given."""
    take: int | None = None
    """Train on this many examples only."""
    vocabulary_size: int = 20_000
    """Most frequent words kept; the rest are read as one unknown word."""
    max_length: int = 100
    """Longer texts are cut."""

    cell: Literal["lstm", "gru"] = "gru"
    """The recurrent cell. Nothing is dropped out: each interface would draw its own noise."""
    hidden_size: int = 64
    """Units of the cell."""
    embedding_size: int = 100
    """Size of a word vector, learned from nothing."""

    batch_size: int = 32
    """Rows in a batch."""
    buckets: int = 3
    """Lengths that batches are padded to, which is how many shapes are compiled."""
    epochs: int = 2
    """Enough to learn; later the classifier knows its few sentences by heart."""
    learning_rate: float = 1e-3
    """Of Adam."""
    seed: int = 0
    """Decides the split, the initial weights and the order of examples."""
    out: Path | None = None
    """Folder of the run; by default runs/apis-DATASET-TIME."""


class Sizes(NamedTuple):
    """What the data decide of the model."""

    vocabulary: int
    classes: int


class Trainer(Protocol):
    """A model under training, whatever holds its parameters."""

    def step(self, batch: Batch) -> Metrics:
        """Take one training step; loss and accuracy before it, as sums and counts."""
        ...

    def measure(self, batch: Batch) -> Metrics:
        """Loss and accuracy, as sums and counts."""
        ...
