"""What a run is told, and what labelling with it is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from experiments.running.loss_fitting import TrainingSettings
from experiments.running.parsing import Positional
from experiments.running.run_settings import PLACE


@dataclass(frozen=True)
class Settings(TrainingSettings):
    """Train a recurrent network to label every word."""

    dataset: Annotated[str | None, PLACE] = None
    """A file of your own: a word and its label on each line, an empty line after each sentence.
    Sentences of a small grammar, with words of several kinds, are generated if not given."""
    sentences: int = 3000
    """How many sentences to generate; a fifth of them validates, a fifth tests."""

    direction: Literal["both", "forward"] = "both"
    """Whether a label may depend on the words behind it, as it often must."""
    cell: Literal["gru", "lstm", "vanilla"] = "gru"
    """The recurrent cell."""
    hidden_size: int = 32
    """Units of the layer, in each direction."""
    embedding_size: int = 32
    """Size of a word's vector."""
    dropout: float = 0.2
    """Rate at which inputs and outputs of the layer are dropped."""

    batch_size: int = 32
    """Sentences in a batch."""
    buckets: int = 3
    """Compiled shapes: sentences of similar lengths share batches."""
    epochs: int = 12
    patience: int = 3
    learning_rate: float = 1e-2


@dataclass(frozen=True)
class Request:
    """Label sentences with a trained network."""

    run: Positional[Path]
    """Folder of the run."""
    sentence: Positional[str]
    """Words with blanks between."""
