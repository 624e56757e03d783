"""Whole arrays on the disk, as Orbax writes and reads them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rnnjax._checks import missing_package

STATE = "state"


def import_orbax() -> Any:
    """The library, which this package does without until checkpoints are asked for.

    Raises:
        ModuleNotFoundError: saying which extra brings it.
    """
    try:
        import orbax.checkpoint
    except ModuleNotFoundError as error:
        raise missing_package("rnnjax.checkpoint", "orbax-checkpoint", "checkpoint") from error
    return orbax.checkpoint


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by name into a folder that is not there yet."""
    orbax = import_orbax()
    with _checkpointer() as checkpointer:
        checkpointer.save(path, args=orbax.args.StandardSave(arrays))


def load_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Those that are named of the arrays that :func:`save_arrays` wrote; no other is read."""
    from etils import epath  # of Orbax, whose handlers take no other paths

    orbax = import_orbax()
    handler = orbax.PyTreeCheckpointHandler(multiprocessing_options=_alone())
    to_host = dict.fromkeys(names, orbax.RestoreArgs(restore_type=np.ndarray))
    item = dict.fromkeys(to_host, 0)
    wanted = orbax.args.PyTreeRestore(item=item, restore_args=to_host, partial_restore=True)
    with contextlib.closing(handler):
        return handler.restore(epath.Path(path), args=wanted)


def stored_forms(path: Path) -> Mapping[str, Any]:
    """Shapes and dtypes, without the arrays."""
    from etils import epath  # of Orbax, whose handlers take no other paths

    handler = import_orbax().StandardCheckpointHandler(multiprocessing_options=_alone())
    with contextlib.closing(handler):
        return handler.metadata(epath.Path(path)).tree


def _checkpointer() -> Any:
    orbax, alone = import_orbax(), _alone()
    handler = orbax.StandardCheckpointHandler(multiprocessing_options=alone)
    return orbax.Checkpointer(handler, multiprocessing_options=alone)


def _alone() -> Any:
    """Has Orbax write and read in this process without waiting for others at its barriers: those
    are of devices, for which a step in hand would have to end everywhere in the same order."""
    process = jax.process_index()
    return import_orbax().options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"of {process}"
    )
