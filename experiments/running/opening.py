"""The folder of a run, opened to begin or to go on with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.running.checkpoints import Saver, parse_every
from experiments.running.console import wrapped
from experiments.running.processes import own_folder
from experiments.running.run_folder import CHECKPOINTS, RunFolder, environment
from experiments.running.run_settings import RunSettings, require_same
from rnnjax.checkpoint import Checkpoints


@contextlib.contextmanager
def open_run(
    settings: RunSettings,
    folder: Path,
    stored: Mapping[str, Any] | None,
    identity: Mapping[str, Any],
    leaves: Sequence[str],
    more: Mapping[str, Any] | None = None,
) -> Iterator[tuple[RunFolder, Saver]]:
    """A run's folder, and what saves its checkpoints there.

    In several processes the folder of all but the first is another one, which is deleted; the
    checkpoints are one.

    Args:
        settings: those of the run.
        folder: where; made if need be.
        stored: what `stored_config` gave.
        identity: what makes the run the one it is, as JSON holds it: settings and data.
        leaves: names of further files that the run will leave.
        more: what makes it the one it is as well, but is too long for config.json.

    Raises:
        DataError: the run that is to go on was another one.
        OSError: see `RunFolder`.
    """
    config = {"environment": environment(), **(stored or {}), **identity}
    if stored is not None:
        require_same(stored, config, settings.MAY_CHANGE, str(folder))
        _note_environment(config["environment"])
    with (
        own_folder(folder) as place,
        RunFolder(place, config, settings.existing, leaves) as run,
        Checkpoints(folder / CHECKPOINTS, keep=settings.keep) as checkpoints,
    ):
        every = parse_every(settings.checkpoint_every)
        known = {**identity, **(more or {})}
        yield run, Saver(checkpoints, run, known, may_change=settings.MAY_CHANGE, every=every)


def _note_environment(stored: Mapping[str, Any]) -> None:
    """Say what is not as it was when the run began, since equal bits are then not to be had."""
    now = environment()
    changed = [f"{n} {stored.get(n)} then, {now[n]} now" for n in now if now[n] != stored.get(n)]
    if changed:
        print(wrapped(f"note: {'; '.join(changed)}: the last bits of the numbers may differ"))
