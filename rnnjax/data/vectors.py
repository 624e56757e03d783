"""Pretrained word vectors out of text files, read as a stream."""

import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnjax.data.errors import DataError, rows_error
from rnnjax.data.vocabulary import PADDING, UNKNOWN, Vocabulary

# A line of 300 numbers has some 3,000 bytes. Without a limit a file that is no text file at all,
# and so may have no line ends, would be read into memory as one line.
_LONGEST_LINE = 1 << 20
_LARGEST = float(np.finfo(np.float32).max)


class WordVectors(NamedTuple):
    """The vectors of a file for the words of a vocabulary.

    Attributes:
        table: [V, E], zero for the words that the file does not have.
        found: [V], which words it has; never the padding and the unknown token.
        duplicates: lines left out since their word, one of the vocabulary, had come before.
        words: lines of words in the file.
    """

    table: NDArray[np.float32]
    found: NDArray[np.bool_]
    duplicates: int
    words: int

    @property
    def coverage(self) -> float:
        """The share of the vocabulary that the file has, its two special tokens left out."""
        return float(self.found.sum()) / max(1, len(self.found) - 2)

    def filled(self, seed: int) -> NDArray[np.float32]:
        """The table, with random vectors for the words that the file does not have.

        They are normal, with the mean and the standard deviation of all numbers found, so that a
        model tells them from the others by nothing but their direction. Padding stays zero.

        Args:
            seed: a whole number, at least 0.

        Raises:
            DataError: no word was found, so there is nothing to be alike to.

        Example:
            >>> table = np.array([[0, 0], [0, 0], [1, 3], [0, 0]], np.float32)
            >>> vectors = WordVectors(table, np.array([False, False, True, False]), 0, 1)
            >>> filled = vectors.filled(seed=0)
            >>> filled[:3:2].tolist(), bool((filled[[1, 3]] != 0).all())
            ([[0.0, 0.0], [1.0, 3.0]], True)
        """
        if not self.found.any():
            raise DataError("vectors: expected some word of the vocabulary in the file, got none")
        known = self.table[self.found]
        random = np.random.default_rng(seed)
        drawn = random.normal(known.mean(), known.std(), self.table.shape).astype(np.float32)
        drawn[PADDING] = 0.0
        return np.where(self.found[:, None], self.table, drawn)


def read_vectors(path: str | os.PathLike[str], vocabulary: Vocabulary) -> WordVectors:
    """Read the vectors of a vocabulary's words from a text file of GloVe or of word2vec.

    A line is a word and its numbers, separated by single spaces. A first line of two whole
    numbers is the header of word2vec, the number of words and the size of a vector; GloVe has
    none. A word may itself contain spaces, as a few of GloVe's do. The file may be gzipped
    (.gz). No more of it than a line is in memory beside the table, so its size does not matter.

    Every line must have the right number of fields; the numbers themselves are read for the words
    of the vocabulary alone. The first line of a word counts.

    Args:
        path: the file, in UTF-8.
        vocabulary: whose words to look for, spelled exactly as there.

    Raises:
        DataError: the file is missing, empty, no whole gzip file, or shorter than its header
            says; or a line is not a word and its finite numbers: names the file and the line.

    Example:
        >>> import tempfile
        >>> vocabulary = Vocabulary.fit([["warm", "film"]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "vectors.txt")
        ...     _ = path.write_text("2 3\\nfilm 0.5 1 -1\\nthe 0 1 0\\n")
        ...     vectors = read_vectors(path, vocabulary)
        >>> vectors.table[vocabulary.encode(["film"])].tolist(), vectors.coverage
        ([[0.5, 1.0, -1.0]], 0.5)

    References:
        Pennington et al., "GloVe: Global vectors for word representation", EMNLP 2014; Mikolov et
        al., "Efficient estimation of word representations in vector space", arXiv:1301.3781.
    """
    path = Path(path)
    lines = _lines(path)
    first = next(lines, None)
    if first is None:
        raise DataError(f"{path}: expected word vectors, got an empty file")
    count, size = _header(path, first)
    number = 1
    if count is None:
        lines, number = _before(first, lines), 0
    ids = {word.encode(): place for place, word in enumerate(vocabulary.tokens) if place > UNKNOWN}
    table = np.zeros((len(vocabulary), size), np.float32)
    found = np.zeros(len(vocabulary), bool)
    duplicates = words = 0
    for line in lines:
        number, words = number + 1, words + 1
        word, numbers = _fields(path, number, line, size)
        place = ids.get(word)
        if place is None:
            continue
        if found[place]:
            duplicates += 1
        else:
            table[place], found[place] = _vector(path, number, numbers), True
    if count is not None and words != count:
        raise DataError(f"{path}: expected {count} words as its first line says, got {words}")
    return WordVectors(table, found, duplicates, words)


def _lines(path: Path) -> Iterator[bytes]:
    if not path.is_file():
        raise DataError(f"{path}: expected a file, found none")
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    number = 0
    try:
        with opened(path, "rb") as file:
            while line := file.readline(_LONGEST_LINE):
                number += 1
                if len(line) == _LONGEST_LINE:
                    raise _error(path, number, f"more than {_LONGEST_LINE - 1:,} bytes")
                # The program word2vec writes a space behind the last number too.
                yield line.rstrip(b" \r\n")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a whole gzip file, got {error}") from None


def _header(path: Path, line: bytes) -> tuple[int | None, int]:
    """The number of words, if the first line says it, and the size of a vector."""
    fields = line.split(b" ")
    if len(fields) == 2 and all(field.isdigit() for field in fields):
        # Of more digits than a size has; a line of that many numbers would be too long to read.
        if max(map(len, fields)) > 18 or not 1 <= int(fields[1]) <= _LONGEST_LINE // 2:
            raise _error(path, 1, f"the sizes {_shown(line)}")
        count, size = map(int, fields)
        return count, size
    if len(fields) < 2:
        raise _error(path, 1, _shown(line))
    return None, len(fields) - 1


def _before(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _fields(path: Path, number: int, line: bytes, size: int) -> tuple[bytes, list[bytes]]:
    word, *numbers = line.rsplit(b" ", size)
    if len(numbers) != size or not word:
        given = line.count(b" ") if line else 0
        raise _error(path, number, f"{given} of {size} numbers in {_shown(line)}")
    # A word that contains spaces, or one number too many?
    if b" " in word and _is_number(word.rsplit(b" ", 1)[1]):
        raise _error(path, number, f"more than {size} numbers in {_shown(line)}")
    return word, numbers


def _vector(path: Path, number: int, numbers: list[bytes]) -> list[float]:
    bad = next((field for field in numbers if not _is_number(field)), None)
    if bad is not None:
        raise _error(path, number, _shown(bad))
    vector = [float(field) for field in numbers]
    if not all(abs(value) <= _LARGEST for value in vector):  # which NaN is not either
        raise _error(path, number, "a number that is not finite in float32")
    return vector


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return b"_" not in field


def _error(path: Path, number: int, found: str) -> DataError:
    return rows_error(path, "a word and its numbers on every line", [f"line {number}: {found}"])


def _shown(line: bytes) -> str:
    return repr(line[:40].decode(errors="replace"))
