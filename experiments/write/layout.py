"""Written texts on 80 columns."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping

_WIDTH = 80
_BETWEEN = " | "


def wrapped(text: str, width: int) -> list[str]:
    """The lines of a text, long ones in several, and what is no printable sign as a blank.

    Example:
        >>> wrapped("to be or not to be\\n\\nthat", 10)
        ['to be or', 'not to be', '', 'that']
    """
    lines = []
    for line in text.split("\n"):
        plain = "".join(sign if sign.isprintable() else " " for sign in line)
        lines += textwrap.wrap(plain, width) or [""]
    return lines


def indented(text: str, lines: int = 4) -> str:
    """The first lines of a text, so that they stand out from the table around them."""
    shown = [line for line in wrapped(text, _WIDTH - 6) if line.strip()]
    return "\n".join(f"    {line}" for line in shown[:lines])


def side_by_side(texts: Mapping[str, str]) -> str:
    """Texts in columns, each under its heading."""
    width = _WIDTH // len(texts) - len(_BETWEEN)
    columns = [[heading, "", *wrapped(text, width)] for heading, text in texts.items()]
    rows = itertools.zip_longest(*columns, fillvalue="")
    return "".join(_BETWEEN.join(c.ljust(width) for c in row).rstrip() + "\n" for row in rows)
