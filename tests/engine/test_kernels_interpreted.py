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


FORGOTTEN = {
    "a wait for the others": "k.check('16 bits', wait=lambda barrier: None)",
    "that a neighbour still reads what is copied over": (
        "from rnnjax.engine.kernels import _launch\n"
        "plan = _launch.plan_product\n"
        "_launch.plan_product = lambda *sizes: plan(*sizes)._replace(paired=True)\n"
        "k.check('a ring')"
    ),
}


@pytest.mark.parametrize("what", FORGOTTEN)
def test_what_is_forgotten_is_noticed(what):
    program = f"import interpreted_kernels as k\n{FORGOTTEN[what]}"
    done = complete("-c", program, timeout=400, **CHANGES)
    assert done.returncode != 0
    assert "RACE DETECTED" in done.stderr
