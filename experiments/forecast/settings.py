"""What a run is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from experiments.running.run_settings import PLACE, RunSettings


@dataclass(frozen=True)
class Settings(RunSettings):
    """Train one recurrent network to forecast many series, and compare it."""

    dataset: Annotated[str | None, PLACE] = None
    """A CSV file of your own, a column a series; or airline or solar, of the extra "series"; five
    sets of series are generated if not given."""
    column: str | None = None
    """The one column of the file to forecast; by default every column of numbers."""
    series: int = 24
    """How many series to generate in each set."""
    length: int = 180
    """Steps of a generated series."""
    season: int = 12
    """Steps of a season: 12 for months of a year, 7 for days of a week, 24 for hours of a day."""
    window: int = 36
    """Steps that a forecast is made from: three seasons show what recurs."""
    horizon: int = 12
    """Steps that are forecast at once."""

    cell: Literal["gru", "lstm", "vanilla"] = "gru"
    """The recurrent cell."""
    hidden_size: int = 48
    """Units of the layer; series are short, and few units are enough."""
    dropout: float = 0.1
    """Rate at which outputs of the layer are dropped."""

    batch_size: int = 64
    """Windows in a batch."""
    epochs: int = 20
    """Times all windows are read, at most."""
    patience: int = 5
    """Stop after so many epochs without a lower validation loss."""
    learning_rate: float = 1e-2
    """Of Adam at the start; it falls along a cosine to a hundredth at the last step."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    average_decay: float = 0.99
    """Of the running average of the weights, which is what is kept."""
    seed: int = 0
    """Decides the generated series, the first weights, dropout and the order of the windows."""
    devices: int | None = None
    """How many of the devices here, all by default, divide the windows of a batch among them."""

    out: Path | None = None
    """Folder of the run; by default runs/forecast-NAME-TIME."""
    checkpoint_every: str = "60s"
    """Save after so many steps (50) or seconds (60s), besides after every epoch."""
    keep: int = 2
    """Checkpoints that stay on disk."""
    resume: bool = False
    """Go on with the run in --out from its newest good checkpoint, with the settings it has."""
    replace: bool = False
    """Delete the run in --out, and begin anew."""
