"""A run that was stopped and goes on is the run that never stopped, bit for bit."""

import errno
import hashlib
import json
import os
import random
import shlex
import signal
import threading

import numpy as np
import pytest

from experiments import classify
from experiments.classify import main
from experiments.running import classifier_fitting
from experiments.running.checkpoints import Saver, parse_every
from experiments.running.interrupts import Interrupts
from experiments.running.run_folder import RunFolder
from rnnjax.checkpoint import Checkpoints, FolderLock
from rnnjax.checkpoint import checkpoints as saving
from rnnjax.checkpoint._orbax import load_arrays, stored_forms

GOOD, BAD = ("warm", "funny", "bright", "kind"), ("cold", "dull", "grim", "mean")
MODEL = ["--cell", "vanilla", "--hidden-size", "4", "--embedding-size", "4", "--buckets", "1",
         "--batch-size", "16", "--no-bidirectional", "--patience", "9"]  # fmt: skip
STEPS = 7  # in an epoch: 120 rows, 12 of them held out, 16 a batch


def write_rows(path, count, seed):
    chance = random.Random(seed)
    rows = []
    for row in range(count):
        words = ["the", "film", "is", "a", chance.choice(GOOD if row % 2 else BAD)]
        rows.append(f"{' '.join(chance.sample(words, 5))},{row % 2}")
    path.write_text("\n".join(["text,label", *rows]) + "\n")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "train.csv", 120, seed=0)
    write_rows(folder / "test.csv", 40, seed=1)
    return folder


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """All runs here have one model, so one compilation of its steps serves them all."""
    steps = {}

    def once(name, make):
        return lambda *arguments, **_: steps.setdefault(name, make(*arguments))

    with pytest.MonkeyPatch.context() as patch:
        for name in ("make_train_step", "make_eval_step"):
            patch.setattr(classifier_fitting, name, once(name, getattr(classifier_fitting, name)))
        patch.setattr(classify.curves, "draw", lambda *_: None)
        yield


