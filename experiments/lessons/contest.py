"""One system trained by several libraries: same texts, same order, same parameters at the start."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from numpy.typing import NDArray

from experiments.lessons.lesson import Measured, Results
from experiments.lessons.recipes import Corpus, Recipe, Totals, draw, in_order, steps_of
from experiments.running.figures import new_figure
from experiments.running.packages import NotInstalled
from rnnjax.models import ClassifierParams

# Turns of an epoch in which the libraries alternate: what else the machine does slows them alike.
TURNS = 8
REPORT_EVERY = 200  # steps between two lines of the log, as in the lesson


class Contestant(Protocol):
    """A library that trains a recipe's model. It times nothing itself but its compiling."""

    @property
    def compile_seconds(self) -> float:
        """All that was spent on compiling training steps so far."""
        ...

    def begin(self, params: ClassifierParams, steps: int, seed: int) -> None:
        """Starts anew from these parameters, for a training of so many steps."""
        ...

    def prepare(self, batches: Sequence[NDArray[np.int64]]) -> None:
        """Compiles ahead what it can for these batches."""
        ...

    def advance(self, batches: Sequence[NDArray[np.int64]]) -> Totals:
        """Trains on these batches of the training texts; the sums over them."""
        ...

    def accuracy(self, batches: Sequence[NDArray[np.int64]]) -> float:
        """The share of right answers on these batches of the test texts."""
        ...


class _Entry:
    """A contestant with its records of one training."""

    def __init__(self, library: str, contestant: Contestant) -> None:
        self.library = library
        self.contestant = contestant
        self.compiled_before = contestant.compile_seconds
        self.seconds: list[float] = []
        self.accuracies: list[float] = []
        self.losses = self.hits = 0.0
        self.log: list[str] = []


def compare(
    results: Results,
    system: str,
    recipe: Recipe,
    corpus: Corpus,
    seeds: int,
    *,
    peers: bool = True,
) -> None:
    """Rows of a system for each seed: rnnjax's, and those of the library of the recipe.

    Both go through the same batches in turns; compiling is timed apart. A row has the accuracy on
    the test texts after the last epoch ("best test accuracy": after the best one, where there are
    several), and of the last training epoch the accuracy and the loss while it went on.
    """
    from experiments.lessons.ours import Ours

    makers: dict[str, Callable[[], Contestant]] = {"rnnjax": lambda: Ours(recipe, corpus)}
    if peers:
        makers[_PEERS[recipe.form]] = lambda: _peer(recipe, corpus)
    made: dict[str, Contestant] = {}
    for seed in range(seeds):
        left = [name for name in makers if results.find(system, name, seed) is None]
        for library in left:
            with contextlib.suppress(NotInstalled):
                made[library] = made[library] if library in made else makers[library]()
        entries = {name: _Entry(name, made[name]) for name in left if name in made}
        if entries:
            _train(list(entries.values()), recipe, corpus, seed)
        for library in left:
            if library not in entries:
                results.missing(system, library, seed)
                continue
            _write_log(results.folder, system, entries[library], seed)
            results.add(system, library, seed, _measured(entries[library], recipe, corpus))


_PEERS = {"keras": "Keras", "pytorch": "PyTorch"}


def _peer(recipe: Recipe, corpus: Corpus) -> Contestant:
    if recipe.form == "keras":
        from experiments.lessons.peers_keras import Keras

        return Keras(recipe, corpus)
    from experiments.lessons.peers_torch import Torch

    return Torch(recipe, corpus)


