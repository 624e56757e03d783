"""From a data set to batches of token ids: what every text experiment does first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_args

import numpy as np

from experiments.running.data_folder import check_folder
from rnnjax.data import (
    TOKENIZERS,
    BucketedBatches,
    DataError,
    Dataset,
    Examples,
    PackedBatches,
    Vocabulary,
    choose_boundaries,
    load,
    split,
    truncate,
)
from rnnjax.data.ragged import RaggedRows

Batching = Literal["bucketed", "packed", "padded"]
Batches = TypeVar("Batches", BucketedBatches, PackedBatches)


class Splits(NamedTuple, Generic[Batches]):
    """The batches of the three parts of a data set, all cut to the same few lengths."""

    train: Batches
    validation: Batches
    test: Batches


class Encoder(NamedTuple):
    """How a text becomes token ids; the same in training and in prediction."""

    tokenizer: str
    vocabulary: Vocabulary
    max_length: int
    keep: Literal["head", "tail"]

    def __call__(self, texts: Sequence[str]) -> RaggedRows:
        """Token ids of each text, at most ``max_length`` of them."""
        tokenize = TOKENIZERS[self.tokenizer]
        ids = [self.vocabulary.encode(tokenize(text)) for text in texts]
        return truncate(ids, self.max_length, self.keep)


def fit_encoder(
    texts: Iterable[str],
    *,
    tokenizer: str = "basic_english",
    vocabulary_size: int,
    min_count: int = 2,
    max_length: int,
    keep: Literal["head", "tail"] = "head",
) -> Encoder:
    """An encoder whose vocabulary is made of ``texts``."""
    tokenize = TOKENIZERS[tokenizer]
    vocabulary = Vocabulary.fit(
        (tokenize(text) for text in texts), max_size=vocabulary_size, min_count=min_count
    )
    return Encoder(tokenizer, vocabulary, max_length, keep)


def read_batches(
    settings: Any, *, vocabulary_size: int, max_length: int
) -> tuple[Splits, int, int]:
    """The batches of a data set, a tenth of its training texts to validate, and the sizes of the
    vocabulary and of the classes.

    Args:
        settings: of a program; ``dataset``, ``data_dir``, ``take``, ``batch_size``, ``buckets`` and
            ``seed`` are read.
        vocabulary_size: most frequent words kept.
        max_length: longer texts are cut.

    Raises:
        DataError: whatever is wrong with the data.
    """
    check_folder(settings)
    dataset = load(settings.dataset, data_dir=settings.data_dir, seed=settings.seed)
    training, validation = hold_out(dataset, 0.1, settings.seed)
    training = take(training, settings.take)
    encode = fit_encoder(training.texts, vocabulary_size=vocabulary_size, max_length=max_length)
    splits = make_batches(
        encode,
        (training, validation, dataset.test),
        num_classes=len(dataset.label_names),
        batch_size=settings.batch_size,
        buckets=settings.buckets,
        seed=settings.seed,
    )
    return splits, len(encode.vocabulary), len(dataset.label_names)


def hold_out(dataset: Dataset, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """The training examples in two: what is trained on, and what validates.

    Each class is divided for itself, so that a rare one is in both.

    Raises:
        DataError: there are fewer than two.
    """
    if len(dataset.train.texts) < 2:
        raise DataError(
            f"{dataset.name} must have 2 texts to train on or more, one of which validates, got "
            f"{len(dataset.train.texts)}"
        )
    validation, train = split(dataset.train, fraction, seed, stratified=True)
    return train, validation


def make_batches(
    encode: Encoder,
    parts: Sequence[Examples],
    *,
    num_classes: int,
    batch_size: int,
    buckets: int,
    seed: int,
    batching: Batching = "bucketed",
    multiple_of: int = 1,
) -> Splits:
    """Batches of the train, validation and test examples; only the first are shuffled.

    Every batch holds ``batch_size`` examples: "bucketed" by length, each bucket padded to its
    own; "packed" several in a row as long as the longest text; "padded" to the longest text, in
    the same order as the packed ones. Where no bucket has so many texts, a batch holds as many as
    the fullest has, and empty rows up to a multiple of ``multiple_of``, the devices that divide it.

    Raises:
        DataError: an unknown batching, one class only, or whatever the batches refuse.
    """
    if num_classes < 2:
        raise DataError(f"labels must be of 2 classes or more, got {num_classes}")
    if batching not in get_args(Batching):
        known = ", ".join(get_args(Batching))
        raise DataError(f"--batching must be one of {known}, got {batching!r}")
    encoded = [encode(part.texts) for part in parts]
    lengths = [len(ids) for part in encoded for ids in part]
    boundaries = choose_boundaries(lengths, buckets if batching == "bucketed" else 1)
    training, *others = (_fullest_bucket(ids, boundaries) for ids in encoded)

    def make(ids: RaggedRows, part: Examples, shuffle: bool) -> Any:
        # What is only evaluated shares one size, and so its compiled programs.
        most = training if shuffle else max(others)
        options: dict[str, Any] = {
            "batch_size": min(batch_size, most + -most % multiple_of),
            "seed": seed,
            "shuffle": shuffle,
            "vocab_size": len(encode.vocabulary),
            "num_classes": num_classes,
        }
        if batching == "packed":
            return PackedBatches(ids, part.labels, row_length=boundaries[-1], **options)
        return BucketedBatches(ids, part.labels, boundaries=boundaries, **options)

    return Splits(*map(make, encoded, parts, (True, False, False)))


def _fullest_bucket(ids: RaggedRows, boundaries: Sequence[int]) -> int:
    """How many texts the bucket with the most of them has."""
    buckets = np.searchsorted(boundaries, [len(row) for row in ids])
    return int(np.bincount(buckets).max())


def take(examples: Examples, count: int | None) -> Examples:
    """The first ``count`` examples; all of them where it is None."""
    return examples._replace(texts=examples.texts[:count], labels=examples.labels[:count])
