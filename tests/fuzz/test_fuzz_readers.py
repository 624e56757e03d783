"""Fuzzing of the readers of tables: rows as Python's own modules read them, or a clear error."""

import csv
import gzip
import io
import json
import re

import pytest
from fuzzing import ANY_TEXT, ODD_TEXTS, examples, mutated
from hypothesis import example, given
from hypothesis import strategies as st

from rnnjax.data import DataError, read_examples

GOOD = b'text,label\r\n"warm, ""funny""\nfilm",good\r\ncold,bad\r\n\xc3\xa9\xf0\x9f\x9a\x80,good\n'
LINES = (
    b'{"text": "a\\u00e9\\n", "label": 1}\n\n{"label": 0, "text": "\xf0\x9f\x9a\x80", "x": [{}]}\n'
)
CSV_BYTES = st.lists(
    st.sampled_from(
        [b'"', b",", b"\t", b"\n", b"\r", b"\0", b"a", b"1", b" ", b"\xc3\xa9", b"\xff"]
    ),
    max_size=30,
).map(lambda parts: b"text,label\n" + b"".join(parts))


def csv_rows(data, delimiter):
    """The non-empty rows that Python's csv reads from the bytes; None if it does not."""
    try:
        text = data.decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except (UnicodeDecodeError, csv.Error):
        return None
    return [row for row in rows if row]


def fits(rows):
    """Whether rows are a table of texts with classes, in the words of the documentation."""
    if not rows or len(rows) < 2 or any(len(row) != len(rows[0]) for row in rows):
        return False
    if len(set(rows[0])) != len(rows[0]) or not {"text", "label"} <= set(rows[0]):
        return False
    labels = [row[rows[0].index("label")].strip() for row in rows[1:]]
    if any(re.fullmatch("[+-]?[0-9]{1,18}", label) for label in labels):
        return all(re.fullmatch(r"\+?[0-9]{1,18}|-0{1,18}", label) for label in labels)
    return not any(not label or number(label) for label in labels)


def number(label):
    try:
        return float(label) not in (float("inf"), float("-inf")) or label.lower() == "nan"
    except ValueError:
        return False


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
@examples(150)
@given(data=st.one_of(CSV_BYTES, st.binary(max_size=40), mutated(GOOD)))
@example(data=GOOD)
@example(data=GOOD.replace(b"\n", b"\r"))
@example(data=b"\xef\xbb\xbf" + GOOD)
@example(data=GOOD.decode().encode("utf-16"))
@example(data=b"text,label\n" + b"x" * 200_000 + b",1\n")
@example(data=b"text,label\nx,1_0\ny,z\n")
@example(data="text,label\nx,\u0661\n".encode())
def test_any_bytes_are_the_rows_of_csv_or_refused_by_name(tmp_path, name, delimiter, data):
    path = tmp_path / name
    data = data.replace(b"text,label", b"text" + delimiter.encode() + b"label")
    path.write_bytes(data)
    with raised_limit():
        rows = csv_rows(data, delimiter)
    if fits(rows):
        found = read_examples(path)
        text, label = rows[0].index("text"), rows[0].index("label")
        assert found.texts == [row[text] for row in rows[1:]]
        names = found.label_names or range(10**18)
        given_as = [row[label].strip() for row in rows[1:]]
        assert [names[i] for i in found.labels] == (
            given_as if found.label_names else list(map(int, given_as))
        )
    else:
        with pytest.raises(DataError, match=re.escape(str(path))):
            read_examples(path)


class raised_limit:  # noqa: N801
    """Python's csv reads fields of any length meanwhile."""

    def __enter__(self):
        self._before = csv.field_size_limit(2**31 - 1)

    def __exit__(self, *_):
        csv.field_size_limit(self._before)


@examples(60)
@given(texts=st.lists(st.one_of(ANY_TEXT, st.sampled_from(ODD_TEXTS[:-1])), min_size=1, max_size=4))
def test_any_text_that_is_unicode_comes_back_from_every_kind_of_file(tmp_path, texts):
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([["text", "label"], *([text, "0"] for text in texts)])
    rows = "".join(json.dumps({"text": text, "label": 0}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(rows)
    try:
        (tmp_path / "a.csv").write_bytes(stream.getvalue().encode())
        (tmp_path / "a.csv.gz").write_bytes(gzip.compress(stream.getvalue().encode()))
    except UnicodeEncodeError:
        joined = " ".join(json.loads(json.dumps(text)) for text in texts)
        # JSON makes one character of two halves, if they stand in order.
        if any("\ud800" <= char <= "\udfff" for char in joined):
            with pytest.raises(DataError, match="half of a surrogate pair"):
                read_examples(tmp_path / "a.jsonl")
        return
    for name in ("a.csv", "a.csv.gz", "a.jsonl"):
        assert read_examples(tmp_path / name).texts == texts


@examples(200)
@given(data=st.one_of(st.binary(max_size=40), mutated(LINES)))
@example(data=LINES)
@example(data=b"[" * 100_000)
@example(data=b'{"text": "a", "label": ' + b"1" * 5000 + b"}\n")
@example(data=b'{"text": "\\ud800", "label": 1}\n')
@example(data=b'{"text": "a", "label": NaN}\n{"text": "a", "label": 1e2}\n')
def test_any_bytes_are_lines_of_json_or_refused_by_name(tmp_path, data):
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    try:
        found = read_examples(path)
    except DataError as error:
        named = str(path) in str(error)
    else:
        named = True
        lines = data.decode("utf-8-sig").split("\n")
        rows = [json.loads(line) for line in lines if line.strip()]
        assert found.texts == [row["text"] for row in rows]
        names = found.label_names or range(10**18)
        labels = [
            row["label"].strip() if type(row["label"]) is str else row["label"] for row in rows
        ]
        kind = str if found.label_names else int
        assert [names[i] for i in found.labels] == list(map(kind, labels))
    assert named


@examples(60)
@given(data=mutated(gzip.compress(GOOD, mtime=0)))
def test_a_damaged_gzip_file_is_refused_or_holds_the_rows(tmp_path, data):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(data)
    try:
        found = read_examples(path)
    except DataError as error:
        named = str(path) in str(error)
    else:
        named = True
        # Names and times in the header of gzip have no checksum, and say nothing of the rows.
        assert found == read_examples_of(tmp_path, GOOD)
    assert named


def read_examples_of(folder, data):
    (folder / "good.csv").write_bytes(data)
    return read_examples(folder / "good.csv")
