"""Pretrained word vectors out of text files, read as a stream."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnjax._checks import is_unicode
from rnnjax.data._numbers import LARGEST_FLOAT32
from rnnjax.data._text_files import opened, raw_lines
from rnnjax.data.errors import DataError, check_seed, rows_error
from rnnjax.data.vocabulary import PADDING, UNKNOWN, Vocabulary

# A line of 300 numbers has some 3,000 bytes. Without a limit a file that is no text file at all,
# and so may have no line ends, would be read into memory as one line.
_LONGEST_LINE = 1 << 20


class WordVectors(NamedTuple):
    """The vectors of a file for the words of a vocabulary.

    Attributes:
        table: [V, E], zero for the words that the file does not have.
        found: [V], which words it has; never the padding and the unknown token.
        duplicates: lines left out since their word, one of the vocabulary, had come before.
        words: lines of words in the file.
        notes: what was wrong in the file and has been passed over, as a note each; mostly empty.
    """

    table: NDArray[np.float32]
    found: NDArray[np.bool_]
    duplicates: int
    words: int
    notes: tuple[str, ...] = ()

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
            DataError: no word was found, so there are no vectors to draw similar ones from; or
                ``seed`` is no whole number from 0 up.

        Example:
            >>> table = np.array([[0, 0], [0, 0], [1, 3], [0, 0]], np.float32)
            >>> vectors = WordVectors(table, np.array([False, False, True, False]), 0, 1)
            >>> filled = vectors.filled(seed=0)
            >>> filled[:3:2].tolist(), bool((filled[[1, 3]] != 0).all())
            ([[0.0, 0.0], [1.0, 3.0]], True)
        """
        if not self.found.any():
            raise DataError("vectors must have some word of the vocabulary, got none")
        known = self.table[self.found]
        random = np.random.default_rng(check_seed(seed))
        drawn = random.normal(known.mean(), known.std(), self.table.shape).astype(np.float32)
        drawn[PADDING] = 0.0
        return np.where(self.found[:, None], self.table, drawn)


