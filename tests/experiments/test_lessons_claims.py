"""The lessons that show a claim: their generators, their networks, and their smallest form."""

import gzip
import itertools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from experiments.lessons import (
    count_to_three,
    digits,
    gate_as_flag,
    gradients_through_time,
    grid_lstm,
    learning_rate,
    long_distance,
    long_memory,
    order_matters,
    parity,
    pretrained_vectors,
    uneven_steps,
)
from experiments.lessons.lesson import run_lesson
from experiments.lessons.synthetic import Task, kept, make_trainer, random_rows
from rnnjax.data import DataError, Vocabulary, basic_english
from rnnjax.data.vectors import read_vectors

pytestmark = pytest.mark.usefixtures("quick_compile")
KEY, STEP = jax.random.key(0), jnp.array(0)
VOCABULARY = Vocabulary.fit([["film", "warm", "Ünicode", "missing", ". ."]])

# --- word vectors -------------------------------------------------------------------------------


def parsed(text, vocabulary):
    """The vectors as a few lines of plain Python read them: the first of a word counts."""
    lines = text.splitlines()
    if len(lines[0].split(" ")) == 2:
        lines = lines[1:]
    size = len(lines[0].split()) - 1
    found = {}
    for line in lines:
        fields = line.strip().split(" ")
        word = " ".join(fields[:-size])
        found.setdefault(word, [float(number) for number in fields[-size:]])
    zero = [0.0] * size
    return np.array([found.get(word, zero) for word in vocabulary.tokens], np.float32)


LINES = [
    "the 0.25 -1e-3 3",
    "film 1 2 3",
    ". . 4 5 6",
    "Ünicode -0.125 0 7.5",
    "film 9 9 9",
    "<unk> 8 8 8",
]


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("end", ["\n", " \n", "\r\n"])
def test_vectors_are_those_of_a_plain_parse(header, zipped, end, tmp_path):
    lines = [f"{len(LINES)} 3", *LINES] if header else LINES
    path = tmp_path / ("v.txt.gz" if zipped else "v.txt")
    content = "".join(line + end for line in lines).encode()
    path.write_bytes(gzip.compress(content) if zipped else content)
    vectors = read_vectors(path, VOCABULARY)
    expected = parsed("\n".join(lines), VOCABULARY)
    expected[:2] = 0  # no text reaches the special tokens by spelling them out
    np.testing.assert_array_equal(vectors.table, expected)
    words = np.array(VOCABULARY.tokens)[vectors.found]
    assert set(words) == {"film", "Ünicode", ". ."}
    assert (vectors.coverage, vectors.duplicates, vectors.words) == (3 / 5, 1, 6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("film 1 2\nwarm 1\n", "line 2: 1 of 2 numbers missing in 'warm 1'"),
        ("film 1 2\nthe 1 2 3\n", "line 2: more than 2 numbers in 'the 1 2 3'"),
        ("2 2\nthe 1 2\nwarm 1 x\n", "line 3: 'x' where a number should be"),
        ("warm 1 nan\n", "line 1: a number that is not finite"),
        ("warm 1 1e39\n", "line 1: a number that is not finite"),
        ("warm 1_0 2\n", "line 1: '1_0'"),
        ("word\n", "line 1: no numbers in 'word'"),
        ("3 0\n", "line 1: the sizes '3 0'"),
        ("1 1000000000000\na 1\n", "line 1: the sizes '1 1000000000000'"),
        ("1 " + "9" * 5000, "line 1: the sizes '1 99999"),
        ("9" * 5000 + " 1\n", "line 1: the sizes '99999"),
        ("3 2\nwarm 1 2\n", "must have 3 words as its first line says, got 1"),
        ("", "empty file"),
        ("the " + "1" * (1 << 20), "line 1: more than 1,048,574 characters"),
    ],
)
def test_a_bad_line_is_named_with_its_file(text, message, tmp_path):
    path = tmp_path / "bad.txt"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read_vectors(path, VOCABULARY)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_files_that_are_not_there_or_cut_short_are_refused(tmp_path):
    with pytest.raises(DataError, match="must be a file, got none"):
        read_vectors(tmp_path / "none.txt", VOCABULARY)
    whole = gzip.compress("\n".join(LINES * 50).encode())
    (tmp_path / "cut.txt.gz").write_bytes(whole[:-12])
    with pytest.raises(DataError, match="whole gzip file"):
        read_vectors(tmp_path / "cut.txt.gz", VOCABULARY)


