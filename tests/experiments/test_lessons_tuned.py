"""The tuned classifiers: odds that hide a text's own label, and texts that one pair tells apart."""

import csv
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lessons import tuned
from experiments.lessons.class_odds import FOLDS, count_odds, fold_of, pairs_of, read_odds
from experiments.lessons.lesson import run_lesson
from rnnjax.data import DataError

VOCABULARY, BUCKETS, CLASSES = 12, 64, 3
ORDERS = ["north south", "south north", "east west", "west east"]
NOISE = ["red", "green", "blue", "white", "black", "brown"]

pytestmark = pytest.mark.usefixtures("quick_compile")


def texts(count=30):
    random = np.random.default_rng(0)
    rows = [random.integers(1, VOCABULARY, random.integers(1, 8)).tolist() for _ in range(count)]
    return rows, random.integers(0, CLASSES, count).tolist()


def plain_odds(features, labels, size):
    """By the definition, one feature and one class after the other."""
    table = np.zeros((size, CLASSES))
    for c in range(CLASSES):
        # One is added to the count of every class.
        mine, others = (Counter(dict.fromkeys(range(size), n)) for n in (1, CLASSES - 1))
        for ids, label in zip(features, labels, strict=True):
            (mine if label == c else others).update(set(ids))
        for feature in range(size):
            share = mine[feature] / sum(mine.values())
            table[feature, c] = math.log(share / (others[feature] / sum(others.values())))
    return table


@pytest.mark.parametrize("kind", ["words", "pairs"])
def test_odds_are_those_of_all_texts_and_those_without_each_fold(kind):
    rows, labels = texts()
    odds = count_odds(rows, labels, VOCABULARY, BUCKETS, CLASSES)
    features, size = rows, VOCABULARY
    if kind == "pairs":
        features, size = [pairs_of(np.array(row, np.int32), BUCKETS) for row in rows], BUCKETS
    folds = [sum(row) % FOLDS for row in rows]
    assert set(folds) == set(range(FOLDS))
    for table in range(FOLDS + 1):
        kept = [i for i, fold in enumerate(folds) if fold != table - 1]
        expected = plain_odds([features[i] for i in kept], [labels[i] for i in kept], size)
        np.testing.assert_allclose(getattr(odds, kind)[table], expected, rtol=1e-5, atol=1e-6)


def test_a_text_in_training_reads_nothing_of_its_own_label():
    rows, labels = texts()
    tokens = jnp.asarray([rows[3]], jnp.int32)
    found = []
    for label in range(CLASSES):
        labels[3] = label
        odds = count_odds(rows, labels, VOCABULARY, BUCKETS, CLASSES)
        found.append([read_odds(odds, tokens, f) for f in (1 + fold_of(tokens), jnp.array([0]))])
    for training, test in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, training, found[0][0])
        assert np.abs(test[0] - found[0][1][0]).max() > 0.01


def test_pairs_know_the_order_and_are_the_same_in_numpy_and_jax():
    tokens = np.random.default_rng(1).integers(0, 30_000, (4, 9)).astype(np.int32)
    pairs = pairs_of(tokens, 1 << 18)
    np.testing.assert_array_equal(pairs, pairs_of(jnp.asarray(tokens), 1 << 18))
    np.testing.assert_array_equal(pairs[2, 5], pairs_of(tokens[2, 4:6], 1 << 18)[1])
    assert len(np.unique(pairs)) > 34  # 36 pairs in 262,144 buckets
    assert pairs_of(np.array([5, 6]), 1 << 18)[1] != pairs_of(np.array([6, 5]), 1 << 18)[1]
    assert pairs.min() >= 0
    assert pairs.max() < 1 << 18


def test_padding_is_invisible_to_the_tuned_model():
    rows, labels = texts()
    odds = count_odds(rows, labels, VOCABULARY, BUCKETS, CLASSES)
    tuning = tuned.TUNINGS["imdb"]._replace(hidden_size=3, embedding_size=4)
    model = tuned.build_model(tuning, odds, VOCABULARY, CLASSES)
    params = model.init(jax.random.key(0))
    alone = model.apply(params, jnp.asarray([rows[0]]), [len(rows[0])])
    padded = jnp.asarray([[*rows[0], 7, 3], [0] * (len(rows[0]) + 2)])
    together = model.apply(params, padded, [len(rows[0]), 0])
    np.testing.assert_allclose(together[0], alone[0], rtol=1e-5)
    np.testing.assert_array_equal(together[1], params.head.bias)


@pytest.mark.full
@pytest.mark.parametrize("class_odds", [True, False])
def test_networks_tell_apart_what_unigrams_cannot(class_odds, tmp_path, monkeypatch):
    """Classes that differ in the order of two words alone."""
    pytest.importorskip("sklearn")
    (tmp_path / "ag_news").mkdir()
    random = np.random.default_rng(0)
    for name, count in (("train", 160), ("test", 40)):
        lines = []
        for i in range(count):
            words = random.choice(NOISE, 4).tolist()
            lines.append((i % 4 + 1, " ".join(words), ORDERS[i % 4]))
        with (tmp_path / "ag_news" / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows(lines)
    tuning = tuned.TUNINGS["ag_news"]._replace(
        batch_size=16,
        buckets=1,
        epochs=8,
        learning_rate=2e-2,
        dropout=0.2,
        hidden_size=6,
        embedding_size=4,
        class_odds=class_odds,
    )
    monkeypatch.setitem(tuned.TUNINGS, "ag_news", tuning)
    settings = tuned.Settings(
        seeds=1,
        data_dir=tmp_path,
        datasets=("ag_news",),
        members=2,
        out=tmp_path / "run",
    )
    rows = {row.system: row for row in run_lesson(tuned, settings)}
    unigrams = rows["ag_news: linear SVM on TF-IDF, unigrams"].figures
    networks = rows["ag_news: 2 bidirectional GRUs(6)"]
    assert networks.figures["test accuracy"] > 0.95 > unigrams["test accuracy"] + 0.3
    assert networks.steps == 80
    assert networks.note == "0k of 120k"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"datasets": ("imdb", "mail")},
            "--datasets must be 1 or more, each one of ag_news, imdb, .* got",
        ),
        ({"members": 0}, "--members must be a whole number from 1 up, got 0"),
        ({"buckets_of_pairs": 1000}, "--buckets-of-pairs must be a power of two, got 1000"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message, tmp_path):
    with pytest.raises(DataError, match=message):
        run_lesson(tuned, tuned.Settings(out=tmp_path / "run", **change))