@pytest.fixture
def run(data_dir, tmp_path):
    """Runs the experiment in a folder and gives the exit code."""

    def run(name, *more):
        start = ["--dataset", "local", "--data-dir", str(data_dir), "--out", str(tmp_path / name)]
        return main([*start, *MODEL, "--epochs", "3", *more])

    return run


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    """A run of three epochs that was never stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    start = ["--dataset", "local", "--data-dir", str(data_dir), "--out", str(folder)]
    assert main([*start, *MODEL, "--epochs", "3"]) == 0
    return folder


def contents(folder):
    """The hashes of all that a run came to, the state in its last checkpoint among it."""
    files = [folder / name for name in ("weights.safetensors", "metrics.jsonl", "vocabulary.json")]
    stored = checkpoints_of(folder)[-1] / "state"
    state = load_arrays(stored, stored_forms(stored))
    arrays = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in state.items()}
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files} | arrays


def checkpoints_of(folder):
    return sorted(path for path in (folder / "checkpoints").glob("*-step-*"))


def at_step(monkeypatch, number, act):
    """Does something once, in the middle of the run, right after that step."""
    is_due, done = Saver.is_due, []

    def watched(self, step):
        if step == number and not done:
            done.append(step)
            act()
        return is_due(self, step)

    monkeypatch.setattr(Saver, "is_due", watched)


def at_evaluation(monkeypatch, number, act):
    """Does something once, in the middle of the evaluation of that number."""
    evaluate, calls = classifier_fitting.evaluate, []

    def watched(step, params, batches):
        calls.append(number)
        for_once = iter([act] if len(calls) == number else [])

        def acting(*arguments):
            for now in for_once:
                now()
            return step(*arguments)

        return evaluate(acting, params, batches)

    monkeypatch.setattr(classifier_fitting, "evaluate", watched)


def keep_every_save(monkeypatch):
    """Waits for each, so that none gives way to the next."""
    save = Saver.save
    monkeypatch.setattr(Saver, "save", lambda *given: (save(*given), given[0].wait()))


class Died(BaseException):
    """Stands for the end of the process: nothing in the program catches it."""


def die():
    raise Died


def terminate():
    signal.raise_signal(signal.SIGTERM)


def printed_command(capsys):
    """The arguments of the command that a stopped run says to go on with."""
    lines = capsys.readouterr().out.splitlines()
    command = lines[next(i for i, line in enumerate(lines) if line.endswith("go on with:")) + 1]
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "experiments.classify"]
    return words[3:]


def last_record(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize("step", [1, 5, STEPS, STEPS + 1, 2 * STEPS + 3, 3 * STEPS])
def test_a_run_stopped_at_any_step_goes_on_bit_for_bit(
    step, run, whole, tmp_path, monkeypatch, capsys
):
    at_step(monkeypatch, step, terminate)
    assert run("stopped") == 143
    newest = checkpoints_of(tmp_path / "stopped")[-1]
    assert newest.name.endswith(f"-step-{step}")  # the step was finished, and no other begun
    assert not (tmp_path / "stopped" / "weights.safetensors").exists()
    assert main(printed_command(capsys)) == 0
    assert f"going on after step {step}" in capsys.readouterr().out
    assert contents(tmp_path / "stopped") == contents(whole)


@pytest.mark.parametrize("evaluation", [1, 2, 4])
@pytest.mark.full
def test_a_run_stopped_while_it_evaluates_goes_on_bit_for_bit(
    evaluation, run, whole, tmp_path, monkeypatch, capsys
):
    at_evaluation(monkeypatch, evaluation, terminate)
    assert run("stopped") == 143
    assert main(printed_command(capsys)) == 0
    assert contents(tmp_path / "stopped") == contents(whole)


@pytest.mark.parametrize(("every", "since"), [("3", 10), ("1", 11), ("100", 7)])
def test_a_run_that_died_goes_on_from_what_was_saved(
    every, since, run, whole, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        keep_every_save(patch)
        at_step(patch, STEPS + 5, die)  # after the step, before its checkpoint
        with pytest.raises(Died):
            run("died", "--checkpoint-every", every)
    assert run("died", "--resume", "--checkpoint-every", "2") == 0
    assert f"going on after step {since}," in capsys.readouterr().out
    assert contents(tmp_path / "died") == contents(whole)


def test_the_batches_come_in_the_order_of_a_run_that_never_stopped(
    run, tmp_path, monkeypatch, capsys
):
    order, take_step = [], classifier_fitting._Fitting._step

    def noted(self, batch):
        order.append(np.asarray(batch[0].tokens).tobytes())
        take_step(self, batch)

    monkeypatch.setattr(classifier_fitting._Fitting, "_step", noted)
    assert run("whole") == 0
    whole, order[:] = list(order), []
    for step in (4, STEPS + 2):
        with monkeypatch.context() as patch:
            at_step(patch, step, terminate)
            assert run("stopped", "--resume") == 143
    assert run("stopped", "--resume") == 0
    assert order == whole
    assert len(set(order)) == len(order) == 3 * STEPS


def test_a_finished_run_can_be_resumed_and_stays_what_it_is(run, whole, tmp_path):
    assert run("done") == 0
    assert run("done", "--resume") == 0
    assert contents(tmp_path / "done") == contents(whole)


def test_a_finished_run_may_go_on_for_more_epochs(run, whole, tmp_path, capsys):
    assert run("longer", "--epochs", "1") == 0
    assert main(["--out", str(tmp_path / "longer"), "--resume", "--epochs", "3"]) == 0
    assert contents(tmp_path / "longer") == contents(whole)
    config = json.loads((tmp_path / "longer" / "config.json").read_text())
    assert config["settings"]["epochs"] == 3
    assert main(["--out", str(tmp_path / "longer"), "--resume", "--epochs", "2"]) == 2
    assert "--epochs must be at least 3, as many as were begun, got 2" in capsys.readouterr().err
    assert json.loads((tmp_path / "longer" / "config.json").read_text()) == config


def test_patience_is_counted_through_a_stop(run, tmp_path, monkeypatch):
    """Validation accuracies that only fall, so that the first epoch stays the best."""
    evaluate = classifier_fitting.evaluate

    def falling(step, params, batches):
        figures = evaluate(step, params, batches)
        calls.append(figures)
        return figures | {"accuracy": 1 - len(calls) / 10}

    monkeypatch.setattr(classifier_fitting, "evaluate", falling)
    calls = []
    assert run("whole", "--patience", "2", "--epochs", "9") == 0
    calls = []
    with monkeypatch.context() as patch:
        at_step(patch, 2 * STEPS + 1, terminate)
        assert run("stopped", "--patience", "2", "--epochs", "9") == 143
    assert run("stopped", "--patience", "2", "--epochs", "9", "--resume") == 0
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    epochs = (tmp_path / "stopped" / "metrics.jsonl").read_text().count('"kind": "epoch"')
    assert epochs == 3  # the best one, and two of patience


def test_several_seeds_go_on_where_they_were(run, tmp_path, monkeypatch, capsys):
    assert run("whole", "--epochs", "1", "--repeat", "2") == 0
    with monkeypatch.context() as patch:
        at_evaluation(patch, 3, terminate)  # validation and test of the first, then the second
        assert run("stopped", "--epochs", "1", "--repeat", "2") == 143
    assert last_record(tmp_path / "stopped")["seed"] == 0
    assert main(printed_command(capsys)) == 0
    for seed in ("seed-0", "seed-1"):
        assert contents(tmp_path / "stopped" / seed) == contents(tmp_path / "whole" / seed)
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "stopped")]
    assert metrics[0] == metrics[1]


# Signals


def test_ctrl_c_ends_with_130_and_a_second_one_at_once(run, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: signal.raise_signal(signal.SIGINT))
        assert run("once") == 130
    assert checkpoints_of(tmp_path / "once")[-1].name.endswith("-step-3")
    assert "stopped by SIGINT" in capsys.readouterr().out

    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        at_step(patch, 3, twice)
        assert run("twice") == 130
    assert checkpoints_of(tmp_path / "twice") == []
    assert printed_command(capsys) == ["--out", str(tmp_path / "twice"), "--resume"]


def test_the_handlers_are_those_of_before_when_the_run_is_over(run, monkeypatch):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    at_step(monkeypatch, 2, terminate)
    assert run("stopped") == 143
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_signals_are_left_alone():
    before, during = signal.getsignal(signal.SIGTERM), []

    def elsewhere():
        with Interrupts() as interrupts:
            during.append(signal.getsignal(signal.SIGTERM))
            during.extend(interrupts.watch("ab"))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert during == [before, "a", "b"]


# What is refused


def fails(capsys, arguments):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    return captured.err


@pytest.fixture
def stopped(run, tmp_path, monkeypatch, capsys):
    """The folder of a run that was stopped in its second epoch, with three checkpoints."""
    with monkeypatch.context() as patch:
        keep_every_save(patch)
        at_step(patch, STEPS + 4, terminate)
        assert run("stopped", "--checkpoint-every", "5") == 143
    capsys.readouterr()
    folder = tmp_path / "stopped"
    assert [path.name[7:] for path in checkpoints_of(folder)] == ["step-5", "step-7", "step-11"]
    return folder


def test_other_settings_are_refused_by_name(stopped, capsys):
    resume = ["--out", str(stopped), "--resume"]
    message = fails(capsys, [*resume, "--cell", "lstm", "--learning-rate", "0.5", "--seed", "3"])
    assert message.splitlines()[1:] == [
        "  cell: 'vanilla' then, 'lstm' now",
        "  learning_rate: 0.001 then, 0.5 now",
        "  seed: 0 then, 3 now",
    ]


def test_settings_may_not_change_behind_the_back_of_the_checkpoint(stopped, capsys):
    config = json.loads((stopped / "config.json").read_text())
    config["settings"]["dropout"] = 0.1
    (stopped / "config.json").write_text(json.dumps(config))
    message = fails(capsys, ["--out", str(stopped), "--resume"])
    assert "settings.dropout: 0.6 then, 0.1 now" in message


def test_other_data_are_refused(stopped, data_dir, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    write_rows(other / "train.csv", 130, seed=0)
    write_rows(other / "test.csv", 40, seed=1)
    resume = ["--out", str(stopped), "--resume", "--data-dir"]
    message = fails(capsys, [*resume, str(other)])
    assert "data.sha256: '" in message
    assert "data.examples: [108, 12, 40] then, [118, 12, 40] now" in message
    for name in ("train.csv", "test.csv"):
        (other / name).write_bytes((data_dir / name).read_bytes())
    assert main([*resume, str(other)]) == 0  # the same data in another place


@pytest.fixture
def own(data_dir, tmp_path, monkeypatch):
    """A folder in which a run on own.csv was stopped, as a user would, without whole paths."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "own.csv").write_bytes((data_dir / "train.csv").read_bytes())
    monkeypatch.chdir(home)
    with monkeypatch.context() as patch:
        at_step(patch, 3, terminate)
        start = ["--dataset", "own.csv", "--out", "run", *MODEL, "--epochs", "2"]
        assert main(start) == 143
    return home


