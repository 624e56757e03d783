"""The program that says of every step of a series how much it surprises."""

import csv

import jax
import numpy as np
import pytest

from experiments.anomaly import command, judging
from experiments.anomaly.baselines import (
    baselines,
    last_value,
    linear_autoregression,
    moving_z,
    seasonal,
)
from experiments.anomaly.model import (
    build_model,
    cut,
    make_parts,
    scale_of,
    surprise,
    surprise_loss,
)
from experiments.anomaly.series import (
    KINDS,
    Data,
    Watched,
    make_series,
    normal_stretches,
    read_csv,
    read_data,
)
from experiments.anomaly.settings import Settings
from experiments.running.scaling import Scale
from rnnjax.data import DataError

SMALL = ["--season", "8", "--window", "20"]
QUICK = ["--hidden-size", "4", "--components", "1", "--epochs", "20"]


def run(*arguments):
    return command.main([str(argument) for argument in arguments])


def every_other(path, steps=300, fault=250):
    """Ups and downs, with one step that leaps; a column of dates and one that says nothing."""
    lines = ["day,height,other,broken"]
    for step in range(steps):
        value = 4 if step == fault else (-1) ** step
        lines.append(f"d{step},{value},{step % 3},{int(step == fault)}")
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.full
def test_a_file_of_ones_own_is_judged_and_another_watched(tmp_path, capsys):
    own, folder, scores = tmp_path / "own.csv", tmp_path / "run", tmp_path / "scores.csv"
    every_other(own)
    wide = ("--learning-rate", "0.1", "--season", "2", "--window", "20", "--batch-size", "2")
    assert run("--dataset", own, "--label", "broken", "--out", folder, *QUICK, *wide) == 0
    said = capsys.readouterr().out
    assert "own: 96 steps to learn from, 180 to judge" in said
    row = next(line for line in said.splitlines() if line.startswith("network")).split()
    assert row[1:3] == ["1.000", "1.000"]  # no normal step has a greater score than the fault
    assert "the greatest surprise of the test: step 250, fault" in said
    with (folder / "surprise.csv").open() as file:
        judged = {int(row["step"]): float(row["surprise"]) for row in csv.DictReader(file)}
    assert list(judged) == list(range(120, 300))
    assert max(judged, key=judged.get) == 250
    assert (folder / "surprise.png").stat().st_size
    assert run("watch", folder, own, "--out", scores) == 0
    said = capsys.readouterr().out.splitlines()
    assert "250" in [line.split("\t")[0] for line in said[:-1]]
    with scores.open() as file:
        kept = [float(line["surprise"]) for line in csv.DictReader(file)]
    assert len(kept) == 300
    assert int(np.argmax(kept)) == 250
    alarm = folder / "alarm.json"
    left = alarm.read_text()
    alarm.unlink()  # as if the run had been killed behind its weights
    assert run("watch", folder, own) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.endswith(f"go on: python -m experiments.anomaly --out {folder} --resume")
    assert run("--out", folder, "--resume") == 0
    assert alarm.read_text() == left
    own.write_text("height\n1\n2\n")
    assert run("watch", folder, own) == 2
    assert "must have the columns height, other, got none named other" in capsys.readouterr().err


def test_judging_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    is_fault = rng.random(200) < 0.2
    for scores in (rng.normal(size=200) + is_fault, rng.integers(0, 4, 200) + is_fault * 1.0):
        found = judging.area_under_roc(scores, is_fault)
        assert found == pytest.approx(metrics.roc_auc_score(is_fault, scores))
        found = judging.average_precision(scores, is_fault)
        assert found == pytest.approx(metrics.average_precision_score(is_fault, scores))
        level = judging.best_alarm(scores, is_fault)
        best = max(metrics.f1_score(is_fault, scores >= s) for s in np.unique(scores))
        assert metrics.f1_score(is_fault, scores >= level) == pytest.approx(best)
        assert judging.f1_of(scores >= level, is_fault) == pytest.approx(best)


