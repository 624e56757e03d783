"""The table of memory against time: every row is there, and chunks take less memory."""

import json

import pytest

from experiments.measurements import remat


@pytest.mark.full
def test_the_table_has_a_row_for_each_choice_and_chunks_take_less(tmp_path, capsys):
    out = tmp_path / "rows.json"
    small = "--times 512 --remats never 8 --batch 8 --size 32 --repeats 1"
    remat.main([*small.split(), "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [(row["T"], row["remat"]) for row in rows] == [(512, "never"), (512, "8")]
    # What the compiler sets aside is a count, the same on every run.
    assert rows[1]["compiler_mib"] < rows[0]["compiler_mib"] / 2
    assert all(row["median_ms"] > 0 for row in rows)
    assert capsys.readouterr().out.count("\n") == 4


def test_the_words_of_the_command_line_are_values_of_remat():
    words = ["never", "sqrt", "8", "None"]
    assert [remat.parse_remat(word) for word in words] == ["never", "sqrt", 8, None]


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path, capsys):
    there = tmp_path / "rows.json"
    there.write_text("kept")
    for path in (there, tmp_path / "nowhere" / "rows.json"):
        assert remat.main(["--out", str(path)]) == 2
        assert "out must be a new file" in capsys.readouterr().err
    assert there.read_text() == "kept"


def test_a_remat_that_is_none_is_refused_before_anything_is_measured(capsys):
    assert remat.main(["--remats", "never", "often"]) == 2
    assert "one of never, step, sqrt, None or a number of steps" in capsys.readouterr().err
