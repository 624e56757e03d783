"""What a run is told, and what composing with it is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from experiments.running.run_settings import PLACE, RunSettings


@dataclass(frozen=True)
class Settings(RunSettings):
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
    """Times all pieces are read, at most."""
    patience: int = 15
    """Stop after so many epochs without a lower validation loss."""
    learning_rate: float = 3e-3
    """Of Adam at the start; it falls along a cosine to a hundredth at the last step."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    average_decay: float = 0.996
    """Of the running average of the weights, which is what is kept."""
    seed: int = 0
    """Decides the generated pieces, the first weights, dropout and the order of the pieces."""
    devices: int | None = None
    """How many of the devices here, all by default, divide the pieces of a batch among them."""

    out: Path | None = None
    """Folder of the run; by default runs/music-DATASET-TIME."""
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
    """Compose with a trained network."""

    run: Positional[Path]
    """Folder of the run."""
    steps: int = 64
    """Frames to write; one is a quarter note in the chorales."""
    temperature: float = 1.0
    """Below 1 fewer keys sound, those that are all but sure; above 1 more of them."""
    tempo: float = 90.0
    """Frames a minute in the MIDI file."""
    seed: int = 0
    """Another seed, another piece."""
    out: Path | None = None
    """The MIDI file; by default piece-SEED.mid in the run's folder. A picture stands beside it."""
