"""Truncated backpropagation against a loop in NumPy float64 that keeps its own books."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax.layers import elementwise_dropout
from rnnjax.metrics import Mean
from rnnjax.training import Sequences, make_truncated_step

pytestmark = pytest.mark.usefixtures("quick_compile")

B, T, D, H = 3, 8, 2, 4
RATE = 0.3
READ = np.cos(np.arange(H))
RNG = np.random.default_rng(0)
XS, TARGETS = RNG.normal(size=(B, T, D)), RNG.normal(size=(B, T))
MASK = np.ones((B, T), bool)
MASK[1, 5:] = MASK[2, 0] = MASK[2, 3] = False
RESETS = np.zeros((B, T), bool)
RESETS[0, [2, 5]] = RESETS[1, 3] = RESETS[2, [3, 4]] = True


class Weights(NamedTuple):
    """In the order of VanillaParams."""

    w_ih: np.ndarray
    w_hh: np.ndarray
    bias: np.ndarray


def loss_fn(ys, targets, mask):
    loss = Mean.of((ys @ READ.astype(ys.dtype) - targets) ** 2, mask)
    return loss.value, {"loss": loss}


def start(dtype=float):
    layer = rnnjax.recurrent(rnnjax.vanilla(H))
    params = layer.init(jax.random.key(0), D)
    params = jax.tree.map(lambda a: a.astype(dtype) + jnp.full(a.shape, 0.1, dtype), params)
    state = rnnjax.init_train_state(jax.random.key(1), params, optax.sgd(RATE))
    return layer, state


def trained(k1, k2, mask=None, resets=None):
    layer, state = start()
    step = make_truncated_step(layer.apply, loss_fn, optax.sgd(RATE), k1=k1, k2=k2)
    return step(state, Sequences(XS, TARGETS, mask, resets))


# The loop in NumPy


def run(w, carry, steps, mask, resets):
    """The states before and after every one of ``steps``."""
    befores, states = [], []
    for t in steps:
        before = np.where((resets & mask)[:, t, None], 0.0, carry)
        new = np.tanh(XS[:, t] @ w.w_ih + before @ w.w_hh + w.bias)
        carry = np.where(mask[:, t, None], new, before)
        befores.append(before)
        states.append(carry)
    return befores, states


def gradient(w, carry, steps, counted, mask, resets):
    """Of the mean squared error over the ``counted`` last of ``steps``."""
    befores, states = run(w, carry, steps, mask, resets)
    weight = mask[:, counted].sum()
    grads, back, total = Weights(*(np.zeros_like(a) for a in w)), np.zeros((B, H)), 0.0
    for i, t in reversed(list(enumerate(steps))):
        if t in counted:
            error = np.where(mask[:, t], states[i] @ READ - TARGETS[:, t], 0.0)
            total += (error**2).sum()
            back = back + 2 * error[:, None] * READ / weight
        inside = np.where(mask[:, t, None], back * (1 - states[i] ** 2), 0.0)
        grads.w_ih[...] += XS[:, t].T @ inside
        grads.w_hh[...] += befores[i].T @ inside
        grads.bias[...] += inside.sum(0)
        through = np.where(mask[:, t, None], inside @ w.w_hh.T, back)
        back = np.where((resets & mask)[:, t, None], 0.0, through)
    return grads, total, weight


def by_hand(w, k1, k2, mask, resets):
    """One call: windows that end every k1 steps and begin k2 before their end."""
    carries = {0: np.zeros((B, H))}  # before each step, as the last window to pass it left it
    total = count = 0.0
    norms = []
    for end in range(k1, T + k1, k1):
        steps = list(range(max(0, end - k2), min(end, T)))
        counted = [t for t in steps if t >= end - k1]
        befores = carries[steps[0]]
        _, states = run(w, befores, steps, mask, resets)
        carries |= {t + 1: state for t, state in zip(steps, states, strict=True)}
        grads, chunk_total, weight = gradient(w, befores, steps, counted, mask, resets)
        w = Weights(*(a - RATE * g for a, g in zip(w, grads, strict=True)))
        total, count = total + chunk_total, count + weight
        norms.append(np.sqrt(sum((g**2).sum() for g in grads)))
    return w, carries[T], total, count, norms


@pytest.mark.parametrize(
    ("k1", "k2", "flags"),
    [
        (3, 3, "plain"),
        (3, 4, "plain"),
        (3, 3, "mask_and_resets"),
        (2, 5, "mask_and_resets"),
        (1, 3, "mask_and_resets"),
        (3, 20, "mask_and_resets"),
        pytest.param(9, 9, "mask_and_resets", marks=pytest.mark.full),  # a window alone
    ],
)
@pytest.mark.kept
def test_updates_are_those_of_the_loop_by_hand(k1, k2, flags):
    mask, resets = (np.ones_like(MASK), RESETS & False) if flags == "plain" else (MASK, RESETS)
    with jax.enable_x64(True):
        w = Weights(*(np.asarray(a) for a in start()[1].params))
        given = () if flags == "plain" else (mask, resets)
        state, carry, metrics = trained(k1, k2, *given)
        expected, last, total, count, norms = by_hand(w, k1, k2, mask, resets)
        for found, wanted in zip(state.params, expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(carry, last, rtol=1e-9)
        np.testing.assert_allclose(metrics["loss"], (total, count), rtol=1e-9)
        np.testing.assert_allclose(metrics["grad_norm"], (sum(norms), len(norms)), rtol=1e-9)
        assert state.step == len(norms) == -(-T // k1)


@pytest.mark.full
def test_with_jit_disabled_the_updates_are_those_of_the_compiled_step():
    expected = trained(3, 4, MASK, RESETS)
    with jax.disable_jit():
        found = trained(3, 4, MASK, RESETS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        (found[0].params, *found[1:]),
        (expected[0].params, *expected[1:]),
    )


def test_one_window_over_all_steps_is_the_plain_train_step():
    optimizer = optax.adam(0.1)

    def whole(params, batch, key):
        _, ys = rnnjax.recurrent(rnnjax.vanilla(H)).apply(params, batch.xs, mask=batch.mask)
        return loss_fn(ys, batch.targets, batch.mask)

    layer, _ = start(np.float32)
    batch = Sequences(*(jnp.asarray(a, jnp.float32) for a in (XS, TARGETS)), jnp.asarray(MASK))
    results = []
    for step in (
        rnnjax.make_train_step(whole, optimizer),
        make_truncated_step(layer.apply, loss_fn, optimizer, k1=T),
    ):
        params = start(np.float32)[1].params
        state = rnnjax.init_train_state(jax.random.key(1), params, optimizer)
        for _ in range(2):
            state, *_, metrics = step(state, batch)
        results.append((state.params, state.opt_state, metrics))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *results)


def test_a_head_reads_the_steps_of_the_loss_alone_and_learns():
    layer = rnnjax.recurrent(rnnjax.vanilla(H))
    params = {"layer": start(np.float32)[1].params, "read": jnp.asarray(READ, jnp.float32)}
    seen = []

    def apply(params, xs, **options):
        return layer.apply(params["layer"], xs, **options)

    def with_head(params, xs, **options):
        carry, ys = apply(params, xs, **options)
        return carry, ys @ params["read"]

    def head(params, ys):
        seen.append(ys.shape[1])
        return ys @ params["read"]

    def loss_of(predictions, targets, mask):
        loss = Mean.of((predictions - targets) ** 2, mask)
        return loss.value, {"loss": loss}

    def run(apply, head):
        step = make_truncated_step(apply, loss_of, optax.sgd(RATE), k1=2, k2=5, head=head)
        state = rnnjax.init_train_state(jax.random.key(1), params, optax.sgd(RATE))
        return step(state, as_float32(mask=MASK, resets=RESETS))

    apart, within = run(apply, head), run(with_head, None)
    assert_close((apart[0].params, *apart[1:]), (within[0].params, *within[1:]))
    assert set(seen) == {2}


def as_float32(begin=0, end=T, mask=None, resets=None):
    cut = slice(begin, end)
    arrays = [None if a is None else np.asarray(a[:, cut]) for a in (mask, resets)]
    return Sequences(*(a[:, cut].astype(np.float32) for a in (XS, TARGETS)), *arrays)


def assert_close(first, second):
    first, second = jax.tree.leaves(first), jax.tree.leaves(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_carry_goes_on_from_call_to_call():
    """Two calls of four steps are one of eight, where gradients go back no further than k1."""
    layer, state = start(np.float32)
    step = make_truncated_step(layer.apply, loss_fn, optax.sgd(RATE), k1=2)
    half, carry, first = step(state, as_float32(0, 4, MASK, RESETS))
    half, carry, second = step(half, as_float32(4, 8, MASK, RESETS), carry)
    once, last, metrics = step(start(np.float32)[1], as_float32(0, 8, MASK, RESETS))
    assert_close((half.params, carry), (once.params, last))
    both = rnnjax.metrics.merge(first, second)
    assert_close(
        *({name: tuple(map(float, pair)) for name, pair in m.items()} for m in (both, metrics))
    )
    assert half.step == once.step == 4


def test_masked_steps_at_the_end_change_nothing_whatever_stands_in_them():
    """Nor do chunks of nothing else: Adam's averages and the step count stay as they are."""
    layer, optimizer = start()[0], optax.adam(0.1)
    step = make_truncated_step(layer.apply, loss_fn, optimizer, k1=2, k2=4)

    def run(batch):
        params = start(np.float32)[1].params
        return step(rnnjax.init_train_state(jax.random.key(1), params, optimizer), batch)

    short, long = as_float32(0, 5), as_float32(0, 8)
    xs, targets = long.xs.copy(), long.targets.copy()
    xs[:, 5:] = targets[:, 5:] = np.nan
    masked = Sequences(xs, targets, np.arange(T) < np.full((B, 1), 5))
    (one, carry, metrics), (two, last, sums) = run(short), run(masked)
    assert one.step == two.step == metrics["grad_norm"][1] == 3
    parts = [
        (s.params, s.opt_state, c, m) for s, c, m in ((one, carry, metrics), (two, last, sums))
    ]
    assert_close(*parts)


