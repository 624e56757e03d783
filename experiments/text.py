"""From a data set to batches of token ids: what every text experiment does first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from rnnjax.data import (
    TOKENIZERS,
    BucketedBatches,
    DataError,
    Dataset,
    Examples,
    Vocabulary,
    choose_boundaries,
    split,
    truncate,
)
from rnnjax.data.ragged import Sequences


class Splits(NamedTuple):
    """The batches of the three parts of a data set, all cut to the same few lengths."""

    train: BucketedBatches
    validation: BucketedBatches
    test: BucketedBatches


class Encoder(NamedTuple):
    """How a text becomes token ids; the same in training and in prediction."""

    tokenizer: str
    vocabulary: Vocabulary
    max_length: int
    keep: Literal["head", "tail"]

    def __call__(self, texts: Sequence[str]) -> Sequences:
        """Token ids of each text, at most ``max_length`` of them."""
        tokenize = TOKENIZERS[self.tokenizer]
        ids = [self.vocabulary.encode(tokenize(text)) for text in texts]
        return truncate(ids, self.max_length, self.keep)


def fit_encoder(
    texts: Sequence[str],
    *,
    tokenizer: str,
    vocabulary_size: int,
    min_count: int,
    max_length: int,
    keep: Literal["head", "tail"],
) -> Encoder:
    """An encoder whose vocabulary is made of ``texts``."""
    if tokenizer not in TOKENIZERS:
        raise DataError(f"tokenizer: expected one of {', '.join(TOKENIZERS)}, got {tokenizer!r}")
    tokenize = TOKENIZERS[tokenizer]
    vocabulary = Vocabulary.fit(
        (tokenize(text) for text in texts), max_size=vocabulary_size, min_count=min_count
    )
    return Encoder(tokenizer, vocabulary, max_length, keep)


def hold_out(dataset: Dataset, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """The training examples in two: what is trained on, and what validates."""
    validation, train = split(dataset.train, fraction, seed)
    return train, validation


def make_batches(
    encode: Encoder,
    parts: Sequence[Examples],
    *,
    num_classes: int,
    batch_size: int,
    buckets: int,
    seed: int,
) -> Splits:
    """Batches of the train, validation and test examples; only the first are shuffled."""
    encoded = [encode(part.texts) for part in parts]
    lengths = [len(ids) for part in encoded for ids in part]
    boundaries = choose_boundaries(lengths, buckets)
    return Splits(
        *(
            BucketedBatches(
                ids,
                part.labels,
                batch_size=batch_size,
                boundaries=boundaries,
                seed=seed,
                shuffle=shuffle,
                vocab_size=len(encode.vocabulary),
                num_classes=num_classes,
            )
            for ids, part, shuffle in zip(encoded, parts, (True, False, False), strict=True)
        )
    )


def take(examples: Examples, count: int | None) -> Examples:
    """The first ``count`` examples; all of them where it is None.

    Raises:
        DataError: ``count`` is below 1.
    """
    if count is None:
        return examples
    if count < 1:
        raise DataError(f"take: expected 1 or more examples, got {count}")
    return examples._replace(texts=examples.texts[:count], labels=examples.labels[:count])
