"""What a finished run left in its folder: its settings and its weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax

from experiments.running.console import command
from experiments.running.run_settings import RunSettings, stored_settings
from rnnjax.data import DataError
from rnnjax.weights import load_weights

WEIGHTS = "weights.safetensors"

Run = TypeVar("Run", bound=RunSettings)
Params = TypeVar("Params")


def finished_settings(program: str, kind: type[Run], folder: Path) -> Run:
    """The settings of a finished run.

    Args:
        program: what trains such runs, ``"python -m experiments.write"``.
        kind: the dataclass of its settings.
        folder: that of the run.

    Raises:
        DataError: it holds no run, or one that is not finished; says how to go on with it.
    """
    settings = stored_settings(kind, folder)
    if not (folder / WEIGHTS).is_file():
        go_on = command(*program.split(), "--out", folder, "--resume")
        raise DataError(
            f"{folder} must hold a finished run, got one without weights; go on: {go_on}"
        )
    return settings


def load_trained(init: Callable[[jax.Array], Params], folder: Path) -> Params:
    """The weights of a finished run, for the model of which ``init`` makes the first ones.

    Raises:
        DataError: they are of another run than the settings or the vocabulary beside them.
        ValueError: the file is damaged.
    """
    path = folder / WEIGHTS
    try:
        return load_weights(path, jax.eval_shape(init, jax.random.key(0)))
    except ValueError as error:
        _, *differences = str(error).split("\n")
        if not differences:
            raise
        lines = "\n".join(differences)
        raise DataError(
            f"{path} must be of one run with the other files in its folder, got:\n{lines}"
        ) from None


def load_notes(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """What a run left in a JSON file beside its weights.

    Args:
        path: of the file.
        names: what must stand in it, and nothing else.

    Raises:
        DataError: the file is missing, or holds something else.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} must be what a run left there, got {error}") from None
    if not isinstance(found, dict) or set(found) != set(names):
        raise DataError(
            f"{path} must have {', '.join(names)}, as a run leaves it there, got {str(found)!r:.60}"
        )
    return found
