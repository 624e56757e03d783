"""The command line of a program that trains, and then does something with what it trained."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

from experiments.running.console import exit_code
from experiments.running.failures import Failures
from experiments.running.interrupts import telling_how_to_go_on
from experiments.running.parsing import arrange_help, first_lines, one_paragraph, parse
from experiments.running.processes import Launch
from experiments.running.run_folder import CONFIG
from experiments.running.run_settings import RunSettings, stored_settings
from rnnjax.data import DataError

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
            answer(parse(request, f"{program} {given[0]}", given[1:]))
        elif given[:1] and not given[0].startswith("-"):
            known = " or ".join(["an option", *requests])
            raise DataError(f"the first word must be {known} (see --help), got {given[0]!r}")
        else:
            settings, launch = parse_settings(program, kind, given, requests)
            with launch.joined(failures), telling_how_to_go_on(program):
                if settings.resume and settings.out and not (settings.out / CONFIG).is_file():
                    print(f"{settings.out}: nothing to resume yet, beginning at the first step")
                train(settings)

    failures = Failures()
    return failures.exit_code(lambda: exit_code(run))


def parse_settings(
    program: str,
    kind: type[Run],
    given: Sequence[str],
    requests: Mapping[str, tuple[type, Any]] = MappingProxyType({}),
) -> tuple[Run, Launch]:
    """The settings on the command line, and in how many processes; when resuming, the rest of the
    settings are those of the run.

    The help also names the requests, what can be asked of a trained network.

    Raises:
        DataError: the run to go on with, or to replace, is not said, or one is to be both.
    """
    description = "\n\n".join([first_lines(kind), *_requests_lines(program, requests)])
    settings, launch = _parse(program, kind, given, kind(), description)
    if not settings.resume and not settings.replace:
        return settings, launch
    if settings.resume and settings.replace:
        raise DataError("--resume and --replace must be given one at a time, got both")
    if settings.out is None:
        wish = "resume" if settings.resume else "replace"
        raise DataError(f"--out must name the folder of the run to {wish}, got none")
    if settings.replace or not (settings.out / CONFIG).is_file():
        return settings, launch
    return _parse(program, kind, given, stored_settings(kind, settings.out), description)


def _requests_lines(program: str, requests: Mapping[str, tuple[type, Any]]) -> list[str]:
    """What the help says of requests: how each is asked for, and the first sentence of its own."""
    lines = []
    for word, (request, _) in requests.items():
        what = one_paragraph(request.__doc__ or "").partition(". ")[0].rstrip(".")
        lines.append(f"{what}:\n  {program} {word} --help")
    return lines


def _parse(
    program: str, kind: type[Run], given: Sequence[str], default: Run, description: str
) -> tuple[Run, Launch]:
    boxes = [(title, _box(kind, names, default)) for title, names in kind.groups()]
    without_prefix, first = tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")
    launch = ("several_processes", Annotated[Launch, without_prefix], Launch())
    both = dataclasses.make_dataclass(
        "Both",
        [
            *(
                (title or "own", Annotated[box, without_prefix if title else first], box())
                for title, box in boxes
            ),
            *([launch] if kind.SEVERAL_PROCESSES else []),
        ],
    )
    parsed = parse(both, program, given, description=description)
    values = {
        name: value
        for title, _ in boxes
        for name, value in vars(getattr(parsed, title or "own")).items()
    }
    return kind(**values), parsed.several_processes if kind.SEVERAL_PROCESSES else Launch()


def _box(kind: type[RunSettings], names: Sequence[str], default: RunSettings) -> type:
    """Some settings of a program as a dataclass of their own."""
    arrange_help(kind)
    hints = get_type_hints(kind, include_extras=True)
    texts = {field.name: field.metadata for field in dataclasses.fields(kind)}
    return dataclasses.make_dataclass(
        "Box",
        [
            (n, hints[n], dataclasses.field(default=getattr(default, n), metadata=texts[n]))
            for n in names
        ],
        frozen=True,
    )
