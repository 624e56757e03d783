"""Which cases of the tests run where nobody asked for all: a sample of each table.

A test of a table is parametrised, often over every cell, layer or option, and its time goes into
compiling a program for each case. Of such a test the sample keeps ``CASES`` cases, and in each file
every value of every parameter in some case. So every test runs, every cell, layer and option is
run in each file that speaks of it, and what is left out are further combinations.

A test that takes long by itself is marked ``full`` and is no part of the sample.
"""

from collections import Counter
from collections.abc import Hashable, Sequence

CASES = 2

# The parameters of a case, each by its name and value; empty where a test has none.
Values = frozenset[Hashable]


def sample(tests: Sequence[Sequence[Values]], cases: int = CASES) -> list[list[int]]:
    """The places of the cases to run, for each test of one file.

    Args:
        tests: for each test, the values of its cases.
        cases: how many of each test to run, at the least.
    """
    used: Counter[Hashable] = Counter()
    chosen = [_least_used(test, used, cases) for test in tests]
    for test, places in zip(tests, chosen, strict=True):
        for place, values in enumerate(test):
            if any(not used[value] for value in values):
                places.append(place)
                used.update(values)
    return [sorted(places) for places in chosen]


def _least_used(test: Sequence[Values], used: Counter[Hashable], cases: int) -> list[int]:
    """``cases`` places, one by one: always a case with values that have been used least."""
    left, places = list(range(len(test))), []
    while left and len(places) < cases:
        place = min(left, key=lambda place: sum(used[value] for value in test[place]))
        left.remove(place)
        places.append(place)
        used.update(test[place])
    return places
