"""The figures of alarms: how an alarm is chosen, where it is given, and what is said of it."""

import csv
import json

import numpy as np
import pytest

from experiments.anomaly import command
from experiments.anomaly.command import WIDTHS, Alarm
from experiments.anomaly.series import Data, Watched
from experiments.anomaly.settings import Request, Settings
from experiments.running.scaling import Scale
from experiments.running.trained import WEIGHTS

SCALE = Scale([1.0], [2.0])


def watched(values, fault=None, begin=0):
    values = np.asarray(values, float)
    fault = np.zeros(len(values), int) if fault is None else np.asarray(fault)
    return Watched(values[:, None], fault, begin)


def data_of(test, chosen=(), kinds=("fault",)):
    normal = [watched([0.0, 1.0, 0.5, 0.0])]
    return Data("own", "", ["x"], kinds, normal, normal, list(chosen), list(test))


def as_they_are(parts):
    """Scores that are the values."""
    return [part.values[:, 0] for part in parts]


def mean_before(scores, width):
    return np.array([scores[max(0, n + 1 - width) : n + 1].mean() for n in range(len(scores))])


def f1(alarm, fault):
    hits = (alarm & fault).sum()
    return 2 * hits / (alarm.sum() + fault.sum())


def noisy(seed):
    """A series that is higher in 20 steps of 200, under noise that is as large."""
    rng = np.random.default_rng(seed)
    fault = np.zeros(200, int)
    fault[90:110] = 1
    return watched(rng.normal(size=200) + 1.5 * fault, fault)


def test_an_alarm_has_the_width_and_the_level_that_are_best_on_the_chosen_series():
    chosen, test = [noisy(0), noisy(1)], [noisy(2)]
    alarm, scores = command._scored(as_they_are, data_of(test, chosen))
    fault = np.concatenate([part.fault > 0 for part in chosen])

    def means(width):
        return np.concatenate([mean_before(own, width) for own in as_they_are(chosen)])

    def precision(width):
        """The mean precision over the faults, each at the alarm that just finds it."""
        own = means(width)
        return np.mean([fault[own >= level].mean() for level in own[fault]])

    precisions = {width: precision(width) for width in WIDTHS}
    assert alarm.width == max(WIDTHS, key=precisions.get)
    assert min(WIDTHS) < alarm.width < max(WIDTHS)
    own = means(alarm.width)
    best = max(f1(own >= level, fault) for level in own)
    assert f1(own >= alarm.level - 1e-9, fault) == pytest.approx(best)
    assert np.min(np.abs(own - alarm.level)) < 1e-9  # the level is one of the scores
    np.testing.assert_allclose(scores[0], mean_before(as_they_are(test)[0], alarm.width))


def test_without_chosen_series_no_normal_score_gives_an_alarm_and_any_above_does():
    alarm, scores = command._scored(as_they_are, data_of([noisy(2)]))
    assert alarm.width == 1
    assert 1 < alarm.level <= 1 + 1e-12  # the greatest of validation
    np.testing.assert_allclose(scores[0], as_they_are([noisy(2)])[0], rtol=1e-9)


def test_figures_count_alarms_from_the_level_on_and_faults_by_their_kind():
    faults = [np.array([0, 1, 1, 0, 2, 0]), np.array([0, 2, 0, 0, 0, 1])]
    scores = [np.array([0.0, 5, 1, 0, 1, 9]), np.array([0.0, 5, 0, 0, 0, 1])]
    data = data_of([watched(s, f) for s, f in zip(scores, faults, strict=True)], kinds=("a", "b"))
    found = command._figures(data, Alarm(1, 5.0), scores)
    assert found["a found"] == 0.5  # the first one by its first step, which is at the level
    assert found["b found"] == 0.5
    assert found["F1"] == pytest.approx(2 * 2 / (3 + 5))  # alarms: 2 right, 1 wrong; 5 faults
    # Of 35 pairs of a fault and a normal step: 9 is above all; the rest is above the zeros alone.
    assert found["area under ROC"] == pytest.approx(6 / 7)
    assert command._figures(data_of([watched(np.zeros(4))]), Alarm(1, 0.0), [np.zeros(4)]) == {}


