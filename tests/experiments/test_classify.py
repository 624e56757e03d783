"""The classify experiment from the command line, on sentences made here."""

import dataclasses
import inspect
import io
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from processes import PYTHON
from safetensors.numpy import load_file

from experiments import classify
from experiments.classify import Predictor, Settings, build_model, main
from experiments.running import classifier_fitting, fitting
from experiments.running.checkpoints import Saver
from rnnjax.data import hub

ROOT = Path(__file__).parents[2]
GOOD, BAD = ("warm", "funny", "bright", "kind"), ("cold", "dull", "grim", "mean")
SMALL = ["--hidden-size", "8", "--embedding-size", "8", "--buckets", "2", "--batch-size", "16"]
QUICK = [*SMALL, "--epochs", "8", "--dropout", "0.0", "--learning-rate", "0.03"]


def sentence(chance, label):
    words = ["the", "film", "is", "a", "one"] * chance.randint(1, 3)
    words.insert(chance.randrange(len(words)), chance.choice(GOOD if label else BAD))
    return " ".join(words)


def write_rows(path, count, seed):
    chance = random.Random(seed)
    rows = [f"{sentence(chance, i % 2)},{i % 2}" for i in range(count)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "train.csv", 240, seed=0)
    write_rows(folder / "test.csv", 60, seed=1)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No run of these tests leaves anything in the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """The runs in this process have few programs between them; each is compiled once."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for values in (options, before):
        compilation_cache.reset_cache()
        for name, value in values.items():
            jax.config.update(name, value)
        if values is options:
            yield
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["--dataset", "local", "--data-dir", str(data_dir), "--out", str(folder)]
    assert main([*arguments, *QUICK]) == 0
    return folder


def test_a_run_leaves_all_that_is_needed_to_understand_and_use_it(run):
    config = json.loads((run / "config.json").read_text())
    assert config["settings"]["hidden_size"] == 8
    assert config["environment"]["jax"]
    assert len(config["data"]["sha256"]) == 64
    assert config["data"]["examples"] == [216, 24, 60]
    assert config["label_names"] == ["0", "1"]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kinds = [record["kind"] for record in records]
    assert kinds[-1] == "test"
    epochs = kinds.count("epoch")
    assert 3 <= epochs <= 8
    assert kinds.count("step") % epochs == 0
    assert set(kinds) == {"step", "epoch", "test"}
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in run.iterdir()} >= {"weights.safetensors", "vocabulary.json"}


def test_times_are_kept_apart_from_what_a_second_run_would_repeat(run):
    assert "seconds" not in (run / "metrics.jsonl").read_text()
    records = [json.loads(line) for line in (run / "timings.jsonl").read_text().splitlines()]
    assert {record["kind"] for record in records} == {"session", "compile", "speed", "epoch"}
    assert all(record["seconds"] > 0 for record in records if record["kind"] == "epoch")


def test_each_bucket_compiles_once_for_training_and_once_for_evaluation(run):
    records = [json.loads(line) for line in (run / "timings.jsonl").read_text().splitlines()]
    made = [(r["name"], r["shapes"]["tokens"]) for r in records if r["kind"] == "compile"]
    assert len(made) == len(set(made)) <= 4
    assert {name for name, _ in made} == {"train step", "eval step"}


@pytest.mark.kept
def test_it_learns_and_the_saved_weights_predict_what_was_tested(run, data_dir):
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["accuracy"] == 1.0
    lines = (data_dir / "test.csv").read_text().splitlines()[1:]
    texts, labels = zip(*(line.rsplit(",", 1) for line in lines), strict=True)
    probabilities = Predictor(run)(texts)
    assert [str(row.argmax()) for row in probabilities] == list(labels)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)


def test_predictions_do_not_depend_on_their_neighbours(run):
    predictor = Predictor(run)
    texts = ["a warm one", "", "dull", "the film is a cold one " * 9]
    together = predictor(texts)
    for row, text in zip(together, texts, strict=True):
        np.testing.assert_allclose(predictor([text])[0], row, rtol=1e-4, atol=1e-6)


def test_predict_prints_label_probability_and_text(run, capsys, monkeypatch):
    assert main(["predict", str(run), "a warm film", "a grim film"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [(label, text) for label, _, text in rows] == [
        ("1", "a warm film"),
        ("0", "a grim film"),
    ]
    assert all(0.5 <= float(probability) <= 1 for _, probability, _ in rows)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a warm film\na grim film\n"))
    assert main(["predict", str(run)]) == 0
    assert [line.split("\t") for line in capsys.readouterr().out.splitlines()] == rows


def assert_same_run(first, second):
    for name in ("weights.safetensors", "metrics.jsonl", "vocabulary.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.full
def test_the_same_seed_gives_the_same_run_in_another_process(run, data_dir, tmp_path):
    arguments = ["--dataset", "local", "--data-dir", str(data_dir), "--out", str(tmp_path / "b")]
    command = [*PYTHON, "-m", "experiments.classify", *arguments, *QUICK]
    # Sets and dicts of strings would have another order there, if any mattered.
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "5"}, cwd=ROOT)
    assert_same_run(tmp_path / "b", run)


@pytest.mark.parametrize("ahead", ["0", "5"])
def test_the_same_seed_gives_the_same_run_with_other_prefetching(ahead, run, data_dir, tmp_path):
    arguments = ["--dataset", "local", "--data-dir", str(data_dir), "--out", str(tmp_path / "b")]
    assert main([*arguments, *QUICK, "--prefetch", ahead]) == 0
    assert_same_run(tmp_path / "b", run)


def test_epochs_after_the_first_trace_nothing_and_move_nothing_unasked(
    data_dir, tmp_path, monkeypatch
):
    run_epoch, steps = classifier_fitting._Fitting._epoch, []

    def guarded(self):
        """From the first batch to the saved checkpoint, validation included."""
        warm = self._snapshot.epoch > 1
        with jax.transfer_guard("disallow"):
            jax.config.update("jax_no_tracing", warm)
            try:
                run_epoch(self)
            finally:
                jax.config.update("jax_no_tracing", False)
        steps.append(self._snapshot.step if warm else 0)

    monkeypatch.setattr(classifier_fitting._Fitting, "_epoch", guarded)
    arguments = ["--dataset", "local", "--data-dir", str(data_dir), "--out", str(tmp_path / "run")]
    assert main([*arguments, *QUICK, "--epochs", "3"]) == 0
    assert len(steps) == 3
    assert steps[2] > steps[1] > steps[0] == 0


def test_a_batch_that_was_not_put_on_the_device_is_an_error_not_a_hidden_copy(
    data_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(jax, "device_put", lambda batch: batch)
    arguments = ["--dataset", "local", "--data-dir", str(data_dir), "--out", str(tmp_path / "run")]
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        main([*arguments, *QUICK, "--prefetch", "0"])


@pytest.mark.full
def test_by_default_a_run_goes_on_until_validation_has_stopped_rising(
    data_dir, tmp_path, monkeypatch, capsys
):
    evaluate, calls = classifier_fitting.evaluate, []

    def rising(step, params, batches):
        calls.append(1)
        return evaluate(step, params, batches) | {"accuracy": min(len(calls), 12) / 100}

    monkeypatch.setattr(classifier_fitting, "evaluate", rising)
    monkeypatch.setattr(Saver, "save", lambda *_: None)  # 17 checkpoints would take the time
    arguments = ["--dataset", "local", "--data-dir", str(data_dir), "--out", str(tmp_path / "run")]
    assert main([*arguments, *SMALL, "--batch-size", "300"]) == 0
    patience = Settings().patience
    said = capsys.readouterr().out
    assert (
        f"ended after epoch {12 + patience}: validation did not rise for {patience} epochs\n"
        in said
    )
    assert ", weights of epoch 12\n" in said


def test_several_seeds_report_their_mean_and_spread(data_dir, tmp_path, capsys):
    arguments = ["--dataset", "local", "--data-dir", str(data_dir), "--out", str(tmp_path)]
    small = ["--cell", "vanilla", "--no-bidirectional", "--buckets", "1", "--epochs", "1"]
    assert main([*arguments, *SMALL, *small, "--repeat", "2", "--seed", "5"]) == 0
    accuracies = [
        json.loads((tmp_path / f"seed-{seed}" / "metrics.jsonl").read_text().splitlines()[-1])
        for seed in (5, 6)
    ]
    mean = np.mean([record["accuracy"] for record in accuracies])
    assert f"\n2 seeds: test accuracy {mean:.4f} (standard" in capsys.readouterr().out


def fails(capsys, arguments):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    return captured.err


def test_a_run_that_explodes_ends_with_its_last_good_state_saved(data_dir, tmp_path, capsys):
    arguments = ["--dataset", "local", "--data-dir", str(data_dir), "--out", str(tmp_path)]
    wild = ["--cell", "vanilla", "--buckets", "1", "--learning-rate", "1e38", "--max-skipped", "5"]
    message = fails(capsys, [*arguments, *SMALL, *wild])
    assert "was NaN or infinite in the last" in message
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    skipped = [record for record in records if record.get("skipped") is True]
    assert len(skipped) >= 5
    assert all("loss" not in record for record in skipped)
    saved = sorted((tmp_path / "checkpoints").glob("*-step-*"))
    assert len(saved) > 0
    again = fails(capsys, ["--out", str(tmp_path), "--resume"])
    assert "was NaN or infinite in the last" in again


def spoiled(params):
    return jax.tree.map(lambda leaf: leaf * np.nan, params)


def test_weights_that_are_not_finite_are_never_the_ones_chosen(data_dir, tmp_path, monkeypatch):
    averaged, calls = fitting.averaged, []

    def spoil_the_second(opt_state):
        calls.append(0)
        found = averaged(opt_state)
        return spoiled(found) if len(calls) >= 2 else found

    monkeypatch.setattr(fitting, "averaged", spoil_the_second)
    arguments = ["--dataset", "local", "--data-dir", str(data_dir), "--out", "run"]
    assert main([*arguments, *QUICK, "--epochs", "3"]) == 0
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    assert all(np.isfinite(array).all() for array in weights.values())
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["kind"], last["epoch"]) == ("test", 1)


def test_a_run_whose_weights_are_never_finite_fails_and_saves_none(
    data_dir, tmp_path, monkeypatch, capsys
):
    averaged = fitting.averaged
    monkeypatch.setattr(fitting, "averaged", lambda opt_state: spoiled(averaged(opt_state)))
    arguments = ["--dataset", "local", "--data-dir", str(data_dir), "--out", "run"]
    message = fails(capsys, [*arguments, *QUICK, "--epochs", "2"])
    assert "an epoch must end with finite weights" in message
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_an_epoch_without_one_finite_step_ends_the_run(data_dir, tmp_path, capsys):
    arguments = ["--dataset", "local", "--data-dir", str(data_dir), "--out", "run", "--take", "32"]
    wild = ["--learning-rate", "1e38", "--clip-norm", "1e38", "--max-skipped", "1000"]
    message = fails(capsys, [*arguments, *SMALL, "--cell", "vanilla", "--buckets", "1", *wild])
    assert "must have finite loss, gradient and update" in message
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_a_used_folder_is_refused(run, data_dir, capsys):
    arguments = ["--dataset", "local", "--data-dir", str(data_dir), "--out", str(run), *QUICK]
    message = fails(capsys, arguments)
    for part in ("must be empty", "--resume", "--replace"):
        assert part in message


def test_a_folder_that_cannot_be_written_is_named(data_dir, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "run"
    arguments = ["--dataset", "local", "--data-dir", str(data_dir), "--out", str(folder)]
    assert f"{folder} must be writable, got Not a directory" in fails(capsys, arguments)


def test_the_folder_of_several_seeds_says_which_to_choose(tmp_path, capsys):
    config = {"settings": Settings(repeat=3, out=tmp_path).written()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "choose a seed-" in fails(capsys, ["predict", str(tmp_path), "a text"])


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"text,class\na,1\n", ["train.csv", "label", "class"]),
        (b"text,label\nfine,0\n\xff\xfe,1\n", ["train.csv", "UTF-8", "line 3"]),
        (b"text,label\nfine,0\nbad\n", ["train.csv", "3"]),
        (b"", ["train.csv", "empty"]),
        (b"text,label\na,0\nb,5\n", ["test.csv", "must have one of 0, 5", "line 3: '1'"]),
    ],
)
def test_a_bad_file_is_named_with_its_row(content, parts, tmp_path, capsys):
    (tmp_path / "train.csv").write_bytes(content)
    write_rows(tmp_path / "test.csv", 4, seed=0)
    message = fails(capsys, ["--dataset", "local", "--data-dir", str(tmp_path)])
    for part in parts:
        assert part in message


@pytest.mark.kept  # old releases of tyro named the arguments of the call before
def test_wrong_arguments_are_named(tmp_path, capsys):
    assert "rotten_tomatoes" in fails(capsys, ["--dataset", "tomatoes"])
    assert "config.json" in fails(capsys, ["predict", str(tmp_path), "a text"])
    for bad in (["--epoch-count", "3"], ["--cell", "transformer"], ["--epochs", "many"]):
        with pytest.raises(SystemExit) as stopped:
            main(bad)
        assert stopped.value.code == 2
        assert bad[0] in capsys.readouterr().err


WRONG = {
    "--take": ["0", "-3"],
    "--tokenizer": ["words"],
    "--vocabulary-size": ["1"],
    "--min-count": ["0"],
    "--max-length": ["0"],
    "--hidden-size": ["0", "-64", "1000000000"],
    "--layers": ["0", "1000000000"],
    "--embedding-size": ["0"],
    "--dropout": ["1.5", "1", "-0.1", "nan"],
    "--word-dropout": ["2", "1", "nan"],
    "--batch-size": ["0"],
    "--buckets": ["0"],
    "--epochs": ["0", "-1"],
    "--patience": ["0"],
    "--validation": ["0", "1", "nan"],
    "--learning-rate": ["nan", "inf", "-1", "0"],
    "--clip-norm": ["-1", "0", "nan", "inf"],
    "--max-skipped": ["0"],
    "--average-decay": ["1", "-0.5", "nan"],
    "--seed": ["-1", "4294967296"],
    "--repeat": ["0"],
    "--prefetch": ["-1"],
    "--keep": ["0"],
    "--checkpoint-every": ["soon", "0"],
}


@pytest.mark.parametrize(("flag", "value"), [(f, v) for f, values in WRONG.items() for v in values])
def test_a_setting_that_cannot_be_is_refused_by_name_and_nothing_is_made(
    flag, value, tmp_path, capsys
):
    message = fails(capsys, ["--out", "run", f"{flag}={value}"])
    assert flag.removeprefix("--") in message
    assert value.lstrip("-0").removesuffix("000") in message
    assert len(message.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_all_wrong_settings_are_named_at_once(capsys):
    message = fails(capsys, ["--epochs", "0", "--dropout", "1.5"])
    assert message.splitlines() == [
        "error: --dropout must be a share from 0 up and below 1, got 1.5",
        "  --epochs must be a whole number from 1 up, got 0",
    ]


def test_what_the_machine_has_no_memory_for_is_refused_before_anything_is_made(
    data_dir, tmp_path, capsys
):
    arguments = ["--dataset", "local", "--data-dir", str(data_dir), "--out", "run"]
    message = fails(capsys, [*arguments, "--hidden-size", "500000"])
    assert "error: the weights must fit the" in message
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_kind_and_one_column_for_both_are_refused(tmp_path, capsys):
    (tmp_path / "own.txt").write_text("a text")
    assert "--dataset must end in one of .csv, " in fails(capsys, ["--dataset", "own.txt"])
    (tmp_path / "own.csv").write_text("text,label\na,b\n")
    message = fails(capsys, ["--dataset", "own.csv", "--text-column", "label"])
    assert "--text-column and --label-column must be two columns, got 'label'" in message


def test_options_of_own_files_are_refused_beside_other_data(capsys):
    for given in (["--text-column", "review"], ["--separator", ";"], ["--no-quoting"]):
        expected = f"{given[0].replace('no-', '')} must be given with a --dataset of your own files"
        assert expected in fails(capsys, given)


@pytest.mark.parametrize("arguments", [[], ["--repeat", "2"]])
def test_data_that_are_not_there_leave_no_folder(arguments, tmp_path, capsys):
    assert "none.csv must be a file" in fails(capsys, ["--dataset", "none.csv", *arguments])
    assert not list(tmp_path.iterdir())


def test_out_of_memory_is_one_line(data_dir, monkeypatch, capsys):
    def run_out(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 27 bytes")

    monkeypatch.setattr(classifier_fitting._Fitting, "_step", run_out)
    arguments = ["--dataset", "local", "--data-dir", str(data_dir), "--out", "run"]
    message = fails(capsys, [*arguments, *QUICK])
    assert message.startswith("error: out of memory (RESOURCE_EXHAUSTED: Out of memory alloc")
    assert len(message.splitlines()) == 1


def test_a_batch_larger_than_all_texts_pads_no_row(data_dir):
    settings = Settings(dataset="local", data_dir=data_dir, batch_size=100_000, buckets=2)
    dataset, parts = classify.read_parts(settings)
    _, splits = classify.prepare(settings, parts, len(dataset.label_names))
    fullest = [max(int(batch.weights.sum()) for batch in batches.epoch(0)) for batches in splits]
    rows = [batches.shapes[0][0] for batches in splits]
    assert rows == [fullest[0], max(fullest[1:]), max(fullest[1:])]


def test_help_says_a_sentence_and_a_reason_of_every_setting(capsys):
    for command in ([], ["predict"]):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
    out = capsys.readouterr().out
    for setting in dataclasses.fields(Settings):
        assert f"--{setting.name.replace('_', '-')}" in out
    source = inspect.getsource(Settings)
    sentences = [" ".join(text.split()) for text in re.findall(r'"""(.*?)"""', source, re.S)][1:]
    of_settings = sentences[: len(dataclasses.fields(Settings))]
    for sentence in of_settings:
        assert sentence.endswith("."), sentence
        assert len(sentence.split()) >= 8, sentence


def test_no_texts_is_an_error(run, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "standard input" in fails(capsys, ["predict", str(run)])


def test_without_the_hub_it_says_which_file_to_put_where(monkeypatch, capsys):
    monkeypatch.delenv("RNNJAX_DATA", raising=False)
    monkeypatch.setattr(hub, "_ask_hub", lambda repository: "no route")
    monkeypatch.setattr(hub, "_is_cached", lambda *_: False)
    message = fails(capsys, ["--dataset", "imdb"])
    assert "train.parquet" in message
    assert "--data-dir" in message


def test_damaged_weights_are_refused(run, tmp_path, capsys):
    for name in ("config.json", "vocabulary.json", "weights.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    assert "weights.safetensors" in fails(capsys, ["predict", str(tmp_path), "a text"])


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("cell", ["vanilla", "lstm", "gru"])
def test_every_model_of_the_settings_can_be_built(cell, pooling):
    settings = Settings(cell=cell, pooling=pooling, layers=2, hidden_size=4, embedding_size=3)
    model = build_model(settings, vocab_size=7, num_classes=3)
    logits = model.apply(model.init(jax.random.key(0)), np.array([[2, 3, 0]]), np.array([2]))
    assert logits.shape == (1, 3)


@pytest.mark.parametrize(("initializer", "is_one"), [("keras", True), ("pytorch", False)])
def test_the_first_weights_are_those_that_the_settings_name(initializer, is_one):
    named = {"initializer": initializer, "embedding_scale": 0.5}
    settings = Settings(cell="lstm", hidden_size=4, embedding_size=50, **named)
    params = build_model(settings, vocab_size=100, num_classes=3).init(jax.random.key(0))
    assert abs(params.embedding.vectors.std() - 0.5) < 0.03
    biases = [leaf for leaf in jax.tree.leaves(params.encoder) if leaf.shape == (16,)]
    assert len(biases) == 2
    assert all(bool((bias[4:8] == 1).all()) == is_one for bias in biases)
