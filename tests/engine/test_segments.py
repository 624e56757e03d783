"""Resets from the flags of an environment, and what is looked up by segment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import One, alone, users_own_cell
from hypothesis import given, settings
from hypothesis import strategies as st

import rnnjax
from rnnjax import masking
from rnnjax.segments import (
    pool_segments,
    resets_from_dones,
    resets_from_segment_ids,
    segment_carries,
    segment_ids_from_resets,
    valid_from_dones,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

# Resets from dones, against an environment that knows what it shows


class Corridor:
    """An environment of episodes of given lengths; it shows (episode, steps taken in it)."""

    def __init__(self, lengths, auto_reset):
        self.lengths, self.auto_reset = lengths, auto_reset
        self.episode = self.taken = 0

    @property
    def over(self):
        return self.taken == self.lengths[self.episode]

    def step(self):
        """Whether the action counted, and whether the environment says done."""
        if self.over and self.auto_reset == "none":
            return False, True
        if self.over:
            self.episode, self.taken = self.episode + 1, 0
            return False, False
        self.taken += 1
        done = self.over
        if done and self.auto_reset == "same_step":
            self.episode, self.taken = self.episode + 1, 0
        return True, done


def record(lengths, auto_reset, recorded_with, steps):
    """What a user stores of so many steps: the flags; and what they should come to."""
    environment, done = Corridor(lengths, auto_reset), False
    dones, firsts, counted = [], [], []
    for t in range(steps):
        firsts.append(t > 0 and environment.taken == 0)
        before = done
        acted, done = environment.step()
        counted.append(acted)
        dones.append(done if recorded_with == "action" else before)
    return np.array(dones), np.array(firsts), np.array(counted)


CONVENTIONS = pytest.mark.parametrize(
    ("auto_reset", "recorded_with"),
    [(a, r) for a in ("same_step", "next_step", "none") for r in ("action", "observation")],
)


@CONVENTIONS
@given(lengths=st.lists(st.integers(1, 4), min_size=21, max_size=21), cut=st.sampled_from([2, 11]))
def test_resets_stand_where_the_environment_shows_a_first_observation(
    auto_reset, recorded_with, lengths, cut
):
    convention = {"auto_reset": auto_reset, "recorded_with": recorded_with}
    dones, firsts, counted = record(lengths, steps=20, **convention)
    for function, expected in ((resets_from_dones, firsts), (valid_from_dones, counted)):
        for rollout, previous in ((slice(0, cut), None), (slice(cut, 20), dones[:cut])):
            found = function(dones[rollout], previous, **convention)
            np.testing.assert_array_equal(found, expected[rollout])


@pytest.mark.parametrize(
    ("recorded_with", "auto_reset", "previous", "expected"),
    [
        # dones [0 1 1 0 1]: a single-step episode, and one that ends with the rollout
        ("observation", "same_step", [1, 1], [0, 1, 1, 0, 1]),
        ("action", "same_step", None, [0, 0, 1, 1, 0]),
        ("action", "same_step", [1, 0], [0, 0, 1, 1, 0]),
        ("action", "same_step", [0, 1], [1, 0, 1, 1, 0]),
        ("action", "same_step", [1], [1, 0, 1, 1, 0]),
        ("observation", "next_step", [0, 1], [1, 0, 1, 1, 0]),
        ("action", "next_step", None, [0, 0, 0, 1, 1]),
        ("action", "next_step", [1, 0], [1, 0, 0, 1, 1]),
        ("action", "next_step", [0, 1], [0, 1, 0, 1, 1]),
        ("action", "none", [1, 1], [0, 0, 0, 0, 0]),
    ],
)
def test_off_by_one_cases(recorded_with, auto_reset, previous, expected):
    dones = np.array([0, 1, 1, 0, 1], bool)
    previous = None if previous is None else np.array(previous, bool)
    convention = {"recorded_with": recorded_with, "auto_reset": auto_reset}
    found = jax.jit(lambda d, p: resets_from_dones(d, p, **convention))(dones, previous)
    np.testing.assert_array_equal(found, np.array(expected, bool))


def test_an_environment_that_was_done_once_acts_no_more():
    for previous in ([True, False], [False, True]):
        valid = valid_from_dones([False, False], previous, auto_reset="none")
        assert valid.tolist() == [False, False]


def test_rollouts_with_resets_are_the_episodes_alone():
    """Values of every step, and the gradient to a learned start: once an episode."""
    spec = One(users_own_cell())
    params = spec.cell.init(jax.random.key(0), 3)
    xs = jax.random.normal(jax.random.key(1), (2, 6, 3))
    dones = np.zeros((2, 6), bool)
    dones[0, [0, 2]] = dones[1, 3] = True  # the flag of step 2 lies on the cut
    weights = jnp.cos(jnp.arange(48.0)).reshape(2, 6, 4)

    def rollouts(params):
        carry, previous, parts = None, None, []
        for part in (slice(0, 3), slice(3, 6)):
            resets = resets_from_dones(dones[:, part], previous)
            carry, ys = rnnjax.unroll(
                spec.cell, params, xs[:, part], resets=resets, initial_carry=carry
            )
            previous = dones[:, part]
            parts.append(ys)
        ys = jnp.concatenate(parts, axis=1)
        return jnp.sum(ys * weights), ys

    def episodes(params):
        rows = []
        for b, ends in ((0, [1, 3, 6]), (1, [4, 6])):
            row = []
            for begin, end in zip([0, *ends], ends, strict=False):
                steps = list(xs[b, begin:end])
                _, ys = alone(spec, params, steps, [False] * len(steps), params.start)
                row += ys
            rows.append(jnp.stack(row))
        ys = jnp.stack(rows)
        return jnp.sum(ys * weights), ys

    found, expected = (jax.jit(jax.grad(f, has_aux=True))(params) for f in (rollouts, episodes))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *(found, expected)
    )
    assert np.abs(expected[0].start).min() > 0.001


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dones": [[0.0, 1.0]]}, "dones must be of dtype bool, got dtype float64"),
        ({"dones": True}, r"dones must have shape \[..., T\], got a scalar"),
        ({"previous": [1, 0]}, "previous must be of dtype bool"),
        ({"previous": [[True]]}, r"batch shape of dones, \(\), and an axis of time, got"),
        ({"previous": [True], "auto_reset": "next_step"}, "at least 2 flags in each row, got 1"),
        ({"previous": np.zeros(0, bool)}, "at least 1 flags in each row, got 0"),
        ({"recorded_with": "reward"}, "'action' or 'observation', got 'reward'"),
        ({"auto_reset": True}, "'same_step', 'next_step' or 'none', got True"),
    ],
)
def test_a_wrong_flag_or_convention_is_named(changes, message):
    arguments = {"dones": [False, True], "previous": None} | changes
    with pytest.raises(ValueError, match=message):
        resets_from_dones(**arguments)


# Segment ids

FLAGS = st.lists(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=5, max_size=5),
    min_size=1,
    max_size=3,
)


@settings(max_examples=30)
@given(FLAGS)
def test_segments_are_numbered_in_the_order_of_rows_and_time(flags):
    resets, mask = np.moveaxis(np.array(flags), -1, 0)
    expected, number = np.zeros(mask.shape, int), 0
    for b, t in np.ndindex(mask.shape):
        if mask[b, t]:
            number += bool(resets[b, t] or not mask[b, :t].any())
            expected[b, t] = number
    ids = segment_ids_from_resets(resets, mask)
    np.testing.assert_array_equal(ids, expected)
    first = np.array(
        [[m and not mask[b, :t].any() for t, m in enumerate(r)] for b, r in enumerate(mask)]
    )
    np.testing.assert_array_equal(resets_from_segment_ids(ids), mask & (resets | first))


def test_more_segments_are_numbered_than_8_bits_hold():
    ids = segment_ids_from_resets(np.ones((2, 200), bool))
    np.testing.assert_array_equal(ids, np.arange(1, 401).reshape(2, 200))


# Pools and carries

IDS = np.array([[2, 2, 2, 0, 4, 4], [1, 1, 5, 0, 0, 0]])
COUNT = 5  # segment 3 has no step
PLACES = {1: (1, [0, 1]), 2: (0, [0, 1, 2]), 4: (0, [4, 5]), 5: (1, [2])}


def outputs(size=3):
    return np.random.default_rng(0).normal(size=(2, 6, size)).astype(np.float32)


def pooled_by_hand(ys, pooling):
    reduce = {"last": lambda a: a[-1], "mean": np.mean, "max": np.max}[pooling]
    by = {} if pooling == "last" else {"axis": 0}
    rows = np.zeros((COUNT, ys.shape[-1]), np.float32)
    for number, (row, steps) in PLACES.items():
        rows[number - 1] = reduce(ys[row, steps], **by)
    return rows


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_a_pool_is_that_of_the_steps_of_the_segment(pooling):
    ys = outputs()
    found = jax.jit(pool_segments, static_argnums=(2, 3))(ys, IDS, COUNT, pooling)
    np.testing.assert_allclose(found, pooled_by_hand(ys, pooling), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("fill", [np.nan, np.inf])
@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_masked_steps_are_not_read_by_a_pool(pooling, fill):
    weights = np.cos(np.arange(15.0, dtype=np.float32)).reshape(COUNT, 3)

    def loss(ys):
        return jnp.sum(pool_segments(ys, IDS, COUNT, pooling) * weights)

    ys = outputs()
    expected = jax.grad(loss)(ys)
    found = jax.grad(loss)(np.where((IDS == 0)[..., None], np.float32(fill), ys))
    np.testing.assert_array_equal(found, expected)
    assert np.all(np.asarray(expected)[IDS == 0] == 0)
    assert np.any(np.asarray(expected)[IDS == 4] != 0)


def test_the_last_output_of_a_bidirectional_layer_joins_both_ends_of_a_segment():
    layer = rnnjax.bidirectional(rnnjax.vanilla(2), rnnjax.vanilla(1))
    ys = outputs()
    found = pool_segments(ys, IDS, COUNT, last=layer.last)
    for number, (row, steps) in PLACES.items():
        expected = [*ys[row, steps[-1], :2], ys[row, steps[0], 2]]
        np.testing.assert_array_equal(found[number - 1], expected)
    assert np.all(found[2] == 0)


@pytest.mark.parametrize("reverse", [False, True])
def test_final_carries_stand_at_the_end_where_the_run_left_the_segment(reverse):
    carries = {"h": outputs(), "c": outputs(2)[..., 0]}
    start = {"h": np.full(3, 7.0, np.float32), "c": np.float32(9.0)}
    found = segment_carries(carries, IDS, COUNT, start, reverse=reverse)
    for name, leaf in found.items():
        for number, (row, steps) in PLACES.items():
            expected = carries[name][row, steps[0 if reverse else -1]]
            np.testing.assert_array_equal(leaf[number - 1], expected)
        np.testing.assert_array_equal(leaf[2], start[name])


def test_no_steps_at_all_pool_to_zeros():
    for shape in ((0, 4), (2, 0)):
        ys, ids = np.zeros((*shape, 3), np.float32), np.zeros(shape, int)
        for pooling in ("last", "mean", "max"):
            np.testing.assert_array_equal(pool_segments(ys, ids, 2, pooling), np.zeros((2, 3)))
        np.testing.assert_array_equal(segment_carries(ys, ids, 2, np.ones(3)), np.ones((2, 3)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "sum"}, "pooling must be 'last', 'mean' or 'max', got 'sum'"),
        ({"segment_ids": IDS.astype(float)}, "segment_ids must be integers, got dtype float64"),
        ({"segment_ids": IDS[:, :5]}, r"segment_ids must have shape \(2, 6\), got shape \(2, 5\)"),
        ({"num_segments": 4}, r"segment_ids must lie in \[0, 4\] .* got 5 at index \(1, 2\)"),
        ({"ys": np.ones((2, 6, 3), int)}, "ys must be of floating dtype, got dtype int"),
        ({"ys": "abc"}, "ys must be an array of numbers, got str"),
        ({"num_segments": 0}, "num_segments must be a positive integer, got 0"),
        ({"last": "last"}, "last must be a function of ys and valid, got str"),
        ({"last": lambda ys: ys}, r"last must be a function of ys and valid, got \(ys\)"),
    ],
)
def test_segment_ids_that_do_not_fit_are_named(changes, message):
    arguments = {"ys": outputs(), "segment_ids": IDS, "num_segments": COUNT} | changes
    with pytest.raises(ValueError, match=message):
        pool_segments(**arguments)


def test_an_id_below_zero_is_no_segment():
    """Other libraries pad with -1: it must not stand between two steps of one segment."""
    with pytest.raises(ValueError, match=r"segment_ids must lie in .* got -1 at index \(1,\)"):
        resets_from_segment_ids([1, -1, 1, 2, -1])
    with pytest.raises(ValueError, match=r"segment_ids must have shape \[..., T\], got a scalar"):
        resets_from_segment_ids(1)
    traced = jax.jit(resets_from_segment_ids)(jnp.array([1, -1, 1, 2, -1]))
    assert traced.tolist() == [True, False, False, True, False]


POOLS = {"mean": masking.mean_pool, "max": masking.max_pool}


@pytest.mark.parametrize("pool", [*POOLS.values(), masking.take_first, masking.take_last])
def test_a_pool_without_a_step_is_zero_whatever_stands_there(pool):
    assert pool(jnp.array([[[1.0], [jnp.nan]], [[3.0], [4.0]]]), jnp.zeros(2, int)).tolist() == [
        [0.0],
        [0.0],
    ]


def test_where_all_steps_are_real_none_need_be_named():
    ys = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
    np.testing.assert_allclose(masking.mean_pool(ys, None), ys.mean(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(masking.max_pool(ys, None), ys.max(axis=1))
    np.testing.assert_array_equal(rnnjax.recurrent(rnnjax.gru(6)).last(ys, None), ys[:, -1])
    both = rnnjax.bidirectional(rnnjax.gru(3))
    expected = np.concatenate([ys[:, -1, :3], ys[:, 0, 3:]], axis=-1)
    np.testing.assert_array_equal(both.last(ys, None), expected)
    np.testing.assert_array_equal(jax.jit(both.last)(ys, None), expected)


@pytest.mark.parametrize("name", POOLS)
def test_a_pool_takes_a_mask_or_lengths_of_floats_alone(name):
    ys = jnp.array([[1.0], [3.0], [9.0]])
    expected = {"mean": 2.0, "max": 3.0}[name]
    for valid in (jnp.array([True, True, False]), [True, True, False], 2, jnp.array(2)):
        assert POOLS[name](ys, valid).tolist() == [expected]
    with pytest.raises(ValueError, match="ys must be of floating dtype, got dtype int32"):
        POOLS[name](ys.astype(int), 2)
    for neither in (jnp.array([1, 1, 0]), jnp.array([True, True]), True):
        with pytest.raises(ValueError, match="valid must be a mask, bool"):
            POOLS[name](ys, neither)
    with pytest.raises(ValueError, match="valid must be of dtype bool, got dtype int"):
        masking.zero_padding([1, 1, 0], ys)
    with pytest.raises(
        ValueError, match=r"valid must have the leading axes of xs, .* \(3, 1\), got"
    ):
        masking.zero_padding([True], ys)
    with pytest.raises(ValueError, match=r"ys must have shape \[..., T, O\], got shape \(3,\)"):
        POOLS[name](ys[:, 0], 2)
    assert masking.zero_padding([True, True, False], ys).tolist() == [[1.0], [3.0], [0.0]]


def test_carries_that_do_not_fit_the_ids_are_named():
    with pytest.raises(ValueError, match=r"leading axes of segment_ids, \(2, 5\), got shape"):
        segment_carries(outputs(), IDS[:, :5], COUNT, np.zeros(3))
    size = outputs().shape[-1]
    with pytest.raises(ValueError, match=rf"initial_carry must have shape \({size},\), got .*\(9,"):
        segment_carries(outputs(), IDS, COUNT, np.zeros(9))
    with pytest.raises(ValueError, match=r"initial_carry must be an array of shape .*, got None"):
        segment_carries(outputs(), IDS, COUNT, None)
    with pytest.raises(ValueError, match="reverse must be True or False, got 'yes'"):
        segment_carries(outputs(), IDS, COUNT, np.zeros(size), reverse="yes")


def test_rows_of_flags_of_unequal_size_are_named():
    with pytest.raises(ValueError, match="dones must be one array, got rows of unequal size"):
        resets_from_dones([[True], [True, False]], None)


def test_ids_of_64_bits_are_not_cut_before_they_are_looked_at():
    wide = np.where(IDS == 1, 2**32 + 1, IDS)
    with jax.enable_x64(True):
        with pytest.raises(ValueError, match=r"segment_ids must lie in .* got 4294967297"):
            pool_segments(outputs(), wide, COUNT)
        assert resets_from_segment_ids(np.array([1, 2**32 + 1])).tolist() == [True, True]
        # Where they cannot be looked at, such a step is of no segment.
        pool = jax.jit(lambda ids: pool_segments(outputs(), ids, COUNT, "mean"))
        for number in (2**32 + 1, -(2**32) + 1):
            wide = np.where(IDS == 1, number, IDS)
            np.testing.assert_array_equal(pool(wide), pool(np.where(IDS == 1, 0, IDS)))


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("wrong", [-1, -3, 4, 2**31 - 1])
def test_steps_of_traced_ids_outside_the_range_are_left_out(pooling, wrong):
    """A negative index of JAX counts from the end: the steps would go to another segment."""
    ys = jax.random.normal(jax.random.key(0), (2, 4, 3))
    ids = jnp.array([[1, 1, 0, 2], [3, 0, 3, 0]], jnp.int32)
    bad = jnp.where(ids == 0, wrong, ids)

    @jax.jit
    def both(ids):
        pooled = pool_segments(ys, ids, 3, pooling)
        return pooled, segment_carries(ys, ids, 3, jnp.zeros(3))

    for found, expected in zip(both(bad), both(ids), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(both(ids)[0], pool_segments(ys, ids, 3, pooling))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_means_of_many_steps_of_sixteen_bits_are_taken_in_thirty_two(dtype):
    """70,000 steps: added up in bfloat16 they would be 256, and counted in float16 infinite."""
    ys = jnp.full((1, 70_000, 1), 1.5, dtype).at[0, 56_000:].set(0.5)
    mean = masking.mean_pool(ys, jnp.ones((1, 70_000), bool))
    segments = rnnjax.pool_segments(ys, jnp.ones((1, 70_000), int), 1, pooling="mean")
    for got in (mean, segments):
        assert got.dtype == dtype
        np.testing.assert_allclose(got.astype(float), [[1.3]], rtol=float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", [rnnjax.mlstm(4, num_heads=2), rnnjax.gated_delta(4, num_heads=2)])
def test_a_carry_that_is_not_finite_spoils_its_own_segment_alone(cell, reverse):
    """Rows: NaN in a step of an earlier chunk, in the carry given, and in that of no step."""
    params = cell.init(jax.random.key(0), 3)
    xs = jax.random.normal(jax.random.key(1), (3, 9, 3)).at[0, 4].set(jnp.nan)
    start = jax.tree.map(
        lambda a: jnp.broadcast_to(a, (3, *a.shape)).at[1:].set(jnp.inf),
        cell.initial_carry(params),
    )
    given = {"lengths": [9, 8, 0], "initial_carry": start, "reverse": reverse}
    given["resets"] = jnp.arange(9)[None] == jnp.array([[7 - 6 * reverse], [4], [4]])
    carry, ys = rnnjax.unroll(cell, params, xs, implementation="chunked", remat=3, **given)
    expected = rnnjax.unroll(cell, params, xs, implementation="scan", **given)
    finite = np.isfinite(expected[1]).all(-1)
    np.testing.assert_array_equal(np.isfinite(ys).all(-1), finite)
    np.testing.assert_allclose(ys[finite], expected[1][finite], rtol=1e-5, atol=1e-6)
    for found, right in zip(*map(jax.tree.leaves, (carry, expected[0])), strict=True):
        held = np.isfinite(right[:2]).all(tuple(range(1, right.ndim)))
        np.testing.assert_array_equal(np.isfinite(found[:2]).all(tuple(range(1, found.ndim))), held)
        np.testing.assert_allclose(found[:2][held], right[:2][held], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found[2], right[2])