def test_every_rule_reads_values_on_the_scale_of_training(monkeypatch):
    read = []

    def rule(values):
        read.append(values[:, 0].tolist())
        return values[:, 0]

    def baselines(train, season, seed):
        assert [values[:, 0].tolist() for values in train] == [[-0.5, 0.0, -0.25, -0.5]]
        assert (season, seed) == (7, 3)
        return {"rule": rule}

    monkeypatch.setattr(command, "baselines", baselines)
    monkeypatch.setattr(
        command, "surprise", lambda model, params, scale, series: [10 * v[:, 0] for v in series]
    )
    data = data_of([watched([1.0, 3.0, 9.0, 3.0], [0, 0, 1, 0])])
    settings = Settings(season=7, seed=3)
    figures, alarm, scores = command._judged(data, SCALE, settings, None, None)
    assert read == [[-0.5, 0.0, -0.25, -0.5], [0.0, 1.0, 4.0, 1.0]]
    assert scores[0].tolist() == [10, 30, 90, 30]  # of the network, and so is the alarm
    assert alarm.level == pytest.approx(10)
    assert figures["network"]["F1"] == pytest.approx(2 * 1 / (3 + 1))
    assert figures["rule"]["F1"] == pytest.approx(2 * 1 / (3 + 1))


def test_scores_are_written_under_the_steps_of_the_file(tmp_path):
    path = tmp_path / "scores.csv"
    command._write_scores(path, [np.array([1.5, 2.5]), np.array([3.5])], [7, 40])
    rows = list(csv.reader(path.read_text().splitlines()))
    assert rows[1:] == [["0", "7", "1.5"], ["0", "8", "2.5"], ["1", "40", "3.5"]]


def figures_of(precision):
    return {"area under ROC": 0.5, "average precision": precision, "F1": 0.25}


def test_what_is_not_better_and_where_the_greatest_surprise_is_are_said(capsys):
    figures = {"network": figures_of(0.5), "equal": figures_of(0.5), "worse": figures_of(0.4)}
    figures["better"] = figures_of(0.6)
    test = [watched(np.zeros(4), begin=100), watched(np.zeros(4), [0, 0, 2, 0], begin=200)]
    data, scores = (
        data_of(test, kinds=("leap", "level")),
        [np.arange(4.0), np.array([1.0, 2, 8, 0])],
    )
    command._report(figures, data, scores, 1.25)
    said = capsys.readouterr().out
    assert "validation: 1.2500 nats a normal step" in said
    assert [line for line in said.splitlines() if "not better" in line] == [
        "the network is not better than equal",
        "the network is not better than better",
    ]
    assert "the greatest surprise of the test: series 1, step 202, level" in said
    command._report(figures, data_of(test[:1]), scores[:1], 1.25)
    said = capsys.readouterr().out
    assert "the greatest surprise of the test: step 103, where no fault is known" in said


def test_a_file_is_watched_by_the_mean_over_the_steps_of_the_alarm(monkeypatch, tmp_path, capsys):
    run, path, out = tmp_path / "run", tmp_path / "new.csv", tmp_path / "out.csv"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"settings": Settings().written()}))
    (run / WEIGHTS).touch()
    alarm = {"width": 2, "level": 3.0}
    known = {"channels": ["x"], "scale": SCALE._asdict(), "alarm": alarm}
    (run / command.KNOWN).write_text(json.dumps(known))
    values = [1, 8, 1, 2, 4, 1]
    path.write_text("x\n" + "".join(f"{value}\n" for value in values))

    def surprise(model, params, scale, series):
        assert scale == SCALE
        return [values[:, 0] for values in series]

    monkeypatch.setattr(command, "load_trained", lambda init, folder: None)
    monkeypatch.setattr(command, "surprise", surprise)
    command.watch(Request(run, path, out=out))
    # Means over two steps: 1, 4.5, 4.5, 1.5, 3, 2.5. One of them is the level itself.
    assert capsys.readouterr().out.splitlines() == [
        "1\t4.500",
        "2\t4.500",
        "4\t3.000",
        "alarm at 3 of 6 steps",
    ]
    rows = list(csv.reader(out.read_text().splitlines()))[1:]
    assert [float(row[2]) for row in rows] == [1, 4.5, 4.5, 1.5, 3, 2.5]
