"""Learning curves, drawn from the JSON lines of a run and from nothing else.

Run:     python -m experiments.running.curves runs/NAME/metrics.jsonl runs/NAME/curves.png

A line of the file is a record; its "kind" says which other fields it has:

    step     step, epoch, loss, accuracy, grad_norm             of one training step; of one left
                                                                out as not finite: skipped
    epoch    epoch, step, train_loss, train_accuracy,           step: the last one of the epoch
             validation_loss, validation_accuracy,              skipped: steps so far
             validation_macro_f1, skipped
    test     epoch, loss, accuracy, macro_f1, chance_loss,      at the end; epoch: the one whose
             chance_accuracy, recall, f1                        weights were kept; recall and f1
                                                                in the order of the classes

Training is that of the weights of each step with dropout; validation and test are without it, in
some scripts of the running average of the weights, so validation may be better than training.
Chance is what one has who knows how often each class occurs in the training texts and reads none.

Two runs with the same settings leave the same bytes; times are in timings.jsonl beside it.
Steps and epochs count from 1. A field that is null or not there is a gap in its curve. Unknown
kinds and fields are passed over.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.running.console import exit_code
from experiments.running.figures import AS_IT_STANDS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]

# Blue for training, orange for validation: told apart by the colour-blind, and in grey.
TRAIN, VALIDATION, TEST, CHANCE = "#1f5fa8", "#e07b00", "#2b2b2b", "#8a8a8a"


def read_records(metrics_jsonl_path: str | os.PathLike[str]) -> list[Record]:
    """The records of a run, in order.

    A last line without its end is left out: the run was stopped while it wrote it.

    Args:
        metrics_jsonl_path: the file.

    Raises:
        ValueError: a line is no JSON object with a "kind"; says which.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        ...     _ = file.write('{"kind": "test", "loss": 0.5}\\n{"kind": "te')
        ...     file.flush()
        ...     read_records(file.name)
        [{'kind': 'test', 'loss': 0.5}]
    """
    *lines, _ = Path(metrics_jsonl_path).read_text("utf-8").split("\n")
    return [
        _record(line, f"{metrics_jsonl_path}, line {number}")
        for number, line in enumerate(lines, start=1)
    ]


def draw(
    metrics_jsonl_path: str | os.PathLike[str],
    png_path: str | os.PathLike[str],
    loss: str = "cross entropy, nats",
) -> None:
    """Draws loss and accuracy over the steps of a run, side by side.

    Args:
        metrics_jsonl_path: the records, see the top of this file. The folder names the run.
        png_path: the picture to write.
        loss: what the loss is, in words.

    Raises:
        ValueError: there is nothing to draw, or a line is broken.
    """
    path = Path(metrics_jsonl_path)
    records = read_records(path)
    names = [name for name in ("loss", "accuracy") if _has(records, name)]
    if not names:
        raise ValueError(f"{path} must have steps or epochs with a loss or an accuracy, got none")
    figure = new_figure(5.2 * len(names), 5.0)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _draw_panel(axes, records, name, loss if name == "loss" else name)
    figure.suptitle(path.resolve().parent.name, fontweight="bold", **AS_IT_STANDS)
    save_figure(figure, png_path)


def _draw_panel(axes: Axes, records: list[Record], name: str, unit: str) -> None:
    step: dict[str, Any] = {"color": TRAIN, "alpha": 0.3, "linewidth": 0.8}
    train: dict[str, Any] = {"color": TRAIN, "marker": "o", "markersize": 4}
    validation: dict[str, Any] = {"color": VALIDATION, "marker": "s", "markersize": 4}
    for kind, field, label, style in (
        ("step", name, "training, one step", step),
        ("epoch", f"train_{name}", "training, mean of the epoch", train),
        ("epoch", f"validation_{name}", "validation", validation),
    ):
        steps, values = _curve(records, kind, field)
        if steps:
            axes.plot(steps, values, label=label, **style)
    for record in records:
        if record["kind"] == "test" and record.get(name) is not None:
            _draw_outcome(axes, records, record, name)
    _tidy(axes, name, unit)


def _draw_outcome(axes: Axes, records: list[Record], test: Record, name: str) -> None:
    """Lines for the test and for chance, and the epoch whose weights were kept."""
    label = f"test, {test[name]:.4g}"
    axes.axhline(test[name], color=TEST, linestyle=":", linewidth=1.2, label=label)
    if (chance := test.get(f"chance_{name}")) is not None:
        label = f"chance, {chance:.4g}"
        axes.axhline(chance, color=CHANCE, linestyle="--", linewidth=1.0, label=label)
    for epoch in records:
        if epoch["kind"] == "epoch" and epoch["epoch"] == test.get("epoch"):
            step, value = epoch["step"], epoch.get(f"validation_{name}")
            axes.axvline(step, color=VALIDATION, linewidth=1.0, alpha=0.5)
            if value is not None:
                label = f"weights kept, epoch {epoch['epoch']}"
                axes.plot(
                    [step], [value], label=label, linestyle="none", marker="o", markersize=11,
                    markerfacecolor="none", markeredgecolor=VALIDATION, markeredgewidth=1.8,
                )  # fmt: skip


def _tidy(axes: Axes, name: str, unit: str) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.set(xlabel="training step", ylabel=unit)
    axes.set_title(name)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    # Below the panel, as no corner of it is free of curves in every run.
    axes.legend(
        frameon=False, fontsize="small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15)
    )


def _record(line: str, place: str) -> Record:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} must be JSON, got {error}") from error
    if not isinstance(record, dict) or "kind" not in record:
        raise ValueError(f'{place} must be an object with a "kind", got {line[:80]}')
    return record


def _curve(records: list[Record], kind: str, name: str) -> tuple[list[int], list[float]]:
    points = [
        (record["step"], float("nan") if record[name] is None else record[name])
        for record in records
        if record["kind"] == kind and name in record
    ]
    return [step for step, _ in points], [value for _, value in points]


def _has(records: list[Record], name: str) -> bool:
    curves = (("step", name), ("epoch", f"train_{name}"), ("epoch", f"validation_{name}"))
    return any(_curve(records, kind, field)[0] for kind, field in curves)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m experiments.running.curves METRICS.jsonl CURVES.png")
    sys.exit(exit_code(lambda: draw(sys.argv[1], sys.argv[2])))
