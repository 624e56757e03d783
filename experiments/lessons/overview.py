"""How much longer an epoch takes with the original library, system by system, as bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.running.figures import new_figure, save_figure


def draw_ratios(lines: Sequence[dict[str, Any]], png_path: Path) -> bool:
    """Draws a bar for each line that was compared; whether there was one.

    Args:
        lines: as `experiments.lessons.tables.summarize` gives them.
        png_path: the picture to write.
    """
    from matplotlib.ticker import LogFormatter

    compared = [line for line in lines if line["ratio"] is not None]
    if not compared:
        return False
    figure = new_figure(7.2, 0.9 + 0.36 * len(compared))
    axes = figure.add_subplot()
    names = [f"{line['system']} ({line['library']})" for line in compared]
    ratios = [line["ratio"] for line in compared]
    # From 1, where neither library is the faster one, as a logarithm has no zero to begin at.
    widths = [ratio - 1 for ratio in ratios]
    bars = axes.barh(names, widths, left=1, color="#1f5fa8", height=0.6)
    axes.bar_label(bars, [f"{ratio:.1f}" for ratio in ratios], padding=3, fontsize="small")
    axes.axvline(1, color="#2b2b2b", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("epoch seconds, as a multiple of those of rnnjax", loc="right")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(LogFormatter())  # 2 and 3 where they fit, and not powers of ten
    axes.set_xlim(min(0.8, 0.8 * min(ratios)), 1.6 * max(*ratios, 2))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, png_path)
    return True
