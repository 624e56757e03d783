"""What a run is told, and what translating with it is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from experiments.running.loss_fitting import TrainingSettings
from experiments.running.parsing import Positional
from experiments.running.run_settings import PLACE


@dataclass(frozen=True)
class Settings(TrainingSettings):
    """Train a network that makes one sequence of another."""

    task: Literal["reverse", "copy", "add"] | None = None
    """A generated task: symbols in reverse, symbols as they are, or sums of two numbers. Taken to
    be reverse where there is no --pair."""
    pair: Annotated[str | None, PLACE] = None
    """Sentences in two languages: de-en and the like for those of Multi30k under --data-dir, or a
    file of your own: source, tab, target on each line, or sources alone and --targets beside it."""
    targets: Annotated[Path | None, PLACE] = None
    """A file whose line i is what line i of the file of --pair becomes."""
    data_dir: Annotated[Path | None, PLACE] = None
    """Folder of local data sets; the environment variable RNNJAX_DATA if not given."""
    examples: int = 12_800
    """Generated pairs to train on; 1,000 more are for validation and 1,000 for the test."""
    shortest: int = 5
    """Symbols of the shortest generated sequence."""
    longest: int = 20
    """Symbols of the longest generated sequence."""
    digits: int = 3
    """Digits of the numbers to add, at most."""
    min_count: int = 2
    """Words that are rarer in the training sentences are read as one unknown word."""
    keep_case: bool = False
    """Tell capitals from small letters, which are otherwise all read and written small."""
    max_length: int = 50
    """Longest sentence to learn from and to be tested on, in tokens, and longest to write."""

    attention: Literal["none", "outside", "inside", "feeding"] = "inside"
    """Where the decoder attends: before each step, inside the recurrence (Bahdanau); outside of it
    (Luong), which trains fastest; inside by input feeding; or not at all."""
    score: Literal["additive", "general", "scaled", "local"] = "additive"
    """How a query is held against a place of the source: additive is Bahdanau's, general and local
    are Luong's."""
    cell: Literal["gru", "lstm"] = "gru"
    """The recurrent cell of both sides."""
    hidden_size: int = 128
    """Units of the decoder; the encoder has half of them in each direction."""
    layers: int = 1
    """Layers of both sides; more than one only where attention is not inside the recurrence."""
    embedding_size: int = 32
    """Size of a token's vector, on both sides."""
    head_size: int | None = None
    """A layer below the logits: with many words it makes the head smaller."""
    tie: bool = False
    """The head is the table of the target's vectors; --head-size must be --embedding-size."""
    dropout: float = 0.0
    """Rate at which embedded tokens, and what the head reads, are dropped."""

    own_tokens: float = 0.0
    """Rate at which the decoder is taught behind its own token rather than the right one
    (scheduled sampling): slower, and there is no dropout in the decoder then."""
    batch_size: int = 128
    """Pairs of one step."""
    buckets: int = 3
    """Compiled shapes: pairs of similar lengths share batches."""
    epochs: int = 10
    patience: int = 3
    learning_rate: float = 3e-3

    beam: int = 1
    """Hypotheses side by side in the test; one goes on by the likeliest token at every step."""

    MAY_CHANGE: ClassVar = ("beam",)

    @property
    def name(self) -> str:
        """The task or the pair, short."""
        return Path(self.pair).stem if self.pair else self.task or "reverse"


@dataclass(frozen=True)
class Export:
    """Write a trained network as programs that need JAX alone to run."""

    run: Positional[Path]
    """Folder of the run."""
    out: Path | None = None
    """Folder of the programs; by default exported in the run's folder."""


@dataclass(frozen=True)
class Request:
    """Translate with a trained network."""

    run: Positional[Path]
    """Folder of the run."""
    sentences: Positional[tuple[str, ...]] = ()
    """What to translate, each in quotes: words, symbols with blanks between, or a sum such as
    347+58; behind -- where one begins with a hyphen. Without any, one is read from each line of
    standard input, and a line is printed for it."""
    beam: int = 5
    """Hypotheses side by side. The best is printed, and of a single sentence all of them."""
    length_penalty: float = 0.6
    """From 0, where short texts win, to 1, where the mean over the tokens counts."""
    picture: Path | None = None
    """Where to draw the alignment of a single sentence; by default alignment-of-a-sentence.png in
    the run's folder."""
