"""The order of words: a bag of embeddings and recurrent networks on negations.

Run:     python -m experiments.lessons.order_matters --seeds 3
Expect:  test accuracy, mean of 3 seeds: the bag 0.500, and 1.000 for each of the three cells
         (22 November 2026, jax 0.10.2, a CPU)
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import rnnjax
from experiments.lessons import lesson
from experiments.lessons.lesson import ExamplesSettings, Measured, Results
from experiments.lessons.synthetic import Task, make_trainer, random_rows
from rnnjax.data import Vocabulary, basic_english, pad
from rnnjax.metrics import accuracy, compute, cross_entropy

GOOD = ("good", "warm", "funny", "clever", "moving", "fresh", "brave", "lively")
BAD = ("bad", "cold", "dull", "silly", "empty", "stale", "timid", "slow")
OPENINGS = ("the film is", "this story was", "honestly , the acting is", "i found it")
# The two of a pair have the same words, and contrary meanings.
PATTERNS = (
    ("not {good} but {bad}", "not {bad} but {good}"),
    ("{bad} , not {good}", "{good} , not {bad}"),
    ("not {good} , it is {bad}", "not {bad} , it is {good}"),
)


@dataclass(frozen=True)
class Settings(ExamplesSettings):
    """Sentences in pairs: the same words in another order, one praise and one blame."""

    held_out: float = 0.25
    """Share of the couples of adjectives that are in the test alone: none is learned by heart."""
    embedding_size: int = 16
    """Size of a word vector: there are some forty words."""
    hidden_size: int = 16
    """Units of the recurrent cells."""
    batch_size: int = 32
    """Sentences in a batch."""
    learning_rate: float = 5e-3
    """Of Adam."""
    steps: int = 600
    """Training steps; with the seeds 0, 1 and 2 the recurrent networks make no error after them."""


class Sentences(NamedTuple):
    """Token ids [N, T], their number [N], and 1 for praise, 0 for blame [N]."""

    tokens: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray


def pairs(good: str, bad: str) -> list[tuple[str, str]]:
    """All (blame, praise) that one couple of adjectives makes; both of a pair are one bag."""
    return [
        tuple(f"{opening} {pattern.format(good=good, bad=bad)}" for pattern in both)
        for opening, both in itertools.product(OPENINGS, PATTERNS)
    ]  # pyright: ignore[reportReturnType]


def split_couples(held_out: float, seed: int) -> tuple[list, list]:
    """The couples (good, bad) of training, and those of the test.

    Raises:
        ValueError: one of the two would be empty.
    """
    couples = list(itertools.product(GOOD, BAD))
    count = round(held_out * len(couples))
    if not 0 < count < len(couples):
        raise ValueError(f"--held-out must be a share that leaves both parts some, got {held_out}")
    order = np.random.default_rng(seed).permutation(len(couples))
    chosen = [couples[place] for place in order]
    return chosen[count:], chosen[:count]


def encode(couples: Sequence[tuple[str, str]], vocabulary: Vocabulary, length: int) -> Sentences:
    """Every sentence of the couples, padded."""
    texts = [pair for couple in couples for pair in pairs(*couple)]
    ids = [vocabulary.encode(basic_english(text)) for pair in texts for text in pair]
    return Sentences(*pad(ids, length), np.tile([0, 1], len(texts)).astype(np.int32))


def bag(size: int) -> rnnjax.Layer:
    """No recurrence at all: the word vectors as they are, so that pooling makes a bag of them."""

    def apply(params: Any, xs: Array, *_: Any, **__: Any) -> tuple[tuple, Array]:
        return (), xs

    # Pooled by the mean, so no output is ever "the last".
    return rnnjax.Layer(
        lambda key, input_size: (), apply, size, rnnjax.recurrent(rnnjax.gru(1)).last
    )


def build_model(name: str, settings: Settings, vocab_size: int) -> rnnjax.Model:
    """A classifier by its name in the table; they differ in what reads the vectors alone."""
    table = rnnjax.embedding(vocab_size, settings.embedding_size, scale=1.0)
    if name == "bag of embeddings":
        return rnnjax.classifier(table, bag(settings.embedding_size), 2, pooling="mean")
    cell = {"vanilla": rnnjax.vanilla, "LSTM": rnnjax.lstm, "GRU": rnnjax.gru}[name]
    return rnnjax.classifier(table, cell(settings.hidden_size), 2)


SYSTEMS = ("bag of embeddings", "vanilla", "LSTM", "GRU")


def make_task(model: rnnjax.Model, training: Sentences, batch_size: int) -> Task:
    """Random sentences of those for training."""

    def loss_fn(params: Any, batch: Sentences, key: Array | None) -> tuple[Array, dict]:
        del key
        logits = model.apply(params, jnp.asarray(batch.tokens), batch.lengths)
        labels = jnp.asarray(batch.labels)
        loss = cross_entropy(logits, labels)
        return loss.value, {"loss": loss, "accuracy": accuracy(logits, labels)}

    return Task(model.init, random_rows(training, batch_size), loss_fn)


def run(settings: Settings, results: Results) -> None:
    """Train every system on the same sentences; each seed has other couples to be tested on."""
    words = [basic_english(text) for pair in _all_pairs() for text in pair]
    vocabulary, length = Vocabulary.fit(words), max(map(len, words))
    for seed in range(settings.seeds):
        couples = split_couples(settings.held_out, seed)
        parts = (encode(part, vocabulary, length) for part in couples)
        training, test = (Sentences(*(array[: settings.take] for array in part)) for part in parts)
        for name in SYSTEMS:
            results.row(
                name,
                "rnnjax",
                seed,
                lambda: fitted(settings, name, len(vocabulary), training, test, seed),  # noqa: B023
            )


def _all_pairs() -> list[tuple[str, str]]:
    return [pair for couple in itertools.product(GOOD, BAD) for pair in pairs(*couple)]


def fitted(
    settings: Settings,
    name: str,
    vocab_size: int,
    training: Sentences,
    test: Sentences,
    seed: int,
) -> Measured:
    """Train one system; its accuracy on all of both parts."""
    model = build_model(name, settings, vocab_size)
    task = make_task(model, training, settings.batch_size)
    train = make_trainer(task, lambda rate: optax.adam(rate), every=settings.steps)
    params = train([seed], [settings.learning_rate], settings.steps).member(0)

    @jax.jit
    def metrics(part: Sentences) -> Any:
        return task.loss_fn(params, part, None)[1]

    figures = {
        "training accuracy": compute(metrics(training))["accuracy"],
        "test accuracy": compute(metrics(test))["accuracy"],
    }
    return Measured(figures, steps=settings.steps)


if __name__ == "__main__":
    sys.exit(lesson.main(__name__))
