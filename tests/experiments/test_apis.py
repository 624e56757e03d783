"""The apis experiment from the command line, on sentences made here."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest

from experiments.apis.command import compare, largest_difference, main
from experiments.apis.settings import Settings

SMALL = {"hidden_size": 6, "embedding_size": 5, "buckets": 1, "batch_size": 16, "epochs": 3}


def write_rows(path, count, seed):
    chance = random.Random(seed)
    rows = []
    for k in range(count):
        words = ["the", "film", "is", "a", "one"] * chance.randint(1, 2)
        words.insert(chance.randrange(len(words)), ("cold", "warm")[k % 2])
        rows.append(f"{' '.join(words)},{k % 2}")
    path.write_text("\n".join(["text,label", *rows]) + "\n")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "train.csv", 90, seed=0)
    write_rows(folder / "test.csv", 20, seed=1)
    return folder


@pytest.mark.full
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_the_three_interfaces_have_one_loss_curve(cell, data_dir, tmp_path, capsys):
    settings = Settings(dataset="local", data_dir=data_dir, cell=cell, learning_rate=0.05, **SMALL)
    outcomes = compare(settings, tmp_path)
    assert list(outcomes) == ["functional", "nnx", "linen"]
    for name in ("nnx", "linen"):
        np.testing.assert_allclose(
            outcomes[name].losses, outcomes["functional"].losses, rtol=0, atol=2e-6
        )
    losses = outcomes["functional"].losses
    assert len(losses) == 3 * 6
    assert losses[-3:].mean() < 0.8 * losses[:3].mean()
    assert len({outcome.test_accuracy for outcome in outcomes.values()}) == 1
    printed = capsys.readouterr().out
    assert f"at one of 18 steps: {largest_difference(outcomes):.2e}" in printed
    for name, outcome in outcomes.items():
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        recorded = [record["loss"] for record in records if record["kind"] == "step"]
        np.testing.assert_allclose(recorded, outcome.losses, rtol=1e-12)
        assert records[-1] == {
            "kind": "test",
            "loss": records[-1]["loss"],
            "accuracy": outcome.test_accuracy,
        }
        assert (tmp_path / name / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_largest_difference_is_that_of_the_worst_step():
    from experiments.apis.command import Outcome

    curves = {"a": [1.0, 0.5, 0.25], "b": [1.0, 0.75, 0.25], "c": [1.0, 0.5, 0.375]}
    outcomes = {name: Outcome(np.array(losses), 0.0, 0.0) for name, losses in curves.items()}
    assert largest_difference(outcomes) == 0.25


def test_one_interface_alone_from_the_command_line(data_dir, tmp_path, capsys):
    given = ["--dataset", "local", "--data-dir", str(data_dir), "--out", str(tmp_path)]
    small = ["--hidden-size", "4", "--embedding-size", "3", "--buckets", "1", "--epochs", "1"]
    assert main([*given, *small, "--api", "linen"]) == 0
    printed = capsys.readouterr().out
    assert "linen" in printed
    assert "difference" not in printed
    assert [path.name for path in tmp_path.iterdir()] == ["linen"]
    assert main([*given, *small, "--api", "linen"]) == 2
    assert "must be empty" in capsys.readouterr().err


def test_wrong_arguments_are_named(capsys):
    assert main(["--dataset", "tomatoes"]) == 2
    assert "rotten_tomatoes" in capsys.readouterr().err
    assert main(["--epochs", "0"]) == 2
    assert "epochs" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["--api", "haiku"])
    assert stopped.value.code == 2
    assert "--api" in capsys.readouterr().err


def test_without_flax_it_is_asked_for_by_name_before_anything_is_trained(tmp_path):
    hidden = "import sys; sys.modules['flax'] = None"
    code = f"{hidden}\nfrom experiments.apis.command import main\nsys.exit(main())"
    given = ["--out", tmp_path / "run"]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: rnnjax.modules needs the package flax: pip install flax")
    assert not (tmp_path / "run").exists()
