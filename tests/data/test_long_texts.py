"""Long texts: rows of one stream, texts by name, and what is no text."""

import gzip
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnjax.data import (
    DataError,
    Vocabulary,
    contiguous,
    load_text,
    read_text,
    words_and_line_ends,
)

DATA = Path(os.environ.get("RNNJAX_DATA", "none"))


# Rows


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=60), st.integers(1, 9))
def test_rows_one_behind_the_other_are_the_stream_and_targets_what_follows(ids, rows):
    if len(ids) <= rows:
        with pytest.raises(DataError, match=rf"ids must have at least {rows + 1} "):
            contiguous(ids, rows)
        return
    stream = contiguous(ids, rows)
    steps = (len(ids) - 1) // rows
    assert stream.tokens.shape == stream.targets.shape == (rows, steps)
    assert stream.tokens.dtype == stream.targets.dtype == np.int32
    assert stream.tokens.ravel().tolist() == ids[: rows * steps]
    assert stream.targets.ravel().tolist() == ids[1 : rows * steps + 1]
    assert stream.dropped == len(ids) - 1 - rows * steps
    assert stream.dropped < rows


@pytest.mark.parametrize(
    ("ids", "rows", "message"),
    [
        ([[1, 2], [3, 4]], 1, "ids must be one axis of integers, got 2 axes of int64"),
        ([0.5, 1.0, 2.0], 1, "ids must be one axis of integers, got 1 axes of float64"),
        ([1, 2, 3], 0, "rows must be at least 1, got 0"),
        ([], 1, "ids must have at least 2 for 1 rows, got 0"),
        ([1, 2**31, 0], 1, "ids must have 32-bit integers, got 2147483648"),
        ([-(2**40), 1, 0], 1, "ids must have 32-bit integers, got -1099511627776"),
        ([[1], [2, 3]], 1, "ids must have steps of one shape"),
        (iter([1, 2]), 1, "ids must have integers or floats, got <list_iterator"),
    ],
)
def test_what_is_no_stream_is_refused(ids, rows, message):
    with pytest.raises(DataError, match=message):
        contiguous(ids, rows)


# Texts of one's own


def test_a_file_of_ones_own_is_divided_behind_nine_tenths(tmp_path):
    path = tmp_path / "book.txt.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + b"0123456\r\n9" * 10))
    book = load_text(path)
    assert (book.train, book.validation, book.test) == ("0123456\n9" * 9, "0123456\n9", "")
    assert book.name == "book.txt.gz"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must have text, got an empty file"),
        (b"\xef\xbb\xbf", "must have text, got an empty file"),
        (b"x", "must have at least 2 characters to divide, got 1"),
        (b"ab\ncaf\xe9", "must have UTF-8 text, got line 2: byte 0xe9 at column 4"),
        (b"ab\n\x7fELF\0\0", "must have text, got line 2: a NUL character"),
        (
            "ab\n".encode("utf-16"),
            r"must have UTF-8 text \(this has a mark of UTF-16\), got line 1: byte",
        ),
        ("ab\n".encode("utf-16-le"), "must have text, got line 1: a NUL character"),
    ],
)
def test_a_file_that_is_no_text_is_named(tmp_path, content, message):
    path = tmp_path / "book.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"book\.txt {message}"):
        load_text(str(path))


def test_a_missing_file_a_folder_and_an_unknown_name_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt must be a file, got none"):
        load_text("none.txt")
    with pytest.raises(DataError, match="must be a file, got a folder"):
        load_text(str(tmp_path))
    with pytest.raises(DataError, match=r"must be a file or one of tiny_shakespeare, ptb, .* got"):
        load_text("shakespeare")


# Texts by name


def test_tiny_shakespeare_and_ptb_are_found_in_the_folder(tmp_path, monkeypatch):
    (tmp_path / "tiny_shakespeare").mkdir()
    (tmp_path / "tiny_shakespeare" / "input.txt").write_text("0123456789" * 2)
    (tmp_path / "ptb").mkdir()
    for part in ("train", "valid", "test"):
        (tmp_path / "ptb" / f"ptb.{part}.txt").write_text(f" some {part} words \n")
    monkeypatch.setenv("RNNJAX_DATA", str(tmp_path))
    text = load_text("tiny_shakespeare")
    assert (text.train, text.validation, text.test) == ("0123456789" + "01234567", "89", "")
    ptb = load_text("ptb")
    assert (ptb.train, ptb.validation, ptb.test) == (
        " some train words \n",
        " some valid words \n",
        " some test words \n",
    )


@pytest.mark.parametrize("name", ["tiny_shakespeare", "ptb", "ag_news_titles"])
def test_a_text_that_is_not_there_says_what_to_put_where(tmp_path, name):
    with pytest.raises(DataError, match=rf"{name.removesuffix('_titles')} needs local files.* RNN"):
        load_text(name, data_dir=tmp_path)


def test_the_titles_of_ag_news_are_lines(tmp_path):
    folder = tmp_path / "ag_news"
    folder.mkdir()
    rows = [f'"{1 + i % 4}","Title\n{i}","body {i}"\n' for i in range(20)]
    (folder / "train.csv").write_text("".join(rows))
    (folder / "test.csv").write_text('"1","A test","body"\n')
    text = load_text("ag_news_titles", data_dir=tmp_path, seed=1)
    assert text.test == "A test\n"
    both = text.train.splitlines() + text.validation.splitlines()
    assert sorted(both) == sorted(f"Title {i}" for i in range(20))
    assert len(text.validation.splitlines()) == 2
    assert load_text("ag_news_titles", data_dir=tmp_path, seed=2).train != text.train


def test_the_texts_of_a_table_are_lines(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(30)))
    text = load_text(str(path))
    lines = [part.splitlines() for part in (text.train, text.validation, text.test)]
    assert [*map(len, lines)] == [22, 2, 6]
    assert sorted(line for part in lines for line in part) == sorted(f"text {i}" for i in range(30))
    assert load_text(path).name == "own.csv"


def test_words_and_line_ends_close_every_line():
    assert words_and_line_ends("") == []
    assert words_and_line_ends("a\n\n b c") == ["a", "<eos>", "<eos>", "b", "c", "<eos>"]
    assert words_and_line_ends("a\n\n") == ["a", "<eos>", "<eos>"]
    assert words_and_line_ends("a\n") == words_and_line_ends("a") == ["a", "<eos>"]


@pytest.mark.skipif(not (DATA / "ptb").is_dir(), reason="needs Penn Treebank in RNNJAX_DATA")
def test_penn_treebank_has_the_published_counts():
    ptb = load_text("ptb")
    tokens = [words_and_line_ends(part) for part in (ptb.train, ptb.validation, ptb.test)]
    assert [*map(len, tokens)] == [929_589, 73_760, 82_430]
    assert len(Counter(tokens[0])) == 10_000
    # The unknown token of the text is that of the vocabulary, and padding is one more.
    assert len(Vocabulary.fit([tokens[0]])) == 10_001


@pytest.mark.skipif(
    not (DATA / "tiny_shakespeare").is_dir(), reason="needs tiny_shakespeare in RNNJAX_DATA"
)
def test_tiny_shakespeare_has_the_published_counts():
    text = load_text("tiny_shakespeare")
    assert (len(text.train), len(text.validation)) == (1_003_854, 111_540)
    assert len(set(text.train + text.validation)) == 65


def test_read_text_keeps_everything_but_the_mark_and_the_line_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff\ufeffa\r\nb\rc\n\r\n \u2028\x0c\x85d ".encode())
    assert read_text(path) == "\ufeffa\nb\nc\n\n \u2028\x0c\x85d "
