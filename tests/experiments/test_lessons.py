"""The classification systems of the lessons, in their smallest form, on texts made here."""

import csv
import dataclasses
import importlib.machinery
import importlib.util
import io
import json
import shlex
import sys
import types

import jax
import numpy as np
import pytest

from experiments.lessons import LESSONS, __main__, contest, lesson, news, ours, sequences, tables
from experiments.lessons.lesson import (
    ExamplesSettings,
    LessonSettings,
    Measured,
    NotInstalled,
    Results,
    Row,
    run_lesson,
)
from experiments.lessons.recipes import Corpus, Encoded, Recipe, Totals, draw, steps_of
from experiments.lessons.synthetic import kept
from experiments.running.run_folder import RunFolder
from rnnjax.data import DataError
from rnnjax.interop.classifiers import LayerSize, import_keras, import_torch

RATE = 1e-2


def make_recipe(**changes):
    """As small as the lessons are below, so that they share a program."""
    recipe = Recipe(
        form="keras",
        kind="vanilla",
        embedding_size=4,
        layers=(LayerSize(3, False),),
        num_classes=4,
        batch_size=8,
        reads_padding=False,
    )
    return dataclasses.replace(recipe, **changes)


@pytest.fixture
def keras():
    """Keras relies on NumPy's promotion of ranks, which the tests refuse to rnnjax."""
    module = pytest.importorskip("keras")
    with jax.numpy_rank_promotion("allow"):
        yield module


def make_corpus(count=38, words=90):
    random = np.random.default_rng(0)

    def part(n):
        # Two lengths, so that Keras, which compiles for each, does so no more than twice.
        rows = [random.integers(2, words, (3, 7, 7)[i % 3]).tolist() for i in range(n)]
        return Encoded(rows, random.integers(0, 4, n).tolist())

    return Corpus(part(count), part(9), words, "")


def test_lazy_rows_end_where_pytorch_has_them():
    pytest.importorskip("torch")
    from experiments.lessons.peers_torch import Torch

    recipe = make_recipe(form="pytorch", kind="lstm", vectors="shifted", shuffle=True)
    mine, theirs, params = trained_alike(recipe, Torch)
    want = import_torch("lstm", {n: w.detach().numpy() for n, w in theirs.net.state_dict().items()})
    assert_same_weights(mine.params, want)
    assert params.embedding.vectors.mean() == pytest.approx(-0.5, abs=0.1)
    assert 0 < np.abs(params.head.bias).max() <= 3**-0.5


def test_lazy_rows_end_where_keras_has_them(keras):
    from experiments.lessons.peers_keras import Keras, values_of

    mine, theirs, params = trained_alike(make_recipe(), Keras)
    assert_same_weights(mine.params, import_keras("vanilla", values_of(theirs.model.weights)))
    assert np.abs(params.embedding.vectors).max() == pytest.approx(0.05, abs=1e-3)
    assert not params.head.bias.any()


def trained_alike(recipe, peer):
    """Both after six epochs, in which most rows wait to be read for several steps."""
    corpus = make_corpus()
    params = draw(recipe, corpus.vocab_size, jax.random.key(3))
    epochs = [steps_of(corpus.train, recipe, 0, epoch) for epoch in range(6)]
    batches = [rows for epoch in epochs for rows in epoch]
    both = ours.Ours(recipe, corpus), peer(recipe, corpus)
    for one in both:
        one.begin(params, len(batches), seed=0)
        one.prepare(batches)
    totals = [one.advance(batches) for one in both]
    assert totals[0].hits == pytest.approx(totals[1].hits, abs=1e-3)
    return *both, params


def assert_same_weights(got, want):
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_the_packed_batch_of_the_text_and_back():
    padded = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0], [9, 0, 0, 0, 0]])
    order = [2, 0, 1]
    packed = sequences.pack_padded(padded[order], [1, 5, 3])
    assert packed.data.tolist() == [1, 6, 9, 2, 7, 3, 8, 4, 5]
    rows, lengths = sequences.unpack(packed)
    assert rows.tolist() == padded[order].tolist()
    assert lengths.tolist() == [1, 5, 3]
    with pytest.raises(DataError, match=r"lengths must be one for each of 3 rows, in \[1, 5\]"):
        sequences.pack_padded(padded, [6, 3, 1])


