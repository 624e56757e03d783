"""The program that labels words: which words count, and what its files and figures tell."""

import json

import jax
import numpy as np
import pytest

from experiments.running.loss_fitting import Fitted
from experiments.tag import command
from experiments.tag.model import build_model, label_loss
from experiments.tag.sentences import most_frequent, read_corpus
from experiments.tag.settings import Settings
from rnnjax.data import Batch

pytestmark = pytest.mark.usefixtures("quick_compile")

TINY = Settings(hidden_size=4, embedding_size=3, dropout=0.0)


def test_the_words_of_real_sentences_alone_count():
    model = build_model(TINY, 7, 3)
    rng, shapes = np.random.default_rng(0), jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    rows, labels = [[2, 3, 4], [5, 6, 0], [2, 4, 6]], [[0, 1, 2], [2, 1, 0], [1, 1, 1]]
    # The second sentence has two words; the third one fills the batch up.
    batch = Batch(np.array(rows), np.array([3, 2, 3]), np.array(labels), np.float32([1, 1, 0]))
    _, found = jax.jit(label_loss(model))(params, batch, None)
    logits = np.asarray(jax.jit(model.apply)(params, batch.tokens, batch.lengths), float)
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    nats = [np.log(np.exp(logits[p]).sum()) - logits[p][batch.labels[p]] for p in places]
    right = [logits[p].argmax() == batch.labels[p] for p in places]
    for name, figures in (("loss", nats), ("accuracy", right)):
        value, count = found[name]
        assert float(count) == 5
        assert float(value) == pytest.approx(np.sum(figures), rel=1e-5)


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """A run that takes every word for the first label, without training: its table, folder,
    settings and weights of the last line."""
    path, folder, tables = tmp_path / "own.conll", tmp_path / "run", []
    rows = [f"word{n}\t{'ABC'[n % 3]}\nthe\tA\n\n" for n in range(40)]
    path.write_text("".join(rows))
    figures = {"accuracy": 0.25, "loss": 1.5}, {"accuracy": 0.75, "loss": 2.5}

    def fit_and_save(settings, init, *_):
        return Fitted(init(jax.random.key(0)), 1, *figures)

    def guess(model, params, rows):
        return [np.zeros(len(row), int) for row in rows]

    monkeypatch.setattr(command, "fit_and_save", fit_and_save)
    monkeypatch.setattr(command, "guess", guess)
    monkeypatch.setattr(command, "draw_confusion", lambda table, *_: tables.append(table))
    settings = Settings(**{**vars(TINY), "dataset": str(path), "out": folder})
    command.train(settings)
    return tables[0], folder, read_corpus(settings)


def test_rows_of_the_table_are_labels_that_are_given_and_columns_those_they_are_taken_for(judged):
    table, folder, corpus = judged
    given = [label for row in corpus.test for _, label in row]
    assert json.loads((folder / "labels.json").read_text()) == ["A", "B", "C"]
    assert table[:, 0].tolist() == [given.count(label) for label in "ABC"]
    assert not table[:, 1:].any()


def test_the_words_that_are_known_are_those_of_the_training_part(judged):
    _, folder, corpus = judged
    known = json.loads((folder / "vocabulary.json").read_text())
    tokens = known["tokens"] if isinstance(known, dict) else known
    expected = {word for row in corpus.train for word, _ in row}
    assert set(tokens[2:]) == expected
    assert not {word for row in corpus.test for word, _ in row} <= expected


def test_the_figures_that_are_printed_are_those_of_the_test(judged, capsys):
    _, folder, corpus = judged
    command._report(
        corpus, Fitted(None, 1, {"accuracy": 0.25}, {"accuracy": 0.75, "loss": 2.5}), 1, folder
    )
    said = capsys.readouterr().out
    assert "test: 0.7500 of the labels right, 2.5000 nats a word" in said
    usual = most_frequent(corpus.train, corpus.test)
    assert f"with the label that each word has most often: {usual:.4f}" in said