def test_smoothing_reads_no_step_ahead():
    scores = np.array([4.0, 2.0, 0.0, 7.0])
    assert judging.smoothed(scores, 2).tolist() == [4, 3, 1, 3.5]
    assert judging.smoothed(scores, 1).tolist() == scores.tolist()
    assert judging.smoothed(np.array([1e17, 0.1, 0.2, 0.3]), 1).tolist() == [1e17, 0.1, 0.2, 0.3]
    assert judging.smoothed(np.array([1e17, 5.0, 6.0, 8.0]), 2).tolist()[2:] == [5.5, 7.0]
    assert judging.smoothed(np.zeros(0), 3).tolist() == []


def test_a_fault_is_found_by_one_alarm_during_it():
    fault = np.array([0, 1, 1, 0, 2, 1, 0])
    assert judging.faults_found([np.array([1, 0, 1, 1, 0, 0, 1]) > 0], [fault], 1) == 0.5
    assert judging.faults_found([fault == 2], [fault], 2) == 1
    assert judging.faults_found([fault == 2], [fault], 1) == 0


def test_baselines_are_what_their_rules_say():
    values = np.array([1.0, 5.0, 2.0, 8.0] * 10)[:, None]
    assert last_value(values)[:4].tolist() == [0, 4, 3, 6]
    assert not seasonal(values, 4).any()
    wave = np.sin(np.arange(60.0) / 2)[:, None]
    assert linear_autoregression([wave], 4)(wave)[8:].max() < 0.01
    mean, spread = np.mean([5, 2, 8, 1]), np.std([5, 2, 8, 1])
    assert moving_z(values, 4)[5] == pytest.approx(abs(5 - mean) / spread)


def test_no_baseline_reads_a_step_ahead():
    rng = np.random.default_rng(0)
    train, values = rng.normal(size=(60, 2)), rng.normal(size=(40, 2))
    changed = values.copy()
    changed[25:] += 3
    for name, scorer in baselines([train], 5, 0).items():
        np.testing.assert_allclose(scorer(values)[:25], scorer(changed)[:25], err_msg=name)


def test_the_surprise_of_a_step_hangs_on_nothing_behind_it():
    settings = Settings(hidden_size=3, components=1)
    model, rng = build_model(settings, 2), np.random.default_rng(0)
    params, scale = model.init(jax.random.key(0)), Scale([0.0, 1.0], [1.0, 2.0])
    values = rng.normal(size=(12, 2))
    changed = np.concatenate([values[:7], rng.normal(size=(5, 2))])
    before, after = surprise(model, params, scale, [values, changed])
    np.testing.assert_allclose(before[:7], after[:7], rtol=1e-6)
    assert np.all(np.abs(before[7:] - after[7:]) > 1e-6)


def test_the_surprise_of_a_series_of_any_length_is_that_of_the_model():
    model, rng = build_model(Settings(hidden_size=3, components=1), 1), np.random.default_rng(0)
    params = model.init(jax.random.key(0))
    series = [rng.normal(size=(length, 1)).astype(np.float32) for length in (2, 3, 4, 9)]
    found = surprise(model, params, Scale([0.0], [1.0]), series)
    score = jax.jit(lambda values: model.score(params, (values[:-1], values[1:]))[1])
    for values, nats in zip(series, found, strict=True):
        np.testing.assert_allclose(nats[1:], -score(values), rtol=1e-5)
        assert nats[0] == nats[1]


def data_of(train):
    return Data("own", "", ["x"], ("fault",), [train], [train], [], [train])


