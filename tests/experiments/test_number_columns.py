"""Files of numbers as people have them: from spreadsheets, from pandas, from elsewhere."""

import numpy as np
import pytest

from experiments.running.number_columns import (
    left_out,
    number_column,
    number_columns,
    read_as_series,
    read_steps,
)
from experiments.running.scaling import Scale
from rnnjax.data import DataError


def table_of(tmp_path, text):
    path = tmp_path / "own.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_steps(path)


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1,2\n3,5\n4,7\n",
        "\ufeffa,b\r\n1,2\r\n3,5\r\n4,7\r\n",  # a spreadsheet's
        "a,b\n1,2\n\n3,5\n4,7\n\n\n",
        " a , b \n 1 , 2 \n 3 , 5 \n 4 , 7 \n",
        '"a","b"\n"1","2"\n"3","5"\n"4","7"\n',
        "day,a,b\n2024-01-31,1,2\n2024-02-01,3,5\n2025-01-01,4,7",
        ",a,b\n0,1,2\n1,3,5\n2,4,7\n",  # pandas numbers the rows
        "year,a,b\n1990,1,2\n1991,3,5\n1992,4,7\n",
        "day,a,b\n2024/1/31,1,2\n2024/2/1,3,5\n2024/2/2,4,7\n",
        "day,a,b\n01/31/2024 9:00,1,2\n01/31/2024 10:30,3,5\n02/01/2024 0:00,4,7\n",
        "day,a,b\n31/01/2024,1,2\n01/02/2024,3,5\n02/02/2024,4,7\n",
        "day,a,b\n01/02/2024,1,2\n02/02/2024,3,5\n01/03/2024,4,7\n",  # it rises by its days alone
        "day,a,b\n31.01.2024,1,2\n01.02.2024,3,5\n02.02.2024,4,7\n",
        "day,a,b\n20240131,1,2\n20240201,3,5\n20240202,4,7\n",
    ],
)
def test_columns_of_numbers_are_read_whatever_wrote_them(text, tmp_path):
    found = number_columns(table_of(tmp_path, text))
    assert {name: numbers.tolist() for name, numbers in found.items()} == {
        "a": [1, 3, 4],
        "b": [2, 5, 7],
    }


def test_a_note_says_which_columns_are_not_read(tmp_path):
    table = table_of(tmp_path, ",day,a\n0,Mon,1\n1,Tue,3\n2,Wed,4\n")
    found = number_columns(table)
    assert left_out(table, list(found)) == (
        "note: left out, as dates, without numbers or counting the rows: (without a name), day"
    )
    assert left_out(table, table.header) is None


def column(numbers):
    """A file whose first column has these numbers, beside one that rises and falls."""
    return "t,a\n" + "".join(f"{t},{row % 3}\n" for row, t in enumerate(numbers))


COUNTING = {
    "tenths of a second": [f"{k / 10:.1f}" for k in range(20)],
    "thirds, rounded": [f"{k / 3:.3f}" for k in range(20)],
    "seconds of a clock, with a gap": [1_700_000_000 + 60 * (k + 5 * (k > 7)) for k in range(20)],
    "milliseconds that are off by one": [1000 * k + k % 2 for k in range(20)],
    "years of which one is missing": [year for year in range(1990, 2011) if year != 1998],
    "days of which every eleventh is missing": [day for day in range(120) if day % 11],
}


@pytest.mark.parametrize("case", COUNTING)
def test_a_column_counts_the_rows_also_with_gaps_or_rounded(case, tmp_path):
    forwards = COUNTING[case]
    assert list(number_columns(table_of(tmp_path, column(forwards)))) == ["a"]
    first, second = forwards[-1], forwards[-2]
    with pytest.raises(DataError, match=f"t must not count backwards.* '{second}' after '{first}'"):
        table_of(tmp_path, column(forwards[::-1]))


