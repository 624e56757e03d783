"""Long runs in their smallest form: the reports count right, and what they measure is right."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.stats import theilslopes

from experiments.classify import Predictor
from experiments.measurements import endurance, million_texts
from experiments.measurements.endurance import Sample, Watch, summed_up
from experiments.running import process_memory
from experiments.running.generated_texts import generated_texts
from experiments.running.process_memory import median_slope
from rnnjax.data import BucketedBatches, DataError, Vocabulary, basic_english, flatten

SMALL = ["--texts", "60", "--hidden-size", "3", "--batch-size", "8", "--buckets", "1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of both parts, with a network that compiles fast."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    given = ["--steps", "20", "--predictions", "20", "--samples", "20", "--out", str(folder)]
    chosen = endurance.classifier_settings

    def fast(*given):
        return dataclasses.replace(chosen(*given), cell="vanilla", bidirectional=False, dropout=0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(endurance, "classifier_settings", fast)
        assert endurance.main([*given, *SMALL]) in (0, 1)  # its memory is still filling
    return folder


def test_the_report_counts_steps_and_calls(run):
    training, predicting = json.loads((run / "endurance.json").read_text())
    # 7 steps an epoch of 49 texts: 6 of the 60 are the test set, and 5 of the rest validate.
    assert [training["name"], training["steps"]] == ["training", 21]
    assert [training[end]["step"] for end in ("first", "last")] == [5, 21]
    assert [predicting["name"], predicting["steps"]] == ["predicting", 20]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines].count("step") == 21
    assert (run / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_compiled_after_the_first_epoch_of_training(run):
    records = map(json.loads, (run / "timings.jsonl").read_text().splitlines())
    programs = {r["step"]: r["programs"] for r in records if r.get("part") == "training"}
    assert list(programs) == list(range(1, 22))
    assert 2 <= programs[1] < programs[8]  # the evaluation came in between
    assert {programs[step] for step in range(8, 22)} == {programs[8]}


def test_calls_of_any_number_of_texts_need_few_programs(run):
    predictor, texts = Predictor(run), ["a b c", "d", "e a", *["b"] * 62]
    alone = [predictor([text])[0] for text in texts[:3]]
    predictor(texts[:2])
    predictor(texts)
    with endurance.Compilations() as compilations:
        for count in (3, 4, 7, 8, 9, 20, 64):
            found = predictor(texts[:count])
            np.testing.assert_allclose(found[:3], alone, rtol=1e-4, atol=1e-6)
    assert compilations.count == 0


def test_ctrl_c_ends_it_cleanly(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        endurance, "train", lambda *_: (_ for _ in ()).throw(endurance.Interrupted(2))
    )
    assert endurance.main(["--out", str(tmp_path / "run"), *SMALL]) == 130
    assert "stopped by SIGINT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--steps", "4"], "--steps must be a whole number from 5 up, got 4"),
        (["--warm-up", "1"], "--warm-up must be a share from 0 up and below 1, got 1"),
        (["--samples", "0"], "--samples must be a whole number from 5 to 1,000, got 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(given, message, tmp_path, capsys):
    assert endurance.main([*given, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


# What is flat


def part(resident, programs=lambda n: 9):
    samples = [
        Sample(n, int(resident(n)), programs(n), 5, n // 1_000) for n in range(100, 10_001, 100)
    ]
    return summed_up("training", samples, warm_up=0.2)


def test_a_leak_of_one_small_array_in_every_step_is_noticed():
    noise = np.random.default_rng(0).normal(0, 10_000, 10_001)
    assert part(lambda n: 5e8 + noise[n]).is_flat
    leaking = part(lambda n: 5e8 + noise[n] + 400 * n)
    assert not leaking.is_flat
    assert 370 < leaking.slope.low < 400 < leaking.slope.high < 430
    # A slope that is too uncertain to exclude a leak is not called flat.
    assert not part(lambda n: 5e8 + 1_000 * noise[n]).is_flat


def test_what_the_saves_leave_is_told_apart_from_what_the_steps_leave():
    found = part(lambda n: 5e8 + 20 * n + 70_000 * (n // 1_000))
    assert found.is_flat
    np.testing.assert_allclose(found.slope, (20, 20, 20), atol=1e-3)
    np.testing.assert_allclose(found.bytes_a_save, 70_000, rtol=1e-6)
    assert part(lambda n: 5e8)._replace(last=found.first).bytes_a_save is None


def test_a_program_compiled_late_is_noticed_and_one_compiled_early_is_not():
    assert not part(lambda n: 5e8, programs=lambda n: 9 + (n > 9_000)).is_flat
    assert part(lambda n: 5e8, programs=lambda n: 9 + (n > 1_000)).is_flat


def test_too_few_samples_are_an_error():
    with pytest.raises(DataError, match="3 or more after the warm-up, got 2"):
        summed_up("training", [Sample(n, 1, 1, 1, 0) for n in range(4)], warm_up=0.5)


# Memory


def test_the_slope_and_its_limits_are_those_of_scipy():
    random = np.random.default_rng(0)
    x = random.uniform(0, 1e4, 50)
    y = 5e8 + 37.5 * x + random.normal(0, 1e5, 50)
    expected = theilslopes(y, x)
    limits = expected.low_slope, expected.high_slope
    np.testing.assert_allclose(median_slope(x, y), (expected.slope, *limits), rtol=1e-9)


def test_the_slope_between_jumps_is_that_of_pairs_in_the_same_group():
    random = np.random.default_rng(0)
    x, groups = random.uniform(0, 10, 60), random.integers(0, 5, 60)
    y = 1.5 * x + random.normal(0, 1, 60)
    points = list(zip(x, y, groups, strict=True))
    pairs = [(a, b) for a in points for b in points if a[2] == b[2] and a[0] < b[0]]
    slopes = sorted((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs)
    found = median_slope(x, y + 100.0 * groups, groups)
    np.testing.assert_allclose(found.value, np.median(slopes), rtol=1e-9)

    def falling(order):
        return np.count_nonzero(np.triu(np.greater.outer(order, order)))

    # How many pairs fall where chance alone orders each group.
    sizes = np.bincount(groups)
    falls = [sum(falling(random.permutation(n)) for n in sizes) for _ in range(4_000)]
    low, high = np.quantile(falls, [0.025, 0.975]).astype(int)
    assert slopes[low - 4] <= found.low <= slopes[low + 4]
    assert slopes[high - 4] <= found.high <= slopes[high + 4]


@pytest.mark.parametrize(
    ("x", "groups", "message"),
    [
        ([1], None, "two or more different numbers in a group"),
        ([1, 2, 2], None, "two or more different numbers in a group"),
        ([1, 2], [0, 1], "two or more different numbers in a group"),
        ([1, 2, 3], [0, 0], "equally many numbers"),
    ],
)
def test_a_line_needs_points_enough_at_different_places(x, groups, message):
    with pytest.raises(ValueError, match=message):
        median_slope(x, [1.0, 2.0, 3.0][: len(x)], groups)


def test_memory_is_what_another_program_says_it_is(monkeypatch):
    block = np.ones(50_000_000, np.uint8)
    command = ["ps", "-o", "rss=", "-p", str(os.getpid())]
    said = 1024 * int(subprocess.run(command, capture_output=True, text=True).stdout)
    found = process_memory.process_memory()
    assert abs(found.resident - said) < 10_000_000
    assert found.peak >= found.resident >= block.nbytes
    monkeypatch.setattr(process_memory, "_STATUS", Path("/nowhere"))
    elsewhere = process_memory.process_memory()  # as on a system without /proc
    assert abs(elsewhere.resident - found.resident) < 10_000_000
    assert elsewhere.peak >= elsewhere.resident - 10_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can begin a peak again")
def test_a_forgotten_peak_is_that_of_what_follows():
    size = 200_000_000
    np.ones(size, np.uint8)
    process_memory.forget_peak()
    before = process_memory.process_memory()
    assert before.peak < before.resident + size / 10
    np.ones(size, np.uint8)
    after = process_memory.process_memory()
    assert after.resident + size * 0.9 < after.peak < before.resident + size * 1.1


def test_a_watch_reads_the_memory_at_equal_distances(tmp_path):
    written = []
    run = type("Run", (), {"write_timing": staticmethod(written.append)})
    watch = Watch("training", 3, endurance.Compilations(), run)
    kept = jax.numpy.ones(3)
    for number in range(1, 11):
        watch.step(number)
    assert [sample.step for sample in watch.samples] == [3, 6, 9]
    assert all(sample.arrays >= 1 for sample in watch.samples)
    assert [record["step"] for record in written] == [3, 6, 9]
    del kept


# A million texts


def test_the_same_seed_generates_the_same_texts_of_the_lengths_asked_for():
    texts = list(generated_texts(5_000, 3, shortest=2, longest=9))
    assert texts == list(generated_texts(5_000, 3, shortest=2, longest=9))
    assert texts[:100] != list(generated_texts(100, 4, shortest=2, longest=9))
    assert {len(text.split()) for text in texts} == set(range(2, 10))


def test_words_follow_the_law_of_zipf():
    words = " ".join(generated_texts(5_000, 0, words=100, shortest=20, longest=20)).split()
    found = np.sort(np.unique(words, return_counts=True)[1])[::-1]
    expected = 1 / np.arange(1, 101)
    expected *= len(words) / expected.sum()
    np.testing.assert_allclose(found[:10], expected[:10], rtol=0.05)


def test_sequences_laid_down_one_by_one_are_those_of_the_list():
    random = np.random.default_rng(0)
    ids = [random.integers(0, 99, length).tolist() for length in random.integers(0, 9, 3_000)]
    found = flatten(iter(ids))
    np.testing.assert_array_equal(found.values, np.concatenate([np.array(i, int) for i in ids]))
    np.testing.assert_array_equal(found.lengths, [len(i) for i in ids])
    assert found.values.dtype == np.int32
    assert flatten(found) is found
    with pytest.raises(DataError, match="sequence 2500 must have 32-bit integers, got 4294967296"):
        flatten(i if n != 2_500 else [1, 2**32] for n, i in enumerate(ids))
    with pytest.raises(DataError, match="sequence 2500 must have integers or floats, got 1 axes"):
        flatten(i if n != 2_500 else ["a"] for n, i in enumerate(ids))
    # One float makes all of them floats: a series may begin with whole numbers.
    assert flatten([*ids, [0.5]]).values.dtype == np.float32


def test_batches_of_what_is_laid_end_to_end_are_those_of_the_list():
    ids = [[1, 2, 3], [4], [5, 6]]
    options = {"batch_size": 2, "boundaries": (2, 4), "seed": 0, "vocab_size": 7}
    pairs = zip(
        BucketedBatches(ids, [0, 1, 0], **options).epoch(1),
        BucketedBatches(flatten(ids), [0, 1, 0], **options).epoch(1),
        strict=True,
    )
    for one, two in pairs:
        jax.tree.map(np.testing.assert_array_equal, one, two)


def test_every_text_is_counted_in_every_stage_and_labelled_as_alone(tmp_path, monkeypatch, capsys):
    measure, found = million_texts.measure, []

    def measured(*given):
        found.append(measure(*given))
        return found[0]

    monkeypatch.setattr(million_texts, "measure", measured)
    sizes = {"texts": 1_500, "words": 300, "vocabulary_size": 200, "hidden_size": 3, "buckets": 1}
    given = [f"--{name.replace('_', '-')}={size}" for name, size in sizes.items()]
    out = ["--out", str(tmp_path / "run"), "--fixed-mb", "100000"]
    assert million_texts.main([*given, *out]) == 0
    report = json.loads((tmp_path / "run" / "million_texts.json").read_text())
    counts = {stage["name"]: stage["texts"] for stage in report["stages"]}
    assert counts.pop("compile") == 0
    stages = ["generate", "vocabulary", "encode", "bucket", "predict"]
    assert counts == dict.fromkeys(stages, 1_500)
    assert report["labelled"] == 1_500
    assert report["bound"] == 100_000_000_000 + 1_500 * 200
    assert "1,500 texts labelled" in capsys.readouterr().out
    assert not list((tmp_path / "run").glob("tmp*"))  # the texts are gone
    # Through file, vocabulary, buckets and back to the order of the texts.
    texts = list(generated_texts(1_500, 0, words=300))
    vocabulary = Vocabulary.fit(map(basic_english, texts), max_size=200)
    ids = [vocabulary.encode(basic_english(text)) for text in texts[:9]]
    tokens = np.array([row + [0] * (32 - len(row)) for row in ids], np.int32)
    predict = million_texts.make_predict(million_texts.Settings(**sizes), len(vocabulary), ())
    alone = predict(tokens, np.array([len(row) for row in ids], np.int32))
    np.testing.assert_array_equal(found[0][1][:9], alone)


def test_a_bound_that_is_passed_is_said_and_ends_with_one(tmp_path, capsys):
    stage = million_texts.Stage("predict", 10, 1.0, 90_000_000, 90_000_001)
    settings = million_texts.Settings(texts=10, fixed_mb=90, text_bytes=0)
    assert million_texts.report(settings, [stage], np.zeros(10, np.int8), tmp_path) == 1
    assert "PAST the bound of 90 MB" in capsys.readouterr().out
    assert million_texts.main(["--texts", "0", "--out", str(tmp_path)]) == 2
    assert "--texts must be a whole number from 1 up, got 0" in capsys.readouterr().err
