"""Files of word vectors: what is read of them, what is refused, and what they lack."""

import gzip
import tracemalloc

import numpy as np
import pytest

from rnnjax.data import DataError, Vocabulary
from rnnjax.data.vectors import read_vectors

VOCABULARY = Vocabulary.fit([["film", "warm", "Ünicode", "missing", ". ."]])


def parsed(text, vocabulary):
    """The vectors as a few lines of plain Python read them: the first of a word counts."""
    lines = text.splitlines()
    if len(lines[0].split(" ")) == 2:
        lines = lines[1:]
    size = len(lines[0].split()) - 1
    found = {}
    for line in lines:
        fields = line.strip().split(" ")
        word = " ".join(fields[:-size])
        found.setdefault(word, [float(number) for number in fields[-size:]])
    zero = [0.0] * size
    return np.array([found.get(word, zero) for word in vocabulary.tokens], np.float32)


LINES = [
    "the 0.25 -1e-3 3",
    "film 1 2 3",
    ". . 4 5 6",
    "Ünicode -0.125 0 7.5",
    "film 9 9 9",
    "<unk> 8 8 8",
]


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("end", ["\n", " \n", "\r\n"])
def test_vectors_are_those_of_a_plain_parse(header, zipped, end, tmp_path):
    lines = [f"{len(LINES)} 3", *LINES] if header else LINES
    path = tmp_path / ("v.txt.gz" if zipped else "v.txt")
    content = "".join(line + end for line in lines).encode()
    path.write_bytes(gzip.compress(content) if zipped else content)
    vectors = read_vectors(path, VOCABULARY)
    expected = parsed("\n".join(lines), VOCABULARY)
    expected[:2] = 0  # no text reaches the special tokens by spelling them out
    np.testing.assert_array_equal(vectors.table, expected)
    words = np.array(VOCABULARY.tokens)[vectors.found]
    assert set(words) == {"film", "Ünicode", ". ."}
    assert (vectors.coverage, vectors.duplicates, vectors.words) == (3 / 5, 1, 6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("film 1 2\nwarm 1\n", "line 2: 1 of 2 numbers missing in 'warm 1'"),
        ("film 1 2\nthe 1 2 3\n", "line 2: more than 2 numbers in 'the 1 2 3'"),
        ("2 2\nthe 1 2\nwarm 1 x\n", "line 3: 'x' where a number should be"),
        ("warm 1 nan\n", "line 1: a number that is not finite"),
        ("warm 1 1e39\n", "line 1: a number that is not finite"),
        ("warm 1_0 2\n", "line 1: '1_0'"),
        (
            ". . 1 2\nfilm 3 4\n",
            "line 1: '.' where a number should be in '. . 1 2' (a word with spaces? the first one "
            "needs a header, such as '1000 300')",
        ),
        (
            "area 51 1 2\nfilm 3 4\n",
            "line 2: 1 of 3 numbers missing in 'film 3 4' (as the first line has)",
        ),
        ("word\n", "line 1: no numbers in 'word'"),
        ("3 0\n", "line 1: the sizes '3 0'"),
        ("1 1000000000000\na 1\n", "line 1: the sizes '1 1000000000000'"),
        ("1 " + "9" * 5000, "line 1: the sizes '1 99999"),
        ("9" * 5000 + " 1\n", "line 1: the sizes '99999"),
        ("3 2\nwarm 1 2\n", "must have 3 words as its first line says, got 1"),
        ("", "empty file"),
        ("the " + "1" * (1 << 20), "line 1: more than 1,048,574 characters"),
    ],
)
def test_a_bad_line_is_named_with_its_file(text, message, tmp_path):
    path = tmp_path / "bad.txt"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read_vectors(path, VOCABULARY)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_files_that_are_not_there_or_cut_short_are_refused(tmp_path):
    with pytest.raises(DataError, match="must be a file, got none"):
        read_vectors(tmp_path / "none.txt", VOCABULARY)
    whole = gzip.compress("\n".join(LINES * 50).encode())
    (tmp_path / "cut.txt.gz").write_bytes(whole[:-12])
    with pytest.raises(DataError, match="whole gzip file"):
        read_vectors(tmp_path / "cut.txt.gz", VOCABULARY)


def test_reading_vectors_takes_no_memory_for_the_rest_of_the_file(tmp_path):
    path = tmp_path / "large.txt"
    with path.open("w") as file:
        for number in range(20_000):
            file.write(f"word{number} " + " ".join(["0.123456"] * 20) + "\n")
    tracemalloc.start()
    read_vectors(path, VOCABULARY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 3_000_000
    assert peak < 300_000


def test_what_a_file_lacks_is_drawn_like_what_it_has(tmp_path):
    vocabulary = Vocabulary.fit([[f"w{n}" for n in range(2000)]])
    random = np.random.default_rng(0)
    known = random.normal(2.0, 0.5, (1000, 8))
    rows = (f"w{n} " + " ".join(map(str, row)) for n, row in enumerate(known))
    (tmp_path / "v.txt").write_text("\n".join(rows))
    vectors = read_vectors(tmp_path / "v.txt", vocabulary)
    filled = vectors.filled(seed=1)
    np.testing.assert_array_equal(filled[vectors.found], vectors.table[vectors.found])
    drawn = filled[~vectors.found][1:]
    assert drawn.mean() == pytest.approx(2.0, abs=0.02)
    assert drawn.std() == pytest.approx(0.5, abs=0.02)
    assert not filled[0].any()
    none = read_vectors(tmp_path / "v.txt", VOCABULARY)
    with pytest.raises(DataError, match="got none"):
        none.filled(seed=0)
    for seed in (None, -1, 0.5):
        with pytest.raises(DataError, match=f"seed must be .*, got {seed}"):
            vectors.filled(seed)


@pytest.mark.parametrize("header", [b"2 3\n", b"\xba\x16\x4f\x2f\x0c\x00\x00\x00"])
def test_a_binary_file_of_word2vec_or_fasttext_is_said_to_be_one(header, tmp_path):
    path = tmp_path / "vectors.bin"
    numbers = np.array([0.5, -1.25, 3.0], "<f4").tobytes()
    path.write_bytes(header + b"film " + numbers + b"\nwarm " + numbers + b"\n")
    with pytest.raises(DataError, match=r"a binary file[?] only the text form"):
        read_vectors(path, VOCABULARY)
