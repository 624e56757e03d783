"""Translating many sequences with a trained network, and looking at what it attended to."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from experiments.running.words import START, STOP
from rnnjax.data import PADDING, UNKNOWN

_ROWS = 64  # of one call; the last one is filled up, so that few programs are compiled
_MULTIPLE = 8  # lengths are rounded up to this


def translate(
    model: rnnjax.SequenceToSequence,
    params: Any,
    sources: Sequence[Sequence[int]],
    *,
    beam: int,
    max_length: int,
    length_penalty: float = 0.6,
) -> list[list[list[int]]]:
    """For each source its hypotheses, the best first, as ids without the stop."""
    found: list[list[list[int]]] = [[]] * len(sources)
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    for begin in range(0, len(order), _ROWS):
        rows = order[begin : begin + _ROWS]
        batch = [list(sources[i]) for i in rows]
        beams = jax.device_get(
            _search(
                (model, beam, max_length, length_penalty if beam > 1 else 0.0),
                params,
                *_padded(batch, _ROWS if len(sources) > 1 else 1),
            )
        )
        for row, i in enumerate(rows):
            texts = zip(beams.tokens[row], beams.lengths[row], strict=True)
            found[i] = [_before_stop(text[:length]) for text, length in texts if length]
    return found


@functools.partial(jax.jit, static_argnums=0)
def _search(how: tuple, params: Any, tokens: jax.Array, lengths: jax.Array) -> rnnjax.Beams:
    model, beam, max_length, length_penalty = how
    carry, memory = model.encode(params, tokens, lengths)
    return rnnjax.beam_search(
        model.step,
        params,
        carry,
        jnp.full(lengths.shape, START),
        memory,
        stop=STOP,
        beam_size=beam,
        max_length=max_length,
        length_penalty=length_penalty,
        transforms=(rnnjax.forbid((PADDING, UNKNOWN, START)),),
    )


def alignments(
    model: rnnjax.SequenceToSequence,
    params: Any,
    sources: Sequence[Sequence[int]],
    written: Sequence[Sequence[int]],
) -> list[np.ndarray]:
    """What was attended to while each text was written, [T, S] of each, its stop included."""
    tokens, lengths = _padded(sources, len(sources))
    ended = [[*text, STOP] for text in written]
    targets, target_lengths = _padded(ended, len(ended))
    _, weights = jax.jit(model.apply)(params, tokens, lengths, targets, target_lengths)
    return [
        np.asarray(rows)[: len(text), : len(source)]
        for rows, text, source in zip(weights, ended, sources, strict=True)
    ]


def _before_stop(ids: np.ndarray) -> list[int]:
    return [int(i) for i in ids if i != STOP]


def _padded(batch: Sequence[Sequence[int]], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids [rows, T] and lengths [rows], of length 0 in rows that are filled up."""
    lengths = np.array([len(ids) for ids in batch] + [0] * (rows - len(batch)), np.int32)
    time = max(1, int(lengths.max()))
    tokens = np.zeros((rows, -(-time // _MULTIPLE) * _MULTIPLE), np.int32)
    for row, ids in enumerate(batch):
        tokens[row, : len(ids)] = ids
    return tokens, lengths
