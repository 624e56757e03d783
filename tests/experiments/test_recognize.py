"""The program that says what kind a series is."""

import json

import jax
import numpy as np
import pytest

from experiments.recognize import command
from experiments.recognize.files import in_order, read_file
from experiments.recognize.model import Known, build_network, make_parts, probabilities
from experiments.recognize.pictures import draw_kinds
from experiments.recognize.series import Part, Series, make_strokes, read_series
from experiments.recognize.settings import Settings
from rnnjax.data import DataError

QUICK = ["--hidden-size", "4", "--epochs", "3", "--buckets", "1", "--batch-size", "8"]


def run(*arguments):
    return command.main([str(argument) for argument in arguments])


def rising_and_falling(path, count=30, labels=True):
    """Series of 2 to 5 steps that rise or fall, with a channel beside that says nothing."""
    lines = ["series,step,height,other,label" if labels else "series,step,height,other"]
    for i in range(count):
        for step in range(2 + i % 4):
            slope = 1 if i % 2 else -1
            end = f",{'up' if i % 2 else 'down'}" if labels else ""
            lines.append(f"s{i},{step},{slope * (step + 1)},{i % 3}{end}")
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.full
def test_a_file_of_ones_own_is_learned_and_another_labelled(tmp_path, capsys):
    own, new, folder = tmp_path / "own.csv", tmp_path / "new.csv", tmp_path / "run"
    rising_and_falling(own)
    rising_and_falling(new, count=4, labels=False)
    wide = ("--learning-rate", "0.1", "--noise", "0", "--dropout", "0")
    assert run("--dataset", own, "--out", folder, *QUICK, *wide) == 0
    said = capsys.readouterr().out
    assert "own: 19 series to train, 5 to validate, 6 to test; 2 labels, 2 channels" in said
    assert "test: 1.0000 of the labels right" in said
    assert (folder / "kinds.png").stat().st_size
    assert json.loads((folder / "series.json").read_text())["labels"] == ["up", "down"]
    assert run("predict", folder, new) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [
        ["s0", "down"],
        ["s1", "up"],
        ["s2", "down"],
        ["s3", "up"],
    ]
    assert run("predict", folder, own) == 0
    assert "30 of 30 as the file says" in capsys.readouterr().out
    new.write_text("series,step,height\na,1,2\n")
    assert run("predict", folder, new) == 2
    assert "must have the channels height, other, got height" in capsys.readouterr().err


def test_dollar_signs_in_labels_and_channels_make_no_formula(tmp_path):
    part, wrong = Part([np.ones((2, 2))], [0]), r"$\no formula$"
    draw_kinds(part, np.zeros(1, int), [wrong], [wrong, "b"], tmp_path / "kinds.png")
    assert (tmp_path / "kinds.png").stat().st_size


HEAD = "# made\n@problemName own\n@timeStamps false\n@classLabel true a b\n@data\n"


def file_of(tmp_path, text, name="own.csv"):
    path = tmp_path / name
    path.write_text(text)
    return read_file(path)


def test_a_ts_file_is_read_channel_by_channel(tmp_path):
    text = HEAD + "1,2,3:4,5,6:a\n% no series\n7,8:9,-1e1:b\n"
    table = file_of(tmp_path, text, "own.TS")
    assert [row.tolist() for row in table.rows] == [[[1, 4], [2, 5], [3, 6]], [[7, 9], [8, -10]]]
    assert table.labels == ["a", "b"]
    unlabelled = file_of(tmp_path, "@classLabel false\n@data\n1,2:3,4\n", "own.ts")
    assert unlabelled.rows[0].tolist() == [[1, 3], [2, 4]]
    assert unlabelled.labels is None


BAD_TS = {
    "no data": ("1,2:a\n", "must have a line @data"),
    "time stamps": ("@timeStamps true\n@data\n(1,2):a\n", "@timeStamps must be false, got true"),
    "a missing value": (HEAD + "1,?,3:a\n", r"line 6: values must be a finite number, got '\?'"),
    "infinity": (HEAD + "1,inf:a\n", "values must be a finite number, got 'inf'"),
    "numbers to find": ("@targetlabel true\n@data\n1,2:0.5\n", "@targetLabel must be false"),
    "an unknown label": (HEAD + "1,2:c\n", "line 6: must end in one of the labels a, b, got 'c'"),
    "no label": ("@classLabel true\n@data\n1,2:\n", "line 3: must have a label, got none"),
    "ragged channels": (HEAD + "1,2:3:a\n", "equal numbers of steps, got 1 and 2"),
    "another number of channels": (HEAD + "1:2:a\n1:a\n", "must have 2 channels .* got 1"),
    "a label alone": (HEAD + "a\n", "equal numbers of steps, got none"),
    "a series alone": (HEAD + "1,2,3\n", "must end in one of the labels a, b, got '1,2,3'"),
}