def read_vectors(path: str | os.PathLike[str], vocabulary: Vocabulary) -> WordVectors:
    """Read the vectors of a vocabulary's words from a text file of GloVe or of word2vec.

    A line is a word and its numbers, separated by single spaces. A first line of two whole
    numbers is the header of word2vec, the number of words and the size of a vector; GloVe has
    none. A word may itself contain spaces, as a few of GloVe's do, but not that of the first line
    where no header says the size. The file may be gzipped (.gz). No more of it than a line is in
    memory beside the table, so its size does not matter.

    Every line must have the right number of fields; the numbers themselves are read for the words
    of the vocabulary alone. The first line of a word counts. What is wrong but clear is tolerated
    and told in ``notes``: blank lines, numbers without a word, a header that says one word more
    than there is or any number fewer.

    Args:
        path: the file, in UTF-8.
        vocabulary: whose words to look for, spelled exactly as there.

    Raises:
        DataError: the file is missing, empty, no whole gzip file, or has fewer words than its
            header says; or a line is not a word and its finite numbers: names the file and the
            line, and what is missing in it.

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
    with opened(path) as file:
        lines = enumerate(_lines(path, file), 1)
        first = next(((number, line) for number, line in lines if line), None)
        if first is None:
            raise DataError(f"{path} must have word vectors, got an empty file")
        count, size = _header(path, *first)
        rest = lines if count is not None else itertools.chain([first], lines)
        blank = first[0] - 1
        return _read_lines(path, rest, count, size, vocabulary, blank)


def _read_lines(
    path: Path,
    lines: Iterator[tuple[int, str]],
    count: int | None,
    size: int,
    vocabulary: Vocabulary,
    blank: int,
) -> WordVectors:
    ids = {word: place for place, word in enumerate(vocabulary.tokens) if place > UNKNOWN}
    table = np.zeros((len(vocabulary), size), np.float32)
    found = np.zeros(len(vocabulary), bool)
    counted = "" if count is not None else " (as the first line has)"
    duplicates = words = wordless = 0
    for number, line in lines:
        if not line:
            blank += 1
            continue
        word, numbers = _fields(path, number, line, size, counted)
        if not word:
            wordless += 1
            continue
        words += 1
        place = ids.get(word)
        if place is None:
            continue
        if found[place]:
            duplicates += 1
        else:
            table[place], found[place] = _vector(path, number, numbers), True
    notes = [_counted(blank, "blank line"), _counted(wordless, "line of numbers without a word")]
    if count is not None and words != count:
        if words + wordless < count - 1:
            raise DataError(f"{path} must have {count} words as its first line says, got {words}")
        notes.append(f"its first line says {count} words, the file has {words}")
    return WordVectors(table, found, duplicates, words, tuple(filter(None, notes)))


def _counted(count: int, what: str) -> str:
    plural = what.replace("line", "lines", 1)
    return f"{count} {what if count == 1 else plural} left out" if count else ""


def _lines(path: Path, file: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(raw_lines(file, _LONGEST_LINE), 1):
        if len(line) >= _LONGEST_LINE - 1:
            raise _error(path, number, f"more than {_LONGEST_LINE - 2:,} characters")
        # The program word2vec writes a space behind the last number too.
        yield line.rstrip(" \r")


def _header(path: Path, number: int, line: str) -> tuple[int | None, int]:
    """The number of words, if the first line says it, and the size of a vector."""
    fields = line.split(" ")
    if len(fields) == 2 and all(field.isascii() and field.isdigit() for field in fields):
        # Of more digits than a size has; a line of that many numbers would be too long to read.
        if max(map(len, fields)) > 18 or not 1 <= int(fields[1]) <= _LONGEST_LINE // 2:
            raise _error(path, number, f"the sizes {_shown(line)}")
        count, size = map(int, fields)
        return count, size
    if len(fields) < 2:
        raise _error(path, number, f"no numbers in {_shown(line)}")
    bad = next((field for field in fields[1:] if not _is_number(field)), None)
    if bad is not None:
        hint = "(a word with spaces? the first one needs a header, such as '1000 300')"
        found = f"{_shown(bad)} where a number should be in {_shown(line)} {hint}"
        raise _error(path, number, found)
    return None, len(fields) - 1


def _fields(path: Path, number: int, line: str, size: int, counted: str) -> tuple[str, list[str]]:
    """The word, "" where there is none, and its numbers; ``counted`` tells where size is from."""
    word, *numbers = line.rsplit(" ", size)
    if len(numbers) != size:
        missing = size - len(numbers)
        raise _error(
            path, number, f"{missing} of {size} numbers missing in {_shown(line)}{counted}"
        )
    # A word that contains spaces, or one number too many?
    if " " in word and _is_number(word.rsplit(" ", 1)[1]):
        raise _error(path, number, f"more than {size} numbers in {_shown(line)}{counted}")
    return word, numbers


def _vector(path: Path, number: int, numbers: list[str]) -> list[float]:
    bad = next((field for field in numbers if not _is_number(field)), None)
    if bad is not None:
        raise _error(path, number, f"{_shown(bad)} where a number should be")
    vector = [float(field) for field in numbers]
    if not all(abs(value) <= LARGEST_FLOAT32 for value in vector):  # which NaN is not either
        raise _error(path, number, "a number that is not finite in float32")
    return vector


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field and field.isascii()


def _error(path: Path, number: int, found: str) -> DataError:
    return rows_error(path, "a word and its numbers on every line", [f"line {number}: {found}"])


def _shown(line: str) -> str:
    shown = repr(line[:40].encode("utf-8", "surrogateescape").decode(errors="replace"))
    is_text = is_unicode(line) and "\0" not in line
    return shown if is_text else f"{shown} (a binary file? only the text form can be read)"