def test_padding_and_packing_are_those_of_the_originals(keras):
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    texts = [random.integers(1, 99, n).tolist() for n in (7, 1, 4, 12, 4, 0)]
    for maxlen in (None, 5):
        for padding in ("pre", "post"):
            for truncating in ("pre", "post"):
                got = sequences.pad_sequences(texts, maxlen, padding, truncating)
                want = keras.utils.pad_sequences(texts, maxlen, "int32", padding, truncating)
                np.testing.assert_array_equal(got, want)
    lengths = [len(text) for text in texts[:-1]]
    padded = sequences.pad_sequences(texts[:-1], padding="post")
    got = sequences.pack_padded(padded, lengths)
    want = torch.nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(padded), torch.tensor(lengths), batch_first=True, enforce_sorted=False
    )
    np.testing.assert_array_equal(got.data, want.data.numpy())
    np.testing.assert_array_equal(got.batch_sizes, want.batch_sizes.numpy())
    np.testing.assert_array_equal(sequences.unpack(got)[0], padded)


def test_torchtext_puts_equal_counts_in_the_order_of_the_alphabet():
    tokens = news.torchtext_tokens([["b", "c", "a"], ["c", "."]])
    assert tokens == ["<unk>", "<pad>", "c", ".", "a", "b"]


def test_rows_are_measured_once_and_a_missing_library_is_asked_again(tmp_path):
    def never():
        raise AssertionError("measured twice")

    def absent():
        raise NotInstalled("Keras")

    config = {"lesson": "a", "settings": {}}
    with RunFolder(tmp_path / "a", config) as run:
        results = Results("a", run)
        measured = Measured({"accuracy": 0.5}, 2.0, 3, {"compile s": 1.0}, "note")
        first = results.row("s", "rnnjax", 0, lambda found=measured: found)
        assert results.row("s", "Keras", 0, absent).note == "not installed"
        with run.metrics_path.open("a") as file:
            file.write('{"kind": "row", "syst')  # as a process leaves it that was killed
    with RunFolder(tmp_path / "a", config, "resume") as run:
        results = Results("a", run)
        assert results.row("s", "rnnjax", 0, never) == first
        assert results.row("s", "Keras", 0, lambda found=measured: found).figures == {
            "accuracy": 0.5
        }


def test_a_count_that_is_the_same_for_all_seeds_has_no_spread_and_a_terminal_no_markdown(
    tmp_path, monkeypatch
):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def run(settings, results):
        for seed in range(settings.seeds):
            figures = {f"right after {n} steps": 0.5 + n + seed for n in range(5)}
            measured = Measured({**figures, "weights": 6_802})
            results.row("a system", "rnnjax", seed, lambda found=measured: found)

    module = types.ModuleType("experiments.lessons.wide", "What it shows.")
    module.Settings, module.run = LessonSettings, run
    module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("sys.stdout", Terminal())
    run_lesson(module, LessonSettings(seeds=2, out=tmp_path / "run"))
    lines = sys.stdout.getvalue().splitlines()
    found = next(n for n, line in enumerate(lines) if line.startswith("a system"))
    assert lines[found].split()[:3] == ["a", "system", "2"]
    assert lines[found].split()[-1] == "6,802"
    assert lines[-1].split()[-1] == "0.707"
    assert "|" not in "".join(lines[found:])
    assert min(map(len, lines)) > 0


def test_the_table_has_means_spreads_and_ratios_seed_by_seed():
    def row(library, seed, share, seconds):
        return Row("a", "s", library, seed, {"accuracy": share}, seconds, 1234)

    rows = [row("rnnjax", 0, 0.25, 1.0), row("rnnjax", 1, 0.75, 2.0)]
    rows += [row("Keras", 0, 0.5, 3.0), row("Keras", 1, 0.5, 8.0)]
    line = tables.summarize(rows)[1]
    assert line["ratio"] == pytest.approx((3 / 1 + 8 / 2) / 2)
    assert tables.lesson_table(rows).splitlines()[2:] == [
        "| s      | rnnjax  |     2 | 0.500 ± 0.354 | 1,234 |    1.50 |              |",
        "| s      | Keras   |     2 | 0.500 ± 0.000 | 1,234 |    5.50 |         3.50 |",
    ]


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)


@pytest.fixture
def data_dir(tmp_path):
    """AG News of four topics that one word tells apart, and IMDB of two."""
    folder, random = tmp_path / "data", np.random.default_rng(0)
    for name in ("ag_news", "imdb"):
        (folder / name).mkdir(parents=True)
    for name, count in (("train_partial", 40), ("test", 12)):
        rows = [
            (i % 4 + 1, f"topic{i % 4}", " ".join(random.choice(list("abcd"), 3)))
            for i in range(count)
        ]
        write_csv(folder / "ag_news" / f"{name}.csv", rows)
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    for name in ("train", "test"):
        texts = [f"{'good' if i % 2 else 'bad'} film <br />number {i}" for i in range(24)]
        table = pyarrow.table({"text": texts, "label": [i % 2 for i in range(24)]})
        parquet.write_table(table, folder / "imdb" / f"{name}.parquet")
    return folder


