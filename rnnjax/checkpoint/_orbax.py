"""Whole arrays on the disk, as Orbax writes and reads them."""

from __future__ import annotations

from collections.abc import Mapping
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


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays that :func:`save_arrays` wrote."""
    orbax = import_orbax()
    with _checkpointer() as checkpointer:
        return checkpointer.restore(path, args=orbax.args.StandardRestore())


def stored_forms(path: Path) -> Mapping[str, Any]:
    """Shapes and dtypes, without the arrays."""
    from etils import epath  # of Orbax, whose handlers take no other paths

    handler = import_orbax().StandardCheckpointHandler(multiprocessing_options=_alone())
    try:
        return handler.metadata(epath.Path(path)).tree
    finally:
        handler.close()


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
