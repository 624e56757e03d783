"""The measurement of one step: all compute the same before any time is taken."""

import itertools

import numpy as np
import pytest

from experiments.measurements import step_latency


@pytest.mark.full
def test_a_table_for_each_cell_size_and_batch(capsys):
    for package in ("torch", "flax"):
        pytest.importorskip(package)
    sizes = [
        "--hidden-sizes",
        "3",
        "--batch-sizes",
        "2",
        "--rounds",
        "1",
        "--milliseconds",
        "1",
        "--pause",
        "1",
    ]
    assert step_latency.main(sizes) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ["step", "jit(step)", "flax.linen", "flax.nnx", "torch"]
    for cell in ("LSTM, 3 units, batch 2", "GRU, 3 units, batch 2"):
        first = lines.index(cell) + 2
        assert [line.split()[0] for line in lines[first : first + 5]] == names
    assert max(map(len, lines)) <= 80


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


def test_the_clock_stands_still_while_other_work_is_done():
    now = itertools.count()  # every look at the clock is a second later
    pauses = step_latency.Pauses(3.0, lambda: float(next(now)))
    before = pauses.clock()
    pauses.wait()
    assert next(now) > 3
    assert pauses.clock() - before <= 3
    none = step_latency.Pauses(0.0, lambda: float(next(now)))
    before = none.clock()
    none.wait()
    assert none.clock() - before == 1


def test_a_size_that_cannot_be_is_refused_by_name(capsys):
    assert step_latency.main(["--batch-sizes", "0"]) == 2
    assert "--batch-sizes must be" in capsys.readouterr().err
