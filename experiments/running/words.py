"""Texts as words and signs, and back."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence


def words(text: str) -> list[str]:
    """Words and signs in lower case.

    A letter with a mark is the same word however Unicode spells it, and vowel signs, as those of
    Hindi, are parts of their words.

    Example:
        >>> words("Ein Mann, der schläft.")
        ['ein', 'mann', ',', 'der', 'schläft', '.']
        >>> words("Cafe\\u0301") == ["caf\\u00e9"]
        True
    """
    text = unicodedata.normalize("NFC", text.lower())
    # Marks, which Python's \w leaves out, and the two signs that say how letters are joined.
    marks = {sign for sign in set(text) if unicodedata.category(sign)[0] == "M"}
    joined = re.escape("".join(sorted(marks))) + "\u200c\u200d"
    return re.findall(rf"[\w{joined}]+|[^\w\s]", text)


def joined_words(tokens: Sequence[str]) -> str:
    """Tokens as a text: signs stand by the word before them.

    Example:
        >>> joined_words(["a", "man", ",", "asleep", "."])
        'a man, asleep.'
    """
    text = re.sub(r" ([.,!?;:)\]])", r"\1", " ".join(tokens))
    return re.sub(r"([(\[]) | (['-]) ", r"\1\2", text)
