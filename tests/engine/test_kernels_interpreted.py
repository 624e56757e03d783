"""The kernels themselves on a CPU, as Pallas interprets them: their copies, barriers, products."""

import pytest
from processes import TESTS, complete
from test_kernels import NEW_JAX

pytestmark = [NEW_JAX, pytest.mark.full]
PROGRAM = TESTS / "engine" / "interpreted_kernels.py"
# Every CTA holds a thread of XLA's pool while it waits for the others; these are more than any
# cluster has, and how many there are is fixed when JAX starts. Both ways to compute are optimised:
# then most of their numbers are equal to the last bit.
CHANGES = {"NPROC": "64", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}


@pytest.mark.parametrize(
    "rows",
    [
        ("16 bits", "32 bits, all options", "a ring"),
        ("resets, pieces read alone", "rounds", "pieces in pairs"),
    ],
    ids=" ".join,
)
def test_the_kernels_are_their_steps_tile_by_tile_and_nothing_races(rows):
    done = complete(PROGRAM, *rows, timeout=400, **CHANGES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == list(rows)


def test_a_wait_that_is_left_out_is_noticed():
    forgotten = "import interpreted_kernels as k; k.check('16 bits', wait=lambda barrier: None)"
    done = complete("-c", forgotten, timeout=400, **CHANGES)
    assert done.returncode != 0
    assert "RACE" in done.stderr.upper()
