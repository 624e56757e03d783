"""How well scores tell faults from what is normal, and the alarm that is made of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def smoothed(scores: np.ndarray, width: int) -> np.ndarray:
    """The mean of each score and those of the steps before it, ``width`` in all [T]; reads no step
    ahead."""
    # Not as differences of running sums: one great score would round those behind it away.
    windows = sliding_window_view(np.concatenate([np.zeros(width), scores]), width)[1:]
    return windows.sum(axis=1) / np.minimum(np.arange(1, len(scores) + 1), width)


def area_under_roc(scores: np.ndarray, is_fault: np.ndarray) -> float:
    """How often a step of a fault has a greater score than a normal one; equal ones count half."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    faults = int(is_fault.sum())
    above = ranks[is_fault].sum() - faults * (faults + 1) / 2
    return float(above / (faults * (len(scores) - faults)))


def precision_and_recall(
    scores: np.ndarray, is_fault: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of an alarm from each score on: precision, recall, and the score, from the greatest down."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(is_fault[order])
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    return hits[ends] / (ends + 1), hits[ends] / hits[-1], scores[order][ends]


def average_precision(scores: np.ndarray, is_fault: np.ndarray) -> float:
    """The mean of the precision over the recall, as a sum of steps: that of scikit-learn."""
    precision, recall, _ = precision_and_recall(scores, is_fault)
    return float(np.sum(np.diff(recall, prepend=0) * precision))


def best_alarm(scores: np.ndarray, is_fault: np.ndarray) -> float:
    """The score from which on an alarm has the highest F1."""
    precision, recall, levels = precision_and_recall(scores, is_fault)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(levels[np.argmax(f1)])


def f1_of(alarm: np.ndarray, is_fault: np.ndarray) -> float:
    """The harmonic mean of precision and recall; 0 where no fault is found."""
    found = np.sum(alarm & is_fault)
    return float(2 * found / max(1, alarm.sum() + is_fault.sum()))


def faults_found(alarms: Sequence[np.ndarray], faults: Sequence[np.ndarray], kind: int) -> float:
    """The share of the faults of a kind during which there was an alarm."""
    found = []
    for alarm, fault in zip(alarms, faults, strict=True):
        inside = np.flatnonzero(np.diff(np.concatenate([[0], fault == kind, [0]]).astype(int)))
        found += [alarm[begin:end].any() for begin, end in inside.reshape(-1, 2)]
    return float(np.mean(found))
