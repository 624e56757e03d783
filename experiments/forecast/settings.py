"""What a run is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from experiments.running.loss_fitting import TrainingSettings
from experiments.running.parsing import Positional
from experiments.running.run_settings import PLACE


@dataclass(frozen=True)
class Settings(TrainingSettings):
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
    patience: int = 5
    learning_rate: float = 1e-2
    average_decay: float = 0.99


@dataclass(frozen=True)
class Request:
    """Forecast what comes after the last row of a file by a trained network. Prints series, step,
    lower end, median and upper end of the band, with tabs between."""

    run: Positional[Path]
    """Folder of a run with --dataset."""
    file: Positional[Path]
    """The CSV file of the run, with the new rows below the old ones."""
