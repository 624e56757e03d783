"""The measurement of translators: both compute the same before any time is taken."""

import pytest

from experiments.measurements import translation


@pytest.mark.full
def test_a_row_for_training_and_for_each_way_to_translate(capsys):
    pytest.importorskip("torch")
    sizes = ["--hidden-size", "4", "--embedding-size", "3", "--vocab-size", "9", "--length", "3"]
    counts = ["--batch-size", "2", "--sentences", "2", "--beam", "2", "--rounds", "1"]
    assert translation.main([*sizes, *counts]) == 0
    out = capsys.readouterr().out
    for row in (
        "step, many lengths",
        "step, one length",
        "sentences/s, greedy",
        "sentences/s, beam 2",
    ):
        assert row in out
    # Of the step and of both ways to translate many at once; one by one has none.
    assert out.count("one by one") == 2
    assert out.count("the head alone") == 3


def test_a_size_that_cannot_be_is_refused_by_name(capsys):
    assert translation.main(["--beam", "0"]) == 2
    assert "--beam must be" in capsys.readouterr().err
