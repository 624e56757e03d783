"""Tuning: records are read as they grow, and a trial that promises little is stopped."""

import json
import sys
from types import SimpleNamespace

import pytest

from experiments import tune
from experiments.tune import epochs, main, run_trial
from rnnjax.data import DataError

# A run in short: ten epochs, of which the value falls, and what it does when it is asked to stop.
RUN = """
import json, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
folder = pathlib.Path(sys.argv[-1])
folder.mkdir()
with open(folder / "metrics.jsonl", "a") as file:
    for epoch in range(1, 1 if sys.argv[1] == "none" else 11):
        record = {"kind": "epoch", "epoch": epoch, "validation_accuracy": 1 / epoch}
        record["validation_loss"] = epoch
        if sys.argv[1] == "nan" and epoch == 1:
            record["validation_accuracy"] = None
        file.write(json.dumps({"kind": "step"}) + "\\n" + json.dumps(record) + "\\n")
        file.flush()
        if sys.argv[1] == "slow":
            time.sleep(60)
if sys.argv[1] == "fail":
    sys.exit("error: no such data")
"""


class Trial:
    """As Optuna's: gives up a trial whose value is below a bound."""

    def __init__(self, bound=0.0):
        self.reports, self._bound = [], bound

    def report(self, value, step):
        self.reports.append((step, value))

    def should_prune(self):
        return self.reports[-1][1] < self._bound


def run(kind, folder, trial, metric="validation_accuracy"):
    return run_trial(trial, [sys.executable, "-c", RUN, kind], folder, metric)


def test_a_trial_is_the_best_of_its_epochs_and_reports_each(tmp_path):
    trial = Trial()
    assert run("nan", tmp_path / "run", trial) == (0.5, False)
    assert trial.reports == [(epoch, 1 / epoch) for epoch in range(2, 11)]


def test_a_trial_that_promises_little_is_stopped_at_once(tmp_path):
    trial = Trial(bound=2.0)
    assert run("slow", tmp_path / "run", trial) == (1.0, True)
    assert len(trial.reports) == 1


def test_a_run_that_fails_and_a_figure_that_is_not_there_are_named(tmp_path):
    with pytest.raises(DataError, match=r"must end well, got exit code 1:\nerror: no such data"):
        run("fail", tmp_path / "one", Trial())
    with pytest.raises(DataError, match="--metric must be one of validation_accuracy, got 'bleu'"):
        run("slow", tmp_path / "two", Trial(), "bleu")
    with pytest.raises(DataError, match="--metric must be one of validation_accuracy, got 'valid"):
        run("slow", tmp_path / "three", Trial(), "validation_loss")


def test_a_run_without_epochs_is_no_trial(tmp_path):
    with pytest.raises(DataError, match=r"run must leave records of epochs, got none"):
        run("none", tmp_path / "run", Trial())


@pytest.mark.parametrize(
    "word", ["--learning-rate=1", "--learning_rate", "--hidden-size", "--out", "--resume"]
)
def test_what_the_search_gives_each_trial_is_refused_behind_the_dashes(word, tmp_path, capsys):
    assert main(["--out", str(tmp_path / "run"), "--", "--take", "9", word, "1"]) == 2
    name = word.partition("=")[0].replace("_", "-")
    error = capsys.readouterr().err
    assert f"what is behind -- must be without {name}, as the search gives" in error
    assert f"got {word!r}" in error
    assert not (tmp_path / "run").exists()


def test_half_a_line_is_left_until_it_is_whole(tmp_path):
    path, line = tmp_path / "metrics.jsonl", json.dumps({"kind": "epoch", "epoch": 1})
    ends = iter([False, False, True])
    path.write_text(line[:9])
    found = epochs(path, lambda: next(ends))
    path.write_text(line + "\n" + line[:5])
    assert [record["epoch"] for record in found] == [1]


def test_without_optuna_it_is_asked_for_by_name(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["--trials", "1"]) == 2
    assert 'the package optuna: pip install ".[tune]"' in capsys.readouterr().err


class PrunedError(Exception):
    """As Optuna's TrialPruned."""


