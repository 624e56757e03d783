"""Which cases of the tests run where nobody asked for all: a sample of each table.

A test of a table is parametrised, often over every cell, layer or option, and its time goes into
compiling a program for each case. Of such a test the sample keeps ``CASES`` cases, and in each file
every value of every parameter in some case: every cell, layer and option is run in each file that
speaks of it, and what is left out are further combinations.

What a case costs is measured and not guessed: ``pytest --full --record-times`` writes
``times.json`` anew, with the seconds of processor time of all cases that are not quick.

- Of a test whose cases are not quick, the sample keeps one, the quickest, and none where even that
  is long, unless the test is marked ``kept``.
- For a value that no other case of the file has, a case of middle length is run and none longer,
  but in files marked ``every_value``.
- A case that is marked ``full`` is never part of the sample.
"""

import json
from collections import Counter
from collections.abc import Container, Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

CASES = 2
QUICK, MIDDLE, LONG = 0.3, 0.6, 1.0  # seconds, the most that each may take
TIMES = Path(__file__).with_name("times.json")


class Case(NamedTuple):
    """A case of a test: its parameters, each by name and value, and the time it takes."""

    values: frozenset[Hashable] = frozenset()
    seconds: float = 0.0


def sample(
    tests: Sequence[Sequence[Case]],
    cases: int = CASES,
    every_value: bool = False,
    kept: Container[int] = (),
) -> list[list[int]]:
    """The places of the cases to run, for each test of one file.

    Args:
        tests: for each test, its cases.
        cases: how many quick cases of each test to run, at the least.
        every_value: whether values that only longer cases have are run, too.
        kept: the places of the tests of which one case is run however long it takes.
    """
    used: Counter[Hashable] = Counter()
    chosen = [
        _least_used(test, used, cases, float("inf") if place in kept else LONG)
        for place, test in enumerate(tests)
    ]
    lengths = (MIDDLE, float("inf")) if every_value else (MIDDLE,)
    for longest in lengths:
        for test, places in zip(tests, chosen, strict=True):
            for place, case in sorted(enumerate(test), key=lambda pair: pair[1].seconds):
                if case.seconds <= longest and any(not used[value] for value in case.values):
                    places.append(place)
                    used.update(case.values)
    return [sorted(places) for places in chosen]


def _least_used(
    test: Sequence[Case], used: Counter[Hashable], cases: int, longest: float
) -> list[int]:
    """``cases`` places of quick cases, one by one: always one whose values are used least.

    Of a test without quick cases, the place of the one that takes the least time.
    """
    left = [place for place, case in enumerate(test) if case.seconds <= longest]
    places: list[int] = []
    while left and len(places) < cases:
        place = min(left, key=lambda place: _cost(test[place], used))
        if places and test[place].seconds > QUICK:
            break
        left.remove(place)
        places.append(place)
        used.update(test[place].values)
    return places


def _cost(case: Case, used: Counter[Hashable]) -> tuple[float, int]:
    return max(case.seconds, QUICK), sum(used[value] for value in case.values)


def seconds_of(names: Sequence[str], times: Mapping[str, float]) -> list[float]:
    """The seconds of the cases of one test, by what is known of them.

    Where some are known not to be quick, the others may not have been measured yet: they are taken
    for as long as the shortest of these, but never for too long to be run.
    """
    known = [times[name] for name in names if name in times]
    otherwise = min(*known, LONG) if known else 0.0
    return [times.get(name, otherwise) for name in names]


def read_times() -> dict[str, float]:
    """Seconds of processor time by the name of the case, of those that are not quick."""
    return json.loads(TIMES.read_text("utf-8"))


def write_times(seconds: Mapping[str, float]) -> None:
    """Keep what was measured; of cases that were not run, what was known before."""
    others = {name: s for name, s in read_times().items() if name not in seconds}
    known = others | {name: round(s, 1) for name, s in seconds.items() if s > QUICK}
    text = json.dumps(dict(sorted(known.items())), indent=0, ensure_ascii=False)
    TIMES.write_text(text + "\n", "utf-8")