def test_any_number_of_rows_and_one_program_for_all_chunks():
    layer, state = start(np.float32)
    traces = []

    def counted(params, xs, **options):
        traces.append(xs.shape)
        return layer.apply(params, xs, **options)

    made = []
    step = make_truncated_step(counted, loss_fn, optax.sgd(RATE), k1=3, on_compile=made.append)
    for _ in range(2):
        state, carry, _ = step(state, as_float32())
        state, carry, _ = step(state, as_float32(), carry)
        assert carry.shape == (B, H)
    assert [shape for shape in traces if shape[1]] == [(B, 3, D)]
    assert [compilation.name for compilation in made] == ["truncated step"]
    one_row = jax.tree.map(lambda a: a[:1], as_float32())
    state, carry, _ = step(state, one_row)
    assert carry.shape == (1, H)
    assert state.step == 15


def test_a_learned_start_is_trained_by_the_windows_that_hold_it():
    """By the first chunk of each call without a carry, at the first real step of each row."""
    from rnnjax.transforms import learn_initial_carry

    layer = rnnjax.recurrent(learn_initial_carry(rnnjax.vanilla(H)))
    params = layer.init(jax.random.key(0), D)
    state = rnnjax.init_train_state(jax.random.key(1), params, optax.sgd(RATE))
    step = make_truncated_step(layer.apply, loss_fn, optax.sgd(RATE), k1=3)
    batch = as_float32(mask=MASK)  # row 2 begins with a masked step

    def first_chunk(params):
        parts = jax.tree.map(lambda a: a[:, :3], batch)
        _, ys = layer.apply(params, parts.xs, mask=parts.mask)
        return loss_fn(ys, parts.targets, parts.mask)[0]

    expected = -RATE * jax.grad(first_chunk)(params).initial_carry
    assert np.abs(expected).min() > 1e-3
    state, carry, _ = step(state, batch)
    assert_close(state.params.initial_carry, expected)
    state, _, _ = step(state, batch, carry)
    assert_close(state.params.initial_carry, expected)


