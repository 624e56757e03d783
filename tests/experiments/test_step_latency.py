"""The measurement of one step: all compute the same before any time is taken."""

import numpy as np
import pytest

from experiments.measurements import step_latency


@pytest.mark.full
def test_a_row_for_each_cell_size_and_batch(capsys):
    for package in ("torch", "flax"):
        pytest.importorskip(package)
    sizes = ["--hidden-sizes", "3", "--batch-sizes", "2", "--rounds", "1", "--milliseconds", "1"]
    assert step_latency.main(sizes) == 0
    out = capsys.readouterr().out
    assert "LSTM, 3 units, batch 2" in out
    assert "GRU, 3 units, batch 2" in out


def test_other_numbers_and_other_bits_are_not_timed():
    problem = step_latency.make_problem("gru", 3, 2)
    same = step_latency.Stepper(
        lambda carry, x: problem.layer.step(problem.params, carry, x), np.asarray, lambda: None
    )
    step_latency.check(problem, {"step": same})

    def off(by):
        def step(carry, x):
            carry, y = problem.layer.step(problem.params, carry, x)
            return carry, y + by

        return same._replace(step=step)

    step_latency.check(problem, {"other": off(1e-6)})
    for name, by in (("other", 1e-2), ("step", 1e-6)):
        with pytest.raises(AssertionError):
            step_latency.check(problem, {name: off(by)})


def test_a_size_that_cannot_be_is_refused_by_name(capsys):
    assert step_latency.main(["--batch-sizes", "0"]) == 2
    assert "--batch-sizes must be" in capsys.readouterr().err
