"""Pictures that programs leave."""

import pytest
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image

from experiments.lessons.figures import panels, save, tidy
from experiments.running.figures import new_figure, save_figure, show_picture
from rnnjax.data import DataError


def fonts_of(letter, tmp_path):
    figure = new_figure(1, 1)
    text = figure.text(0.1, 0.5, f"a{letter}")
    save_figure(figure, tmp_path / "picture.png")
    return text.get_fontfamily()


def test_a_letter_that_the_usual_font_lacks_is_drawn_in_one_that_has_it(tmp_path):
    sign = "\u1d81"  # of fonts that come with Matplotlib, but not of DejaVu Sans
    usual, *others = (findfont(FontProperties(family=[name])) for name in fonts_of(sign, tmp_path))
    assert ord(sign) not in get_font(usual).get_charmap()
    assert any(ord(sign) in get_font(other).get_charmap() for other in others)


@pytest.mark.parametrize("letter", ["b", "\n", "\ue123\U000e1234"])
def test_other_letters_change_no_font(letter, tmp_path):
    assert len(fonts_of(letter, tmp_path)) == 1


def test_a_picture_is_not_written_under_the_name_of_another_kind(tmp_path):
    with pytest.raises(DataError, match=r"must end in \.png, got .*a\.jpg"):
        save_figure(new_figure(1, 1), tmp_path / "a.jpg")


def test_a_picture_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    figure = new_figure(1, 1)
    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(OSError, match=r"No space left on device: .*a\.png"):
        save_figure(figure, tmp_path / "a.png")


def test_the_legend_of_a_lesson_lies_below_its_lines_and_a_panel_too_many_is_white(tmp_path):
    figure, grid = panels(1, 2)
    grid[0][0].plot([0, 1], label="a line")
    tidy(grid[0][0], "title", "across", "up")
    save(figure, tmp_path / "a.png")
    legend = grid[0][0].get_legend().get_window_extent()
    assert legend.y1 < grid[0][0].xaxis.label.get_window_extent().y0
    assert legend.y0 > 0
    assert [axes.axison for axes in grid[0]] == [True, False]


def draw(path):
    Image.new("RGB", (2, 2)).save(path)


def test_a_run_that_cannot_be_written_to_costs_its_picture_alone(tmp_path, capsys):
    beside, nowhere = tmp_path / "a.png", tmp_path / "nowhere" / "a.png"
    show_picture(draw, "where it looked", None, beside)
    assert beside.stat().st_size
    assert capsys.readouterr().err == f"where it looked: {beside}\n"
    show_picture(draw, "where it looked", None, nowhere)
    assert "no picture of where it looked" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        show_picture(draw, "where it looked", nowhere, beside)
