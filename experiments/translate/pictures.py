"""Where the network looked while it wrote, as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.running.figures import AS_IT_STANDS, new_figure, save_figure

_MOST = 60  # tokens of each side that are drawn: more would be no picture to look at
_LETTERS = 24  # of a token
_CELL, _LETTER = 0.26, 0.09  # inches


class Alignment(NamedTuple):
    """One sequence: its tokens, what was written (the stop included), and weights [T, S]."""

    source: Sequence[str]
    written: Sequence[str]
    weights: np.ndarray


def draw_alignments(alignments: Sequence[Alignment], path: str | os.PathLike[str]) -> None:
    """A panel for each: a row for each token written, dark where it was looked at.

    Of longer ones the first 60 tokens are drawn, and of a token the first letters.
    """
    alignments = [
        Alignment(_shown(a.source), _shown(a.written), a.weights[:_MOST, :_MOST])
        for a in alignments
    ]
    # What stands beside the cells and above them needs room, too.
    widths = [0.7 + _LETTER * _longest(a.written) + _CELL * len(a.source) for a in alignments]
    above = max(_LETTER * _longest(a.source) for a in alignments)
    height = 0.9 + above + _CELL * max(len(a.written) for a in alignments)
    figure = new_figure(1.0 + sum(widths), height, dpi=130)  # 1.0 for the colour bar
    grid = figure.subplots(1, len(alignments), squeeze=False, width_ratios=widths)
    images = [_draw(axes, one) for axes, one in zip(grid[0], alignments, strict=True)]
    # Without panchor the colour bar would move the panels to its own middle.
    figure.colorbar(images[0], ax=list(grid[0]), label="weight", shrink=0.6, panchor=False)
    save_figure(figure, path)


def _shown(tokens: Sequence[str]) -> list[str]:
    """The first tokens, and of long ones their beginnings."""
    return [t if len(t) <= _LETTERS else f"{t[: _LETTERS - 1]}\u2026" for t in tokens[:_MOST]]


def _longest(tokens: Sequence[str]) -> int:
    return max(map(len, tokens), default=0)


def _draw(axes: Any, alignment: Alignment) -> Any:
    image = axes.imshow(alignment.weights, cmap="Blues", vmin=0.0, vmax=1.0, aspect="equal")
    turned = 90 if _longest(alignment.source) > 2 else 0
    sources = range(len(alignment.source))
    axes.set_xticks(sources, alignment.source, rotation=turned, **AS_IT_STANDS)
    axes.set_yticks(range(len(alignment.written)), alignment.written, **AS_IT_STANDS)
    axes.set_anchor("N")  # texts begin at one height, however long they are
    axes.set(xlabel="source", ylabel="written")
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image