def test_what_is_drawn_once_a_sequence_is_the_same_in_a_whole_window():
    """Of k2 < 2 k1 the loss reads steps before and after the start of the next window."""

    def draw(params, xs, *, key, **_):
        drawn = 0.0 if key is None else jax.random.normal(key)
        return jnp.zeros(len(xs)), jnp.full(xs.shape[:2], params * drawn)

    def loss_of_draws(ys, targets, mask):
        drawn = {"spread": jnp.max(ys) - jnp.min(ys), "size": jnp.max(jnp.abs(ys))}
        return jnp.sum(ys), {name: Mean(figure, jnp.array(1.0)) for name, figure in drawn.items()}

    step = make_truncated_step(draw, loss_of_draws, optax.sgd(0.0), k1=4, k2=6)
    state = rnnjax.init_train_state(jax.random.key(1), jnp.array(1.0), optax.sgd(0.0))
    _, _, metrics = step(state, Sequences(jnp.ones((B, T, D)), jnp.zeros((B, T))))
    assert metrics["spread"].total == 0
    assert metrics["size"].total > 0


def test_every_step_of_a_window_has_a_mask_of_its_own():
    """Not that of the step at its place behind the start of the next window."""
    k1, k2, size = 2, 4, 64
    weights = np.random.default_rng(1).normal(size=(B, k1, size)).astype(np.float32)

    def drop(params, xs, *, key, **_):
        ones = jnp.ones((*xs.shape[:2], size))
        return jnp.zeros(len(xs)), params * elementwise_dropout(key, ones, 0.5)

    def loss_of_masks(ys, targets, mask):
        return jnp.sum(ys), {"sum": Mean(jnp.sum(ys * weights), jnp.array(1.0))}

    step = make_truncated_step(drop, loss_of_masks, optax.sgd(0.0), k1=k1, k2=k2)
    state = rnnjax.init_train_state(jax.random.key(1), jnp.array(1.0), optax.sgd(0.0))
    keys = [jax.random.fold_in(state.key, n) for n in range(T // k1)]
    _, _, metrics = step(state, Sequences(jnp.ones((B, T, D)), jnp.zeros((B, T))))
    windows = [elementwise_dropout(key, jnp.ones((B, k2, size)), 0.5) for key in keys]
    expected = sum(np.sum(np.asarray(ys[:, k2 - k1 :]) * weights) for ys in windows)
    np.testing.assert_allclose(metrics["sum"].total, expected, rtol=1e-5)


def test_every_update_has_noise_of_its_own_that_the_key_of_the_state_decides():
    layer = rnnjax.stack(rnnjax.vanilla(H), rnnjax.vanilla(H), dropout=0.5)
    keys = []

    def watched(params, xs, *, key, **options):
        if key is not None:
            jax.debug.callback(lambda k: keys.append(k.tolist()), jax.random.key_data(key))
        return layer.apply(params, xs, key=key, **options)

    step = make_truncated_step(watched, loss_fn, optax.sgd(RATE), k1=4)

    def run(seed):
        params = layer.init(jax.random.key(0), D)
        state = rnnjax.init_train_state(jax.random.key(seed), params, optax.sgd(RATE))
        return step(state, as_float32())[0].params

    first = run(1)
    jax.effects_barrier()
    drawn = [jax.random.key_data(jax.random.fold_in(jax.random.key(1), n)).tolist() for n in (0, 1)]
    assert [k for i, k in enumerate(keys) if k not in keys[:i]] == drawn
    jax.tree.map(np.testing.assert_array_equal, first, run(1))
    assert np.any(first[0].w_hh != run(2)[0].w_hh)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"k1": 0}, "k1 must be a positive integer, got 0"),
        ({"k1": 2.0}, "k1 must be a positive integer, got 2.0"),
        ({"k1": 4, "k2": 3}, r"k2 must be at least k1 \(4\), got 3"),
    ],
)
def test_sizes_that_make_no_window_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_truncated_step(lambda *a, **k: None, loss_fn, optax.sgd(1.0), **sizes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": TARGETS[:, :5]}, r"targets must have .* got shape \(3, 5\) beside \(3, 8\)"),
        ({"xs": XS[0, 0]}, r"xs must have shape \[B, T, ...\], .* got shape \(2,\)"),
        ({"mask": np.ones((3, 8))}, r"mask must be bool of shape \(3, 8\), got float32"),
        ({"resets": MASK[:, :1]}, r"resets must be bool of shape \(3, 8\), got bool\[3,1\]"),
    ],
)
def test_a_batch_of_unequal_axes_is_named(changes, message):
    layer, state = start(np.float32)
    step = make_truncated_step(layer.apply, loss_fn, optax.sgd(RATE), k1=3)
    with pytest.raises(ValueError, match=message):
        step(state, as_float32()._replace(**changes))