def small(name, data_dir, out):
    module = importlib.import_module(f"experiments.lessons.{name}")
    sizes = {"embedding_size": 4, "hidden_size": 3, "batch_size": 8}
    known = {field.name for field in dataclasses.fields(module.Settings)}
    sizes = {field: size for field, size in sizes.items() if field in known}
    return module, module.Settings(take=20, seeds=1, data_dir=data_dir, out=out, **sizes)


def test_a_lesson_finds_the_same_with_both_libraries_and_measures_once(
    data_dir, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("torch")
    module, settings = small("torch_lstm", data_dir, tmp_path / "torch_lstm")
    monkeypatch.setattr(contest, "REPORT_EVERY", 2)
    rows = run_lesson(module, settings)
    both = [[row for row in rows if row.library == library] for library in ("rnnjax", "PyTorch")]
    assert [len(found) for found in both] == [3, 3]
    for mine, theirs in zip(*both, strict=True):
        assert mine.figures == pytest.approx(theirs.figures, abs=1e-4)
    assert rows[0].note == "first 20, 0k of 120k"
    assert (settings.out / "running_accuracy.png").stat().st_size > 1000
    assert "16: acc=0." in capsys.readouterr().out
    monkeypatch.delattr(contest, "_train")
    assert run_lesson(module, settings) == rows


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("keras_simple_rnn", [1_281_364] * 3),
        ("keras_lstm", [1_282_372]),
        ("keras_bilstm", [2_758_148]),
        ("keras_vectorizer", [1_281_364] * 2),
        ("torch_rnn", [64 * 10 + 3_136 - 32 + 132] * 2),
        ("torch_lstm", [64 * 10 + 12_544 - 128 + 132] * 2),
        ("imdb_lstm", [2_691_713]),
    ],
)
def test_a_lesson_has_the_models_of_its_text_and_runs_without_the_original(
    name, parameters, data_dir, tmp_path, monkeypatch
):
    """As many parameters as the texts print; here PyTorch's two biases are one."""
    counted = []

    class Counting:
        compile_seconds = 0.0

        def __init__(self, recipe, corpus):
            self.corpus = corpus

        def begin(self, params, steps, seed):
            counted.append(sum(leaf.size for leaf in jax.tree.leaves(params)))

        def prepare(self, batches):
            pass

        def advance(self, batches):
            return Totals(0.0, sum(map(len, batches)))

        def accuracy(self, batches):
            assert sum(map(len, batches)) == len(self.corpus.test)
            return 0.25

    monkeypatch.setattr(ours, "Ours", Counting)
    monkeypatch.setattr(contest, "draw", lambda *args: jax.eval_shape(draw, *args[:2], args[2]))
    hide_peers(monkeypatch)
    module = importlib.import_module(f"experiments.lessons.{name}")
    settings = module.Settings(take=20, seeds=1, data_dir=data_dir, out=tmp_path / name)
    trained = [row for row in run_lesson(module, settings) if row.steps and row.figures]
    assert counted == parameters
    assert [row.figures["train accuracy"] for row in trained] == [1.0] * len(counted)


def hide_peers(monkeypatch):
    def absent(recipe, corpus):
        raise NotInstalled

    monkeypatch.setattr(contest, "_peer", absent)


def test_imdb_reads_the_end_of_a_review_and_is_compared_with_linear_models(
    data_dir, tmp_path, monkeypatch
):
    pytest.importorskip("sklearn")
    hide_peers(monkeypatch)
    module, settings = small("imdb_lstm", data_dir, tmp_path / "imdb")
    rows = run_lesson(module, dataclasses.replace(settings, epochs=2, max_length=5))
    assert [row.library for row in rows] == ["scikit-learn", "scikit-learn", "rnnjax", "Keras"]
    assert rows[3].note == "not installed"
    assert rows[0].figures["test accuracy"] == 1.0  # "good" or "bad" is in every review
    assert rows[2].steps == 6
    assert rows[2].figures["best test accuracy"] >= rows[2].figures["test accuracy"]
    ranks = module.word_ranks(["film film br", "film br good"])
    assert module.encode(ranks, ["A good<br />film"], num_words=6) == [[1, 2, 2, 5, 4]]


