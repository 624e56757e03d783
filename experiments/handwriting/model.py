"""The network that the settings describe, its loss, and how it writes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from experiments.handwriting.settings import Settings
from experiments.handwriting.writing import SIZE, Writing, Written, points_of
from experiments.running.loss_fitting import Parts
from rnnjax.data import BucketedBatches, DataError, choose_boundaries

# Characters that the window moves on at each point, before training: a letter has about 10 points.
_SPEED = 0.1
# Points for each character, more than any letter needs: a text that needs more in all is cut.
_MOST_POINTS = 40


class WrittenBatch(NamedTuple):
    """Values [B, T, 4], how many of each row count [B], and its text: ids [B, S], how many [B]."""

    values: Any
    lengths: Any
    text: Any
    text_lengths: Any


class WrittenBatches:
    """Batches of pairs of about the same lengths; the order of an epoch depends on its number."""

    def __init__(
        self, pairs: Sequence[Written], characters: str, settings: Settings, shuffle: bool
    ) -> None:
        self._texts, self._lengths = encode([pair.text for pair in pairs], characters)
        self._batches = BucketedBatches(
            [pair.values for pair in pairs],
            np.arange(len(pairs)),
            batch_size=settings.batch_size,
            boundaries=choose_boundaries([len(p.values) for p in pairs], count=settings.buckets),
            seed=settings.seed,
            shuffle=shuffle,
        )

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, n: int) -> Iterator[WrittenBatch]:
        for batch in self._batches.epoch(n):
            which = batch.labels
            yield WrittenBatch(
                batch.tokens, batch.lengths, self._texts[which], self._lengths[which]
            )


def encode(texts: Sequence[str], characters: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids [N, S] of texts, each with a mark behind it, and their lengths with the mark [N].

    Raises:
        DataError: a text without characters, or with one that is not among these.
    """
    for text in texts:
        unknown = sorted(set(text) - set(characters))
        if unknown or not text.strip():
            found = f"{''.join(unknown)!r} in {text!r}" if unknown else repr(text)
            raise DataError(f"text must be of the characters {characters[1:]!r}, got {found}")
    # The window comes to stand on this mark when all of the text is written.
    mark = len(characters)
    lengths = np.array([len(text) + 1 for text in texts], np.int32)
    ids = np.zeros((len(texts), lengths.max()), np.int32)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text) + 1] = [*map(characters.index, text), mark]
    return ids, lengths


def build_model(settings: Settings, characters: str) -> rnnjax.SeriesModel:
    """An LSTM that reads the text through a window, LSTMs above it, and the next point's density.

    The density is a mixture of Gaussians of dx and dy, and beside it how likely it is that the pen
    is lifted, and that the text is at its end.
    """
    lowest = rnnjax.window_cell(
        rnnjax.lstm(settings.hidden_size), len(characters) + 1, settings.window, speed=_SPEED
    )
    above = (rnnjax.lstm(settings.hidden_size),) * (settings.layers - 1)
    head = rnnjax.joint_head(
        rnnjax.gaussian_mixture_head(settings.mixture, 2, min_scale=0.05),
        rnnjax.bernoulli_head(2),
    )
    return rnnjax.series_model(rnnjax.skip_stack(lowest, *above), head)


def memory_of(text: Any, lengths: Any, characters: str, layers: int) -> tuple:
    """The texts as the context of the layers: one state a character, for the lowest."""
    text = jnp.asarray(text)
    states = jax.nn.one_hot(text, len(characters) + 1)
    memory = rnnjax.Memory(states, rnnjax.lengths_to_mask(lengths, text.shape[-1]))
    return (memory, *(None,) * (layers - 1))


def make_parts(writing: Writing, settings: Settings) -> Parts:
    """Batches of the three parts."""

    def batches(part: Sequence[Written], shuffle: bool) -> WrittenBatches:
        return WrittenBatches(part, writing.characters, settings, shuffle)

    return Parts.of(batches, writing.train, writing.validation, writing.test)