@pytest.mark.parametrize("case", BAD_TS)
def test_a_ts_file_that_is_none_is_refused_by_its_line(case, tmp_path):
    text, words = BAD_TS[case]
    with pytest.raises(DataError, match=words):
        file_of(tmp_path, text, "own.ts")


def test_a_csv_file_is_read_by_series_and_step_in_any_order(tmp_path):
    text = "label,step,x,series,y\nu,2,3,one,4\nd,1,9,two,8\n\nu,1,1,one,2\n"
    table = file_of(tmp_path, text)
    assert table.names == ["one", "two"]
    assert [row.tolist() for row in table.rows] == [[[1, 2], [3, 4]], [[9, 8]]]
    assert table.labels == ["u", "d"]


def test_a_label_may_be_left_out_in_all_lines_of_a_csv_file(tmp_path):
    table = file_of(tmp_path, "series,step,x,label\n1,1,5,\n1,2,6, \n2,1,7,\n")
    assert table.labels is None
    assert [row.tolist() for row in table.rows] == [[[5], [6]], [[7]]]
    assert table.channels == ["x"]


BAD_CSV = {
    "no channel": ("series,step,label\n1,1,a\n", "one or more channels"),
    "no step": ("series,x\n1,1\n", "must have the columns series, step"),
    "a column twice": ("series,step,x,x\n1,1,1,1\n", "columns of different names, got 'x' twice"),
    "semicolons": ("series;step;x\n1;1;1\n", "must have commas between its columns"),
    "an empty label": (
        "series,step,x,label\n1,1,1,a\n2,1,1, \n",
        "row 3: must have a label, got none",
    ),
    "a short row": ("series,step,x\n1,1\n", "row 2: must have 3 columns .* got 2"),
    "no number": ("series,step,x\n1,1,high\n", "row 2: x must be a finite number, got 'high'"),
    "no step number": (
        "series,step,x\n1,May,1\n",
        "row 2: step must be a finite number, got 'May'",
    ),
    "a step twice": (
        "series,step,x\n1,1,1\n1,1.0,2\n",
        "series 1: must have steps that differ, got 1 twice",
    ),
    "two labels": ("series,step,x,label\n1,1,1,a\n1,2,1,b\n", "must have one label, got 'a' and"),
    "nothing": ("", "must have text, got an empty file"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_a_csv_file_that_is_none_is_refused_by_its_row(case, tmp_path):
    text, words = BAD_CSV[case]
    with pytest.raises(DataError, match=words):
        file_of(tmp_path, text)


def test_channels_are_known_by_their_names_where_they_have_some(tmp_path):
    one = file_of(tmp_path, "series,step,x,y\n1,1,5,6\n")
    other = file_of(tmp_path, "series,step,y,x\n1,1,60,50\n")
    assert in_order(other, one.channels, 2, "new").rows[0].tolist() == [[50, 60]]
    assert in_order(other, [], 2, "new").rows[0].tolist() == [[60, 50]]
    third = file_of(tmp_path, "series,step,y,z\n1,1,60,50\n")
    for channels, count, words in (
        (one.channels, 2, "new must have the channels x, y, got y, z"),
        ([], 3, "new must have 3 channels, got 2"),
    ):
        with pytest.raises(DataError, match=words):
            in_order(third, channels, count, "new")


def test_a_label_that_is_not_learnt_is_named(tmp_path, capsys):
    path = tmp_path / "own.csv"
    rows = [f"{i},1,{i % 7},{'rare' if i == 0 else 'ab'[i % 2]}" for i in range(12)]
    path.write_text("series,step,x,label\n" + "\n".join(rows))
    for seed in range(9):
        series = read_series(Settings(dataset=str(path), seed=seed))
        command._describe(series, Known.of(series))
        said = "warning: of these labels no series is among those to train: rare"
        assert (said in " ".join(capsys.readouterr().out.split())) is (
            2 not in series.train.classes
        )


BAD = {
    "too few series": (["--series", "4"], "--series must be a whole number from 10 to 1,000,000"),
    "noise below 0": (["--noise", "-1"], "--noise must be a finite number from 0 up"),
    "no file": (["--dataset", "nowhere.csv"], "nowhere.csv must be a file, got none"),
    "another kind of file": (["--dataset", "own.xls"], "own.xls must end in .ts or .csv"),
    "a test without a file": (["--test", "test.ts"], "--test must be given with a --dataset"),
    "one label": (["--dataset", "one.csv"], "one must have 2 or more labels, got 1"),
    "no label": (["--dataset", "bare.csv"], "must have a label for each series"),
    "a new label": (["--dataset", "two.csv", "--test", "new.csv"], "that --dataset has, got 'c'"),
    "other channels": (
        ["--dataset", "two.csv", "--test", "wide.csv"],
        "--test must have the channels x, got x, y",
    ),
    "too few to divide": (
        ["--dataset", "two.csv"],
        "enough series to train, to validate and to test, got 2",
    ),
}
FILES = {
    "one": "series,step,x,label\n1,1,1,a\n",
    "bare": "series,step,x\n1,1,1\n",
    "two": "series,step,x,label\n1,1,1,a\n2,1,1,b\n",
    "new": "series,step,x,label\n1,1,1,c\n",
    "wide": "series,step,x,y,label\n1,1,1,1,a\n",
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(case, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / f"{name}.csv").write_text(text)
    wrong, words = BAD[case]
    assert run("--out", "run", *wrong) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("package", ["aeon", "mnist1d"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(package, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    assert run("--dataset", {"aeon": "japanese_vowels"}.get(package, package)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"the package {package} must be installed" in said
    assert 'pip install ".[series]"' in said


def test_the_vowels_are_those_of_their_description():
    pytest.importorskip("aeon")
    vowels = read_series(Settings(dataset="japanese_vowels"))
    assert [len(part.rows) for part in vowels.parts] == [216, 54, 370]
    assert vowels.labels == list("123456789")
    lengths = [len(row) for part in vowels.parts for row in part.rows]
    assert (min(lengths), max(lengths)) == (7, 29)
    assert {row.shape[1] for part in vowels.parts for row in part.rows} == {12}


def test_mnist1d_is_that_of_its_seed_and_leaves_random_numbers_as_they_were():
    pytest.importorskip("mnist1d")
    np.random.seed(3)
    first = read_series(Settings(dataset="mnist1d"))
    assert np.random.rand() == np.random.RandomState(3).rand()
    assert read_series(Settings(dataset="mnist1d")).sha256 == first.sha256
    assert [len(part.rows) for part in first.parts] == [3200, 800, 1000]
    assert first.train.rows[0].shape == (40, 1)


def test_strokes_follow_from_the_seed_and_the_parts_are_all_of_them():
    first, same, other = (read_series(Settings(series=30, seed=s)) for s in (0, 0, 1))
    assert first.sha256 == same.sha256 != other.sha256
    assert [len(part.rows) for part in first.parts] == [19, 5, 6]
    every = {row.tobytes() for part in first.parts for row in part.rows}
    made = make_strokes(np.random.default_rng((0, 30)), 30)
    assert every == {row.tobytes() for row in made.rows}


def small(pooling):
    rng = np.random.default_rng(0)
    part = Part([rng.normal(2, 3, (n, 2)).astype(np.float32) for n in (3, 5)], [0, 1])
    series = Series("own", "", ["a", "b"], ["x", "y"], part, part, part)
    known = Known.of(series)
    settings = Settings(hidden_size=3, pooling=pooling, buckets=1, batch_size=2)
    return series, known, settings


def test_values_are_scaled_by_the_training_part_alone():
    series, known, settings = small("mean")
    far = Part([row + 100 for row in series.test.rows], [0, 1])
    assert Known.of(series._replace(test=far)) == known
    batch = next(make_parts(series, known, settings).train.epoch(0))
    real = batch.tokens[np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]]
    np.testing.assert_allclose(real.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(real.std(0), 1, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "places"])
def test_a_series_is_labelled_as_it_is_alone_in_a_file(pooling):
    series, known, settings = small(pooling)
    network = build_network(settings, known)
    params = network.init(jax.random.key(0))
    together = probabilities(network, params, known, series.test.rows)
    alone = [probabilities(network, params, known, [row])[0] for row in series.test.rows]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-6)
    np.testing.assert_allclose(together.sum(-1), 1, atol=1e-6)
    assert abs(together[0, 0] - together[1, 0]) > 1e-4
    batch = next(make_parts(series, known, settings).test.epoch(0))  # padded to 8 steps
    logits = network.apply(params, batch.tokens, batch.lengths)
    np.testing.assert_allclose(jax.nn.softmax(logits), together, atol=1e-6)
