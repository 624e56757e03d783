"""Reading strokes: wherever the pen is lifted, a small network says which letter is complete."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.handwriting.alphabet import Glyph
from experiments.handwriting.settings import Settings
from experiments.handwriting.writing import SIZE, Written, points_of, random_words
from rnnjax.data import BucketedBatches, choose_boundaries
from rnnjax.metrics import cross_entropy
from rnnjax.training import init_train_state, make_train_step

_UNITS, _WORDS, _EPOCHS, _ROWS, _RATE = 48, 1500, 6, 32, 1e-2
# Which words the reader learns from, beside the seed: others than the network learns from.
_STREAM = 1_000_003


class Reader(NamedTuple):
    """A tagger of points, its parameters, and its letters; class 0 says that none is complete."""

    model: rnnjax.Model
    params: Any
    letters: str


class Score(NamedTuple):
    """How texts were read: ``errors`` letters to change, leave out or put in, of ``letters``."""

    errors: int
    letters: int

    @property
    def accuracy(self) -> float:
        """The share of the letters that were read right; 0 where there are more errors."""
        return max(0.0, 1 - self.errors / self.letters)


def train_reader(glyphs: Mapping[str, Glyph], settings: Settings) -> Reader:
    """A reader taught on words that are written by chance, others than the network learns from.

    It sees dx, dy and where the pen is lifted, not where the text ends.
    """
    letters = "".join(sorted(glyphs))
    pairs = renders(glyphs, settings, _WORDS, _STREAM)
    batches = BucketedBatches(
        [_seen(pair.values) for pair in pairs],
        [pair.letters for pair in pairs if pair.letters is not None],
        batch_size=min(_ROWS, len(pairs)),
        boundaries=choose_boundaries([len(points_of(p.values)) for p in pairs], count=2),
        seed=settings.seed,
    )
    layer = rnnjax.bidirectional(rnnjax.gru(_UNITS))
    model = rnnjax.tagger(None, layer, len(letters) + 1)

    def loss_fn(params: Any, batch: Any, key: Any) -> tuple[jax.Array, dict]:
        logits = model.apply(params, batch.tokens, batch.lengths)
        lifted = jnp.asarray(batch.tokens)[..., 2] > 0.5
        loss = cross_entropy(logits, batch.labels, lifted)
        return loss.value, {"loss": loss}

    rate = optax.cosine_decay_schedule(_RATE, _EPOCHS * len(batches), alpha=0.01)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    key = jax.random.fold_in(jax.random.key(settings.seed), 2)
    state = init_train_state(key, model.init(key, SIZE - 1), optimizer)
    step = make_train_step(loss_fn, optimizer)
    for epoch in range(_EPOCHS):
        for batch in batches.epoch(epoch):
            state, _ = step(state, batch)
    return Reader(model, state.params, letters)


def renders(
    glyphs: Mapping[str, Glyph], settings: Settings, count: int, stream: int
) -> list[Written]:
    """Words written by chance; another stream, other words and other hands."""
    return random_words(np.random.default_rng((settings.seed, stream)), settings, glyphs, count)


def read(reader: Reader, series: Sequence[np.ndarray]) -> list[str]:
    """What strokes [T, 4] say, without the spaces."""
    seen = [_seen(values) for values in series]
    lengths = np.array([len(points) for points in seen])
    room = np.zeros((len(series), -(-lengths.max() // 64) * 64, SIZE - 1), np.float32)
    for row, points in zip(room, seen, strict=True):
        row[: len(points)] = points
    logits = _tag(reader.model, reader.params, room, lengths)
    classes = np.where(room[..., 2] > 0.5, np.argmax(logits, axis=-1), 0)
    return ["".join(reader.letters[c - 1] for c in row if c) for row in classes]


@functools.partial(jax.jit, static_argnums=0)
def _tag(model: rnnjax.Model, params: Any, values: Any, lengths: Any) -> jax.Array:
    return model.apply(params, values, lengths)


def _seen(values: np.ndarray) -> np.ndarray:
    """What the reader sees; the first point has no offset that means anything."""
    seen = points_of(values)[:, : SIZE - 1].copy()
    seen[:1, :2] = 0
    return seen


def score(texts: Sequence[str], found: Sequence[str]) -> Score:
    """The letters of texts beside those that were read; spaces do not count.

    Example:
        >>> score(["ab cd", "e"], ["abd", "ee"])
        Score(errors=2, letters=5)
    """
    wanted = [text.replace(" ", "") for text in texts]
    errors = sum(distance(a, b) for a, b in zip(wanted, found, strict=True))
    return Score(errors, sum(map(len, wanted)))


def distance(one: str, other: str) -> int:
    """The fewest letters to change, leave out or put in (Levenshtein).

    Example:
        >>> distance("kitten", "sitting")
        3
    """
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]
