"""The sample of the tests keeps what it promises."""

import subprocess
import sys
from pathlib import Path

import sampling
from sampling import LONG, MIDDLE, QUICK, Case, sample, seconds_of

ROOT = Path(__file__).parents[1]


def table(**parameters):
    """The cases of a test over all combinations."""
    cases = [frozenset()]
    for name, values in parameters.items():
        cases = [case | {(name, value)} for case in cases for value in values]
    return [Case(case) for case in cases]


def kept(tests, **options):
    places = sample(tests, **options)
    return [[test[p] for p in chosen] for test, chosen in zip(tests, places, strict=True)]


def values_of(tests):
    return {value for test in tests for case in test for value in case.values}


def test_every_test_is_run_and_every_value_in_some_case_of_the_file():
    tests = [table(cell="abcdefg", option="xyz"), table(cell="abcdefg"), [Case()]]
    chosen = kept(tests, cases=2)
    assert [len(cases) for cases in chosen[1:]] == [2, 1]
    assert values_of(chosen) == values_of(tests)
    assert len(chosen[0]) <= 7  # of 21


def test_a_test_of_few_cases_is_run_whole_and_in_order():
    assert sample([table(reverse=[False, True])], cases=2) == [[0, 1]]


def test_values_that_only_longer_cases_have_are_left_out_unless_all_are_asked_for():
    test = table(cell="abc")
    test = [case._replace(seconds=MIDDLE * k) for k, case in enumerate(test)]
    assert sample([test, [Case(seconds=9)]]) == [[0, 1], []]
    assert sample([test, [Case(seconds=9)]], every_value=True) == [[0, 1, 2], []]


def test_of_a_test_without_quick_cases_the_quickest_is_run():
    cases = [Case(seconds=s) for s in (LONG, MIDDLE, 9 * LONG, LONG - 0.1)]
    assert sample([cases]) == [[1]]
    assert sample([[*cases, Case(seconds=QUICK)]]) == [[4]]
    assert sample([cases[2:3] * 2]) == [[]]


def test_of_a_test_that_is_kept_one_case_is_run_however_long_it_takes():
    long = [Case(seconds=9), Case(seconds=8)]
    assert sample([long, long], kept={1}) == [[], [1]]


def test_what_was_not_measured_is_taken_for_as_long_as_what_was():
    assert seconds_of("abc", {"b": 0.5, "c": 0.7, "d": 0.4}) == [0.5, 0.5, 0.7]
    assert seconds_of("abc", {"b": 9.0}) == [LONG, 9.0, LONG]
    assert seconds_of("abc", {}) == [0, 0, 0]


def test_what_was_measured_as_not_quick_is_written_and_the_rest_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "TIMES", tmp_path / "times.json")
    (tmp_path / "times.json").write_text('{"now short": 5.0, "not run": 4.0}')
    sampling.write_times({"now short": QUICK, "a[\u00e9]": 3.14})
    assert sampling.read_times() == {"a[\u00e9]": 3.1, "not run": 4.0}


def test_the_times_are_of_tests_that_are_there():
    for name in sampling.read_times():
        file, _, test = name.partition("::")
        source = (ROOT / file).read_text("utf-8")
        assert file.startswith("rnnjax/") or f"def {test.split('[')[0]}(" in source, name


def test_what_passed_before_is_left_out_and_nothing_else(tmp_path):
    file = "tests/test_sampling.py"
    name = f"{file}::test_every_test_is_run_and_every_value_in_some_case_of_the_file"
    (tmp_path / "before").write_text(f"a line\nPASSED {name}\nFAILED {file}::other - PASSED\n")

    def collected(*options):
        command = [sys.executable, "-m", "pytest", "-n0", "--collect-only", *options, file]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return done.returncode, {line for line in done.stdout.splitlines() if "::" in line}

    _, every = collected()
    before = f"--without-passed={tmp_path / 'before'}"
    assert collected(before) == (0, every - {name})
    assert name in every
    (tmp_path / "before").write_text("PASS\n")
    assert collected(before)[0] != 0