def test_reading_vectors_takes_no_memory_for_the_rest_of_the_file(tmp_path):
    path = tmp_path / "large.txt"
    with path.open("w") as file:
        for number in range(20_000):
            file.write(f"word{number} " + " ".join(["0.123456"] * 20) + "\n")
    tracemalloc.start()
    read_vectors(path, VOCABULARY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 3_000_000
    assert peak < 300_000


def test_what_a_file_lacks_is_drawn_like_what_it_has(tmp_path):
    vocabulary = Vocabulary.fit([[f"w{n}" for n in range(2000)]])
    random = np.random.default_rng(0)
    known = random.normal(2.0, 0.5, (1000, 8))
    rows = (f"w{n} " + " ".join(map(str, row)) for n, row in enumerate(known))
    (tmp_path / "v.txt").write_text("\n".join(rows))
    vectors = read_vectors(tmp_path / "v.txt", vocabulary)
    filled = vectors.filled(seed=1)
    np.testing.assert_array_equal(filled[vectors.found], vectors.table[vectors.found])
    drawn = filled[~vectors.found][1:]
    assert drawn.mean() == pytest.approx(2.0, abs=0.02)
    assert drawn.std() == pytest.approx(0.5, abs=0.02)
    assert not filled[0].any()
    none = read_vectors(tmp_path / "v.txt", VOCABULARY)
    with pytest.raises(DataError, match="got none"):
        none.filled(seed=0)


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


def test_the_first_symbol_is_asked_for():
    tokens, first = drawn(learning_rate.recall(4, 6, 30))
    assert tokens.shape == (30, 6)
    np.testing.assert_array_equal(first, [row[0] for row in tokens])


# --- the NumPy network --------------------------------------------------------------------------


def numpy_network(arrays, x):
    """The lesson's program: the output is made of the state after the step."""
    state, outputs = np.zeros(15), []
    for row in x:
        state = np.tanh(arrays["W_ih"].T @ row + arrays["W_hh"].T @ state + arrays["b_ih"])
        outputs.append(1 / (1 + np.exp(-(arrays["W_hk"].T @ state + arrays["b_hk"]))))
    return np.array(outputs)


def random_arrays():
    random = np.random.default_rng(3)
    return {name: random.normal(size=shape) for name, shape in count_to_three.SHAPES.items()}


def test_the_network_from_named_weights_is_the_numpy_one(tmp_path):
    arrays = random_arrays()
    np.savez(tmp_path / "net.npz", **arrays)
    params = count_to_three.load_named_weights(tmp_path / "net.npz")
    xs, _ = count_to_three.sequences()
    _, logits = count_to_three.network().apply(params, jnp.asarray(xs[:5]))
    expected = [numpy_network(arrays, x) for x in xs[:5].astype(np.float64)]
    np.testing.assert_allclose(jax.nn.sigmoid(logits), expected, rtol=2e-4, atol=2e-6)
    written = count_to_three.named_weights(params)
    for name, array in arrays.items():
        np.testing.assert_allclose(written[name], array, rtol=1e-6)


def test_the_sequences_are_those_of_the_lesson():
    np.random.seed(1)
    expected = np.random.randn(100, 10, 5)
    xs, targets = count_to_three.sequences()
    np.testing.assert_allclose(xs, expected, rtol=1e-6)
    assert [t for t in range(10) if targets[7, t, 0] == 1] == [2, 5, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_hh": np.ones((15, 14))}, r"W_hh must be \(15, 15\), got \(15, 14\)"),
        ({"b_hk": None}, r"b_hk must be \(1,\), got nothing"),
        ({"W_ho": np.ones(3)}, r"W_ho must be absent, got \(3,\)"),
        ({"b_ih": np.full(15, np.nan)}, "b_ih.*NaN or infinity"),
        ({"b_ih": np.array(["a"] * 15)}, "b_ih must be"),
        ({"b_ih": np.array([None] * 15)}, "must be an .npz file of plain arrays"),
    ],
)
def test_other_weights_are_refused(change, message, tmp_path):
    arrays = {**random_arrays(), **change}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    np.savez(tmp_path / "net.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        count_to_three.load_named_weights(tmp_path / "net.npz")


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "net.npz").write_text("not weights")
    with pytest.raises(ValueError, match=r"must be an \.npz file"):
        count_to_three.load_named_weights(tmp_path / "net.npz")
    with pytest.raises(FileNotFoundError, match="got no such file"):
        count_to_three.load_named_weights(tmp_path / "other.npz")


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


