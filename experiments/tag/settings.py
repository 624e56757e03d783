"""What a run is told, and what labelling with it is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from experiments.running.run_settings import PLACE, RunSettings


@dataclass(frozen=True)
class Settings(RunSettings):
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
    """Times all sentences are read, at most."""
    patience: int = 3
    """Stop after so many epochs without a lower validation loss."""
    learning_rate: float = 1e-2
    """Of Adam at the start; it falls along a cosine to a hundredth at the last step."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    average_decay: float = 0.98
    """Of the running average of the weights, which is what is kept."""
    seed: int = 0
    """Decides the generated sentences, the first weights, dropout and the order."""
    devices: int | None = None
    """How many of the devices here, all by default, divide the sentences of a batch among them."""

    out: Path | None = None
    """Folder of the run; by default runs/tag-NAME-TIME."""
    checkpoint_every: str = "60s"
    """Save after so many steps (50) or seconds (60s), besides after every epoch."""
    keep: int = 2
    """Checkpoints that stay on disk."""
    resume: bool = False
    """Go on with the run in --out from its newest good checkpoint, with the settings it has."""
    replace: bool = False
    """Delete the run in --out, and begin anew."""


@dataclass(frozen=True)
class Request:
    """Label sentences with a trained network."""

    run: Positional[Path]
    """Folder of the run."""
    sentence: Positional[str]
    """Words with blanks between."""
