"""The measurement of translators: both compute the same before any time is taken."""

import pytest

from experiments.measurements import translation


@pytest.mark.full
def test_a_row_for_training_and_for_each_way_to_translate(monkeypatch):
    pytest.importorskip("torch")
    rows = []
    monkeypatch.setattr(translation, "print_table", rows.extend)
    sizes = ["--hidden-size", "4", "--embedding-size", "3", "--vocab-size", "9", "--length", "3"]
    counts = ["--batch-size", "2", "--sentences", "2", "--beam", "2", "--rounds", "1"]
    assert translation.main([*sizes, *counts]) == 0
    assert [row["what"] for row in rows] == [
        "pairs/s, a training step, many lengths",
        "pairs/s, a training step, one length",
        "pairs/s, a training step, the head alone",
        *(
            f"sentences/s, {name}, {how}"
            for name in ("greedy", "beam 2")
            for how in ("2 at once", "2 at once, the head alone", "one by one")
        ),
    ]


@pytest.mark.parametrize("wrong", ["--beam 0", "--hidden-size 3"])
def test_a_size_that_cannot_be_is_refused_by_name(wrong, capsys):
    assert translation.main(wrong.split()) == 2
    assert f"{wrong.split()[0]} must be" in capsys.readouterr().err
