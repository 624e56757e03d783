"""Captions of many pictures, how many are right, and where the network looked."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from experiments.caption.corpus import Captioned
from experiments.caption.model import GRID, Network
from experiments.caption.scenes import GRID as CELLS
from experiments.running.words import START, STOP
from rnnjax.data import PADDING, UNKNOWN, Vocabulary
from rnnjax.data.padding import filled

_ROWS = 200  # of one call


def caption(
    network: Network,
    params: Any,
    pictures: np.ndarray,
    *,
    beam: int,
    max_length: int,
    length_penalty: float = 0.6,
) -> list[list[list[int]]]:
    """For each picture its captions, the best first, as ids without the stop."""
    found = []
    how = (network, beam, max_length, length_penalty if beam > 1 else 0.0)
    for begin in range(0, len(pictures), _ROWS):
        some = pictures[begin : begin + _ROWS]
        rows = filled(some, _ROWS if len(pictures) > 1 else 1)
        beams = jax.device_get(_search(how, params, rows))
        for tokens, lengths in zip(beams.tokens[: len(some)], beams.lengths, strict=False):
            texts = zip(tokens, lengths, strict=True)
            found.append([[int(i) for i in t[:n] if i != STOP] for t, n in texts if n])
    return found


@functools.partial(jax.jit, static_argnums=0)
def _search(how: tuple, params: Any, pictures: jax.Array) -> rnnjax.Beams:
    network, beam, max_length, length_penalty = how
    carry, memory = network.encode(params, pictures)
    return rnnjax.beam_search(
        network.writer.step,
        params.writer,
        carry,
        jnp.full(len(pictures), START),
        memory,
        stop=STOP,
        beam_size=beam,
        max_length=max_length,
        length_penalty=length_penalty,
        transforms=(rnnjax.forbid((PADDING, UNKNOWN, START)),),
    )


def looked(
    network: Network, params: Any, pictures: np.ndarray, captions: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    """The weights [T, 36] under which each word of each caption was written, the stop left out."""
    found = []
    length = max(map(len, captions)) + 1
    for begin in range(0, len(pictures), _ROWS):
        some = captions[begin : begin + _ROWS]
        ids = np.zeros((len(some), length), np.int32)
        for row, text in enumerate(some):
            ids[row, : len(text)] = text
        weights = _weights(network, params, pictures[begin : begin + _ROWS], ids)
        found += [np.asarray(w)[: len(text)] for w, text in zip(weights, some, strict=True)]
    return found


@functools.partial(jax.jit, static_argnums=0)
def _weights(network: Network, params: Any, pictures: jax.Array, captions: jax.Array) -> jax.Array:
    _, attended = network.teach(params, pictures, captions, None)
    assert attended is not None
    return attended.weights


def figures(
    network: Network,
    params: Any,
    part: Captioned,
    vocabulary: Vocabulary,
    found: Sequence[Sequence[Sequence[int]]],
) -> dict[str, float]:
    """How many captions are exactly right; and of scenes, how often the place with the largest
    weight lies on the thing that is named, under the words of its size, colour and shape."""
    right = [vocabulary.encode(text) for text in part.words]
    best = [texts[0] if texts else [] for texts in found]
    named = {"exact": float(np.mean([a == b for a, b in zip(best, right, strict=True)]))}
    if part.cells is None or not network.attends:
        return named
    weights = looked(network, params, part.pictures, right)
    hits, once = [], []
    for rows, cells in zip(weights, part.cells, strict=True):
        places = np.argmax(rows, axis=-1)
        down, across = (place * CELLS // GRID for place in divmod(places, GRID))
        wanted = np.array(cells)
        hits += list((down * CELLS + across == wanted)[wanted >= 0])
        once.append(np.sum((1 - rows.sum(axis=0)) ** 2))
    return {**named, "on_thing": float(np.mean(hits)), "once": float(np.mean(once))}
