"""A million texts on one machine: how much memory do they take, and which stage takes the time?

Run:     python -m experiments.measurements.million_texts

The texts are generated to a file, and read from there twice: to learn the vocabulary, and to be
encoded. From then on they are ids in one array. Batches are made of them once for themselves,
and once more for a small LSTM that labels every text.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from experiments.running.console import Progress, exit_code, print_table
from experiments.running.generated_texts import generated_texts
from experiments.running.interrupts import Interrupted, Interrupts
from experiments.running.parsing import parse
from experiments.running.predicting import chunks
from experiments.running.prefetching import prefetched
from experiments.running.process_memory import MEGABYTE, process_memory
from experiments.running.run_folder import RunFolder, run_config, usual_folder
from experiments.running.setting_checks import check_settings, whole
from experiments.running.text import Encoder, fit_encoder
from rnnjax.data import BucketedBatches, Ragged, choose_boundaries, flatten

PROGRAM = "python -m experiments.measurements.million_texts"
REPORT = "million_texts.json"
AT_A_TIME = 1024  # texts that are strings at once

Chunk = TypeVar("Chunk", bound=Sized)


@dataclass(frozen=True)
class Settings:
    """Take many short texts through the data path and a small LSTM, in bounded memory."""

    texts: int = 1_000_000
    """Texts of 3 to 30 words, whose frequency follows the law of Zipf."""
    words: int = 50_000
    """How many different words there are."""
    vocabulary_size: int = 20_000
    """Most frequent words kept; the rest are read as one unknown word."""
    hidden_size: int = 32
    """Units of the LSTM, and size of a word vector."""
    batch_size: int = 256
    """Texts in a batch."""
    buckets: int = 4
    """Lengths that batches are padded to, which is how many shapes are compiled."""
    fixed_mb: int = 500
    """Megabytes that Python, JAX and the compiled programs may take at the peak."""
    text_bytes: int = 200
    """Bytes more that each text may take: its ids alone are 74 on average; as a list of Python they
    are some 200."""
    seed: int = 0
    """Decides the texts and the weights."""
    out: Path | None = None
    """Folder of the run; by default runs/million-texts-TIME."""

    @property
    def bound(self) -> int:
        """The bytes that the process may take."""
        return self.fixed_mb * MEGABYTE + self.text_bytes * self.texts


class Stage(NamedTuple):
    """What a stage took."""

    name: str
    texts: int
    seconds: float
    resident: int  # bytes, at its end
    peak: int  # bytes, of the process so far


class Stages:
    """Times the stages of the run, shows where it is, and stops it when asked to."""

    def __init__(self, interrupts: Interrupts, progress: Progress, run: RunFolder) -> None:
        self.done: list[Stage] = []
        self._interrupts, self._progress, self._run = interrupts, progress, run
        self._began, self._texts = time.perf_counter(), 0

    def watch(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """The chunks, counted."""
        for chunk in self._interrupts.watch(chunks):
            self._texts += len(chunk)
            self._progress.advance(_resident, len(chunk))
            yield chunk

    def end(self, name: str) -> None:
        """The stage of this name is over, and the next one begins."""
        seconds = time.perf_counter() - self._began
        stage = Stage(name, self._texts, seconds, *process_memory())
        self.done.append(stage)
        self._run.write_timing({"kind": "stage", **stage._asdict()})
        self._began, self._texts = time.perf_counter(), 0


def _resident() -> dict[str, float]:
    return {"resident MB": process_memory().resident / MEGABYTE}


def measure(settings: Settings, run: RunFolder) -> tuple[list[Stage], np.ndarray]:
    """The stages, and the label that every text was given."""
    pieces = -(-settings.texts // AT_A_TIME)
    batches = -(-settings.texts // settings.batch_size)
    total = 3 * pieces + 2 * batches
    with (
        Interrupts() as interrupts,
        Progress(total) as progress,
        tempfile.TemporaryDirectory(dir=run.path) as folder,
    ):
        stages = Stages(interrupts, progress, run)
        path = Path(folder, "texts.txt")
        write(path, settings, stages)
        encode, ragged = read(path, settings, stages)
        labels = label(settings, encode, ragged, stages)
    return stages.done, labels


def write(path: Path, settings: Settings, stages: Stages) -> None:
    """Generate the texts, one a line."""
    texts = generated_texts(settings.texts, settings.seed, words=settings.words)
    with path.open("w", encoding="utf-8") as file:
        for chunk in stages.watch(chunks(texts, AT_A_TIME)):
            file.write("\n".join(chunk) + "\n")
    stages.end("generate")


def read(path: Path, settings: Settings, stages: Stages) -> tuple[Encoder, Ragged]:
    """Learn the vocabulary, and encode every text; two passes over the file."""
    with path.open(encoding="utf-8") as lines:
        encode = fit_encoder(
            (line for chunk in stages.watch(chunks(lines, AT_A_TIME)) for line in chunk),
            vocabulary_size=settings.vocabulary_size,
            min_count=1,
            max_length=64,
        )
    stages.end("vocabulary")
    with path.open(encoding="utf-8") as lines:
        ragged = flatten(
            ids for chunk in stages.watch(chunks(lines, AT_A_TIME)) for ids in encode(chunk)
        )
    stages.end("encode")
    return encode, ragged


def label(settings: Settings, encode: Encoder, ragged: Ragged, stages: Stages) -> np.ndarray:
    """Bucket the texts; make all batches once for nothing, and once for the classifier."""
    batches = BucketedBatches(
        ragged,
        np.zeros(settings.texts, np.int32),
        batch_size=settings.batch_size,
        boundaries=choose_boundaries(ragged.lengths, settings.buckets),
        seed=settings.seed,
        shuffle=False,
        vocab_size=len(encode.vocabulary),
    )
    rows = batches.epoch_indices(0)
    for _ in zip(stages.watch(rows), batches.epoch(0), strict=True):
        pass
    stages.end("bucket")
    predict = make_predict(settings, len(encode.vocabulary), batches.shapes)
    stages.end("compile")
    labels = np.full(settings.texts, -1, np.int8)
    placed = prefetched(map(jax.device_put, batches.epoch(0)), 2)
    for chosen, batch in zip(stages.watch(rows), placed, strict=True):
        labels[chosen] = np.asarray(predict(batch.tokens, batch.lengths))[: len(chosen)]
    stages.end("predict")
    return labels


def make_predict(
    settings: Settings, vocab_size: int, shapes: Iterable[tuple[int, int]]
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """A small LSTM classifier of four classes, untrained: its labels mean nothing."""
    model = rnnjax.classifier(
        rnnjax.embedding(vocab_size, settings.hidden_size), rnnjax.lstm(settings.hidden_size), 4
    )
    params = model.init(jax.random.key(settings.seed))
    apply = jax.jit(lambda params, *batch: jnp.argmax(model.apply(params, *batch), axis=-1))
    for rows, steps in shapes:  # compiled here, so that none is in the time of predicting
        apply(params, jnp.zeros((rows, steps), jnp.int32), jnp.zeros(rows, jnp.int32))
    return partial(apply, params)


def print_stages(stages: Sequence[Stage]) -> None:
    """A row for each stage."""
    print_table(
        [
            {
                "stage": stage.name,
                "seconds": f"{stage.seconds:.1f}",
                "texts/s": f"{stage.texts / stage.seconds:,.0f}" if stage.texts else "",
                "MB at its end": f"{stage.resident / MEGABYTE:.0f}",
                "peak so far": f"{stage.peak / MEGABYTE:.0f}",
            }
            for stage in stages
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code, 1 where the bound was passed."""
    settings = parse(Settings, PROGRAM, arguments)
    folder = settings.out or usual_folder("million-texts")

    def run() -> int:
        check_settings(settings, texts=whole(1), words=whole(1))
        try:
            with RunFolder(folder, run_config(settings)) as kept:
                stages, labels = measure(settings, kept)
        except Interrupted as stop:
            print(f"{stop}; nothing is left to go on with")
            raise
        return report(settings, stages, labels, folder)

    return exit_code(run)


def report(settings: Settings, stages: Sequence[Stage], labels: np.ndarray, folder: Path) -> int:
    """Print and write what came out; 0 if the memory stayed within its bound."""
    print_stages(stages)
    peak, labelled = stages[-1].peak, int((labels >= 0).sum())
    within = peak <= settings.bound
    summary = {
        "stages": [stage._asdict() for stage in stages],
        "labelled": labelled,
        "peak": peak,
        "bound": settings.bound,
        "within": within,
    }
    (folder / REPORT).write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    print(
        f"{labelled:,} texts labelled; peak {peak / MEGABYTE:.0f} MB, "
        f"{'within' if within else 'PAST'} the bound of {settings.bound / MEGABYTE:.0f} MB "
        f"({settings.fixed_mb} MB and {settings.text_bytes} bytes a text)"
    )
    print(f"files in {folder}")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