def point_loss(model: rnnjax.SeriesModel, characters: str, layers: int) -> Callable:
    """Nats a point, of every point after those before it."""

    def loss_fn(params: Any, batch: WrittenBatch, key: Any) -> tuple[jax.Array, dict]:
        values = jnp.asarray(batch.values)
        before = jnp.concatenate([jnp.zeros_like(values[:, :1]), values[:, :-1]], axis=1)
        context = memory_of(batch.text, batch.text_lengths, characters, layers)
        _, (total, count) = model.loss(
            params, (before, values), batch.lengths, key=key, context=context
        )
        return total / count, {"loss": (total, count)}

    return loss_fn


@functools.cache
def _neater(model: rnnjax.SeriesModel, bias: float) -> rnnjax.SeriesModel:
    """The model whose head draws with a bias; one object for each, so that it compiles once."""

    def sample(key: jax.Array, distribution: tuple) -> jax.Array:
        mixture, pen = distribution
        return model.head.sample(key, (mixture.sharpened(bias), pen * (1 + bias)))

    return model._replace(head=model.head._replace(sample=sample))


def _is_last(value: jax.Array) -> jax.Array:
    return value[3] > 0.5


class Writer(NamedTuple):
    """A trained network, the characters it knows, and the settings that it was trained with."""

    model: rnnjax.SeriesModel
    params: Any
    characters: str
    settings: Settings


class Drawn(NamedTuple):
    """Values [T, 4] of one text, and whether it came to its end by itself."""

    values: np.ndarray
    ended: bool


def write(
    writer: Writer, texts: Sequence[str], *, bias: float, seed: int, like: Written | None = None
) -> list[Drawn]:
    """Texts written by hand.

    With ``like`` the network first reads the strokes of that sample, while its window passes over
    the text of the sample, behind which the new text stands. It goes on as it began: in that hand.

    Raises:
        DataError: a text with a character that the network does not know.
    """
    points = np.zeros((0, SIZE)) if like is None else points_of(like.values)
    read = _behind_zeros(points)
    ids, lengths = encode([joined_text(like, text) for text in texts], writer.characters)
    out = rnnjax.generate_series(
        _neater(writer.model, bias),
        writer.params,
        np.broadcast_to(read, (len(texts), *read.shape)),
        max_new_steps=_MOST_POINTS * (1 + max(map(len, texts))),
        key=jax.random.key(seed),
        stop=_is_last,
        context=memory_of(ids, lengths, writer.characters, writer.settings.layers),
    )
    rows = zip(np.asarray(out.values), np.asarray(out.lengths), strict=True)
    return [Drawn(row[:count], bool(row[count - 1, 3] > 0.5)) for row, count in rows]


def joined_text(like: Written | None, text: str) -> str:
    """What the window passes over: a text, behind that of the sample if there is one."""
    return text if like is None else f"{like.text} {text}"


def _behind_zeros(values: np.ndarray) -> np.ndarray:
    """What the network reads: it begins with zeros, and then reads each value behind the last."""
    return np.concatenate([np.zeros((1, SIZE), np.float32), values.astype(np.float32)])


def window_path(writer: Writer, text: str, values: np.ndarray) -> np.ndarray:
    """How much of each character, and of the mark behind, the window read at each point."""
    settings = writer.settings
    lowest = rnnjax.window_cell(
        rnnjax.lstm(settings.hidden_size), len(writer.characters) + 1, settings.window, speed=_SPEED
    )
    ids, lengths = encode([text], writer.characters)
    (memory, *_) = memory_of(ids, lengths, writer.characters, 1)
    read = _behind_zeros(values[:-1])
    _, (_, carries) = rnnjax.unroll(
        lowest, writer.params.layer[0], read[None], context=memory, all_carries=True
    )
    return np.asarray(rnnjax.window_weights(carries.window, len(text) + 1))[0]