def test_a_run_goes_on_from_another_folder(own, tmp_path, monkeypatch, capsys):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main(["--out", str(own / "run"), "--resume"]) == 0
    assert "going on after step 3" in capsys.readouterr().out


def test_a_run_goes_on_with_the_same_data_at_another_path(own, capsys):
    (own / "own.csv").rename(own / "moved.csv")
    resume = ["--out", "run", "--resume"]
    message = fails(capsys, resume)
    assert "--dataset must be where the data of this run are now, got " in message
    assert "own.csv, which is not there any more" in message
    rows = (own / "moved.csv").read_text()
    (own / "changed.csv").write_text(rows.replace("warm", "cool"))
    message = fails(capsys, [*resume, "--dataset", "changed.csv"])
    assert "data.sha256: '" in message
    assert main([*resume, "--dataset", "moved.csv"]) == 0
    assert "going on after step 3" in capsys.readouterr().out


def test_a_data_folder_of_the_environment_is_remembered(data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RNNJAX_DATA", str(data_dir))
    with monkeypatch.context() as patch:
        at_step(patch, 3, terminate)
        assert main(["--dataset", "local", "--out", str(tmp_path / "run"), *MODEL]) == 143
    monkeypatch.delenv("RNNJAX_DATA")
    assert main(["--out", str(tmp_path / "run"), "--resume", "--epochs", "1"]) == 0


def test_every_printed_command_works_with_a_space_in_the_folder(run, tmp_path, capsys):
    assert run("my run", "--epochs", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line) for line in lines if "python -m" in line]
    assert len(commands) == 2  # to go on, since one epoch was the bound, and to predict
    more, predict = ([*words[words.index("experiments.classify") + 1 :]] for words in commands)
    assert main(predict) == 0
    assert main([*more[:-1], "3"]) == 0


