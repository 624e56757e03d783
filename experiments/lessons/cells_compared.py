"""What the lessons share that set many cells the same task: training, rows, and curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import rnnjax
from experiments.lessons.figures import panels, save, tidy
from experiments.lessons.lesson import Measured, Results
from experiments.lessons.synthetic import Task, kept, make_trainer, stretch_steps

# Told apart by the colour-blind: colours of Okabe and Ito, and a mark for each.
STYLES = (
    ("#0072b2", "o"),
    ("#d55e00", "s"),
    ("#009e73", "^"),
    ("#cc79a7", "D"),
    ("#e69f00", "v"),
    ("#56b4e9", "P"),
    ("#000000", "X"),
    ("#0072b2", "<"),
    ("#d55e00", ">"),
    ("#009e73", "*"),
    ("#cc79a7", "p"),
)


class Contest(NamedTuple):
    """One task for all networks.

    Attributes:
        tasks: what each network learns, by its name.
        rates: the learning rate of each, by its name: that of Adam at the start, which falls to
            nothing along a cosine.
        steps: of training.
        clip_norm: gradients are scaled down to it.
        test: ``(name, params, seed) -> figures`` of a trained network on fresh examples: numbers,
            which the row gets, and arrays, for pictures.
    """

    tasks: Mapping[str, Task]
    rates: Mapping[str, float]
    steps: int
    clip_norm: float
    test: Callable[[str, Any, int], Mapping[str, Any]]


def mlp(size: int) -> rnnjax.Layer:
    """What stands behind a cell so that it need not bend lines itself: a gated map of a step."""
    return rnnjax.residual(rnnjax.rms_norm(rnnjax.gated(None, size, hidden_size=2 * size)))


def run_contest(contest: Contest, seeds: int, results: Results) -> dict[str, list[dict]]:
    """Train every network with every seed, note a row of each, and give all that was found.

    A row has those figures that are single numbers, and how many weights there are.
    """
    found = {}
    for name, task in contest.tasks.items():
        ends = _trained(contest, name, task, seeds, results.folder)
        found[name] = ends
        for seed, end in enumerate(ends):
            figures = {key: float(value) for key, value in end.items() if np.ndim(value) == 0}
            measured = Measured(figures, steps=contest.steps)
            results.row(name, "rnnjax", seed, lambda: measured)  # noqa: B023
    return found


def _trained(contest: Contest, name: str, task: Task, seeds: int, folder: Path) -> list[dict]:
    """What was found with each seed; those that are not on disk are trained side by side."""
    paths = [folder / f"{name}-{seed}.npz".replace(" ", "-") for seed in range(seeds)]
    missing = [seed for seed, path in enumerate(paths) if not path.exists()]
    new = dict(zip(missing, _train(contest, name, task, missing), strict=True)) if missing else {}
    return [kept(path, lambda: new[seed]) for seed, path in enumerate(paths)]  # noqa: B023


def _train(contest: Contest, name: str, task: Task, seeds: list[int]) -> list[dict]:
    def optimizer(rate: Any) -> optax.GradientTransformation:
        falling = optax.cosine_decay_schedule(rate, contest.steps)
        return optax.chain(optax.clip_by_global_norm(contest.clip_norm), optax.adam(falling))

    train = make_trainer(task, optimizer, every=stretch_steps(contest.steps, 50))
    trained = train(seeds, [contest.rates[name]] * len(seeds), contest.steps)
    ends = []
    for index, seed in enumerate(seeds):
        params = trained.member(index)
        weights = sum(leaf.size for leaf in jax.tree.leaves(params))
        curve = {"steps": trained.steps, "curve": trained.curves["loss"][index]}
        ends.append({**contest.test(name, params, 1_000_000 + seed), "weights": weights, **curve})
    return ends


def draw_curves(
    found: Mapping[str, list[dict]],
    path: Path,
    across: tuple[str, str],
    up: tuple[str, str],
    *,
    title: str,
    references: Mapping[str, float] | None = None,
    log: bool = False,
) -> None:
    """One line a network, the mean over its seeds, and the range of them in a lighter shade.

    Each line has marks of its own, at other places than the rest, so that equal lines are all seen.

    Args:
        found: what `run_contest` gave.
        path: of the .png.
        across: what the horizontal axis shows: its key in ``found``, its label.
        up: the same of the vertical one.
        title: above.
        references: dotted lines, by their labels.
        log: that the vertical axis is logarithmic.
    """
    figure, grid = panels(1, 1, width=8.0, height=4.2)
    axes = grid[0, 0]
    for number, (name, ends) in enumerate(found.items()):
        colour, mark = STYLES[number]
        values = np.stack([end[up[0]] for end in ends])
        steps = ends[0][across[0]]
        apart = max(len(found), len(steps) // 8)
        marks = {
            "marker": mark,
            "markersize": 5,
            "markevery": (number * apart // len(found), apart),
        }
        axes.plot(steps, values.mean(0), color=colour, linewidth=1.5, label=name, **marks)
        axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.12, lw=0)
    for label, value in (references or {}).items():
        axes.axhline(value, color="#777777", linestyle=(0, (1, 3)), linewidth=1.2, label=label)
    if log:
        axes.set_yscale("log")
    tidy(axes, title, across[1], up[1], legend=False)
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, path)
