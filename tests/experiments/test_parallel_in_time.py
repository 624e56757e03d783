"""The measurement of runs in parallel over time, on runs too small to be worth measuring."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rnnjax.newton

from experiments.measurements.parallel_in_time import (
    Case,
    Settings,
    interleaved,
    jacobian_gib,
    main,
    measure,
)

SMALL = ["--hidden-sizes", "3", "--steps", "9", "--batches", "2", "--rounds", "3"]
QUICK = ["--seconds", "1e-9"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a small run of one linear cell and one that is not."""
    folder = tmp_path_factory.mktemp("parallel") / "run"
    cells = ["--cells", "min_gru", "gru"]
    assert main([*cells, *SMALL, *QUICK, "--out", str(folder)]) == 0
    return folder


def records(folder):
    return [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()]


def test_every_way_to_run_every_cell_is_a_record(run):
    found = [(r["cell"], r["run"]) for r in records(run)]
    assert found == [
        ("min_gru", "scan"),
        ("min_gru", "associative"),
        ("gru", "scan"),
        ("gru", "newton, full"),
        ("gru", "newton, diagonal"),
    ]
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert settings["steps"] == [9]


def test_a_ratio_is_the_median_of_the_loop_over_its_own(run):
    for cell in ("min_gru", "gru"):
        loop, *others = [r for r in records(run) if r["cell"] == cell]
        for kind in ("forward", "gradient"):
            assert loop[f"{kind}_times_faster"] == 1
            for record in others:
                spread = record[f"{kind}_ms"]
                assert 0 < spread["least"] <= spread["median"] <= spread["most"]
                ratio = loop[f"{kind}_ms"]["median"] / spread["median"]
                assert record[f"{kind}_times_faster"] == pytest.approx(ratio)


def test_errors_and_the_report_of_newton_are_recorded(run):
    for record in records(run):
        assert 0 <= record["error"] < 1e-5
        assert 0 <= record["gradient_error"] < 1e-4
        if record["run"].startswith("newton"):
            assert record["converged"]
            assert 0 < record["iterations"] <= 10
            assert 0 <= record["residual"] < 2e-6
        else:
            assert "iterations" not in record


def test_an_error_is_the_distance_to_the_loop(monkeypatch):
    """With Newton stopped after its first step, against the two runs made here."""
    from experiments.measurements import parallel_in_time

    def stopped(*args, **options):
        return rnnjax.newton.unroll_newton(*args, max_iterations=1, **options)

    monkeypatch.setattr(parallel_in_time, "unroll_newton", stopped)
    settings = Settings(rounds=1, seconds=1e-9)
    _, full, _ = measure(Case("gru", 3, 9, 2), settings)
    weights_key, inputs_key = jax.random.split(jax.random.key(0))
    cell = rnnjax.gru(3)
    params = cell.init(weights_key, settings.input_size)
    xs = jax.random.normal(inputs_key, (2, 9, settings.input_size))
    difference = stopped(cell, params, xs)[1] - rnnjax.unroll(cell, params, xs)[1]
    assert not full["converged"]
    assert full["iterations"] == 1
    np.testing.assert_allclose(full["error"], jnp.abs(difference).max(), rtol=1e-3)
    assert full["error"] > 1e-4
    assert "NOT CONVERGED in 1 iterations" in parallel_in_time.show(full)


def test_runs_take_turns():
    calls = []
    spreads = interleaved(
        [lambda k=k: calls.append(k) for k in "ab"], Settings(rounds=3, seconds=1e-12)
    )
    assert calls == [*"ab", *"ababab"]  # once to see how long they take, then the rounds
    assert len(spreads) == 2


def test_jacobians_too_large_are_left_out_and_named(tmp_path, capsys):
    assert jacobian_gib(Case("lstm", 16, 1024, 4)) == 1024 * 4 * 32**2 * 4 / 2**30
    arguments = ["--cells", "lstm", *SMALL, *QUICK, "--memory", "1e-9", "--out", f"{tmp_path}/run"]
    assert main(arguments) == 0
    assert [r["run"] for r in records(tmp_path / "run")] == ["scan"]
    assert "Newton left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--steps", "0"], "steps: expected positive"), (["--rounds", "0"], "rounds and seconds")],
)
def test_what_cannot_be_measured_is_named(arguments, message, tmp_path, capsys):
    assert main([*arguments, "--out", f"{tmp_path}/run"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
