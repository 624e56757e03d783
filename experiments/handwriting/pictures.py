"""Strokes as SVG and as pictures, and the path of the window beside what was written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from experiments.handwriting.writing import as_lines
from experiments.running.figures import AS_IT_STANDS, new_figure, save_figure

_INK = "#1f3a93"
_MOST = 60  # characters whose window is drawn, and half those of a title: more is none to look at


def svg(values: np.ndarray, text: str) -> str:
    """Values [T, 4] as a picture that scales: one path a stroke, under the text as its title."""
    lines = as_lines(values)
    points = np.concatenate(lines or [np.zeros((1, 2))])
    low, high = points.min(axis=0) - 2, points.max(axis=0) + 2
    width, height = high - low
    paths = []
    for line in lines:
        # In SVG y grows downwards.
        at = " L".join(f"{x - low[0]:.2f} {high[1] - y:.2f}" for x, y in line)
        paths.append(f'<path d="M{at}"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.2f} {height:.2f}" '
        f'width="{width * 8:.0f}" height="{height * 8:.0f}">\n<title>{escape(text)}</title>\n'
        f'<g fill="none" stroke="{_INK}" stroke-width="0.35" stroke-linecap="round" '
        'stroke-linejoin="round">\n' + "\n".join(paths) + "\n</g>\n</svg>\n"
    )


def draw_lines(
    written: Mapping[str, np.ndarray],
    path: str | os.PathLike[str],
    window: tuple[str, np.ndarray] | None = None,
) -> None:
    """A line for each, under its title, all of one scale; below them the path of a window, over the
    first 60 characters of a text.

    Args:
        written: values [T, 4] by their titles.
        path: of the PNG.
        window: a text, and how much of each of its characters was read before each point [T, S].
    """
    # A row of the window is as high as the letter beside it.
    rows = min(len(window[0]), _MOST) if window else 0
    heights = [1.0] * len(written) + ([1.0 + 0.14 * rows] if window else [])
    figure = new_figure(9.0, 1.05 * sum(heights), dpi=110)
    panels = figure.subplots(
        len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    drawn = [as_lines(values) for values in written.values()]
    widest = max((np.ptp(np.concatenate(lines)[:, 0]) for lines in drawn if lines), default=1.0)
    for axes, title, lines in zip(panels, written, drawn, strict=False):
        _draw(axes, title, lines, float(widest))
    if window:
        _draw_window(panels[-1], *window)
    save_figure(figure, path)


def _draw(axes: Any, title: str, lines: Sequence[np.ndarray], widest: float) -> None:
    left = min((line[:, 0].min() for line in lines), default=0.0)
    for line in lines:
        dot = "." if not np.ptp(line, axis=0).any() else None  # a line of no length is not drawn
        axes.plot(
            line[:, 0] - left, line[:, 1], color=_INK, linewidth=1.1, marker=dot, markersize=2.5
        )
    axes.set_xlim(-1, widest + 1)
    axes.set_aspect("equal", anchor="W")  # under its title
    title = title if len(title) <= 2 * _MOST else f"{title[: 2 * _MOST]} ..."
    axes.set_title(title, loc="left", fontsize=8, color="0.4", **AS_IT_STANDS)
    axes.axis("off")


def _draw_window(axes: Any, text: str, weights: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    names = [*text.replace(" ", "_"), "end"]
    if len(text) > _MOST:
        names, weights = names[:_MOST], weights[:, :_MOST]
    axes.imshow(weights.T, cmap="Blues", aspect="auto", interpolation="nearest")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_yticks(range(len(names)), names, fontsize=8, **AS_IT_STANDS)
    axes.set(xlabel="point", title="what the window reads")
    axes.spines[["top", "right"]].set_visible(False)
