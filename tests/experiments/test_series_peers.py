"""What other libraries make of series with labels."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.measurements import series_peers
from experiments.recognize.model import Known, build_network
from experiments.recognize.series import read_series
from experiments.recognize.settings import Settings as Recognize
from rnnjax.data import DataError


@pytest.mark.full
# What numba says of MiniRocket in aeon, where both are installed.
@pytest.mark.filterwarnings("ignore:.*unsafe cast from uint64 to int64")
def test_every_method_learns_series_that_rise_or_fall(tmp_path):
    path = tmp_path / "own.csv"
    lines = ["series,step,height,label"]
    for i in range(40):
        slope = 1 if i % 2 else -1
        lines += [f"{i},{step},{slope * (step + 1)},{slope}" for step in range(10 + i % 3)]
    path.write_text("\n".join(lines))
    network = Recognize(
        dataset=str(path), hidden_size=4, epochs=6, buckets=1, noise=0.0, dropout=0.0,
        batch_size=8, learning_rate=0.1,
    )  # fmt: skip
    rows = series_peers.measure(series_peers.Settings(network, seeds=1))
    assert rows[0]["method"].startswith("rnnjax ")
    assert [row["right"] for row in rows] == ["1.0000"] * len(rows)


@pytest.mark.full
@pytest.mark.parametrize("pooling", ["places", "mean"])
def test_the_network_in_torch_drops_what_ours_drops(pooling):
    """One value, of which come two features, each dropped or doubled: 4 kinds of logits.

    Where the value itself is dropped or doubled, too, they are others.
    """
    torch = pytest.importorskip("torch")
    from rnnjax.interop.torch import export_weights

    settings = Recognize(pooling=pooling, hidden_size=1, dropout=0.5)
    known = Known(["no", "yes"], ["x"], [0.0], [1.0], longest=1)
    xs, lengths = np.full((400, 1, 1), 0.3, np.float32), np.ones(400, int)
    ours = build_network(settings, known)
    params = ours.init(jax.random.key(0))
    if pooling == "places":
        encoder, w, bias = params
    else:
        encoder, (w, bias) = params.encoder, params.head
    theirs = series_peers.torch_network(settings, known)
    theirs.layer.load_state_dict(
        {name: torch.tensor(array) for name, array in export_weights("gru", encoder).items()}
    )
    theirs.head.load_state_dict(
        {"weight": torch.tensor(np.array(w).T), "bias": torch.tensor(np.array(bias))}
    )

    def theirs_of(network):
        with torch.no_grad():
            return network(torch.tensor(xs), torch.tensor(lengths)).numpy()

    def found(logits):
        return np.unique(np.round(np.asarray(logits, float), 5), axis=0)

    drawn = jax.jit(ours.apply)(params, xs, jnp.asarray(lengths), jax.random.key(1))
    torch.manual_seed(0)
    assert len(found(drawn)) == 4
    np.testing.assert_allclose(found(theirs_of(theirs.train())), found(drawn), atol=2e-5)
    np.testing.assert_allclose(
        theirs_of(theirs.eval()), jax.jit(ours.apply)(params, xs, lengths), atol=1e-6
    )


def test_every_seed_of_ours_learns_from_the_series_that_the_others_have(monkeypatch):
    seen = []

    def train(settings, series):
        seen.append((settings.seed, *(part.classes for part in series.parts)))
        return SimpleNamespace(test={"accuracy": 0.5})

    monkeypatch.setattr(series_peers.command, "train", train)
    monkeypatch.setattr(series_peers, "takes_part", lambda *_: False)
    network = Recognize(series=30, seed=3)
    (row,) = series_peers.measure(series_peers.Settings(network, seeds=2))
    classes = [part.classes for part in read_series(network).parts]
    assert seen == [(3, *classes), (4, *classes)]
    assert row["right"] == "0.5000 (0.5000 to 0.5000)"


def test_a_method_that_fails_is_a_row_and_the_next_one_runs(monkeypatch):
    def fail(*_):
        raise ValueError("no such\nlength")

    found = {"broken": (True, fail), "sound": (True, lambda train, test, seed: seed / 4)}
    monkeypatch.setattr(series_peers, "methods", lambda *_: found)
    settings = series_peers.Settings(Recognize(series=30), seeds=2)
    broken, sound = series_peers.measure(settings)
    assert broken["right"] == "failed: ValueError: no such length"
    assert sound["right"] == "0.1250 (0.0000 to 0.2500)"

    def refuse(*_):
        raise DataError("--noise must be another")

    found["broken"] = (True, refuse)
    with pytest.raises(DataError, match="--noise must be another"):
        series_peers.measure(settings)


def test_what_is_short_is_padded_behind():
    part = series_peers.Part([np.ones((2, 2)), np.full((3, 2), 5.0)], [0, 1])
    assert series_peers._flat(part, 4).tolist() == [[1, 1, 1, 1, 0, 0, 0, 0], [5] * 6 + [0, 0]]


def test_means_stand_beside_their_range():
    assert series_peers.spread_of([0.5], ".2f") == "0.50"
    assert series_peers.spread_of([0.5, 0.7], ".2f") == "0.60 (0.50 to 0.70)"
