"""What a finished run left in its folder: its settings and its weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import jax
import numpy as np

from experiments.running.console import command
from experiments.running.run_folder import CONFIG, METRICS, TIMINGS
from experiments.running.run_settings import RunSettings, stored_settings
from rnnjax.data import DataError
from rnnjax.weights import load_weights, named_parameters

WEIGHTS = "weights.safetensors"

Run = TypeVar("Run", bound=RunSettings)
Params = TypeVar("Params")
Notes = TypeVar("Notes")


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
    require_weights(program, folder)
    return settings


def require_weights(program: str, folder: Path) -> None:
    """Refuses a run that is not finished.

    Raises:
        DataError: says how to go on with it.
    """
    if not (folder / WEIGHTS).is_file():
        raise DataError(
            f"{folder} must hold a finished run, got one without weights; go on: "
            f"{_going_on(program, folder)}"
        )


def _going_on(program: str, folder: Path) -> str:
    return command(*program.split(), "--out", folder, "--resume")


def load_trained(init: Callable[[jax.Array], Params], folder: Path) -> Params:
    """The weights of a finished run, for the model of which ``init`` makes the first ones.

    Raises:
        DataError: they are of another run than the settings or the vocabulary beside them.
        ValueError: the file is damaged.
    """
    path = folder / WEIGHTS
    try:
        params = load_weights(path, jax.eval_shape(init, jax.random.key(0)))
    except ValueError as error:
        _, *differences = str(error).split("\n")
        if not differences:
            raise
        lines = "\n".join(differences)
        raise DataError(
            f"{path} must be of one run with the other files in its folder, got:\n{lines}"
        ) from None
    for name, leaf in named_parameters(params).items():
        if not np.all(np.isfinite(leaf)):
            raise DataError(f"{path} must have finite weights, got NaN or infinity in {name}")
    return params


def kept_files(folder: Path, *names: str) -> list[Path]:
    """The files of a run that it is used with, or goes on with, and nothing else may be written to.

    Args:
        folder: that of the run.
        names: of further ones that are read beside the weights.
    """
    return [folder / name for name in (CONFIG, METRICS, TIMINGS, WEIGHTS, *names)]


def load_notes(program: str, path: Path, kind: type[Notes]) -> Notes:
    """What a run left in a JSON file beside its weights.

    Args:
        program: what trains such runs, ``"python -m experiments.anomaly"``.
        path: of the file, in the run's folder.
        kind: of what must stand in it, and nothing else: a number, a text, a list of one kind, or
            a NamedTuple of such, which is a JSON object.

    Raises:
        DataError: the file is missing, as after a run that was killed; says how to go on with it.
            Or it holds something else.
    """
    if not path.exists():
        go_on = _going_on(program, path.parent)
        raise DataError(f"{path} must be what a run left there, got none; go on: {go_on}")
    try:
        return _as_kind(kind, json.loads(path.read_text("utf-8")), "it")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error  # not the path once more
        raise DataError(f"{path} must be what a run left there, got {reason}") from None


def _as_kind(kind: Any, value: Any, name: str) -> Any:
    hints = get_type_hints(kind) if hasattr(kind, "_fields") else {}
    if hints and isinstance(value, dict) and set(value) == set(hints):
        return kind(**{part: _as_kind(hints[part], value[part], part) for part in hints})
    if get_origin(kind) is list and isinstance(value, list):
        return [_as_kind(get_args(kind)[0], one, name) for one in value]
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    raise ValueError(f"{name} {value!r:.60}")