# --- the smallest form of each ------------------------------------------------------------------


def figures(rows, name):
    return {row.system: row.figures[name] for row in rows if name in row.figures}


def only(monkeypatch, module, table, *names):
    """Leaves these systems of a lesson, as each takes seconds to compile."""
    found = getattr(module, table)
    kept = names if isinstance(found, tuple) else {name: found[name] for name in names}
    monkeypatch.setattr(module, table, kept)


@pytest.mark.full
def test_a_bag_cannot_tell_what_a_recurrent_network_can(tmp_path, monkeypatch):
    only(monkeypatch, order_matters, "SYSTEMS", "bag of embeddings", "GRU")
    settings = order_matters.Settings(seeds=1, steps=150, out=tmp_path / "run")
    right = figures(run_lesson(order_matters, settings), "test accuracy")
    assert right["bag of embeddings"] == 0.5
    assert right["GRU"] > 0.99


@pytest.mark.full
def test_gradients_vanish_explode_and_are_clipped(tmp_path, monkeypatch):
    settings = gradients_through_time.Settings(
        seeds=1,
        radii=(0.8,),
        length=20,
        hidden_size=8,
        input_size=2,
        clip_length=20,
        clip_radius=3.0,
        clip_learning_rate=0.3,
        clip_steps=60,
        out=tmp_path / "run",
    )
    cells = gradients_through_time.systems(settings)
    chosen = {name: cells[name] for name in ("vanilla (tanh)", "GRU", "GRU, update gate open")}
    monkeypatch.setattr(gradients_through_time, "systems", lambda settings: chosen)
    rows = run_lesson(gradients_through_time, settings)
    whole = figures(rows, "log10 norm, 20 steps")
    assert whole["vanilla (tanh), radius 0.8"] < -1
    closed, held = (whole[f"GRU{gate}, radius 0.8"] for gate in ("", ", update gate open"))
    assert closed < -2 < -0.3 < held < 0
    skipped = figures(rows, "steps not finite")
    assert skipped["training without clipping"] > 0 == skipped["training with clipping"]
    assert {path.name for path in settings.out.glob("*.png")} == {"norms.png", "clipping.png"}


@pytest.mark.full
def test_an_lstm_keeps_a_flag(tmp_path):
    settings = gate_as_flag.Settings(seeds=1, steps=500, longer=80, length=20, out=tmp_path / "run")
    [row] = run_lesson(gate_as_flag, settings)
    assert row.figures["right steps, T=80"] > 0.99 > row.figures["always down"]
    with np.load(settings.out / "trace.npz") as stored:
        trace = gate_as_flag.Trace(**stored)
    unit = gate_as_flag.flag_unit(trace)
    assert abs(np.corrcoef(trace.c[:, unit], trace.up)[0, 1]) > 0.8
    for gate in (trace.i, trace.f, trace.o):
        assert ((gate > 0) & (gate < 1)).all()
    assert run_lesson(gate_as_flag, settings) == (row,)  # gone on with: the same row, not trained


