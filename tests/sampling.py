"""Which cases of the tests run where nobody asked for all: a sample of each table.

A test of a table is parametrised, often over every cell, layer or option, and its time goes into
compiling a program for each case. Of such a test the sample keeps ``CASES`` cases, and in each file
every value of every parameter in some case: every cell, layer and option is run in each file that
speaks of it, and what is left out are further combinations.

Cases that take longer than ``LONG`` seconds of processor time are no part of the sample, but in
files marked ``every_value``, where values that nothing shorter has are run all the same. How long a
case takes is measured and not guessed: ``pytest --full --record-times`` writes ``times.json`` anew.
A case that is not in it counts as short. One that is marked ``full`` is never part of the sample.
"""

import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

CASES = 2
LONG = 1.5
TIMES = Path(__file__).with_name("times.json")


class Case(NamedTuple):
    """A case of a test: its parameters, each by name and value, and the time it takes."""

    values: frozenset[Hashable] = frozenset()
    seconds: float = 0.0


def sample(
    tests: Sequence[Sequence[Case]], cases: int = CASES, every_value: bool = False
) -> list[list[int]]:
    """The places of the cases to run, for each test of one file.

    Args:
        tests: for each test, its cases.
        cases: how many short cases of each test to run, at the least.
        every_value: whether values that only long cases have are run, too.
    """
    used: Counter[Hashable] = Counter()
    chosen = [_least_used(test, used, cases) for test in tests]
    lengths = (LONG, float("inf")) if every_value else (LONG,)
    for longest in lengths:
        for test, places in zip(tests, chosen, strict=True):
            for place, case in sorted(enumerate(test), key=lambda pair: pair[1].seconds):
                if case.seconds <= longest and any(not used[value] for value in case.values):
                    places.append(place)
                    used.update(case.values)
    return [sorted(places) for places in chosen]


def _least_used(test: Sequence[Case], used: Counter[Hashable], cases: int) -> list[int]:
    """``cases`` places of short cases, one by one: always one whose values are used least."""
    left = [place for place, case in enumerate(test) if case.seconds <= LONG]
    places: list[int] = []
    while left and len(places) < cases:
        place = min(left, key=lambda place: sum(used[value] for value in test[place].values))
        left.remove(place)
        places.append(place)
        used.update(test[place].values)
    return places


def read_times() -> dict[str, float]:
    """Seconds of processor time by the name of the case, of those that were long when measured."""
    return json.loads(TIMES.read_text("utf-8"))


def write_times(seconds: Mapping[str, float]) -> None:
    """Keep what was measured; of cases that were not run, what was known before."""
    others = {name: s for name, s in read_times().items() if name not in seconds}
    long = others | {name: round(s, 1) for name, s in seconds.items() if s > LONG}
    text = json.dumps(dict(sorted(long.items())), indent=0, ensure_ascii=False)
    TIMES.write_text(text + "\n", "utf-8")
