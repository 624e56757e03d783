"""One set of rules for bytes before and after a line, in every reader of text."""

import gzip
import io
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnjax.data import DataError, Vocabulary, read_examples, read_lines, read_text, read_vectors

MARK = b"\xef\xbb\xbf"
ENDS = [b"\n", b"\r\n", b"\r"]
LINES = ["film 0.5 1", "", "caf\u00e9 2 -1", "\u2028x 1 2"]


def written(mark, end, lines, last=True):
    return mark + end.join(line.encode() for line in lines) + (end if last else b"")


@pytest.mark.parametrize("mark", [b"", MARK])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("last", [True, False])
def test_every_reader_finds_the_same_lines(tmp_path, mark, end, last):
    content = written(mark, end, LINES, last)
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content))
    assert list(read_lines(path)) == list(read_lines(tmp_path / "a.txt.gz")) == LINES
    assert list(read_lines(io.BytesIO(content))) == LINES
    text = io.TextIOWrapper(io.BytesIO(content), encoding="latin-1")  # as a locale may say
    assert list(read_lines(text)) == LINES
    assert list(read_lines(io.StringIO(content.decode(), newline=""))) == LINES
    assert read_text(path) == "\n".join(LINES) + "\n" * last

    vectors = read_vectors(path, Vocabulary.fit([["film", "caf\u00e9"]]))
    assert sorted(vectors.table[2:].tolist()) == [[0.5, 1.0], [2.0, -1.0]]
    assert vectors.notes == ("1 blank line left out",)

    table = tmp_path / "a.csv"
    table.write_bytes(written(mark, end, ["text,label", "caf\u00e9,1", "b,0"], last))
    assert read_examples(table).texts == ["caf\u00e9", "b"]


def test_standard_input_stays_open(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(b"one\ntwo\n"))
    monkeypatch.setattr(sys, "stdin", stream)
    lines = read_lines(sys.stdin)
    assert next(lines) == "one"
    lines.close()
    assert not stream.buffer.closed


def test_of_a_stream_that_was_partly_read_the_rest_is_given_or_it_is_refused():
    content = "one\nzwölf\nlast\n".encode()
    stream = io.BytesIO(content)
    assert stream.readline() == b"one\n"
    assert list(read_lines(stream)) == ["zwölf", "last"]
    stream = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")
    assert stream.readline() == "one\n"
    # By now this stream holds all of the text, and its bytes have come to their end.
    with pytest.raises(DataError, match="from which nothing was read, got one that was partly"):
        list(read_lines(stream))
    assert stream.read() == "zwölf\nlast\n"


@pytest.mark.parametrize("source", [["a.txt"], None, 3, b"a.txt"])
def test_what_is_neither_a_path_nor_a_stream_is_refused(source):
    with pytest.raises(DataError, match="source must be a path or an open stream, got "):
        list(read_lines(source))


def test_a_line_that_is_no_utf8_is_named_when_it_is_reached(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\ncaf\xe9\nmore\n")
    lines = read_lines(path)
    assert next(lines) == "good"
    with pytest.raises(DataError, match=r"a\.txt must have UTF-8 .* line 2: byte 0xe9 at column 4"):
        next(lines)
    with pytest.raises(DataError, match=r"<stream> must have UTF-8 text.*, got line 1: byte 0xff"):
        list(read_lines(io.BytesIO(b"\xff\xfea\0")))
    with pytest.raises(DataError, match="must be a file, got none"):
        next(read_lines(tmp_path / "none.txt"))


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r")))
def test_lines_of_any_text_are_what_splitting_gives(text):
    content = text.removeprefix("\ufeff").removesuffix("\n")
    expected = content.split("\n") if text.removeprefix("\ufeff") else []
    assert list(read_lines(io.BytesIO(text.encode()))) == expected


# Word vectors with odd lines

WORDS = Vocabulary.fit([["a", "b", ". .", " "]])


def vectors_of(tmp_path, text):
    path = tmp_path / "v.txt"
    path.write_text(text)
    return read_vectors(path, WORDS)


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        ("a 1 2\nb 3 4\n", ()),
        ("a 1 2\nb 3 4\n\n", ("1 blank line left out",)),
        ("\n\na 1 2\n  \nb 3 4", ("3 blank lines left out",)),
        ("a 1 2\n 9 9\nb 3 4\n", ("1 line of numbers without a word left out",)),
        ("2 2\na 1 2\n 9 9\nb 3 4\n", ("1 line of numbers without a word left out",)),
        ("3 2\na 1 2\nb 3 4\n", ("its first line says 3 words, the file has 2",)),
        ("1 2\na 1 2\nb 3 4\n", ("its first line says 1 words, the file has 2",)),
        (
            "3 2\na 1 2\n 9 9\n\n 9 9\nb 3 4\n",
            (
                "1 blank line left out",
                "2 lines of numbers without a word left out",
                "its first line says 3 words, the file has 2",
            ),
        ),
    ],
)
def test_an_odd_line_that_is_clear_is_passed_over_and_told(tmp_path, text, notes):
    vectors = vectors_of(tmp_path, text)
    np.testing.assert_array_equal(vectors.table[WORDS.encode(["a", "b"])], [[1, 2], [3, 4]])
    assert vectors.words == 2
    assert vectors.notes == notes


def test_a_blank_between_two_spaces_is_a_word(tmp_path):
    vectors = vectors_of(tmp_path, "a 0 0\n  9 8\n. . 1 2\n")
    np.testing.assert_array_equal(vectors.table[WORDS.encode([" ", ". ."])], [[9, 8], [1, 2]])
    assert vectors.notes == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 1 2 3\nb 1\n", "line 2: 2 of 3 numbers missing in 'b 1'"),
        ("a 1 2\n5 1\n", "line 2: 1 of 2 numbers missing in '5 1'"),
        ("a 1 2\nb\n", "line 2: 2 of 2 numbers missing in 'b'"),
        ("9 2\na 1 2\n", "must have 9 words as its first line says, got 1"),
        ("a\t1\t2\n", r"line 1: no numbers in 'a\\t1\\t2'"),
    ],
)
def test_what_is_missing_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        vectors_of(tmp_path, text)
