"""From texts to padded batches, with NumPy and the standard library alone.

In the order of use: ``load`` or ``read_examples`` give ``Examples``; a tokenizer and a
``Vocabulary`` turn their texts into ids; ``choose_boundaries`` and ``BucketedBatches`` turn the
ids into batches of few shapes; ``pack`` and ``PackedBatches`` put several sequences in one row.
Whatever does not fit is a ``DataError`` that says where.

Example:
    >>> texts, labels = ["a warm, funny film", "too long", "funny!"], [1, 0, 1]
    >>> tokens = [basic_english(text) for text in texts]
    >>> vocabulary = Vocabulary.fit(tokens)
    >>> ids = [vocabulary.encode(row) for row in tokens]
    >>> boundaries = choose_boundaries([len(row) for row in ids], count=2, multiple=2)
    >>> batches = BucketedBatches(ids, labels, batch_size=2, boundaries=boundaries, seed=0)
    >>> [batch.tokens.shape for batch in batches.epoch(0)]
    [(2, 6), (2, 2)]
"""

from rnnjax.data.batching import Batch as Batch
from rnnjax.data.batching import BucketedBatches as BucketedBatches
from rnnjax.data.boundaries import choose_boundaries as choose_boundaries
from rnnjax.data.errors import DataError as DataError
from rnnjax.data.examples import Examples as Examples
from rnnjax.data.examples import split as split
from rnnjax.data.files import read_examples as read_examples
from rnnjax.data.packing import PackedBatch as PackedBatch
from rnnjax.data.packing import PackedBatches as PackedBatches
from rnnjax.data.packing import PackedRows as PackedRows
from rnnjax.data.packing import pack as pack
from rnnjax.data.ragged import Ragged as Ragged
from rnnjax.data.ragged import flatten as flatten
from rnnjax.data.ragged import pad as pad
from rnnjax.data.ragged import truncate as truncate
from rnnjax.data.sources import NAMES as NAMES
from rnnjax.data.sources import Dataset as Dataset
from rnnjax.data.sources import load as load
from rnnjax.data.tokenizers import TOKENIZERS as TOKENIZERS
from rnnjax.data.tokenizers import basic_english as basic_english
from rnnjax.data.tokenizers import characters as characters
from rnnjax.data.tokenizers import strip_punctuation as strip_punctuation
from rnnjax.data.vectors import WordVectors as WordVectors
from rnnjax.data.vectors import read_vectors as read_vectors
from rnnjax.data.vocabulary import PADDING as PADDING
from rnnjax.data.vocabulary import UNKNOWN as UNKNOWN
from rnnjax.data.vocabulary import Vocabulary as Vocabulary