def test_another_vocabulary_is_refused(stopped, monkeypatch, capsys):
    fit = classify.fit_encoder

    def fewer(texts, **settings):
        return fit(texts, **{**settings, "min_count": 40})

    monkeypatch.setattr(classify, "fit_encoder", fewer)
    assert "vocabulary: ['<pad>', '<unk>'" in fails(capsys, ["--out", str(stopped), "--resume"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_units": 4}, "hidden_units must be absent, got 4"),
        ({"layers": None}, "layers must be int, got None"),
        ({"cell": "gsu"}, "cell must be 'vanilla' or 'lstm' or 'gru'"),
        ({"layers": True}, "layers must be int, got True"),
    ],
)
def test_a_config_that_was_tampered_with_is_refused_by_name(change, message, stopped, capsys):
    config = json.loads((stopped / "config.json").read_text())
    config["settings"].update(change)
    (stopped / "config.json").write_text(json.dumps(config))
    assert message in fails(capsys, ["--out", str(stopped), "--resume"])
    assert message in fails(capsys, ["predict", str(stopped), "a text"])


def test_a_setting_that_is_missing_is_named(stopped, capsys):
    config = json.loads((stopped / "config.json").read_text())
    del config["settings"]["buckets"]
    (stopped / "config.json").write_text(json.dumps(config))
    assert "buckets must be int, got nothing" in fails(capsys, ["--out", str(stopped), "--resume"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"settings": 3}', "\xff"])
def test_a_damaged_config_is_refused(text, stopped, capsys):
    (stopped / "config.json").write_text(text, "latin-1")
    assert "config.json must " in fails(capsys, ["--out", str(stopped), "--resume"])


def test_resuming_needs_a_folder_and_cannot_replace(tmp_path, capsys):
    assert "--out must name the folder of the run to" in fails(capsys, ["--resume"])
    both = ["--out", str(tmp_path), "--resume", "--replace"]
    assert "--resume and --replace must be given one at a time" in fails(capsys, both)
    (tmp_path / "notes.txt").write_text("mine")
    assert "must hold a run to resume" in fails(capsys, both[:-1])


@pytest.mark.parametrize("text", ["", "0", "-3", "1.5s", "60m", "soon"])
def test_the_interval_of_checkpoints_is_steps_or_seconds(text):
    with pytest.raises(
        ValueError, match=r"--checkpoint-every must be a number of steps, as \"500\", or of sec"
    ):
        parse_every(text)


def test_checkpoints_within_an_epoch_come_after_so_many_steps_or_seconds(tmp_path):
    now = [100.0]
    with RunFolder(tmp_path / "run", {}) as run, Checkpoints(tmp_path) as checkpoints:

        def saver(every):
            return Saver(checkpoints, run, {}, every=parse_every(every), clock=lambda: now[0])

        by_steps, by_seconds = saver("5"), saver("60s")
        assert [by_steps.is_due(step) for step in (4, 5, 6)] == [False, True, True]
        due = []
        for now[0] in (159.9, 160.0, 400.0):
            due.append(by_seconds.is_due(1))
        assert due == [False, True, True]


def test_where_nothing_was_saved_yet_resuming_begins(run, whole, tmp_path, capsys):
    assert run("new", "--resume") == 0
    assert "nothing to resume yet" in capsys.readouterr().out
    assert contents(tmp_path / "new") == contents(whole)


def test_a_run_that_died_before_its_first_checkpoint_begins_again(
    run, whole, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        at_step(patch, 3, die)
        with pytest.raises(Died):
            run("died")
    assert run("died") == 2  # without a word, nothing is overwritten
    assert run("died", "--resume") == 0
    assert contents(tmp_path / "died") == contents(whole)


def test_replacing_leaves_nothing_of_the_former_run(run, whole, stopped):
    (stopped / "weights.safetensors").write_text("old")
    assert run("stopped", "--replace") == 0
    assert contents(stopped) == contents(whole)
    assert not [path for path in checkpoints_of(stopped) if path.name.endswith("step-11")]


# What is damaged


def test_the_newest_good_checkpoint_is_taken_and_the_others_named(stopped, whole, capsys):
    damaged = checkpoints_of(stopped)[-1] / "manifest.json"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert main(["--out", str(stopped), "--resume"]) == 0
    out = capsys.readouterr().out
    assert "passed over checkpoint" in out
    assert "step-11: manifest.json must have the SHA-256 in SHA256SUMS" in out
    assert "going on after step 7, in epoch 2" in out
    assert contents(stopped) == contents(whole)


def test_without_a_good_checkpoint_the_run_stops_and_says_why(stopped, capsys):
    before = (stopped / "metrics.jsonl").read_bytes()
    for path in checkpoints_of(stopped):
        (path / "SHA256SUMS").unlink()
    message = fails(capsys, ["--out", str(stopped), "--resume"])
    assert message.count("SHA256SUMS must be there, got no such file") == 3
    assert (stopped / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "resumed_after"),
    [("flip the last record", 7), ("cut the last record", 7), ("flip record 6", 5)],
)
def test_records_that_are_not_as_they_were_take_the_run_further_back(
    damage, resumed_after, stopped, whole, capsys
):
    path = stopped / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["step"] for line in lines][-2:] == [10, 11]
    if damage == "flip record 6":
        lines[5] = lines[5].replace(b"0", b"1", 1)
    else:
        lines[-1] = lines[-1].replace(b"0", b"1", 1) if "flip" in damage else lines[-1][:-9]
    path.write_bytes(b"".join(lines))
    assert main(["--out", str(stopped), "--resume"]) == 0
    out = capsys.readouterr().out
    assert "metrics.jsonl must begin as it did then, got other records" in out
    assert f"going on after step {resumed_after}," in out
    assert contents(stopped) == contents(whole)


