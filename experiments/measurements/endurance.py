"""Does memory stay flat? One process that trains for a long time, and then predicts for as long.

Run:     python -m experiments.measurements.endurance

Growth is told apart by where it comes from: the steps themselves, which a long run has without
end, and the saves between them, at the end of each epoch and every 60 seconds.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from experiments import classify
from experiments.running.checkpoints import Saver, Snapshot, parse_every
from experiments.running.classifier_fitting import Fitted
from experiments.running.console import Progress, exit_code, print_table
from experiments.running.devices import find_devices
from experiments.running.figures import new_figure, save_figure
from experiments.running.generated_texts import generated_texts
from experiments.running.interrupts import Interrupted, Interrupts
from experiments.running.parsing import parse
from experiments.running.process_memory import MEGABYTE, Slope, median_slope, process_memory
from experiments.running.run_folder import RunFolder, environment, plain, usual_folder
from experiments.running.setting_checks import check_settings, share, whole
from experiments.running.text import Encoder, Splits, hold_out
from rnnjax.checkpoint import Checkpoints
from rnnjax.data import DataError, Dataset, Examples
from rnnjax.weights import save_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PROGRAM = "python -m experiments.measurements.endurance"
REPORT, PICTURE = "endurance.json", "memory.png"
# Bytes a step. One array of a single number, were it kept in every step, would take more; what the
# allocator and Python have not given back yet takes less.
FLAT = 250


@dataclass(frozen=True)
class Settings:
    """Watch the memory of a process that trains a classifier and then predicts."""

    steps: int = 10_000
    """Steps of training, rounded up to whole epochs."""
    predictions: int = 1_000
    """Calls of the trained classifier, with one text and with a few texts by turns."""
    samples: int = 100
    """How often memory is read, at equal distances, in training and again in predicting."""
    warm_up: float = 0.2
    """The share of each part that the slope leaves out: programs compile, the allocator fills."""
    texts: int = 20_000
    """Texts that are generated; a tenth is the test set, a tenth of the rest validates."""
    hidden_size: int = 16
    """Units of the GRU in each direction: small, as a leak does not depend on it."""
    batch_size: int = 16
    """Texts in a batch."""
    buckets: int = 4
    """Lengths that batches are padded to, which is how many shapes are compiled."""
    seed: int = 0
    """Decides the texts, the weights and the order."""
    out: Path | None = None
    """Folder of the run; by default runs/endurance-TIME."""


class Sample(NamedTuple):
    """What the process holds after a step."""

    step: int
    resident: int  # bytes
    programs: int  # compiled so far, JAX's own small ones among them
    arrays: int  # alive on all devices
    saves: int  # checkpoints saved so far


class Compilations:
    """Counts what is compiled in this process while it is entered, by whomever."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Compilations:
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._note)

    def _note(self, event: str, duration_secs: float, **_: Any) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"


class Watch:
    """Takes a sample after every so many steps of one part of the run."""

    def __init__(self, part: str, every: int, compilations: Compilations, run: RunFolder) -> None:
        self.part, self.samples, self.saves = part, list[Sample](), 0
        self._every = every
        self._compilations = compilations
        self._run = run

    def step(self, number: int) -> None:
        """Look, if it is time."""
        if number % self._every:
            return
        resident, programs = process_memory().resident, self._compilations.count
        sample = Sample(number, resident, programs, len(jax.live_arrays()), self.saves)
        self.samples.append(sample)
        self._run.write_timing({"kind": "memory", "part": self.part, **sample._asdict()})