def _train(entries: Sequence[_Entry], recipe: Recipe, corpus: Corpus, seed: int) -> None:
    params = draw(recipe, corpus.vocab_size, jax.random.key(seed))
    per_epoch = -(-len(corpus.train) // recipe.batch_size)
    test = in_order(np.arange(len(corpus.test)), recipe.batch_size)
    for entry in entries:
        entry.contestant.begin(params, per_epoch * recipe.epochs, seed)
    for epoch in range(recipe.epochs):
        batches = steps_of(corpus.train, recipe, seed, epoch)
        for entry in entries:
            entry.contestant.prepare(batches)
            entry.seconds.append(0.0)
            entry.losses = entry.hits = 0.0
        # A turn ends where the log has a line, so that lines need no further waiting.
        lines = max(-(-per_epoch // TURNS) // REPORT_EVERY, 1) * REPORT_EVERY
        for start in range(0, per_epoch, lines):
            for entry in entries:
                _turn(entry, batches[start : start + lines], start, recipe)
        for entry in entries:
            entry.accuracies.append(entry.contestant.accuracy(test))


def _turn(entry: _Entry, batches: Sequence[NDArray], start: int, recipe: Recipe) -> None:
    for first in range(0, len(batches), REPORT_EVERY):
        part = batches[first : first + REPORT_EVERY]
        compiled, began = entry.contestant.compile_seconds, time.perf_counter()
        totals = entry.contestant.advance(part)
        spent = time.perf_counter() - began
        entry.seconds[-1] += spent - (entry.contestant.compile_seconds - compiled)
        entry.losses += totals.losses
        entry.hits += totals.hits
        if len(part) == REPORT_EVERY:
            count = (start + first + REPORT_EVERY) * recipe.batch_size
            entry.log.append(f"{count}: acc={entry.hits / count}")


def _measured(entry: _Entry, recipe: Recipe, corpus: Corpus) -> Measured:
    count = len(corpus.train)
    steps = -(-count // recipe.batch_size)
    figures = {
        "test accuracy": entry.accuracies[-1],
        "train accuracy": entry.hits / count,
        "train loss": entry.losses / steps,
    }
    if recipe.form == "pytorch":
        # The lesson's function returns the sum of the mean losses of the batches over the texts.
        figures["returned loss"] = entry.losses / count
    if recipe.epochs > 1:
        figures["best test accuracy"] = max(entry.accuracies)
    compiled = entry.contestant.compile_seconds - entry.compiled_before
    return Measured(
        figures,
        epoch_seconds=float(np.mean(entry.seconds)),
        steps=steps * recipe.epochs,
        timings={"compile s": compiled} if compiled else {},
        note=corpus.note,
    )


def log_path(folder: Path, system: str, library: str, seed: int) -> Path:
    """Where the log of a training is."""
    name = "".join(c if c.isalnum() else "-" for c in f"{system} {library} {seed}".lower())
    return folder / f"{name}.log"


def _write_log(folder: Path, system: str, entry: _Entry, seed: int) -> None:
    text = "".join(f"{line}\n" for line in entry.log)
    log_path(folder, system, entry.library, seed).write_text(text, "utf-8")
    print(f"{system}, {entry.library}, seed {seed}", text, sep="\n", end="", flush=True)


def draw_logs(results: Results, systems: Sequence[str], png_path: Path) -> None:
    """Draws the running accuracy of the logs of these systems, a line for each training."""
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
    for row in results.rows:
        path = log_path(results.folder, row.system, row.library, row.seed or 0)
        if row.system not in systems or not path.exists() or not path.stat().st_size:
            continue
        pairs = [line.split(": acc=") for line in path.read_text("utf-8").splitlines()]
        axes.plot(
            [int(count) for count, _ in pairs],
            [float(share) for _, share in pairs],
            color=_COLORS[systems.index(row.system) % len(_COLORS)],
            linestyle="-" if row.library == "rnnjax" else ":",
            label=None if row.seed else f"{row.system}, {row.library}",
        )
    if not axes.lines:
        return
    axes.set(xlabel="training texts", ylabel="accuracy so far")
    figure.legend(frameon=False, loc="outside upper center", ncols=2, fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(png_path)


_COLORS = ("#1f5fa8", "#e07b00", "#2b7a4b", "#8a3a8a")
