"""Whole epochs beside PyTorch and Keras: the same classifier in each, on the same texts."""

import json
import random

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: no epoch to compare with")
pytest.importorskip("keras", reason="keras is not installed: no epoch to compare with")

from experiments.epochs import command  # noqa: E402
from experiments.epochs.ours import Ours, make_batches  # noqa: E402
from experiments.epochs.pytorch import Torch, collate  # noqa: E402
from experiments.epochs.task import Settings, make_task  # noqa: E402
from rnnjax.data import DataError  # noqa: E402


def sentence(chance, label):
    words = ["the", "film", "is", "a", "one"] * chance.randint(1, 3)
    words.insert(chance.randrange(len(words)), "good" if label else "bad")
    return " ".join(words)


@pytest.fixture(scope="module")
def csv_path(tmp_path_factory):
    chance, path = random.Random(0), tmp_path_factory.mktemp("data") / "own.csv"
    rows = [f"{sentence(chance, i % 2)},{i % 2}" for i in range(60)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


SIZES = {"embedding_size": 4, "hidden_size": 3, "batch_size": 8, "buckets": 1}
OPTIONS = [word for name, n in SIZES.items() for word in (f"--{name.replace('_', '-')}", str(n))]


def test_the_table_has_a_row_for_each_library_and_each_epoch_is_recorded(
    csv_path, tmp_path, capsys, monkeypatch
):
    rows = []
    monkeypatch.setattr(command, "print_table", rows.extend)
    arguments = ["--dataset", str(csv_path), "--epochs", "2", "--out", str(tmp_path / "run")]
    with jax.numpy_rank_promotion("allow"):  # Keras adds its biases so
        assert command.main([*arguments, *OPTIONS]) == 0
    names = ["rnnjax, bucketed", "rnnjax, padded", "PyTorch, packed", "Keras (JAX), bucketed"]
    *turns, about, _ = capsys.readouterr().out.splitlines()
    assert [row["library"] for row in rows] == names
    assert "tokens; median (least-most) of 2 epochs" in about
    assert [turn.split(", ", 1)[1].rsplit(":", 1)[0] for turn in turns] == [*names, *names[::-1]]
    lines = (tmp_path / "run" / "timings.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["of"] for record in records] == [*names, *names[::-1]]
    assert all(0 <= record["accuracy"] <= 1 for record in records)


def test_every_library_reads_every_text_once_an_epoch(csv_path):
    task = make_task(Settings(dataset=str(csv_path), **SIZES))
    ours = Ours(task, "rnnjax", make_batches(task, 2))
    tokens = sum(int(batch.lengths.sum()) for batch in ours.batches(0))
    assert (
        tokens == task.tokens == sum(int(lengths.sum()) for _, lengths, _ in Torch(task).batches(0))
    )


def test_rnnjax_and_pytorch_learn_alike_from_the_same_batches(csv_path):
    task = make_task(Settings(dataset=str(csv_path), **SIZES))
    ours, theirs = Ours(task, "rnnjax", make_batches(task, 1)), Torch(task)
    plan = list(ours.batches(0))
    # Of its two biases only the sum acts; ours is one.
    for name, parameter in theirs.net.rnn.named_parameters():
        parameter.requires_grad_("bias_hh" not in name)

    def rows(n):
        for batch in plan:
            real = np.asarray(batch.weights) > 0
            parts = (batch.tokens, batch.lengths, batch.labels)
            tokens, lengths, labels = (np.asarray(part)[real] for part in parts)
            cut = [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
            yield collate_rows(cut, labels.tolist())

    theirs.batches = rows
    assert ours.epoch(0) == pytest.approx(theirs.epoch(0))
    batch = plan[0]
    np.testing.assert_allclose(ours.logits(batch), theirs.logits(batch), atol=1e-4)


def collate_rows(ids, labels):
    return collate([(torch.tensor(row), label) for row, label in zip(ids, labels, strict=True)])


def test_a_library_that_answers_otherwise_is_not_timed(csv_path):
    task = make_task(Settings(dataset=str(csv_path), **SIZES))
    ours, theirs = Ours(task, "rnnjax", make_batches(task, 1)), Torch(task)
    theirs.net.fc.bias.data += 1.0
    with pytest.raises(
        DataError, match=r"PyTorch, packed must give the logits of .*, got them off by 1"
    ):
        command.require_same(next(make_batches(task, 1).epoch(0)), [ours, theirs])


def test_no_epoch_is_refused(csv_path, capsys):
    assert command.main(["--dataset", str(csv_path), "--epochs", "0"]) == 2
    assert "--epochs must be a whole number from 1 up, got 0" in capsys.readouterr().err
