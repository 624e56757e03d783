"""The program that writes by hand."""

import gzip
import json
import shlex
import xml.etree.ElementTree

import jax
import numpy as np
import pytest
from PIL import Image
from stopping import stopped_after

import rnnjax
from experiments.handwriting import command
from experiments.handwriting.alphabet import read_font
from experiments.handwriting.model import Writer, _neater, build_model, encode, memory_of, write
from experiments.handwriting.pictures import draw_lines, svg
from experiments.handwriting.reading import distance, read, score, train_reader
from experiments.handwriting.settings import Settings
from experiments.handwriting.writing import (
    as_line,
    as_lines,
    read_sample,
    read_writing,
    resampled,
    write_by_chance,
)
from rnnjax.data import DataError

pytestmark = pytest.mark.usefixtures("quick_compile")

QUICK = [
    *("--words", "20", "--letters", "3", "--characters", "lv", "--hidden-size", "8"),
    *("--window", "2", "--mixture", "2", "--epochs", "2", "--buckets", "1", "--batch-size", "10"),
]


def run(*arguments):
    return command.main([str(argument) for argument in arguments])


def pairs_of(seed, count, letters="clv"):
    glyphs, rng = read_font("drawn", letters), np.random.default_rng(seed)
    texts = ["".join(rng.choice(list(letters), 4)) for _ in range(count)]
    return [write_by_chance(text, glyphs, 0.05, rng) for text in texts]


