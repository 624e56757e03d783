"""The command line of a program that trains, and then does something with what it trained."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import tyro

from experiments.running.console import exit_code
from experiments.running.run_folder import CONFIG
from experiments.running.run_settings import RunSettings, stored_settings
from rnnjax.checkpoint import CheckpointError
from rnnjax.data import DataError
from rnnjax.training import NonFiniteError

Run = TypeVar("Run", bound=RunSettings)


def run_program(
    program: str,
    kind: type[Run],
    train: Callable[[Run], object],
    requests: Mapping[str, tuple[type, Callable[[Any], object]]],
    arguments: Sequence[str] | None,
) -> int:
    """Train, or do what the first word asks for; the exit code.

    Args:
        program: how it is called, ``"python -m experiments.write"``.
        kind: the dataclass of its settings.
        train: trains with some settings.
        requests: by their first words, dataclasses of what can be asked of a trained network, and
            what answers them.
        arguments: those of the command line if None.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)

    def run() -> None:
        if given[:1] and given[0] in requests:
            request, answer = requests[given[0]]
            answer(tyro.cli(request, prog=f"{program} {given[0]}", args=given[1:]))
        else:
            train(parse_settings(program, kind, given))

    return exit_code(run, CheckpointError, NonFiniteError)


def parse_settings(program: str, kind: type[Run], given: Sequence[str]) -> Run:
    """The settings on the command line; when resuming, the rest are those of the run.

    Raises:
        DataError: the run to go on with is not said, or is to be deleted as well.
    """
    settings = tyro.cli(kind, prog=program, args=given)
    if not settings.resume:
        return settings
    if settings.replace:
        raise DataError("--resume and --replace must be given one at a time, got both")
    if settings.out is None:
        raise DataError("--out must name the folder of the run to resume, got none")
    if not (settings.out / CONFIG).is_file():
        return settings
    return tyro.cli(kind, prog=program, args=given, default=stored_settings(kind, settings.out))
