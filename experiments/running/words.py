"""Texts as words and signs, and back."""

from __future__ import annotations

import re
from collections.abc import Sequence


def words(text: str) -> list[str]:
    """Words and signs in lower case.

    Example:
        >>> words("Ein Mann, der schläft.")
        ['ein', 'mann', ',', 'der', 'schläft', '.']
    """
    return re.findall(r"\w+|[^\w\s]", text.lower())


def joined_words(tokens: Sequence[str]) -> str:
    """Tokens as a text: signs stand by the word before them.

    Example:
        >>> joined_words(["a", "man", ",", "asleep", "."])
        'a man, asleep.'
    """
    text = re.sub(r" ([.,!?;:)\]])", r"\1", " ".join(tokens))
    return re.sub(r"([(\[]) | (['-]) ", r"\1\2", text)
