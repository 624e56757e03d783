"""The program that writes: what it reads, how it draws, and the figures that it prints."""

import dataclasses
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from experiments.running.devices import find_devices
from experiments.running.opening import open_run
from experiments.running.trained import WEIGHTS
from experiments.write import command, training
from experiments.write.corpus import Corpus, read_corpus
from experiments.write.model import build_model
from experiments.write.ngram import ngram_nats
from experiments.write.settings import Request, Settings
from experiments.write.training import Texts, cut, fit, new_starts, score
from rnnjax.data import Vocabulary
from rnnjax.decoding.sampling import Temperature
from rnnjax.weights import save_weights

pytestmark = pytest.mark.usefixtures("quick_compile")

LETTERS = Vocabulary.fit([list("abcde")])
TINY = Settings(hidden_size=4, embedding_size=3, dropout=0.0, rows=4, window=2, epochs=2)
MODEL = build_model(TINY, len(LETTERS))
# Texts of letters, as ids, to train on, to validate and to test.
TEXTS = [np.random.default_rng(n).integers(2, 7, 70).astype(np.int32) for n in range(3)]


def some_weights():
    """Weights so large that what was read before counts."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(MODEL.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)


# What is read.


def test_as_much_is_read_and_as_many_tokens_are_kept_as_was_asked_for(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("aaaabbbccd" * 40)
    everything = read_corpus(Settings(dataset=str(path)))
    assert (len(everything.train), everything.vocabulary.tokens[2:]) == (360, tuple("abcd"))
    some = read_corpus(Settings(dataset=str(path), take=9))
    assert (len(some.train), some.vocabulary.tokens[2:]) == (9, tuple("abc"))
    few = read_corpus(Settings(dataset=str(path), vocabulary_size=2))
    assert few.vocabulary.tokens[2:] == tuple("ab")


# How it is drawn.


def test_a_sampler_has_all_that_was_asked_of_it():
    wishes = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1}
    assert command.make_sampling(
        Request(run=None, repetition_penalty=1.2, **wishes)
    ).transforms == (
        rnnjax.forbid((0, 1)),
        rnnjax.repetition_penalty(1.2, window=64),
        rnnjax.temperature(0.7),
        rnnjax.top_k(5),
        rnnjax.top_p(0.9),
        rnnjax.min_p(0.1),
    )


@pytest.fixture
def finished(tmp_path):
    """The folder of a run that has learnt next to nothing: all letters are about as likely."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"settings": TINY.written()}))
    LETTERS.save(folder / "vocabulary.json")
    save_weights(folder / WEIGHTS, jax.tree.map(lambda leaf: leaf / 100, some_weights()))
    return folder


def written(folder, capsys, *options):
    arguments = ["generate", folder, "a", "--length", "40", *options]
    assert command.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_every_sample_is_another_and_ends_at_the_stop(finished, capsys):
    samples = written(finished, capsys, "--samples", "3")
    assert [len(sample) for sample in samples] == [41] * 3
    assert len(set(samples)) == 3
    assert written(finished, capsys, "--samples", "1", "--seed", "1")[0] not in samples
    stopped = written(finished, capsys, "--samples", "3", "--stop", "c")
    for sample, short in zip(samples, stopped, strict=True):
        assert short.rstrip("c") == sample[: sample.index("c")]


def test_each_column_of_the_samples_is_written_at_its_own_temperature(monkeypatch):
    def generate(*_, max_new_tokens, sampling, **__):
        (value,) = (t.value for t in sampling.transforms if isinstance(t, Temperature))
        letter = {0.3: "a", 0.8: "b", 1.3: "c"}[value]
        return SimpleNamespace(tokens=LETTERS.encode([letter] * max_new_tokens))

    monkeypatch.setattr(rnnjax, "generate", generate)
    heading, _, *lines = command._samples(None, None, LETTERS, "chars", None).splitlines()
    heads = [head.strip() for head in heading.split(" | ")]
    assert heads == [f"temperature {value}" for value in (0.3, 0.8, 1.3)]
    rows = {tuple(cell[0] for cell in line.split(" | ")) for line in lines}
    assert rows == {("a", "b", "c")}


# The figures.


