"""The growth of memory and time: every size has its number, and powers are found."""

import json

import pytest

from experiments.measurements import scaling

TINY = "--cell vanilla --size 8 --batch 2 --steps 6 --memory-steps 64 256 --times 4 6 8"
TINY += " --batches 1 2 3 --layers 1 2 3 --remats never sqrt --rounds 2 --seconds 0.0001"


def test_memory_is_counted_and_time_is_measured_at_every_size(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scaling, "flax_bytes", lambda _, steps: 2**20 * steps)
    assert scaling.main([*TINY.split(), "--out", str(tmp_path / "run")]) == 0
    found = json.loads((tmp_path / "run" / "scaling.json").read_text())
    sizes = {name: [p["size"] for p in points] for name, points in found["time"].items()}
    assert sizes == {"steps": [4, 6, 8], "batch": [1, 2, 3], "layers": [1, 2, 3]}
    memory = {(row["steps"], row["what"]): row["bytes"] for row in found["memory"]}
    # What the compiler counts: all gates grow with the steps, chunks with their root.
    never, root = (
        memory[256, f"rnnjax, remat={remat}"] - memory[64, f"rnnjax, remat={remat}"]
        for remat in ("never", "sqrt")
    )
    assert root < never
    assert (tmp_path / "run" / "scaling.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "rnnjax, remat=sqrt, MiB" in printed
    assert "what grows" in printed


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_power_of_growth_is_found(exponent):
    points = [{"size": n, "seconds": {"median": 3 * n**exponent}} for n in (1, 2, 4, 8)]
    assert scaling.power(points) == exponent


def test_sizes_that_cannot_be_are_refused(capsys, tmp_path):
    assert scaling.main(["--times", "0", "--out", str(tmp_path / "run")]) == 2
    assert (
        "--times must be 3 or more, each a whole number from 1 up, got (0,)"
        in capsys.readouterr().err
    )
    assert scaling.main(["--layers", "1", "2", "--out", str(tmp_path / "run")]) == 2
    assert (
        "--layers must be 3 or more, each a whole number from 1 up, got (1, 2)"
        in capsys.readouterr().err
    )