def test_steps_that_are_marked_are_not_learned_from():
    settings = Settings(hidden_size=3, components=1, window=8, batch_size=2)
    values = np.random.default_rng(0).normal(size=(8, 1)).astype(np.float32)
    fault = np.array([0, 0, 1, 0, 0, 0, 0, 1])
    data = data_of(Watched(values, fault))
    scale = scale_of(data)
    assert scale.mean[0] == pytest.approx(values[fault == 0].mean())
    model = build_model(settings, 1)
    params = model.init(jax.random.key(0))
    batch = next(make_parts(data, scale, settings).train.epoch(0))
    _, metrics = jax.jit(surprise_loss(model))(params, batch, None)
    total, count = metrics["loss"]
    nats = surprise(model, params, scale, [values])[0]
    assert int(count) == 5  # neither the two faults, nor the first step, which nothing foretells
    np.testing.assert_allclose(total, nats[1:][fault[1:] == 0].sum(), rtol=1e-5)


def test_normal_steps_behind_a_fault_are_a_series_of_their_own():
    fault = np.array([1, 0, 0, 0, 1, 1, 0, 1, 0, 0])
    found = normal_stretches(Watched(np.arange(10.0)[:, None], fault, begin=100))
    assert [part.values[:, 0].tolist() for part in found] == [[1, 2, 3], [8, 9]]  # 6 is alone
    assert [part.begin for part in found] == [101, 108]
    assert not any(part.fault.any() for part in found)


def test_no_step_that_is_marked_or_looks_back_at_one_sets_the_alarm():
    values = np.array([0, 1, 0, 1, 0, 9, 0, 1, 3, 1, 0.0])[:, None]
    data = data_of(Watched(values, (values[:, 0] == 9).astype(int)))
    alarm, _ = command._scored(lambda parts: [last_value(part.values) for part in parts], data)
    assert alarm == (1, np.nextafter(2, 3))  # from 1 to 3


def test_baselines_are_fitted_to_normal_steps_alone(monkeypatch):
    found = []
    monkeypatch.setattr(command, "baselines", lambda train, *_: found.extend(train) or {})
    monkeypatch.setattr(command, "surprise", lambda *_: [np.zeros(8)])
    fault = np.array([0, 0, 0, 1, 0, 0, 0, 0])
    data = data_of(Watched(np.arange(8.0)[:, None], fault))
    command._judged(data, Scale([0.0], [2.0]), Settings(), None, None)
    assert [values[:, 0].tolist() for values in found] == [[0, 0.5, 1], [2, 2.5, 3, 3.5]]


def test_windows_are_all_steps_and_overlap_by_half():
    values = np.arange(23.0)[:, None].astype(np.float32)
    windows, normal = cut([Watched(values, np.zeros(23, int))], Scale([0.0], [1.0]), 10)
    assert [(int(w[0, 0]), len(w)) for w in windows] == [(0, 10), (5, 10), (10, 10), (15, 8)]
    assert all(len(w) == len(n) and n.all() for w, n in zip(windows, normal, strict=True))


def test_a_series_has_one_fault_of_each_kind():
    for seed in range(5):
        made = make_series(np.random.default_rng(seed), 400, 20, KINDS)
        for kind in range(1, 5):
            edges = np.diff(np.concatenate([[0], made.fault == kind, [0]]).astype(int))
            assert (edges == 1).sum() == 1, (seed, KINDS[kind - 1])
        assert (made.fault == 1).sum() == 1
    assert not make_series(np.random.default_rng(0), 400, 20, ()).fault.any()


def test_generated_series_follow_from_the_seed():
    one, same, other = (read_data(Settings(series=1, length=100, seed=s)) for s in (0, 0, 1))
    assert one.sha256 == same.sha256 != other.sha256
    assert [len(part) for part in one[4:]] == [1, 1, 1, 2]
    assert not any(part.fault.any() for part in [*one.train, *one.validation])


def test_the_blood_pressure_is_that_of_its_description():
    pytest.importorskip("aeon")
    data = read_data(Settings(dataset="bleeding"))
    assert [len(part[0].values) for part in (data.train, data.validation, data.test)] == [
        960,
        240,
        6301,
    ]
    assert (1200 + np.flatnonzero(data.test[0].fault)).tolist() == list(range(4187, 4199))


