"""The program that trains a network on a text and writes with it."""

import json
import math
import shlex
from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from stopping import stopped_after

from experiments.running import session
from experiments.write import command, training
from experiments.write.corpus import Corpus, decode, encode_prompt, tokenize
from experiments.write.model import build_model
from experiments.write.ngram import ngram_nats
from experiments.write.settings import Request, Settings
from experiments.write.training import cut
from rnnjax.data import DataError, Vocabulary
from rnnjax.training import Sequences, init_train_state

TEXT = "the cat sat on the mat, and the dog sat on the cat.\n" * 60
QUICK = ["--hidden-size", "16", "--embedding-size", "8", "--rows", "4", "--window", "16"]
QUICK = [*QUICK, "--epochs", "2", "--learning-rate", "0.02"]


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "my book.txt"
    path.write_text(TEXT)
    return path


def run(*arguments):
    return command.main([str(argument) for argument in arguments])


@pytest.fixture
def clock_of_compiling(monkeypatch):
    """A clock that stands still but while something is compiled; how often that was."""
    compiled, seconds = session.Session.compiled, []

    def noted(self, made):
        seconds.append(made.seconds)
        compiled(self, made)

    monkeypatch.setattr(session.Session, "compiled", noted)
    clock = SimpleNamespace(perf_counter=lambda: sum(seconds))
    monkeypatch.setattr(session, "time", clock)
    return seconds


def test_a_text_of_ones_own_is_trained_on_and_written_from(
    book, tmp_path, capsys, clock_of_compiling
):
    folder = tmp_path / "my run"
    assert run("--dataset", book, "--out", folder, *QUICK) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("counting alone" in line for line in lines)
    printed = shlex.split(lines[lines.index("try:") + 1])
    assert printed == [*command.PROGRAM.split(), "generate", str(folder), "--stream"]
    assert run(*printed[3:], "--length", "5") == 0
    capsys.readouterr()
    timings = map(json.loads, (folder / "timings.jsonl").read_text().splitlines())
    epochs = [record["seconds"] for record in timings if record["kind"] == "epoch"]
    assert clock_of_compiling
    assert epochs == pytest.approx([0.0, 0.0], abs=1e-9)  # the time of an epoch leaves it out
    for name in ("weights.safetensors", "vocabulary.json", "curves.png", "config.json"):
        assert (folder / name).stat().st_size
    samples = (folder / "samples.txt").read_text()
    heading, *lines = samples.splitlines()
    assert [h.strip() for h in heading.split("|")] == [f"temperature {t}" for t in (0.3, 0.8, 1.3)]
    assert max(map(len, lines)) < 80

    assert run("generate", folder, "the ", "--length", "30", "--seed", "5") == 0
    whole = capsys.readouterr().out
    assert whole.startswith("the ")
    assert len(whole) == len("the ") + 30 + 1
    assert run("generate", folder, "the ", "--length", "30", "--seed", "5", "--stream") == 0
    assert capsys.readouterr().out == whole
    assert set(whole) <= set(TEXT)


