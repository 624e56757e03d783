"""What all libraries train: the same texts, the same classifier, the same weights at the start."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import numpy as np
from numpy.typing import NDArray

from experiments.running.data_folder import check_folder
from experiments.running.setting_checks import check_settings
from experiments.running.text import fit_encoder, take
from rnnjax.data import load
from rnnjax.data.batching import Batch
from rnnjax.data.ragged import RaggedRows
from rnnjax.interop.classifiers import Architecture, LayerSize, build
from rnnjax.models import ClassifierParams


@dataclass(frozen=True)
class Settings:
    """Time epochs of one bidirectional LSTM in every library that is installed."""

    dataset: str = "rotten_tomatoes"
    """What to train on, as for experiments.classify: rotten_tomatoes needs no network."""
    data_dir: Path | None = None
    """The folder of local data sets; without it the environment variable RNNJAX_DATA says it."""
    take: int | None = None
    """Train on this many examples only, to try something out quickly."""
    vocabulary_size: int = 20_000
    """Keep this many of the most frequent words, of those that come twice: the size of the table of
    vectors, which Adam updates whole."""
    max_length: int = 400
    """Cut texts to this many words, so that one very long text does not decide the time."""
    embedding_size: int = 100
    """The size of a word vector, which is what the LSTM reads in each step."""
    hidden_size: int = 64
    """Units of the LSTM in each direction; the last outputs of both are what the head reads."""
    batch_size: int = 32
    """Texts in a batch, the same in every library, so that all take as many steps."""
    buckets: int = 4
    """Lengths that bucketed batches are padded to: more pad less, but each is compiled once."""
    learning_rate: float = 1e-3
    """The step size of Adam, the same in every library, so that all learn alike."""
    epochs: int = 3
    """How many epochs are timed; in each the libraries take turns, so that a slow minute of the
    machine meets all of them."""
    seed: int = 0
    """Decides the order of the examples and the weights at the start."""
    out: Path | None = None
    """The folder of the run, so that it can be found again; by default runs/epochs-DATASET-TIME."""


class Task(NamedTuple):
    """What a library is given."""

    settings: Settings
    architecture: Architecture
    params: ClassifierParams  # NumPy
    ids: RaggedRows
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
    check_settings(settings)
    check_folder(settings)
    dataset = load(settings.dataset, data_dir=settings.data_dir, seed=settings.seed)
    train = take(dataset.train, settings.take)
    encode = fit_encoder(
        train.texts,
        vocabulary_size=settings.vocabulary_size,
        max_length=settings.max_length,
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