def nats_of(params, ids):
    """The mean nats a token of a text in four rows, each read whole, from the logits in NumPy."""
    (piece,) = cut(ids, 4, 10_000)
    _, logits = jax.jit(MODEL.apply)(params, piece.tokens, mask=piece.mask)
    logits = np.asarray(logits, float)
    taken = np.take_along_axis(logits, piece.targets[..., None], -1)[..., 0]
    return float((np.log(np.exp(logits).sum(-1)) - taken)[piece.mask].mean())


def test_a_text_that_is_scored_in_pieces_is_scored_as_one(monkeypatch):
    monkeypatch.setattr(training, "_VALIDATION_ROWS", 4)
    monkeypatch.setattr(training, "_VALIDATION_STEPS", 7)
    found = score(MODEL, some_weights(), TEXTS[0], find_devices(1))
    assert found == pytest.approx(nats_of(some_weights(), TEXTS[0]), rel=1e-5)


def test_every_epoch_begins_without_a_past_and_each_text_has_its_own_figure(monkeypatch, tmp_path):
    """At a rate of nearly 0, where the weights stay, epochs have equal losses."""
    settings = dataclasses.replace(TINY, learning_rate=1e-30)
    texts = Texts(cut(TEXTS[0], 4, 8), *TEXTS[1:])
    monkeypatch.setattr(training, "_NEW_STARTS", 0)
    monkeypatch.setattr(training, "_VALIDATION_ROWS", 4)
    monkeypatch.setattr(training, "_VALIDATION_STEPS", 7)
    with open_run(settings, tmp_path / "run", None, {}, (), init=MODEL.init) as (run, saver):
        what = MODEL, some_weights(), texts, settings, run, saver
        fitted = fit(*what, find_devices(1), lambda params: "a")
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    *epochs, test = (line for line in lines if line["kind"] in ("epoch", "test"))
    expected = [nats_of(some_weights(), ids) for ids in TEXTS]
    assert len(epochs) == 2
    for record in epochs:
        found = [record["train_loss"], record["validation_loss"]]
        assert found == pytest.approx(expected[:2], rel=1e-5)
    assert test["loss"] == fitted.test == pytest.approx(expected[2], rel=1e-5)
    assert fitted.validation == pytest.approx(expected[1], rel=1e-5)


def test_an_eighth_of_the_rows_starts_anew_at_the_beginning_of_a_piece():
    starts = new_starts((4000, 3), (0, 1))
    assert not starts[:, 1:].any()
    assert starts[:, 0].mean() == pytest.approx(1 / 8, abs=0.02)
    assert np.any(starts != new_starts((4000, 3), (0, 2)))


def corpus_of(train, validation):
    ids = [np.array(LETTERS.encode(list(text))) for text in (train, validation)]
    return Corpus("own", "", "", LETTERS, *ids, np.array([], int))


@pytest.mark.parametrize("text", ["abcab" * 20, "abcdeedcbaacebd" * 4], ids=["short", "long"])
def test_the_best_of_ngram_models_is_the_one_with_the_fewest_nats(text):
    corpus = corpus_of(text, text[::-1])
    by_order = {
        n: ngram_nats(corpus.train, corpus.validation, len(LETTERS), n) for n in range(1, 8)
    }
    best = min(by_order, key=by_order.get)
    assert command.best_ngram(corpus) == (best, by_order[best])
    assert max(by_order.values()) > by_order[best]


def report_of(level, capsys):
    fitted = training.Fitted(None, 3, validation=np.log(8.0), test=np.log(5.0))
    settings = Settings(level=level)
    command._report(corpus_of("ab" * 50, "ab" * 20), fitted, 1.0, "run", settings)
    return capsys.readouterr().out


def test_nats_are_printed_as_bits_of_a_character_and_as_the_perplexity_of_words(capsys):
    said = report_of("chars", capsys)
    assert "validation 2.0794 nats a token, weights of epoch 3" in said
    assert "that is 3.000 bits a character" in said
    assert "test 1.6094 nats a token\n" in said
    said = report_of("words", capsys)
    assert "that is a perplexity of 8.0" in said
    assert "test 1.6094 nats a token, perplexity 5.0" in said
    # Every "a" is followed by a "b": longer contexts leave hardly anything to guess.
    order, nats = re.search(r"\((\d)-grams\): (\d\.\d+) nats", said).groups()
    assert int(order) >= 2
    assert float(nats) < 0.1 < np.log(2)
