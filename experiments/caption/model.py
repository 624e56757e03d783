"""The network: a few convolutions see, a decoder with attention writes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

import rnnjax
from experiments.caption.scenes import PIXELS
from experiments.caption.settings import Settings
from experiments.running.words import START

GRID = 6  # the picture becomes so many places on each side
_STRIDES = (3, 2)  # which leave PIXELS / 6 of a side
_WINDOW = 3
_ASKED = 32  # width of what is inside the tanh of the attention


class EyeParams(NamedTuple):
    """``kernels`` [3, 3, I, O] and ``biases`` [O] of the convolutions; ``places`` [S, M], a vector
    added to what is seen at each place, so that the decoder knows which one it is."""

    kernels: tuple[Array, ...]
    biases: tuple[Array, ...]
    places: Array


class NetworkParams(NamedTuple):
    """Parameters of what sees and of what writes."""

    eye: EyeParams
    writer: Any


class Network(NamedTuple):
    """What sees, by the size of its vectors, and what writes; whether that attends."""

    picture_size: int
    writer: rnnjax.SequenceToSequence
    attends: bool

    def init(self, key: Array) -> NetworkParams:
        """First parameters."""
        seeing, writing = jax.random.split(key)
        return NetworkParams(init_eye(seeing, self.picture_size), self.writer.init(writing))

    def encode(self, params: NetworkParams, pictures: Array) -> tuple[Any, rnnjax.Memory | None]:
        """The decoder's first carry and its memory, for pictures [..., 36, 36, 3]."""
        return self.writer.encode(params.writer, see(params.eye, pictures))

    def teach(
        self,
        params: NetworkParams,
        pictures: Array,
        captions: Array,
        lengths: Any,
        key: Array | None = None,
    ) -> tuple[Array, rnnjax.Attended | None]:
        """Logits [B, T, V] of every word after those before it, and how places were attended to."""
        places = see(params.eye, pictures)
        return self.writer.teach(params.writer, places, None, captions, lengths, key=key)


def build_network(settings: Settings, vocab_size: int) -> Network:
    """The network that the settings describe."""
    size, decoder = settings.picture_size, rnnjax.lstm(settings.hidden_size)
    attention = rnnjax.attention("additive", size=_ASKED)
    if settings.attention in ("inside", "hard"):
        decoder = rnnjax.attention_cell(
            decoder,
            size,
            attention,
            selector=settings.selector,
            hard=settings.attention == "hard",
        )
    words = rnnjax.embedding(vocab_size, settings.embedding_size)
    writer = rnnjax.captioner(
        size,
        words,
        decoder,
        start=START,
        attention=attention if settings.attention == "outside" else None,
        dropout=settings.dropout,
    )
    return Network(size, writer, settings.attention != "none")


def init_eye(key: Array, size: int) -> EyeParams:
    """First parameters of the convolutions, by He and others (2015)."""
    widths = (3, size // 2, size, size)
    keys = jax.random.split(key, len(widths))
    kernels = tuple(
        jax.random.normal(k, (_WINDOW, _WINDOW, before, after)) * (2 / (_WINDOW**2 * before)) ** 0.5
        for k, before, after in zip(keys, widths, widths[1:], strict=False)
    )
    biases = tuple(jnp.zeros(width) for width in widths[1:])
    return EyeParams(kernels, biases, 0.1 * jax.random.normal(keys[-1], (GRID * GRID, size)))


def see(params: EyeParams, pictures: Array) -> Array:
    """Vectors [..., 36, M] of the places of pictures uint8 [..., 36, 36, 3]."""
    batch = pictures.shape[:-3]
    xs = jnp.asarray(pictures).astype(jnp.float32).reshape(-1, PIXELS, PIXELS, 3) / 255 - 0.5
    for kernel, bias, stride in zip(params.kernels, params.biases, (*_STRIDES, 1), strict=True):
        xs = lax.conv_general_dilated(
            xs, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        xs = jax.nn.relu(xs + bias[None, None, None])
    size = xs.shape[-1]
    places = xs.reshape(-1, GRID * GRID, size) + params.places[None]
    return places.reshape(*batch, GRID * GRID, size)
