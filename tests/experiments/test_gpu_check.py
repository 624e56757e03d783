"""The program that checks the kernels on a GPU, as far as it goes without one."""

import json

import pytest

from experiments.gpu_check import __main__ as program
from experiments.gpu_check.speed import Size

MEASURED = program.Path(program.__file__).parent / "measured"


def test_without_a_gpu_it_says_that_nothing_was_checked(tmp_path, capsys):
    assert program.main([str(tmp_path / "out")]) == 1
    assert "Nothing was checked" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted(MEASURED.glob("*.json")), ids=lambda path: path.stem)
def test_the_tables_are_what_was_recorded(path):
    report = json.loads(path.read_text("utf-8"))
    assert program._markdown(report) == path.with_suffix(".md").read_text("utf-8")


def test_a_race_that_would_begin_too_late_is_left_out_and_said_to_be(monkeypatch):
    def must_not_run(*args):
        raise AssertionError("it ran")

    monkeypatch.setattr(program.speed, "race", must_not_run)
    monkeypatch.setattr(program.time, "time", lambda: 1000.0)
    prepared = Size(1, 1, 1, 1), True, [], []
    found = program._raced("lstm training", prepared, 800.0)
    assert found["error"] == "TimeoutError: left out, 200 seconds had passed"
    report = {"device": "d", "date": "d", "seconds": 1, "versions": {}, "values": []}
    assert "left out" in program._markdown(report | {"speed": [found]})
