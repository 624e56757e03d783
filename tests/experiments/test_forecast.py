"""The program that forecasts series beside forecasts that take no learning."""

import numpy as np
import pytest
from matplotlib.image import imread

from experiments.forecast import command, pictures
from experiments.forecast.baselines import (
    coverage,
    last_value,
    linear_autoregression,
    mase,
    scale_of,
    seasonal_naive,
)
from experiments.forecast.calibration import band_shift, disjoint_futures, shifted
from experiments.forecast.pictures import Shown, draw_forecasts
from experiments.forecast.series import GENERATED, PACKAGED, Window, cut, read_csv, read_sets
from experiments.forecast.settings import Settings
from experiments.running.figures import new_figure
from rnnjax.data import DataError

SMALL = ["--season", "4", "--window", "8", "--horizon", "4"]
FEW = ["--series", "2", "--length", "60"]
QUICK = [*SMALL, *FEW, "--hidden-size", "4", "--epochs", "2", "--batch-size", "16"]


def run(*arguments):
    return command.main([str(argument) for argument in arguments])


@pytest.mark.full
def test_a_run_compares_every_set_and_says_where_it_is_not_better(tmp_path, capsys):
    folder = tmp_path / "run"
    assert run("--out", folder, *QUICK) == 0
    said = capsys.readouterr().out
    for name in GENERATED:
        assert f"\n{name} " in said
    assert "the network is not better than" in said  # after two epochs
    assert (folder / "forecasts.png").stat().st_size


def test_a_picture_of_one_set_holds_its_whole_legend(tmp_path):
    shown = Shown(np.arange(8.0), np.arange(4.0), np.zeros((4, 3)), np.ones(4))
    draw_forecasts({"own": shown}, tmp_path / "forecasts.png")
    edges = imread(tmp_path / "forecasts.png")[:, [0, -1], :3]
    assert np.all(edges == 1)  # white: nothing is cut off


def test_a_picture_counts_the_steps_ahead_from_1_as_a_forecast_does():
    axes = new_figure(3, 3).subplots()
    shown = Shown(np.arange(3.0), np.arange(2.0), np.zeros((2, 3)), np.ones(2))
    pictures._draw(axes, "own", shown)
    steps = {line.get_label(): line.get_xdata().tolist() for line in axes.lines}
    assert steps.pop("past") == [-2, -1, 0]
    assert list(steps.values()) == [[1, 2]] * 3


@pytest.mark.full
def test_what_comes_after_the_end_of_a_file_is_forecast_from_its_last_steps(tmp_path, capsys):
    folder, own = tmp_path / "run", tmp_path / "own.csv"
    season = np.tile([10.0, 30.0, 20.0, 60.0], 31) + np.random.default_rng(0).normal(size=124)

    def write(end):
        lines = (f"{k},{season[k]},{season[k] + 5 if k > 30 else ''}" for k in range(end))
        own.write_text("\n".join(["t,a,b", *lines]))

    write(118)
    learn = ("--hidden-size", "4", "--epochs", "60", "--patience", "60", "--batch-size", "8")
    assert run("--dataset", own, "--out", folder, *SMALL, *learn, "--learning-rate", "0.05") == 0
    assert f"predict {folder} {own}" in " ".join(capsys.readouterr().out.split())
    write(120)
    assert run("predict", folder, own) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows] == [[name, str(k)] for name in "ab" for k in range(1, 5)]
    low, median, high = np.array([row[2:] for row in rows], float).T
    np.testing.assert_allclose(median, [*season[120:], *(season[120:] + 5)], atol=6)
    assert np.all((low <= median) & (median <= high))
    band = folder / "band.json"
    left = band.read_text()
    band.unlink()  # as if the run had been killed behind its weights
    assert run("predict", folder, own) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.endswith(f"go on: python -m experiments.forecast --out {folder} --resume")
    write(118)
    assert run("--out", folder, "--resume") == 0
    assert band.read_text() == left
    capsys.readouterr()
    own.write_text("a\n1\n2\n")
    assert run("predict", folder, own) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "a must have at least 28 steps" in error
    assert error.endswith("the rows that it was trained on stand above the new ones")
    made = tmp_path / "made"
    assert run("--out", made, *QUICK) == 0
    assert run("predict", made, own) == 2
    assert "must be a run with --dataset, got one on generated series" in capsys.readouterr().err


