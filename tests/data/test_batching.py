"""Padding, buckets and batches, against brute force and plain loops."""

import pickle
import tracemalloc
from itertools import combinations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnjax.data import (
    BucketedBatches,
    DataError,
    Examples,
    PackedBatches,
    Ragged,
    choose_boundaries,
    flatten,
    pad,
    split,
    truncate,
)
from rnnjax.data.boundaries import best_cuts

IDS = st.integers(-(2**31), 2**31 - 1)
SEQUENCES = st.lists(st.lists(IDS, max_size=7), max_size=8)
EXAMPLES = st.lists(
    st.tuples(st.lists(st.integers(1, 99), min_size=1, max_size=12), st.integers(0, 4)),
    min_size=1,
    max_size=30,
)


def batches_of(examples, **settings):
    sequences = [ids for ids, _ in examples]
    labels = [label for _, label in examples]
    chosen = {"batch_size": 4, "boundaries": (3, 6, 12), "seed": 0} | settings
    return BucketedBatches(sequences, labels, **chosen)


def some_batches(**settings):
    random = np.random.default_rng(1)
    examples = [
        (random.integers(1, 50, length).tolist(), int(length % 3))
        for length in random.integers(1, 13, 100)
    ]
    return batches_of(examples, **settings)


# Padding


def test_pad_puts_zeros_on_the_right():
    tokens, lengths = pad([[1, 6, 9], [], [5]])
    np.testing.assert_array_equal(tokens, [[1, 6, 9], [0, 0, 0], [5, 0, 0]])
    np.testing.assert_array_equal(lengths, [3, 0, 1])
    assert tokens.dtype == lengths.dtype == np.int32


def test_pad_takes_a_length_and_a_value():
    tokens, _ = pad([[1], [2, 3]], length=4, value=-7)
    np.testing.assert_array_equal(tokens, [[1, -7, -7, -7], [2, 3, -7, -7]])


def test_pad_of_nothing_is_empty():
    tokens, lengths = pad([], length=5)
    assert tokens.shape == (0, 5)
    assert lengths.shape == (0,)


@given(SEQUENCES)
def test_pad_loses_and_adds_nothing(sequences):
    tokens, lengths = pad(sequences)
    rows = zip(tokens.tolist(), lengths.tolist(), strict=True)
    assert [row[:length] for row, length in rows] == sequences
    assert tokens.shape[1] == max(map(len, sequences), default=0)
    rest = [value for row, s in zip(tokens, sequences, strict=True) for value in row[len(s) :]]
    assert not any(rest)


@given(SEQUENCES)
def test_pad_takes_arrays_as_it_takes_lists(sequences):
    arrays = [np.array(sequence, np.int64) for sequence in sequences]
    np.testing.assert_array_equal(pad(arrays)[0], pad(sequences)[0])


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([[1], [2, 3, 4]], "sequence 1 must have at most 2 steps, got 3"),
        ([["a"]], "sequence 0 must have integers or floats, got 1 axes of <U1"),
        ([[True]], "sequence 0 must have integers or floats, got 1 axes of bool"),
        ([[1], [[1, 2]]], r"sequence 1 must have steps of shape \(\) as before, got \(2,\)"),
        ([[[1], [1, 2]]], "sequence 0 must have steps of one shape, of integers or floats"),
        ([[], [1, 2**31]], "sequence 1 must have 32-bit integers, got 2147483648"),
        (
            [[0.5], [1.0, -1e300]],
            r"1 must have numbers that float32 can hold, got -1e\+300",
        ),
        (
            [np.ma.masked_array([1, 2], [0, 1])],
            r"0 must have no masked numbers, got \[1 --",
        ),
        ([[1], [2, np.ma.masked]], r"1 must have no masked numbers, got \[2, masked"),
        (
            [[[1, 2], np.ma.masked_array([1, 2], [0, 1])]],
            r"0 must have no masked numbers, got \[\[1, 2\], masked_array",
        ),
    ],
)
def test_pad_names_the_sequence_that_does_not_fit(sequences, message):
    with pytest.raises(DataError, match=message):
        pad(sequences, length=2)


@given(SEQUENCES)
def test_flat_values_know_their_sequence(sequences):
    ragged = flatten(sequences)
    owners = [i for i, sequence in enumerate(sequences) for _ in sequence]
    assert [ragged.row_of(position) for position in range(len(owners))] == owners


