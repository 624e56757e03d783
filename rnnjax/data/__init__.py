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

from ._local_files import data_folder as data_folder
from ._text_files import read_lines as read_lines
from ._text_files import read_text as read_text
from .batching import Batch as Batch
from .batching import BucketedBatches as BucketedBatches
from .boundaries import choose_boundaries as choose_boundaries
from .errors import DataError as DataError
from .examples import Examples as Examples
from .examples import split as split
from .files import read_examples as read_examples
from .long_texts import TEXT_NAMES as TEXT_NAMES
from .long_texts import TextParts as TextParts
from .long_texts import load_text as load_text
from .packed_batches import PackedBatch as PackedBatch
from .packed_batches import PackedBatches as PackedBatches
from .packing import PackedRows as PackedRows
from .packing import pack as pack
from .padding import pad as pad
from .padding import truncate as truncate
from .pair_batches import PairBatch as PairBatch
from .pair_batches import PairBatches as PairBatches
from .pair_batches import choose_pair_boundaries as choose_pair_boundaries
from .pairs import PairParts as PairParts
from .pairs import Pairs as Pairs
from .pairs import load_pairs as load_pairs
from .pairs import read_pairs as read_pairs
from .ragged import Ragged as Ragged
from .ragged import flatten as flatten
from .sources import NAMES as NAMES
from .sources import Dataset as Dataset
from .sources import load as load
from .stream_rows import Contiguous as Contiguous
from .stream_rows import contiguous as contiguous
from .tokenizers import TOKENIZERS as TOKENIZERS
from .tokenizers import basic_english as basic_english
from .tokenizers import characters as characters
from .tokenizers import strip_punctuation as strip_punctuation
from .tokenizers import words_and_line_ends as words_and_line_ends
from .vectors import WordVectors as WordVectors
from .vectors import read_vectors as read_vectors
from .vocabulary import PADDING as PADDING
from .vocabulary import UNKNOWN as UNKNOWN
from .vocabulary import Vocabulary as Vocabulary