@pytest.mark.full
def test_a_run_writes_and_one_that_was_stopped_comes_to_the_same_bytes(tmp_path, capsys):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run("--out", whole, *QUICK, "--read-words", "0") == 0
    said = capsys.readouterr().out
    assert "drawn: 20 words by chance to learn from, 1 each to validate and test" in said
    for name in ("weights.safetensors", "curves.png", "written.png", "metrics.jsonl"):
        assert (whole / name).stat().st_size
    for name in ("one", "two"):
        assert run("write", whole, "v l", "--out", tmp_path / f"{name}.svg") == 0
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.png").stat().st_size
    pair = pairs_of(0, 1, "lv")[0]
    (tmp_path / "pair.jsonl").write_text(as_line(pair.text, pair.values))
    like = ["--like", tmp_path / "pair.jsonl", "--out", tmp_path / "like.svg"]
    assert run("write", whole, "vv", *like) == 0
    assert json.loads((tmp_path / "like.jsonl").read_text())["text"] == "vv"
    short = {"text": "vl" * 20, "strokes": [[0, 0, 0], [1, 0, 0], [0, 1, 1]]}
    capsys.readouterr()
    assert run("write", whole, "vv", "--like", own_file(tmp_path / "short.jsonl", [short])) == 0
    assert "of its 40: do its strokes write its text?" in capsys.readouterr().out
    assert run("write", whole, "vv", *like, "--like-line", "2") == 2
    assert "pair.jsonl, line 2: must have a sample, got nothing" in capsys.readouterr().err
    assert run("write", whole, "love") == 2
    assert "text must be of the characters 'lv', got 'eo' in 'love'" in capsys.readouterr().err

    with stopped_after(1):
        assert run("--out", stopped, *QUICK, "--read-words", "0") == 143
    assert run("--out", stopped, "--resume") == 0
    for name in ("metrics.jsonl", "weights.safetensors"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.full
def test_the_command_that_is_printed_can_be_run_with_a_text_that_begins_as_an_option(
    tmp_path, capsys
):
    pairs = [pair._replace(text=f"-{pair.text}") for pair in pairs_of(0, 30, "lv")]
    (tmp_path / "own.jsonl").write_text("".join(as_line(p.text, p.values) for p in pairs))
    learn = [*QUICK[6:], "--epochs", "1"]
    assert run("--pairs", tmp_path / "own.jsonl", *learn, "--out", tmp_path / "run") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert run(*shlex.split(line)[3:]) == 0
    assert (tmp_path / "run" / "written-0.svg").stat().st_size


def test_strokes_lead_through_the_letters_and_are_marked_at_their_ends():
    glyphs = read_font("drawn", "itv")
    pair = write_by_chance("it v", glyphs, 0.0, np.random.default_rng(0))
    lines = as_lines(pair.values)
    assert len(lines) == len(glyphs["i"].strokes) + len(glyphs["t"].strokes) + 1
    assert pair.values[:, 3].tolist() == [0] * (len(pair.values) - 1) + [1]
    assert pair.letters[pair.letters > 0].tolist() == [1, 2, 3]
    # Letters end where a stroke does, and those of the last word begin behind those of the first.
    assert np.all(pair.values[:-1][pair.letters > 0, 2] == 1)
    assert lines[-1][:, 0].min() > max(line[:, 0].max() for line in lines[:-1])
    # Only the dot is shorter than a step between two points.
    steps = np.concatenate([np.hypot(*np.diff(line, axis=0).T) for line in lines])
    assert steps.min() > 0.4
    assert steps.max() < 1.5


def test_a_line_is_cut_into_equal_lengths():
    found = resampled(np.array([[0, 0], [3, 0], [3, 1]]), 0.5)
    np.testing.assert_allclose(found[:7], [[x / 2, 0] for x in range(7)], atol=1e-12)
    np.testing.assert_allclose(found[7:], [[3, 0.5], [3, 1]], atol=1e-12)


def test_the_file_that_is_written_holds_every_stroke():
    pair = pairs_of(0, 1)[0]
    tree = xml.etree.ElementTree.fromstring(svg(pair.values, "a < b"))
    kind = "{http://www.w3.org/2000/svg}"
    assert tree.find(f"{kind}title").text == "a < b"
    paths = [path.get("d") for path in tree.iter(f"{kind}path")]
    for path, line in zip(paths, as_lines(pair.values), strict=True):
        points = np.array([[float(n) for n in p.split()] for p in path[1:].split("L")])
        moved = np.diff(points, axis=0) * (1, -1)
        np.testing.assert_allclose(moved, np.diff(line, axis=0), atol=0.011)


@pytest.mark.full
def test_a_reader_reads_what_was_written_and_errors_are_counted(monkeypatch):
    monkeypatch.setattr("experiments.handwriting.reading._WORDS", 60)
    glyphs = read_font("drawn", "clv")
    reader = train_reader(glyphs, Settings(characters="clv", letters=4))
    pairs = pairs_of(1, 20)
    found = read(reader, [pair.values for pair in pairs])
    assert score([pair.text for pair in pairs], found).accuracy > 0.9


def test_the_distance_of_two_texts_is_the_fewest_changes():
    assert distance("", "abc") == distance("abc", "") == 3
    assert distance("abc", "axc") == distance("abc", "ac") == distance("ac", "abc") == 1
    assert score(["a b", "cc"], ["ab", "c"]) == (1, 4)


def untrained(characters):
    settings = Settings(hidden_size=8, window=2, mixture=2, layers=2)
    model = build_model(settings, characters)
    params = model.init(jax.random.key(0))
    mixture, pen = params.head
    # Otherwise it would end at every other point.
    pen = pen._replace(bias=pen.bias.at[1].set(-4.0))
    return Writer(model, params._replace(head=(mixture, pen)), characters, settings)


def test_writing_in_the_hand_of_a_sample_goes_on_from_the_carry_behind_its_strokes():
    writer, sample = untrained(" clv"), pairs_of(0, 1)[0]
    model, params = writer.model, writer.params
    texts = ["cl", "vvl lc"]
    found = write(writer, texts, bias=1.0, seed=3, like=sample)

    # By hand: the network reads zeros and all points but the last, and goes on from the last.
    ids, lengths = encode([f"{sample.text} {text}" for text in texts], " clv")
    context = memory_of(ids, lengths, " clv", layers=2)
    points = np.concatenate([np.zeros((1, 4), np.float32), sample.values[:-1]])
    twice = np.repeat(points[None], 2, axis=0)
    carry, _ = model.apply(params, twice[:, :-1], context=context)
    expected = rnnjax.generate_series(
        _neater(model, 1.0),
        params,
        twice[:, -1:],
        max_new_steps=40 * 7,
        key=jax.random.key(3),
        stop=lambda value: value[3] > 0.5,
        initial_carry=carry,
        context=context,
    )
    for drawn, values, length in zip(found, expected.values, expected.lengths, strict=True):
        np.testing.assert_allclose(drawn.values, values[:length], rtol=0, atol=1e-4)
    # What is written depends neither on the other text nor on the padding that it brings.
    alone = write(writer, texts[:1], bias=1.0, seed=3, like=sample)[0].values
    shared = min(len(alone), len(found[0].values))
    np.testing.assert_allclose(alone[:shared], found[0].values[:shared], rtol=0, atol=1e-4)
    assert shared > 20


def test_the_strokes_that_are_written_can_be_the_sample_of_others(tmp_path):
    pair = pairs_of(0, 1)[0]
    path = tmp_path / "own.jsonl"
    path.write_text("\n" + as_line(pair.text, pair.values))
    found = read_sample(path, 2)
    assert found.text == pair.text
    # The unit of a file is that of its median step.
    median = np.median(np.hypot(*pair.values[1:-1, :2].T))
    np.testing.assert_allclose(found.values[:, :2], pair.values[:, :2] / median, atol=1e-3)
    assert found.values[:, 2:].tolist() == pair.values[:, 2:].tolist()


@pytest.mark.parametrize(
    ("strokes", "words"),
    [
        ([[0, 0, 0], [1, 0, 0]], "line 1: strokes must have an end of 1 at the last point"),
        ([[0, 0, 0], [0, 0, 1]], "must hold strokes that move"),
        ([[0, 0]], "line 1: strokes must be 2 or more points"),
    ],
)
def test_a_sample_that_cannot_be_gone_on_from_is_named(strokes, words, tmp_path):
    path = own_file(tmp_path / "own.jsonl", [{"text": "a", "strokes": strokes}])
    with pytest.raises(DataError, match=words):
        read_sample(path, 1)


def own_file(path, lines):
    path.write_text("\n".join(line if type(line) is str else json.dumps(line) for line in lines))
    return path


def test_pairs_of_ones_own_are_read_in_the_unit_of_the_program(tmp_path):
    strokes = [[5, 5, 0], [0, 40, 0], [30, 0, 1], [80, 0, 0], [0, -40, 1]]
    path = own_file(tmp_path / "own.jsonl", [{"text": "Ab", "strokes": strokes}] * 10)
    writing = read_writing(Settings(pairs=path))
    assert [len(part) for part in writing[-3:]] == [8, 1, 1]
    assert writing.characters == " Ab"
    expected = [[0, 0], [0, 1], [0.75, 0], [2, 0], [0, -1], [0, 0]]
    np.testing.assert_allclose(writing.test[0].values[:, :2], expected, atol=1e-6)
    assert writing.test[0].values[:, 2:].tolist() == [
        [0, 0],
        [0, 0],
        [1, 0],
        [0, 0],
        [1, 0],
        [1, 1],
    ]


def test_a_leap_among_the_strokes_is_named(tmp_path):
    pair = {"text": "ab", "strokes": [[1, 0, 0], [0, 1, 0], [1, 0, 1]]}
    leap = {"text": "leap", "strokes": [[1, 0, 0], [1e6, 1, 1]]}
    path = own_file(tmp_path / "own.jsonl", [pair] * 12 + [leap])
    with pytest.raises(DataError, match=r"1,000 times their median, 1, got 1e\+06 in 'leap'"):
        read_writing(Settings(pairs=path))


def test_lines_of_pairs_end_where_those_of_json_do(tmp_path):
    pair = {"text": "a\u00a0b", "strokes": [[1, 0, 0], [0, 1, 1]]}
    line = json.dumps(pair, ensure_ascii=False).replace("\u00a0", "\u2028")
    path = own_file(tmp_path / "own.jsonl", ["\ufeff" + json.dumps({**pair, "text": "ab"}), line])
    with pytest.raises(DataError, match="line 2: text must have characters"):
        read_writing(Settings(pairs=path))


def test_a_gzipped_file_of_pairs_is_one_and_a_missing_file_is_said_to_be(tmp_path):
    pair = {"text": "ab", "strokes": [[1, 0, 0], [0, 1, 1]]}
    plain = own_file(tmp_path / "own.jsonl", [pair] * 10)
    packed = tmp_path / "own.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_writing(Settings(pairs=packed)).sha256 == read_writing(Settings(pairs=plain)).sha256
    with pytest.raises(DataError, match=r"nowhere\.jsonl must be a file, got none"):
        read_writing(Settings(pairs=tmp_path / "nowhere.jsonl"))


def test_the_picture_of_a_long_text_is_of_its_beginning(tmp_path):
    values, text = np.zeros((3, 4), np.float32), "ab " * 200
    draw_lines({text: values}, tmp_path / "long.png", (text, np.zeros((3, 601))))
    with Image.open(tmp_path / "long.png") as picture:
        assert max(picture.size) < 1500


BAD_LINES = {
    "no JSON": ("{", "line 1: must be JSON"),
    "no text": ({"strokes": [[0, 0, 1]] * 2}, 'must have a "text"'),
    "points of two": ({"text": "a", "strokes": [[0, 0]] * 2}, "2 or more points [dx, dy, end]"),
    "an uneven list": ({"text": "a", "strokes": [[0, 0, 1], [0]]}, "2 or more points"),
    "an end of 2": ({"text": "a", "strokes": [[0, 0, 2]] * 2}, "with an end of 0 or 1"),
    "an empty text": ({"text": " ", "strokes": [[0, 0, 1]] * 2}, "text must have characters"),
    "two lines": ({"text": "a\nb", "strokes": [[0, 0, 1]] * 2}, "but those that can be seen"),
    "half a character": ({"text": "\ud800", "strokes": [[0, 0, 1]] * 2}, "that can be seen"),
    "one pair": ({"text": "a", "strokes": [[1, 0, 1]] * 2}, "at least 10 pairs, got 1"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_line_that_is_no_pair_is_named(case, tmp_path):
    line, words = BAD_LINES[case]
    path = own_file(tmp_path / "own.jsonl", [line])
    with pytest.raises(DataError) as caught:
        read_writing(Settings(pairs=path))
    assert words in str(caught.value)
    assert "own.jsonl" in str(caught.value)


def test_a_font_or_a_letter_that_is_not_there_is_named(monkeypatch):
    with pytest.raises(DataError, match="must be in the font drawn, got 'É7'"):
        read_font("drawn", "aÉ7")
    with pytest.raises(DataError, match="must be different ones"):
        read_font("drawn", "aa")
    monkeypatch.setattr("experiments.handwriting.alphabet.is_installed", lambda name: False)
    with pytest.raises(DataError, match=r'pip install "\.\[handwriting\]"'):
        read_font("futural", "abc")


def test_letters_of_a_hershey_font_stand_on_the_line():
    pytest.importorskip("HersheyFonts")
    glyphs = read_font("futural", "axp")
    for letter in "ax":
        points = np.concatenate(glyphs[letter].strokes)
        np.testing.assert_allclose([points[:, 1].min(), points[:, 1].max()], [0, 4], atol=1e-9)
    assert np.concatenate(glyphs["p"].strokes)[:, 1].min() < -1
    with pytest.raises(DataError, match="--font must be one of drawn, astrology"):
        read_font("comic", "a")


def test_texts_become_ids_and_their_lengths():
    ids, lengths = encode(["b a", "c"], " abc")
    assert ids.tolist() == [[2, 0, 1, 4], [3, 4, 0, 0]]
    assert lengths.tolist() == [4, 2]


def test_a_dot_is_seen_and_where_nothing_was_written_there_is_an_empty_picture(tmp_path):
    end = [0, 0, 1, 1]
    dot = np.array([[1, 2, 1, 0], end], float)
    assert as_lines(dot)[0].tolist() == [[1, 2], [1, 2]]  # with round ends, a line of no length
    assert "L" in svg(dot, "i")
    nothing = np.array([end], float)
    assert as_lines(nothing) == []
    assert "<path" not in svg(nothing, "i")
    line = np.array([[0, 0, 0, 0], [5, 0, 1, 0], [1, 1, 1, 0], end], float)
    pictures = []
    for name, written in (("with", line), ("without", np.delete(line, 2, axis=0))):
        draw_lines({"line": written, "nothing": nothing}, tmp_path / name, ("i", np.ones((2, 2))))
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0] != pictures[1]


def test_a_file_that_its_picture_would_overwrite_is_refused(capsys):
    assert run("write", "runs/none", "ab", "--out", "written.png") == 2
    assert "--out must not end in .png, where its picture goes" in capsys.readouterr().err
    assert run("write", "runs/none", "ab", "--out", "written.jsonl") == 2
    assert "--out must not end in .jsonl, where the strokes go" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["written.svg", "elsewhere/../written.svg"])
def test_the_sample_is_not_written_over(out, tmp_path, capsys):
    sample = tmp_path / "written.jsonl"
    sample.write_text("a sample")
    (tmp_path / "elsewhere").mkdir()
    assert run("write", tmp_path, "ab", "--like", sample, "--out", tmp_path / out) == 2
    assert "--out must not lead to a file that is read" in capsys.readouterr().err
    (tmp_path / "written-7.jsonl").symlink_to(sample)  # that of the default name
    assert run("write", tmp_path, "ab", "--like", sample, "--seed", "7") == 2
    assert "written-7.jsonl" in capsys.readouterr().err
    assert sample.read_text() == "a sample"


@pytest.mark.parametrize(
    ("kept", "out"),
    [
        ("config.json", "config.json"),
        ("weights.safetensors", "weights.safetensors"),
        ("metrics.jsonl", "metrics.svg"),  # where the strokes would go
    ],
)
def test_the_files_of_the_run_are_not_written_over(kept, out, tmp_path, capsys):
    (tmp_path / kept).write_text("of the run")
    assert run("write", tmp_path, "ab", "--out", tmp_path / out) == 2
    error = capsys.readouterr().err
    assert (
        f"--out must not lead to a file that is read, as it would be lost, got {tmp_path}" in error
    )
    assert (tmp_path / kept).read_text() == "of the run"