def test_a_state_that_was_given_away_is_told_at_the_start_of_rows_too():
    """There the parameters make the first carry, before the step sees the state."""
    layer, state = start(np.float32)
    step = make_truncated_step(layer.apply, loss_fn, optax.sgd(RATE), k1=3)
    step(state, as_float32())
    with pytest.raises(ValueError, match=r"state must be the one that the step before returned"):
        step(state, as_float32())


def test_a_layer_in_place_of_its_function_is_refused():
    with pytest.raises(ValueError, match=r"apply must be a function, such as layer\.apply, got"):
        make_truncated_step(start(np.float32)[0], loss_fn, optax.sgd(RATE), k1=3)


def test_a_function_that_takes_no_carry_is_refused_with_those_that_do():
    model = rnnjax.tagger(None, rnnjax.gru(H), 2)
    message = r"as that of a layer, a language_model or a series_model does, got one that does not"
    with pytest.raises(ValueError, match=message):
        make_truncated_step(model.apply, loss_fn, optax.sgd(RATE), k1=3)
    text = rnnjax.language_model(rnnjax.one_hot(3), rnnjax.gru(H))
    series = rnnjax.series_model(rnnjax.gru(H), rnnjax.categorical_head(3))
    for apply in (text.apply, text.features, series.apply):
        make_truncated_step(apply, loss_fn, optax.sgd(RATE), k1=3)


