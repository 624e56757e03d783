"""What a run is told, and what writing with it is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from experiments.running.parsing import Positional
from experiments.running.run_settings import PLACE, RunSettings


@dataclass(frozen=True)
class Settings(RunSettings):
    """Train a recurrent network that writes text."""

    dataset: Annotated[str, PLACE] = "rotten_tomatoes"
    """A name (rotten_tomatoes, tiny_shakespeare, ptb, ag_news_titles, ...) or the path of a text
    of your own. rotten_tomatoes needs no file: its sentences come inside a package."""
    data_dir: Annotated[Path | None, PLACE] = None
    """Folder of local data sets; the environment variable RNNJAX_DATA if not given."""
    level: Literal["chars", "words"] = "chars"
    """What is written at a time. Words need more text and a large vocabulary."""
    vocabulary_size: int = 10_000
    """Most frequent tokens kept; the rest are read as one unknown token, which is never written."""
    take: int | None = None
    """Train on this many characters only."""

    cell: Literal["lstm", "gru", "vanilla"] = "lstm"
    """The recurrent cell."""
    hidden_size: int = 512
    """Units of a layer; time grows with its square."""
    layers: int = 1
    """Layers on top of one another: one large layer learns faster than two small ones."""
    embedding_size: int = 64
    """Size of a token's vector; with --tie it must be --hidden-size."""
    tie: bool = False
    """The head is the embedding's table: a third fewer parameters where words are many."""
    dropout: float = 0.1
    """Rate at which inputs and outputs of the layers are dropped, against learning by heart."""

    rows: int = 32
    """The text is cut into so many rows that are read side by side."""
    window: int = 64
    """Steps between two updates, and as far as gradients go back."""
    epochs: int = 8
    """Times the whole text is read, at most."""
    patience: int = 3
    """Stop after so many epochs without a lower validation loss."""
    learning_rate: float = 4e-3
    """The step size of Adam at the start; it falls along a cosine to a hundredth at the end."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm: those of long texts have rare large ones."""
    seed: int = 0
    """Decides the initial weights, dropout and the samples."""
    devices: int | None = None
    """How many of the devices here, all by default, divide the rows among them."""

    sample_prompt: str | None = None
    """What the samples after each epoch go on from; the end of a line if not given."""
    checkpoint_every: str = "60s"
    """Save after so many pieces of text (50) or seconds (60s), besides after every epoch."""

    MAY_CHANGE: ClassVar = ("sample_prompt",)


@dataclass(frozen=True)
class Request:
    """Write with a trained network."""

    run: Positional[Path]
    """Folder of the run."""
    prompt: Positional[str | None] = None
    """What the text goes on from; the end of a line if not given."""
    length: int = 500
    """Most tokens to write."""
    samples: int = 1
    """How many texts."""
    temperature: float = 0.8
    """Below 1 the text is safer, above 1 wilder; 0 always takes the most likely token."""
    top_k: int | None = None
    """Choose among so many most likely tokens only."""
    top_p: float | None = None
    """Choose among the most likely tokens that have this probability together."""
    min_p: float | None = None
    """Choose among tokens at least so many times as likely as the most likely one."""
    repetition_penalty: float | None = None
    """Above 1: tokens of the last 64 are made less likely."""
    stop: str | None = None
    """End the text with this token."""
    stream: bool = False
    """Print the text as it is written."""
    seed: int = 0
    """Another seed, another text."""
