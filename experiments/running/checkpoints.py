"""When a run is saved, what is saved of it, and how it goes on from there."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from experiments.running.agreement import Agreement
from experiments.running.processes import is_first
from experiments.running.run_folder import RunFolder
from experiments.running.run_settings import require_same
from rnnjax.checkpoint import CheckpointError, Checkpoints
from rnnjax.training import EarlyStopping, TrainState

_BEST = ("best_value", "best_epoch", "epochs_since_best")
_POSITION = ("epoch", "batch", "step")
# What --checkpoint-every must be, for the message.
INTERVAL = 'a number of steps, as "500", or of seconds, as "60s"'
_EXTRA = {"identity": None, "records": ("bytes", "sha256"), "best": _BEST, "position": _POSITION}


class Every(NamedTuple):
    """How often to save within an epoch: after so many steps, or so many seconds."""

    steps: int | None
    seconds: int | None


def match_interval(text: str) -> re.Match[str] | None:
    """The number and the unit of an interval; None where it is none."""
    return re.fullmatch(r"([1-9]\d*)(s?)", text)


def parse_every(text: str) -> Every:
    """Reads "500", steps, or "60s", seconds.

    Raises:
        ValueError: it is neither, or 0.

    Example:
        >>> parse_every("500"), parse_every("60s")
        (Every(steps=500, seconds=None), Every(steps=None, seconds=60))
    """
    match = match_interval(text)
    if match is None:
        raise ValueError(f"--checkpoint-every must be {INTERVAL}, got {text!r}")
    number = int(match[1])
    return Every(None, number) if match[2] else Every(number, None)


class Snapshot(NamedTuple):
    """All that the rest of a run depends on, besides its settings and its data.

    The order of the data follows from the seed and the epoch, so two numbers are its position.
    """

    train: TrainState
    stopping: EarlyStopping
    totals: Any  # sums and counts of the metrics of the epoch in hand
    epoch: int = 1  # the one in hand, from 1
    batch: int = 0  # how many of its batches are done
    step: int = 0  # how many were done in all

    def is_last(self, epochs: int) -> bool:
        """Whether no epoch is left to be done."""
        return self.epoch > epochs or self.stopping.should_stop

    def after_step(self, train: TrainState, totals: Any) -> Snapshot:
        """After one more batch of the epoch."""
        return self._replace(train=train, totals=totals, batch=self.batch + 1, step=self.step + 1)

    def after_epoch(self, stopping: EarlyStopping, totals: Any) -> Snapshot:
        """At the beginning of the next epoch."""
        return self._replace(stopping=stopping, totals=totals, epoch=self.epoch + 1, batch=0)


class Saver:
    """Saves snapshots of a run, and finds the newest one that is good.

    Args:
        checkpoints: where.
        run: its records are part of what must be whole.
        identity: what must be the same for a run to go on: settings, data, vocabulary; what
            JSON can say.
        may_change: the settings that need not be the same.
        every: how often within an epoch.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        run: RunFolder,
        identity: Mapping[str, Any],
        *,
        may_change: Collection[str] = (),
        every: Every,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._checkpoints = checkpoints
        self._run = run
        self._identity = identity
        self._may_change = may_change
        self._every = every
        self._clock = clock
        self._saved_step, self._saved_at = 0, clock()
        self._agreement = Agreement()

    def is_due(self, step: int) -> bool:
        """Whether it is time to save within an epoch: by the clock of the first process."""
        if self._every.steps is not None:
            return step - self._saved_step >= self._every.steps
        is_late = self._clock() - self._saved_at >= (self._every.seconds or 0)
        return bool(self._agreement.largest(int(is_late and is_first())))

    def save(self, snapshot: Snapshot) -> None:
        """Saves in the background; the records up to this step must have been written."""
        stopping = snapshot.stopping
        best = {name: getattr(stopping, name) for name in _BEST}
        extra = {
            "identity": self._identity,
            "records": self._run.position,
            "best": best,
            "position": {name: getattr(snapshot, name) for name in _POSITION},
        }
        self._checkpoints.save(snapshot.step, _arrays(snapshot), extra)
        self._saved_step, self._saved_at = snapshot.step, self._clock()

    def wait(self) -> None:
        """Returns when all is on disk."""
        self._checkpoints.wait()

    def restore(self, begin: Snapshot) -> tuple[Snapshot, tuple[str, ...]]:
        """The newest good snapshot; ``begin`` where nothing was saved yet.

        The records of the run are cut to where they were then.

        Args:
            begin: what the run would start from; also the template of all shapes and dtypes.

        Returns:
            The snapshot, and the newer checkpoints that were passed over, with the reasons.

        Raises:
            CheckpointError: there are checkpoints and none is good, or their shapes differ.
            DataError: they are of a run with other settings, data or vocabulary.
        """
        if not self._checkpoints.steps:
            self._run.rewind(None)
            return begin, ()
        found = self._checkpoints.restore(_arrays(begin), accept=self._accept)
        self._run.rewind(found.extra["records"] if is_first() else None)
        train, best_params, totals = found.state
        best = found.extra["best"]
        if best["best_epoch"] is None:
            best_params = None
        stopping = replace(begin.stopping, **best, best_params=best_params)
        snapshot = Snapshot(train, stopping, totals, **found.extra["position"])
        self._saved_step, self._saved_at = snapshot.step, self._clock()
        return snapshot, found.rejected

    def _accept(self, extra: dict[str, Any]) -> None:
        for part, names in _EXTRA.items():
            found = extra.get(part)
            if not isinstance(found, dict) or (names and sorted(found) != sorted(names)):
                raise CheckpointError(f"a checkpoint of a run must have {part}, got none")
        require_same(
            extra["identity"], self._identity, self._may_change, str(self._checkpoints.folder)
        )
        if not self._run.reaches(extra["records"]):
            raise CheckpointError(
                f"{self._run.metrics_path.name} must begin as it did then, got other records"
            )


def _arrays(snapshot: Snapshot) -> tuple[TrainState, Any, Any]:
    """The state, the best parameters so far, and the sums of the epoch: one shape at all times."""
    best = snapshot.stopping.best_params
    params = snapshot.train.params if best is None else best
    return snapshot.train, params, snapshot.totals