BAD_FILES = {
    "a gap": ("x,y\n1,2\n3,\n", None, r"row 3: y must be a finite number, got ''"),
    "no numbers": ("x\na\n", None, "must have a column of numbers"),
    "no such label": ("x\n1\n", "y", "--label must be one of x, got 'y'"),
    "a mark of 2": ("x,y\n1,2\n", "y", "row 2: y must be 0 or 1, got 2"),
    "nothing but marks": ("y\n1\n", "y", "must have a column of numbers beside y"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_does_not_fit_is_refused_by_its_row(case, tmp_path):
    text, label, words = BAD_FILES[case]
    path = tmp_path / "own.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        read_csv(path, label)


def test_a_value_however_far_off_gives_an_alarm_and_spoils_no_step_behind_it():
    model = build_model(Settings(hidden_size=3, components=1), 1)
    params, values = model.init(jax.random.key(0)), np.zeros((6, 1))
    values[2] = 1e60
    (nats,) = surprise(model, params, Scale([0.0], [1.0]), [values])
    assert np.isfinite(nats).all()
    assert nats[2] > 1000 > np.delete(nats, 2).max()


def own_file(tmp_path, rows):
    path = tmp_path / "own.csv"
    path.write_text("x,y,bad\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return Settings(dataset=str(path), label="bad", normal=0.5)


def test_a_file_without_normal_steps_or_changes_is_refused(tmp_path, capsys):
    for rows, words in (
        ([(i % 3, 5, 1) for i in range(20)], "2 normal steps in a row to learn from among 8"),
        ([(i % 3, 5, i % 2) for i in range(20)], "2 normal steps in a row to learn from among 8"),
        ([(i % 3, 5, i > 7) for i in range(20)], "2 normal steps in a row to validate by among 2"),
        (
            [(i % 3, 5, i > 9) for i in range(20)],
            "own must have a normal step .* 10 .*--label .*--no",
        ),
        (
            [(i % 3, 5, i > 10) for i in range(20)],
            "a normal step behind the first of the 10 to jud",
        ),
        ([(4, 5, 0) for i in range(20)], "must have a channel that changes .* got x, y, which"),
    ):
        with pytest.raises(DataError, match=words):
            read_data(own_file(tmp_path, [(x, y, int(bad)) for x, y, bad in rows]))
    capsys.readouterr()
    read_data(own_file(tmp_path, [(i % 3, 5, 0) for i in range(20)]))
    assert "note: no change in the steps to learn from" in capsys.readouterr().out
    read_data(own_file(tmp_path, [(i % 3, 5, int(i > 9 and i != 15)) for i in range(20)]))
    read_data(own_file(tmp_path, [(i % 3, i**2, int(i == 15)) for i in range(20)]))
    assert "rises or falls at every row, and is read as a series: y;" in capsys.readouterr().out


BAD = {
    "no file": (["--dataset", "nowhere.csv"], "nowhere.csv must be a file, got none"),
    "a label without a file": (["--label", "fault"], "--label must be given with a --dataset"),
    "no share": (["--normal", "0"], "--normal must be a share between 0 and 1"),
    "a short window": (["--window", "2"], "--window must be a whole number from 4 up"),
    "short series": (
        ["--length", "200", "--window", "300"],
        "must leave 300 steps or more to validation",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(case, tmp_path, capsys):
    wrong, words = BAD[case]
    assert run("--out", tmp_path / "run", *SMALL, *wrong) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_named_with_the_extra_that_brings_it(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "aeon", None)
    assert run("--dataset", "bleeding") == 2
    assert "the package aeon must be installed" in capsys.readouterr().err


def test_the_series_is_not_written_over(tmp_path, capsys):
    path = tmp_path / "own.csv"
    path.write_text("height\n1\n2\n")
    for name in ("own.csv", "config.json", "metrics.jsonl", "weights.safetensors", "alarm.json"):
        (tmp_path / name).write_text("height\n1\n2\n")
        assert run("watch", tmp_path, path, "--out", tmp_path / name) == 2
        assert "--out must not lead to a file that is read" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == "height\n1\n2\n"
