"""The forecaster that the settings describe, its windows, its loss, and the surprise of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from experiments.anomaly.series import Data, Watched
from experiments.anomaly.settings import Settings
from experiments.running.cells import CELLS
from experiments.running.loss_fitting import Parts
from experiments.running.scaling import Scale
from rnnjax.data import Batch, BucketedBatches


def scale_of(data: Data) -> Scale:
    """That of the steps that are learnt from."""
    return Scale.of(np.concatenate([part.values[part.fault == 0] for part in data.train]))


def build_model(settings: Settings, channels: int) -> rnnjax.SeriesModel:
    """A layer, and for each channel a mixture of Gaussians that says what may come next."""
    cell = CELLS[settings.cell](settings.hidden_size)
    # A spread below a hundredth of the channel's own would make a fault of every rounding.
    head = rnnjax.gaussian_mixture_head(settings.components, 1, min_scale=0.01)
    joint = rnnjax.joint_head(*(head,) * channels)
    return rnnjax.series_model(cell, joint, dropout=settings.dropout)


def make_parts(data: Data, scale: Scale, settings: Settings) -> Parts:
    """Windows of all parts; of those with faults the steps of faults do not count."""

    def batches(parts: Sequence[Watched], shuffle: bool) -> BucketedBatches:
        windows, normal = cut(parts, scale, settings.window)
        return BucketedBatches(
            windows,
            normal,
            batch_size=settings.batch_size,
            boundaries=(max(map(len, windows)),),
            seed=settings.seed,
            shuffle=shuffle,
        )

    return Parts.of(batches, data.train, data.validation, data.test)


def cut(
    parts: Sequence[Watched], scale: Scale, window: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Windows that overlap by half, and which steps of each are normal (1) or faults (0)."""
    values, normal = [], []
    for part in parts:
        scaled, is_normal = scale(part.values), (part.fault == 0).astype(np.int32)
        for begin in range(0, max(1, len(scaled) - window // 2), window // 2):
            values.append(scaled[begin : begin + window])
            normal.append(is_normal[begin : begin + window])
    return values, normal


def surprise_loss(model: rnnjax.SeriesModel) -> Callable:
    """Nats of a normal step once those before it are known."""

    def loss_fn(params: Any, batch: Batch, key: Any) -> tuple[jax.Array, dict]:
        values, normal = jnp.asarray(batch.tokens), jnp.asarray(batch.labels) > 0
        lengths = jnp.maximum(jnp.asarray(batch.lengths) - 1, 0)
        _, distribution = model.apply(params, values[:, :-1], lengths, key=key)
        real = rnnjax.lengths_to_mask(lengths, values.shape[1] - 1) & normal[:, 1:]
        total, count = model.head.loss(distribution, values[:, 1:], real)
        return total / jnp.maximum(count, 1), {"loss": (total, count)}

    return loss_fn


def surprise(
    model: rnnjax.SeriesModel, params: Any, scale: Scale, series: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Nats of every step of each series; nothing was expected of the first, which has those of the
    second."""

    @jax.jit
    def score(params: Any, values: jax.Array) -> jax.Array:
        return model.score(params, (values[None, :-1], values[None, 1:]))[1][0]

    found = []
    for values in series:
        # In few lengths, as each is compiled; no step hangs on the zeros behind it.
        room = 1 << (len(values) - 1).bit_length()
        padded = np.pad(scale(values), ((0, room - len(values)), (0, 0)))
        nats = -np.asarray(score(params, padded), float)[: len(values) - 1]
        found.append(np.concatenate([nats[:1], nats]))
    return found
