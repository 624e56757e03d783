"""What counting alone knows of the next frame: the figures that a network must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.music.pieces import Piece


def independent_keys(train: Sequence[Piece], test: Sequence[Piece]) -> float:
    """Nats a frame of the share of the frames in which each key sounds, whatever came before."""
    frames = np.concatenate([piece[1:] for piece in train])
    return _nats(_share(frames.sum(0), len(frames)), np.concatenate([p[1:] for p in test]))


def keys_by_themselves(train: Sequence[Piece], test: Sequence[Piece]) -> float:
    """Nats a frame where each key is known to have sounded, or not, in the frame before."""
    before, now = (np.concatenate([p[cut] for p in train]) for cut in (slice(-1), slice(1, None)))
    after_sound = _share((before * now).sum(0), before.sum(0))
    after_silence = _share(((1 - before) * now).sum(0), (1 - before).sum(0))
    before, now = (np.concatenate([p[cut] for p in test]) for cut in (slice(-1), slice(1, None)))
    return _nats(np.where(before > 0, after_sound, after_silence), now)


def _share(hits: np.ndarray, of: np.ndarray | int) -> np.ndarray:
    """Each with half a hit and half a miss more, so that nothing is impossible."""
    return (np.asarray(hits, float) + 0.5) / (np.asarray(of, float) + 1)


def _nats(probability: np.ndarray, frames: np.ndarray) -> float:
    right = np.where(frames > 0, probability, 1 - probability)
    return float(-np.log(right).sum(axis=1).mean())
