"""The pictures of the guide are drawn from calls that hold what they show."""

import pytest

from experiments.measurements import guide_pictures


def test_each_sequence_and_segment_of_the_picture_is_what_it_gives_alone(tmp_path):
    ys, mask, resets, distance = guide_pictures.run_batch()
    assert distance < 1e-6
    assert (ys[~mask] == 0).all()
    assert (ys[mask] != 0).all()
    guide_pictures.draw_batch(ys, mask, resets, tmp_path / "ragged_batch.png")
    assert (tmp_path / "ragged_batch.png").stat().st_size > 1000


@pytest.mark.full
def test_the_picture_of_memory_has_what_the_compiler_says(tmp_path, capsys):
    small = "--times 64 128 --batch 8 --size 64"
    assert guide_pictures.main([*small.split(), "--out", str(tmp_path)]) == 0
    _, never, step, _, _ = (line.split() for line in capsys.readouterr().out.splitlines())
    assert float(never[-1]) > float(never[-2]) > 0
    assert float(step[-1]) < float(never[-1])
    assert (tmp_path / "memory_over_time.png").stat().st_size > 1000


def test_no_steps_are_refused_before_anything_is_drawn(tmp_path, capsys):
    assert guide_pictures.main(["--out", str(tmp_path), "--times", "0"]) == 2
    assert "--times must be 1 or more, each a whole number from 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