@pytest.mark.full
def test_a_run_that_was_stopped_comes_to_the_same_bytes(book, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    arguments = ["--dataset", book, *QUICK]
    assert run(*arguments, "--out", whole) == 0
    with stopped_after(5):
        assert run(*arguments, "--out", stopped) == 143
    assert run("--out", stopped, "--resume") == 0
    for name in ("metrics.jsonl", "weights.safetensors", "samples.txt"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


def test_words_are_written_with_blanks_and_line_ends():
    tokens = tokenize("a dog\nsat", "words")
    assert tokens == ["a", "dog", "<eos>", "sat"]
    vocabulary = Vocabulary.fit([tokens])
    assert decode(vocabulary, vocabulary.encode(tokens), "words") == "a dog \nsat "
    assert decode(vocabulary, [], "chars") == ""


def test_pieces_hold_every_step_once_in_the_order_of_the_text():
    pieces = cut(np.arange(100), rows=3, steps=8)
    tokens = np.concatenate([piece.tokens for piece in pieces], axis=1)
    targets = np.concatenate([piece.targets for piece in pieces], axis=1)
    mask = np.concatenate([piece.mask for piece in pieces], axis=1)
    assert {piece.tokens.shape for piece in pieces} == {(3, 8)}
    np.testing.assert_array_equal(tokens[mask], np.arange(99))
    np.testing.assert_array_equal(targets[mask], np.arange(1, 100))
    [piece] = cut(np.arange(100), rows=3, steps=1_000_000)
    assert piece.mask.shape == (3, 33)
    assert piece.mask.all()


@pytest.mark.full
def test_a_window_beyond_the_text_is_one_of_its_length(book, tmp_path):
    length = (len(TEXT) * 9 // 10 - 1) // 4  # of a row of the nine tenths that train
    for window in (length, 1_000_000):
        out = tmp_path / str(window)
        arguments = ["--dataset", book, *QUICK, "--window", window, "--epochs", "1"]
        assert run(*arguments, "--out", out) == 0
    weights = [(tmp_path / str(n) / "weights.safetensors").read_bytes() for n in (length, 10**6)]
    assert weights[0] == weights[1]


def test_the_rate_falls_over_the_steps_that_are_taken(monkeypatch, quick_compile):
    spans, schedule = [], training.optax.cosine_decay_schedule

    def noted(rate, steps, **options):
        spans.append(steps)
        return schedule(rate, steps, **options)

    monkeypatch.setattr(training.optax, "cosine_decay_schedule", noted)
    settings = Settings(hidden_size=2, embedding_size=2, rows=3, window=4, epochs=2)
    # Of 16 windows in two pieces of 32 steps, the last five lie behind the 41 steps of a row.
    ids = np.arange(3 * 41 + 1, dtype=np.int32) % 5
    pieces = cut(ids, settings.rows, training.piece_steps(settings))
    assert len(pieces) == 2
    model, optimizer = build_model(settings, 5), training.make_optimizer(settings, pieces)
    params = model.init(jax.random.key(0))
    state = init_train_state(jax.random.key(1), params, optimizer)
    step = training.make_step(model, optimizer, settings.window)
    for piece in pieces:
        state, _, _ = step(state, Sequences(*piece))
    assert spans == [settings.epochs * int(state.step)] == [2 * 11]


def witten_bell(train, test, vocab_size, order):
    """The same law with dictionaries, one context at a time."""
    counts = [Counter() for _ in range(order + 1)]
    for n in range(1, order + 1):
        for i in range(len(train) - n + 1):
            counts[n][tuple(train[i : i + n])] += 1

    def probability(context, word):
        if context is None:
            return 1 / vocab_size
        below = probability(context[1:] if context else None, word)
        grams = counts[len(context) + 1].items()
        after = {gram[-1]: count for gram, count in grams if gram[:-1] == context}
        total, kinds = sum(after.values()), len(after)
        if not total:
            return below
        return (after.get(word, 0) + kinds * below) / (total + kinds)

    logs = [
        math.log(probability(tuple(test[i - order + 1 : i]), test[i]))
        for i in range(order - 1, len(test))
    ]
    return -sum(logs) / len(logs)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_ngram_model_is_that_of_its_formula(order):
    ids = np.random.default_rng(0).integers(0, 5, 300).tolist()
    expected = witten_bell(ids[:250], ids[250:], 6, order)
    found = ngram_nats(np.array(ids[:250]), np.array(ids[250:]), 6, order)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(("train", "test", "order"), [(3, 9, 3), (2, 9, 2), (9, 4, 3), (9, 9, 7)])
def test_the_best_ngram_model_is_one_that_both_parts_are_long_enough_for(train, test, order):
    ids = np.arange(9, dtype=np.int32) % 2 + 2
    vocabulary = Vocabulary.fit([list("ab")])
    corpus = Corpus("own", "", "", vocabulary, ids[:train], ids[:test], ids[:0])
    scored = {n: ngram_nats(ids[:train], ids[:test], 4, n) for n in range(1, order + 1)}
    best = min(scored, key=scored.get)
    assert command.best_ngram(corpus) == (best, scored[best])


@pytest.mark.parametrize("short", ["train", "test"])
def test_an_ngram_longer_than_a_text_is_refused(short):
    ids = {"train": np.zeros(9, int), "test": np.zeros(9, int), short: np.zeros(2, int)}
    with pytest.raises(ValueError, match=f"{short} must have at least 3 tokens, got 2"):
        ngram_nats(**ids, vocab_size=2, order=3)


def test_an_ngram_model_is_a_law():
    ids = np.random.default_rng(0).integers(0, 4, 60)
    context = ids[-2:]
    total = sum(math.exp(-ngram_nats(ids, np.array([*context, word]), 4, 3)) for word in range(4))
    assert total == pytest.approx(1, abs=1e-12)


def test_without_a_prompt_a_text_goes_on_from_the_end_of_a_line_or_its_commonest_token():
    lines, one_line = Vocabulary.fit([list("aaa\nb")]), Vocabulary.fit([list("bba")])
    assert lines.decode(encode_prompt(lines, None, "chars")) == ["\n"]
    assert one_line.decode(encode_prompt(one_line, None, "chars")) == ["b"]
    words = Vocabulary.fit([tokenize("a a a\nb", "words")])
    assert words.decode(encode_prompt(words, None, "words")) == ["<eos>"]


def test_a_stop_is_one_token_that_can_be_written():
    words = Vocabulary.fit([tokenize("a dog\nsat", "words")])
    assert words.tokens[command.find_stop("\n", words, "words")] == "<eos>"
    assert words.tokens[command.find_stop("dog", words, "words")] == "dog"
    for stop in ("", "cat", "a dog", "<pad>", "<unk>"):
        with pytest.raises(DataError, match="--stop must be one token of the training text"):
            command.find_stop(stop, words, "words")


@pytest.mark.parametrize(
    ("flag", "wrong"),
    [
        ("--temperature", ("-1", "nan", "inf")),
        ("--top-k", ("0",)),
        ("--top-p", ("0", "2", "nan")),
        ("--min-p", ("0", "2")),
        ("--repetition-penalty", ("0", "inf")),
        ("--length", ("0",)),
    ],
)
def test_wishes_that_no_sampler_can_grant_are_named_before_a_run_is_read(flag, wrong, capsys):
    for value in wrong:
        # Temperature 0 takes the most likely token: what is wrong beside it is still named.
        assert run("generate", "nowhere", "the", "--temperature", "0", flag, value) == 2
        assert f"error: {flag} must be a" in capsys.readouterr().err


def test_a_temperature_of_zero_is_the_most_likely_token():
    assert not command.make_sampling(Request(run=None, temperature=0.0)).draws
    wild = command.make_sampling(Request(run=None, top_k=5, top_p=0.9, repetition_penalty=1.2))
    assert [type(t).__name__ for t in wild.transforms] == [
        "Forbid",
        "RepetitionPenalty",
        "Temperature",
        "TopK",
        "TopP",
    ]


BAD = {
    "no epochs": (["--epochs", "0"], "epochs"),
    "a rate that is no number": (["--learning-rate", "nan"], "--learning-rate must be"),
    "no layers": (["--layers", "0"], "layers"),
    "a tied head of another width": (
        ["--tie"],
        "--hidden-size must be --embedding-size, 64, with --tie, got 512",
    ),
    "more rows than text": (["--rows", "100000"], "more than 100,000 tokens to train on"),
    "an empty prompt for samples": (["--sample-prompt", ""], "prompt"),
    "nothing to train on": (["--take", "0"], "--take must be a whole number from 1 up, got 0"),
    "a window wider than any text": (["--window", "9999999"], "--window must be"),
    "no such file": (["--dataset", "nowhere.txt"], "nowhere.txt"),
    "two wishes": (["--resume", "--replace"], "--replace"),
    "nothing to resume": (["--resume"], "--out"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_settings_are_one_line_and_leave_nothing(case, book, tmp_path, capsys):
    wrong, words = BAD[case]
    folder = tmp_path / "run"
    arguments = ["--dataset", book, *([] if "resume" in wrong[0] else ["--out", folder])]
    assert run(*arguments, *wrong) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not folder.exists()


def test_a_file_that_is_not_text_is_named(tmp_path, capsys):
    path = tmp_path / "picture.txt"
    path.write_bytes(bytes(range(256)) * 50)
    assert run("--dataset", path, "--out", tmp_path / "run") == 2
    assert "picture.txt" in capsys.readouterr().err


def test_an_unknown_prompt_is_refused():
    vocabulary = Vocabulary.fit([list("abc")])
    with pytest.raises(DataError, match="must have a token of the training text, got 'xyz'"):
        encode_prompt(vocabulary, "xyz", "chars")
    with pytest.raises(DataError, match="got none"):
        encode_prompt(vocabulary, "", "chars")
    assert encode_prompt(vocabulary, "ax", "chars").tolist()[1] == 1


@pytest.mark.full
def test_pad_and_unknown_are_never_written(book, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run("--dataset", book, "--out", folder, *QUICK) == 0
    capsys.readouterr()
    assert run("generate", folder, "t", "--length", "2000", "--temperature", "50") == 0
    assert "<" not in capsys.readouterr().out
