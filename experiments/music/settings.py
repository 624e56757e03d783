"""What a run is told, and what composing with it is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from experiments.running.loss_fitting import TrainingSettings
from experiments.running.parsing import Positional
from experiments.running.run_settings import PLACE


@dataclass(frozen=True)
class Settings(TrainingSettings):
    """Train a recurrent network on pieces of music, a frame of 88 keys at a time."""

    dataset: Annotated[str | None, PLACE] = None
    """jsb_chorales, from --data-dir; progressions, which are generated and need no file; or a file
    of your own, .json or .json.gz. By default the chorales where there is a --data-dir, or where
    they lie in RNNJAX_DATA, else progressions."""
    data_dir: Annotated[Path | None, PLACE] = None
    """Folder of local data sets; the environment variable RNNJAX_DATA if not given."""
    pieces: int = 400
    """How many progressions to generate; a fifth of them validates, a fifth tests."""

    cell: Literal["gru", "lstm", "vanilla"] = "gru"
    """The recurrent cell."""
    hidden_size: int = 256
    """Units of a layer."""
    layers: int = 1
    """Layers on top of one another; with few pieces one is enough."""
    dropout: float = 0.4
    """Rate at which outputs of the layers are dropped: 229 chorales are soon known by heart."""
    transpose: int = 0
    """Also learn every piece moved up and down by so many keys. Pieces are then in every key, and
    the network has more to learn than the pieces say."""

    batch_size: int = 8
    """Pieces in a batch: few, so that there are many steps in an epoch."""
    buckets: int = 3
    """Compiled shapes: pieces of similar lengths share batches."""
    epochs: int = 100
    patience: int = 15
    learning_rate: float = 3e-3
    average_decay: float = 0.996


@dataclass(frozen=True)
class Request:
    """Compose with a trained network."""

    run: Positional[Path]
    """Folder of the run."""
    steps: int = 64
    """Frames to write; one is a quarter note in the chorales."""
    temperature: float = 1.0
    """Below 1 fewer keys sound, those that are all but sure; above 1 more of them."""
    tempo: float = 90.0
    """Frames a minute in the MIDI file, 4 or more."""
    seed: int = 0
    """Another seed, another piece."""
    out: Path | None = None
    """The MIDI file; by default piece-SEED.mid in the run's folder. A picture stands beside it."""