SERIES = {
    "a step that is 0": [0, 1, 1, *range(2, 20)],
    "a step back": [*range(20), 18],
    "a gap in every fifth step": [k + k // 5 for k in range(50)],
    "steps that differ by 3 hundredths": [100 * k + 3 * (k % 2) for k in range(20)],
    "growth": [1.02**k for k in range(20)],
    "too few to say": [1, 2],
}


@pytest.mark.parametrize("case", SERIES)
def test_a_column_whose_steps_differ_does_not_count_the_rows(case, tmp_path):
    for numbers in (SERIES[case], SERIES[case][::-1]):
        table = table_of(tmp_path, column(numbers))
        assert number_columns(table)["t"].tolist() == pytest.approx(numbers)


def test_a_note_names_columns_that_may_tell_the_time_though_they_do_not_count(tmp_path):
    text = "up,down,n,\n1,9,5,3\n2,8,4,4\n4,5,6,8\n9,1,6,9\n"
    used = number_columns(table_of(tmp_path, text))
    words = "note: rises or falls at every row, and is read as a series: {}; leave the column out"
    assert read_as_series(used).startswith(words.format("up, down, (without a name)"))
    assert read_as_series(used, ("down", "")).startswith(words.format("up"))
    assert read_as_series(used, ("up", "down", "")) is None
    assert read_as_series({"up": used["up"]}) is None
    assert read_as_series({"up": used["up"], "label": used["n"]}, ("label",)) is None
    assert read_as_series({"up": used["up"][:2], "n": used["n"][:2]}) is None


def test_a_column_that_says_of_all_rows_that_they_are_totals_is_none_of_totals(tmp_path):
    table = table_of(tmp_path, "sex,note,a\nTotal,,1\nTotal,total loss,3\nTotal,,4\n")
    assert number_columns(table)["a"].tolist() == [1, 3, 4]


def test_dates_with_time_zones_are_held_against_one_another_in_one_zone(tmp_path):
    rows = "day,a\n2024-01-01T00:30+01:00,1\n2024-01-01T00:00Z,2\n"  # half an hour later
    assert table_of(tmp_path, rows).column("a") == ["1", "2"]
    with pytest.raises(DataError, match="row 3: day must be later"):
        table_of(tmp_path, rows.replace("+01:00", "-01:00"))


def test_a_column_that_counts_is_read_where_it_is_asked_for_or_alone(tmp_path):
    table = table_of(tmp_path, "year,a\n1990,1\n1991,3\n1992,4\n")
    assert list(number_columns(table, ("year",))) == ["year", "a"]
    assert number_column(table, "year").tolist() == [1990, 1991, 1992]
    assert list(number_columns(table_of(tmp_path, "n\n2\n4\n6\n"))) == ["n"]


REFUSED = {
    "nothing": ("", "must have text, got an empty file"),
    "a head alone": ("a\n", "must have a column of numbers, got a"),
    "text": ("a\nx\ny\n", "must have a column of numbers, got a"),
    "no head": ("1.5,2\n3,4\n", "must begin with a line of names, got the numbers 1.5, 2"),
    "a name twice": ("a,a\n1,2\n", "must have columns of different names, got 'a' twice"),
    "commas for points": ("a\n1,5\n2,5\n", "row 2: must have 1 column .* got 2; .* points"),
    "quoted decimal commas": ('t,a\n1,"1,5"\n2,"2,5"\n', "row 2: a .*, got '1,5': decimals have"),
    "thousands": ('a\n"1,234"\n', "row 2: a must be a finite number, got '1,234': decimals have"),
    "semicolons": ("a;b\n1;2\n", "must have commas between its columns, got ';'"),
    "tabs": ("a\tb\n1\t2\n", r"must have commas between its columns, got '\\t'"),
    "a short row behind an empty one": ("a,b\n1,2\n\n3\n", "row 4: must have 2 columns .* got 1"),
    "a gap": ("a,b\n1,2\n3,\n", "row 3: b must be a finite number, got '': fill"),
    "not a number": ("a\n1\nnan\n", "row 3: a must be a finite number, got 'nan'"),
    "a name that Python takes for a number": ("a\n1\n1_0\n", "row 3: a must be a finite number"),
    "infinity": ("a\n1\n-inf\n", "row 3: a must be a finite number, got '-inf'"),
    "too many bits": ("a\n9007199254740993\n", "row 2: a must be a number that 53 bits hold"),
    "too far": ("a\n1\n1e200\n", r"row 3: a must be at most 1e\+100 in size, got '1e200'"),
    "a day twice": ("day,a\n2024-01-01,1\n2024-01-01,2\n", ": a file has a row for each date"),
    "days out of order": ("day,a\n2024-02,1\n2024-01,2\n", "row 3: day .* got '2024-01'"),
    "newest first, 2024/02/01": ("d,a\n2024/02/01,1\n2024/01/01,2\n", "row 3: d .* got '2024/01"),
    "newest first, 1/31/2024": ("d,a\n1/31/2024,1\n1/30/2024,2\n", "row 3: d .* got '1/30/2024'"),
    "newest first, 31/1/2024": ("d,a\n31/1/2024,1\n30/1/2024,2\n", "row 3: d .* got '30/1/2024'"),
    "newest first by days and by months": (
        "d,a\n03/04/2024,1\n02/03/2024,2\n01/02/2024,3\n",
        "row 3: d must be later than in the row before, '03/04/2024', got '02/03/2024'",
    ),
    "newest first, 31.01.2024": (
        "d,a\n31.01.2024,1\n30.01.2024,2\n",
        "row 3: d must be later .* got '30.01.2024'",
    ),
    "newest first, 20240131": (
        "d,a\n20240131,1\n20240130,2\n20240129,3\n",
        "row 3: d must be later than in the row before, '20240131', got '20240130'",
    ),
    "newest year first": (
        "y,a\n2024,1\n2023,2\n2022,4\n",
        "y must not .*, got '2023' after '2024'",
    ),
    "dates with a time zone and without one": (
        "d,a\n2024-01-01 00:00,1\n2024-01-02 00:00,2\n2024-01-01T00:00Z,3\n",
        "row 4: d must have a time zone in all rows or in none, got '2024-01-01T00:00Z' after",
    ),
    **{
        f"totals below names, {total.strip()}": (
            f"m,a\nJan 2014,1\nFeb 2014,2\n{total},3\n",
            f"row 4: m must not name a total, .* got '{total}': leave the row out",
        )
        for total in ("Total", "TOTALS", "Grand total", "Sum", " Subtotal: ", "average", "Mean")
    },
    "totals below years": ("y,a\n2013,1\n2014,2\nTotal,3\n", "row 4: y must not name a total"),
    "totals below dates": (
        "d,a\n2024-01-01,1\n2024-01-02,2\nTotal,3\n",
        "row 4: d must be a date as in the other rows, got 'Total'",
    ),
    "a day that is none": (
        "d,a\n30.01.2024,1\n31.01.2024,2\n32.01.2024,3\n",
        "row 4: d must be a date as in the other rows, got '32.01.2024'",
    ),
    "an open quote": ('a\n1\n"2\n', "must be a CSV file with a header line"),
    "another encoding": ("a\n1\n".encode("utf-16"), "must have UTF-8 text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_read_wrongly_is_refused_by_its_row(case, tmp_path):
    text, words = REFUSED[case]
    with pytest.raises(DataError, match=words):
        number_columns(table_of(tmp_path, text))


NUMBERS = {
    "eight digits that rise and fall": "a\n20240131\n20240203\n20240102\n",
    "eight digits that stay": "a\n20240131\n20240131\n20240131\n",
    "eight digits of which one is no day": "a\n20240130\n20240131\n20240132\n",
    "years far off": "a\n30240131\n30240203\n30240204\n",
    "a countdown beside what counts forwards": "cycle,a,b\n1,9,5\n2,8,5\n3,7,6\n",
    "a countdown beside dates": "day,a,b\n2024-01-01,9,5\n2024-01-02,8,5\n2024-01-03,7,6\n",
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_that_only_look_like_dates_or_years_are_no_reason_to_refuse(case, tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(NUMBERS[case])
    table = read_steps(path)
    assert number_columns(table, ("a",))["a"].tolist() == [float(t) for t in table.column("a")]


def test_a_column_that_is_asked_for_may_fall(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("left,b\n3,1\n2,5\n1,2\n")
    assert number_column(read_steps(path, ("left",)), "left").tolist() == [3, 2, 1]


def test_digits_below_a_large_number_are_kept_until_channels_are_scaled():
    values = 1.7e9 + np.array([[0.0], [1.0], [2.0], [3.0]])
    scaled = Scale.of(values)(values)
    np.testing.assert_allclose(scaled[:, 0], (np.arange(4) - 1.5) / np.sqrt(1.25), rtol=1e-6)
    assert scaled.dtype == np.float32


@pytest.mark.parametrize("unit", [1, 1e-200, 1e-300, 1e60])
def test_channels_are_scaled_alike_in_whatever_unit_they_are(unit):
    values = np.array([[1.0], [2.0], [4.0]]) * unit
    expected = (np.array([1, 2, 4]) - 7 / 3) / np.sqrt(14 / 9)
    np.testing.assert_allclose(Scale.of(values)(values)[:, 0], expected, rtol=1e-6)


def test_a_channel_of_the_smallest_numbers_that_a_float_holds_stays_finite():
    values = np.zeros((100, 1))
    values[7] = 5e-324
    assert np.isfinite(Scale.of(values)(values)).all()


def test_a_channel_that_keeps_to_a_value_is_scaled_by_one_and_what_is_far_off_stays_finite():
    scale = Scale.of(np.full((7, 1), 0.1))  # of which NumPy's standard deviation is 1.4e-17
    np.testing.assert_allclose(scale(np.array([[0.1], [1.1]]))[:, 0], [0, 1], atol=1e-7)
    far = scale(np.array([[1e60], [-1e60]]))
    assert np.isfinite(np.square(far)).all()
    assert np.sign(far[:, 0]).tolist() == [1, -1]