class WatchedSaver(Saver):
    """A saver is asked after every training step, which is the moment to look."""

    def __init__(self, watch: Watch, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._watch = watch

    def is_due(self, step: int) -> bool:
        """Whether it is time to save within an epoch."""
        self._watch.step(step)
        return super().is_due(step)

    def save(self, snapshot: Snapshot) -> None:
        """Saves, and waits for it: what it leaves in memory is not to be counted to the steps."""
        super().save(snapshot)
        self.wait()
        self._watch.saves += 1


class Part(NamedTuple):
    """What the samples of one part of the run come to."""

    name: str
    steps: int
    first: Sample  # after the warm-up
    last: Sample
    slope: Slope  # bytes a step, between one save and the next

    @property
    def bytes_a_save(self) -> float | None:
        """What the steps do not explain of the growth."""
        saves, steps = self.last.saves - self.first.saves, self.last.step - self.first.step
        grown = self.last.resident - self.first.resident
        return (grown - self.slope.value * steps) / saves if saves else None

    @property
    def is_flat(self) -> bool:
        """Steps compile nothing more, and are known to leave less behind than the smallest leak."""
        return self.slope.high < FLAT and self.first.programs == self.last.programs

    def written(self) -> dict[str, Any]:
        """As JSON holds it."""
        names = ("first", "last", "slope")
        values = {name: getattr(self, name)._asdict() for name in names}
        more = {"bytes_a_save": self.bytes_a_save, "flat": self.is_flat}
        return {**self._asdict(), **values, **more}


def summed_up(name: str, samples: Sequence[Sample], warm_up: float) -> Part:
    """One part of the run, its beginning left out.

    Raises:
        DataError: fewer than three samples are left.
    """
    counted = samples[int(warm_up * len(samples)) :]
    if len(counted) < 3:
        raise DataError(f"--samples must leave 3 or more after the warm-up, got {len(counted)}")
    # Without the first sample after each save, when memory still comes and goes.
    settled = [now for last, now in pairwise(counted) if now.saves == last.saves]
    slope = median_slope(
        [sample.step for sample in settled],
        [sample.resident for sample in settled],
        groups=[sample.saves for sample in settled],
    )
    return Part(name, samples[-1].step, counted[0], counted[-1], slope)


def endure(settings: Settings, folder: Path) -> list[Part]:
    """Train, predict, and leave the report and the picture in the folder."""
    chosen = classifier_settings(settings, folder)
    dataset = generate(settings)
    parts = (*hold_out(dataset, chosen.validation, chosen.seed), dataset.test)
    encode, splits = classify.prepare(chosen, parts, 2)
    epochs = -(-settings.steps // len(splits.train))
    chosen = dataclasses.replace(chosen, epochs=epochs, patience=epochs)
    identity = classify.describe(chosen, dataset, parts)
    asked = plain(dataclasses.asdict(settings))
    config = {**identity, "endurance": asked, "environment": environment()}
    with Compilations() as compilations, RunFolder(folder, config) as run:
        training, predicting = (
            Watch(part, max(1, count // settings.samples), compilations, run)
            for part, count in (("training", settings.steps), ("predicting", settings.predictions))
        )
        train(chosen, encode, splits, identity, run, training)
        predict(settings, folder, parts[1].texts, predicting)
    found = [summed_up(w.part, w.samples, settings.warm_up) for w in (training, predicting)]
    report = json.dumps([part.written() for part in found], indent=2)
    (folder / REPORT).write_text(report + "\n", "utf-8")
    draw([training, predicting], found, folder / PICTURE)
    return found


def classifier_settings(settings: Settings, folder: Path) -> classify.Settings:
    """What experiments.classify would be asked for."""
    return classify.Settings(
        dataset="generated",
        hidden_size=settings.hidden_size,
        embedding_size=settings.hidden_size,
        batch_size=settings.batch_size,
        buckets=settings.buckets,
        seed=settings.seed,
        out=folder,
    )


def generate(settings: Settings) -> Dataset:
    """Texts of 3 to 60 words whose label is the toss of a coin."""
    names = ("heads", "tails")
    texts = list(generated_texts(settings.texts, settings.seed, words=2_000, longest=60))
    labels = np.random.default_rng(settings.seed).integers(2, size=len(texts)).tolist()
    test = settings.texts // 10
    train, held_out = (
        Examples(texts[part], labels[part], names) for part in (slice(test, None), slice(test))
    )
    return Dataset("generated", train, held_out, names, "", f"from seed {settings.seed}")


def train(
    chosen: classify.Settings,
    encode: Encoder,
    splits: Splits,
    identity: dict[str, Any],
    run: RunFolder,
    watch: Watch,
) -> Fitted:
    """Train as experiments.classify does, and leave what it needs to predict."""
    every = parse_every(chosen.checkpoint_every)
    with Checkpoints(run.checkpoints_path, keep=chosen.keep) as checkpoints:
        saver = WatchedSaver(watch, checkpoints, run, identity, every=every)
        devices = find_devices(chosen.devices)
        fitted = classify.fit_model(chosen, 2, encode, splits, run, saver, devices)
    encode.vocabulary.save(run.path / classify.VOCABULARY)
    save_weights(run.path / classify.WEIGHTS, fitted.params)
    return fitted


def predict(settings: Settings, folder: Path, texts: Sequence[str], watch: Watch) -> None:
    """Ask for the labels of one text and of up to 32 by turns, as a service would be asked."""
    rng, predictor = np.random.default_rng(settings.seed), classify.Predictor(folder)
    calls = range(1, settings.predictions + 1)
    with Interrupts() as interrupts, Progress(settings.predictions) as progress:
        for call in interrupts.watch(calls):
            count = 1 if call % 2 else int(rng.integers(2, 33))
            asked = [texts[int(i)] for i in rng.integers(len(texts), size=count)]
            predictor(asked)
            watch.step(call)
            words = sum(text.count(" ") + 1 for text in asked)
            progress.advance(lambda: {"resident MB": process_memory().resident / MEGABYTE}, words)


def print_parts(parts: Sequence[Part]) -> None:
    """A row for each part of the run."""
    print_table([_row(part) for part in parts])
    print(
        "KB/1,000: growth in 1,000 steps or calls between the saves, after the warm-up: the\n"
        "median over all pairs of samples, and its 95 % limits"
    )


def _row(part: Part) -> dict[str, str]:
    each = part.bytes_a_save
    return {
        "part": part.name,
        "steps": f"{part.steps:,}",
        "MB warm": f"{part.first.resident / MEGABYTE:.1f}",
        "MB at end": f"{part.last.resident / MEGABYTE:.1f}",
        "KB/1,000": _shown(part.slope),
        "KB a save": "" if each is None else f"{each / 1000:.0f}",
        "programs": f"{part.first.programs}, {part.last.programs}",
        "flat": "yes" if part.is_flat else "NO",
    }


def _shown(slope: Slope) -> str:
    return f"{slope.value:.0f} ({slope.low:.0f} to {slope.high:.0f})"


def draw(watches: Sequence[Watch], parts: Sequence[Part], path: Path) -> None:
    """Memory against steps, and where the saves were."""
    figure = new_figure(10.4, 4.0)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, watch, part in zip(panels, watches, parts, strict=True):
        _draw_part(axes, watch.samples, part)
    resident = [sample.resident / MEGABYTE for watch in watches for sample in watch.samples]
    # An axis from zero would hide growth; one that fits tightly would make growth of noise.
    panels[0].set_ylim(0.9 * min(resident), 1.05 * max(resident))
    panels[0].set_ylabel("resident memory, MB")
    save_figure(figure, path)


def _draw_part(axes: Axes, samples: Sequence[Sample], part: Part) -> None:
    from matplotlib.ticker import StrMethodFormatter

    steps, resident = [s.step for s in samples], [s.resident / MEGABYTE for s in samples]
    axes.axvspan(0, part.first.step, color="#2b2b2b", alpha=0.08, label="warm-up, left out")
    saved = [now.step for last, now in pairwise(samples) if now.saves > last.saves]
    for step in saved:
        axes.axvline(step, color="#e07b00", linewidth=0.8, alpha=0.5)
    if saved:
        axes.plot([], [], color="#e07b00", label="a checkpoint was saved")
    label = f"{_shown(part.slope)} KB in 1,000 {_unit(part)}s"
    axes.plot(steps, resident, color="#1f5fa8", marker=".", markersize=4, label=label)
    axes.set(title=part.name, xlabel=_unit(part))
    axes.set_xlim(0, part.steps)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", loc="lower right")


def _unit(part: Part) -> str:
    return "step" if part.name == "training" else "call"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code, 1 where memory is not flat."""
    settings = parse(Settings, PROGRAM, arguments)
    folder = settings.out or usual_folder("endurance")

    def run() -> int:
        check(settings)
        try:
            parts = endure(settings, folder)
        except Interrupted as stop:
            print(f"{stop}; what was measured is in {folder}")
            raise
        print_parts(parts)
        print(f"files in {folder}")
        return 0 if all(part.is_flat for part in parts) else 1

    return exit_code(run)


def check(settings: Settings) -> None:
    """Refuse what cannot be measured.

    Raises:
        DataError: naming the setting.
    """
    check_settings(
        settings,
        steps=whole(5),
        predictions=whole(5),
        samples=whole(5, 1_000),  # all pairs of them are compared
        warm_up=share(),
        texts=whole(20),
    )


if __name__ == "__main__":
    sys.exit(main())
