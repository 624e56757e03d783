"""Packed rows: nothing lost in them, and every layer runs over them as over each sequence alone."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rnnjax
from rnnjax import masking
from rnnjax.data import BucketedBatches, DataError, PackedBatches, Ragged, pack, pad
from rnnjax.segments import pool_segments, resets_from_segment_ids, segment_carries

pytestmark = pytest.mark.usefixtures("quick_compile")

SEQUENCES = st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=7), max_size=9)
EXAMPLES = st.lists(
    st.tuples(st.lists(st.integers(1, 99), min_size=1, max_size=9), st.integers(0, 4)),
    min_size=1,
    max_size=20,
)

# Rows


@given(SEQUENCES, st.integers(7, 12), st.integers(1, 3))
def test_unpacking_gives_back_what_was_packed(sequences, row_length, row_multiple):
    packed = pack(sequences, row_length, row_multiple=row_multiple)
    assert [row.tolist() for row in packed.unpack(packed.tokens)] == sequences
    assert packed.tokens.shape[1] == row_length
    assert packed.tokens.shape[0] % row_multiple == 0
    assert not packed.tokens[~packed.mask].any()


@given(SEQUENCES, st.integers(7, 12))
def test_every_step_knows_its_sequence_its_position_and_whether_it_is_the_first(
    sequences, row_length
):
    packed = pack(sequences, row_length)
    real = np.zeros(packed.tokens.shape, bool)
    for i, sequence in enumerate(sequences):
        row, start = packed.rows[i], packed.starts[i]
        for t in range(len(sequence)):
            place = row, start + t
            assert not real[place]
            real[place] = True
            assert packed.segment_ids[place] == i + 1
            assert packed.positions[place] == t
            assert packed.resets[place] == (t == 0)
    for rest in (packed.segment_ids, packed.positions, packed.resets, packed.mask):
        assert not rest[~real].any()
    steps = real.size
    assert packed.padding_fraction == pytest.approx(1 - real.sum() / steps if steps else 0)


@settings(max_examples=20)
@given(SEQUENCES)
def test_resets_can_be_told_from_the_segment_ids(sequences):
    packed = pack(sequences, 8, row_multiple=9)  # one shape for all
    np.testing.assert_array_equal(resets_from_segment_ids(packed.segment_ids), packed.resets)


def least_rows(lengths, row_length):
    """By trying every way to put each sequence into an open row or a new one."""
    best = len(lengths)

    def put(rest, room):
        nonlocal best
        if len(room) >= best:
            return
        if not rest:
            best = len(room)
            return
        for i, left in enumerate(room):
            if left >= rest[0]:
                put(rest[1:], [*room[:i], left - rest[0], *room[i + 1 :]])
        put(rest[1:], [*room, row_length - rest[0]])

    put(lengths, [])
    return best


@given(st.lists(st.integers(1, 8), max_size=7))
def test_few_sequences_take_hardly_more_rows_than_the_least(lengths):
    rows = len(pack([[1] * n for n in lengths], 10).tokens)
    least = least_rows(lengths, 10)
    assert rows <= least + (least > 2)


def test_many_short_sequences_leave_almost_no_padding():
    lengths = np.random.default_rng(0).integers(1, 40, 500)
    assert pack([[1] * n for n in lengths], 64).padding_fraction < 0.005


def test_the_longest_lie_first_each_where_the_least_room_is_left():
    packed = pack([[1], [2, 2, 2], [3, 3, 3, 3], [4], [5, 5]], 5)
    expected = [[3, 3, 3, 3, 1], [2, 2, 2, 5, 5], [4, 0, 0, 0, 0]]
    np.testing.assert_array_equal(packed.tokens, expected)
    # Of many that are as long the first lies first.
    packed = pack([[n] * (1 + n % 2) for n in range(1, 121)], 20)
    expected = [*np.repeat(np.arange(1, 121, 2), 2), *range(2, 121, 2)]
    np.testing.assert_array_equal(packed.tokens.ravel(), expected)


def test_an_empty_sequence_takes_no_room():
    packed = pack([[], [5, 6], []], 2)
    np.testing.assert_array_equal(packed.tokens, [[5, 6]])
    assert packed.rows.tolist() == packed.starts.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1], [2, 3, 4]], 2), "sequence 1 must have at most 2 steps, got 3"),
        (([[True]], 2), "sequence 0 must have integers or floats, got 1 axes of bool"),
        (([[1]], 0), "row_length must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(DataError, match=message):
        pack(*arguments)
    with pytest.raises(DataError, match="row_multiple must be at least 1, got 0"):
        pack([[1]], 2, row_multiple=0)
    with pytest.raises(
        DataError, match=r"values must have the axes \(1, 2\) in front, got shape \(2, 1\)"
    ):
        pack([[1]], 2).unpack(np.zeros((2, 1)))


# Layers over packed rows

TEXTS = [[3, 1, 4], [1], [5, 2, 6, 5, 3], [], [7, 2, 3], [2], [6]]
TABLE = np.random.default_rng(0).normal(size=(8, 3))
LAYERS = {
    "lstm": rnnjax.lstm(4),
    "gru_reverse": rnnjax.recurrent(rnnjax.gru(4), reverse=True),
    "bidirectional_stack": rnnjax.stack(rnnjax.bidirectional(rnnjax.gru(3)), rnnjax.vanilla(4)),
}


def layer_of(name):
    layer = LAYERS[name]
    return rnnjax.recurrent(layer) if isinstance(layer, rnnjax.Cell) else layer


@pytest.mark.parametrize("name", LAYERS)
def test_a_packed_row_is_each_of_its_sequences_alone(name):
    """Outputs, and gradients to weights and inputs, in float64."""
    packed, layer = pack(TEXTS, 6), layer_of(name)
    assert max(np.bincount(packed.rows[packed.lengths > 0])) > 1
    in_order_of_sequences = np.argsort(packed.segment_ids[packed.mask], kind="stable")

    def together(params, table):
        options = {"mask": packed.mask, "resets": packed.resets}
        ys = layer.apply(params, table[packed.tokens], **options)[1]
        return ys[np.nonzero(packed.mask)][in_order_of_sequences]

    def alone(params, table):
        return jnp.concatenate([layer.apply(params, table[np.array(t)])[1] for t in TEXTS if t])

    def results(run, params, table):
        def loss(params, table):
            ys = run(params, table)
            return jnp.sum(ys * jnp.cos(jnp.arange(ys.size)).reshape(ys.shape)), ys

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, table)

    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: a.astype(float), layer.init(jax.random.key(0), 3))
        found, expected = (results(run, params, jnp.asarray(TABLE)) for run in (together, alone))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, expected
        )


@pytest.mark.parametrize("reverse", [False, True])
def test_final_carries_of_packed_sequences_are_those_of_each_alone(reverse):
    packed, cell = pack(TEXTS, 6), rnnjax.lstm(4)
    params = cell.init(jax.random.key(0), 3)
    table = jnp.asarray(TABLE, jnp.float32)
    steps = {"mask": packed.mask, "resets": packed.resets, "reverse": reverse}
    _, (_, carries) = rnnjax.unroll(cell, params, table[packed.tokens], **steps, all_carries=True)
    start = cell.initial_carry(params)
    found = segment_carries(carries, packed.segment_ids, len(TEXTS), start, reverse=reverse)
    tokens, lengths = pad(TEXTS)
    expected, _ = rnnjax.unroll(cell, params, table[tokens], lengths, reverse=reverse)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_pools_of_packed_sequences_are_those_of_padded_ones(pooling):
    packed, layer = pack(TEXTS, 6), rnnjax.bidirectional(rnnjax.lstm(2), rnnjax.vanilla(2))
    params, table = layer.init(jax.random.key(0), 3), jnp.asarray(TABLE, jnp.float32)
    _, ys = layer.apply(params, table[packed.tokens], mask=packed.mask, resets=packed.resets)
    found = pool_segments(ys, packed.segment_ids, len(TEXTS), pooling, last=layer.last)
    tokens, lengths = pad(TEXTS)
    _, ys = layer.apply(params, table[tokens], lengths)
    valid = rnnjax.lengths_to_mask(lengths, tokens.shape[1])
    pool = {"last": layer.last, "mean": masking.mean_pool, "max": masking.max_pool}
    np.testing.assert_allclose(found, pool[pooling](ys, valid), rtol=1e-5, atol=1e-6)


# Batches


def batches_of(examples, **settings):
    sequences, labels = zip(*examples, strict=True)
    chosen = {"batch_size": 4, "row_length": 9, "seed": 0} | settings
    return PackedBatches(sequences, list(labels), **chosen)


@given(EXAMPLES, st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_every_example_is_packed_once_with_its_label(examples, batch_size, n, shuffle):
    batches = batches_of(examples, batch_size=batch_size, shuffle=shuffle)
    seen = []
    epoch = list(batches.epoch(n))
    assert len(epoch) == len(batches)
    for batch, chosen in zip(epoch, batches.epoch_indices(n), strict=True):
        assert batch.labels.shape == batch.lengths.shape == batch.weights.shape == (batch_size,)
        assert batch.tokens.shape[0] % 4 == 0
        assert batch.segment_ids.max() == len(chosen) == batch.weights.sum()
        for j, example in enumerate(chosen):
            tokens = batch.tokens[batch.segment_ids == j + 1].tolist()
            assert (tokens, batch.labels[j], batch.lengths[j]) == (*examples[example], len(tokens))
            seen.append(example)
    assert sorted(seen) == list(range(len(examples)))
    if not shuffle:
        assert seen == sorted(seen)


@given(EXAMPLES)
def test_an_epoch_has_the_batches_of_padding_to_one_length(examples):
    sequences, labels = zip(*examples, strict=True)
    padded = BucketedBatches(sequences, list(labels), batch_size=4, boundaries=(9,), seed=5)
    packed = batches_of(examples, seed=5)
    for one, two in zip(padded.epoch(3), packed.epoch(3), strict=True):
        np.testing.assert_array_equal(one.lengths, two.lengths)
        np.testing.assert_array_equal(one.labels, two.labels)
        np.testing.assert_array_equal(one.weights, two.weights)
        for i, length in enumerate(one.lengths):
            np.testing.assert_array_equal(
                one.tokens[i, :length], two.tokens[two.segment_ids == i + 1]
            )


@given(EXAMPLES)
def test_shapes_and_padding_are_those_of_the_first_epoch(examples):
    batches = batches_of(examples)
    epoch = list(batches.epoch(0))
    assert batches.shapes == tuple(sorted({batch.tokens.shape for batch in epoch}))
    steps = sum(batch.tokens.size for batch in epoch)
    real = sum(int(batch.lengths.sum()) for batch in epoch)
    assert batches.padding_fraction == pytest.approx(1 - real / steps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequences": [[1], []]}, "sequence 1 must have at least 1 step, got 0"),
        ({"sequences": [[1], [2] * 5]}, "sequence 1 must have at most 4 steps, got 5"),
        ({"sequences": [[1], [10]]}, r"sequence 1 must have ids in \[0, 10\), got 10"),
        ({"labels": [0, 3]}, r"sequence 1 must have labels in \[0, 3\), got 3"),
        ({"row_length": 0}, "row_length must be at least 1, got 0"),
        ({"row_multiple": 0}, "row_multiple must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_the_first_example_that_does_not_fit_is_named(changes, message):
    arguments = {
        "sequences": [[1, 2], [3]],
        "labels": [0, 1],
        "batch_size": 2,
        "row_length": 4,
        "seed": 0,
        "vocab_size": 10,
        "num_classes": 3,
    }
    with pytest.raises(DataError, match=message):
        PackedBatches(**(arguments | changes))
    with pytest.raises(DataError, match="at least 0, got -1"):
        batches_of([([1], 0)], shuffle=False).epoch_indices(-1)


def test_a_batch_takes_no_memory_for_the_sequences_that_are_not_in_it():
    count = 200_000
    ragged = Ragged(np.ones(count, np.int32), np.arange(count + 1))
    batches = PackedBatches(ragged, np.zeros(count, int), batch_size=4, row_length=8, seed=0)
    epoch = batches.epoch(0)
    tracemalloc.start()
    next(epoch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