def test_windows_are_cut_by_where_their_future_lies():
    settings = Settings(season=4, window=8, horizon=4)
    values = np.arange(60.0) ** 1.1
    windows = cut([values, values + 1], settings)
    for part, begin, end in zip(windows, (8, 42, 51), (42, 51, 60), strict=True):
        assert part.past.shape == (2 * (end - begin - 3), 8)
        for row in range(len(part.past)):
            own = values + part.series[row]
            now = int(np.flatnonzero(own == part.future[row, 0])[0])
            assert begin <= now <= end - 4
            np.testing.assert_array_equal(part.past[row], own[now - 8 : now])
            np.testing.assert_array_equal(part.future[row], own[now : now + 4])
    unit = np.abs(values[4:42] - values[:38]).mean()
    np.testing.assert_allclose(windows.test.unit, unit)


def window_of(values, count=8, horizon=6):
    past = np.stack([values[i : i + count] for i in range(20)])
    future = np.stack([values[i + count : i + count + horizon] for i in range(20)])
    return Window(past, future, np.full(20, 2.0), np.zeros(20))


def test_baselines_are_right_where_they_must_be():
    season = np.tile([1.0, 5.0, 2.0, 8.0], 20)
    window = window_of(season)
    assert mase(seasonal_naive(window, 4), window) == 0  # also beyond one season
    constant = window_of(np.full(80, 3.0))
    assert mase(last_value(constant, 4), constant) == 0
    line = window_of(np.arange(80.0))
    assert mase(last_value(line, 4), line) == pytest.approx(3.5 / 2)  # 1 to 6 steps behind
    both = window_of(season + np.arange(80.0))
    assert mase(linear_autoregression(both, both), both) < 0.05
    assert coverage(line.future - 1, line.future, line) == 1
    assert coverage(line.future + 1, line.future + 2, line) == 0


def test_a_band_holds_what_it_should_on_the_windows_that_it_is_moved_by():
    rng = np.random.default_rng(0)
    window = window_of(np.zeros(80), count=4, horizon=5)
    window = window._replace(
        past=rng.normal(size=(20, 4)),
        future=rng.normal(size=(20, 5)),
        unit=np.ones(20),
        series=np.arange(20),
    )
    for width in (0.1, 1.0, 9.0):  # too narrow, and too wide
        band = np.tile([-width, 0.0, width], (20, 5, 1))
        moved = shifted(band, window, band_shift(band, window))
        assert coverage(moved[..., 0], moved[..., 2], window) == pytest.approx(0.81)
        assert np.all(np.diff(moved, axis=-1) >= 0)
    assert shifted(np.array([[[-1.0, 0.5, 1.0]]]), first(window, 1), -9.0).tolist() == [
        [[0.5, 0.5, 0.5]]
    ]


def first(window, count, steps=1):
    return Window(*(part[:count] for part in window))._replace(future=window.future[:count, :steps])