def test_many_sequences_are_laid_down_as_few_are():
    """More than are looked at together: floats come late, and an odd one has its own number."""
    ragged = flatten([*[[1]] * 1500, [0.5], []])
    assert ragged.values.tolist() == [1.0] * 1500 + [0.5]
    assert flatten(ragged) is ragged
    with pytest.raises(DataError, match="sequence 1500 must be a list or an array, got None"):
        flatten([*[[1]] * 1500, None])
    with pytest.raises(DataError, match="sequence 1500 must have steps of shape"):
        flatten([*[[1]] * 1500, [[1, 2]]])
    for others in (10, 1500):
        with pytest.raises(DataError, match=f"sequence 0 must .*32-bit integers, got {2**40}"):
            flatten([[2**40], *[[1]] * others, [0.5]])


def test_truncate_keeps_the_head_or_the_tail():
    sequences = [[1, 2, 3, 4], [5, 6]]
    assert truncate(sequences, 3) == [[1, 2, 3], [5, 6]]
    assert truncate(sequences, 3, keep="tail") == [[2, 3, 4], [5, 6]]
    for keep, expected in (("head", [[1, 2, 3], [5, 6]]), ("tail", [[2, 3, 4], [5, 6]])):
        laid = truncate(flatten(sequences), np.int64(3), keep=keep)
        assert [part.tolist() for part in laid] == expected
    assert truncate(flatten([[], [1, 2]]), 1)[1].tolist() == [1]
    assert truncate(flatten([]), 1) == []
    assert truncate(sequences, 4)[0] is sequences[0]


def test_truncate_refuses_what_it_does_not_know():
    with pytest.raises(DataError, match="max_length must be at least 1, got 0"):
        truncate([[1]], 0)
    with pytest.raises(DataError, match=r"max_length must be an integer, got 2\.5"):
        truncate([[1]], 2.5)
    with pytest.raises(DataError, match="got 'middle'"):
        truncate([[1]], 1, keep="middle")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="sequence 1 must be a list or an array, got None"):
        truncate([[1], None], 1)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("values", "offsets", "message"),
    [
        (np.arange(5), np.array([0, 5]), "values must be a NumPy array of int32 .*, got int64"),
        ([1, 2], np.array([0, 2]), r"values must be a NumPy array of int32 .*, got \[1, 2\]"),
        (np.ones(2, "f4"), np.array([0.0, 2.0]), "offsets must be a NumPy array .* got float64"),
        (np.ones(5, "i4"), np.array([0, 2, 9]), r"offsets must rise from 0 to 5, .* got \[0 2 9\]"),
        (np.ones(5, "i4"), np.array([0, 4, 2, 5]), "offsets must rise"),
        (np.ones(5, "i4"), np.array([1, 5]), "offsets must rise"),
        (np.ones(0, "i4"), np.array([], int), "offsets must rise"),
    ],
)
def test_sequences_that_somebody_else_has_laid_end_to_end_are_looked_at(values, offsets, message):
    with pytest.raises(DataError, match=message):
        pad(Ragged(values, offsets))


class Column:
    """Rows that have kept their names, as those of a filtered data frame have."""

    def __init__(self, rows):
        self._rows = rows

    def __len__(self):
        return len(self._rows)

    def __iter__(self):
        return iter(self._rows.values())

    def __array__(self, dtype=None, copy=None):
        return np.array(list(self), dtype)

    def __getitem__(self, name):
        return self._rows[name]


def test_labels_may_be_a_column_whose_rows_do_not_count_from_zero():
    for labels in ([2, 1], [[0, 2], [1]]):
        batches = BucketedBatches(
            Column({7: [5, 6], 9: [7]}), Column(dict(zip((7, 9), labels, strict=True))),
            batch_size=2, boundaries=(2,), seed=0, shuffle=False,
        )  # fmt: skip
        (batch,) = batches.epoch(0)
        assert batch.tokens.tolist() == [[7, 0], [5, 6]]
        assert batch.labels.tolist() == ([1, 2] if labels == [2, 1] else [[1, 0], [0, 2]])


