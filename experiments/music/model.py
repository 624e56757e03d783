"""The network that the settings describe, its loss, and how it composes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from experiments.music.pieces import KEYS, Music, Piece
from experiments.music.settings import Settings
from experiments.running.cells import CELLS
from experiments.running.loss_fitting import Parts
from rnnjax.data import Batch, BucketedBatches, choose_boundaries


def build_model(settings: Settings) -> rnnjax.SeriesModel:
    """Layers, and a head that says of every key how likely it is to sound in the next frame."""
    cell = CELLS[settings.cell](settings.hidden_size)
    layers = rnnjax.stack(*(cell,) * settings.layers, dropout=settings.dropout)
    return rnnjax.series_model(layers, rnnjax.bernoulli_head(KEYS), dropout=settings.dropout)


def make_parts(music: Music, settings: Settings) -> Parts:
    """Batches of frames, a silent one in front, and of the frames that follow each."""
    train = [moved for piece in music.train for moved in transposed(piece, settings.transpose)]
    silence = np.zeros((1, KEYS), np.float32)

    def batches(pieces: Sequence[Piece], shuffle: bool) -> BucketedBatches:
        return BucketedBatches(
            [np.concatenate([silence, piece[:-1]]) for piece in pieces],
            list(pieces),
            batch_size=settings.batch_size,
            boundaries=choose_boundaries([len(piece) for piece in pieces], count=settings.buckets),
            seed=settings.seed,
            shuffle=shuffle,
        )

    return Parts.of(batches, train, music.validation, music.test)


def transposed(piece: Piece, keys: int) -> list[Piece]:
    """The piece, and the piece moved by up to so many keys, wherever all its notes still fit."""
    used = np.flatnonzero(piece.sum(axis=0))
    low, high = (used[0], used[-1]) if len(used) else (0, KEYS - 1)
    moves = [m for m in range(-keys, keys + 1) if low + m >= 0 and high + m < KEYS]
    return [np.roll(piece, move, axis=1) for move in moves]


def frame_loss(model: rnnjax.SeriesModel) -> Callable:
    """Nats a frame. In training every frame counts; else those that have one before them."""

    def loss_fn(params: Any, batch: Batch, key: Any) -> tuple[jax.Array, dict]:
        time = jnp.arange(batch.tokens.shape[1])[None]
        real = time < jnp.asarray(batch.lengths)[:, None]
        _, distribution = model.apply(params, batch.tokens, mask=real, key=key)
        counts = real if key is not None else real & (time > 0)
        total, count = model.head.loss(distribution, batch.labels, counts)
        return total / count, {"loss": (total, count)}

    return loss_fn


def compose(
    model: rnnjax.SeriesModel, params: Any, steps: int, temperature: float, seed: int
) -> Piece:
    """A piece [steps, 88] out of silence."""

    def sample(key: jax.Array, logits: jax.Array) -> jax.Array:
        return model.head.sample(key, logits / temperature)

    bolder = model._replace(head=model.head._replace(sample=sample))
    silence = jnp.zeros((1, KEYS))
    out = rnnjax.generate_series(
        bolder, params, silence, max_new_steps=steps, key=jax.random.key(seed)
    )
    return np.asarray(out.values)