def test_a_vectorizer_fitted_on_less_knows_less(data_dir, tmp_path, monkeypatch):
    module, settings = small("keras_vectorizer", data_dir, tmp_path / "fit")
    monkeypatch.setattr(module, "compare", lambda *args, peers: None)
    rows = run_lesson(module, dataclasses.replace(settings, titles_read=2))
    assert [row.system for row in rows] == [
        "vectorizer fitted on 2 titles",
        "vectorizer fitted on all texts",
    ]
    few, all_texts = (row.figures for row in rows)
    # Of four tokens a text, three are letters, which no title has, and one is its topic.
    assert few["train tokens unknown"] == pytest.approx(3 / 4 + 1 / 4 / 2)
    assert all_texts["test tokens unknown"] == 0
    row, _ = run_lesson(module, dataclasses.replace(settings, out=tmp_path / "all"))
    assert row.system == "vectorizer fitted on 20 titles"  # of --take 20, and not 2,000


def test_buckets_pad_less_and_read_every_text_once(data_dir, tmp_path):
    module, _ = small("data_handling", data_dir, tmp_path / "data_handling")
    lengths = np.random.default_rng(0).integers(1, 60, 50)
    corpus = Corpus(Encoded([[5] * n for n in lengths], [0] * 50), None, 9, "")
    found = module.batchings(corpus, make_recipe(batch_size=5, multiple=8), 4, seed=0)
    padding = {}
    for name, batches in found.items():
        assert sorted(np.concatenate(batches)) == list(range(50))
        steps = sum(len(rows) * corpus.train.width(rows) for rows in batches)
        padding[name] = 1 - lengths.sum() / steps
    assert padding["length buckets"] < 0.7 * padding["plain batches"]


def test_padding_and_packing_are_those_of_keras_and_pytorch(data_dir, tmp_path):
    pytest.importorskip("keras")
    pytest.importorskip("torch")
    module, settings = small("data_handling", data_dir, tmp_path / "data_handling")
    rows = run_lesson(module, settings)
    assert [row.figures["the same"] for row in rows if "the same" in row.figures] == [1, 1]


def test_one_command_runs_the_chosen_lessons_and_writes_one_page(tmp_path, monkeypatch, capsys):
    def run(settings, results):
        for seed in range(settings.seeds):
            measured = Measured({"right": settings.take + seed})
            results.row("a system", "rnnjax", seed, lambda found=measured: found)
        (results.folder / "traces.png").write_bytes(b"")

    def fail(settings, results):
        raise DataError("no file")

    for name, function in (("whole", run), ("broken", fail)):
        module = types.ModuleType(f"experiments.lessons.{name}", "What it shows.")
        module.Settings, module.run = ExamplesSettings, function
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(__main__, "LESSONS", ("whole", "broken"))
    out = tmp_path / "all"
    given = ["--take", "20", "--seeds", "2", "--out", str(out), "--lessons"]
    assert __main__.main([*given, "broken"]) == 1
    assert __main__.main([*given, "whole"]) == 0
    assert "--take 20 --seeds 2 --lessons whole`" in (out / "results.md").read_text()
    assert __main__.main([*given, "whole", "broken"]) == 1
    page = (out / "results.md").read_text()
    assert "## What it shows.\n\n| system   | library | seeds |          right |\n" in page
    assert "| a system | rnnjax  |     2 | 20.500 ± 0.707 |" in page
    assert "![traces](whole/traces.png)" in page
    assert "broken was not run: no file" in page
    data = json.loads((out / "results.json").read_text())
    right = data["lessons"]["whole"][0]["figures"]["right"]
    assert right == {"mean": 20.5, "spread": pytest.approx(0.5**0.5), "count": 2}
    assert data["not run"] == {"broken": "no file"}
    assert __main__.main([*given, "broken"]) == 1  # which leaves what the other has measured
    kept = (out / "results.md").read_text()
    assert "| a system | rnnjax  |     2 | 20.500 ± 0.707 |" in kept
    assert "Measured before, with `--take 20`." in kept
    again = json.loads((out / "results.json").read_text())
    assert again["lessons"] == data["lessons"]
    assert again["measured before"] == ["whole"]
    for unknown in (["no_lesson"], []):
        assert __main__.main([*given, *unknown]) == 2
        assert (
            "--lessons must be 1 or more, each one of whole, broken, got" in capsys.readouterr().err
        )
    assert __main__.main([*given, "whole", "--seeds", "0"]) == 2
    assert "--seeds must be a whole number from 1 up, got 0" in capsys.readouterr().err