@pytest.mark.parametrize("stratified", [False, True])
def test_a_split_of_columns_goes_by_the_places_of_their_rows(stratified):
    texts, labels = [f"{n} of {n % 2}" for n in range(8)], [n % 2 for n in range(8)]
    names = [4, 0, 9, 1, 7, 2, 11, 3]
    columns = [Column(dict(zip(names, rows, strict=True))) for rows in (texts, labels)]
    found = split(Examples(*columns), 0.5, seed=0, stratified=stratified)
    assert found == split(Examples(texts, labels), 0.5, seed=0, stratified=stratified)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("lengths", [(2, 2, 2), (3, 1, 2)])
def test_one_vector_of_labels_an_example_may_be_an_array_of_any_kind(kind, lengths):
    labels = np.arange(6, dtype=np.float32).reshape(3, 2)
    batches = BucketedBatches(
        [[1] * n for n in lengths], kind(labels), batch_size=3, boundaries=(4,), seed=0
    )
    (batch,), (order,) = batches.epoch(0), batches.epoch_indices(0)
    np.testing.assert_array_equal(batch.labels, labels[order])


def test_sequences_laid_end_to_end_are_padded_whole_or_refused():
    ragged = flatten([[1, 2, 3], [4], [5, 6, 7, 8]])
    assert ragged.padded([2, 1], 4).tolist() == [[5, 6, 7, 8], [4, 0, 0, 0]]
    with pytest.raises(DataError, match="length must be at least 4, got 2"):
        ragged.padded([2], 2)
    for row in (-1, 3):
        with pytest.raises(DataError, match=rf"rows must lie in \[0, 3\), got \[{row}\]"):
            ragged.padded([row], 4)


# Boundaries


def padded_steps(lengths, boundaries):
    return sum(min(b for b in boundaries if b >= length) for length in lengths)


def least_padded_steps(lengths, count, multiple):
    """All choices of at most ``count`` multiples that end at the one above the longest."""
    last = -(-max(lengths) // multiple) * multiple
    others = range(multiple, last, multiple)
    return min(
        padded_steps(lengths, (*chosen, last))
        for size in range(count)
        for chosen in combinations(others, size)
    )


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 4), st.integers(2, 5))
def test_boundaries_leave_the_least_padding_of_all_choices(lengths, count, multiple):
    boundaries = choose_boundaries(lengths, count, multiple)
    assert len(boundaries) <= count
    assert all(boundary % multiple == 0 for boundary in boundaries)
    assert list(boundaries) == sorted(set(boundaries))
    assert boundaries[-1] - multiple < max(lengths) <= boundaries[-1]
    assert padded_steps(lengths, boundaries) == least_padded_steps(lengths, count, multiple)


def test_boundaries_of_a_worked_example():
    assert choose_boundaries([1] * 10 + [9] * 10 + [60], count=2) == (16, 64)
    assert choose_boundaries([1] * 90 + [9] * 10 + [60], count=2) == (8, 64)
    assert choose_boundaries([5, 12], count=7) == (8, 16)
    assert choose_boundaries(np.array([3, 4], np.int32), count=1, multiple=1) == (4,)


def cuts_by_tables(sizes, counts, buckets):
    """The dynamic programme with a table of every bucket's cost, the first of equal ones."""
    upto = np.concatenate([[0], np.cumsum(counts)])
    cost = sizes * (upto[1:] - upto[:-1, None])
    cost[np.tri(len(sizes), k=-1, dtype=bool)] = np.inf
    best, choices = cost[0], []
    for _ in range(buckets - 1):
        total = np.concatenate([[np.inf], best[:-1]])[:, None] + cost
        choices.append(total.argmin(axis=0))
        best = total.min(axis=0)
    cuts = [len(sizes) - 1]
    for choice in reversed(choices):
        cuts.append(int(choice[cuts[-1]]) - 1)
    return cuts[::-1]


@given(st.dictionaries(st.integers(1, 60), st.integers(1, 9), min_size=2), st.data())
def test_cuts_are_those_of_the_plain_tables(found, data):
    sizes = sorted(found)
    counts = [found[size] for size in sizes]
    buckets = data.draw(st.integers(1, len(sizes)))
    expected = cuts_by_tables(np.array(sizes, float), counts, buckets)
    assert best_cuts(sizes, counts, buckets) == expected