@pytest.mark.parametrize("name", ["grad_norm", "skipped"])
def test_a_metric_that_the_step_adds_itself_is_refused(name):
    layer, state = start(np.float32)

    def crowded(ys, targets, mask):
        return ys.sum(), {name: (ys.sum(), ys.sum())}

    step = make_truncated_step(layer.apply, crowded, optax.sgd(RATE), k1=3)
    with pytest.raises(ValueError, match=f'must not give the metric "{name}"'):
        step(state, as_float32())


def test_an_update_that_is_not_finite_is_left_out_and_counted():
    """The chunk in the middle has a target that is NaN; the others train as if it had not been."""
    layer, state = start(np.float32)
    step = make_truncated_step(layer.apply, loss_fn, optax.sgd(RATE), k1=3)
    batch = as_float32()
    batch.targets[1, 4] = np.nan
    state, carry, metrics = step(state, batch)
    assert (state.step, state.skipped, state.skipped_in_a_row) == (3, 1, 0)
    assert (metrics["skipped"], metrics["loss"][1], metrics["grad_norm"][1]) == ((1, 3), 15, 2)

    other, passed, _ = step(start(np.float32)[1], as_float32(0, 3))
    passed, _ = layer.apply(other.params, as_float32(3, 6).xs, initial_carry=passed)
    other, passed, _ = step(other, as_float32(6, 8), passed)
    assert_close((state.params, carry), (other.params, passed))


