"""What a run is told, and what watching with it is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from experiments.running.loss_fitting import TrainingSettings
from experiments.running.parsing import Positional
from experiments.running.run_settings import PLACE


@dataclass(frozen=True)
class Settings(TrainingSettings):
    """Train a recurrent network on a normal series, and judge by it what is not."""

    dataset: Annotated[str | None, PLACE] = None
    """bleeding, a pressure of blood, which comes in a package (the extra series); or a CSV file of
    your own, a row a step and a column of numbers for each channel. Beats with faults of known
    places and kinds are generated if not given."""
    label: str | None = None
    """The column of the file that is 1 at the steps of faults and else 0; without it nothing is
    judged."""
    normal: float = 0.4
    """Share of the file at its beginning to learn from; steps that --label marks are left out."""
    series: int = 8
    """How many series to generate to learn from, as many to choose the alarm by, and twice as many
    to judge."""
    length: int = 600
    """Steps of a generated series."""
    season: int = 20
    """Steps of a beat, roughly; of a file, those of what recurs. Only the baselines need it."""

    cell: Literal["gru", "lstm", "vanilla"] = "gru"
    """The recurrent cell."""
    hidden_size: int = 32
    """Units of the layer."""
    components: int = 2
    """Gaussians in the mixture that says what may come next in a channel."""
    dropout: float = 0.0
    """Rate at which outputs of the layer are dropped."""
    window: int = 100
    """Steps that are learned from at once; windows overlap by half."""

    batch_size: int = 16
    """Windows in a batch."""
    epochs: int = 40
    patience: int = 8
    learning_rate: float = 1e-2


@dataclass(frozen=True)
class Request:
    """Say at which steps of a series a trained network gives the alarm. Prints the step, from 0
    on, and its surprise in nats, with a tab between."""

    run: Positional[Path]
    """Folder of the run."""
    file: Positional[Path]
    """A CSV file with the columns that the run learned from."""
    out: Path | None = None
    """A CSV file to write the surprise of every step to."""
