"""The network that the settings describe, its batches and its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from experiments.recognize.series import Part, Series
from experiments.recognize.settings import Settings
from experiments.running.cells import CELLS
from experiments.running.loss_fitting import Parts
from experiments.running.scaling import Scale
from rnnjax.data import Batch, BucketedBatches, choose_boundaries, pad
from rnnjax.metrics import accuracy, cross_entropy


class Network(NamedTuple):
    """``init(key) -> params`` and ``apply(params, xs [B, T, D], lengths [B], key) -> logits``."""

    init: Callable[[jax.Array], Any]
    apply: Callable[..., jax.Array]


class Known(NamedTuple):
    """What the network knows of the series beside its weights: JSON in the run's folder.

    Attributes:
        labels: their names, in the order of their numbers.
        channels: their names; none where the file does not name them.
        mean: of each channel in training [D].
        spread: standard deviation of each channel in training [D].
        longest: steps of the longest series of the parts.
    """

    labels: list[str]
    channels: list[str]
    mean: list[float]
    spread: list[float]
    longest: int

    @classmethod
    def of(cls, series: Series) -> Known:
        scale = Scale.of(np.concatenate(series.train.rows))
        longest = max(len(row) for part in series.parts for row in part.rows)
        return cls(series.labels, series.channels, *scale, longest)

    def scaled(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Each channel with mean 0 and standard deviation 1 in training."""
        return list(map(Scale(self.mean, self.spread), rows))


def build_network(settings: Settings, known: Known) -> Network:
    """Layers that read the series, a pool over its steps, and a linear map to labels."""
    cell = CELLS[settings.cell](settings.hidden_size)
    layer = rnnjax.bidirectional(cell) if settings.direction == "both" else rnnjax.recurrent(cell)
    layers = rnnjax.stack(*(layer,) * settings.layers, dropout=settings.dropout)
    if settings.pooling == "places":
        return _by_places(layers, known, settings.dropout)
    model = rnnjax.classifier(
        None, layers, len(known.labels), pooling=settings.pooling, dropout=settings.dropout
    )

    def apply(params: Any, xs: Any, lengths: Any, key: Any = None) -> jax.Array:
        return model.apply(params, xs, lengths, key=key)

    return Network(lambda key: model.init(key, len(known.mean)), apply)


def _by_places(layers: rnnjax.Layer, known: Known, dropout: float) -> Network:
    """Every place of the longest series has weights of its own; outputs at padding are zero."""
    features = known.longest * layers.output_size

    def init(key: jax.Array) -> tuple:
        first, second = jax.random.split(key)
        bound = features**-0.5
        w = jax.random.uniform(second, (features, len(known.labels)), minval=-bound, maxval=bound)
        return layers.init(first, len(known.mean)), w, jnp.zeros(len(known.labels))

    def apply(params: tuple, xs: Any, lengths: Any, key: Any = None) -> jax.Array:
        inner, w, bias = params
        below, above = (None, None) if key is None else jax.random.split(key)
        _, ys = layers.apply(inner, jnp.asarray(xs), lengths, key=below)
        # The steps of a batch are rounded up, to fewer or more than the longest series of all has.
        missing = max(0, known.longest - ys.shape[1])
        ys = jnp.pad(ys, ((0, 0), (0, missing), (0, 0)))[:, : known.longest]
        flat = ys.reshape(len(ys), features)
        if above is not None:
            kept = jax.random.bernoulli(above, 1 - dropout, flat.shape)
            flat = jnp.where(kept, flat / (1 - dropout), 0.0)
        return flat @ w + bias[None]

    return Network(init, apply)


def make_parts(series: Series, known: Known, settings: Settings) -> Parts:
    """Batches of scaled series with a label each."""

    def batches(part: Part, shuffle: bool) -> BucketedBatches:
        lengths = [len(row) for row in part.rows]
        return BucketedBatches(
            known.scaled(part.rows),
            part.classes,
            batch_size=settings.batch_size,
            boundaries=choose_boundaries(lengths, count=settings.buckets),
            seed=settings.seed,
            shuffle=shuffle,
            num_classes=len(known.labels),
        )

    return Parts.of(batches, series.train, series.validation, series.test)


def label_loss(network: Network, noise: float) -> Callable:
    """Cross entropy and accuracy a series; in training the values are read under noise."""

    def loss_fn(params: Any, batch: Batch, key: Any) -> tuple[jax.Array, dict]:
        xs, labels = jnp.asarray(batch.tokens), jnp.asarray(batch.labels)
        if key is not None:
            key, draw = jax.random.split(key)
            xs = xs + noise * jax.random.normal(draw, xs.shape, xs.dtype)
        logits = network.apply(params, xs, jnp.asarray(batch.lengths), key)
        weights = jnp.asarray(batch.weights)
        loss = cross_entropy(logits, labels, weights)
        return loss.value, {"loss": loss, "accuracy": accuracy(logits, labels, weights)}

    return loss_fn


def probabilities(
    network: Network, params: Any, known: Known, rows: Sequence[np.ndarray]
) -> np.ndarray:
    """How likely each label is for each series, [N, C]."""
    xs, lengths = pad(known.scaled(rows))
    logits = jax.jit(network.apply)(params, xs, lengths)
    return np.asarray(jax.nn.softmax(logits))
