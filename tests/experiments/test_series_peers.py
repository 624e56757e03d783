"""What other libraries make of series with labels."""

import numpy as np
import pytest

from experiments.measurements import series_peers
from experiments.recognize.settings import Settings as Recognize


@pytest.mark.full
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


def test_what_is_short_is_padded_behind():
    part = series_peers.Part([np.ones((2, 2)), np.full((3, 2), 5.0)], [0, 1])
    assert series_peers._flat(part, 4).tolist() == [[1, 1, 1, 1, 0, 0, 0, 0], [5] * 6 + [0, 0]]


def test_means_stand_beside_their_range():
    assert series_peers._spread([0.5], ".2f") == "0.50"
    assert series_peers._spread([0.5, 0.7], ".2f") == "0.60 (0.50 to 0.70)"
