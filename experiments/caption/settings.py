"""What a run is told, and what captioning with it is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from experiments.running.loss_fitting import TrainingSettings
from experiments.running.parsing import Positional
from experiments.running.run_settings import PLACE


@dataclass(frozen=True)
class Settings(TrainingSettings):
    """Train a network that says what is in a picture."""

    captions: Annotated[Path | None, PLACE] = None
    """Pictures of your own: a file with a line for each, its path (from the file's folder), a tab
    and the caption. Of a picture with several, each is learnt, and what is written in the test is
    right where it is the one that it stands beside. Without a file scenes are made."""
    scenes: int = 20_000
    """Scenes to train on; 1,000 more are for validation and 1,000 for the test."""
    min_count: int = 1
    """Words that are rarer in the training captions are read as one unknown word."""
    max_length: int = 30
    """Longest caption to train on, in words, and longest to write."""

    attention: Literal["outside", "inside", "hard", "none"] = "outside"
    """Where the decoder looks: after each step, for the word alone; before it, inside the
    recurrence (Show, Attend and Tell), at a mean of all places or, hard, at one that is drawn; or
    nowhere, knowing the mean of the whole picture alone."""
    selector: bool = False
    """Whether a decoder that looks before each step, inside or hard, may pass over what it sees."""
    hidden_size: int = 128
    """Units of the decoder, an LSTM."""
    picture_size: int = 64
    """Size of the vector of each place."""
    embedding_size: int = 16
    """Size of a word's vector."""
    dropout: float = 0.0
    """Rate at which words' vectors, and what the head reads, are dropped."""

    once: float = 0.0
    """Weight of the doubly stochastic penalty: attention to each place once over all words."""
    entropy: float = 0.002
    """In hard attention, weight of a reward for weights that are spread, against deciding early."""

    batch_size: int = 64
    """Captions of one step, each beside its picture."""
    epochs: int = 12
    patience: int = 4
    learning_rate: float = 3e-3

    beam: int = 1
    """Hypotheses side by side in the test; 1 takes the likeliest word at every step."""

    MAY_CHANGE: ClassVar = ("beam",)


@dataclass(frozen=True)
class Request:
    """Say what is in a picture, with a trained network."""

    run: Positional[Path]
    """Folder of the run."""
    pictures: Positional[tuple[Path, ...]] = ()
    """Pictures in files. Of several, each has a line: its path, a tab and the best caption."""
    beam: int = 5
    """Hypotheses side by side; all are printed of a single picture."""
    length_penalty: float = 0.6
    """From 0, where short texts win, to 1, where the mean over the words counts."""
    figure: Path | None = None
    """Where to draw where it looked in a single picture; by default
    where-it-looked-at-a-picture.png in the run's folder."""


@dataclass(frozen=True)
class Export:
    """Write a trained network as programs that need JAX alone to run."""

    run: Positional[Path]
    """Folder of the run."""
    out: Path | None = None
    """Folder of the programs; by default exported in the run's folder."""
