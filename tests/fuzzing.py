"""How much the fuzzing tests try: little and the same each time, or RNNJAX_FUZZ times as much."""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FACTOR = int(os.environ.get("RNNJAX_FUZZ", "1"))

# Every character there is: halves of surrogate pairs, NUL, marks that combine, right to left.
ANY_TEXT = st.text(st.characters(exclude_categories=()))
ODD_TEXTS = (
    "",
    "\0",
    "e\u0301\u0300 \u0645\u0631\u062d\u0628\u0627 \U0001f469\u200d\U0001f680",
    "\ud800",
    "\udc00\ud800",
    "\r\n\x1c\x85\u2028\ufeff",
    "\u0130\u1e9e\ufb01",
    "a b" * 33_334,
)


def examples(count):
    """Settings of a test that tries ``count`` examples, and new ones where it tries more."""
    return settings(
        max_examples=count * FACTOR,
        derandomize=FACTOR == 1,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@st.composite
def mutated(draw, data):
    """The bytes with some of them flipped, cut, put in, left out or put elsewhere."""
    content = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content)))
        kind = draw(st.sampled_from(("flip", "cut", "insert", "delete", "copy")))
        if kind == "flip" and place < len(content):
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[place:]
        elif kind == "insert":
            content[place:place] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "delete":
            del content[place : place + draw(st.integers(1, 9))]
        else:
            content[place:place] = content[: draw(st.integers(1, 30))]
    return bytes(content)
