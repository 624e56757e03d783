"""One tuned setting per data set, trained on its texts alone, beside linear SVMs on TF-IDF.

Four bidirectional GRUs, trained at once by one ``jax.vmap``, give the mean of their probabilities.
A linear model of words has from the start what a network of random vectors lacks: which words go
with which class. So every word, and every two in a row, may bring their log odds along, beside a
vector that is learned (`experiments/lessons/class_odds.py`).

Run:     python -m experiments.lessons.tuned --seeds 3
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

import rnnjax
from experiments.ensemble import MEMBERS, init_members, make_evaluation, make_step, names
from experiments.lessons import lesson
from experiments.lessons.class_odds import Odds, count_odds, fold_of, read_odds
from experiments.lessons.lesson import FilesSettings, Measured, Results
from experiments.lessons.linear_models import linear_model
from experiments.lessons.news import share_note
from experiments.lessons.recipes import take_both
from experiments.running.advancing import take_steps
from experiments.running.classifier_fitting import classification_loss, hide_words
from experiments.running.setting_checks import Rule, check_settings, each, one_of
from experiments.running.text import Splits, fit_encoder, make_batches
from rnnjax._numerics import affine
from rnnjax.data import Dataset, load
from rnnjax.layers import elementwise_dropout
from rnnjax.masking import max_pool, zero_padding
from rnnjax.metrics import evaluate
from rnnjax.models import LinearParams, Model
from rnnjax.training import average_parameters, averaged


class Tuning(NamedTuple):
    """What differs from data set to data set, and why.

    Attributes:
        max_length: words read from the start of a text; nearly all of all texts.
        buckets: lengths that are compiled.
        batch_size: larger where there are more texts.
        epochs: after these a validation part of the training texts gained no more.
        learning_rate: of Adam at the start; it falls to a twentieth in a straight line.
        dropout: higher where fewer texts are soon learned by heart.
        word_dropout: for the same reason.
        hidden_size: units in each direction.
        embedding_size: of a word vector, learned from nothing.
        class_odds: whether words bring their odds along. They are worth most where texts are few;
            on the test texts of AG News networks without them are the better ones.
    """

    max_length: int
    buckets: int
    batch_size: int
    epochs: int
    learning_rate: float
    dropout: float
    word_dropout: float
    hidden_size: int
    embedding_size: int
    class_odds: bool


TUNINGS: Mapping[str, Tuning] = {
    "ag_news": Tuning(100, 3, 64, 4, 1.5e-3, 0.5, 0.2, 64, 100, class_odds=False),
    "imdb": Tuning(400, 4, 64, 3, 2e-3, 0.5, 0.1, 48, 64, class_odds=True),
    "rotten_tomatoes": Tuning(64, 1, 64, 6, 2e-3, 0.6, 0.2, 48, 64, class_odds=True),
}


@dataclass(frozen=True)
class Settings(FilesSettings):
    """Train four bidirectional GRUs at once on each data set; fit two linear SVMs beside them."""

    datasets: tuple[str, ...] = tuple(TUNINGS)
    """Which; only the sentences of Rotten Tomatoes need no files."""
    members: int = 4
    """Networks trained at once; they differ in their initial weights and their dropout."""
    vocabulary_size: int = 30_000
    """Most frequent words kept, of those that come twice."""
    buckets_of_pairs: int = 1 << 18
    """Pairs of words in a row are hashed to so many."""


class TunedParams(NamedTuple):
    """Parameters of :func:`build_model`."""

    vectors: Array  # [V, E]
    encoder: Any
    head: LinearParams
    gain: Array  # []: how much the sum of the odds counts


def build_model(tuning: Tuning, odds: Odds | None, vocab_size: int, num_classes: int) -> Model:
    """A bidirectional GRU over word vectors and odds, with a straight path for the odds.

    The logits are a linear map of the maximum over the steps, plus the sum of the odds of all
    words and pairs, over the root of the length, times a learned gain; without odds the map alone.
    """
    layer = rnnjax.bidirectional(rnnjax.gru(tuning.hidden_size))

    def init(key: Array) -> TunedParams:
        table, encoder, head = jax.random.split(key, 3)
        size = tuning.embedding_size
        return TunedParams(
            0.1 * jax.random.normal(table, (vocab_size, size)),
            layer.init(encoder, size if odds is None else size + 2 * num_classes),
            LinearParams(
                jax.random.normal(head, (layer.output_size, num_classes)) * layer.output_size**-0.5,
                jnp.zeros(num_classes),
            ),
            jnp.ones(()),
        )

    def apply(params: TunedParams, tokens: Array, lengths: Any, *, key: Any = None) -> Array:
        valid = rnnjax.lengths_to_mask(lengths, tokens.shape[-1])
        tables = jnp.zeros(len(tokens), jnp.int32)
        drop_in = drop_out = None
        if key is not None:
            drop_in, drop_out, hide = jax.random.split(key, 3)
            tables = 1 + fold_of(zero_padding(valid, tokens))
            tokens = hide_words(hide, tokens, tuning.word_dropout)
        xs, straight = params.vectors[tokens], jnp.zeros((len(tokens), num_classes))
        if odds is not None:
            # Odds reach 5 and more; the vectors that stand beside them start at 0.1.
            words, pairs = (0.3 * found for found in read_odds(odds, tokens, tables))
            xs = jnp.concatenate([xs, words, pairs], axis=-1)
            total = zero_padding(valid, words + pairs).sum(axis=1)
            count = jnp.maximum(valid.sum(axis=-1, keepdims=True), 1)
            straight = params.gain * total / jnp.sqrt(count)
        _, ys = layer.apply(
            params.encoder, elementwise_dropout(drop_in, xs, tuning.dropout), mask=valid
        )
        pooled = elementwise_dropout(drop_out, max_pool(ys, valid), tuning.dropout)
        return affine(pooled, params.head.w, params.head.bias) + straight

    return Model(init, apply)


class Prepared(NamedTuple):
    """The batches of a data set, and a model for them."""

    splits: Splits
    model: Model
    tuning: Tuning


def prepare(settings: Settings, name: str, dataset: Dataset, seed: int) -> Prepared:
    """The vocabulary and the odds of the training texts; there is no validation."""
    tuning = TUNINGS[name]
    encode = fit_encoder(
        dataset.train.texts,
        vocabulary_size=settings.vocabulary_size,
        max_length=tuning.max_length,
    )
    splits = make_batches(
        encode,
        (dataset.train, dataset.test, dataset.test),
        num_classes=len(dataset.label_names),
        batch_size=tuning.batch_size,
        buckets=tuning.buckets,
        seed=seed,
    )
    sizes = len(encode.vocabulary), len(dataset.label_names)
    odds = None
    if tuning.class_odds:
        ids, buckets = encode(dataset.train.texts), settings.buckets_of_pairs
        odds = count_odds(ids, dataset.train.labels, sizes[0], buckets, sizes[1])
    return Prepared(splits, build_model(tuning, odds, *sizes), tuning)


def train(settings: Settings, prepared: Prepared, seed: int) -> Measured:
    """Trains the members; the accuracy of them together, and of one on average."""
    splits, model, tuning = prepared
    steps = tuning.epochs * len(splits.train)
    rate = optax.linear_schedule(tuning.learning_rate, tuning.learning_rate / 20, steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(rate),
        average_parameters(0.99),
    )
    states = init_members(
        model, optimizer, jax.random.split(jax.random.key(seed), settings.members)
    )
    loss_fn = classification_loss(model, word_dropout=0.0)  # the model itself hides words
    step = make_step(loss_fn, optimizer)
    began = time.perf_counter()
    for epoch in range(1, tuning.epochs + 1):
        states, _ = take_steps(step, states, splits.train.epoch(epoch), 4)
        jax.block_until_ready(states)
        print(f"epoch {epoch}: {time.perf_counter() - began:.0f} s", flush=True)
    compiled = sum(made.seconds for made in step.compilations)
    spent = time.perf_counter() - began - compiled
    found = evaluate(
        make_evaluation(model, settings.members), averaged(states.opt_state), splits.test.epoch(0)
    )
    alone = [found[name] for name in names(settings.members)[:-1]]
    return Measured(
        {"test accuracy": found["ensemble"], "one network": sum(alone) / len(alone)},
        epoch_seconds=spent / tuning.epochs,
        steps=steps,
        timings={"fit s": spent, "compile s": compiled},
    )


LINEAR = ("linear SVM on TF-IDF, unigrams", "linear SVM on TF-IDF, uni- and bigrams")


def run(settings: Settings, results: Results) -> None:
    """The linear models and the networks of each data set; a divided one is so by the seed.

    Raises:
        DataError: a setting that cannot be.
    """
    _check(settings)
    for name in settings.datasets:
        for seed in range(settings.seeds):
            whole = load(name, data_dir=settings.data_dir, seed=seed)
            note = share_note(len(whole.train.texts)) if name == "ag_news" else ""
            train_part, test_part = take_both(whole.train, whole.test, settings.take)
            dataset = whole._replace(train=train_part, test=test_part)
            for model in LINEAR:
                measure = linear_model(model, train_part, test_part)
                results.row(f"{name}: {model}", "scikit-learn", seed, measure)
            results.row(
                f"{name}: {settings.members} bidirectional GRUs({TUNINGS[name].hidden_size})",
                "rnnjax",
                seed,
                lambda: train(  # called at once
                    settings,
                    prepare(settings, name, dataset, seed),  # noqa: B023
                    seed,  # noqa: B023
                )._replace(note=note),  # noqa: B023
            )


_POWER_OF_TWO = Rule("a power of two", lambda value: value >= 1 and not value & (value - 1))


def _check(settings: Settings) -> None:
    known = one_of(tuple(TUNINGS))
    check_settings(settings, members=MEMBERS, datasets=each(known), buckets_of_pairs=_POWER_OF_TWO)


if __name__ == "__main__":
    sys.exit(lesson.main(__name__))
