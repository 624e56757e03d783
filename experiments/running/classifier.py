"""The classifier of experiments.classify: its settings, its model, and its folder read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import jax
import numpy as np

import rnnjax
from experiments.running.cells import CELLS
from experiments.running.run_settings import PLACE, RunSettings, config_value, stored_settings
from experiments.running.setting_checks import check_settings
from experiments.running.text import Encoder
from experiments.running.trained import WEIGHTS as WEIGHTS
from experiments.running.trained import load_trained, require_weights
from rnnjax import checked
from rnnjax.data import BucketedBatches, DataError, Vocabulary

PROGRAM = "python -m experiments.classify"
VOCABULARY = "vocabulary.json"


@dataclass(frozen=True)
class Settings(RunSettings):
    """Train a recurrent classifier of texts."""

    dataset: Annotated[str, PLACE] = "rotten_tomatoes"
    """What to learn from: rotten_tomatoes needs no network, as its sentences come inside a
    package; a path such as own.csv is your own file; other names are those of rnnjax.data.load."""
    text_column: str = "text"
    """The column of your own file that holds the texts."""
    label_column: str = "label"
    """The column of your own file that holds the classes, as words or as numbers such as stars."""
    separator: str | None = None
    """What stands between the fields of your own CSV or TSV file, such as ";", where it is not the
    comma or the tab that the name of the file promises."""
    quoting: bool = True
    """Whether quotes enclose a field of your own CSV or TSV file; --no-quoting takes every line as
    a row, for files in which quotes stand for themselves."""
    data_dir: Annotated[Path | None, PLACE] = None
    """The folder of local data sets; without it the environment variable RNNJAX_DATA says it, and
    the data set that is the default needs none."""
    take: int | None = None
    """Train on this many examples only, to try something out quickly."""
    tokenizer: str = "basic_english"
    """How a text is cut into words: basic_english keeps punctuation as words of its own, which
    helps sentiment; strip_punctuation drops it; characters takes letters for words."""
    vocabulary_size: int = 20_000
    """Keep this many of the most frequent words; the rest are read as one unknown word, since a
    rare word costs a vector and is hardly trained."""
    min_count: int = 2
    """Leave out words that occur less often: a word seen once teaches nothing that the unknown
    word does not."""
    max_length: int = 400
    """Cut texts to this many words, so that one very long text does not slow all the others."""
    keep_end: Literal["head", "tail"] = "head"
    """Which end of a cut text stays: reviews often say what they mean at the tail, news at the
    head."""

    cell: Literal["vanilla", "lstm", "gru"] = "gru"
    """The recurrent cell: a GRU has two gates where an LSTM has three, and so is faster; vanilla
    is the simple cell without gates, which forgets soon."""
    hidden_size: int = 64
    """Units in each direction: more can hold more, but take longer and learn a few thousand texts
    by heart sooner."""
    layers: int = 1
    """How many recurrent layers lie on top of each other: one is enough for a few thousand texts,
    as more are harder to train."""
    bidirectional: bool = True
    """Read every text in both directions, so that each word is seen with both its neighbours."""
    pooling: Literal["last", "mean", "max"] = "max"
    """How the outputs of all steps become one vector: max finds a telling word wherever it stands,
    last has to remember it to the end."""
    embedding_size: int = 100
    """The size of a word vector; vectors are learned from nothing, so larger ones need more
    texts."""
    embedding_scale: float = 0.1
    """The standard deviation of the first word vectors: 0.03 is that of Keras, and 1 that of
    PyTorch, which a few thousand texts hardly outgrow."""
    initializer: Literal["rnnjax", "pytorch", "keras", "flax"] = "rnnjax"
    """The library whose rule the first weights of the cell follow."""
    dropout: float = 0.6
    """The share of activations dropped in training: high, since a few thousand sentences are soon
    learned by heart."""
    word_dropout: float = 0.2
    """The share of words read as the unknown word in training, for the same reason."""

    batch_size: int = 32
    """Texts in a batch: larger ones take less time a text, smaller ones take more steps an epoch.
    A batch has no more rows than there are texts to fill it."""
    batching: Literal["bucketed", "packed", "padded"] = "bucketed"
    """How texts of unequal length share a batch: bucketed puts texts of like length together,
    packed puts several in a row, padded fills all up to the longest, which is the slowest."""
    buckets: int = 4
    """How many lengths bucketed batches are padded to: more pad less, but each is compiled once."""
    epochs: int = 60
    """The bound on the epochs, which is said if it is reached; as a rule patience ends a run
    earlier, when validation accuracy has stopped rising."""
    patience: int = 5
    """Stop after this many epochs without a better validation accuracy: with fewer, one unlucky
    epoch would end the run."""
    validation: float = 0.1
    """The share of the training texts of each class that is held out, to choose the best epoch
    without looking at the test texts."""
    learning_rate: float = 1e-3
    """The step size of Adam: this is its usual value; where the loss jumps or becomes NaN, a
    smaller one helps."""
    clip_norm: float = 1.0
    """Scale gradients down to this norm, since a rare large one of a recurrent network would undo
    many steps."""
    max_skipped: int = 20
    """End after this many steps in a row that were left out because their loss, gradient or update
    was NaN or infinite: such a run does not recover."""
    average_decay: float = 0.99
    """The decay of the running average of the parameters, which validates and is kept: it evens
    out the noise of small batches. With 0 the last parameters are kept."""
    seed: int = 0
    """The number that decides the split, the initial weights, the order of examples and dropout:
    with the same one, a run gives the same bits again."""
    repeat: int = 1
    """Train this many times, each with the next seed, and report mean and spread: differences
    smaller than the spread mean nothing."""
    prefetch: int = 2
    """Batches made ahead in a thread, 0 for none, so that the step never waits for one; it changes
    the time and never the result."""
    devices: int | None = None
    """How many of the devices here, all by default, divide the rows of every batch among them; on
    another number of them results differ in rounding."""

    out: Path | None = None
    """The folder of the run, so that it can be found again; by default
    runs/classify-DATASET-TIME."""
    checkpoint_every: str = "60s"
    """Save after so many steps (500) or seconds (60s), besides at the end of every epoch, so that
    a run that is killed loses little."""
    keep: int = 3
    """How many checkpoints stay on disk: older ones are there in case the newest is damaged."""
    resume: bool = False
    """Go on with the run in --out from its newest good checkpoint, with the settings it has, to
    what it would have come to without the stop."""
    replace: bool = False
    """Delete the run in --out and begin anew; without it no run is ever overwritten."""
    debug_checks: bool = False
    """Look at every value while it runs and end at the first wrong one, to find where it comes
    from: slow."""

    NOT_WRITTEN: ClassVar = ("resume", "replace", "debug_checks")
    MAY_CHANGE: ClassVar = ("epochs", "prefetch")


def build_model(settings: Settings, vocab_size: int, num_classes: int) -> rnnjax.Model:
    """The classifier that the settings describe."""
    check_settings(settings)
    cell = CELLS[settings.cell](settings.hidden_size, initializer=settings.initializer)
    layer = rnnjax.bidirectional(cell) if settings.bidirectional else rnnjax.recurrent(cell)
    return rnnjax.classifier(
        rnnjax.embedding(vocab_size, settings.embedding_size, scale=settings.embedding_scale),
        rnnjax.stack(*(layer,) * settings.layers, dropout=settings.dropout),
        num_classes,
        pooling=settings.pooling,
        dropout=settings.dropout,
    )


def finished_run(folder: Path) -> Settings:
    """The settings of a finished run.

    Raises:
        DataError: the folder holds none, or one for each of several seeds.
    """
    settings = stored_settings(Settings, folder)
    if settings.repeat > 1:
        raise DataError(f"{folder} must be one run, got several: choose a seed-... in it")
    require_weights(PROGRAM, folder)
    return settings


class Predictor:
    """A trained classifier, read from the folder of its run.

    Attributes:
        settings: of the run.
        label_names: of the classes, in the order of the probabilities.
        encode: how a text becomes token ids.
        params: the weights.
    """

    # Texts at a time: enough to fill buckets, few enough to hold in memory.
    chunk_size = 1024

    def __init__(self, folder: Path, debug_checks: bool = False) -> None:
        self.settings = settings = finished_run(folder)
        vocabulary = Vocabulary.load(folder / VOCABULARY)
        self.label_names: list[str] = config_value(folder, "label_names", list)
        self.encode = Encoder(
            settings.tokenizer, vocabulary, settings.max_length, settings.keep_end
        )
        # The same few lengths for every chunk of texts, so that a long stream compiles no more.
        longest = settings.max_length
        doubled = [8 << i for i in range(longest.bit_length()) if 8 << i < longest]
        self._boundaries = (*doubled, longest)
        # And the same few numbers of rows, so that calls of 1, 2, 3 ... texts do not either.
        self._batch_sizes = (1, 8, 64)
        self._model = build_model(settings, len(vocabulary), len(self.label_names))
        self.params = load_trained(self._model.init, folder)
        self._probabilities = jax.jit(
            lambda params, tokens, lengths: jax.nn.softmax(
                self._model.apply(params, tokens, lengths), axis=-1
            )
        )
        if debug_checks:
            self._probabilities = checked(self._probabilities)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The probability [N, C] of every label for each text."""
        ids = self.encode(texts)
        batches = BucketedBatches(
            ids,
            [0] * len(ids),
            batch_size=next(size for size in self._batch_sizes if size >= min(64, len(ids))),
            boundaries=self._boundaries,
            seed=0,
            shuffle=False,
        )
        result = np.zeros((len(texts), len(self.label_names)))
        for rows, batch in zip(batches.epoch_indices(0), batches.epoch(0), strict=True):
            probabilities = self._probabilities(self.params, batch.tokens, batch.lengths)
            result[rows] = np.asarray(probabilities)[: len(rows)]
        return result