def test_a_band_is_as_it_was_learnt_where_too_few_futures_could_say_how_wide_it_must_be():
    window = window_of(np.arange(80.0) ** 1.1, count=4, horizon=5)
    assert disjoint_futures(window) == 4  # of 20 windows that begin a step apart
    assert disjoint_futures(first(window, 5, 5)) == 1
    assert disjoint_futures(window._replace(series=np.arange(20) // 5)) == 4
    band = np.zeros((20, 5, 3))
    assert band_shift(band, window) > 0
    assert band_shift(band[:15], first(window, 15, 5)) == 0
    # The farthest of four: a fifth lies beyond it in one case of five.
    four = first(window, 4)
    far = np.sort(four.future[:, 0] / scale_of(four.past, four.unit)[1][:, 0])
    assert band_shift(band[:4, :1], four) == pytest.approx(far[-1])


def test_a_past_that_stood_still_is_scaled_by_what_the_series_does_in_a_season():
    window = window_of(np.concatenate([np.full(10, 7.0), np.arange(70.0)]))
    mean, spread = scale_of(window.past, window.unit)
    assert (mean[0, 0], spread[0, 0]) == (7, 0.1 * 2)
    assert spread[-1, 0] > spread[0, 0]


def test_columns_of_numbers_are_read_and_others_passed_over(tmp_path, capsys):
    path = tmp_path / "own.csv"
    path.write_text("month,sold,made\nJan,1,2.5\nFeb,3,4\n")
    assert {name: v.tolist() for name, v in read_csv(path, None).items()} == {
        "sold": [1, 3],
        "made": [2.5, 4],
    }
    assert (
        "note: left out, as dates, without numbers or counting the rows: month"
        in capsys.readouterr().out
    )
    assert {name: v.tolist() for name, v in read_csv(path, "made").items()} == {"made": [2.5, 4]}
    assert capsys.readouterr().out == ""
    path.write_text("t,a\n1,5\n2,6\n9,2\n")
    assert list(read_csv(path, None)) == ["t", "a"]
    assert (
        "note: rises or falls at every row, and is read as a series: t" in capsys.readouterr().out
    )
    assert list(read_csv(path, "a")) == ["a"]
    assert capsys.readouterr().out == ""
    path.write_text("t,a,b\n1,,5\n2, ,6\n3,7,8\n4,9,8\n")  # one begins later
    assert {name: v.tolist() for name, v in read_csv(path, None).items()} == {
        "a": [7, 9],
        "b": [5, 6, 8, 8],
    }
    assert {name: v.tolist() for name, v in read_csv(path, "a").items()} == {"a": [7, 9]}
    for text, column, words in (
        ("t,a\n1,\n2,7\n3,\n4,7\n", None, "row 4: a must be a finite number, got '': fill gaps"),
        ("t,a\n1,\n2,7\n5,\n", None, "row 4: a must have numbers up to the last row, got none"),
        ("a\n1\nx\n", None, "row 3: a must be a finite number, got 'x'"),
        ("a,b\n1,2\n", "c", "--column must be one of a, b, got 'c'"),
        ("a,b\nx,1\n", "a", "row 2: a must be a finite number, got 'x'"),
        ("day,a\n2024-02-01,1\n2024-01-01,2\n", "a", "row 3: day must be later"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            read_csv(path, column)


def test_the_series_of_a_package_are_those_of_their_description():
    pytest.importorskip("aeon")
    (airline,) = read_sets(Settings(dataset="airline"))[0]["airline"]
    assert (len(airline), airline[0], airline[-1], airline.sum()) == (144, 112, 432, 40363)
    (solar,) = read_sets(Settings(dataset="solar", season=48))[0]["solar"]
    assert len(solar) == 289
    assert solar.min() == 0 == solar[0]  # it begins at midnight


def test_a_series_of_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    folder = tmp_path / "aeon" / "datasets" / "data" / "Airline"
    folder.mkdir(parents=True)
    (tmp_path / "aeon" / "__init__.py").write_text("raise ImportError")
    values = 100 + np.arange(144) ** 1.1
    rows = "".join(f"month {n},{value}\n" for n, value in enumerate(values))
    (folder / "Airline.csv").write_text("Date,Passengers\n" + rows)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "aeon", raising=False)
    (airline,) = read_sets(Settings(dataset="airline"))[0]["airline"]
    np.testing.assert_array_equal(airline, values)


@pytest.mark.parametrize("name", PACKAGED)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(name, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "aeon", None)
    assert run("--dataset", name) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"the package aeon must be installed for --dataset {name}" in said
    assert 'pip install ".[series]"' in said


BAD = {
    "a column of a package": (["--dataset", "solar", "--column", "a"], "--column must be given"),
    "too short": (["--length", "20", "--series", "2"], "must have at least"),
    "a window below the season": (["--window", "3"], "--window must be at least --season, 4"),
    "no horizon": (["--horizon", "0"], "--horizon must be a whole number from 1 up"),
    "no file": (["--dataset", "nowhere.csv"], "nowhere.csv must be a file, got none"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(case, tmp_path, capsys):
    wrong, words = BAD[case]
    assert run("--out", tmp_path / "run", *SMALL, *wrong) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_series_that_repeats_exactly_has_no_unit(tmp_path, capsys):
    path = tmp_path / "flat.csv"
    path.write_text("a\n" + "1\n2\n3\n4\n" * 20)
    assert run("--dataset", path, "--out", tmp_path / "run", *SMALL) == 2
    said = capsys.readouterr().err
    assert f"{path}, a must change from one --season of 4 steps to the next" in said


def test_generated_series_depend_on_the_seed_alone():
    one, sha = read_sets(Settings(series=2))
    assert read_sets(Settings(series=2))[1] == sha
    assert read_sets(Settings(series=2, seed=1))[1] != sha
    assert all(np.all(np.isfinite(v)) and len(v) == 180 for s in one.values() for v in s)