def test_boundaries_of_many_distinct_lengths_take_little_memory():
    lengths = np.arange(1, 5001)
    tracemalloc.start()
    boundaries = choose_boundaries(lengths, count=8, multiple=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert boundaries == tuple(range(625, 5001, 625))
    assert peak < 8 << 20


@pytest.mark.parametrize(
    ("lengths", "count", "multiple"), [([], 2, 8), ([3, 0], 2, 8), ([3], 0, 8), ([3], 1, 0)]
)
def test_boundaries_refuse_what_cannot_be_divided(lengths, count, multiple):
    with pytest.raises(DataError, match="must be"):
        choose_boundaries(lengths, count, multiple)


@pytest.mark.parametrize("lengths", [np.ma.masked_array([3, 4], [0, 1]), [3, np.ma.masked]])
def test_boundaries_refuse_masked_lengths(lengths):
    with pytest.raises(DataError, match=r"lengths must have no masked numbers, got \[3"):
        choose_boundaries(lengths, 2)


def test_tensors_that_numpy_cannot_read_are_refused_by_name():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for tensor, reason in (
        (torch.ones(2, requires_grad=True), "Can't call numpy"),
        (torch.ones(2, dtype=torch.bfloat16), "Got unsupported ScalarType BFloat16"),
    ):
        for row, kind in ((tensor, "Tensor"), (list(tensor), "list")):
            message = rf"sequence 1 must be readable by NumPy, got {kind}: {reason}"
            with pytest.raises(DataError, match=message):
                pad([[1.0], row])
        for labels in (tensor, [list(tensor), list(tensor)]):
            with pytest.raises(DataError, match="must be readable by NumPy, got "):
                BucketedBatches([[1, 2], [3, 4]], labels, batch_size=2, boundaries=(2,), seed=0)
        with pytest.raises(DataError, match="lengths must be integers, got tensor"):
            choose_boundaries(tensor, 2)


# Batches


@given(EXAMPLES, st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_every_example_appears_once_with_its_label(examples, batch_size, n, shuffle):
    batches = batches_of(examples, batch_size=batch_size, shuffle=shuffle)
    seen = [
        (tokens[:length].tolist(), int(label))
        for batch in batches.epoch(n)
        for tokens, length, label, weight in zip(*batch, strict=True)
        if weight
    ]
    assert sorted(seen) == sorted(examples)


@given(EXAMPLES, st.integers(1, 5), st.booleans())
def test_rows_are_the_examples_that_epoch_indices_names(examples, batch_size, shuffle):
    batches = batches_of(examples, batch_size=batch_size, shuffle=shuffle)
    for batch, rows in zip(batches.epoch(2), batches.epoch_indices(2), strict=True):
        expected, lengths = pad([examples[i][0] for i in rows], length=batch.tokens.shape[1])
        real = len(rows)
        np.testing.assert_array_equal(batch.tokens[:real], expected)
        np.testing.assert_array_equal(batch.lengths[:real], lengths)
        np.testing.assert_array_equal(batch.labels[:real], [examples[i][1] for i in rows])
        np.testing.assert_array_equal(batch.weights, [1.0] * real + [0.0] * (batch_size - real))


@given(EXAMPLES, st.integers(1, 5))
def test_filler_rows_are_empty_in_every_field(examples, batch_size):
    for batch in batches_of(examples, batch_size=batch_size).epoch(0):
        filler = batch.lengths == 0  # no example is empty
        np.testing.assert_array_equal(batch.weights, np.where(filler, 0, 1))
        assert not any(field[filler].any() for field in batch)


@given(EXAMPLES, st.integers(1, 5))
def test_shapes_and_counts_are_those_of_the_epoch(examples, batch_size):
    batches = batches_of(examples, batch_size=batch_size)
    epoch = list(batches.epoch(1))
    assert len(batches) == len(epoch)
    assert set(batches.shapes) == {batch.tokens.shape for batch in epoch}
    assert len(batches.shapes) == len(set(batches.shapes)) <= 3
    steps = sum(batch.tokens.size for batch in epoch)
    real = sum(int(batch.lengths.sum()) for batch in epoch)
    assert batches.padding_fraction == pytest.approx(1 - real / steps)


@given(EXAMPLES)
def test_each_example_is_in_the_smallest_bucket_that_holds_it(examples):
    for batch in batches_of(examples).epoch(0):
        boundary = batch.tokens.shape[1]
        smaller = {3: 0, 6: 3, 12: 6}[boundary]
        assert all(smaller < length <= boundary for length in batch.lengths[batch.weights > 0])


def test_batches_have_the_documented_types():
    for batch in some_batches().epoch(0):
        types = [field.dtype for field in batch]
        assert types == [np.int32, np.int32, np.int32, np.float32]
        assert batch.tokens.shape[0] == 4
        assert batch.lengths.shape == batch.labels.shape == batch.weights.shape == (4,)


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(batches, n):
        return [rows.tolist() for rows in batches.epoch_indices(n)]

    used = some_batches(seed=3)
    list(used.epoch(0))
    list(used.epoch(7))
    assert order(used, 5) == order(some_batches(seed=3), 5)
    assert order(used, 5) != order(used, 6)
    assert order(used, 5) != order(some_batches(seed=4), 5)
    assert order(used, 5) != order(some_batches(seed=4), 4)  # no epoch of another seed either


def test_shuffled_batches_mix_the_buckets():
    lengths = [batch.tokens.shape[1] for batch in some_batches().epoch(0)]
    assert lengths != sorted(lengths)


def test_unshuffled_epochs_are_equal_and_rise_in_length():
    batches = some_batches(shuffle=False)
    lengths = [length for batch in batches.epoch(0) for length in batch.lengths if length]
    assert lengths == sorted(lengths)
    for first, second in zip(batches.epoch_indices(0), batches.epoch_indices(9), strict=True):
        np.testing.assert_array_equal(first, second)
    # Those of equal length keep their order.
    rows = np.concatenate(batches.epoch_indices(0))
    steps = np.concatenate([batch.lengths[batch.lengths > 0] for batch in batches.epoch(0)])
    assert sorted(zip(steps, rows, strict=True)) == list(zip(steps, rows, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0, 1]}, r"labels must have one for each of 3 sequences, got shape \(2,\)"),
        ({"sequences": [], "labels": []}, "sequences must have at least 1 sequence, got none"),
        ({"sequences": [[1], [], []]}, "sequence 1 must have at least 1 step, got 0"),
        ({"sequences": [[1], [2], [3] * 5]}, "sequence 2 must have at most 4 steps, got 5"),
        ({"sequences": [[1], [2, 10], [11]]}, r"sequence 1 must have ids in \[0, 10\), got 10"),
        ({"sequences": [[1], [2], [-1]]}, r"sequence 2 must have ids in \[0, 10\), got -1"),
        ({"labels": [0, 3, 4]}, r"sequence 1 must have labels in \[0, 3\), got 3"),
        ({"labels": [0, 1, -1]}, r"sequence 2 must have labels in \[0, 3\), got -1"),
        (
            {"labels": [0, 1, -1], "num_classes": None},
            "2 must have labels from 0 up, .* got -1",
        ),
        ({"labels": [[0, 1], [-100], [0] * 4], "num_classes": None}, "sequence 1 must .* got -100"),
        ({"labels": [0.0, np.nan, 1.0], "num_classes": None}, "1 must .* finite, got nan"),
        ({"labels": [[0.5, 1], [1], [np.inf] * 4], "num_classes": None}, "2 must .* got inf"),
        ({"labels": [0.0, 1e300, 1.0], "num_classes": None}, r"float32 can hold, got 1e\+300"),
        ({"labels": [0, 2**31, 1], "num_classes": None}, "32-bit integers, got 2147483648"),
        ({"labels": [0, [1], 2]}, "labels must have steps of one shape, of integers or floats"),
        ({"labels": {0, 1, 2}}, r"labels must have integers or floats, got \{0, 1, 2\}"),
        ({"labels": [0.0, 1.0, 2.0]}, r"labels must be integers in \[0, 3\), got float32"),
        ({"labels": ["a", "b", "c"], "num_classes": None}, "labels must have integers or floats"),
        ({"labels": [[0], [1], [2]]}, r"of 2 steps, got 1 \(one vector a sequence is an array"),
        ({"labels": [[0, 1], [1]]}, "labels must have one sequence for each of 3 sequences, got 2"),
        ({"labels": [[0, 1], [3], [0] * 4]}, r"sequence 1 must have labels in \[0, 3\), got 3"),
        ({"labels": [[0, 0.5], [1], [0] * 4]}, "labels must be integers in .*, got float32"),
        ({"sequences": [[0.5], [2], [3]]}, r"ids must be integers in \[0, 10\), got float32"),
        ({"boundaries": ()}, "boundaries must be rising lengths"),
        ({"boundaries": (4, 4)}, "boundaries must be rising lengths"),
        ({"boundaries": (0, 4)}, "boundaries must be rising lengths"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"batch_size": 2.5}, "batch_size must be an integer, got 2.5"),
        ({"batch_size": True}, "batch_size must be an integer, got True"),
        ({"batch_size": "2"}, "batch_size must be an integer, got '2'"),
        ({"seed": None}, "seed must be an integer, got None"),
        ({"seed": 1.5}, "seed must be an integer, got 1.5"),
        ({"shuffle": "no"}, "shuffle must be True or False, got 'no'"),
        ({"boundaries": (2.7, 4)}, r"boundaries must be integers, got \(2.7, 4\)"),
        ({"boundaries": None}, "boundaries must be integers, got None"),
        ({"vocab_size": "10"}, "vocab_size must be an integer, got '10'"),
        ({"num_classes": 3.0}, "num_classes must be an integer, got 3.0"),
        ({"labels": None}, "labels must have integers or floats, got None"),
        ({"sequences": [[1], None, [2]]}, "sequence 1 must be a list or an array, got None"),
        ({"sequences": [1, 2, 3]}, "sequence 0 must be a list or an array, got 1"),
        ({"sequences": None}, "sequences must be several lists or arrays, got None"),
    ],
)
def test_the_first_thing_that_does_not_fit_is_named(changes, message):
    arguments = {
        "sequences": [[1, 2], [3], [4, 5, 6, 7]],
        "labels": [0, 1, 2],
        "batch_size": 2,
        "boundaries": (2, 4),
        "seed": 0,
        "vocab_size": 10,
        "num_classes": 3,
    }
    with pytest.raises(DataError, match=message):
        BucketedBatches(**(arguments | changes))


