"""What a run is told, and what writing with it is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from experiments.running.loss_fitting import TrainingSettings
from experiments.running.parsing import Positional
from experiments.running.run_settings import PLACE


@dataclass(frozen=True)
class Settings(TrainingSettings):
    """Train a recurrent network to write a text by hand, one point of the pen at a time."""

    font: str = "drawn"
    """Whose letters are learnt: drawn, 26 letters that are in the program, or a font of the package
    hershey-fonts, such as futural or scripts."""
    characters: str = "abcdefghijklmnopqrstuvwxyz"
    """The characters that are learnt, besides the space."""
    pairs: Annotated[Path | None, PLACE] = None
    """A file of your own in place of a font, one JSON object a line: {"text": "word", "strokes":
    [[dx, dy, end], ...]}, where end is 1 at the last point before the pen is lifted. dx grows to
    the right, dy upwards."""
    words: int = 8000
    """How many words to write by chance and learn from; a twentieth as many validate, and test."""
    letters: int = 6
    """The most letters of a word; the fewest are 3, and some words are two, with a space."""
    tremor: float = 0.05
    """How unsteady the hand is that is learnt from, as a share of the height of a small letter."""

    hidden_size: int = 160
    """Units of a layer."""
    layers: int = 1
    """Layers on top of one another; the lowest reads the text through the window."""
    window: int = 6
    """Bumps of the window."""
    mixture: int = 8
    """Gaussians in the density of the next point."""

    batch_size: int = 32
    """Words in a batch."""
    buckets: int = 2
    """Compiled shapes: words of similar lengths share batches."""
    epochs: int = 8
    patience: int = 4
    learning_rate: float = 5e-3
    read_words: int = 200
    """How many words the trained network writes to be read back; 0 reads none."""
    bias: float = 2.0
    """How much neater than what it learnt from the network writes the words to be read back."""


@dataclass(frozen=True)
class Request:
    """Write a text with a trained network."""

    run: Positional[Path]
    """Folder of the run."""
    text: Positional[str]
    """What to write, in the characters that the network knows."""
    bias: float = 2.0
    """How neat: at 0 as unsteady as what was learnt from, above 2 almost always the same."""
    seed: int = 0
    """Another seed, another hand."""
    like: Path | None = None
    """A sample in whose hand to write: a file such as --pairs takes, or as was written beside an
    earlier SVG."""
    like_line: int = 1
    """The line of that file where the sample stands."""
    out: Path | None = None
    """The SVG file; by default written-SEED.svg in the run's folder. Beside it stand a PNG, and the
    strokes as JSON (.jsonl)."""
