"""Returns over the steps, a line for each run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.running.figures import AS_IT_STANDS, new_figure, save_figure

_COLOURS = ("#1f5fa8", "#e07b00", "#2b8a3e", "#8a3ea8", "#2b2b2b", "#c2255c", "#0b7285", "#8a8a8a")

_LINES = ("-", "--", "-.", ":")
_SHORT = 30  # characters of a label of which two stand beside one another


def draw_returns(
    runs: Mapping[str, Mapping[str, Sequence[dict[str, Any]]]], path: str | os.PathLike[str]
) -> None:
    """A panel for each environment: the mean over the seeds, and from the least to the most.

    Args:
        runs: records of kind "updates", by a label, by an environment.
        path: the picture to write.
    """
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    figure = new_figure(5.6 * len(runs), 4.4, dpi=110)
    panels = figure.subplots(1, len(runs), squeeze=False)[0]
    for axes, (environment, labelled) in zip(panels, runs.items(), strict=True):
        for number, (label, records) in enumerate(labelled.items()):
            line = _LINES[number % len(_LINES)]
            _draw_run(axes, label, records, _COLOURS[number % len(_COLOURS)], line)
        axes.set(xlabel="steps of each seed", ylabel="mean return of an episode")
        axes.set_title(environment, **AS_IT_STANDS)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        legend = axes.legend(
            frameon=False, fontsize="small", ncols=2 if max(map(len, labelled)) <= _SHORT else 1,
            loc="upper center", bbox_to_anchor=(0.5, -0.13),
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)  # of folders' names
    save_figure(figure, path)


def _draw_run(
    axes: Any, label: str, records: Sequence[dict[str, Any]], colour: str, line: str
) -> None:
    steps = [record["steps"] for record in records]
    # null, where no episode ended, is NaN, a gap.
    returns = np.array([record["return"] for record in records], float)  # [records, S]
    dot = "o" if len(steps) == 1 else None  # which is no line
    style = {"color": colour, "linestyle": line, "linewidth": 1.6, "marker": dot}
    axes.plot(steps, returns.mean(axis=1), label=label, **style)
    if returns.shape[1] > 1:
        low, high = returns.min(axis=1), returns.max(axis=1)
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
