"""The program that recognizes series: noise, fillers, shares, and series that are too long."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.recognize import command
from experiments.recognize.model import Known, Network, build_network, label_loss
from experiments.recognize.series import make_strokes, read_series
from experiments.recognize.settings import Settings
from experiments.running.loss_fitting import Fitted
from experiments.running.trained import WEIGHTS
from rnnjax.data import Batch
from rnnjax.weights import save_weights

pytestmark = pytest.mark.usefixtures("quick_compile")

VALUES = np.random.default_rng(0).normal(size=(50, 40, 2)).astype(np.float32)


def loss_of(logits, noise, key, weights):
    """The loss where the network gives these logits, and what it reads."""
    read = []

    def apply(params, xs, lengths, key=None):
        read.append(np.asarray(xs))
        return jnp.asarray(logits)

    count = len(logits)
    batch = Batch(VALUES[:count], np.full(count, 40), np.arange(count) % 2, weights)
    return label_loss(Network(None, apply), noise)(None, batch, key), read[0]


def test_values_are_read_under_noise_in_training_alone():
    logits, weights = np.zeros((50, 2), np.float32), np.ones(50, np.float32)
    for noise in (0.1, 0.5):
        _, read = loss_of(logits, noise, jax.random.key(0), weights)
        assert (read - VALUES).std() == pytest.approx(noise, rel=0.05)
        assert (read - VALUES).mean() == pytest.approx(0, abs=0.05 * noise)
    _, read = loss_of(logits, 0.5, None, weights)
    np.testing.assert_array_equal(read, VALUES)


def test_rows_that_fill_a_batch_up_do_not_count():
    logits = np.log(np.array([[1, 3], [1, 3], [9, 1]], np.float32))  # for the labels 0, 1, 0
    (loss, metrics), _ = loss_of(logits, 0.0, None, np.float32([1, 1, 0]))
    expected = (np.log(4) + np.log(4 / 3)) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    for name, total in (("loss", 2 * expected), ("accuracy", 1)):
        value, count = metrics[name]
        assert (float(value), float(count)) == (pytest.approx(total, rel=1e-5), 2)


@pytest.mark.parametrize(("share", "counts"), [(0.2, [32, 8, 10]), (0.5, [20, 20, 10])])
def test_the_share_that_validates_is_the_one_that_is_given(share, counts):
    series = read_series(Settings(series=50, validation=share))
    assert [len(part.rows) for part in series.parts] == counts


@pytest.fixture
def untrained(tmp_path):
    """The folder of a run whose weights are the first ones, which knows 3 steps at most."""
    settings = Settings(hidden_size=2, pooling="places")
    known = Known(["down", "up"], ["x"], [0.0], [1.0], 3)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"settings": settings.written()}))
    (folder / command.KNOWN).write_text(json.dumps(known._asdict()))
    save_weights(folder / WEIGHTS, build_network(settings, known).init(jax.random.key(0)))
    return folder


def test_a_series_beyond_the_last_place_is_refused_and_one_up_to_it_is_not(
    untrained, tmp_path, capsys
):
    path = tmp_path / "new.csv"
    for steps, code in ((3, 0), (4, 2)):
        rows = [
            f"{name},{step},1\n" for name, end in (("a", 2), ("b", steps)) for step in range(end)
        ]
        path.write_text("".join(["series,step,x\n", *rows]))
        assert command.main(["predict", str(untrained), str(path)]) == code
        said = capsys.readouterr()
        assert [line.split("\t")[0] for line in said.out.splitlines()] == ["a", "b"][: 2 - code]
    assert "must have series of 3 steps at most" in " ".join(said.err.split())
    assert "got one of 4" in " ".join(said.err.split())


def test_the_figures_that_are_printed_are_those_of_their_parts(capsys):
    series = read_series(Settings(series=50))
    labels = make_strokes(np.random.default_rng((0, 50)), 50).labels
    assert sorted(labels) == sorted(series.labels[i] for part in series.parts for i in part.classes)
    figures = {"accuracy": 0.25, "loss": 1.5}, {"accuracy": 0.75, "loss": 2.5}
    command._report(series, Fitted(None, 1, *figures), 1.0, "run")
    said = capsys.readouterr().out
    assert "validation: 0.2500 of the labels right" in said
    assert "test: 0.7500 of the labels right, 2.5000 nats" in said
    usual = np.bincount(series.train.classes).argmax()
    chance = np.mean(np.array(series.test.classes) == usual)
    assert f"with the most frequent label: {chance:.4f}" in said