def test_without_its_records_no_checkpoint_is_good(stopped, capsys):
    (stopped / "metrics.jsonl").unlink()
    message = fails(capsys, ["--out", str(stopped), "--resume"])
    assert message.count("metrics.jsonl must begin as it did then, got other records") == 3


def test_a_full_disk_stops_the_run_and_the_earlier_checkpoint_goes_on(
    run, whole, tmp_path, monkeypatch, capsys
):
    write, calls = saving.save_arrays, []

    def write_once(path, arrays):
        calls.append(path)
        write(path, arrays)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(saving, "save_arrays", write_once)
        assert run("full") == 2
    message = capsys.readouterr().err
    assert "could not save step" in message
    assert "No space left on device" in message
    assert not (tmp_path / "full" / "weights.safetensors").exists()
    assert len(checkpoints_of(tmp_path / "full")) == 1
    assert run("full", "--resume") == 0
    assert contents(tmp_path / "full") == contents(whole)


def test_a_folder_in_use_is_refused(stopped, capsys):
    with FolderLock(stopped):
        message = fails(capsys, ["--out", str(stopped), "--resume"])
    assert f"{stopped} must be free, got it in use by process {os.getpid()}" in message


def test_another_environment_is_said_aloud(stopped, capsys):
    config = json.loads((stopped / "config.json").read_text())
    config["environment"]["jax"] = "0.1.2"
    (stopped / "config.json").write_text(json.dumps(config))
    assert main(["--out", str(stopped), "--resume"]) == 0
    assert "note: jax 0.1.2 then, " in capsys.readouterr().out
