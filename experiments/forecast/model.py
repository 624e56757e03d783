"""The network: a recurrent layer over the past, and quantiles of all steps of the horizon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from experiments.forecast.baselines import scale_of
from experiments.forecast.series import Window, Windows
from experiments.forecast.settings import Settings
from experiments.running.cells import CELLS
from experiments.running.loss_fitting import Parts
from rnnjax.data import Batch, BucketedBatches

LEVELS = (0.1, 0.5, 0.9)


class Network(NamedTuple):
    """``init(key) -> params`` and ``apply(params, past [B, W, 1], key) -> quantiles [B, h, 3]``."""

    init: Callable[[jax.Array], Any]
    apply: Callable[[Any, Any, Any], jax.Array]
    head: rnnjax.Head


def build_network(settings: Settings) -> Network:
    """The layer's last output and the past itself, side by side, into the head.

    So the network has a linear autoregression in it, and learns what that leaves.
    """
    cell = CELLS[settings.cell](settings.hidden_size)
    layer = rnnjax.recurrent(rnnjax.variational_dropout(cell, settings.dropout, settings.dropout))
    head = rnnjax.quantile_head(LEVELS, settings.horizon)

    def init(key: jax.Array) -> tuple:
        first, second = jax.random.split(key)
        return layer.init(first, 1), head.init(second, settings.hidden_size + settings.window)

    def apply(params: tuple, past: Any, key: Any) -> jax.Array:
        past = jnp.asarray(past)
        _, ys = layer.apply(params[0], past, key=key)
        return head.apply(params[1], jnp.concatenate([ys[:, -1], past[..., 0]], axis=-1))

    return Network(init, apply, head)


def pinball(network: Network) -> Callable:
    """The loss of the quantiles, a step of the horizon, and the error of the median."""

    def loss_fn(params: Any, batch: Batch, key: Any) -> tuple[jax.Array, dict]:
        quantiles = network.apply(params, batch.tokens, key)
        total, count = network.head.loss(quantiles, batch.labels, jnp.asarray(batch.weights) > 0)
        total = total / jnp.shape(batch.labels)[-1]
        return total / count, {"loss": (total, count)}

    return loss_fn


def make_parts(windows: list[Windows], settings: Settings) -> Parts:
    """The windows of all sets together, scaled each by its own past."""

    def batches(parts: list[Window], shuffle: bool) -> BucketedBatches:
        past = np.concatenate([part.past for part in parts])
        future = np.concatenate([part.future for part in parts])
        mean, spread = scale_of(past, np.concatenate([part.unit for part in parts]))
        return BucketedBatches(
            list(((past - mean) / spread).astype(np.float32)[..., None]),
            ((future - mean) / spread).astype(np.float32),
            batch_size=settings.batch_size,
            boundaries=(settings.window,),
            seed=settings.seed,
            shuffle=shuffle,
        )

    return Parts.of(batches, *map(list, zip(*windows, strict=True)))


def forecast(network: Network, params: Any, window: Window) -> np.ndarray:
    """Quantiles [M, h, 3] in the units of the series."""
    mean, spread = scale_of(window.past, window.unit)
    past = ((window.past - mean) / spread).astype(np.float32)[..., None]
    found = jax.jit(lambda params, past: network.apply(params, past, None))(params, past)
    return np.asarray(found, float) * spread[..., None] + mean[..., None]
