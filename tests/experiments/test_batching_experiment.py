"""Bucketed, packed and padded batches: the same training, on more or fewer steps."""

import json
import random

import jax
import numpy as np
import pytest

import rnnjax
from experiments import classify
from experiments.measurements import batching
from experiments.running.classifier_fitting import classification_loss
from experiments.running.text import fit_encoder, make_batches
from rnnjax.data import DataError, Examples

SIZES = ["--hidden-size", "8", "--batch-size", "16"]


def sentence(chance, label):
    words = ["the", "film", "is", "a", "one"] * chance.randint(1, 4)
    words.insert(chance.randrange(len(words)), "good" if label else "bad")
    return " ".join(words)


def examples(count, seed=0):
    chance = random.Random(seed)
    return Examples([sentence(chance, i % 2) for i in range(count)], [i % 2 for i in range(count)])


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("train.csv", 240), ("test.csv", 60)):
        part = examples(count)
        rows = [f"{text},{label}" for text, label in zip(part.texts, part.labels, strict=True)]
        (folder / name).write_text("\n".join(["text,label", *rows]) + "\n")
    return folder


def splits_of(batching, part):
    encode = fit_encoder(
        part.texts,
        tokenizer="basic_english",
        vocabulary_size=50,
        min_count=1,
        max_length=30,
        keep="head",
    )
    options = {"num_classes": 2, "batch_size": 16, "buckets": 2, "seed": 3, "batching": batching}
    return len(encode.vocabulary), make_batches(encode, (part,) * 3, **options)


def test_labels_of_one_class_are_refused():
    part = Examples(["a text", "another"], [0, 0])
    encode = fit_encoder(part.texts, vocabulary_size=9, min_count=1, max_length=5)
    options = {"batch_size": 2, "buckets": 1, "seed": 0}
    with pytest.raises(DataError, match="labels must be of 2 classes or more, got 1"):
        make_batches(encode, (part,) * 3, num_classes=1, **options)


def test_a_packed_batch_has_the_loss_and_the_gradient_of_the_padded_one():
    part = examples(32)
    vocab_size, packed = splits_of("packed", part)
    _, padded = splits_of("padded", part)
    model = rnnjax.classifier(rnnjax.embedding(vocab_size, 3), rnnjax.gru(4), 2, pooling="max")
    params = model.init(jax.random.key(0))
    run = jax.jit(jax.value_and_grad(classification_loss(model, 0.0), has_aux=True))
    for one, two in zip(packed.train.epoch(1), padded.train.epoch(1), strict=True):
        assert one.tokens.size < two.tokens.size
        found, expected = run(params, one, None), run(params, two, None)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected
        )


def test_an_unknown_batching_is_named():
    with pytest.raises(DataError, match="--batching must be one of bucketed, packed, padded, got"):
        splits_of("sorted", examples(4))


@pytest.mark.full
def test_a_classifier_learns_from_packed_batches(data_dir, tmp_path):
    arguments = ["--dataset", "local", "--data-dir", str(data_dir), "--out", str(tmp_path / "run")]
    quick = ["--embedding-size", "8", "--dropout", "0", "--learning-rate", "0.1", "--epochs", "3"]
    quick += ["--cell", "vanilla", "--no-bidirectional"]
    assert classify.main([*arguments, *SIZES, *quick, "--batching", "packed"]) == 0
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["kind"] == "test"
    assert last["accuracy"] == 1.0


@pytest.mark.full
def test_the_table_has_a_row_for_each_kind_of_batches(data_dir, tmp_path, capsys):
    arguments = ["--dataset", "local", "--data-dir", str(data_dir), "--out", str(tmp_path / "run")]
    assert (
        batching.main([*arguments, *SIZES, "--epochs", "2", "--take", "32", "--buckets", "1"]) == 0
    )
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["batching", "padding", "steps", "shapes"]
    assert [row.split()[0] for row in rows] == ["bucketed", "packed", "padded"]
    padding = {row.split()[0]: float(row.split()[1].rstrip("%")) for row in rows}
    assert padding["packed"] < padding["padded"]
    assert last.startswith("median of 2 epochs taken in turns")
    records = (tmp_path / "run" / "timings.jsonl").read_text().splitlines()
    kinds = [(record["batching"], record["n"]) for record in map(json.loads, records)]
    assert kinds == [(kind, n) for n in range(3) for kind in ("bucketed", "packed", "padded")]
    assert batching.main([*arguments, "--epochs", "0"]) == 2
    assert "--epochs must be a whole number from 1 up, got 0" in capsys.readouterr().err
