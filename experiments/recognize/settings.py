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
    """Train a recurrent network to say what kind a series is."""

    dataset: Annotated[str | None, PLACE] = None
    """japanese_vowels or mnist1d, which come in packages (the extra series); or a file of your own:
    .ts as of the UEA archive, or .csv with the columns series, step, label and one for each
    channel. Strokes of a pen are generated if not given."""
    test: Annotated[Path | None, PLACE] = None
    """A file with the series to test on; by default a fifth of those in --dataset."""
    series: int = 1000
    """How many series to generate; a fifth of them validates, a fifth tests."""
    validation: float = 0.2
    """Share of the series to train on that chooses the weights instead."""

    direction: Literal["both", "forward"] = "both"
    """Whether the layers read the series backwards as well."""
    cell: Literal["gru", "lstm", "vanilla"] = "gru"
    """The recurrent cell."""
    hidden_size: int = 48
    """Units of a layer, in each direction."""
    layers: int = 1
    """Layers on top of one another."""
    pooling: Literal["last", "mean", "max", "places"] = "mean"
    """What becomes of the outputs of all steps: the last ones, their mean, their greatest; or all
    of them side by side, so that the place of a step counts."""
    dropout: float = 0.3
    """Rate at which the inputs of each layer, and what is pooled, are dropped; with --pooling
    places the series themselves are read whole."""
    noise: float = 0.1
    """Standard deviation of what is added to the values in training, in units of that of their
    channel: a few hundred series are soon known by heart."""

    batch_size: int = 16
    """Series in a batch."""
    buckets: int = 2
    """Compiled shapes: series of similar lengths share batches."""
    epochs: int = 60
    patience: int = 60
    learning_rate: float = 5e-3


@dataclass(frozen=True)
class Request:
    """Label the series of a file with a trained network. Prints the name of each series, its label
    and the probability, with tabs between."""

    run: Positional[Path]
    """Folder of the run."""
    file: Positional[Path]
    """A .ts or .csv file as --dataset takes; labels may be left out."""
