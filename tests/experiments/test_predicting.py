"""One predict for runs that were trained and runs that were imported."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import classify, convert
from experiments.running import imported
from experiments.running.imported import Imported, Reading
from experiments.running.predicting import given_or_read
from experiments.running.run_folder import RunFolder
from rnnjax.data import Vocabulary
from rnnjax.interop.classifiers import Architecture, LayerSize, build
from rnnjax.weights import save_weights

LABELS = ["bad\tnews", "good", "mixed"]
WORDS = ("a", "cold", "funny", "warm", "film")


def drawn(model):
    shapes, random = jax.eval_shape(model.init, jax.random.key(0)), np.random.default_rng(0)
    return jax.tree.map(lambda a: random.normal(0, 0.7, a.shape).astype(a.dtype), shapes)


def make_trained(folder):
    settings = classify.Settings(hidden_size=4, embedding_size=5, max_length=8)
    vocabulary = Vocabulary.fit([WORDS])
    config = {"settings": settings.written(), "label_names": LABELS}
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary.save(folder / classify.VOCABULARY)
    model = classify.build_model(settings, len(vocabulary), len(LABELS))
    save_weights(folder / classify.WEIGHTS, drawn(model))
    return classify.Predictor(folder)


def make_imported(folder):
    architecture = Architecture(
        kind="gru",
        vocab_size=6,
        embedding_size=5,
        layers=(LayerSize(4, False),),
        num_classes=3,
        pooling="last",
    )
    reading = Reading("basic_english", ("<unk>", *WORDS), 0, "unread", 0, None, "head", 4)
    model = Imported(architecture, drawn(build(architecture)), reading, LABELS)
    imported.save(folder, model, {})
    return imported.Predictor(folder)


@pytest.fixture(scope="module", params=[make_trained, make_imported])
def run(request, tmp_path_factory):
    """The folder of a run, and what it says of texts when it is asked directly."""
    folder = tmp_path_factory.mktemp("run")
    return folder, request.param(folder)


def output(capsys, *arguments):
    assert classify.main(["predict", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_both_commands_take_both_kinds_of_run_and_say_the_same(run, capsys):
    folder, predictor = run
    texts = ["a warm film", "cold", "unheard of"]
    out = output(capsys, folder, *texts)
    assert convert.main(["predict", str(folder), *texts]) == 0
    assert capsys.readouterr().out == out
    rows = [line.split("\t") for line in out.splitlines()]
    for row, text, chances in zip(rows, texts, predictor(texts), strict=True):
        label = LABELS[chances.argmax()].replace("\t", "\\t")
        assert row == [label, f"{chances.max():.3f}", text]


def test_json_has_the_probabilities_of_all_classes_and_the_text_as_it_was(run, capsys):
    folder, predictor = run
    texts = ["a\twarm\nfilm", "", 'said "c\u00f4ld"']
    lines = output(capsys, folder, *texts, "--json").splitlines()
    found = [json.loads(line) for line in lines]
    assert [row["text"] for row in found] == texts
    for row, chances in zip(found, predictor(texts), strict=True):
        if row["text"]:
            assert row["label"] == LABELS[chances.argmax()]
            assert list(row["probabilities"]) == LABELS
            np.testing.assert_allclose(list(row["probabilities"].values()), chances, atol=1e-6)
        else:
            assert row["label"] is row["probabilities"] is None


def test_every_line_stays_one_row_of_three_fields(run, capsys, monkeypatch):
    folder, _ = run
    monkeypatch.setattr(sys, "stdin", io.StringIO("a warm\tfilm\n\n  \ncold\n"))
    rows = [line.split("\t") for line in output(capsys, folder).splitlines()]
    assert [len(row) for row in rows] == [3, 3, 3, 3]
    assert [row[2] for row in rows] == ["a warm\\tfilm", "(empty)", "(empty)", "cold"]
    assert rows[1][:2] == rows[2][:2] == ["-", "-"]


def test_a_mark_before_the_first_line_is_no_part_of_its_text(run, capsys, monkeypatch):
    folder, _ = run
    lines = io.BytesIO("\ufeffwarm film\r\ncold\n".encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(lines, "latin-1"))
    marked = output(capsys, folder)
    assert marked == output(capsys, folder, "warm film", "cold")


def test_output_that_nobody_reads_to_its_end_is_no_error(run):
    folder, _ = run
    command = [sys.executable, "-m", "experiments.classify", "predict", str(folder)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        process.stdout.close()  # as head does
        _, errors = process.communicate(b"a warm film\n" * 5_000)
    assert errors == b""
    assert process.returncode == 141


def test_what_is_typed_is_answered_line_by_line_and_what_is_piped_many_at_once(monkeypatch, capsys):
    lines = io.StringIO("one\ntwo\nthree\n")
    monkeypatch.setattr(sys, "stdin", lines)
    assert list(given_or_read((), 2)) == [["one", "two"], ["three"]]
    assert capsys.readouterr().err == ""
    lines.seek(0)
    monkeypatch.setattr(lines, "isatty", lambda: True)
    assert list(given_or_read((), 2)) == [["one"], ["two"], ["three"]]
    assert "Ctrl-D ends" in capsys.readouterr().err
    assert list(given_or_read(("a", "b", "c"), 2)) == [["a", "b"], ["c"]]


@pytest.mark.full
def test_help_that_nobody_reads_to_its_end_is_no_error():
    command = f"{sys.executable} -u -m experiments.convert import --help | true"
    process = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    assert (process.stderr, process.returncode) == (b"", 141)


def test_what_is_no_run_is_refused_by_both_names(tmp_path, capsys):
    assert classify.main(["predict", str(tmp_path), "a text"]) == 2
    message = capsys.readouterr().err
    assert "no config.json (trained) and no classifier.json (imported) in it" in message


@pytest.mark.parametrize(
    ("repeat", "said"),
    [
        (1, "must hold a finished run, got one without weights; go on: python -m experiments.cl"),
        (3, "must be one run, got several: choose a seed-... in it"),
    ],
)
def test_a_run_that_nothing_can_be_asked_of_yet_says_what_to_do(repeat, said, tmp_path, capsys):
    run = tmp_path / "run"
    settings = classify.Settings(repeat=repeat, out=run)
    with RunFolder(run, {"settings": settings.written(), "label_names": ["a", "b"]}):
        pass
    assert classify.main(["predict", str(run), "a text"]) == 2
    assert convert.main(["export", str(run), "--to", "jax", "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"error: {run} {said}") for line in lines)
