"""Texts as words and signs, and back."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from rnnjax.data import DataError, Vocabulary

# Ids of the marks before and behind a text that is written.
START, STOP = 2, 3
_MARKS = ("<start>", "<stop>")
# Scripts that leave no blank between words: each letter is a token. Chinese characters and their
# marks, kana, Thai, Lao, Burmese, Khmer.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
# Their full stops and brackets, which have their blank within them.
_WIDE = "\u3001-\u3003\u3008-\u3011\uff01-\uff0f\uff1a-\uff1f"
_JOINERS = "\u200c\u200d"  # say how letters are joined, and are parts of words


def words(text: str, *, keep_case: bool = False) -> list[str]:
    """Words and signs, in lower case unless the case is kept.

    A letter with a mark is the same word however Unicode spells it, and vowel signs, as those of
    Hindi, are parts of their words. Of scripts without blanks between words each letter is a token.
    What cannot be seen, such as a soft hyphen, is left out.

    Example:
        >>> words("Ein Mann, der schläft.")
        ['ein', 'mann', ',', 'der', 'schläft', '.']
        >>> words("Cafe\\u0301", keep_case=True) == ["Caf\\u00e9"]
        True
        >>> words("\\u6211\\u7231 NLP\\u3002") == ["\\u6211", "\\u7231", "nlp", "\\u3002"]
        True
    """
    text = unicodedata.normalize("NFC", text if keep_case else text.lower())
    kinds = {sign: unicodedata.category(sign) for sign in set(text)}
    unseen = {ord(s): None for s, kind in kinds.items() if kind == "Cf" and s not in _JOINERS}
    # Marks, which Python's \w leaves out.
    marks = re.escape("".join(sorted(s for s, kind in kinds.items() if kind[0] == "M")))
    letter, mark = rf"(?![{_UNSPACED}])[\w{marks}{_JOINERS}]", f"[{marks}\ufe0f]*"
    sign = rf"[^\w\s{_JOINERS}]"
    return re.findall(
        rf"[{_UNSPACED}]{mark}|(?!{sign}|[{_JOINERS}])(?:{letter})+|{sign}{mark}",
        text.translate(unseen),
    )


def fit_words(texts: Sequence[Sequence[str]], min_count: int) -> Vocabulary:
    """The vocabulary of texts that are cut into words, without those that are rarer.

    Raises:
        DataError: none of them comes so often.
    """
    vocabulary = Vocabulary.fit(texts, min_count=min_count)
    if len(vocabulary) == len(Vocabulary.fit([])):
        raise DataError(f"--min-count must leave words to learn, got {min_count}: none is so often")
    return vocabulary


def with_marks(vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary with ``START`` and ``STOP`` behind the padding and the unknown token."""
    padding, unknown, *learned = vocabulary.tokens
    return Vocabulary((padding, unknown, *_MARKS, *learned))


def learned_words(vocabulary: Vocabulary) -> int:
    """How many tokens are those of texts: all but padding, the unknown token and the marks.

    Example:
        >>> fitted = fit_words([["a", "b"]], min_count=1)
        >>> learned_words(fitted), learned_words(with_marks(fitted))
        (2, 2)
    """
    has_marks = vocabulary.tokens[START : STOP + 1] == _MARKS
    return len(vocabulary) - 2 - has_marks * len(_MARKS)


def joined_words(tokens: Sequence[str]) -> str:
    """Tokens as a text: signs stand by the word before them, and letters of scripts without blanks
    by one another.

    Example:
        >>> joined_words(["a", "man", ",", "asleep", "."])
        'a man, asleep.'
        >>> joined_words(["\\u6211", "\\u7231", "\\u3002"]) == "\\u6211\\u7231\\u3002"
        True
    """
    text = re.sub(r" ([.,!?;:)\]\u2026])", r"\1", " ".join(tokens))
    text = re.sub(r"([(\[\u00bf\u00a1]) | (['\u2019-]) ", r"\1\2", text)
    wide = _UNSPACED + _WIDE
    return re.sub(rf"(?<=[{wide}]) (?=[{wide}])|(?<=[{_WIDE}]) | (?=[{_WIDE}])", "", text)
