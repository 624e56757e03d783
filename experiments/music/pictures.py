"""Pieces as a picture: time to the right, keys upwards."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.music.pieces import LOWEST, Piece
from experiments.running.figures import new_figure, save_figure

_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


def draw_pieces(pieces: Mapping[str, Piece], path: str | os.PathLike[str]) -> None:
    """A panel for each piece, under its title, all over the same keys."""
    used = np.flatnonzero(sum(piece.sum(axis=0) for piece in pieces.values()))
    low, high = (used[0] - 2, used[-1] + 2) if len(used) else (36, 60)
    figure = new_figure(9.0, 2.6 * len(pieces), dpi=130)
    panels = figure.subplots(len(pieces), 1, squeeze=False)[:, 0]
    for axes, (title, piece) in zip(panels, pieces.items(), strict=True):
        _draw(axes, title, piece, int(low), int(high))
    save_figure(figure, path)


def _draw(axes: Any, title: str, piece: Piece, low: int, high: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.imshow(
        piece.T, cmap="Blues", vmin=0, vmax=1.2, aspect="auto", origin="lower",
        interpolation="nearest",
    )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylim(low - 0.5, high + 0.5)
    octaves = [key for key in range(low, high + 1) if (key + LOWEST) % 12 == 0]
    axes.set_yticks(octaves, [_name(key) for key in octaves])
    axes.grid(axis="y", alpha=0.3)
    axes.set(xlabel="frame", title=title)
    axes.spines[["top", "right"]].set_visible(False)


def _name(key: int) -> str:
    note = key + LOWEST
    return f"{_NAMES[note % 12]}{note // 12 - 1}"
