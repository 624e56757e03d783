"""The two pictures of the guide, from calls of the library: a ragged batch, and memory over time.

Run:     python -m experiments.measurements.guide_pictures
Writes:  ragged_batch.png and memory_over_time.png, by default into experiments/pictures
Prints:  how far each sequence is from what it gives alone, and what the compiler set aside
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from experiments.measurements.remat import MEBIBYTE, parse_remat
from experiments.running.console import exit_code
from experiments.running.figures import new_figure, save_figure
from experiments.running.parsing import parse
from experiments.running.setting_checks import check_settings, each, whole
from rnnjax.benchmark import compiled_memory

TIME = 16
STYLES = {"never": "o-", "step": "s-", "sqrt": "^-", "None": "k--"}
NAMES = ("16 steps", "9 steps", "no steps", "a mask with holes", "segments from 1, 6 and 12")


@dataclass(frozen=True)
class Settings:
    """Draw the two pictures of the guide: a ragged batch, and memory over time."""

    out: Path = Path("experiments/pictures")
    """The folder for both, by default where the guide looks for them."""
    times: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
    """Steps of the sequences."""
    batch: int = 16
    """Sequences side by side."""
    size: int = 128
    """Inputs and hidden units."""


def ragged_batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which steps of five sequences are real, and which start a segment; [5, T] each."""
    steps = np.arange(TIME)
    mask = steps < np.array([16, 9, 0, 16, 16])[:, None]
    mask[3] = ~np.isin(steps, (3, 4, 5, 10, 13, 14, 15))
    resets = np.zeros_like(mask)
    resets[4, [5, 11]] = True
    return mask, resets, np.where(mask, 1.0, np.nan)


def run_batch() -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """One unit's output, the mask and resets, and the largest distance from a run alone."""
    mask, resets, real_or_nan = ragged_batch()
    cell = rnnjax.gru(8)
    params = cell.init(jax.random.key(0), 3)
    xs = jax.random.normal(jax.random.key(1), (*mask.shape, 3)) * real_or_nan[..., None]
    _, ys = rnnjax.unroll(cell, params, xs, mask=mask, resets=resets)
    distance = 0.0
    for row, real in enumerate(mask):
        starts = [0, *np.flatnonzero(resets[row]), TIME]
        for begin, end in itertools.pairwise(starts):
            kept = np.flatnonzero(real[begin:end]) + begin
            if len(kept):
                _, alone = rnnjax.unroll(cell, params, xs[row, kept])
                distance = max(distance, float(jnp.max(jnp.abs(alone - ys[row, kept]))))
    if np.any(np.asarray(ys)[~mask]):
        raise RuntimeError("an output at a step that is not real is not 0")
    return np.asarray(ys)[..., 0], mask, resets, distance


def draw_batch(ys: np.ndarray, mask: np.ndarray, resets: np.ndarray, path: Path) -> None:
    """What goes in and what comes out, sequence by sequence."""
    figure = new_figure(9.0, 2.7)
    given, made = figure.subplots(1, 2, sharey=True)
    given.imshow(np.where(mask, 0.35, 0.0), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    size = np.abs(ys).max()
    made.imshow(np.where(mask, ys, np.nan), cmap="RdBu_r", vmin=-size, vmax=size, aspect="auto")
    for row, step in zip(*np.nonzero(~mask), strict=True):
        given.text(step, row, "NaN", ha="center", va="center", fontsize=6, color="0.55")
        made.text(step, row, "0", ha="center", va="center", fontsize=7, color="0.45")
    for axes in (given, made):
        for row, step in zip(*np.nonzero(resets), strict=True):
            axes.plot([step - 0.5] * 2, [row - 0.5, row + 0.5], color="black", linewidth=2)
        axes.set_xticks(np.arange(0, TIME, 5), np.arange(1, TIME + 1, 5))
        axes.set_xlabel("step")
        axes.tick_params(length=0)
    given.set_yticks(range(len(NAMES)), NAMES)
    given.set_title("what goes in: blue is read, black starts a segment", fontsize=10)
    made.set_title("what comes out: one unit of a GRU", fontsize=10)
    save_figure(figure, path)


def set_aside(settings: Settings, steps: int, remat: str) -> float:
    """MiB that the compiler sets aside for values and gradients of an LSTM."""
    cell, shape = rnnjax.lstm(settings.size), jax.ShapeDtypeStruct
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), settings.size))
    xs = shape((settings.batch, steps, settings.size), jnp.float32)

    def loss(params: Any, xs: Any) -> Any:
        return jnp.sum(jnp.square(rnnjax.unroll(cell, params, xs, remat=parse_remat(remat))[1]))

    memory = compiled_memory(jax.jit(jax.value_and_grad(loss, (0, 1))).lower(params, xs).compile())
    if memory is None:
        raise RuntimeError(
            f"the compiler for {jax.default_backend()} does not say what it sets aside"
        )
    return memory.temporary / MEBIBYTE


def draw_memory(settings: Settings, rows: dict[str, list[float]], path: Path) -> None:
    """One line for each value of ``remat``, both axes in powers."""
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    for remat, found in rows.items():
        label = "by default" if remat == "None" else f'remat="{remat}"'
        axes.loglog(settings.times, found, STYLES[remat], markersize=4, label=label)
    axes.set_xticks(settings.times, [f"{steps:,}" for steps in settings.times])
    axes.minorticks_off()
    axes.set_ylim(bottom=3)
    axes.set_yticks([10, 100, 1000], ["10", "100", "1,000"])
    axes.set_xlabel("steps T")
    axes.set_ylabel("MiB set aside")
    axes.set_title(
        f"A training step of an LSTM, {settings.size} units, {settings.batch} sequences",
        fontsize=10,
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def draw(settings: Settings) -> None:
    """Draw both pictures, and print the numbers in them."""
    check_settings(settings, **dict.fromkeys(("batch", "size"), whole(1)), times=each(whole(1)))
    ys, mask, resets, distance = run_batch()
    print(f"largest distance from the sequence or segment alone: {distance:.0e}")
    draw_batch(ys, mask, resets, settings.out / "ragged_batch.png")
    rows: dict[str, list[float]] = {}
    for remat in STYLES:
        rows[remat] = [set_aside(settings, steps, remat) for steps in settings.times]
        print(f"{remat:6}", *(f"{found:8.1f}" for found in rows[remat]), flush=True)
    draw_memory(settings, rows, settings.out / "memory_over_time.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    settings = parse(Settings, "python -m experiments.measurements.guide_pictures", arguments)
    return exit_code(lambda: draw(settings))


if __name__ == "__main__":
    sys.exit(main())