# Floats, vectors, labels a step

STEPS = st.lists(
    st.lists(st.tuples(*[st.floats(-9, 9, width=32)] * 2), min_size=1, max_size=6),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("batches", [BucketedBatches, PackedBatches])
@given(STEPS, st.integers(1, 5), st.data())
def test_vectors_and_labels_a_step_come_back_as_they_were(batches, sequences, batch_size, data):
    labels = [data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))
              for n in map(len, sequences)]  # fmt: skip
    lengths = {"boundaries": (3, 6)} if batches is BucketedBatches else {"row_length": 6}
    made = batches(sequences, labels, batch_size=batch_size, seed=0, **lengths)
    found = []
    for batch in made.epoch(1):
        assert batch.tokens.dtype == np.float32
        assert batch.labels.dtype == np.int32
        assert batch.labels.shape == batch.tokens.shape[:2]
        for j in np.flatnonzero(batch.weights):
            if batches is BucketedBatches:
                steps = np.arange(batch.tokens.shape[1]) < batch.lengths[j]
                pieces = batch.tokens[j][steps], batch.labels[j][steps]
                assert not batch.tokens[j][~steps].any()
                assert not batch.labels[j][~steps].any()
            else:
                here = batch.segment_ids == j + 1
                pieces = batch.tokens[here], batch.labels[here]
            found.append(tuple(map(str, (piece.tolist() for piece in pieces))))
    given_rows = [
        (str([list(x) for x in s]), str(y)) for s, y in zip(sequences, labels, strict=True)
    ]
    assert sorted(found) == sorted(given_rows)


