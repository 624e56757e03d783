"""Vocabulary: the order of ids, what is unknown, and files that are not what they should be."""

import json
import os
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnjax.data import PADDING, UNKNOWN, DataError, Vocabulary

TOKEN_LISTS = st.lists(st.lists(st.text(max_size=3), max_size=6), max_size=6)
WORDS = Vocabulary(("<pad>", "<unk>", "film", "good"))


def keras_order(token_lists):
    """Keras sorts by (count, token) with lexsort and reverses; its tokens are UTF-8 bytes."""
    counts = Counter(token for tokens in token_lists for token in tokens)
    tokens = np.array([token.encode() for token in counts], dtype=object)
    order = np.lexsort((tokens, np.array(list(counts.values()))))[::-1]
    return [tokens[i].decode() for i in order]


def test_the_special_ids_are_padding_zero_and_unknown_one():
    assert (PADDING, UNKNOWN) == (0, 1)
    assert Vocabulary.fit([]).tokens == ("<pad>", "<unk>")


def test_ids_follow_count_then_token_from_high_to_low():
    vocabulary = Vocabulary.fit([["b", "a", "c"], ["c", "d"], ["é", "Z"]])
    assert vocabulary.tokens == ("<pad>", "<unk>", "c", "é", "d", "b", "a", "Z")


@given(TOKEN_LISTS.filter(lambda lists: any(lists)))
def test_ids_are_in_the_order_of_keras(token_lists):
    assert list(Vocabulary.fit(token_lists).tokens[2:]) == keras_order(token_lists)


def test_max_size_counts_the_special_entries():
    token_lists = [["a", "a", "a", "b", "b", "c"]]
    assert Vocabulary.fit(token_lists, max_size=4).tokens == ("<pad>", "<unk>", "a", "b")
    assert len(Vocabulary.fit(token_lists, max_size=2)) == 2
    assert len(Vocabulary.fit(token_lists, max_size=50)) == 5


def test_min_count_leaves_out_rare_tokens():
    assert Vocabulary.fit([["a", "a", "b"]], min_count=2).tokens == ("<pad>", "<unk>", "a")


def test_unknown_tokens_and_empty_texts_encode_to_unknown():
    assert WORDS.encode(["good", "bad", "film"]) == [3, 1, 2]
    assert WORDS.encode([]) == [UNKNOWN]


def test_a_text_cannot_spell_a_special_token():
    vocabulary = Vocabulary.fit([["<pad>", "<pad>", "<unk>", "film"]])
    assert vocabulary.tokens == ("<pad>", "<unk>", "film")
    assert vocabulary.encode(["<pad>", "<unk>", "film"]) == [UNKNOWN, UNKNOWN, 2]


@given(TOKEN_LISTS, st.integers(2, 8))
def test_known_tokens_survive_the_round_trip(token_lists, max_size):
    vocabulary = Vocabulary.fit(token_lists, max_size=max_size)
    for tokens in filter(None, token_lists):
        expected = [t if t in vocabulary.tokens else "<unk>" for t in tokens]
        assert vocabulary.decode(vocabulary.encode(tokens)) == expected
        assert PADDING not in vocabulary.encode(tokens)


def test_decode_takes_numpy_ids():
    assert WORDS.decode(np.array([2, 3, 0], np.int32)) == ["film", "good", "<pad>"]


@pytest.mark.parametrize("index", [-1, 4])
def test_decode_refuses_an_id_outside(index):
    with pytest.raises(DataError, match=rf"\[0, 4\), got {index}"):
        WORDS.decode([2, index])


def test_a_string_in_place_of_tokens_is_refused():
    with pytest.raises(DataError, match="must be a list of strings, got 'good film'"):
        WORDS.encode("good film")
    with pytest.raises(DataError, match="list of strings, got 'good film'"):
        Vocabulary.fit(["good film"])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1, 2], "token 0 must be a string, got 1"),
        (["a", None], "token 1 must be a string, got None"),
        (["a", float("nan")], "token 1 must be a string, got nan"),
        ([b"a"], "token 0 must be a string, got b'a'"),
        ([["a"]], r"token 0 must be a string, got \['a'\]"),
        (b"abc", "tokens must be a list of strings, got b'abc'"),
        (None, "tokens must be a list of strings, got None"),
    ],
)
def test_tokens_that_are_no_strings_are_refused_and_never_just_unknown(tokens, message):
    with pytest.raises(DataError, match=message):
        WORDS.encode(tokens)
    with pytest.raises(DataError, match=message):
        Vocabulary.fit([["a"], tokens])


def test_tokens_may_be_a_list_an_array_or_a_generator():
    assert Vocabulary(list(WORDS.tokens)) == WORDS
    assert WORDS.encode(np.array(["good", "film"])) == [3, 2]
    assert WORDS.encode(word for word in ("good", "film")) == [3, 2]


