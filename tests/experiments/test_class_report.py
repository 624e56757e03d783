"""What a run says of its classes, against NumPy and against scikit-learn's definitions."""

import itertools
import json
import math

import jax
import numpy as np
import pytest
from test_resume import MODEL

import rnnjax
from experiments import classify
from experiments.running import class_report
from experiments.running.class_report import chance, summary, warnings
from experiments.running.classifier_fitting import classification_loss, evaluate, make_eval_step
from rnnjax.data import BucketedBatches, Examples


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def counted(labels, guesses, classes):
    """Hits, texts and named of every class."""
    hits = [np.sum((labels == c) & (guesses == c)) for c in range(classes)]
    texts = [np.sum(labels == c) for c in range(classes)]
    return np.array(hits), np.array(texts), np.array([np.sum(guesses == c) for c in range(classes)])


def test_recall_and_macro_f1_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    labels = random.choice(4, 200, p=[0.7, 0.2, 0.08, 0.02])
    guesses = np.where(random.random(200) < 0.6, labels, random.choice(4, 200))
    found = summary(*counted(labels, guesses, 4))
    expected = metrics.recall_score(labels, guesses, average=None)
    np.testing.assert_allclose(found["recall"], expected, rtol=1e-12)
    expected = metrics.f1_score(labels, guesses, average="macro")
    np.testing.assert_allclose(found["macro_f1"], expected, rtol=1e-12)


def test_a_class_without_texts_has_no_recall_and_is_not_in_the_mean():
    found = summary(np.array([3, 0, 0]), np.array([3, 0, 0]), np.array([3, 0, 1]))
    assert found["recall"] == [1.0, None, None]
    assert found["f1"] == [1.0, None, 0.0]
    assert found["macro_f1"] == 1.0


def test_chance_knows_the_shares_of_the_training_texts_and_nothing_of_the_test():
    label, accuracy, loss = chance([6, 2, 0], [1, 3, 0])
    assert (label, accuracy) == (0, 0.25)
    np.testing.assert_allclose(loss, -(0.25 * math.log(0.75) + 0.75 * math.log(0.25)), rtol=1e-12)
    assert chance([6, 2, 0], [1, 3, 1]).loss == math.inf


def test_evaluation_counts_every_class_over_all_batches_and_no_filler_row():
    model = rnnjax.classifier(
        rnnjax.embedding(9, 3), rnnjax.recurrent(rnnjax.gru(4)), 3, pooling="max"
    )
    params = model.init(jax.random.key(0))
    random = np.random.default_rng(0)
    ids = [random.integers(2, 9, size).tolist() for size in random.integers(1, 8, 50)]
    labels = random.integers(0, 3, 50)
    batches = BucketedBatches(ids, labels, batch_size=16, boundaries=(4, 8), seed=0, shuffle=False)
    step = make_eval_step(classification_loss(model, 0.0, classes=True))
    found = evaluate(step, params, batches.epoch(0))
    guesses = np.array(
        [model.apply(params, np.array([row]), np.array([len(row)]))[0].argmax() for row in ids]
    )
    expected = summary(*counted(labels, guesses, 3))
    assert found["accuracy"] == pytest.approx(np.mean(guesses == labels))
    assert found["macro_f1"] == expected.pop("macro_f1")
    assert found["classes"] == expected


NUMBERS = itertools.count()


def examples(*counts):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return Examples([f"text {next(NUMBERS)}" for _ in labels], labels)


def told(training, validation, test, names, words=5):
    parts = {"training": training, "validation": validation, "test": test}
    return "\n".join(warnings(parts, names, words))


def test_sets_that_say_little_are_warned_of_and_others_are_not():
    plenty, others = examples(200, 200), examples(200, 200)
    assert told(plenty, plenty, others, ["a", "b"]) == ""
    four = Examples(others.texts[4:] + plenty.texts[:4], others.labels)
    assert told(plenty, plenty, four, ["a", "b"]) == ""
    five = Examples(others.texts[5:] + plenty.texts[:5], others.labels)
    assert told(plenty, plenty, five, ["a", "b"]).startswith("5 of 400 test texts stand among")
    rare = told(examples(318, 11, 1), plenty, plenty, ["a", "b", "c"])
    assert rare.startswith(
        "1 of 3 classes has fewer than 10 training texts (c): it will hardly be found"
    )
    tiny = told(examples(3, 3), examples(1), examples(2, 1), ["a", "b"])
    for part in ("2 of 2 classes have", "1 validation text chooses", "3 test texts: one more"):
        assert part in tiny
    alone = Examples(["a text"], [0])
    assert "1 test text: one more right or wrong is 100.0% of" in told(plenty, plenty, alone, "ab")
    assert "1 of 1 test text stands among" in told(alone, plenty, alone, ["a", "b"])
    assert "lower --min-count" in told(plenty, plenty, others, ["a", "b"], words=0)


def test_many_classes_are_shown_by_the_smallest(capsys):
    counts = np.random.default_rng(0).permutation(np.arange(1, 61))
    names = [f"class {i}" for i in range(60)]
    class_report.print_counts({"training": examples(*counts)}, names)
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[-1]) for line in lines[1:-1]] == list(range(1, 21))
    assert lines[-1] == "the 20 smallest of 60 classes"


def test_a_run_says_counts_recalls_and_chance_and_stays_within_80_columns(tmp_path, capsys):
    rows = ["common,a common text about nothing much"] * 318
    rows += ["seldom,a seldom seen text"] * 11 + ["once,here once"]
    (tmp_path / "own.csv").write_text("kind,words\n" + "\n".join(rows) + "\n")
    columns = ["--text-column", "words", "--label-column", "kind"]
    start = ["--dataset", "own.csv", *columns, "--out", "run"]
    assert classify.main([*start, *MODEL, "--epochs", "1"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80, lines
    table = {line.split()[0]: line.split()[1:] for line in lines}
    # Eighty per cent train, of which a tenth validates; each class is divided for itself.
    assert ["common", "229", "25", "64"] in [line.split() for line in lines]
    assert ["seldom", "8", "1", "2"] in [line.split() for line in lines]
    assert ["once", "1", "0", "0"] in [line.split() for line in lines]
    assert "warning: 2 of 3 classes have fewer than 10 training texts" in out
    assert table["always"][:2] == ["saying", "common"]
    assert f"accuracy {64 / 66:.4f}" in lines[lines.index(" ".join(["always", *table["always"]]))]
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["kind"] == "test"
    assert record["chance_accuracy"] == 64 / 66
    assert len(record["recall"]) == 3
    assert record["recall"][1] is None or record["recall"][1] <= 1
    assert "ended at the bound of 1 epoch (--epochs)" in out


def test_a_run_that_patience_ended_says_so(tmp_path, capsys):
    rows = [f"{'good' if i % 2 else 'bad'},a {'warm' if i % 2 else 'cold'} text" for i in range(80)]
    (tmp_path / "own.csv").write_text("label,text\n" + "\n".join(rows) + "\n")
    quick = [*MODEL, "--learning-rate", "0.1", "--average-decay", "0", "--epochs", "30"]
    assert classify.main(["--dataset", "own.csv", "--out", "run", *quick, "--patience", "2"]) == 0
    out = capsys.readouterr().out
    assert "validation did not rise for 2 epochs" in out
    assert "ended at the bound" not in out
