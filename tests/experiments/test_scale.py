"""What the table of scale says: bytes by hand, and one reduction a step for many devices."""

import json

import pytest
from processes import run

from experiments.measurements.scale import SHAPES, Program, main, ring_bytes, row, sent


def test_bytes_are_those_of_every_operation_that_sends():
    text = """
  %a = (f32[8,4]{1,0}, /*index=1*/f32[], pred[3]{0}) all-reduce(%b, %c, %d), to_apply=%add
  %e = bf16[16]{0} all-gather(%f), dimensions={0}
  %g = f32[] all-reduce-start(%h), to_apply=%add
  %i = f32[99]{0} add(%j, %k)
"""
    assert sent(text) == (8 * 4 * 4 + 4 + 3 + 4, 32, 1)


def test_around_a_ring_each_device_sends_all_but_its_own_part_twice():
    program = Program(1000, 0, 1, 0, 0)
    assert ring_bytes(program, 2) == 1000  # half of it to the other one, and the other half summed
    assert ring_bytes(program, 8) == 1750


def test_the_steps_at_which_sending_takes_as_long_as_computing_do_not_depend_on_the_sequence():
    program = Program(450_000_000, 0, 1, 0, 0)  # 1.75 ms over NVLink
    shape = SHAPES[1]._replace(step_us=10.0)
    found = row(shape, 8, program)
    assert found["NVLink"].endswith(", 175")
    assert row(shape._replace(steps=175), 8, program)["NVLink"] == "50.0%, 175"
    assert found["8 cards"] == found["1 card"] == ""


def test_a_shape_that_is_not_in_the_table_is_refused(capsys):
    assert main(["--shapes", "9"]) == 2
    assert "--shapes must be 1 or more, each a whole number from 0 to 4" in capsys.readouterr().err


@pytest.mark.full
def test_a_step_of_many_devices_sends_its_gradients_once_and_nothing_else():
    found = run("-m", "experiments.measurements.scale", "read", "64", "0", devices=64)
    ((reduced, others, reductions, _, _),) = json.loads(found)
    weights = 128 * 512 + 128 * 512 + 512
    assert 0 <= reduced - 4 * weights < 200  # and a few single numbers
    assert (others, reductions) == (0, 1)
