"""Fuzzing of ragged, padded, bucketed and packed sequences, against lists."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

from rnnjax.data import (
    BucketedBatches,
    DataError,
    PackedBatches,
    choose_boundaries,
    flatten,
    pack,
    pad,
    truncate,
)

IDS = st.integers(-(2**31), 2**31 - 1)
DTYPES = ["list", "int8", "uint16", "int32", "int64", "uint64"]


@st.composite
def any_sequence(draw, min_size=0):
    """A list or an array of one of many dtypes, all of values that these can hold."""
    kind = draw(st.sampled_from(DTYPES))
    ids = IDS
    if kind != "list":
        info = np.iinfo(kind)
        ids = st.integers(max(int(info.min), -(2**31)), min(int(info.max), 2**31 - 1))
    values = draw(st.lists(ids, min_size=min_size, max_size=7))
    return values if kind == "list" else np.array(values, kind)


SEQUENCES = st.lists(any_sequence(), max_size=7)


def lists(sequences):
    return [[int(value) for value in sequence] for sequence in sequences]


@examples(80)
@given(SEQUENCES)
def test_flat_sequences_are_the_lists_end_to_end(sequences):
    for given_as in (sequences, iter(sequences)):
        ragged = flatten(given_as)
        assert ragged.values.dtype == np.int32
        ends = ragged.offsets.tolist()
        rows = [ragged.values[a:b].tolist() for a, b in pairwise(ends)]
        assert rows == lists(sequences)


@examples(80)
@given(SEQUENCES, st.integers(0, 9), IDS)
def test_a_padded_array_is_the_lists_filled_up(sequences, length, value):
    expected = lists(sequences)
    longest = max(map(len, expected), default=0)
    tokens, lengths = pad(sequences, None, value)
    assert tokens.shape == (len(expected), longest)
    assert tokens.tolist() == [row + [value] * (longest - len(row)) for row in expected]
    assert lengths.tolist() == list(map(len, expected))
    if longest <= length:
        tokens, _ = pad(sequences, length, value)
        assert tokens.tolist() == [row + [value] * (length - len(row)) for row in expected]
    else:
        first = next(i for i, row in enumerate(expected) if len(row) > length)
        with pytest.raises(DataError, match=f"^sequence {first} must have at most {length} steps"):
            pad(sequences, length, value)


@examples(60)
@given(SEQUENCES, st.integers(1, 8), st.sampled_from(["head", "tail"]))
def test_what_is_cut_is_one_end(sequences, max_length, keep):
    kept = [
        row[:max_length] if keep == "head" else row[max(0, len(row) - max_length) :]
        for row in lists(sequences)
    ]
    assert lists(truncate(sequences, max_length, keep)) == kept


WRONG = st.one_of(
    st.lists(st.booleans(), min_size=1, max_size=3),
    st.text(min_size=1, max_size=3),
    st.lists(st.integers(2**31, 2**70), min_size=1, max_size=3),
    st.lists(st.integers(-(2**70), -(2**31) - 1), min_size=1, max_size=3),
    st.just([[1], [2, 3]]),
    st.builds(lambda value: np.array([value], np.uint64), st.integers(2**31, 2**64 - 1)),
)


@examples(80)
@given(st.lists(any_sequence(), max_size=4), WRONG, st.lists(any_sequence(), max_size=2))
def test_what_is_no_sequence_of_ids_is_named_by_its_place(before, wrong, after):
    with pytest.raises(DataError, match=f"^sequence {len(before)} must have"):
        flatten([*before, wrong, *after])


@pytest.mark.parametrize(
    ("setting", "value"), [("length", -1), ("value", 2**31), ("value", -(2**40))]
)
def test_impossible_padding_is_named(setting, value):
    with pytest.raises(DataError, match=f"^{setting} must be "):
        pad([], **{setting: value})


@examples(80)
@given(SEQUENCES, st.integers(1, 9), st.integers(1, 5))
def test_packed_sequences_lie_whole_side_by_side_and_come_back(sequences, row_length, multiple):
    expected = lists(sequences)
    if any(len(row) > row_length for row in expected):
        with pytest.raises(DataError, match=r"^sequence \d+ must have at most"):
            pack(sequences, row_length, row_multiple=multiple)
        return
    packed = pack(sequences, row_length, row_multiple=multiple)
    assert [row.tolist() for row in packed.unpack(packed.tokens)] == expected
    # Read step by step, each row is its sequences one behind the other, and then zeros.
    seen = {}
    for row, tokens, segments in zip(
        range(len(packed.tokens)), packed.tokens.tolist(), packed.segment_ids.tolist(), strict=True
    ):
        for step, (token, segment) in enumerate(zip(tokens, segments, strict=True)):
            if segment:
                seen.setdefault(segment, []).append((row, step, token))
            else:
                assert token == 0
                assert not any(segments[step:])
    for segment, places in seen.items():
        rows, steps, tokens = zip(*places, strict=True)
        assert list(tokens) == expected[segment - 1]
        assert len(set(rows)) == 1
        assert list(steps) == list(range(steps[0], steps[0] + len(steps)))
    assert sorted(seen) == [i for i, row in enumerate(expected, 1) if row]
    assert len(packed.tokens) % multiple == 0


EXAMPLES = st.lists(
    st.tuples(st.lists(st.integers(0, 30), min_size=1, max_size=9), st.integers(0, 4)),
    min_size=1,
    max_size=12,
)


@examples(80)
@given(EXAMPLES, st.integers(1, 5), st.integers(1, 4), st.booleans(), st.integers(0, 3))
def test_an_epoch_of_batches_has_every_example_once(rows, batch_size, buckets, shuffle, n):
    ids, labels = map(list, zip(*rows, strict=True))
    boundaries = choose_boundaries([len(row) for row in ids], buckets, multiple=2)
    batches = BucketedBatches(
        ids, labels, batch_size=batch_size, boundaries=boundaries, seed=1, shuffle=shuffle
    )
    found = []
    for batch in batches.epoch(n):
        assert batch.tokens.shape in batches.shapes
        for tokens, length, label, weight in zip(*batch, strict=True):
            assert not tokens[length:].any()
            assert weight == (length > 0)
            if weight:
                found.append((tokens[:length].tolist(), int(label)))
    assert sorted(found) == sorted(rows)


@examples(60)
@given(EXAMPLES, st.integers(1, 5), st.booleans(), st.integers(0, 3))
def test_an_epoch_of_packed_batches_has_every_example_once(rows, batch_size, shuffle, n):
    ids, labels = map(list, zip(*rows, strict=True))
    batches = PackedBatches(
        ids, labels, batch_size=batch_size, row_length=9, seed=1, shuffle=shuffle
    )
    found = []
    for batch in batches.epoch(n):
        for place, (length, label, weight) in enumerate(
            zip(batch.lengths, batch.labels, batch.weights, strict=True), 1
        ):
            tokens = batch.tokens[batch.segment_ids == place].tolist()
            assert len(tokens) == length
            if weight:
                found.append((tokens, int(label)))
    assert sorted(found) == sorted(rows)


@examples(60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 3), st.integers(1, 5))
def test_no_other_boundaries_leave_less_padding(lengths, count, multiple):

    def padded(boundaries):
        return sum(min(b for b in boundaries if b >= length) for length in lengths)

    sizes = sorted({-(-length // multiple) * multiple for length in lengths})
    best = min(
        padded((*chosen, sizes[-1]))
        for k in range(count)
        for chosen in combinations(sizes[:-1], min(k, len(sizes) - 1))
    )
    found = choose_boundaries(lengths, count, multiple)
    assert len(found) <= count
    assert all(boundary % multiple == 0 for boundary in found)
    assert padded(found) == best