def test_gated_cells_add_over_a_distance(tmp_path, monkeypatch):
    only(monkeypatch, long_distance, "CELLS", "GRU")
    settings = long_distance.Settings(
        seeds=1,
        adding_lengths=(15,),
        copy_pauses=(),
        adding_steps=250,
        hidden_size=16,
        out=tmp_path / "run",
    )
    loss = figures(run_lesson(long_distance, settings), "loss")
    assert loss["GRU, adding, T=15"] < 0.03 < 1 / 6  # the error of whoever remembers nothing
    assert (settings.out / "long_distance.png").exists()


@pytest.mark.full
def test_a_grid_learns_a_parity(tmp_path):
    settings = grid_lstm.Settings(
        seeds=1,
        parity_bits=(4,),
        parity_layers=2,
        parity_steps=400,
        digits=1,
        adding_layers=2,
        adding_steps=20,
        hidden_size=16,
        out=tmp_path / "run",
    )
    rows = run_lesson(grid_lstm, settings)
    right = figures(rows, "right")
    assert right["parity of 4 bits, grid LSTM, 2 layers"] > 0.99
    weights = figures(rows, "weights")
    grid, stack = (f"sums of 1 digits, {n} LSTM, 2 layers" for n in ("grid", "stacked"))
    assert weights[grid] == 2 * (32 * 64 + 64) + (12 + 1) * 32 + (16 + 1) * 10
    assert weights[stack] == (12 + 16 + 1) * 64 + (16 + 16 + 1) * 64 + (16 + 1) * 10
    assert (settings.out / "grid_lstm.png").exists()
    assert run_lesson(grid_lstm, settings) == rows  # gone on with: nothing is trained again


def test_parities_are_counted_by_twos():
    bits, odd = drawn(parity.parities(30, 4))
    np.testing.assert_array_equal(odd, [[sum(row[: t + 1]) % 2 for t in range(30)] for row in bits])


@pytest.mark.full
def test_an_slstm_keeps_a_parity_and_a_linear_cell_does_not(tmp_path):
    settings = parity.Settings(
        cells=("sLSTM", "minGRU"),
        seeds=1,
        length=16,
        longer=40,
        steps=600,
        test_sequences=256,
        out=tmp_path / "run",
    )
    rows = run_lesson(parity, settings)
    right = figures(rows, "right at step 40")
    assert right["sLSTM"] > 0.95 > 0.65 > right["minGRU"]
    assert (settings.out / "parity.png").exists()
    assert run_lesson(parity, settings) == rows  # gone on with: nothing is trained again


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


@pytest.mark.full
def test_a_network_that_is_told_the_times_follows_a_wave_better(tmp_path):
    settings = uneven_steps.Settings(
        systems=("GRU, no times", "CfC, elapsed time"),
        seeds=1,
        length=16,
        layers=1,
        weights=1_500,
        steps=300,
        test_waves=128,
        out=tmp_path / "run",
    )
    rows = run_lesson(uneven_steps, settings)
    error = figures(rows, "error")
    assert error["CfC, elapsed time"] < 0.5 * error["GRU, no times"]
    assert (settings.out / "uneven_steps.png").exists()
    assert run_lesson(uneven_steps, settings) == rows  # gone on with: nothing is trained again


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


@pytest.mark.full
def test_an_lmu_gives_back_a_signal(tmp_path):
    settings = long_memory.Settings(
        cells=("LMU",),
        seeds=1,
        delays=(10, 20),
        length=40,
        longer=80,
        steps=150,
        test_sequences=32,
        out=tmp_path / "run",
    )
    rows = run_lesson(long_memory, settings)
    [end] = figures(rows, "20 ago, steps 40 to 80").values()
    assert end > 0.9
    assert (settings.out / "long_memory.png").exists()
    assert run_lesson(long_memory, settings) == rows  # gone on with: nothing is trained again