class Study:
    """As Optuna's, of trials that are tried in order."""

    def __init__(self):
        self.trials = []

    def optimize(self, objective, n_trials):
        for number in range(n_trials):
            trial = SimpleNamespace(number=number, study=self, params={"dropout": number / 8})
            trial.suggest_float = lambda *_, **__: 0.5
            trial.suggest_categorical = lambda *_: 32
            trial.state = SimpleNamespace(name="FAIL")
            self.trials.append(trial)
            try:
                trial.value = objective(trial)
                trial.state.name = "COMPLETE"
            except PrunedError:
                trial.state.name = "PRUNED"

    @property
    def best_trial(self):
        return max((t for t in self.trials if t.state.name == "COMPLETE"), key=lambda t: t.value)

    best_value = property(lambda self: self.best_trial.value)
    best_params = property(lambda self: self.best_trial.params)


@pytest.fixture
def trials(monkeypatch):
    """What comes of the trials of a search, one after the other: values and errors."""
    quiet = SimpleNamespace(set_verbosity=lambda _: None, ERROR=40)
    optuna = SimpleNamespace(
        logging=quiet,
        TrialPruned=PrunedError,
        create_study=lambda **_: Study(),
        samplers=SimpleNamespace(TPESampler=lambda **_: None),
        pruners=SimpleNamespace(MedianPruner=lambda **_: None),
    )
    monkeypatch.setitem(sys.modules, "optuna", optuna)
    found = []

    def run_trial(*_):
        outcome = found.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome, False

    monkeypatch.setattr(tune, "run_trial", run_trial)
    return found


def test_a_trial_that_fails_behind_a_good_one_does_not_end_the_search(trials, tmp_path, capsys):
    trials += [0.5, DataError("the loss must be finite, got nan"), 0.75]
    assert main(["--trials", "3", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "trial 1 failed: the loss must be finite, got nan"
    assert said[3] == "best validation_accuracy 0.7500, of trial 2:"


def test_a_search_whose_first_trial_fails_ends(trials, tmp_path, capsys):
    trials += [DataError("the data must be there, got none"), 0.5]
    assert main(["--trials", "2", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr()
    assert said.err == "error: the data must be there, got none\n"
    assert said.out == ""


def test_a_search_that_is_stopped_gives_the_best_so_far(trials, tmp_path, capsys):
    trials += [0.5, 0.25, KeyboardInterrupt()]
    assert main(["--trials", "3", "--out", str(tmp_path / "run")]) == 130
    said = capsys.readouterr().out.splitlines()
    assert said[2] == "best validation_accuracy 0.5000, of trial 0:"
    assert said[3] == "  python -m experiments.classify --dropout 0.0"


@pytest.mark.full
def test_a_search_of_optuna_gives_the_best_of_its_trials(tmp_path, capsys):
    pytest.importorskip("optuna")
    fixed = ["--take", "200", "--epochs", "2", "--embedding-size", "8"]
    out = tmp_path / "search"
    assert main(["--trials", "2", "--sizes", "4", "8", "--out", str(out), "--", *fixed]) == 0
    best = {}
    for folder in out.iterdir():
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        records = [record for record in map(json.loads, lines) if record["kind"] == "epoch"]
        assert [record["epoch"] for record in records] == [1, 2]
        best[folder.name] = max(record["validation_accuracy"] for record in records)
    assert sorted(best) == ["trial-0", "trial-1"]
    said = capsys.readouterr().out
    for name, value in best.items():
        assert f"{name.replace('-', ' ')}: {value:.4f}, learning_rate" in said
    assert f"best validation_accuracy {max(best.values()):.4f}, of trial " in said


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--trials", "0"], "--trials must be a whole number from 1 up"),
        (["--rate-from", "nan"], "--rate-from must be a finite number above 0"),
        (["--rate-from", "1"], "--rate-from must be at most --rate-to, 0.02, got 1.0"),
        (["--dropout-to", "1"], "--dropout-to must be a share"),
        (["--sizes", "0"], "--sizes must be 1 or more, each a whole number"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_a_trial(given, expected, capsys):
    assert main(given) == 2
    assert expected in capsys.readouterr().err
