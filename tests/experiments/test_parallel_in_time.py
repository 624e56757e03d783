"""The measurement of runs in parallel over time, on runs too small to be worth measuring."""

import json

import numpy as np
import pytest

import rnnjax
from experiments.measurements import parallel_in_time
from experiments.measurements.parallel_in_time import Case, Settings, main, measure

SMALL = ["--hidden-sizes", "3", "--steps", "9", "--batches", "2", "--rounds", "3"]
QUICK = ["--seconds", "1e-9"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a small run of two cells."""
    folder = tmp_path_factory.mktemp("parallel") / "run"
    assert main(["--cells", "min_gru", "lru", *SMALL, *QUICK, "--out", str(folder)]) == 0
    return folder


def records(folder):
    return [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()]


@pytest.mark.full
def test_every_way_to_run_every_cell_is_a_record(run):
    found = [(r["cell"], r["run"]) for r in records(run)]
    ways = ("scan", "associative")
    assert found == [(cell, way) for cell in ("min_gru", "lru") for way in ways]
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert settings["steps"] == [9]


def test_every_cell_to_choose_has_another_way_than_the_loop():
    for make in parallel_in_time.CELLS.values():
        cell = make(3)
        other = {"associative": cell.linear, "chunked": cell.chunk}[parallel_in_time.ways(cell)[1]]
        assert other is not None


def test_a_ratio_is_taken_round_by_round(run):
    for record in records(run):
        for kind in ("forward", "gradient"):
            spread = record[f"{kind}_ms"]
            assert 0 < spread["least"] <= spread["median"] <= spread["most"]
            if record["run"] == "scan":
                assert record[f"{kind}_times_faster"] == 1


def test_errors_are_recorded(run):
    for record in records(run):
        assert 0 <= record["error"] < 1e-5
        assert 0 <= record["gradient_error"] < 1e-4


def test_an_error_is_the_distance_to_the_loop(monkeypatch):
    """With an associative run whose outputs are .25 too large."""
    unroll = rnnjax.unroll

    def wrong(*args, implementation):
        carry, ys = unroll(*args, implementation=implementation)
        return carry, ys + (0.25 if implementation == "associative" else 0)

    monkeypatch.setattr(rnnjax, "unroll", wrong)
    loop, parallel = measure(Case("min_gru", 3, 9, 2), Settings(rounds=1, seconds=1e-9))
    assert loop["error"] == 0
    np.testing.assert_allclose(parallel["error"], 0.25, rtol=1e-5)
    assert "2e-01" in parallel_in_time.row(parallel)["error of both"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps must be 1 or more, each a whole number from 1 up, got (0,)"),
        (["--rounds", "0"], "--rounds must be a whole number from 1 up, got 0"),
    ],
)
def test_what_cannot_be_measured_is_named(arguments, message, tmp_path, capsys):
    assert main([*arguments, "--out", f"{tmp_path}/run"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
