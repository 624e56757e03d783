"""Fuzzing of the vocabulary: any tokens, any file."""

import json

import numpy as np
import pytest
from fuzzing import ANY_TEXT, ODD_TEXTS, examples, mutated
from hypothesis import example, given
from hypothesis import strategies as st

from rnnjax.data import TOKENIZERS, DataError, Vocabulary

SPECIALS = ["<pad>", "<unk>"]
TOKENS = st.one_of(ANY_TEXT, st.sampled_from([*SPECIALS, *ODD_TEXTS[:-1]]))


def content(tokens):
    return json.dumps({"format": "rnnjax-vocabulary", "version": 1, "tokens": tokens}).encode()


def is_text(token):
    try:
        token.encode()
    except UnicodeEncodeError:
        return False
    return True


def expected_tokens(token_lists, max_size, min_count):
    """Counting by hand: the most frequent first, ties from high to low."""
    found = [token for tokens in token_lists for token in tokens if token not in SPECIALS]
    kept = {token for token in found if found.count(token) >= min_count}
    ordered = sorted(kept, reverse=True)
    ordered.sort(key=found.count, reverse=True)
    return (SPECIALS + ordered)[:max_size]


@examples(80)
@given(st.lists(st.lists(TOKENS, max_size=6), max_size=6), st.integers(2, 9), st.integers(1, 3))
def test_fit_counts_any_tokens_as_by_hand(token_lists, max_size, min_count):
    vocabulary = Vocabulary.fit(token_lists, max_size=max_size, min_count=min_count)
    assert list(vocabulary.tokens) == expected_tokens(token_lists, max_size, min_count)


@examples(80)
@given(st.lists(TOKENS, max_size=9), st.lists(TOKENS, max_size=9))
def test_ids_of_any_tokens_are_in_range_and_mean_what_they_meant(learned, tokens):
    vocabulary = Vocabulary.fit([learned])
    ids = vocabulary.encode(tokens)
    known = set(learned) - set(SPECIALS)
    assert len(ids) == max(1, len(tokens))
    assert all(1 <= index < len(vocabulary) for index in ids)
    expected = [token if token in known else "<unk>" for token in tokens] or ["<unk>"]
    assert vocabulary.decode(ids) == expected
    assert vocabulary.decode(np.array(ids, np.int16)) == expected


@examples(60)
@given(st.sampled_from(sorted(TOKENIZERS)), ANY_TEXT)
@example("basic_english", ODD_TEXTS[-1])
@example("characters", ODD_TEXTS[-1])
@example("strip_punctuation", ODD_TEXTS[-1])
def test_any_text_comes_back_token_for_token(name, text):
    tokens = TOKENIZERS[name](text)
    vocabulary = Vocabulary.fit([tokens])
    assert vocabulary.decode(vocabulary.encode(tokens)) == (tokens or ["<unk>"])


@examples(60)
@given(tokens=st.lists(TOKENS, max_size=6))
def test_a_saved_vocabulary_is_the_same_or_is_not_saved(tmp_path, tokens):
    path = tmp_path / "v.json"
    path.unlink(missing_ok=True)
    vocabulary = Vocabulary.fit([tokens])
    if all(map(is_text, vocabulary.tokens)):
        vocabulary.save(path)
        assert Vocabulary.load(path) == vocabulary
        assert json.loads(path.read_bytes())["tokens"] == list(vocabulary.tokens)
    else:
        with pytest.raises(DataError, match=r"^token \d+ must be Unicode text"):
            vocabulary.save(path)
        assert not path.exists()


GOOD = content(["<pad>", "<unk>", "film", "\u00e9", "\U0001f680"])


@examples(250)
@given(data=st.one_of(st.binary(max_size=60), mutated(GOOD)))
@example(content(["<pad>", "<unk>", "\ud800"]))
@example(content(["<pad>", "<unk>", "a", "a"]))
@example(content(["<pad>", "<unk>", 3]))
@example(content("<pad><unk>"))
@example(b"[" * 100_000)
@example(b"\xef\xbb\xbf" + GOOD)
@example(GOOD.decode().encode("utf-16"))
@example(b'{"format": "rnnjax-vocabulary", "version": ' + b"1" * 5000 + b"}")
def test_a_file_of_any_bytes_is_refused_by_name_or_holds_those_tokens(tmp_path, data):
    path = tmp_path / "v.json"
    path.write_bytes(data)
    try:
        found = Vocabulary.load(path)
    except DataError as error:
        named = str(path) in str(error)
    else:
        named = True
        assert list(found.tokens) == json.loads(data)["tokens"]
        assert found.tokens[:2] == tuple(SPECIALS)
        assert found.decode(found.encode(found.tokens[2:])) == list(found.tokens[2:] or ["<unk>"])
    assert named


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    with pytest.raises(DataError, match="got a folder"):
        Vocabulary.load(tmp_path)


@examples(40)
@given(st.one_of(st.integers(), st.floats(), st.none(), st.text(max_size=2), st.booleans()))
def test_decode_takes_ids_and_nothing_like_them(value):
    vocabulary = Vocabulary.fit([["yes", "no"]])
    if type(value) is int and 0 <= value < 4:
        assert vocabulary.decode([value]) == [["<pad>", "<unk>", "yes", "no"][value]]
    else:
        with pytest.raises(DataError, match=r"^id must"):
            vocabulary.decode([value])
