"""Odd and damaged text files: read without loss, or refused with file and line.

The common faults of every kind of file are in test_sources.py; here are the rarer ones, and what
the classify experiment says of all of them.
"""

import gzip
import json

import numpy as np
import pytest

from experiments import classify
from rnnjax.data import DataError, Examples, read_examples

LONG = "word " * 200_000  # a million characters
HEADER = b"text,label\n"
COLUMNS = b"".join(b"column%d," % i for i in range(9000))


def write(path, content):
    path.write_bytes(content)
    return path


# Odd, but right

ODD = {
    "NUL": ("a.csv", HEADER + b"a\x00b,1\n\x00,0\n", ["a\0b", "\0"]),
    "carriage returns alone": ("a.csv", b"text,label\ra,1\rb,0\r", ["a", "b"]),
    "every kind of line end": ("a.csv", HEADER + b'a,1\r\n"b\r\nc",0\r', ["a", "b\r\nc"]),
    "no last line end": ("a.csv", HEADER + b"a,1\nb,0", ["a", "b"]),
    "a mark inside the text": ("a.csv", HEADER + b"\xef\xbb\xbfa,1\nb,0\n", ["\ufeffa", "b"]),
    "separators of Unicode": (
        "a.csv",
        HEADER + "a\x0b\x85\u2028b,1\nc,0\n".encode(),
        ["a\x0b\x85\u2028b", "c"],
    ),
    "repeated ids and rows": ("a.csv", b"id,text,label\n7,a,1\n7,a,0\n", ["a", "a"]),
    "many columns": (
        "a.csv",
        COLUMNS + HEADER + b"," * 9000 + b"a,1\n" + b"," * 9000 + b"b,0\n",
        ["a", "b"],
    ),
    "a quote in the middle": ("a.csv", HEADER + b'5" disk,1\nb,0\n', ['5" disk', "b"]),
    "only spaces": ("a.csv", HEADER + b"   ,1\n,0\n", ["   ", ""]),
    "a million characters": ("a.csv", HEADER + LONG.encode() + b",1\nb,0\n", [LONG, "b"]),
    "a million lines in quotes": (
        "a.csv",
        HEADER + b'"' + b"\n" * 10**6 + b'",1\nb,0\n',
        ["\n" * 10**6, "b"],
    ),
    "a million in JSON": (
        "a.jsonl",
        json.dumps({"text": LONG, "label": 1}).encode() + b'\n{"label":0,"text":"b"}',
        [LONG, "b"],
    ),
    "two gzip members": (
        "a.csv.gz",
        gzip.compress(HEADER + b"a,1\n", mtime=0) + gzip.compress(b"b,0\n", mtime=0),
        ["a", "b"],
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_file_loses_nothing(tmp_path, case):
    name, content, texts = ODD[case]
    examples = read_examples(write(tmp_path / name, content))
    assert examples.texts == texts
    assert examples.labels == [1, 0]


def test_extra_columns_change_nothing(tmp_path):
    narrow = write(tmp_path / "a.csv", HEADER + b"a,1\nb,0\n")
    wide = write(tmp_path / "b.csv", b"x,label,,text,\n1,1,,a,\n2,0,,b,\n")
    assert read_examples(narrow) == read_examples(wide) == Examples(["a", "b"], [1, 0])


# Bad

GZIPPED = gzip.compress(HEADER + b"a,1\n", mtime=0)
BAD = [
    ("a.csv", HEADER + b"a,1\n\x00\x00\n", "must have 2 fields .*, got line 3: 1$"),
    ("a.csv", HEADER + b"a,1\x00\nb,0\n", r"integers from 0 up .*, got line 2: '1\\x00'"),
    ("a.csv", b"text\x00,label\na,1\n", r"columns \['text'\], got \['text\\x00', 'label'\]"),
    ("a.csv", HEADER + b"a,1\nb,0\n\x1a", "must have 2 fields .*, got line 4: 1$"),
    ("a.csv", HEADER + b"a,1\n   \nb,0\n", "must have 2 fields .*, got line 3: 1$"),
    ("a.csv", HEADER.decode().encode("utf-16-le"), "must have the columns"),
    ("a.csv", b"\xef\xbb\xbf" * 2 + HEADER + b"a,1\n", r"columns \['text'\], got \['.ufefftext'"),
    ("a.csv", b"\xef\xbb\xbf", "must have the columns"),
    ("a.csv", b"te\xffxt,label\na,1\n", "got line 1: byte 0xff at column 3"),
    ("a.csv", HEADER + b"\xc0\x80,1\n\xed\xa0\x80,1\n", "line 2: byte 0xc0 .* line 3: byte 0xed"),
    ("a.csv", HEADER + b"\xff,1\n" * 9, "line 2: .*line 3: .*line 4: .*; and 6 more$"),
    ("a.csv", b"text;label\na;1\n", r"columns \['text', 'label'\], got \['text;label'\]"),
    ("a.csv", b"<!DOCTYPE html>\n<html></html>\n", r"columns .*, got \['<!DOCTYPE html>'\]"),
    ("a.csv", HEADER + b"'a, b',1\n", "must have 2 fields .*, got line 2: 3$"),
    ("a.csv", HEADER + b'"a,1\nb,0\nc,1\nd,"0"\n', "well-formed quoted .* got line 2: "),
    ("a.csv", HEADER + b'"a \\" b",1\n', "well-formed quoted fields, got line 2: "),
    ("a.csv", HEADER + b'"' + b"w\n" * 10**5 + b'",1\nb\n', "got line 100003: 1$"),
    ("a.tsv", b'text\tlabel\na "b"\t1\n"c\t0\n', "well-formed quoted fields, got line 3: "),
    ("a.csv", HEADER + b"a,99999999999999999999\n", "got line 2: '99999999999999999999'"),
    ("a.csv", HEADER + "a,\u0661\nb,0\n".encode(), "got line 2: '\u0661'"),
    ("a.csv", GZIPPED, "must have UTF-8 text, got line 1: byte 0x8b at column 2"),
    ("a.csv.gz", gzip.compress(GZIPPED, mtime=0), "got line 1: byte 0x8b at column 2"),
    ("a.csv.gz", GZIPPED + b"more", "must be a whole gzip file"),
    ("a.csv.gz", gzip.compress(b"", mtime=0), "must have the columns"),
    ("a.csv.gz", gzip.compress(HEADER + b"\xe9,1\n", mtime=0), "got line 2: byte 0xe9 at column 1"),
    ("a.jsonl", b'{"text":"a","label":1}\n{"text":"\xe9","label":1}', "got line 2: byte 0xe9"),
    ("a.jsonl", b'{"text":"a","text":"b","label":1}', "got line 1: the field 'text' twice"),
    ("a.jsonl", b'{"text":"a","label":1} {"text":"b","label":1}', "got line 1: not JSON"),
    ("a.jsonl", b'{"text":"a","label":1},\n', "got line 1: not JSON"),
    ("a.jsonl", b'{\n"text":"a",\n"label":1}\n', "got line 1: not JSON .*; line 2: not JSON"),
    ("a.jsonl", b'{"text":["a"],"label":1}', "text in column 'text', got line 1: list"),
    ("a.jsonl", b'{"text":"a","label":99999999999999999999}', "got line 1: 99999999999999999999"),
    ("a.jsonl", b'{"text":"a","label":NaN}', "got line 1: nan"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_a_bad_file_is_named_with_its_line(tmp_path, name, content, message):
    with pytest.raises(DataError, match=f"{name} .*{message}"):
        read_examples(write(tmp_path / name, content))


@pytest.mark.parametrize(
    "content",
    [
        b",".join(b"column%d" % i for i in range(20_000)) + b"\n1\n",
        b"text," * 20_000 + b"label\n",
        HEADER + b"a,1\nb," + b"x" * 10**6 + b"\n",
        b"x" * 10**6 + b",text,label\n1\n",
    ],
)
def test_a_message_stays_short_whatever_the_file_holds(tmp_path, content):
    with pytest.raises(DataError, match=r"a\.csv must ") as caught:
        read_examples(write(tmp_path / "a.csv", content))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": ()}, r"text must be the name of a column or several, got \(\)"),
        ({"text": None}, "text must be the name of a column or several, got None"),
        ({"text": ("text", 3)}, "text must be the name of a column, got 3"),
        ({"label_names": "ab"}, "label_names must be a list of different names, got 'ab'"),
        ({"label_names": ("a", "b", "a")}, "label_names must be a list of different names"),
        ({"label_names": (0, 1)}, r"label_names must be a list of different names, got \(0, 1\)"),
        ({"header": ["text", 1]}, "header must be the name of a column, got 1"),
        ({"header": {"text", "label"}}, "header must be the name of a column or several"),
        ({"quoting": "no"}, "quoting must be True or False, got 'no'"),
        ({"num_classes": 2.5}, "num_classes must be an integer, got 2.5"),
        ({"first_label": "1"}, "first_label must be an integer, got '1'"),
    ],
)
def test_arguments_that_are_none_are_refused(tmp_path, settings, message):
    with pytest.raises(DataError, match=message):
        read_examples(write(tmp_path / "a.csv", HEADER + b"a,1\nb,0\n"), **settings)


# The experiment on files of one's own


def run_classify(folder, train, test=HEADER + b"a,1\nb,0\n"):
    write(folder / "train.csv", train)
    write(folder / "test.csv", test)
    given = ["--dataset", "local", "--data-dir", str(folder), "--out", str(folder / "run")]
    return classify.main([*given, "--min-count", "1"])


@pytest.mark.parametrize(
    ("train", "parts"),
    [
        (b"", ["must have rows, got an empty file"]),
        (HEADER, ["must have rows, got none"]),
        (HEADER + b"caf\xe9,1\n", ["line 2", "byte 0xe9 at column 4"]),
        (HEADER + b"a,1\nb\n", ["line 3: 1", "2 fields"]),
        (HEADER + b"a,1\nb,0,x\n", ["line 3: 3", "2 fields"]),
        (HEADER + b'a,1\n"b,0\n', ["line 3", "quote left open"]),
        (HEADER + b"a,1\n\x00\n", ["line 3: 1"]),
        (b"\xff\xfe" + HEADER, ["line 1", "byte 0xff"]),
        (HEADER + b"a,1\nb,\n", ["line 3: ''"]),
        (HEADER + b"a,0\nb,two\n", ["names in every row", "line 3: 'two'"]),
    ],
)
def test_classify_names_file_and_line_and_leaves_nothing(tmp_path, capsys, train, parts):
    assert run_classify(tmp_path, train) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path / 'train.csv'} must ")
    for part in parts:
        assert part in message
    assert "Traceback" not in message
    assert not (tmp_path / "run").exists()


def test_classify_names_the_test_file_too(tmp_path, capsys):
    assert run_classify(tmp_path, HEADER + b"a,1\nb,0\n", HEADER + b"a,1\nb,7\n") == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path / 'test.csv'} must ")
    assert "line 3: '7'" in message


