"""What all libraries train: the same texts, the same classifier, the same weights at the start."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import numpy as np
from numpy.typing import NDArray

from experiments.running.text import fit_encoder, take
from rnnjax.data import DataError, load
from rnnjax.data.batching import Batch
from rnnjax.data.ragged import Sequences
from rnnjax.interop.classifiers import Architecture, LayerSize, build
from rnnjax.models import ClassifierParams


@dataclass(frozen=True)
class Settings:
    """Time whole epochs of one bidirectional LSTM classifier in every library that is installed."""

    dataset: str = "rotten_tomatoes"
    """As for experiments.classify."""
    data_dir: Path | None = None
    """As for experiments.classify."""
    take: int | None = None
    """Train on this many examples only."""
    vocabulary_size: int = 20_000
    """Most frequent words kept, of those that come twice."""
    max_length: int = 400
    """Longer texts are cut."""
    embedding_size: int = 100
    """Size of a word vector."""
    hidden_size: int = 64
    """Units of the LSTM in each direction; the last outputs of both are read."""
    batch_size: int = 32
    """Texts in a batch."""
    buckets: int = 4
    """Lengths of the bucketed batches."""
    learning_rate: float = 1e-3
    """Of Adam."""
    epochs: int = 3
    """Timed; in each of them all take turns."""
    seed: int = 0
    """Decides the order of the examples and the weights at the start."""
    out: Path | None = None
    """Folder of the run; by default runs/epochs-DATASET-TIME."""


class Task(NamedTuple):
    """What a library is given."""

    settings: Settings
    architecture: Architecture
    params: ClassifierParams  # NumPy
    ids: Sequences
    labels: list[int]

    @property
    def tokens(self) -> int:
        """Of all texts."""
        return sum(map(len, self.ids))


class Contestant(Protocol):
    """A library that trains the task.

    Attributes:
        name: of the library, and how it batches.
        compile_seconds: all that was spent on compiling so far; 0 where nothing is compiled.
    """

    name: str

    @property
    def compile_seconds(self) -> float: ...

    def batches(self, n: int) -> Iterable[object]:
        """The batches of epoch ``n`` as its training steps read them."""
        ...

    def epoch(self, n: int) -> float:
        """Train on every text once; the share of right answers while it went on."""
        ...

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """What the classifier says of the texts, as it is now."""
        ...


def make_task(settings: Settings) -> Task:
    """Load and encode the training texts, and draw the weights."""
    if settings.epochs < 1:
        raise DataError(f"epochs: expected 1 or more, got {settings.epochs}")
    dataset = load(settings.dataset, data_dir=settings.data_dir, seed=settings.seed)
    train = take(dataset.train, settings.take)
    encode = fit_encoder(
        train.texts,
        tokenizer="basic_english",
        vocabulary_size=settings.vocabulary_size,
        min_count=2,
        max_length=settings.max_length,
        keep="head",
    )
    architecture = Architecture(
        "lstm",
        len(encode.vocabulary),
        settings.embedding_size,
        (LayerSize(settings.hidden_size, bidirectional=True),),
        len(dataset.label_names),
    )
    params = build(architecture).init(jax.random.key(settings.seed))
    params = jax.tree.map(np.asarray, params)
    return Task(settings, architecture, params, encode(train.texts), list(train.labels))
