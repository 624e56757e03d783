"""The measurement of the loss with many words: all three compute one loss before any is timed."""

import pytest

from experiments.measurements import large_vocabulary


@pytest.mark.full
def test_a_row_with_and_one_without_padding(capsys):
    pytest.importorskip("torch")
    sizes = ["--words", "7", "--rows", "5", "--features", "3", "--rounds", "1"]
    assert large_vocabulary.main(sizes) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[-2:]] == [["7", "0%"], ["7", "30%"]]
    assert max(map(len, lines)) <= 80


def test_a_share_that_cannot_be_is_refused_by_name(capsys):
    assert large_vocabulary.main(["--padding", "1"]) == 2
    assert "--padding must be" in capsys.readouterr().err
