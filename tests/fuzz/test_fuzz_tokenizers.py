"""Fuzzing of the tokenizers: any text there can be, against slow rules written here."""

import re
import unicodedata

from fuzzing import ANY_TEXT, ODD_TEXTS, examples
from hypothesis import example, given
from hypothesis import strategies as st

from rnnjax.data import TOKENIZERS, basic_english, characters, strip_punctuation

PUNCTUATED = st.text("ab'\".,()!?;:<br/> \tX\u0130", max_size=40)
TEXTS = st.one_of(ANY_TEXT, PUNCTUATED)


def every_odd_text(test):
    for text in ODD_TEXTS:
        test = example(text)(test)
    return test


def words_of(text):
    """A loop over characters: ASCII alone is folded, stripped and split at."""
    words, word = [], ""
    for char in text + " ":
        if char in " \t\n\r\x0b\f":
            words, word = ([*words, word] if word else words), ""
        elif not (char.isascii() and unicodedata.category(char)[0] in "PS"):
            word += char.lower() if char.isascii() else char
    return words


@examples(80)
@every_odd_text
@given(TEXTS)
def test_strip_punctuation_is_the_loop_over_characters(text):
    if len(text) < 1000:
        assert strip_punctuation(text) == words_of(text)
    assert all(strip_punctuation(text))


@examples(80)
@every_odd_text
@given(TEXTS)
def test_basic_english_loses_nothing_but_what_it_is_to_lose(text):
    tokens = basic_english(text)
    assert all(token and token == "".join(token.split()) for token in tokens)
    # Each mark is a token of its own.
    assert not any(len(token) > 1 and set(token) & set(".,()!?'\";:") for token in tokens)
    kept = re.sub(r'["]', "", text.lower()).replace(".", " . ").replace("<br />", " ")
    assert "".join(tokens) == "".join(kept.replace(";", " ").replace(":", " ").split())


@examples(60)
@every_odd_text
@given(TEXTS)
def test_characters_put_together_are_the_text(text):
    assert "".join(characters(text)) == text
    assert all(len(token) == 1 for token in characters(text))


@examples(60)
@given(st.sampled_from(sorted(TOKENIZERS)), TEXTS, TEXTS)
def test_texts_apart_are_tokens_apart(name, first, second):
    tokenize = TOKENIZERS[name]
    space = [" "] if name == "characters" else []
    assert tokenize(first + " " + second) == [*tokenize(first), *space, *tokenize(second)] or (
        # A tag may stand across the seam: "<br" and "/>" make one.
        name == "basic_english" and "<br />" in (first + " " + second).replace('"', "").lower()
    )
