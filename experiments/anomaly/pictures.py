"""A series, how much each step surprises, and where the faults are."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

import numpy as np

from experiments.anomaly.series import Watched
from experiments.running.figures import new_figure, save_figure

MOST = 1200  # steps that can be told apart


def draw_surprise(
    watched: Watched,
    scores: np.ndarray,
    alarm: float,
    kinds: Sequence[str],
    path: str | os.PathLike[str],
) -> None:
    """The steps around the first fault, or the first ones: values above, surprise below."""
    places = np.flatnonzero(watched.fault)
    begin = max(0, int(places[0]) - MOST // 2) if len(places) else 0
    begin = 0 if len(scores) <= MOST else begin
    steps = np.arange(begin, min(begin + MOST, len(scores)))
    figure = new_figure(9, 4, dpi=110)
    above, below = figure.subplots(2, 1, sharex=True)
    told = watched.begin + steps
    above.plot(told, watched.values[steps], linewidth=0.9)
    below.plot(told, scores[steps], color="#2b2b2b", linewidth=0.9)
    below.axhline(alarm, color="#c0392b", linestyle="--", linewidth=0.9)
    below.text(1.0, alarm, " alarm", fontsize=8, color="#c0392b", va="center",
               transform=below.get_yaxis_transform())  # fmt: skip
    edges = np.flatnonzero(np.diff(watched.fault[steps], prepend=0, append=0))
    for first, end in itertools.pairwise(edges):
        kind = int(watched.fault[steps[first]])
        if kind:
            for axes in (above, below):
                axes.axvspan(told[first] - 0.5, told[end - 1] + 0.5, color="#e07b00", alpha=0.25)
            above.text(told[first], 1.02, kinds[kind - 1], fontsize=8,
                       transform=above.get_xaxis_transform())  # fmt: skip
    above.set(ylabel="value")
    below.set(ylabel="surprise, nats", xlabel="step")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