def test_a_sweep_finds_rates_too_low_and_too_high(tmp_path):
    settings = learning_rate.Settings(
        seeds=1,
        lengths=(6,),
        learning_rates=(1e-5, 1e-2, 1.0),
        steps=300,
        hidden_size=16,
        out=tmp_path / "run",
    )
    [row] = run_lesson(learning_rate, settings)
    low, right, high = row.figures.values()
    assert low < 0.5 > high
    assert right > 0.95


@pytest.mark.full
def test_counting_is_learned_without_an_error(tmp_path):
    np.savez(tmp_path / "net.npz", **random_arrays())
    settings = count_to_three.Settings(
        seeds=1, lesson_epochs=1, weights=tmp_path / "net.npz", out=tmp_path / "run"
    )
    right = figures(run_lesson(count_to_three, settings), "right steps, fresh inputs")
    assert right["Adam"] == 1.0
    assert right["the lesson's recipe"] == pytest.approx(0.7)  # after one epoch: never a 1
    arrays, (xs, targets) = random_arrays(), count_to_three.sequences(seed=2)
    said = [numpy_network(arrays, x) > 0.5 for x in xs.astype(np.float64)]
    assert right["weights from the file"] == pytest.approx((said == (targets > 0.5)).mean())


@pytest.mark.full
def test_digits_are_read_row_by_row(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    only(monkeypatch, digits, "CELLS", "GRU")
    settings = digits.Settings(
        seeds=1, hidden_size=32, steps=300, learning_rate=1e-2, out=tmp_path / "run"
    )
    right = figures(run_lesson(digits, settings), "test accuracy")
    assert right["logistic regression"] > 0.9
    assert right["GRU"] > 0.85
    training, test = digits.load_images(digits.Settings(take=100), seed=0)
    assert (training.rows.shape, test.rows.shape) == ((100, 8, 8), (360, 8, 8))
    assert training.rows.min() == 0.0 < training.rows.max() == 1.0


def write_news(folder, count, seed):
    """Pieces of news whose class is one of four words, the second half of the words of each class
    known to the vectors alone."""
    random = np.random.default_rng(seed)
    lines = []
    for label in random.integers(0, 4, count):
        words = [f"class{label}x{random.integers(40)}", "the", "news"]
        lines.append(f'"{label + 1}","{" ".join(random.permutation(words))}","today ."\n')
    folder.write_text("".join(lines))


@pytest.mark.full
def test_pretrained_vectors_start_where_the_file_says(tmp_path):
    (tmp_path / "ag_news").mkdir()
    (tmp_path / "glove").mkdir()
    write_news(tmp_path / "ag_news" / "train.csv", 480, seed=0)
    write_news(tmp_path / "ag_news" / "test.csv", 80, seed=1)
    random = np.random.default_rng(2)
    centres = random.normal(size=(4, 6))
    lines = [
        f"class{label}x{n} " + " ".join(map(str, centres[label] + 0.1 * random.normal(size=6)))
        for label, n in itertools.product(range(4), range(40))
    ]
    (tmp_path / "glove" / "small.txt").write_text("\n".join(["160 6", *lines]))
    settings = pretrained_vectors.Settings(
        seeds=1,
        data_dir=tmp_path,
        hidden_size=8,
        batch_size=16,
        epochs=8,
        learning_rate=1e-2,
        out=tmp_path / "run",
    )
    rows = run_lesson(pretrained_vectors, settings)
    right = figures(rows, "test accuracy")
    assert right["small, fine-tuned"] > right["small, untrained"]
    assert right["small, frozen"] > 0.7
    # "the", "news", "today" and "." are in every text of five words, and not in the file.
    assert all(row.figures["tokens found"] < 0.2 for row in rows)
    assert (settings.out / "pretrained_vectors.png").exists()
    missing = pretrained_vectors.Settings(data_dir=tmp_path / "ag_news")
    with pytest.raises(DataError, match="must have word vectors"):
        pretrained_vectors.vector_files(missing)