@pytest.mark.parametrize("index", [True, 1.0, "1", None])
def test_an_id_that_is_no_integer_is_refused(index):
    with pytest.raises(DataError, match=f"id must be an integer, got {index!r}"):
        WORDS.decode([index])


@pytest.mark.parametrize("ids", [2, None, np.array(2)])
def test_what_has_no_ids_in_it_is_refused(ids):
    with pytest.raises(DataError, match="ids must be a list of integers, got "):
        WORDS.decode(ids)


@pytest.mark.parametrize("token_lists", [None, 3])
def test_fit_refuses_what_has_no_lists_in_it(token_lists):
    message = f"token_lists must be lists of tokens, got {token_lists}"
    with pytest.raises(DataError, match=message):
        Vocabulary.fit(token_lists)


@pytest.mark.parametrize("settings", [{"max_size": 1}, {"min_count": 0}])
def test_fit_refuses_impossible_settings(settings):
    with pytest.raises(DataError, match="must be at least"):
        Vocabulary.fit([["a"]], **settings)


def test_a_vocabulary_cannot_be_changed():
    with pytest.raises(AttributeError):
        WORDS.tokens = ()  # type: ignore[misc]


@given(TOKEN_LISTS)
def test_save_and_load_return_an_equal_vocabulary(tmp_path_factory, token_lists):
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.json"
    vocabulary = Vocabulary.fit(token_lists)
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary
    assert os.listdir(path.parent) == ["vocabulary.json"]


def test_a_file_that_ends_in_gz_is_gzipped_with_the_same_bytes_every_time(tmp_path):
    for name in ("v.json.gz", "v.JSON.GZ"):
        WORDS.save(tmp_path / name)
        assert Vocabulary.load(tmp_path / name) == WORDS
        first = (tmp_path / name).read_bytes()
        WORDS.save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == first


def test_the_file_is_plain_utf8_json(tmp_path):
    path = tmp_path / "vocabulary.json"
    Vocabulary.fit([["фильм"]]).save(path)
    assert "фильм".encode() in path.read_bytes()
    assert json.loads(path.read_bytes()) == {
        "format": "rnnjax-vocabulary",
        "version": 1,
        "tokens": ["<pad>", "<unk>", "фильм"],
    }


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "vocabulary.json"
    WORDS.save(path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        Vocabulary.fit([["other"]]).save(path)
    assert Vocabulary.load(path) == WORDS
    assert os.listdir(tmp_path) == ["vocabulary.json"]


def content(**changes):
    good = {"format": "rnnjax-vocabulary", "version": 1, "tokens": ["<pad>", "<unk>", "a"]}
    return json.dumps(good | changes).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "must be a JSON file"),
        (b"{not json", "must be a JSON file"),
        (b'"\xff"', "must have UTF-8 text, got line 1: byte 0xff"),
        (b"[" * 100_000, "must be a JSON file"),
        (b"[1, 2]", "format must be 'rnnjax-vocabulary', got None"),
        (b"{}", "format must be"),
        (content(format="other"), "got 'other'"),
        (content(version=2), "version must be 1, got 2"),
        (content(tokens=None), "tokens must be a list, got NoneType"),
        (content(tokens="abc"), "tokens must be a list, got str"),
        (content(tokens=["<pad>", "<unk>", 7]), "token 2 must be a string, got 7"),
        (content(tokens=["<pad>", "<unk>", ["a"]]), "token 2 must be a string"),
        (content(tokens=["<pad>", "<unk>", "a", "b", "a"]), r"no repeats, got \['a'\]"),
        (content(tokens=["<unk>", "<pad>", "a"]), "must have .* first"),
        (content(tokens=[]), "must have .* first"),
    ],
)
def test_load_refuses_a_bad_file_and_names_it(tmp_path, data, message):
    path = tmp_path / "bad.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"bad\.json.*{message}"):
        Vocabulary.load(path)


def test_a_vocabulary_says_what_it_is_in_a_line_and_goes_through_pickle():
    many = Vocabulary.fit([[f"w{n}" for n in range(1000)]])
    shown = "'<pad>', '<unk>', 'w999', 'w998', 'w997', 'w996', 'w995', 'w994', ..."
    assert repr(many) == f"Vocabulary(1002 tokens: {shown})"
    assert pickle.loads(pickle.dumps(many)) == many
    assert repr(Vocabulary.fit([["a"]])) == "Vocabulary(3 tokens: '<pad>', '<unk>', 'a')"


def test_a_byte_order_mark_and_line_ends_of_windows_are_no_part_of_a_vocabulary(tmp_path):
    path = tmp_path / "v.json"
    WORDS.save(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert Vocabulary.load(path) == WORDS


def test_load_says_that_a_file_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"none\.json must be a vocabulary file, got none"):
        Vocabulary.load(tmp_path / "none.json")