@pytest.mark.parametrize(("k1", "k2"), [(2, 2), (2, 4)])
@pytest.mark.parametrize("learned", [False, True])
def test_a_row_whose_carry_is_lost_starts_anew(k1, k2, learned):
    """A NaN in the inputs of one row: its own windows are left out, and no later one."""
    cell = rnnjax.vanilla(H)
    layer = rnnjax.recurrent(rnnjax.learn_initial_carry(cell) if learned else cell)
    params = jax.tree.map(lambda a: a + 0.1, layer.init(jax.random.key(0), D))
    optimizer = optax.sgd(0.0)
    state = rnnjax.init_train_state(jax.random.key(1), params, optimizer)
    step = make_truncated_step(layer.apply, loss_fn, optimizer, k1=k1, k2=k2, donate_state=False)
    xs, targets = jnp.asarray(XS, jnp.float32), jnp.asarray(TARGETS, jnp.float32)
    after, carry, _ = step(state, Sequences(xs.at[1, -k1].set(np.nan), targets))
    assert int(after.skipped) == 1
    expected = layer.apply(params, xs)[0].at[1].set(layer.initial_carry(params))
    np.testing.assert_allclose(carry, expected, rtol=1e-5)
    later, _, metrics = step(after, Sequences(xs, targets), carry)
    assert int(later.skipped) == 1
    assert int(metrics["loss"].count) == B * T


def test_a_carry_is_taken_in_its_dtype_and_named_where_it_does_not_fit():
    layer, optimizer = rnnjax.recurrent(rnnjax.gru(H)), optax.sgd(0.1)
    step = rnnjax.make_truncated_step(layer.apply, loss_fn, optimizer, k1=2, donate_state=False)
    params = layer.init(jax.random.key(0), 3)
    state = rnnjax.init_train_state(jax.random.key(1), params, optimizer)
    batch = Sequences(np.ones((2, 4, 3)), np.ones((2, 4)))
    expected = step(state, batch, jnp.full((2, H), 0.5))[1]
    np.testing.assert_array_equal(step(state, batch, np.full((2, H), 0.5, np.float16))[1], expected)
    with pytest.raises(ValueError, match=r"carry must have shape \(2, 4\), got shape \(3, 4\)"):
        step(state, batch, jnp.zeros((3, H)))
    with pytest.raises(ValueError, match="carry must be an array, got str"):
        step(state, batch, "zeros")
    with pytest.raises(ValueError, match="must be an array of numbers, got 'a text'"):
        step(state, batch._replace(xs="a text"))
    with pytest.raises(ValueError, match=r"batch.xs must fit int32 where .* got 1099511627776"):
        step(state, batch._replace(xs=np.full((2, 4, 3), 2**40)))
    with pytest.raises(ValueError, match=r"state must be a TrainState, .* got a tuple of 2"):
        step((1, 2), batch, jnp.zeros((2, H)))
    with pytest.raises(ValueError, match=r"state must be a TrainState, .* got GRUParams"):
        step(state.params, batch)


def test_no_steps_move_nothing():
    layer, optimizer = rnnjax.recurrent(rnnjax.gru(H)), optax.sgd(0.1)
    step = rnnjax.make_truncated_step(
        layer.apply, loss_fn, optimizer, k1=2, k2=3, donate_state=False
    )
    params = layer.init(jax.random.key(0), 3)
    state = rnnjax.init_train_state(jax.random.key(1), params, optimizer)
    empty = Sequences(np.ones((2, 0, 3)), np.ones((2, 0)))
    after, carry, metrics = step(state, empty, jnp.full((2, H), 0.5))
    np.testing.assert_array_equal(carry, np.full((2, H), 0.5))
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    assert int(after.step) == 0
    assert float(metrics["loss"][1]) == float(metrics["grad_norm"][1]) == 0
