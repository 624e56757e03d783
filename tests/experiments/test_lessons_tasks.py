"""The lessons that show a claim: what their tasks, networks and figures are made of."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from experiments.lessons import (
    digits,
    gate_as_flag,
    gradients_through_time,
    grid_lstm,
    learning_rate,
    long_distance,
    long_memory,
    order_matters,
    parity,
    uneven_steps,
)
from experiments.lessons.synthetic import Task, kept, make_trainer, random_rows
from rnnjax.data import basic_english

pytestmark = pytest.mark.usefixtures("quick_compile")
KEY, STEP = jax.random.key(0), jnp.array(0)

# --- what the tasks are made of -----------------------------------------------------------------


def drawn(sample):
    """One batch, as NumPy arrays."""
    return map(np.asarray, jax.jit(sample)(KEY, STEP))


def test_adding_marks_two_places_of_each_sequence_any_two():
    xs, sums = drawn(long_distance.adding(4, 500))
    seen = set()
    for row, total in zip(xs, sums, strict=True):
        marked = [t for t in range(4) if row[t, 1] == 1]
        assert sorted(row[:, 1]) == [0, 0, 1, 1]
        assert total == pytest.approx(sum(row[t, 0] for t in marked))
        seen.add(tuple(marked))
    assert seen == set(itertools.combinations(range(4), 2))
    assert ((sums - 1) ** 2).mean() == pytest.approx(1 / 6, abs=0.02)


def test_copying_asks_for_the_ten_symbols_after_the_pause():
    settings = long_distance.Settings(adding_lengths=(), copy_pauses=(5,))
    [problem] = long_distance.problems(settings)
    tokens, targets = drawn(problem.make_task(rnnjax.vanilla(2)).sample)
    for row, target in zip(tokens.tolist(), targets.tolist(), strict=True):
        symbols = row[:10]
        assert row == [*symbols, *[0] * 4, *[9] * 11]
        assert target == [*[0] * 15, *symbols]
    assert set(tokens[:, :10].ravel()) == set(range(1, 9))
    # Whoever remembers nothing is certain of the blanks, then of nothing but that it is a symbol.
    chances = np.zeros((25, 10))
    chances[:15, 0] = 1
    chances[15:, 1:9] = 1 / 8
    assert -np.log(chances[np.arange(25), targets]).mean() == pytest.approx(problem.baseline)


def test_sums_are_written_with_the_answer_at_the_end():
    tokens, answers = drawn(grid_lstm.adding(2, 200))
    for row, answer in zip(tokens.tolist(), answers, strict=True):
        a, plus, b, asked = row[:2], row[2], row[3:5], row[5:]
        assert (plus, asked) == (10, [11] * 3)
        first, second, total = (int("".join(map(str, n))) for n in (a, b, answer))
        assert first + second == total
    assert set(tokens[:, :2].ravel()) == set(range(10))


def test_parity_is_of_the_ones():
    xs, odd = drawn(grid_lstm.parity(5, 200))
    assert set(np.unique(xs)) == {-1.0, 1.0}
    np.testing.assert_array_equal(odd, [list(row).count(1.0) % 2 for row in xs[:, 0]])


def test_the_flag_is_what_the_last_command_says():
    tokens, up = drawn(gate_as_flag.set_and_reset(5, 0.4, 30, 20))
    for row, flags in zip(tokens.tolist(), up.tolist(), strict=True):
        flag = 0
        for word, shown in zip(row, flags, strict=True):
            flag = {0: 1, 1: 0}.get(word, flag)
            assert shown == flag
    assert set(tokens.ravel()) == set(range(5))


def test_the_two_of_a_pair_are_one_bag_of_words():
    training, test = order_matters.split_couples(0.25, seed=0)
    assert len(training) == 48
    assert not set(training) & set(test)
    for couple in test:
        for blame, praise in order_matters.pairs(*couple):
            assert blame != praise
            assert sorted(basic_english(blame)) == sorted(basic_english(praise))
    # Read by hand: what is negated, or comes after "not", is not meant.
    blame, praise = order_matters.pairs("good", "bad")[0]
    assert (blame, praise) == ("the film is not good but bad", "the film is not bad but good")


def test_as_many_test_examples_as_training_examples_are_taken(monkeypatch):
    pytest.importorskip("sklearn")
    images = digits.load_images(digits.Settings(take=7), seed=0)
    assert [len(part.digits) for part in images] == [7, 7]
    taken = []
    monkeypatch.setattr(order_matters, "SYSTEMS", ("GRU",))
    monkeypatch.setattr(order_matters, "fitted", lambda *given: taken.extend(given[3:5]))
    results = SimpleNamespace(row=lambda system, library, seed, measure: measure())
    order_matters.run(order_matters.Settings(take=7, seeds=1), results)
    assert [len(part.labels) for part in taken] == [7, 7]


def test_the_first_symbol_is_asked_for():
    tokens, first = drawn(learning_rate.recall(4, 6, 30))
    assert tokens.shape == (30, 6)
    np.testing.assert_array_equal(first, [row[0] for row in tokens])


def test_parities_are_counted_by_twos():
    bits, odd = drawn(parity.parities(30, 4))
    np.testing.assert_array_equal(odd, [[sum(row[: t + 1]) % 2 for t in range(30)] for row in bits])


def test_every_step_of_a_wave_asks_for_the_value_after_the_wait():
    """Least squares find one sine behind the 13 samples, at the times that the waits add up to."""
    settings = uneven_steps.Settings(length=12)
    for scale in (1, 2):
        values, waits, following = drawn(uneven_steps.waves(settings, 40, scale))
        np.testing.assert_array_equal(values[:, 1:], following[:, :-1])
        assert 0.1 * scale <= waits.min() < 0.2 * scale
        assert 1.8 * scale < waits.max() <= 1.9 * scale
        times = np.concatenate([np.zeros((40, 1)), np.cumsum(waits, 1, np.float64)], axis=1)
        seen = np.concatenate([values[:, :1], following], axis=1)
        for time, value in zip(times[:4], seen[:4], strict=True):
            fits = []
            for frequency in np.linspace(2 * np.pi / 16, 2 * np.pi / 6, 801):
                waves = np.stack([np.sin(frequency * time), np.cos(frequency * time)], axis=1)
                parts = np.linalg.lstsq(waves, value, rcond=None)[0]
                fits.append((np.abs(waves @ parts - value).max(), np.hypot(*parts)))
            wrong, amplitude = min(fits)
            assert wrong < 0.02
            assert 0.49 < amplitude < 1.51


@pytest.mark.full
def test_only_those_that_are_told_the_times_depend_on_them():
    settings = uneven_steps.Settings(length=5, weights=200, layers=1)
    batch = uneven_steps.Waves(*drawn(uneven_steps.waves(settings, 2)))
    for system in ("GRU, no times", "GRU, times as input", "S5, elapsed time"):
        net = uneven_steps.make_network(system, settings)
        assert 100 < uneven_steps.count_weights(net) <= 200
        params = jax.jit(net.init)(KEY)
        # In the second row the wait of the third step is another: no answer before it may change.
        waits = np.repeat(batch.waits[:1], 2, axis=0)
        waits[1, 2] *= 2
        said = jax.jit(net.apply)(params, np.repeat(batch.values[:1], 2, axis=0), waits)
        changed = np.asarray(said[0] != said[1])
        assert changed[:2].tolist() == [False, False]
        assert changed[2:].any() == (system != "GRU, no times")


def test_delays_are_of_a_signal_without_high_frequencies():
    xs, targets = drawn(long_memory.delayed(100, 300, (3, 40), band=0.1))
    assert xs.shape == (300, 100, 1)
    for place, delay in enumerate((3, 40)):
        np.testing.assert_array_equal(targets[:, delay:, place], xs[:, :-delay, 0])
        np.testing.assert_array_equal(targets[:, :delay, place], 0)
    assert xs.var(axis=0).mean() == pytest.approx(1, abs=0.05)
    # Half a period is seen, so a window keeps what leaks from one frequency to the next small.
    power = np.abs(np.fft.rfft(xs[..., 0] * np.hanning(100), axis=1)) ** 2  # of k / 100 a step
    assert power[:, 13:].sum() < 1e-4 * power.sum()
    assert power[:, 6:10].sum() > 0.2 * power.sum()


def test_explained_is_one_less_the_share_of_the_error():
    targets = np.random.default_rng(0).normal(size=(50, 4))
    np.testing.assert_allclose(long_memory.explained(0.5 * targets, targets, 0), 0.75)
    np.testing.assert_allclose(long_memory.explained(targets, targets, (0, 1)), 0, atol=1e-12)


# --- the training loop of the made tasks --------------------------------------------------------


def squares(batch_size):
    """Least squares towards rows of a fixed array: gradient descent can be written down."""
    data = jnp.arange(12.0).reshape(6, 2)

    def loss_fn(params, batch, key):
        del key
        error = ((params[None] - batch) ** 2).sum(axis=-1)
        return error.mean(), {"loss": (error.sum(), jnp.array(float(batch_size)))}

    def sample(key, step):
        del key
        return data[(jnp.arange(batch_size) + step) % 6]

    return Task(lambda key: jnp.zeros(2), sample, loss_fn)


def test_members_take_the_steps_of_gradient_descent_side_by_side():
    import optax

    trained = make_trainer(squares(2), optax.sgd, every=3)([0, 1], [0.1, 0.02], 6)
    data = np.arange(12.0).reshape(6, 2)
    for member, rate in enumerate((0.1, 0.02)):
        params, losses = np.zeros(2), []
        for step in range(6):
            batch = data[(np.arange(2) + step) % 6]
            losses.append(((params - batch) ** 2).sum(axis=-1).mean())
            params = params - rate * 2 * (params - batch).mean(axis=0)
        np.testing.assert_allclose(trained.member(member), params, rtol=1e-5)
        means = np.reshape(losses, (2, 3)).mean(axis=1)
        np.testing.assert_allclose(trained.curves["loss"][member], means, rtol=1e-5)
    assert trained.steps.tolist() == [3, 6]


def test_wrong_counts_are_named():
    import optax

    train = make_trainer(squares(2), optax.sgd, every=4)
    with pytest.raises(ValueError, match="one for each of 2 seeds, got 1"):
        train([0, 1], [0.1], 4)
    with pytest.raises(ValueError, match=r"multiple of every \(4\), got 6"):
        train([0], [0.1], 6)
    with pytest.raises(ValueError, match="--held-out"):
        order_matters.split_couples(0.0, seed=0)


def test_rows_are_drawn_whole_and_all_of_them():
    data = {"x": np.arange(5), "y": np.arange(5) * 10}
    batch = random_rows(data, 200)(KEY, STEP)
    np.testing.assert_array_equal(batch["y"], batch["x"] * 10)
    assert set(np.asarray(batch["x"]).tolist()) == set(range(5))


def test_what_was_kept_is_not_made_again(tmp_path):
    made = []
    for _ in range(2):
        found = kept(tmp_path / "a.npz", lambda: made.append(1) or {"x": np.arange(3)})
        np.testing.assert_array_equal(found["x"], [0, 1, 2])
    assert made == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


# --- gradients through time ---------------------------------------------------------------------


def test_norms_are_those_of_the_derivative_of_the_whole_run():
    """Against autodiff of the last three steps at once, from the state before them."""
    cell = rnnjax.lstm(3)
    params = jax.jit(cell.init, static_argnums=1)(KEY, 2)
    xs = jax.random.normal(jax.random.key(1), (5, 2))
    found = gradients_through_time.norms(cell, params, xs)
    _, (_, carries) = rnnjax.unroll(cell, params, xs, all_carries=True, include_initial=True)
    h, c = (np.asarray(leaf[2]) for leaf in carries)

    def last(state):
        start = rnnjax.LSTMCarry(state[:3], state[3:])
        carry, _ = rnnjax.unroll(cell, params, xs[2:], initial_carry=start)
        return jnp.concatenate([carry.h, carry.c])

    jacobian = jax.jit(jax.jacrev(last))(np.concatenate([h, c]))
    assert found[3] == pytest.approx(np.linalg.norm(np.asarray(jacobian), 2), rel=1e-4)
    assert (len(found), found[0]) == (6, 1.0)


def test_without_an_activation_the_norm_is_a_power_of_the_radius():
    settings = gradients_through_time.Settings(length=20, hidden_size=4)
    norms = gradients_through_time.measure_norms(settings, "linear", 2.0, seed=0)
    np.testing.assert_allclose(norms, 2.0 ** np.arange(21.0), rtol=1e-4)


def test_an_open_gate_is_the_one_that_keeps_the_state():
    lstm = rnnjax.lstm(2).init(KEY, 3)
    raised = gradients_through_time.with_open_gate(lstm, "forget", 4.0).bias - lstm.bias
    np.testing.assert_array_equal(raised, [0, 0, 4, 4, 0, 0, 0, 0])  # i, f, g, o
    gru = rnnjax.gru(2).init(KEY, 3)
    raised = gradients_through_time.with_open_gate(gru, "update", 4.0).bias - gru.bias
    np.testing.assert_array_equal(raised, [0, 0, 4, 4, 0, 0])  # r, z, n
