"""The lessons that show a claim, in their smallest form."""

import itertools

import numpy as np
import pytest

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
    pretrained_vectors,
    uneven_steps,
)
from experiments.lessons.lesson import run_lesson
from rnnjax.data import DataError

pytestmark = pytest.mark.usefixtures("quick_compile")


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
        copy_pauses=(1,),
        copy_steps=1,
        copy_hidden_size=2,
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
    assert training.rows.shape == test.rows.shape == (100, 8, 8)
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
