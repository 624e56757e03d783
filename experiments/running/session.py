"""One sitting of a run: from its beginning, or where it was stopped, to its end or the next stop.

Every training loop of the experiments goes on with a run by :func:`go_on`, and tells the session
what it did: the session shows it, records it, saves it, and stops between two steps when asked to.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax

from experiments.running.checkpoints import Saver, Snapshot
from experiments.running.console import Progress
from experiments.running.interrupts import Interrupted, Interrupts
from experiments.running.run_folder import RunFolder
from rnnjax.data import DataError
from rnnjax.metrics import compute
from rnnjax.training import Compilation, NonFiniteError, check_finite

Item = TypeVar("Item")

# Reading each figure from the device as it comes would make the host wait for every step.
_RECORDS_AT_A_TIME = 64


@contextlib.contextmanager
def go_on(
    run: RunFolder,
    saver: Saver,
    begin: Snapshot,
    epochs: int,
    steps: int,
    *,
    max_skipped: int = 20,
    note: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Session, Snapshot]]:
    """A session, and where it begins: at the newest good checkpoint if there is one.

    Args:
        run: the folder of records.
        saver: keeps checkpoints.
        begin: where a new run begins.
        epochs: the bound on them.
        steps: of an epoch.
        max_skipped: end after so many steps in a row that were not finite.
        note: more for the record of the session.

    Raises:
        DataError: more epochs were begun already.
    """
    begin, passed_over = saver.restore(begin)
    begun = begin.epoch - (begin.batch == 0)
    if begun > epochs:
        raise DataError(f"--epochs must be at least {begun}, as many as were begun, got {epochs}")
    run.update_config()  # only now, as what was refused must leave no trace
    with (
        Interrupts() as interrupts,
        Progress(epochs * steps, done=begin.step, may_end_early=True) as progress,
    ):
        for reason in passed_over:
            progress.say(f"passed over checkpoint {reason}")
        if begin.step:
            progress.say(f"going on after step {begin.step}, in epoch {begin.epoch}")
        run.write_timing({"kind": "session", "step": begin.step, **(note or {})})
        yield Session(run, saver, interrupts, progress, max_skipped), begin


class Session:
    """What a training loop tells what it did."""

    def __init__(
        self,
        run: RunFolder,
        saver: Saver,
        interrupts: Interrupts,
        progress: Progress,
        max_skipped: int,
    ) -> None:
        self._run = run
        self._saver = saver
        self._interrupts = interrupts
        self._progress = progress
        self._max_skipped = max_skipped
        self._compile_seconds = 0.0
        self._pending: list[tuple[dict[str, Any], Any]] = []

    @contextlib.contextmanager
    def saved_when_stopped(self, newest: Callable[[], Snapshot]) -> Iterator[None]:
        """Saves the newest snapshot where a signal, or too many bad steps, end the run."""
        try:
            yield
        except (Interrupted, NonFiniteError):
            self.save(newest())
            self._saver.wait()
            raise

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, until a signal has come; see `Interrupts.watch`."""
        return self._interrupts.watch(items)

    def clock(self) -> float:
        """Seconds that only grow, but not while something is compiled."""
        return time.perf_counter() - self._compile_seconds

    def step(self, now: Snapshot, metrics: Any, tokens: int) -> None:
        """Shows and records a step, and saves after it if it is time.

        Args:
            now: the snapshot after it.
            metrics: its figures as sums and counts.
            tokens: how many it read.

        Raises:
            NonFiniteError: too many steps in a row were not finite.
        """
        self._progress.advance(lambda: _shown(metrics), tokens)
        head = {"kind": "step", "step": now.step, "epoch": now.epoch}
        self._pending.append((head, metrics))
        if len(self._pending) >= _RECORDS_AT_A_TIME:
            self._write_steps()
            self.check_finite(now)  # which costs nothing more, as the records waited for the device
        if self._saver.is_due(now.step):
            self.save(now)

    def check_finite(self, now: Snapshot) -> None:
        """Refuses to go on after too many steps in a row that were not finite.

        Raises:
            NonFiniteError: there were.
        """
        check_finite(now.train, self._max_skipped)

    def epoch(
        self,
        now: Snapshot,
        train: Mapping[str, float],
        validation: Mapping[str, float],
        seconds: float,
        is_best: bool,
    ) -> None:
        """Shows and records an epoch.

        Args:
            now: the snapshot after its last step.
            train: figures of its steps.
            validation: figures of the weights after it.
            seconds: that it took, without compiling.
            is_best: whether its weights are the best so far.
        """
        self._write_steps()
        record = {
            "kind": "epoch",
            "epoch": now.epoch,
            "step": now.step,
            "skipped": int(now.train.skipped),
            **{f"train_{name}": value for name, value in train.items()},
            **{f"validation_{name}": value for name, value in validation.items()},
        }
        self._progress.epoch({**record, "seconds": seconds, "best": is_best})
        self._run.write(record)
        self._run.write_timing({"kind": "epoch", "epoch": now.epoch, "seconds": seconds})

    def sample(self, epoch: int, text: str, shown: str | None = None) -> None:
        """Shows and records what the network made after an epoch; ``shown`` if that is shorter."""
        self._progress.say(text if shown is None else shown)
        self._run.write({"kind": "sample", "epoch": epoch, "text": text})

    def save(self, now: Snapshot) -> None:
        """Saves in the background."""
        self._write_steps()
        self._saver.save(now)

    def compiled(self, made: Compilation) -> None:
        """Takes note of a program that was compiled."""
        self._compile_seconds += made.seconds
        self._progress.compiled(made)
        self._run.write_timing({"kind": "compile", **made._asdict()})

    def _write_steps(self) -> None:
        if not self._pending:
            return
        for head, metrics in self._pending:
            self._run.write({**head, **_recorded(metrics)})
        speed = self._progress.tokens_per_second
        last = self._pending[-1][0]["step"]
        self._run.write_timing({"kind": "speed", "step": last, "tokens_per_second": speed})
        self._pending.clear()


def counted(metrics: Any) -> dict[str, Any]:
    """Those metrics that count anything, on the host; a skipped step counts nothing."""
    metrics = jax.device_get(dict(metrics))
    return {name: pair for name, pair in metrics.items() if pair[1] != 0}


def _recorded(metrics: Any) -> dict[str, Any]:
    """What is recorded of a step: of one that was skipped, that it was."""
    figures = compute(counted(metrics))
    return figures if figures.pop("skipped", 0) == 0 else {**figures, "skipped": True}


def _shown(metrics: Any) -> dict[str, float]:
    """Loss and accuracy; the gradient norm is for the records."""
    figures = compute(counted(metrics))
    return {name: value for name, value in figures.items() if name not in ("grad_norm", "skipped")}