def test_a_lesson_that_was_stopped_says_the_command_that_goes_on(tmp_path, monkeypatch, capsys):
    def run(settings, results):
        for seed in range(settings.seeds):
            if seed in stops:
                raise KeyboardInterrupt
            results.row("a system", "rnnjax", seed, lambda: measured.append(1) or Measured({}))

    module = types.ModuleType("experiments.lessons.stopped", "What it shows.")
    module.Settings, module.run = LessonSettings, run
    module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    measured, stops, folder = [], {1}, tmp_path / "my run"
    assert lesson.main(module.__name__, ["--seeds", "2", "--out", str(folder)]) == 130
    printed = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert printed == ["python", "-m", module.__name__, "--out", str(folder), "..."]
    stops.clear()
    assert lesson.main(module.__name__, [*printed[3:-1], "--seeds", "2"]) == 0
    assert len(measured) == 2  # one seed before the stop, one after it


REFUSED = {
    "an unknown cell": ("parity", ["--cells", "lstm"], "--cells must be among sLSTM, mLSTM, LSTM"),
    "no steps": ("parity", ["--steps", "-1"], "--steps must be a whole number from 1 up"),
    "a rate that is none": (
        "parity",
        ["--learning-rate", "nan"],
        "--learning-rate must be a finite",
    ),
    "no seeds": ("uneven_steps", ["--seeds", "0"], "--seeds must be a whole number from 1 up"),
    "gaps from long to short": (
        "uneven_steps",
        ["--longest-gap", "0.01"],
        "--shortest-gap must be above 0 and at most --longest-gap, 0.01, got 0.1",
    ),
    "too few weights": (
        "uneven_steps",
        ["--weights", "3"],
        "--weights must be at least 37 for GRU",
    ),
    "a delay of 0": ("long_memory", ["--delays", "0"], "--delays must be 1 or more, each a whole"),
    "no radius": (
        "gradients_through_time",
        ["--radii", "inf"],
        "--radii must be 1 or more, each a",
    ),
    "a wrong order": (
        "long_memory",
        ["--longer", "100"],
        "--delays, --length and --longer must",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_lesson_that_is_refused_leaves_no_folder_in_the_way(case, tmp_path, capsys):
    name, arguments, words = REFUSED[case]
    importlib.import_module(f"experiments.lessons.{name}")
    out = tmp_path / "run"
    assert lesson.main(f"experiments.lessons.{name}", ["--out", str(out), *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def small_lesson(name):
    module = types.ModuleType(f"experiments.lessons.{name}")
    module.run = lambda settings, results: results.row(
        "LSTM", "rnnjax", 0, lambda: Measured({"accuracy": 0.5}, timings={"compile s": 1.0})
    )
    module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
    return module


def test_rows_of_another_lesson_or_damaged_ones_are_refused_by_their_file(tmp_path):
    settings = LessonSettings(out=tmp_path / "run")
    rows = run_lesson(small_lesson("one"), settings)
    assert run_lesson(small_lesson("one"), settings) == rows
    with pytest.raises(DataError, match="must be a folder of the lesson two, got one of one"):
        run_lesson(small_lesson("two"), settings)
    for name, content in (("timings.jsonl", ""), ("metrics.jsonl", "[]\n")):
        path = settings.out / name
        path.write_text(content)
        with pytest.raises(DataError, match=rf"{name} must have .*: delete the folder"):
            run_lesson(small_lesson("one"), settings)


def test_a_curve_that_is_damaged_is_named(tmp_path):
    path = tmp_path / "a.npz"
    kept(path, lambda: {"loss": np.zeros(99)})
    whole = path.read_bytes()
    for content in (b"", whole[:60], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npz must be what the lesson left there"):
            kept(path, dict)


def test_the_defaults_of_every_lesson_pass_its_check():
    for name in LESSONS:
        lesson.check(importlib.import_module(f"experiments.lessons.{name}").Settings())


def test_every_lesson_is_there_in_reading_order():
    for name in LESSONS:
        assert importlib.util.find_spec(f"experiments.lessons.{name}") is not None


def test_a_run_with_other_settings_is_refused(data_dir, tmp_path):
    module, settings = small("keras_vectorizer", data_dir, tmp_path / "fit")
    config = {"lesson": "keras_vectorizer", "settings": {"take": 7}}
    RunFolder(tmp_path / "fit", config).__exit__()
    with pytest.raises(DataError, match=r"take: 7 then, 20 now"):
        run_lesson(module, settings)
