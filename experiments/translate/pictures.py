"""Where the network looked while it wrote, as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.running.figures import AS_IT_STANDS, new_figure, save_figure

_MOST = 60  # tokens of each side that are drawn: more would be no picture to look at


class Alignment(NamedTuple):
    """One sequence: its tokens, what was written (the stop included), and weights [T, S]."""

    source: Sequence[str]
    written: Sequence[str]
    weights: np.ndarray


def draw_alignments(alignments: Sequence[Alignment], path: str | os.PathLike[str]) -> None:
    """A panel for each: a row for each token written, dark where it was looked at.

    Of longer ones the first 60 tokens are drawn.
    """
    alignments = [Alignment(s[:_MOST], w[:_MOST], a[:_MOST, :_MOST]) for s, w, a in alignments]
    width = sum(1.4 + 0.26 * len(a.source) for a in alignments)
    height = 1.6 + 0.26 * max(len(a.written) for a in alignments)
    figure = new_figure(width, height, dpi=130)
    ratios = [1.4 + 0.26 * len(a.source) for a in alignments]
    grid = figure.subplots(1, len(alignments), squeeze=False, width_ratios=ratios)
    images = [_draw(axes, one) for axes, one in zip(grid[0], alignments, strict=True)]
    figure.colorbar(images[0], ax=list(grid[0]), label="weight", shrink=0.6)
    save_figure(figure, path)


def _draw(axes: Any, alignment: Alignment) -> Any:
    image = axes.imshow(alignment.weights, cmap="Blues", vmin=0.0, vmax=1.0, aspect="equal")
    turned = 90 if max(map(len, alignment.source)) > 2 else 0
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
