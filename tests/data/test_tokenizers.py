"""Tokenizers, against hand-written tokens and the regular expressions of the originals."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rnnjax.data import (
    TOKENIZERS,
    DataError,
    basic_english,
    characters,
    strip_punctuation,
    words_and_line_ends,
)

# The published rules, as regular expressions where the library uses plain replacement.
TORCHTEXT_RULES = [
    (r"\'", " '  "),
    (r"\"", ""),
    (r"\.", " . "),
    (r"<br \/>", " "),
    (r",", " , "),
    (r"\(", " ( "),
    (r"\)", " ) "),
    (r"\!", " ! "),
    (r"\?", " ? "),
    (r"\;", " "),
    (r"\:", " "),
    (r"\s+", " "),
]

PIECES = st.sampled_from([*"'\".,()!?;:<>/ \n\t\u00a0aBé", "<br />", '<br" />', "word", "<BR />"])


def torchtext_basic_english(text: str) -> list[str]:
    text = text.lower()
    for pattern, replacement in TORCHTEXT_RULES:
        text = re.sub(pattern, replacement, text)
    return text.split()


def keras_standardize_and_split(text: str) -> list[str]:
    lowered = re.sub("[A-Z]", lambda match: match.group().lower(), text)
    stripped = re.sub(r'[!"#$%&()\*\+,-\./:;<=>?@\[\\\]^_`{|}~\']', "", lowered)
    return [word for word in re.split("[ \t\n\r\v\f]+", stripped) if word]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        (" \n ", []),
        ("Hello, World!", ["hello", ",", "world", "!"]),
        ("It's 3.5% (or so)?", ["it", "'", "s", "3", ".", "5%", "(", "or", "so", ")", "?"]),
        ('He said: "go"; I went...', ["he", "said", "go", "i", "went", ".", ".", "."]),
        ("one<br />two<br/>three", ["one", "two<br/>three"]),
        ('half <br" /> tag', ["half", "tag"]),
        ("a-b_c #39;", ["a-b_c", "#39"]),
    ],
)
def test_basic_english_gives_the_tokens_of_torchtext(text, tokens):
    assert basic_english(text) == tokens == torchtext_basic_english(text)


@given(st.lists(PIECES).map("".join))
@example("<b.r />")
def test_basic_english_equals_its_rules_in_order(text):
    assert basic_english(text) == torchtext_basic_english(text)


@given(st.text())
def test_basic_english_equals_its_rules_on_any_text(text):
    assert basic_english(text) == torchtext_basic_english(text)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        ("...", []),
        ("Don't stop<br />ME, now!", ["dont", "stopbr", "me", "now"]),
        ("snake_case a-b [x] {y} `z` ~|^\\", ["snakecase", "ab", "x", "y", "z"]),
        ("ÉCOLE straße", ["École", "straße"]),
        ("a\u00a0b", ["a\u00a0b"]),
        ("“quoted” — dash", ["“quoted”", "—", "dash"]),
    ],
)
def test_strip_punctuation_gives_the_tokens_of_keras(text, tokens):
    assert strip_punctuation(text) == tokens == keras_standardize_and_split(text)


@given(st.text() | st.text(alphabet="aZé!\"#$%&()*+,-./:;<=>?@[\\]^_`{|}~' \t\n\x1c\u2028"))
def test_strip_punctuation_equals_its_rules_on_any_text(text):
    assert strip_punctuation(text) == keras_standardize_and_split(text)


def test_strip_punctuation_accepts_a_lone_surrogate():
    assert strip_punctuation("A \ud800!") == ["a", "\ud800"]


@given(st.text())
def test_characters_lose_nothing(text):
    assert "".join(characters(text)) == text


@pytest.mark.parametrize("text", [None, 0, b"a film", ["a", "film"]])
@pytest.mark.parametrize("tokenize", [*TOKENIZERS.values(), words_and_line_ends])
def test_what_is_no_text_is_refused(tokenize, text):
    """A missing cell of a table would be an empty text, and a list the characters of one."""
    with pytest.raises(DataError, match=f"text must be a string, got {re.escape(repr(text))}"):
        tokenize(text)


def test_every_tokenizer_is_known_by_its_name():
    assert {name: function.__name__ for name, function in TOKENIZERS.items()} == {
        "basic_english": "basic_english",
        "strip_punctuation": "strip_punctuation",
        "characters": "characters",
    }
