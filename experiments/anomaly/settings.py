"""What a run is told, and what watching with it is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from experiments.running.run_settings import PLACE, RunSettings


@dataclass(frozen=True)
class Settings(RunSettings):
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
    """Steps of a beat, roughly; of a file, those of what recurs. Only the simple rivals need it."""

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
    """Times all windows are read, at most."""
    patience: int = 8
    """Stop after so many epochs without a lower validation loss."""
    learning_rate: float = 1e-2
    """Of Adam at the start; it falls along a cosine to a hundredth at the last step."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    average_decay: float = 0.98
    """Of the running average of the weights, which is what is kept."""
    seed: int = 0
    """Decides the generated series, the first weights, dropout and the order of the windows."""
    devices: int | None = None
    """How many of the devices here, all by default, divide the windows of a batch among them."""

    out: Path | None = None
    """Folder of the run; by default runs/anomaly-NAME-TIME."""
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
    """Say at which steps of a series a trained network gives the alarm. Prints the step, from 0
    on, and its surprise in nats, with a tab between."""

    run: Positional[Path]
    """Folder of the run."""
    file: Positional[Path]
    """A CSV file with the columns that the run learned from."""
    out: Path | None = None
    """A CSV file to write the surprise of every step to."""
