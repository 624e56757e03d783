"""The folder of a run, opened to begin or to go on with it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.running.checkpoints import Saver, parse_every
from experiments.running.console import wrapped
from experiments.running.interrupts import resumable
from experiments.running.processes import own_folder
from experiments.running.room import require_room
from experiments.running.run_folder import CHECKPOINTS, RunFolder, environment, plain
from experiments.running.run_settings import RunSettings, require_same
from rnnjax._processes import Messages, ProcessError
from rnnjax.checkpoint import Checkpoints
from rnnjax.data import DataError


@contextlib.contextmanager
def open_run(
    settings: RunSettings,
    folder: Path,
    stored: Mapping[str, Any] | None,
    identity: Mapping[str, Any],
    leaves: Sequence[str],
    more: Mapping[str, Any] | None = None,
    *,
    init: Callable[[jax.Array], Any],
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
        init: ``(key) -> weights``, of all that is to be trained.

    Raises:
        DataError: the weights do not fit the memory here, the run that is to go on was another
            one, or it is another one in one of several processes.
        OSError: see `RunFolder`.
    """
    require_room(init)
    _require_agreement(identity, settings.places())
    config = {"environment": environment(), **(stored or {}), **identity}
    if stored is not None:
        require_same(stored, config, settings.may_change(), str(folder))
        _note_environment(config["environment"])
    with (
        resumable(folder),
        own_folder(folder) as place,
        RunFolder(place, config, settings.existing, leaves) as run,
        Checkpoints(folder / CHECKPOINTS, keep=settings.keep) as checkpoints,
    ):
        every = parse_every(settings.checkpoint_every)
        known = {**identity, **(more or {})}
        yield run, Saver(checkpoints, run, known, may_change=settings.may_change(), every=every)


def _require_agreement(identity: Mapping[str, Any], places: frozenset[str]) -> None:
    """Refuse processes that were given other settings or data than the first: their batches would
    not fit together, or the run would be none that can be said. Places of data may differ."""
    if jax.process_count() == 1:
        return
    messages, told, process = Messages(), plain(identity), jax.process_index()
    first = messages.from_first("identity", lambda: told)

    def check() -> None:
        then, now = ({**one, **one.get("settings", {}), "settings": None} for one in (first, told))
        names = [n for n in {**then, **now} if n not in places and then.get(n) != now.get(n)]
        if names:
            raise DataError(
                f"{', '.join(names)} must be the same in all processes, got others in process "
                f"{process}"
            )

    try:
        messages.gather("agreed", check)  # before the first one leaves a trace
    except ProcessError as error:
        raise DataError(str(error)) from None


def _note_environment(stored: Mapping[str, Any]) -> None:
    """Say what is not as it was when the run began, since equal bits are then not to be had."""
    now = environment()
    changed = [f"{n} {stored.get(n)} then, {now[n]} now" for n in now if now[n] != stored.get(n)]
    if changed:
        print(wrapped(f"note: {'; '.join(changed)}: the last bits of the numbers may differ"))