def test_one_text_is_too_few_to_hold_some_out(tmp_path, capsys):
    assert run_classify(tmp_path, HEADER + b"a,0\n", HEADER + b"a,0\n") == 2
    assert (
        "local must have 2 texts to train on or more, one of which validates, got 1"
        in capsys.readouterr().err
    )


def test_classify_trains_on_every_row_of_an_odd_file(tmp_path, capsys, monkeypatch):
    rows = [b"a film", b"a\x00b", b"", b"   ", b'"two\r\nlines"', LONG.encode(), b"a film"]
    odd = b"\xef\xbb\xbfid,label,text\r\n"
    odd += b"".join(b"%d,%d,%s\r\n" % (7, i % 2, row) for i, row in enumerate(rows))
    seen = []

    def look(settings, num_classes, encode, splits, run, saver, devices):
        seen.extend([num_classes, encode, splits])
        raise DataError("looked at")

    monkeypatch.setattr(classify, "fit_model", look)
    assert run_classify(tmp_path, odd) == 2
    assert capsys.readouterr().err == "error: looked at\n"
    num_classes, encode, splits = seen
    assert num_classes == 2
    batches = [b for part in (splits.train, splits.validation) for b in part.epoch(0)]
    weights = np.concatenate([b.weights for b in batches])
    lengths = np.concatenate([b.lengths for b in batches])[weights == 1]
    # An empty text is one unknown word; the longest text is cut to the 400 words of the settings.
    assert sorted(lengths) == sorted([2, len(encode(["a\0b"])[0]), 1, 1, 2, 400, 2])
    assert sum(int(b.labels[b.weights == 1].sum()) for b in batches) == 3
