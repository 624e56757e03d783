"""The list of faults fits the code: each can still be made, and its tests are there."""

from pathlib import Path

import pytest
from mutations import FAULTS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file}: {fault.instead[:40]}")
def test_a_fault_can_be_made_and_its_tests_are_there(fault):
    source = (ROOT / "rnnjax" / fault.file).read_text("utf-8")
    assert source.count(fault.text) == 1
    compile(source.replace(fault.text, fault.instead), fault.file, "exec")
    for test in fault.tests:
        file, _, name = test.partition("::")
        found = (ROOT / "tests" / file).read_text("utf-8")
        assert f"def {name.split('[')[0]}(" in found if name else found


def test_there_are_enough_of_them_in_every_room():
    assert len(FAULTS) >= 38
    rooms = {fault.file.split("/")[0] for fault in FAULTS}
    assert rooms >= {"engine", "masking.py", "segments.py", "cells", "layers", "transforms"}
    assert rooms >= {"training", "metrics", "data", "models"}