@pytest.mark.parametrize("batches", [BucketedBatches, PackedBatches])
def test_batches_without_labels_are_those_with_labels_and_have_none(batches):
    sequences = [[1, 2], [3], [4, 5, 6, 7], [8]]
    room = {"boundaries": (2, 4)} if batches is BucketedBatches else {"row_length": 4}
    without = batches(sequences, None, batch_size=2, seed=3, **room)
    with_labels = batches(sequences, [0, 1, 2, 3], batch_size=2, seed=3, **room)
    for batch, other in zip(without.epoch(1), with_labels.epoch(1), strict=True):
        assert batch.labels is None
        for name in batch._fields:
            if name != "labels":
                np.testing.assert_array_equal(getattr(batch, name), getattr(other, name))


def test_targets_of_an_example_may_be_floats_and_vectors():
    sequences = [[1, 2], [3], [4, 5, 6]]
    for labels in ([0.5, -1.0, 2.0], np.arange(6.0).reshape(3, 2), np.arange(6).reshape(3, 2)):
        for made in (
            BucketedBatches(sequences, labels, batch_size=4, boundaries=(3,), seed=0),
            PackedBatches(sequences, labels, batch_size=4, row_length=3, seed=0),
        ):
            (batch,), (rows,) = made.epoch(0), made.epoch_indices(0)
            np.testing.assert_array_equal(batch.labels[:3], np.asarray(labels)[rows])
            assert not batch.labels[3].any()
            assert batch.labels.dtype == (np.float32 if np.asarray(labels).dtype == float else "i4")


def test_pad_takes_floats_and_vectors_of_any_kind():
    padded, lengths = pad([[0.5], [], [1, 2.5]], value=-1.5)
    np.testing.assert_array_equal(padded, [[0.5, -1.5], [-1.5, -1.5], [1, 2.5]])
    np.testing.assert_array_equal(lengths, [1, 0, 2])
    assert padded.dtype == np.float32
    assert pad([[1], [2.5]])[0].tolist() == [[1.0], [2.5]]
    half = np.ones((2, 3), np.float16)
    images = pad([half, half[:1]], length=4)[0]
    assert images.shape == (2, 4, 3)
    assert images.dtype == np.float32
    assert images.sum(axis=(1, 2)).tolist() == [6, 3]
    ids = pad([np.ones((2, 3), np.uint8), np.zeros((0,), np.int64)])[0]
    assert ids.shape == (2, 2, 3)
    assert ids.dtype == np.int32
    none = pad([np.zeros((0, 5)), []], length=2)[0]
    assert none.shape == (2, 2, 5)
    assert none.dtype == np.float32
    with pytest.raises(DataError, match=r"1 must have steps of shape \(5,\) as before, got \(3,\)"):
        pad([np.zeros((0, 5)), np.ones((2, 3))])
    with pytest.raises(DataError, match=r"value must be an integer of 32 bits, got 0\.5"):
        pad([[1]], value=0.5)
    for value in (np.nan, np.inf):
        with pytest.raises(DataError, match="value must be an integer of 32 bits"):
            pad([[1]], value=value)
    for value in (1e300, -(10**400)):
        with pytest.raises(DataError, match="value must be a number that float32 can hold"):
            pad([[1.5]], value=value)
    for value in (None, "0", True):
        with pytest.raises(DataError, match="value must be a number"):
            pad([[1]], value=value)
    assert np.isnan(pad([[1.0], []], value=np.float32(np.nan))[0][1, 0])
    with pytest.raises(DataError, match=r"length must be an integer, got 2\.0"):
        pad([[1]], length=2.0)


def test_batches_say_what_they_are_and_go_through_pickle():
    batches = some_batches()
    text = "BucketedBatches(100 examples in 26 batches of 4, boundaries=(3, 6, 12))"
    assert repr(batches) == text
    again = pickle.loads(pickle.dumps(batches))
    assert repr(again) == text
    for first, second in zip(batches.epoch(3), again.epoch(3), strict=True):
        for one, two in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, two)
    packed = PackedBatches([[1], [2, 3]], [0, 1], batch_size=2, row_length=3, seed=0)
    assert repr(pickle.loads(pickle.dumps(packed))) == (
        "PackedBatches(2 examples in 1 batches of 2, row_length=3)"
    )


def test_batches_without_an_epoch_say_what_to_ask_for():
    packed = PackedBatches([[1], [2, 3]], [0, 1], batch_size=2, row_length=3, seed=0)
    for batches in (some_batches(), packed):
        kind = type(batches).__name__
        with pytest.raises(TypeError, match=rf"{kind} .* `for batch in batches\.epoch\(0\)`"):
            list(batches)


def test_a_negative_epoch_is_refused():
    with pytest.raises(DataError, match="at least 0, got -1"):
        some_batches().epoch_indices(-1)
